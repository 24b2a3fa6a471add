use super::chart::to_svg;
use super::markdown::numbers;
use super::{Report, Table};
use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");

/// The report as one page that needs no network and fits light and dark.
#[must_use]
pub fn to_html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>cofilter: {0}</title><style>{STYLE}{1}</style></head><body><main>\n\
         <p class=\"soft\">cofilter reproduce</p><h1>{0}</h1>\n<p>{2}</p>\n",
        escape(&report.experiment),
        series_style(),
        escape(&report.summary)
    );
    if !report.claims.is_empty() {
        page += &table(&report.claims_table());
    }
    if !report.arms.is_empty() {
        page += &table(&report.arms_table());
    }
    for figure in &report.figures {
        let id = escape(&figure.id);
        let _ = writeln!(page, "<h2 id=\"{id}\">{}</h2>\n<figure>", escape(&figure.title));
        page += &to_svg(figure);
        let _ = writeln!(page, "<figcaption>{}</figcaption>", escape(&figure.caption));
        let data = numbers(&figure.plot, "", &figure.x_label);
        let _ = writeln!(page, "<details><summary>numbers</summary>{}</details></figure>", table(&data));
    }
    for t in &report.tables {
        page += &table(t);
    }
    page += &origin(report);
    page + "</main></body></html>\n"
}

fn series_style() -> String {
    (0..8)
        .map(|i| format!(".c{i}{{fill:var(--c{i});background:var(--c{i})}}.l{i}{{stroke:var(--c{i})}}\n"))
        .collect()
}

/// Text made safe inside elements and attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn table(t: &Table) -> String {
    let mut html = String::new();
    if !t.title.is_empty() {
        let _ = writeln!(html, "<h2>{}</h2>", escape(&t.title));
    }
    if !t.caption.is_empty() {
        let _ = writeln!(html, "<p class=\"soft\">{}</p>", escape(&t.caption));
    }
    html += "<div class=\"scroll\"><table><thead><tr>";
    for column in &t.columns {
        let _ = write!(html, "<th>{}</th>", escape(column));
    }
    html += "</tr></thead><tbody>\n";
    for row in &t.rows {
        html += "<tr>";
        for cell in row {
            let class = match cell.as_str() {
                "holds" => " class=\"holds\"",
                "DOES NOT HOLD" => " class=\"fails\"",
                c if c.starts_with(|c: char| c.is_ascii_digit()) && !c.contains(' ') => " class=\"number\"",
                _ => "",
            };
            let _ = write!(html, "<td{class}>{}</td>", escape(cell));
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n"
}

fn origin(report: &Report) -> String {
    let seeds = report.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut rows = vec![
        ("command", format!("<code>{}</code>", escape(&report.command))),
        ("commit", format!("<code>{}</code>", escape(&report.commit))),
        ("seeds", seeds),
        ("machine", escape(&report.machine.to_string())),
    ];
    if let Some(data) = &report.data {
        rows.push((
            "data",
            format!(
                "{}, {} training and {} test images, SHA-256 <code>{}</code>",
                escape(&data.name),
                data.train_images,
                data.test_images,
                escape(&data.sha256)
            ),
        ));
    }
    let rows: String = rows.iter().map(|(k, v)| format!("<dt>{k}</dt><dd>{v}</dd>")).collect();
    let notes: String = report.notes.iter().map(|n| format!("<li>{}</li>", escape(n))).collect();
    format!("<h2>How this was made</h2>\n<dl>{rows}</dl>\n<ul class=\"soft\">{notes}</ul>\n")
}
