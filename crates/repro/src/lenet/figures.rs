use super::settings::Settings;
use super::{BATCHES, DENSE, LAYERS, Results, SweepPoint};
use crate::figures;
use crate::report::{Arm, BarSeries, Figure, LineSeries, Plot, Table, thousands};
use anyhow::Result;
use cofilter_sparsity as sparsity;

pub(super) fn all(results: &Results, arms: &[Arm], settings: &Settings) -> Result<Vec<Figure>> {
    let mut figures = vec![ranks(results, arms)];
    figures.extend(LAYERS.map(|layer| spectrum(results, layer)));
    for arm in DENSE {
        // Force brings the filters of the last convolution together.
        figures.push(figures::plane(arm, &results.arms[arm][0].model, LAYERS[LAYERS.len() - 1])?);
    }
    let tuned = DENSE.map(|dense| (dense, results.arms[&format!("{dense}-tuned")].as_slice()));
    figures.push(figures::fine_tuning(&tuned));
    let small = |a: &&Arm| a.name.ends_with("-tuned") || a.name.ends_with("-sparse");
    figures.push(figures::speed(&arms[0], &arms.iter().filter(small).collect::<Vec<_>>(), &BATCHES));
    figures.push(sparsity(arms, settings));
    Ok(figures)
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
