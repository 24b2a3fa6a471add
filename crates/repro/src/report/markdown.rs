use super::{Plot, Report, Table};
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
        text += &table(t);
    }
    for figure in &report.figures {
        text += &table(&numbers(&figure.plot, &figure.title, &figure.x_label));
    }
    text
}

fn list(seeds: &[u64]) -> String {
    seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn table(t: &Table) -> String {
    let mut text = format!("\n## {}\n\n", t.title);
    if !t.caption.is_empty() {
        let _ = writeln!(text, "{}\n", t.caption);
    }
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    text += &row(&t.columns);
    text += &row(&t.columns.iter().map(|_| "---".to_owned()).collect::<Vec<_>>());
    for cells in &t.rows {
        text += &row(cells);
    }
    text
}

/// The numbers behind a chart as a table: one row a category or x value.
pub(super) fn numbers(plot: &Plot, title: &str, x_label: &str) -> Table {
    let number = |v: Option<f64>| {
        v.map_or("-".to_owned(), |v| format!("{v:.4}").trim_end_matches('0').trim_end_matches('.').to_owned())
    };
    let mut columns = vec![x_label.to_owned()];
    let rows = match plot {
        Plot::Bars { categories, series } => {
            columns.extend(series.iter().map(|s| s.name.clone()));
            let row = |(i, category): (usize, &String)| {
                let values = series.iter().map(|s| number(s.values.get(i).copied().flatten()));
                std::iter::once(category.clone()).chain(values).collect()
            };
            categories.iter().enumerate().map(row).collect()
        }
        Plot::Lines { series } | Plot::Points { series } => {
            columns.extend(series.iter().map(|s| s.name.clone()));
            let mut xs: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p[0])).collect();
            xs.sort_by(f64::total_cmp);
            xs.dedup();
            let at = |s: &super::LineSeries, x: f64| s.points.iter().find(|p| p[0] == x).map(|p| p[1]);
            let row = |x: &f64| {
                std::iter::once(number(Some(*x))).chain(series.iter().map(|s| number(at(s, *x)))).collect()
            };
            xs.iter().map(row).collect()
        }
    };
    Table { title: title.to_owned(), caption: String::new(), columns, rows }
}
