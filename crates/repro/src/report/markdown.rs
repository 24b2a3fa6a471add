use super::Report;
use std::fmt::Write as _;

/// The report as Markdown: claims, arms, tables, and the numbers of each figure.
#[must_use]
pub fn to_markdown(report: &Report) -> String {
    let mut text = format!("# {}\n\n{}\n\n", report.experiment, report.summary);
    let _ = writeln!(text, "- command: `{}`", report.command);
    let _ = writeln!(text, "- commit: `{}`", report.commit);
    let _ = writeln!(text, "- seeds: {}", list(&report.seeds));
    let _ = writeln!(text, "- machine: {}", report.machine);
    if let Some(data) = &report.data {
        let (train, test) = (data.train_images, data.test_images);
        let _ = writeln!(
            text,
            "- data: {}, {train} training and {test} test images, SHA-256 `{}`",
            data.name, data.sha256
        );
    }
    for note in &report.notes {
        let _ = writeln!(text, "- {note}");
    }
    let tables = [report.claims_table(), report.arms_table()];
    for t in tables.iter().chain(&report.tables).filter(|t| !t.rows.is_empty()) {
        text += &t.to_markdown();
    }
    for figure in &report.figures {
        text += &figure.to_markdown();
    }
    text
}

fn list(seeds: &[u64]) -> String {
    seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
