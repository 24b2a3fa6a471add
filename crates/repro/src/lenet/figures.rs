use super::pipeline::Point;
use super::settings::Settings;
use super::{BATCHES, DENSE, LAYERS, Results, SweepPoint};
use crate::report::{Arm, BarSeries, Figure, LineSeries, Plot, Table, thousands};
use crate::statistics::mean;
use anyhow::Result;
use cofilter_lowrank as lowrank;
use cofilter_sparsity as sparsity;

/// Clusters of the filters that are drawn in a plane, as on the paper's poster.
const CLUSTERS: usize = 4;

/// Mean over layers of rank over full rank.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
pub(super) fn rank_ratio(ranks: impl Iterator<Item = (usize, usize)>) -> f64 {
    mean(&ranks.map(|(rank, full)| rank as f64 / full as f64).collect::<Vec<_>>())
}

pub(super) fn all(results: &Results, arms: &[Arm], settings: &Settings) -> Result<Vec<Figure>> {
    let mut figures = vec![ranks(results, arms)];
    figures.extend(LAYERS.map(|layer| spectrum(results, layer)));
    for arm in DENSE {
        figures.push(plane(results, arm)?);
    }
    figures.push(tuning(results));
    figures.push(speed(arms));
    figures.push(sparsity(arms, settings));
    Ok(figures)
}

/// The filters of the last convolution, which force brings together.
fn plane(results: &Results, arm: &str) -> Result<Figure> {
    let layer = LAYERS[LAYERS.len() - 1];
    let found = lowrank::projection(&results.arms[arm][0].model, layer, CLUSTERS)?;
    let figure = lowrank::figures::projection(&found);
    Ok(Figure {
        id: format!("projection-{arm}"),
        title: format!("{arm}: filters of {layer} in a plane"),
        caption: format!("{} First seed.", figure.caption),
        ..figure
    })
}

#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn ranks(results: &Results, arms: &[Arm]) -> Figure {
    let full = LAYERS.map(|l| results.full_ranks.get(l).map(|r| *r as f64)).into();
    // Full rank comes last, so that an arm has the same colour in every figure.
    let mut series = Vec::new();
    for arm in arms.iter().filter(|a| DENSE.contains(&a.name.as_str())) {
        let values = LAYERS.map(|l| arm.ranks.get(l).map(|r| *r as f64)).into();
        series.push(BarSeries { name: arm.name.clone(), values });
    }
    series.push(BarSeries { name: "full rank".into(), values: full });
    Figure {
        id: "ranks".into(),
        title: "Rank of each convolution at 95 % energy".into(),
        caption: "Least number of basis filters that keep 95 % of the squared singular values; median over the seeds. \
                  Control and force arms had the same number of iterations."
            .into(),
        x_label: "layer".into(),
        y_label: "rank".into(),
        plot: Plot::Bars { categories: LAYERS.map(String::from).into(), series },
    }
}

#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn spectrum(results: &Results, layer: &str) -> Figure {
    let line = |arm: &&str| {
        let layer = results.spectra[*arm][0].iter().find(|s| s.name == layer)?;
        let points =
            (1..=layer.full_rank).map(|rank| [rank as f64, 100.0 * layer.whole.energy(rank)]).collect();
        Some(LineSeries { name: String::from(*arm), points })
    };
    Figure {
        id: format!("spectrum-{layer}"),
        title: format!("Energy kept by the first basis filters of {layer}"),
        caption: "Cumulative share of the squared singular values, before (baseline) and after the same number of iterations \
                  with and without force; first seed."
            .into(),
        x_label: "basis filters".into(),
        y_label: "energy, %".into(),
        plot: Plot::Lines { series: DENSE.iter().filter_map(line).collect() },
    }
}

fn tuning(results: &Results) -> Figure {
    let line = |arm: &&str| {
        let runs = &results.arms[&format!("{arm}-tuned")];
        let mean_at = |(i, point): (usize, &Point)| {
            let top1: Vec<f64> = runs.iter().filter_map(|r| r.curve.get(i)).map(|p| p.top1).collect();
            #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^53")]
            [point.iteration as f64, mean(&top1)]
        };
        let points = runs[0].curve.iter().enumerate().map(mean_at).collect();
        LineSeries { name: String::from(*arm), points }
    };
    Figure {
        id: "fine-tuning".into(),
        title: "Accuracy while fine-tuning the decomposed networks".into(),
        caption:
            "All arms have the same ranks. Mean over the seeds; right after decomposition they are the -lowrank arms."
                .into(),
        x_label: "iteration".into(),
        y_label: "top-1, %".into(),
        plot: Plot::Lines { series: DENSE.iter().map(line).collect() },
    }
}

