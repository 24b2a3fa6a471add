//! Figures that more than one experiment shows.

use crate::pipeline::Trained;
use crate::report::{Arm, BarSeries, Figure, LineSeries, Plot};
use crate::statistics::mean;
use anyhow::Result;
use cofilter_graph::Model;
use cofilter_lowrank as lowrank;

/// Clusters of the filters that are drawn in a plane, as on the paper's poster.
const CLUSTERS: usize = 4;

/// Mean over layers of rank over full rank.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
pub(crate) fn rank_ratio(ranks: impl IntoIterator<Item = (usize, usize)>) -> f64 {
    mean(&ranks.into_iter().map(|(rank, full)| rank as f64 / full as f64).collect::<Vec<_>>())
}

/// The filters of a layer of the first seed's network.
pub(crate) fn plane(arm: &str, model: &Model, layer: &str) -> Result<Figure> {
    let found = lowrank::projection(model, layer, CLUSTERS)?;
    let figure = lowrank::figures::projection(&found);
    Ok(Figure {
        id: format!("projection-{arm}"),
        title: format!("{arm}: filters of {layer} in a plane"),
        caption: format!("{} First seed.", figure.caption),
        ..figure
    })
}

/// Accuracy on the way, mean over the runs of each arm.
pub(crate) fn fine_tuning(arms: &[(&str, &[Trained])]) -> Figure {
    let line = |(name, runs): &(&str, &[Trained])| {
        let mean_at = |i: usize| {
            let top1: Vec<f64> = runs.iter().filter_map(|r| r.curve.get(i)).map(|p| p.top1).collect();
            #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^53")]
            [runs[0].curve[i].iteration as f64, mean(&top1)]
        };
        LineSeries { name: (*name).into(), points: (0..runs[0].curve.len()).map(mean_at).collect() }
    };
    Figure {
        id: "fine-tuning".into(),
        title: "Accuracy while fine-tuning the decomposed networks".into(),
        caption:
            "All arms have the same ranks. Mean over the seeds; right after decomposition they are the -lowrank arms."
                .into(),
        x_label: "iteration".into(),
        y_label: "top-1, %".into(),
        plot: Plot::Lines { series: arms.iter().map(line).collect() },
    }
}

/// How much faster than a dense network, by operations and by the clock.
#[expect(clippy::cast_precision_loss, reason = "operations are far below 2^53")]
pub(crate) fn speed(dense: &Arm, shown: &[&Arm], batches: &[usize]) -> Figure {
    let theory = shown.iter().map(|a| Some(dense.macs as f64 / a.macs as f64)).collect();
    let mut series = vec![BarSeries { name: "operations".into(), values: theory }];
    for batch in batches {
        let ratio = |a: &&Arm| Some(dense.latency_us.get(batch)?.p50 / a.latency_us.get(batch)?.p50);
        let values = shown.iter().map(ratio).collect();
        series.push(BarSeries { name: format!("time, batch {batch}"), values });
    }
    Figure {
        id: "speed".into(),
        title: format!("Speedup over the dense {}: promised and measured", dense.name),
        caption: format!(
            "Operations: multiply-accumulates of the {} over those of the arm. Time: the same for median latencies of one interleaved \
             run.",
            dense.name
        ),
        x_label: "arm".into(),
        y_label: "times faster".into(),
        plot: Plot::Bars { categories: shown.iter().map(|a| a.name.clone()).collect(), series },
    }
}
