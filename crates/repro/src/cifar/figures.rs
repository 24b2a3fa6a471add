use super::{ENERGY, Results, STARTS, Study, Tried, rank_ratio};
use crate::figures;
use crate::pipeline::Trained;
use crate::report::{Arm, BarSeries, Figure, LineSeries, Plot, Table};
use anyhow::Result;
use cofilter_force::Force;
use cofilter_lowrank::Spectrum;
use std::collections::BTreeMap;

pub(super) fn all(study: &Study<'_>, results: &Results, arms: &[Arm]) -> Result<Vec<Figure>> {
    let mut all = vec![ranks(study, results, arms), sweep(study, results)?, ratios(study, results)];
    all.extend(contractions(study, results)?);
    all.push(errors(study, results));
    let tuned = STARTS.map(|start| (start, results.arms[&format!("{start}-tuned")].as_slice()));
    all.push(figures::fine_tuning(&tuned));
    let layer = study.subject.layers[study.subject.layers.len() - 2].as_str();
    for arm in STARTS {
        all.push(spectra(arm, layer, &results.arms[arm][0]));
    }
    for arm in ["baseline", "control", "force-l2"] {
        all.push(figures::plane(arm, &results.arms[arm][0].model, layer)?);
    }
    let small: Vec<&Arm> =
        arms.iter().filter(|arm| arm.name == super::OWN || arm.name.ends_with("-tuned")).collect();
    if let Some(control) = arms.iter().find(|arm| arm.name == "control") {
        all.push(figures::speed(control, &small, &super::BATCHES));
    }
    Ok(all)
}

pub(super) fn tables(study: &Study<'_>, results: &Results, arms: &[Arm]) -> Result<Vec<Table>> {
    Ok(vec![layers_table(study, arms), sweep_table(study, results)?, seeds_table(study, results)])
}

/// The paper's Fig. 5.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn ranks(study: &Study<'_>, results: &Results, arms: &[Arm]) -> Figure {
    let layers = &study.subject.layers;
    let mut series: Vec<BarSeries> = arms
        .iter()
        .filter(|arm| study.dense().contains(&arm.name.as_str()))
        .map(|arm| BarSeries {
            name: arm.name.clone(),
            values: layers.iter().map(|l| arm.ranks.get(l).map(|r| *r as f64)).collect(),
        })
        .collect();
    if let Some(published) = &study.subject.published {
        for (name, ranks) in ["paper, baseline", "paper, L2 force"].into_iter().zip(published) {
            series.push(BarSeries {
                name: name.into(),
                values: ranks.iter().map(|r| Some(*r as f64)).collect(),
            });
        }
    }
    let full = results.full_ranks.iter().map(|r| Some(*r as f64)).collect();
    series.push(BarSeries { name: "full rank".into(), values: full });
    Figure {
        id: "ranks".into(),
        title: format!("Rank of each convolution at {:.0} % energy", 100.0 * ENERGY),
        caption: "Least number of basis filters that keep that share of the squared singular values; median over the seeds. All arms but \
                  the baseline had the same number of further iterations."
            .into(),
        x_label: "layer".into(),
        y_label: "rank".into(),
        plot: Plot::Bars { categories: layers.clone(), series },
    }
}

/// The shape of the paper's Fig. 6.
fn sweep(study: &Study<'_>, results: &Results) -> Result<Figure> {
    let mut series = Vec::new();
    for (force, _) in study.forces() {
        let mut points = Vec::new();
        for of in results.tried.iter().filter(|of| of.force == *force) {
            if let Some(trained) = &of.trained {
                let ratio = rank_ratio(&study.ranks(&trained.model)?, &results.full_ranks);
                points.push([ratio, 100.0 - trained.top1]);
            }
        }
        series.push(LineSeries { name: (*force).into(), points });
    }
    let all = 0..results.full_ranks.len();
    for arm in ["control", "repulsion"].into_iter().filter(|arm| results.arms.contains_key(*arm)) {
        let point = [results.rank_ratios(arm, all.clone())[0], 100.0 - results.arms[arm][0].top1];
        series.push(LineSeries { name: arm.into(), points: vec![point] });
    }
    Ok(Figure {
        id: "sweep".into(),
        title: "Rank ratio against error over the strength of the force".into(),
        caption: "Mean over the layers of rank over full rank at 95 % energy, before decomposition; one point a strength, first \
                  seed.".into(),
        x_label: "rank ratio".into(),
        y_label: "top-1 error, %".into(),
        plot: Plot::Points { series },
    })
}

