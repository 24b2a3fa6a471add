use super::compaction::Exact;
use super::{BATCHES, Small, Study, Way};
use crate::bench::sparse::{Row, break_even};
use crate::options::Options;
use crate::report::Claim;

/// Kinds of networks in which one of the two is used alone, and both.
const ALONE: [&[&str]; 2] = [&["low rank"], &["pruned", "SSL"]];
const BOTH: [&str; 2] = ["low rank + pruned", "low rank + SSL"];
/// How far time may be above the share of columns that is left.
const PROPORTIONAL: f64 = 0.1;
/// How much slower a pruned network may be measured than the same network with all weights.
const SLOWER: f64 = 0.05;

/// How many times as fast a pruned layer is.
type Speedup = fn(&Row) -> f64;

pub(super) fn all(studies: &[Study], rows: &[Row], exact: &[Exact], options: &Options) -> Vec<Claim> {
    let claim = |id: &str, statement: String, ours: f64, tolerance: Option<f64>, holds: bool| Claim {
        id: id.into(),
        statement,
        paper: None,
        ours,
        interval: None,
        tolerance,
        holds,
        command: options.command(),
    };
    let mut claims = Vec::new();
    for study in studies {
        let axes = [("compression rate", study.by_rate()), ("speed with one image", study.by_speed())];
        for (axis, points) in axes {
            let found = undominated(&points);
            claims.push(claim(
                "pareto",
                format!(
                    "{}, accuracy against {axis}: a network with low rank and zeros is better in both than one with low rank alone and \
                     than one with zeros alone, and no network without both is as good in both; ours is how many of {} are",
                    study.name,
                    points.iter().filter(|(kind, _)| BOTH.contains(kind)).count()
                ),
                count(found),
                None,
                found > 0,
            ));
        }
        for batch in BATCHES {
            let worst = slowest(study, batch);
            claims.push(claim(
                "never-slower",
                format!(
                    "{}, batch {batch}: no network with zeros takes longer than the same network with all weights (ours: the longest time \
                     over that of all weights, less 1)",
                    study.name
                ),
                worst - 1.0,
                Some(SLOWER),
                worst <= 1.0 + SLOWER,
            ));
        }
    }
    let error = exact.iter().fold(0.0_f64, |most, e| most.max(e.error));
    let smaller = exact.iter().filter(|e| e.grouping == "filters").all(|e| e.params[1] < e.params[0]);
    claims.push(claim(
        "compaction-exact",
        format!(
            "random filters, channels and columns of {} networks are zero: without filters each is smaller, and the results are the same \
             (largest difference over the largest number)",
            exact.iter().filter(|e| e.grouping == "filters").count()
        ),
        error,
        Some(1e-5),
        smaller && error <= 1e-5,
    ));
    for (id, pattern, what, wanted) in [
        ("unstructured-break-even", "single weights", "single weights", 0.35),
        ("block-break-even", "1x4", "blocks of 1x4", 0.6),
    ] {
        for kernel in [3, 1] {
            let layers: Vec<&Row> = rows
                .iter()
                .filter(|row| {
                    row.pattern == pattern && row.layer.kernel == Some(kernel) && row.layer.in_resnet50()
                })
                .collect();
            if layers.is_empty() {
                continue;
            }
            let dense: [(&str, Speedup); 2] = [
                ("dense one that multiplies weight by weight", Row::over_direct),
                ("fastest dense one", Row::speedup),
            ];
            // Layers of 1x1 have one dense form.
            for (i, (other, speedup)) in dense.into_iter().enumerate().take(if kernel == 1 { 1 } else { 2 }) {
                let found = break_even(&layers, speedup);
                claims.push(claim(
                    &format!("{id}{}", if i == 0 { "" } else { "-fastest" }),
                    format!(
                        "{kernel}x{kernel} layers of ResNet-50 without {what} are faster than the {other} from a density of {wanted} \
                         down (ours: the density from which all are)"
                    ),
                    found.unwrap_or(0.0),
                    None,
                    found.is_some_and(|found| found >= wanted),
                ));
            }
        }
    }
    let excess = |row: &Row| row.pruned_us["direct"] / row.dense_us["direct"] / row.columns - 1.0;
    for least in [0.3, 0.09] {
        let columns = rows.iter().filter(|row| row.pattern == "columns" && row.columns >= least);
        if let Some(excess) = columns.map(excess).max_by(f64::total_cmp) {
            claims.push(claim(
                "columns-proportional",
                format!(
                    "computed weight by weight a layer takes the share of its time that is left of its columns, down to {:.0} % (ours: the \
                     largest time over that share, less 1)",
                    100.0 * least
                ),
                excess,
                Some(PROPORTIONAL),
                excess <= PROPORTIONAL,
            ));
        }
    }
    claims
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn count(n: usize) -> f64 {
    n as f64
}

/// Whether a point is at least as good in both, and better in one.
fn dominates(a: [f64; 2], b: [f64; 2]) -> bool {
    a[0] >= b[0] && a[1] >= b[1] && a != b
}

/// How many networks with both dominate one of each alone and are dominated by none without both.
fn undominated(points: &[(&str, [f64; 2])]) -> usize {
    let of = |kinds: &'static [&'static str]| {
        points.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, point)| *point)
    };
    let others = || points.iter().filter(|(kind, _)| !BOTH.contains(kind)).map(|(_, point)| *point);
    of(&BOTH)
        .filter(|point| ALONE.iter().all(|kinds| of(kinds).any(|other| dominates(*point, other))))
        .filter(|point| !others().any(|other| dominates(other, *point)))
        .count()
}

/// The longest time of a network with zeros over that of the same one with all weights.
fn slowest(study: &Study, batch: usize) -> f64 {
    let times = &study.latency_us[&batch];
    let base = |small: Small| {
        let base = Small { way: Way::Dense, ..small };
        study.made.iter().position(|made| made.small == base)
    };
    let ratio = |(i, small): (usize, Small)| Some(times[i].p50 / times[base(small)?].p50);
    let zeros =
        study.made.iter().map(|made| made.small).enumerate().filter(|(_, small)| small.way != Way::Dense);
    zeros.filter_map(ratio).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_must_beat_each_alone_and_be_beaten_by_none() {
        let alone = [("dense", [1.0, 92.0]), ("low rank", [2.0, 90.0]), ("pruned", [4.0, 89.0])];
        let with = |point: [f64; 2]| {
            let mut points = alone.to_vec();
            points.push(("low rank + pruned", point));
            undominated(&points)
        };
        assert_eq!(with([5.0, 91.0]), 1);
        assert_eq!(with([3.0, 91.0]), 0, "beats no pruned one");
        assert_eq!(with([5.0, 89.5]), 0, "beats no low-rank one");
        let mut points = alone.to_vec();
        points.extend([("SSL", [6.0, 91.5]), ("low rank + SSL", [5.0, 91.0])]);
        assert_eq!(undominated(&points), 0, "beaten");
        assert!(!dominates([1.0, 1.0], [1.0, 1.0]) && dominates([1.0, 2.0], [1.0, 1.0]));
    }
}
