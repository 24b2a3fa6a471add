//! What an experiment found, and its forms: `report.json`, `report.md`, `report.html` and a file for each figure.
//!
//! The schema is documented in `docs/report-schema.md`. An experiment fills [`Report`]; the renderers know no experiment.

mod html;
mod markdown;

pub use html::to_html;
pub use markdown::to_markdown;

pub use cofilter_report::{BarSeries, Figure, LineSeries, Plot, Table};

use crate::machine::Machine;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Everything one run of an experiment found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `lenet`, `speed`, ...
    pub experiment: String,
    /// One paragraph: what was done and what it shows.
    pub summary: String,
    /// Commit of the program, with `-dirty` if files differ from it.
    pub commit: String,
    /// The command that makes this report again.
    pub command: String,
    /// Seeds of the runs.
    pub seeds: Vec<u64>,
    /// Where it ran.
    pub machine: Machine,
    /// What it learnt from; `None` for experiments without data.
    pub data: Option<Data>,
    /// The networks compared.
    pub arms: Vec<Arm>,
    /// What the paper says beside what was found.
    pub claims: Vec<Claim>,
    /// Charts, with their numbers.
    pub figures: Vec<Figure>,
    /// Tables beyond that of the arms.
    pub tables: Vec<Table>,
    /// What a reader must know to trust the figures: settings, deviations from the paper, stages from other builds.
    pub notes: Vec<String>,
}

/// A data set by name and content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Data {
    /// For example `mnist`.
    pub name: String,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// SHA-256 of the training images and labels.
    pub sha256: String,
}

impl Data {
    /// What a data set is.
    #[must_use]
    pub fn of(split: &cofilter_data::Split) -> Self {
        Self {
            name: split.train.name().to_owned(),
            train_images: split.train.len(),
            test_images: split.test.len(),
            sha256: split.train.sha256().to_owned(),
        }
    }
}

/// One network with its measurements: accuracy is a mean over the seeds, costs and times are those of the first seed's network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Arm {
    /// For example `force-l2-tuned`.
    pub name: String,
    /// The arm it was made from.
    pub parent: Option<String>,
    /// Top-1 accuracy on the test set in percent, measured through the runtime.
    pub top1: Option<f64>,
    /// 95 % confidence interval of that mean (Student's t over the seeds); `None` with one seed.
    pub top1_interval: Option<[f64; 2]>,
    /// Top-1 accuracy of each seed, in the order of the seeds.
    pub top1_by_seed: Vec<f64>,
    /// Rank of each convolution at 95 % energy (dense arms: the median over the seeds; low-rank arms: the rank it has).
    pub ranks: BTreeMap<String, usize>,
    /// Full rank of the same layers.
    pub full_ranks: BTreeMap<String, usize>,
    /// Learnt numbers.
    pub params: usize,
    /// Multiply-accumulate operations for one image.
    pub macs: usize,
    /// Share of weights that are not zero.
    pub density: f64,
    /// Time of one batch in the runtime, by batch size.
    pub latency_us: BTreeMap<usize, Percentiles>,
}

/// Times of repeated calls, interleaved with those of the other arms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median, in microseconds.
    pub p50: f64,
    /// 90th percentile, in microseconds.
    pub p90: f64,
    /// 99th percentile, in microseconds.
    pub p99: f64,
}

/// A statement that is true or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Short name.
    pub id: String,
    /// The statement in one sentence.
    pub statement: String,
    /// The figure of the paper or its authors; `None` where it is not known.
    pub paper: Option<f64>,
    /// What was measured.
    pub ours: f64,
    /// 95 % confidence interval of it, where there are several seeds.
    pub interval: Option<[f64; 2]>,
    /// How far off it may be; the sense is in the statement.
    pub tolerance: Option<f64>,
    /// Whether the statement holds.
    pub holds: bool,
    /// The command that measures it.
    pub command: String,
}