/// What is left of a rank, by how far the force alone would have drawn the filters together; nothing where that is not known in advance.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn contractions(study: &Study<'_>, results: &Results) -> Result<Option<Figure>> {
    // Not how far the force draws a layer that it lets go of.
    if study.pipeline.options.target_spread.is_some() {
        return Ok(None);
    }
    let graph = results.arms["control"][0].model.graph();
    let control = &results.ranks["control"][0];
    let mut by_filters = BTreeMap::<usize, Vec<[f64; 2]>>::new();
    for of in results.tried.iter().filter(|of| of.force == "force-l2") {
        let Some(trained) = of.trained.as_ref().filter(|t| super::last_strength(t) == Some(of.strength))
        else {
            continue;
        };
        let recipe = study.subject.continued(results.seeds[0], Some((Force::L2, of.strength)));
        let contractions = recipe.contractions(graph)?;
        for ((layer, rank), control) in
            study.subject.layers.iter().zip(study.ranks(&trained.model)?).zip(control)
        {
            let Some(contraction) = contractions.get(layer) else { continue };
            let filters = graph.slots(graph.find(layer)?)[0].dims[0];
            by_filters.entry(filters).or_default().push([*contraction, rank as f64 / *control as f64]);
        }
    }
    let line = |(filters, points)| LineSeries { name: format!("{filters} filters"), points };
    Ok((!by_filters.is_empty()).then(|| Figure {
        id: "contraction".into(),
        title: "Rank over the control's, against the contraction by the L2-norm force".into(),
        caption: "Were there nothing but the force, small angles between a filter and the mean of its layer's would shrink by the factor \
                  exp(-contraction): the number of filters times the sum over all iterations of strength times rate, over 1 - momentum. \
                  One point a layer and strength, ranks at 95 % energy before decomposition, first seed; without strengths that were \
                  rolled back."
            .into(),
        x_label: "contraction".into(),
        y_label: "rank over the control's".into(),
        plot: Plot::Points { series: by_filters.into_iter().map(line).collect() },
    }))
}

/// Error of each dense arm and seed.
fn errors(study: &Study<'_>, results: &Results) -> Figure {
    let dense = study.dense();
    let series = results.seeds.iter().enumerate().map(|(i, seed)| BarSeries {
        name: format!("seed {seed}"),
        values: dense.iter().map(|arm| Some(100.0 - results.arms[*arm][i].top1)).collect(),
    });
    Figure {
        id: "errors".into(),
        title: "Error before decomposition, of each arm".into(),
        caption: "Top-1 error on the test set.".into(),
        x_label: "arm".into(),
        y_label: "top-1 error, %".into(),
        plot: Plot::Bars {
            categories: dense.iter().map(ToString::to_string).collect(),
            series: series.collect(),
        },
    }
}

/// How ranks fall while training.
#[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^53")]
fn ratios(study: &Study<'_>, results: &Results) -> Figure {
    let dense = study.dense();
    let line = |arm: &str| {
        let point = |point: &crate::pipeline::Point| {
            let ranks: Vec<usize> = study
                .subject
                .layers
                .iter()
                .filter_map(|layer| Some(point.spectra.get(layer)?.rank_at_energy(ENERGY)))
                .collect();
            [point.iteration as f64, rank_ratio(&ranks, &results.full_ranks)]
        };
        let start = [0.0, results.rank_ratios("baseline", 0..results.full_ranks.len())[0]];
        let points = std::iter::once(start).chain(results.arms[arm][0].curve.iter().map(point)).collect();
        LineSeries { name: arm.into(), points }
    };
    Figure {
        id: "rank-ratio".into(),
        title: "Mean rank ratio while training".into(),
        caption: "Rank at 95 % energy over full rank, mean over the layers; first seed.".into(),
        x_label: "iteration".into(),
        y_label: "rank ratio".into(),
        plot: Plot::Lines { series: dense[1..].iter().map(|arm| line(arm)).collect() },
    }
}

