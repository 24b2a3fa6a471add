use crate::target::{Survey, Way};
use crate::{Method, Rank};
use cofilter_report::{Figure, LineSeries, Plot};

/// Layers whose sensitivity is a line.
const LINES: usize = 8;
/// Speedups at which the best choice is looked for.
const SPEEDUPS: u32 = 40;

/// What a survey found: the effect on the outputs of each layer, of the ranks of some layers, and what any speedup costs by it.
#[must_use]
pub fn survey(of: &Survey) -> [Figure; 3] {
    [layers(of), ranks(of), trade(of)]
}

/// Divergence of each layer at its least rank.
#[expect(clippy::cast_precision_loss, reason = "a few layers")]
fn layers(of: &Survey) -> Figure {
    let of_method = |method: Method| {
        let point = |(i, layer): (usize, &crate::target::LayerSurvey)| {
            let way = layer.ways.iter().find(|way| way.method == method)?;
            way.divergence.is_finite().then_some([i as f64 + 1.0, way.divergence])
        };
        let points: Vec<[f64; 2]> = of.layers.iter().enumerate().filter_map(point).collect();
        (!points.is_empty()).then(|| LineSeries { name: method.name().into(), points })
    };
    Figure {
        id: "sensitivity".into(),
        title: "What taking one layer apart does to the outputs".into(),
        caption: "Each point is a layer at its least measured rank: the mean Kullback-Leibler divergence of the class probabilities, \
                  with that layer alone taken apart."
            .into(),
        x_label: "layer, in order".into(),
        y_label: "divergence, nats".into(),
        plot: Plot::Points { series: Method::ALL.into_iter().filter_map(of_method).collect() },
    }
}

/// Divergences of some layers over the ranks at which they were measured.
#[expect(clippy::cast_precision_loss, reason = "ranks")]
fn ranks(of: &Survey) -> Figure {
    // Divergences fall by orders of magnitude.
    let point = |way: &Way| match way.rank {
        Rank::One(rank) if way.measured && way.divergence > 0.0 && way.divergence.is_finite() => {
            Some([rank as f64, way.divergence.log10()])
        }
        _ => None,
    };
    let mut lines: Vec<LineSeries> = Vec::new();
    for layer in &of.layers {
        let across = layer.ways.iter().filter(|way| way.method == Method::Pca);
        let points: Vec<[f64; 2]> = across.filter_map(point).collect();
        if points.len() > 1 {
            lines.push(LineSeries { name: layer.name.clone(), points });
        }
    }
    // Evenly over the depth of the network.
    let step = lines.len().div_ceil(LINES).max(1);
    Figure {
        id: "sensitivity-ranks".into(),
        title: "What a layer's rank does to the outputs".into(),
        caption: "Decimal logarithm of the mean Kullback-Leibler divergence of the class probabilities in nats, with one layer alone taken \
                  apart across filters. Some of the layers for which several ranks were measured."
            .into(),
        x_label: "basis filters".into(),
        y_label: "log10 of the divergence".into(),
        plot: Plot::Lines { series: lines.into_iter().step_by(step).collect() },
    }
}

/// The least divergence by which each speedup is to be had, as far as times and divergences of layers add up.
fn trade(of: &Survey) -> Figure {
    let most = of.fastest().max(1.0);
    let point = |i: u32| {
        let speedup = 1.0 + (most - 1.0) * f64::from(i) / f64::from(SPEEDUPS);
        let selection = of.select(speedup).ok()?;
        Some([selection.predicted_speedup, selection.divergence])
    };
    let mut points: Vec<[f64; 2]> = (0..=SPEEDUPS).filter_map(point).filter(|p| p[1].is_finite()).collect();
    points.dedup();
    Figure {
        id: "trade".into(),
        title: "What a speedup does to the outputs, by the survey".into(),
        caption: format!(
            "Expected times as fast, and the sum of the divergences of the layers that are taken apart for it, batch {}, {} thread(s).",
            of.settings.batch, of.settings.threads
        ),
        x_label: "times as fast, expected".into(),
        y_label: "sum of divergences, nats".into(),
        plot: Plot::Lines { series: vec![LineSeries { name: "best choice".into(), points }] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::LayerSurvey;

    fn example() -> Survey {
        let way = |method, rank, us, divergence, measured| Way {
            method,
            rank: Rank::One(rank),
            us,
            divergence,
            measured,
        };
        let layer = |i: usize| LayerSurvey {
            name: format!("conv{i}"),
            dense_us: 2.0,
            ways: vec![
                way(Method::Pca, 16, 1.0, 0.1, true),
                way(Method::Pca, 24, 1.2, 0.05, false),
                way(Method::Pca, 32, 1.5, if i == 1 { 0.0 } else { 0.001 }, true),
                way(Method::Spatial, 16, 1.5, 0.5, true),
            ],
        };
        Survey {
            settings: Default::default(),
            images: 1,
            whole_us: 40.0,
            layers: (0..20).map(layer).collect(),
            correction: 1.0,
            gains: vec![],
        }
    }

    #[test]
    fn sensitivity_has_a_line_for_some_layers_of_several_measured_ranks() {
        let Plot::Lines { series } = ranks(&example()).plot else { panic!("lines") };
        assert_eq!(series.iter().map(|s| s.name.as_str()).collect::<Vec<_>>()[..2], ["conv0", "conv4"]);
        assert!(series.len() <= LINES);
        assert_eq!(series[0].points.iter().map(|p| p[0]).collect::<Vec<_>>(), [16.0, 32.0]);
        assert!((series[0].points[1][1] + 3.0).abs() < 1e-12);
    }

    #[test]
    fn each_method_has_a_point_for_each_layer() {
        let Plot::Points { series } = layers(&example()).plot else { panic!("points") };
        let names: Vec<&str> = series.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, [Method::Pca.name(), Method::Spatial.name()]);
        assert_eq!((series[0].points.len(), series[1].points[19]), (20, [20.0, 0.5]));
    }

    #[test]
    fn more_speed_costs_more() {
        let Plot::Lines { series } = trade(&example()).plot else { panic!("lines") };
        let points = &series[0].points;
        // One layer has a way that is faster and costs nothing: 40 over 39.5.
        assert!((points[0][0] - 40.0 / 39.5).abs() < 1e-12 && points[0][1] == 0.0, "{:?}", points[0]);
        assert!(points.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]));
        // Every layer at half of its time.
        let last = points[points.len() - 1];
        assert!((last[0] - 2.0).abs() < 1e-9 && (last[1] - 2.0).abs() < 1e-9, "{last:?}");
    }
}