impl Report {
    /// Writes `report.json`, `report.md`, `report.html` and `figures/<id>.svg` into a folder, each file whole or not at all, and
    /// removes the figures of an earlier report there.
    ///
    /// # Errors
    /// An id of a figure that is no file name or is used twice; what the system says.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in
            [("report.json", json), ("report.md", to_markdown(self)), ("report.html", to_html(self))]
        {
            cofilter_graph::write_atomically(&folder.join(name), text.as_bytes())?;
        }
        cofilter_report::write_svgs(&folder.join("figures"), &self.figures, |path, bytes| {
            Ok(cofilter_graph::write_atomically(path, bytes)?)
        })
    }

    /// The arm of this name.
    #[must_use]
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|a| a.name == name)
    }

    /// The table of the arms, one row each.
    #[must_use]
    pub fn arms_table(&self) -> Table {
        let batches: std::collections::BTreeSet<usize> =
            self.arms.iter().flat_map(|a| a.latency_us.keys().copied()).collect();
        let mut columns: Vec<String> =
            ["arm", "top-1 %", "95 % interval", "ranks", "params", "MACs", "density"]
                .map(String::from)
                .into();
        columns.extend(batches.iter().map(|b| format!("batch {b}, us")));
        let row = |arm: &Arm| {
            let ranks: Vec<String> = arm.ranks.values().map(ToString::to_string).collect();
            let mut row = vec![
                arm.name.clone(),
                arm.top1.map_or("-".into(), |t| format!("{t:.2}")),
                arm.top1_interval.map_or("-".into(), |[low, high]| format!("{low:.2} .. {high:.2}")),
                ranks.join(" "),
                thousands(arm.params),
                thousands(arm.macs),
                format!("{:.2}", arm.density),
            ];
            row.extend(
                batches.iter().map(|b| arm.latency_us.get(b).map_or("-".into(), |l| format!("{:.1}", l.p50))),
            );
            row
        };
        Table {
            title: "Networks compared".into(),
            caption:
                "Accuracy is measured through the runtime on the whole test set and averaged over the seeds; \
                      latency is the median of interleaved runs."
                    .into(),
            columns,
            rows: self.arms.iter().map(row).collect(),
        }
    }

    /// The table of the claims.
    #[must_use]
    pub fn claims_table(&self) -> Table {
        let number = |v: f64| format!("{v:.3}").trim_end_matches('0').trim_end_matches('.').to_owned();
        let row = |c: &Claim| {
            vec![
                if c.holds { "holds" } else { "DOES NOT HOLD" }.into(),
                c.id.clone(),
                c.statement.clone(),
                c.paper.map_or("unknown".into(), number),
                number(c.ours),
                c.interval.map_or("-".into(), |[low, high]| format!("{} .. {}", number(low), number(high))),
                c.tolerance.map_or("-".into(), number),
            ]
        };
        Table {
            title: "Claims".into(),
            caption: "Every statement that was checked, those that do not hold included.".into(),
            columns: ["", "claim", "statement", "paper", "ours", "95 % interval", "tolerance"]
                .map(String::from)
                .into(),
            rows: self.claims.iter().map(row).collect(),
        }
    }
}

/// `1234567` as `1,234,567`.
#[must_use]
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let line = |name: &str| LineSeries {
            name: name.into(),
            points: vec![[0.0, 97.0], [10.0, 98.5], [20.0, 99.0]],
        };
        Report {
            experiment: "example".into(),
            summary: "A report with <angle> & ampersand.".into(),
            commit: "abc".into(),
            command: "cargo xtask reproduce example".into(),
            seeds: vec![1, 2],
            machine: Machine::default(),
            data: None,
            arms: vec![Arm {
                name: "baseline".into(),
                top1: Some(99.1),
                top1_interval: Some([99.0, 99.2]),
                ranks: [("conv1".to_owned(), 8)].into(),
                full_ranks: [("conv1".to_owned(), 20)].into(),
                params: 431_080,
                macs: 2_293_000,
                density: 1.0,
                latency_us: [(1, Percentiles { p50: 50.0, p90: 60.0, p99: 70.0 })].into(),
                ..Arm::default()
            }],
            claims: vec![Claim {
                id: "accuracy".into(),
                statement: "as published".into(),
                paper: Some(99.17),
                ours: 99.1,
                interval: None,
                tolerance: Some(0.15),
                holds: true,
                command: "cargo xtask reproduce example".into(),
            }],
            figures: vec![
                Figure {
                    id: "ranks".into(),
                    title: "Ranks".into(),
                    caption: "Lower is better.".into(),
                    x_label: "layer".into(),
                    y_label: "rank".into(),
                    plot: Plot::Bars {
                        categories: vec!["conv1".into(), "conv2".into()],
                        series: vec![
                            BarSeries { name: "control".into(), values: vec![Some(8.0), Some(25.0)] },
                            BarSeries { name: "force".into(), values: vec![Some(6.0), None] },
                        ],
                    },
                },
                Figure {
                    id: "tuning".into(),
                    title: "Tuning".into(),
                    caption: String::new(),
                    x_label: "iteration".into(),
                    y_label: "top-1, %".into(),
                    plot: Plot::Lines { series: vec![line("control"), line("force")] },
                },
            ],
            tables: vec![],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn json_round_trip() {
        let report = example();
        let text = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }

    #[test]
    fn all_three_forms_carry_the_numbers() {
        let folder = tempfile::tempdir().unwrap();
        example().write(folder.path()).unwrap();
        for name in ["report.json", "report.md", "report.html"] {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(text.contains("99.1") && text.contains("baseline"), "{name} lacks the accuracy:\n{text}");
        }
        let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(html.contains("&lt;angle&gt; &amp; ampersand") && !html.contains("<angle>"));
        let fetched =
            ["src=", "href=", "url(", "@import", "<script"].into_iter().find(|word| html.contains(word));
        assert_eq!(fetched, None, "the page fetches something");
    }

    #[test]
    fn every_figure_has_a_file_and_those_of_an_earlier_report_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = example();
        report.write(folder.path()).unwrap();
        report.figures.remove(0);
        report.write(folder.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path().join("figures"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["tuning.svg"]);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            ["1", "999", "1,000", "431,080", "61,100,840"],
            [1, 999, 1000, 431_080, 61_100_840].map(thousands).as_slice()
        );
    }
}
