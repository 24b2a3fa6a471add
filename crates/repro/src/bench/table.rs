//! Tables of cells.

use super::cell::{Cell, OURS};
use super::subject::Yardstick;
use super::{Options, publish, written_by};
use crate::machine::Machine;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;

/// Everything that a run measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) yardsticks: Vec<Yardstick>,
    pub(super) cells: Vec<Cell>,
}

/// Fastest other engine of a cell and its median.
fn fastest(cell: &Cell) -> Option<(&str, f64)> {
    let peers = cell.engines.iter().filter(|(name, _)| *name != OURS);
    peers.map(|(name, times)| (name.as_str(), times.p50_ms)).min_by(|a, b| a.1.total_cmp(&b.1))
}

/// How many times faster we are than the fastest other engine.
fn ratio(cell: &Cell) -> Option<f64> {
    Some(fastest(cell)?.1 / cell.engines.get(OURS)?.p50_ms)
}

/// Our time without Winograd's method over the roofline.
fn over_roofline(cell: &Cell) -> f64 {
    cell.direct.map_or(f64::NAN, |times| times.p50_ms / cell.roofline_ms)
}

/// How many times longer our plan takes with every step for the whole batch before the next one.
fn step_by_step(cell: &Cell) -> Option<f64> {
    Some(cell.whole?.p50_ms / cell.engines.get(OURS)?.p50_ms)
}

/// One cell in a line, for the terminal.
pub(super) fn line(cell: &Cell) -> String {
    let ours = cell.engines.get(OURS).map_or(f64::NAN, |t| t.p50_ms);
    let mut text = format!(
        "{} {} batch {} threads {}: {ours:.3} ms, {:.2} x roofline ({:.2} without Winograd), error {:.0e}",
        cell.net,
        cell.form,
        cell.batch,
        cell.threads,
        ours / cell.roofline_ms,
        over_roofline(cell),
        cell.max_error
    );
    if let (Some((name, ms)), Some(ratio)) = (fastest(cell), ratio(cell)) {
        let _ = write!(text, "; fastest other {name} {ms:.3} ms: {ratio:.2} x");
    }
    for (engine, reason) in &cell.failures {
        let _ = write!(text, "; {engine} FAILED: {reason}");
    }
    text
}

/// Geometric mean; none of nothing.
fn geometric_mean(values: &[f64]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let count = values.len() as f64;
    (!values.is_empty()).then(|| (values.iter().map(|v| v.ln()).sum::<f64>() / count).exp())
}

fn number(ms: f64) -> String {
    match ms {
        _ if ms < 1.0 => format!("{ms:.3}"),
        _ if ms < 100.0 => format!("{ms:.2}"),
        _ => format!("{ms:.0}"),
    }
}

