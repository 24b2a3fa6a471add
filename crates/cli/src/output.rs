//! Results for people and for programs.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::io::Write as _;

/// What a command found.
pub(crate) struct Output {
    text: String,
    json: serde_json::Value,
    met: bool,
}

impl Output {
    pub(crate) fn new(text: String, value: &impl Serialize) -> Result<Self> {
        Ok(Self { text, json: serde_json::to_value(value)?, met: true })
    }

    /// Says whether what was asked for was met.
    pub(crate) fn with_met(self, met: bool) -> Self {
        Self { met, ..self }
    }

    pub(crate) fn met(&self) -> bool {
        self.met
    }

    pub(crate) fn print(&self, json: bool) -> std::io::Result<()> {
        print(&if json { format!("{:#}", self.json) } else { self.text.trim_end().to_owned() })
    }
}

/// Writes a text to stdout. Whoever closes it, as `head` does, has read enough.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A table: the first column to the left, numbers to the right.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A large number in thousands, millions or thousands of millions.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(crate) fn short(number: usize) -> String {
    match number as f64 {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        _ => number.to_string(),
    }
}

/// A table for a terminal.
pub(crate) trait ToText {
    fn to_text(&self) -> String;
}

impl ToText for cofilter_report::Table {
    fn to_text(&self) -> String {
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        table(&columns, self.rows.clone())
    }
}
