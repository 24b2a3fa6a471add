use super::{Results, ranks_text};
use crate::report::{Figure, LineSeries, Plot, Table};
use anyhow::{Context as _, Result};
use cofilter_lowrank::{Analysis, LayerKind, RankRule, analyse, figures, projection, similarity};

/// Shares of the energy at which the ranks of all layers are shown.
const ENERGIES: [f64; 3] = [0.95, 0.9, 0.8];
/// Clusters of the filters that are drawn in a plane, as on the paper's poster.
const CLUSTERS: usize = 4;

/// How many points another list has one for that is at least as fast and as accurate, and better in one of the two.
pub(super) fn dominated(points: &[[f64; 2]], by: &[[f64; 2]]) -> usize {
    let beaten =
        |p: &&[f64; 2]| by.iter().any(|q| q[0] >= p[0] && q[1] >= p[1] && (q[0] > p[0] || q[1] > p[1]));
    points.iter().filter(beaten).count()
}

pub(super) fn all(results: &Results, network: &str) -> Result<Vec<Figure>> {
    let series = |name: &str, points: &[[f64; 2]]| LineSeries { name: name.into(), points: points.to_vec() };
    let pareto = Figure {
        id: "pareto".into(),
        title: format!("{network}: accuracy against measured speedup, without training"),
        caption: "One image a run. Chosen by measurement: methods and ranks of each layer by measured times and divergences. Energy \
                  rule: principal components across filters, one energy for all layers."
            .into(),
        x_label: "times as fast as the dense network, measured".into(),
        y_label: "top-1, %".into(),
        plot: Plot::Points {
            series: vec![
                series("chosen by measurement", &results.front),
                series("energy rule", &results.energy_rule),
            ],
        },
    };
    let titled = |figure: Figure| Figure { title: format!("{network}: {}", figure.title), ..figure };
    let mut all = vec![pareto];
    all.extend(figures::survey(&results.survey).map(titled));
    for dense in results.arms.iter().filter(|named| named.parent.is_none()) {
        let layers = analyse(&dense.model, ENERGIES[0])?;
        let name = &dense.name;
        all.push(Figure {
            id: format!("rank-ratios-{name}"),
            title: format!("{name}: rank over full rank of each layer"),
            ..figures::rank_ratios(&layers.iter().collect::<Vec<_>>(), &ENERGIES)
        });
        if name == network {
            let chosen = representative(&layers);
            let late = &chosen.last().context("no convolution")?.name;
            for figure in [
                figures::energy_curves(&chosen),
                figures::spectra(&chosen),
                figures::similarity(&similarity(&dense.model, late)?),
                figures::projection(&projection(&dense.model, late, CLUSTERS)?),
            ] {
                all.push(Figure { title: format!("{name}: {}", figure.title), ..figure });
            }
        }
    }
    Ok(all)
}

/// The first convolution, one from the middle of each stage (layers of as many filters), and the last.
fn representative(layers: &[Analysis]) -> Vec<&Analysis> {
    let convolutions: Vec<&Analysis> = layers.iter().filter(|l| l.kind == LayerKind::Conv2d).collect();
    let stages = convolutions.chunk_by(|a, b| a.filters == b.filters).map(|stage| stage[stage.len() / 2]);
    let ends = [convolutions.first(), convolutions.last()].into_iter().flatten().copied();
    let chosen: Vec<&str> = ends.chain(stages).map(|layer| layer.name.as_str()).collect();
    convolutions.into_iter().filter(|layer| chosen.contains(&layer.name.as_str())).collect()
}

pub(super) fn tables(results: &Results, network: &str) -> Vec<Table> {
    let percent = |value: f64| format!("{value:.2}");
    let maybe = |value: Option<f64>| value.map_or_else(|| "–".into(), percent);
    let equal = Table {
        title: "Equal ranks: by weights and by outputs".into(),
        caption: "Top-1 in percent on the test set, as it comes and with new statistics of batch normalisations. By outputs the means \
                  are kept already and variances are those of least squares, so new statistics do harm. Share: points lost by outputs \
                  as they come over those lost by weights with new statistics. Tuned: after the fine-tuning that the notes state."
            .into(),
        columns: [
            "network",
            "energy, %",
            "dense",
            "by weights",
            "+ statistics",
            "by outputs",
            "+ statistics",
            "share",
            "by weights, tuned",
            "by outputs, tuned",
        ]
        .map(String::from)
        .into(),
        rows: results
            .equal_ranks
            .iter()
            .map(|of| {
                vec![
                    of.network.clone(),
                    format!("{:.0}", 100.0 * of.energy),
                    percent(of.dense),
                    percent(of.weights_alone),
                    percent(of.weights),
                    percent(of.outputs),
                    percent(of.outputs_restated),
                    format!("{:.2}", of.share()),
                    maybe(of.weights_tuned),
                    maybe(of.outputs_tuned),
                ]
            })
            .collect(),
    };
    let asked = Table {
        title: format!("Speedups of {network} that were asked for"),
        caption: "Expected: by the times of its layers, before the network was measured. Measured: the final network beside the dense \
                  one, in turns. Top-1 after fine-tuning."
            .into(),
        columns: ["asked", "batch", "expected", "measured", "top-1 tuned, %", "layers taken apart"]
            .map(String::from)
            .into(),
        rows: results
            .asked
            .iter()
            .map(|(of, tuned)| {
                let (expected, ranks) = match &of.reached {
                    Some(reached) => {
                        let ranks = match &reached.selection.settings.rule {
                            RankRule::Ranks(ranks) => ranks_text(ranks),
                            _ => String::new(),
                        };
                        (format!("{:.3}", reached.selection.predicted_speedup), ranks)
                    }
                    None => ("–".into(), format!("out of reach, {:.2} is the most", of.most)),
                };
                let measured = of.measured.map_or_else(|| "–".into(), |measured| format!("{measured:.3}"));
                let top1 = tuned.as_ref().map(|named| named.top1);
                vec![of.speedup.to_string(), of.batch.to_string(), expected, measured, maybe(top1), ranks]
            })
            .collect(),
    };
    vec![equal, asked]
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofilter_graph::Model;

    #[test]
    fn a_point_is_dominated_by_one_that_is_nowhere_worse_and_somewhere_better() {
        let front = [[1.0, 90.0], [1.5, 85.0]];
        assert_eq!(dominated(&[[1.2, 84.0], [1.5, 85.0], [1.6, 10.0], [0.9, 90.0]], &front), 2);
        assert_eq!(dominated(&[], &front), 0);
        assert_eq!(dominated(&[[1.0, 1.0]], &[]), 0);
    }

    #[test]
    fn representative_layers_are_the_ends_and_the_middles_of_stages() {
        let graph = cofilter_zoo::by_name("resnet20", &cofilter_zoo::Config::default()).unwrap();
        let model = Model::init(graph, &cofilter_graph::Init::default(), 1).unwrap();
        let layers = analyse(&model, 0.9).unwrap();
        let names: Vec<&str> = representative(&layers).iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["conv1", "layer1.1.conv1", "layer2.1.conv2", "layer3.1.conv2", "layer3.2.conv2"]);
        assert!(representative(&[]).is_empty());
    }
}
