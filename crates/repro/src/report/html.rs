use super::chart::to_svg;
use super::markdown::numbers;
use super::{Report, Table};
use std::fmt::Write as _;

const STYLE: &str = "
:root{--bg:#fcfcfb;--fg:#1c1f23;--soft:#5a626c;--line:#e2e4e7;--card:#fff;--good:#1a7f37;--bad:#b42318;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#cc79a7;--c4:#b8860b;--c5:#56b4e9;--c6:#6a51a3;--c7:#7f7f7f}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--soft:#9aa3ad;--line:#2c3238;--card:#1a1e22;--good:#4ac26b;--bad:#ff7b72;
--c0:#4aa3df;--c1:#f0883e;--c2:#2dc49b;--c3:#e59ac4;--c4:#e3b341;--c5:#8fd0f5;--c6:#a892e0;--c7:#a0a6ad}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:1000px;margin:0 auto;padding:32px 20px 64px}h1{font-size:30px;margin:0 0 4px}h2{font-size:20px;margin:36px 0 8px}
p{margin:6px 0}.soft,figcaption,caption{color:var(--soft);font-size:14px}code{font:13px ui-monospace,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}th,td{padding:6px 12px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}tr:last-child td{border-bottom:0}td.number{text-align:right;white-space:nowrap}
.holds{color:var(--good);font-weight:600}.fails{color:var(--bad);font-weight:700}
figure{margin:12px 0;padding:14px;background:var(--card);border:1px solid var(--line);border-radius:8px}svg{width:100%;height:auto;display:block}
.grid{stroke:var(--line)}.tick,.label{fill:var(--soft);font-size:12px}.label{font-size:13px}polyline{fill:none;stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;font-size:14px;margin:6px 0 0 4px}.legend span{display:inline-flex;align-items:center;gap:6px}.swatch{width:12px;height:12px;border-radius:3px;display:inline-block}
details{margin-top:8px}summary{cursor:pointer;color:var(--soft);font-size:14px}dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;font-size:14px;margin:8px 0}dt{color:var(--soft)}dd{margin:0;min-width:0}
";

/// The report as one page that needs no network and fits light and dark.
#[must_use]
pub fn to_html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>cofilter: {0}</title><style>{STYLE}{1}</style></head><body><main>\n\
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
