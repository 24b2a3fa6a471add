use super::Report;
use cofilter_report::{Figure, Table, document, escape};

/// The report as one page that needs no network and fits light and dark.
#[must_use]
pub fn to_html(report: &Report) -> String {
    let mut body = format!(
        "<p class=\"soft\">cofilter reproduce</p><h1>{}</h1>\n<p>{}</p>\n",
        escape(&report.experiment),
        escape(&report.summary)
    );
    if !report.claims.is_empty() {
        body += &report.claims_table().to_html();
    }
    if !report.arms.is_empty() {
        body += &report.arms_table().to_html();
    }
    body.extend(report.figures.iter().map(Figure::to_html));
    body.extend(report.tables.iter().map(Table::to_html));
    body += &origin(report);
    document(&format!("cofilter: {}", report.experiment), &body)
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