/// The report as Markdown.
fn markdown(report: &Report, with_peers: bool) -> String {
    let mut text = String::from("# Speed of whole networks\n\n");
    let _ = writeln!(text, "{}\n\n{}.\n", written_by(), report.machine);
    for y in &report.yardsticks {
        let _ = writeln!(
            text,
            "- {} thread(s): measured peak of multiply-adds {:.0} GFLOP/s, reading from memory {:.1} GB/s",
            y.threads, y.fma_gflops, y.read_gbps
        );
    }
    text += "\nMedian milliseconds of a run of the whole batch, engines interleaved round by round in one run, all in single \
             precision, all with the same weights (seeded random numbers) and images; every engine's result was compared with \
             ours before it was timed (`error`: the largest difference relative to the range of the logits). `roofline` adds up, layer \
             by layer, the larger one of multiply-adds over the measured peak (without what Winograd's method saves) and, for \
             fully connected layers, weights over the measured bandwidth; `x roof` is our time over it, `direct x roof` that of \
             our plan without Winograd's method, `step by step` the time over ours where every step computes the whole batch before \
             the next one, with the forms that were measured in parts, both timed in the same turns. The other engines are called from \
             Python, PyTorch eagerly and op by op, the others once for a run. Our plans choose the \
             form of each layer by times measured before on the same machine. Low-rank networks: every convolution but the \
             first and the 1x1 ones at a third of full rank; conv3-5 of BVLC AlexNet at 124/106/128.\n";
    if with_peers {
        text += "`ratio` is the time of the fastest other engine over ours: above 1 we are faster. Cells that we lose are \
                 marked **lost**.\n\n";
        for form in ["dense", "low-rank"] {
            let cells: Vec<&Cell> = report.cells.iter().filter(|c| c.form == form).collect();
            let ratios: Vec<f64> = cells.iter().filter_map(|c| ratio(c)).collect();
            if let Some(mean) = geometric_mean(&ratios) {
                let lost = ratios.iter().filter(|r| **r < 1.0).count();
                let worst = ratios.iter().copied().fold(f64::INFINITY, f64::min);
                let _ = writeln!(
                    text,
                    "- {form}: geometric mean of the ratios {mean:.2} over {} cells, worst {worst:.2}, {lost} lost",
                    ratios.len()
                );
            }
        }
    }
    let mut names: Vec<&str> =
        report.cells.iter().flat_map(|c| c.engines.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    text += "\n| network | form | batch | threads | ";
    text += &names.join(" | ");
    text += if with_peers { " | ratio" } else { "" };
    text += " | p90 | roofline | x roof | direct x roof | step by step | error |\n|---|---|---|---|";
    text += &"---|".repeat(names.len() + 6 + usize::from(with_peers));
    text.push('\n');
    for cell in &report.cells {
        let ours = cell.engines.get(OURS);
        let _ = write!(text, "| {} | {} | {} | {} |", cell.net, cell.form, cell.batch, cell.threads);
        for name in &names {
            let shown = cell.engines.get(*name).map_or("failed".into(), |t| number(t.p50_ms));
            let _ = write!(text, " {shown} |");
        }
        if with_peers {
            let mark = |r: f64| if r < 1.0 { format!("{r:.2} **lost**") } else { format!("{r:.2}") };
            let _ = write!(text, " {} |", ratio(cell).map_or("–".into(), mark));
        }
        let (p50, p90) = ours.map_or((f64::NAN, f64::NAN), |t| (t.p50_ms, t.p90_ms));
        let _ = writeln!(
            text,
            " {} | {} | {:.2} | {:.2} | {} | {:.0e} |",
            number(p90),
            number(cell.roofline_ms),
            p50 / cell.roofline_ms,
            over_roofline(cell),
            step_by_step(cell).map_or("–".into(), |r| format!("{r:.2}")),
            cell.max_error
        );
    }
    for cell in report.cells.iter().filter(|c| !c.failures.is_empty()) {
        let _ = writeln!(
            text,
            "\n{} {} batch {} threads {}: {:?}",
            cell.net, cell.form, cell.batch, cell.threads, cell.failures
        );
    }
    text
}

/// Writes the tables, and the cells as JSON where asked for.
pub(super) fn write(report: &Report, options: &Options, with_peers: bool) -> Result<()> {
    publish(options, "runs/speed/networks.md", &markdown(report, with_peers), report)
}

#[cfg(test)]
mod tests {
    use super::super::cell::Times;
    use super::*;

    fn cell(form: &str, ours: f64, other: f64) -> Cell {
        let times = |p50_ms: f64| Times { p50_ms, p90_ms: 2.0 * p50_ms };
        Cell {
            net: "Net".into(),
            form: form.into(),
            batch: 1,
            threads: 2,
            engines: [
                (OURS.to_owned(), times(ours)),
                ("b".to_owned(), times(other)),
                ("a".to_owned(), times(9.0)),
            ]
            .into(),
            roofline_ms: 0.5,
            max_error: 1e-6,
            direct: Some(times(0.75)),
            whole: Some(times(1.5)),
            failures: [].into(),
        }
    }

    #[test]
    fn ratios_are_to_the_fastest_and_losses_are_marked() {
        let report = Report {
            machine: Machine::default(),
            yardsticks: vec![Yardstick { threads: 2, fma_gflops: 100.0, read_gbps: 10.0 }],
            cells: vec![cell("dense", 1.0, 2.0), cell("dense", 4.0, 2.0), cell("low-rank", 1.0, 3.0)],
        };
        let text = markdown(&report, true);
        assert!(
            text.contains("dense: geometric mean of the ratios 1.00 over 2 cells, worst 0.50, 1 lost"),
            "{text}"
        );
        assert!(text.contains("low-rank: geometric mean of the ratios 3.00 over 1 cells"), "{text}");
        assert!(text.contains("0.50 **lost**") && text.contains("| 2.00 | 1.50 | 1.50 | 1e-6 |"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        let first = &json["cells"][0];
        assert_eq!(first["engines"]["cofilter"]["p50_ms"], 1.0);
        let keys: Vec<&str> = first.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["batch", "direct", "engines", "form", "max_error", "net", "roofline_ms", "threads", "whole"]
        );
    }

    #[test]
    fn the_geometric_mean_of_a_ratio_and_its_inverse_is_one() {
        assert!((geometric_mean(&[4.0, 0.25]).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }
}
