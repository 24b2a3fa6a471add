use super::compaction::Exact;
use super::{BATCHES, Made, Small, Study, Way};
use crate::bench::sparse::{DENSITIES, Layer, Row};
use crate::report::{Figure, LineSeries, Plot, Table};
use anyhow::{Context as _, Result};
use cofilter_sparsity as sparsity;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Kinds of networks in the order of their colours.
const KINDS: [&str; 6] = ["dense", "pruned", "SSL", "low rank", "low rank + pruned", "low rank + SSL"];

pub(super) fn all(studies: &[Study], rows: &[Row]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for study in studies {
        figures.push(points(
            study,
            "rate",
            "compression rate",
            "dense weights over those left",
            &study.by_rate(),
        ));
        figures.push(points(
            study,
            "speed",
            "measured speed with one image",
            "times as fast as the dense network",
            &study.by_speed(),
        ));
    }
    let mut layers: Vec<Layer> = Vec::new();
    for row in rows {
        if !layers.contains(&row.layer) {
            layers.push(row.layer);
        }
    }
    figures.extend(layers.iter().map(|layer| break_even(*layer, rows)));
    figures
}

fn points(study: &Study, id: &str, what: &str, label: &str, points: &[(&str, [f64; 2])]) -> Figure {
    let of = |kind: &&str| LineSeries {
        name: (*kind).into(),
        points: points.iter().filter(|(k, _)| k == kind).map(|(_, point)| *point).collect(),
    };
    Figure {
        id: format!("{}-{id}", study.name),
        title: format!("{}: accuracy against {what}", study.name),
        caption: "Every network after the same number of updates.".into(),
        x_label: label.into(),
        y_label: "top-1, %".into(),
        plot: Plot::Points {
            series: KINDS.iter().map(of).filter(|series| !series.points.is_empty()).collect(),
        },
    }
}

fn break_even(layer: Layer, rows: &[Row]) -> Figure {
    let of = |pattern: &str| {
        let rows = rows.iter().filter(|row| row.layer == layer && row.pattern == pattern);
        let mut points: Vec<[f64; 2]> = rows.map(|row| [row.density, row.over_direct()]).collect();
        points.sort_by(|a, b| a[0].total_cmp(&b[0]));
        LineSeries { name: pattern.into(), points }
    };
    let mut series: Vec<LineSeries> = layer.patterns().iter().map(|(pattern, _)| of(pattern)).collect();
    let rows: Vec<&Row> = rows.iter().filter(|row| row.layer == layer).collect();
    let ends = [DENSITIES[DENSITIES.len() - 1], DENSITIES[0]];
    // Where the dense layer has a faster form, that is what is to be beaten.
    let mut faster: Vec<f64> = rows.iter().map(|row| row.dense_us["direct"] / row.best()[0].1).collect();
    faster.sort_by(f64::total_cmp);
    let faster = faster[faster.len() / 2];
    series.push(LineSeries { name: "dense, direct".into(), points: ends.map(|x| [x, 1.0]).into() });
    if faster > 1.01 {
        series.push(LineSeries { name: "dense, fastest".into(), points: ends.map(|x| [x, faster]).into() });
    }
    Figure {
        id: layer.id(),
        title: format!("{}: density against speed", layer.title()),
        caption: "The faster form that makes use of zeros over the dense layer that multiplies weight by weight. Blocks and columns \
                  leave a little more than that: the table has what it is."
            .into(),
        x_label: "share of weights that were to stay".into(),
        y_label: "times as fast".into(),
        plot: Plot::Lines { series },
    }
}

/// The bars of the paper's charts.
#[derive(Deserialize)]
struct Charts {
    compression_rate: BTreeMap<String, serde_json::Value>,
    structured_sparsity_percent: BTreeMap<String, serde_json::Value>,
}

pub(super) fn tables(studies: &[Study], rows: &[Row], exact: &[Exact]) -> Result<Vec<Table>> {
    let charts: Charts = serde_json::from_str(include_str!("../../../../fixtures/paper/sparsity.json"))?;
    let mut tables = Vec::new();
    for study in studies {
        tables.push(networks(study));
    }
    tables.push(published("Chart (a) of the paper: compression rate of AlexNet", &charts.compression_rate)?);
    for study in studies {
        tables.push(rates(study)?);
    }
    tables.push(published(
        "Chart (b) of the paper: structured sparsity of AlexNet, %",
        &charts.structured_sparsity_percent,
    )?);
    for study in studies {
        tables.extend(structured(study));
    }
    tables.push(layers(rows));
    tables.push(compacted(exact));
    Ok(tables)
}