/// How the energy moves to the first basis filters.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn spectra(arm: &str, layer: &str, trained: &Trained) -> Figure {
    let line = |(iteration, spectrum): (u64, &Spectrum)| LineSeries {
        name: format!("iteration {iteration}"),
        points: (1..=spectrum.full_rank()).map(|rank| [rank as f64, 100.0 * spectrum.energy(rank)]).collect(),
    };
    let all: Vec<(u64, &Spectrum)> =
        trained.curve.iter().filter_map(|point| Some((point.iteration, point.spectra.get(layer)?))).collect();
    let some = all.iter().rev().step_by(3).rev();
    Figure {
        id: format!("spectra-{arm}"),
        title: format!("{arm}: energy kept by the first basis filters of {layer}"),
        caption: "Cumulative share of the squared singular values along the training; first seed.".into(),
        x_label: "basis filters".into(),
        y_label: "energy, %".into(),
        plot: Plot::Lines { series: some.copied().map(line).collect() },
    }
}

fn layers_table(study: &Study<'_>, arms: &[Arm]) -> Table {
    let dense: Vec<&Arm> = arms.iter().filter(|arm| study.dense().contains(&arm.name.as_str())).collect();
    let published = study.subject.published.as_ref();
    let row = |(i, layer): (usize, &String)| {
        let mut row = vec![layer.clone(), dense[0].full_ranks[layer].to_string()];
        row.extend(dense.iter().map(|arm| arm.ranks[layer].to_string()));
        row.extend(published.iter().flat_map(|both| both.iter().map(|ranks| ranks[i].to_string())));
        row
    };
    let mut columns = vec!["layer".to_owned(), "full".to_owned()];
    columns.extend(dense.iter().map(|arm| arm.name.clone()));
    if published.is_some() {
        columns.extend(["paper, baseline", "paper, L2 force"].map(String::from));
    }
    Table {
        title: "Ranks at 95 % energy".into(),
        caption: "Median over the seeds, before decomposition.".into(),
        columns,
        rows: study.subject.layers.iter().enumerate().map(row).collect(),
    }
}

fn sweep_table(study: &Study<'_>, results: &Results) -> Result<Table> {
    let row = |of: &Tried| -> Result<Vec<String>> {
        let chosen = results.chosen.get(of.force).is_some_and(|(strength, _)| *strength == of.strength);
        let mut row = vec![
            format!("{}{}", of.force, if chosen { ", chosen" } else { "" }),
            format!("{:.3e}", of.strength),
        ];
        let Some(trained) = &of.trained else {
            row.push("diverged".into());
            row.extend(std::iter::repeat_n("–".to_owned(), 4));
            return Ok(row);
        };
        let ranks = study.ranks(&trained.model)?;
        row.extend([
            format!("{:.3e}", super::last_strength(trained).unwrap_or(of.strength)),
            format!("{:.2}", trained.top1),
            format!("{:.2}", 100.0 - trained.top1),
            ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            format!("{:.3}", rank_ratio(&ranks, &results.full_ranks)),
        ]);
        Ok(row)
    };
    Ok(Table {
        title: "Strengths that were tried".into(),
        caption: "First seed, before decomposition; in the order of the search. At the end: the strength after rolling back, where the \
                  network diverged."
            .into(),
        columns: ["arm", "strength", "at the end", "top-1 %", "error %", "ranks", "rank ratio"]
            .map(String::from)
            .into(),
        rows: results.tried.iter().map(row).collect::<Result<_>>()?,
    })
}

/// Each dense arm over the seeds.
fn seeds_table(study: &Study<'_>, results: &Results) -> Table {
    let list = |values: &[f64], digits: usize| {
        values.iter().map(|v| format!("{v:.digits$}")).collect::<Vec<_>>().join(" ")
    };
    let row = |arm: &&str| {
        let mut row = vec![(*arm).to_owned(), list(&results.top1(arm), 2)];
        let strengths = results.arms[*arm].iter().filter_map(super::last_strength);
        row.push(strengths.map(|strength| format!("{strength:.2e}")).collect::<Vec<_>>().join(" "));
        row.extend(
            study.subject.depths.iter().map(|depth| list(&results.rank_ratios(arm, depth.clone()), 3)),
        );
        row.push(list(&results.rank_ratios(arm, 0..results.full_ranks.len()), 3));
        row
    };
    let depth = |of: &std::ops::Range<usize>| match of.len() {
        1 => study.subject.layers[of.start].clone(),
        _ => format!("layers {} to {}", of.start + 1, of.end),
    };
    let mut columns = ["arm", "top-1 %", "strength at the end"].map(String::from).to_vec();
    columns.extend(study.subject.depths.iter().map(depth));
    columns.push("all layers".into());
    Table {
        title: "Seeds".into(),
        caption: "Top-1 and mean rank ratio at 95 % energy, before decomposition, one value a seed.".into(),
        columns,
        rows: study.dense().iter().map(row).collect(),
    }
}
