//! Figures, tables and pages: data that knows no experiment, and its forms as SVG, HTML and Markdown.
//!
//! Everything is serde data, so JSON comes with it. Pages and files need no network, no script and no font, and fit light and dark.
//!
//! ```
//! use cofilter_report::{Figure, LineSeries, Plot};
//!
//! let figure = Figure {
//!     id: "energy".into(),
//!     title: "Energy kept".into(),
//!     caption: "Of the squared singular values.".into(),
//!     x_label: "rank".into(),
//!     y_label: "energy, %".into(),
//!     plot: Plot::Lines { series: vec![LineSeries { name: "conv1".into(), points: vec![[1.0, 60.0], [2.0, 100.0]] }] },
//! };
//! assert!(figure.to_svg().contains("conv1"));
//! ```

mod axis;
mod chart;
mod error;
mod files;
mod html;
mod markdown;
mod matrix;
mod palette;

pub use error::{Error, Result};
pub use files::{free_id, write_svgs};
pub use html::{document, escape};

use serde::{Deserialize, Serialize};

/// A chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Anchor in a page and name of its file ([`free_id`]).
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Label of the vertical axis, with its unit.
    pub y_label: String,
    /// The numbers.
    pub plot: Plot,
}

/// Numbers of a chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Plot {
    /// Groups of bars that start at zero.
    Bars {
        /// One group each.
        categories: Vec<String>,
        /// One bar in each group; `values` has one entry per category.
        series: Vec<BarSeries>,
    },
    /// Points joined by lines.
    Lines {
        /// One line each.
        series: Vec<LineSeries>,
    },
    /// Points with a label each.
    Points {
        /// One colour each.
        series: Vec<LineSeries>,
    },
    /// A heat map.
    Matrix {
        /// Labels of the rows, from top to bottom.
        rows: Vec<String>,
        /// Labels of the columns.
        columns: Vec<String>,
        /// One list a row; `None` leaves a cell out.
        values: Vec<Vec<Option<f64>>>,
        /// Ends of the colour scale; what lies beyond has the colour of the end.
        range: [f64; 2],
    },
}

/// One colour of a bar chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BarSeries {
    /// Name in the legend.
    pub name: String,
    /// Height in each group; `None` leaves it out.
    pub values: Vec<Option<f64>>,
}

/// One colour of a line chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LineSeries {
    /// Name in the legend.
    pub name: String,
    /// `[x, y]`.
    pub points: Vec<[f64; 2]>,
}

/// A table of text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

/// Tables and figures under one title.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page {
    /// Of the page.
    pub title: String,
    /// One paragraph: what was done and what it shows.
    pub summary: String,
    /// Shown first.
    pub tables: Vec<Table>,
    /// Charts, with their numbers.
    pub figures: Vec<Figure>,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn bars() -> Figure {
        Figure {
            id: "ranks".into(),
            title: "Ranks".into(),
            caption: "Lower is <better>.".into(),
            x_label: "layer".into(),
            y_label: "rank".into(),
            plot: Plot::Bars {
                categories: vec!["conv1".into(), "conv2".into()],
                series: vec![
                    BarSeries { name: "control".into(), values: vec![Some(8.0), Some(25.0)] },
                    BarSeries { name: "force".into(), values: vec![Some(6.0), None] },
                ],
            },
        }
    }

    pub(crate) fn lines() -> Figure {
        let line = |name: &str| LineSeries {
            name: name.into(),
            points: vec![[0.0, 97.0], [10.0, 98.5], [20.0, 99.0]],
        };
        Figure {
            id: "tuning".into(),
            title: "Tuning".into(),
            plot: Plot::Lines { series: vec![line("control"), line("force")] },
            ..bars()
        }
    }

    pub(crate) fn matrix(rows: usize, columns: usize) -> Figure {
        #[expect(clippy::cast_precision_loss, reason = "a small matrix")]
        let value =
            |row: usize, column: usize| (row != column).then(|| ((row * columns + column) % 7) as f64 / 8.0);
        Figure {
            id: "similarity".into(),
            title: "Similarity".into(),
            plot: Plot::Matrix {
                rows: (0..rows).map(|i| i.to_string()).collect(),
                columns: (0..columns).map(|i| i.to_string()).collect(),
                values: (0..rows)
                    .map(|row| (0..columns).map(|column| value(row, column)).collect())
                    .collect(),
                range: [0.0, 1.0],
            },
            ..bars()
        }
    }

    #[test]
    fn json_round_trip() {
        let page = Page {
            title: "page".into(),
            summary: String::new(),
            tables: vec![],
            figures: vec![bars(), lines(), matrix(2, 3)],
        };
        let text = serde_json::to_string(&page).unwrap();
        let back: Page = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert!(
            text.contains(r#"{"kind":"matrix","rows":["0","1"],"columns":["0","1","2"],"values":[[null,"#)
        );
    }
}