/// How much faster than the baseline, by operations and by the clock.
#[expect(clippy::cast_precision_loss, reason = "operations are far below 2^53")]
fn speed(arms: &[Arm]) -> Figure {
    let shown: Vec<&Arm> =
        arms.iter().filter(|a| a.name.ends_with("-tuned") || a.name.ends_with("-sparse")).collect();
    let theory = shown.iter().map(|a| Some(arms[0].macs as f64 / a.macs as f64)).collect();
    let mut series = vec![BarSeries { name: "operations".into(), values: theory }];
    for batch in BATCHES {
        let ratio = |a: &&Arm| Some(arms[0].latency_us.get(&batch)?.p50 / a.latency_us.get(&batch)?.p50);
        series.push(BarSeries {
            name: format!("time, batch {batch}"),
            values: shown.iter().map(ratio).collect(),
        });
    }
    Figure {
        id: "speed".into(),
        title: "Speedup over the dense baseline: promised and measured".into(),
        caption: "Operations: multiply-accumulates of the baseline over those of the arm. Time: the same for median latencies \
                  of one interleaved run."
            .into(),
        x_label: "arm".into(),
        y_label: "times faster".into(),
        plot: Plot::Bars { categories: shown.iter().map(|a| a.name.clone()).collect(), series },
    }
}

fn sparsity(arms: &[Arm], settings: &Settings) -> Figure {
    let series = ["control", "force-l1", "force-l2"].map(|dense| {
        let values = ["", "-tuned", "-sparse"]
            .map(|child| arms.iter().find(|a| a.name == format!("{dense}{child}")).and_then(|a| a.top1));
        BarSeries { name: dense.into(), values: values.map(|v| v.map(|v| 100.0 - v)).into() }
    });
    Figure {
        id: "sparsity".into(),
        title: "Error along the way".into(),
        caption: format!(
            "Top-1 error dense, low-rank and fine-tuned, and with {:.0} % of the remaining weights pruned and fine-tuned.",
            100.0 * settings.sparsity
        ),
        x_label: "stage".into(),
        y_label: "top-1 error, %".into(),
        plot: Plot::Bars {
            categories: ["dense", "low-rank", "sparse"].map(String::from).into(),
            series: series.into(),
        },
    }
}

pub(super) fn sweep(points: &[SweepPoint]) -> Figure {
    let line = |force: &str| LineSeries {
        name: force.into(),
        points: points.iter().filter(|p| p.force == force).map(|p| [p.rank_ratio, p.top1]).collect(),
    };
    Figure {
        id: "sweep".into(),
        title: "Rank against accuracy over the strength of the force".into(),
        caption: "Mean of rank over full rank at 95 % energy, before decomposition; one point a strength, first seed.".into(),
        x_label: "rank ratio".into(),
        y_label: "top-1, %".into(),
        plot: Plot::Points { series: ["control", "force-l1", "force-l2"].map(line).into() },
    }
}

pub(super) fn sweep_table(points: &[SweepPoint]) -> Table {
    let row = |p: &SweepPoint| {
        let ranks = p.ranks.values().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        vec![
            p.force.into(),
            format!("{:.2e}", p.strength),
            format!("{:.2}", p.top1),
            ranks,
            format!("{:.3}", p.rank_ratio),
        ]
    };
    Table {
        title: "Strength sweep".into(),
        caption: "First seed; before decomposition.".into(),
        columns: ["arm", "strength", "top-1 %", "ranks", "rank ratio"].map(String::from).into(),
        rows: points.iter().map(row).collect(),
    }
}

/// What the decomposition kept of each layer.
pub(super) fn layers_table(results: &Results) -> Table {
    let mut rows = Vec::new();
    for arm in DENSE {
        for layer in &results.decompositions[arm].layers {
            rows.push(vec![
                arm.into(),
                layer.name.clone(),
                layer.full_rank.to_string(),
                layer.rank.to_string(),
                format!("{:.1}", 100.0 * layer.energy),
                format!("{:.3}", layer.relative_error),
                thousands(layer.params_before),
                thousands(layer.params_after),
                thousands(layer.macs_before),
                thousands(layer.macs_after),
            ]);
        }
    }
    let columns = [
        "arm",
        "layer",
        "full",
        "rank",
        "energy, %",
        "relative error",
        "params",
        "low-rank",
        "MACs",
        "low-rank",
    ];
    Table {
        title: "Decomposition, layer by layer".into(),
        caption: "Energy kept and relative Frobenius error of the weights, before fine-tuning; first seed."
            .into(),
        columns: columns.map(String::from).into(),
        rows,
    }
}

/// Where the zeros of the pruned networks are.
pub(super) fn zeros_table(results: &Results) -> Table {
    let mut rows = Vec::new();
    for arm in ["control", "force-l1", "force-l2"] {
        for layer in sparsity::density(&results.arms[&format!("{arm}-sparse")][0].model) {
            rows.push(vec![
                arm.into(),
                layer.name,
                thousands(layer.weights),
                format!("{:.3}", layer.density),
                format!("{} of {}", layer.zero_filters, layer.filters),
                format!("{} of {}", layer.zero_columns, layer.columns),
            ]);
        }
    }
    Table {
        title: "Zeros of the pruned networks".into(),
        caption: "After pruning, fine-tuning and removal of what is zero altogether; first seed. Zeros that fill no filter and no \
                  column save nothing in the dense kernels."
            .into(),
        columns: ["arm", "layer", "weights", "density", "zero filters", "zero columns"].map(String::from).into(),
        rows,
    }
}
