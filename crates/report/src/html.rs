use crate::markdown::numbers;
use crate::{Figure, Page, Table, chart, palette};
use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");

/// A whole page that fetches nothing and fits light and dark, of what stands in its middle.
#[must_use]
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{}</title><style>{}{STYLE}{}</style></head><body><main>\n{body}</main></body></html>\n",
        escape(title),
        palette::of_page(),
        chart::STYLE
    )
}

/// Text made safe inside elements and attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Page {
    /// One file that fetches nothing.
    #[must_use]
    pub fn to_html(&self) -> String {
        let mut body = format!(
            "<p class=\"soft\">cofilter</p><h1>{}</h1>\n<p>{}</p>\n",
            escape(&self.title),
            escape(&self.summary)
        );
        body.extend(self.tables.iter().map(Table::to_html));
        body.extend(self.figures.iter().map(Figure::to_html));
        document(&format!("cofilter: {}", self.title), &body)
    }
}

impl Figure {
    /// Title, chart, caption and numbers, for the middle of a [`document`].
    #[must_use]
    pub fn to_html(&self) -> String {
        format!(
            "<h2 id=\"{}\">{}</h2>\n<figure>{}<figcaption>{}</figcaption>\n\
             <details><summary>numbers</summary>{}</details></figure>\n",
            escape(&self.id),
            escape(&self.title),
            chart::of_page(self),
            escape(&self.caption),
            numbers(self, "").to_html()
        )
    }
}

impl Table {
    /// Title, caption and cells, for the middle of a [`document`].
    #[must_use]
    pub fn to_html(&self) -> String {
        let mut html = String::new();
        if !self.title.is_empty() {
            let _ = writeln!(html, "<h2>{}</h2>", escape(&self.title));
        }
        if !self.caption.is_empty() {
            let _ = writeln!(html, "<p class=\"soft\">{}</p>", escape(&self.caption));
        }
        html += "<div class=\"scroll\"><table><thead><tr>";
        for column in &self.columns {
            let _ = write!(html, "<th>{}</th>", escape(column));
        }
        html += "</tr></thead><tbody>\n";
        for row in &self.rows {
            html += "<tr>";
            for cell in row {
                let class = match cell.as_str() {
                    "holds" => " class=\"holds\"",
                    "DOES NOT HOLD" => " class=\"fails\"",
                    c if c.starts_with(|c: char| c.is_ascii_digit()) && !c.contains(' ') => {
                        " class=\"number\""
                    }
                    _ => "",
                };
                let _ = write!(html, "<td{class}>{}</td>", escape(cell));
            }
            html += "</tr>\n";
        }
        html + "</tbody></table></div>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{bars, lines, matrix};

    #[test]
    fn a_page_has_everything_and_fetches_nothing() {
        let table = Table {
            title: "Ranks & more".into(),
            caption: String::new(),
            columns: vec!["layer".into(), "rank".into()],
            rows: vec![vec!["conv1".into(), "17".into()]],
        };
        let page = Page {
            title: "A <page>".into(),
            summary: "What it shows.".into(),
            tables: vec![table],
            figures: vec![bars(), lines(), matrix(20, 20)],
        };
        let html = page.to_html();
        for part in
            ["<h1>A &lt;page&gt;</h1>", "Ranks &amp; more", "<td class=\"number\">17</td>", "What it shows."]
        {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!((html.matches("<svg").count(), html.matches("<figcaption>").count()), (3, 3));
        let fetched =
            ["src=", "href=", "url(", "@import", "<script"].into_iter().find(|word| html.contains(word));
        assert_eq!(fetched, None, "the page fetches something");
    }
}