fn networks(study: &Study) -> Table {
    let row = |(i, made): (usize, &Made)| {
        let cost = made.trained.model.cost();
        let times = BATCHES.map(|batch| {
            let times = &study.latency_us[&batch];
            format!("{:.2}", times[0].p50 / times[i].p50)
        });
        let left = made.compression.total.map_or("-".into(), |rate| format!("{rate:.2}"));
        let mut row =
            vec![made.small.name(), format!("{:.2}", made.trained.top1), left, cost.macs().to_string()];
        row.push((cost.params() * size_of::<f32>()).to_string());
        row.extend(times);
        row
    };
    Table {
        title: format!("{}: every network", study.name),
        caption: "Operations and bytes (of weights as they are kept, zeros too) after what is zero altogether was removed; speed over the \
                  dense network, measured."
            .into(),
        columns: ["network", "top-1, %", "compression rate", "MACs", "bytes", "speed, batch 1", "speed, batch 32"].map(String::from).into(),
        rows: study.made.iter().enumerate().map(row).collect(),
    }
}

fn published(title: &str, chart: &BTreeMap<String, serde_json::Value>) -> Result<Table> {
    let layers: Vec<String> =
        serde_json::from_value(chart.get("layers").context("sparsity.json: no layers")?.clone())?;
    let rows = chart.iter().filter(|(name, _)| *name != "layers").map(|(name, values)| {
        let values: Vec<f64> = serde_json::from_value(values.clone())?;
        Ok(std::iter::once(name.clone()).chain(values.iter().map(ToString::to_string)).collect())
    });
    Ok(Table {
        title: title.into(),
        caption: "As published; the accuracies of these networks are unknown.".into(),
        columns: std::iter::once("network".to_owned()).chain(layers).collect(),
        rows: rows.collect::<Result<_>>()?,
    })
}

/// Compression rate by layer.
fn rates(study: &Study) -> Result<Table> {
    let first = study.made.first().context("no network")?;
    let layers = first.compression.layers.iter().map(|layer| layer.name.clone());
    let text = |rate: Option<f64>| rate.map_or("none left".into(), |rate| format!("{rate:.2}"));
    let row = |made: &Made| {
        let mut row = vec![made.small.name(), format!("{:.2}", made.trained.top1)];
        row.extend(made.compression.layers.iter().map(|layer| text(layer.rate)));
        row.push(text(made.compression.total));
        row
    };
    Ok(Table {
        title: format!("{}: compression rate by layer", study.name),
        caption: "Our counterpart of chart (a).".into(),
        columns: ["network".to_owned(), "top-1, %".to_owned()]
            .into_iter()
            .chain(layers)
            .chain(["total".to_owned()])
            .collect(),
        rows: study.made.iter().filter(|made| made.small.way != Way::Dense).map(row).collect(),
    })
}

/// Zero columns and rows of the networks that learned them, one table for those alone and one for each decomposition: layers differ.
fn structured(study: &Study) -> Vec<Table> {
    let mut energies: Vec<Option<f64>> = Vec::new();
    let learned: Vec<&Made> =
        study.made.iter().filter(|made| matches!(made.small.way, Way::Structured(_))).collect();
    for made in &learned {
        if !energies.contains(&made.small.energy) {
            energies.push(made.small.energy);
        }
    }
    let percent = |part: usize, all: usize| {
        #[expect(clippy::cast_precision_loss, reason = "counts of filters")]
        let share = part as f64 / all.max(1) as f64;
        format!("{:.1}", 100.0 * share)
    };
    let table = |energy: Option<f64>| {
        let of: Vec<&&Made> = learned.iter().filter(|made| made.small.energy == energy).collect();
        let zeros: Vec<Vec<sparsity::LayerDensity>> =
            of.iter().map(|made| sparsity::density(&made.masked)).collect();
        let mut rows = Vec::new();
        for (i, layer) in zeros[0].iter().enumerate() {
            let mut row = vec![layer.name.clone()];
            for of in &zeros {
                row.push(percent(of[i].zero_columns, of[i].columns));
                row.push(percent(of[i].zero_filters, of[i].filters));
            }
            rows.push(row);
        }
        let name = Small { energy, way: Way::Dense }.name();
        let heads = of.iter().flat_map(|made| {
            let name = made.small.name();
            [format!("{name}, columns, %"), format!("{name}, rows, %")]
        });
        Table {
            title: format!("{}, {name}: structured sparsity", study.name),
            caption: "Our counterpart of chart (b): zero columns (shape-wise) and rows (filter-wise).".into(),
            columns: std::iter::once("layer".to_owned()).chain(heads).collect(),
            rows,
        }
    };
    energies.into_iter().map(table).collect()
}

fn layers(rows: &[Row]) -> Table {
    Table {
        title: "Layers by density".into(),
        caption: "Median microseconds of one interleaved run, copies that a form needs included.".into(),
        columns: Row::HEADER.map(String::from).into(),
        rows: rows.iter().map(|row| row.cells().into()).collect(),
    }
}

fn compacted(exact: &[Exact]) -> Table {
    let row = |e: &Exact| {
        let [before, after] = e.params.map(|n| n.to_string());
        vec![e.network.clone(), e.grouping.clone(), before, after, format!("{:.1e}", e.error)]
    };
    Table {
        title: "Removing what is zero".into(),
        caption:
            "Random groups of every layer but the last one; the difference is relative to the largest result."
                .into(),
        columns: ["network", "zero", "parameters", "left", "difference"].map(String::from).into(),
        rows: exact.iter().map(row).collect(),
    }
}
