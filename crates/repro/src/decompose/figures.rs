use super::{Results, ranks_text};
use crate::report::{Figure, LineSeries, Plot, Table};
use cofilter_lowrank::RankRule;

/// How many points another list has one for that is at least as fast and as accurate, and better in one of the two.
pub(super) fn dominated(points: &[[f64; 2]], by: &[[f64; 2]]) -> usize {
    let beaten =
        |p: &&[f64; 2]| by.iter().any(|q| q[0] >= p[0] && q[1] >= p[1] && (q[0] > p[0] || q[1] > p[1]));
    points.iter().filter(beaten).count()
}

pub(super) fn all(results: &Results, network: &str) -> Vec<Figure> {
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
    let layers = &results.survey.layers;
    #[expect(clippy::cast_precision_loss, reason = "a few layers and ranks")]
    let sensitivity = Figure {
        id: "sensitivity".into(),
        title: format!("{network}: what taking one layer apart does to the outputs"),
        caption: "Each point is a layer at its least measured rank across filters: the mean Kullback-Leibler divergence of the class \
                  probabilities, with that layer alone taken apart."
            .into(),
        x_label: "layer, in order".into(),
        y_label: "divergence, nats".into(),
        plot: Plot::Points {
            series: cofilter_lowrank::Method::ALL
                .into_iter()
                .filter_map(|method| {
                    let points: Vec<[f64; 2]> = layers
                        .iter()
                        .enumerate()
                        .filter_map(|(i, layer)| {
                            let way = layer.ways.iter().find(|way| way.method == method)?;
                            Some([i as f64, way.divergence])
                        })
                        .collect();
                    (!points.is_empty()).then(|| series(method.name(), &points))
                })
                .collect(),
        },
    };
    vec![pareto, sensitivity]
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
    use super::dominated;

    #[test]
    fn a_point_is_dominated_by_one_that_is_nowhere_worse_and_somewhere_better() {
        let front = [[1.0, 90.0], [1.5, 85.0]];
        assert_eq!(dominated(&[[1.2, 84.0], [1.5, 85.0], [1.6, 10.0], [0.9, 90.0]], &front), 2);
        assert_eq!(dominated(&[], &front), 0);
        assert_eq!(dominated(&[[1.0, 1.0]], &[]), 0);
    }
}
