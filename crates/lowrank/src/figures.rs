//! Figures of spectra, ranks, filters and surveys, for reports.

mod survey;

pub use survey::survey;

use crate::{Analysis, Plane, Projection, Similarity, Spectrum};
use cofilter_report::{BarSeries, Figure, LineSeries, Plot};

/// Most layers whose names are shown below bars; more are lines over their place in the network.
const MOST_NAMES: usize = 24;
/// Most points of a line.
const MOST_POINTS: usize = 200;
/// Most rows of a heat map; more are drawn as means of blocks.
const MOST_ROWS: usize = 256;

/// Rank over full rank of each layer, summed over its groups, at these energies.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "ranks and places of layers")]
pub fn rank_ratios(layers: &[&Analysis], energies: &[f64]) -> Figure {
    let ratio = |layer: &Analysis, energy| layer.rank_at_energy(energy) as f64 / layer.full_rank as f64;
    let name = |energy: &f64| format!("{} % energy", percent(*energy));
    let plot = if layers.len() <= MOST_NAMES {
        let series = energies.iter().map(|energy| BarSeries {
            name: name(energy),
            values: layers.iter().map(|layer| Some(ratio(layer, *energy))).collect(),
        });
        Plot::Bars { categories: layers.iter().map(|l| l.name.clone()).collect(), series: series.collect() }
    } else {
        let series = energies.iter().map(|energy| LineSeries {
            name: name(energy),
            points: (1..).zip(layers).map(|(i, l)| [f64::from(i), ratio(l, *energy)]).collect(),
        });
        Plot::Lines { series: series.collect() }
    };
    Figure {
        id: "rank-ratios".into(),
        title: "Rank over full rank of each layer".into(),
        caption: "Least number of basis filters that keep this share of the squared singular values, over the largest rank that the \
                  layer can have; layers in the order of the network."
            .into(),
        x_label: "layer".into(),
        y_label: "rank / full rank".into(),
        plot,
    }
}

/// Energy that the first basis filters keep, over their share of full rank; all filters of a layer as one matrix.
#[must_use]
pub fn energy_curves(layers: &[&Analysis]) -> Figure {
    let line = |layer: &&Analysis| {
        let kept = |spectrum: &Spectrum| {
            let mut sum = 0.0;
            let added = spectrum.normalised.iter().map(move |share| {
                sum += share;
                100.0 * f64::min(sum, 1.0)
            });
            std::iter::once(0.0).chain(added).collect()
        };
        over_ranks(layer, 0, kept(&layer.whole))
    };
    Figure {
        id: "energy".into(),
        title: "Energy kept by the first basis filters".into(),
        caption: "Cumulative share of the squared singular values; the faster a curve rises, the fewer basis filters the layer needs."
            .into(),
        x_label: "basis filters / full rank".into(),
        y_label: "energy, %".into(),
        plot: Plot::Lines { series: layers.iter().map(line).collect() },
    }
}

/// Singular values over the largest of the layer; all filters of a layer as one matrix.
#[must_use]
pub fn spectra(layers: &[&Analysis]) -> Figure {
    let line = |layer: &&Analysis| {
        let largest = layer.whole.normalised.first().copied().unwrap_or(0.0);
        let value = |share: &f64| if largest > 0.0 { (share / largest).sqrt() } else { 0.0 };
        over_ranks(layer, 1, layer.whole.normalised.iter().map(value).collect())
    };
    Figure {
        id: "spectra".into(),
        title: "Singular values of the weights".into(),
        caption: "Over the largest of the layer, falling.".into(),
        x_label: "place / full rank".into(),
        y_label: "singular value / largest".into(),
        plot: Plot::Lines { series: layers.iter().map(line).collect() },
    }
}

/// Values for the ranks from `first` on, over the share of full rank.
#[expect(clippy::cast_precision_loss, reason = "ranks")]
fn over_ranks(layer: &Analysis, first: usize, values: Vec<f64>) -> LineSeries {
    let (full, last) = (layer.whole.full_rank() as f64, values.len().saturating_sub(1));
    let step = values.len().div_ceil(MOST_POINTS).max(1);
    let shown = values.into_iter().enumerate().filter(|(i, _)| i % step == 0 || *i == last);
    LineSeries {
        name: layer.name.clone(),
        points: shown.map(|(i, value)| [(first + i) as f64 / full, value]).collect(),
    }
}

/// Cosines between filters, similar ones side by side; of more than 256 filters the means of blocks.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "cells of a block")]
pub fn similarity(of: &Similarity) -> Figure {
    let block = of.filters.div_ceil(MOST_ROWS);
    let blocks: Vec<&[usize]> = of.order.chunks(block).collect();
    let value = |a: &[usize], b: &[usize]| {
        let cosines: Vec<f64> = a.iter().flat_map(|i| b.iter().filter_map(|j| of.cosine(*i, *j))).collect();
        // What is shown has no more digits.
        let mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
        (!cosines.is_empty()).then_some((mean * 1e4).round() / 1e4)
    };
    let names: Vec<String> = blocks.iter().map(|filters| filters[0].to_string()).collect();
    let blocks_note = if block > 1 {
        format!(" Each cell is the mean over {block} x {block} filters, named by the first.")
    } else {
        String::new()
    };
    let groups_note = if of.groups > 1 { " Filters of different groups are not compared." } else { "" };
    Figure {
        id: format!("similarity-{}", of.name),
        title: format!("{}: similarity of the filters", of.name),
        caption: format!(
            "Cosine of the angle between two filters, in an order that puts similar ones side by side. Mean of |cosine| over all pairs: \
             {:.3}; over the filters, of the largest to another: {:.3}.{groups_note}{blocks_note}",
            of.mean, of.mean_nearest
        ),
        x_label: "filter".into(),
        y_label: "filter".into(),
        plot: Plot::Matrix {
            rows: names.clone(),
            columns: names,
            values: blocks.iter().map(|a| blocks.iter().map(|b| value(a, b)).collect()).collect(),
            range: [-1.0, 1.0],
        },
    }
}

/// Filters as points in a plane, a colour for each cluster.
#[must_use]
pub fn projection(of: &Projection) -> Figure {
    let series = (0..of.clusters).map(|cluster| {
        let own = of.points.iter().zip(&of.cluster).filter(|(_, found)| **found == cluster);
        LineSeries {
            name: format!("cluster {}", cluster + 1),
            points: own.map(|(point, _)| *point).collect(),
        }
    });
    let (plane, axes) = match of.plane {
        Plane::Discriminant => ("in the plane that shows their clusters farthest apart", "discriminant"),
        Plane::Principal => ("in the plane of their first two principal components", "component"),
    };
    let share = |axis: usize| percent(of.share[axis]);
    Figure {
        id: format!("projection-{}", of.name),
        title: format!("{}: filters in a plane", of.name),
        caption: format!(
            "Filters of length 1, in clusters by k-means, {plane}. {} % of their variance lies between the clusters, in all directions.",
            percent(of.separation)
        ),
        x_label: format!("first {axes}, {} % of the variance", share(0)),
        y_label: format!("second {axes}, {} %", share(1)),
        plot: Plot::Points { series: series.collect() },
    }
}

/// A share in percent, with a digit after the point where it has one.
fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * share);
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(groups: usize, size: usize) -> Similarity {
        let filters = groups * size;
        Similarity {
            name: "conv".into(),
            filters,
            groups,
            cosines: vec![(0..size * size).map(|i| 0.01 * (i % 50) as f64).collect(); groups],
            mean: 0.25,
            mean_nearest: 0.5,
            order: (0..filters).rev().collect(),
        }
    }

    fn cells(figure: &Figure) -> &[Vec<Option<f64>>] {
        let Plot::Matrix { values, .. } = &figure.plot else { panic!("a matrix") };
        values
    }

    #[test]
    fn similar_filters_are_drawn_side_by_side_and_groups_apart() {
        let figure = similarity(&numbers(2, 3));
        let Plot::Matrix { rows, .. } = &figure.plot else { panic!("a matrix") };
        assert_eq!(rows, &["5", "4", "3", "2", "1", "0"]);
        // Filters 5 and 4 of the second group: row 2, column 1 of its matrix.
        assert_eq!(cells(&figure)[0][1], Some(0.07));
        assert_eq!(cells(&figure)[0][3], None);
        assert!(figure.caption.contains("0.250") && figure.caption.contains("different groups"));
    }

    #[test]
    fn many_filters_are_drawn_as_means_of_blocks() {
        let of = numbers(1, 600);
        let figure = similarity(&of);
        assert_eq!((cells(&figure).len(), cells(&figure)[0].len()), (200, 200));
        let block: Vec<f64> = (0..9).map(|i| of.cosine(599 - i / 3, 596 - i % 3).unwrap()).collect();
        let mean = block.iter().sum::<f64>() / 9.0;
        assert!((cells(&figure)[0][1].unwrap() - mean).abs() <= 5e-5);
        assert!(figure.caption.contains("3 x 3"));
    }

    #[test]
    fn every_filter_is_a_point_of_its_cluster() {
        let of = Projection {
            name: "conv".into(),
            plane: Plane::Principal,
            clusters: 2,
            cluster: vec![0, 1, 0],
            points: vec![[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
            share: [0.5, 0.125],
            separation: 1.0,
        };
        let figure = projection(&of);
        let Plot::Points { series } = &figure.plot else { panic!("points") };
        assert_eq!(series.iter().map(|s| s.points.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(series[0].points[1], [4.0, 5.0]);
        assert!(figure.x_label.contains("50 %") && figure.y_label.contains("12.5 %"), "{}", figure.y_label);
        assert!(figure.caption.contains("principal components") && figure.caption.contains("100 %"));
    }

    #[test]
    fn curves_end_at_full_rank_and_have_a_bounded_number_of_points() {
        let spectrum = Spectrum::new((1..=900).map(f64::from).collect());
        let layer = Analysis {
            name: "fc".into(),
            kind: crate::LayerKind::Linear,
            filters: 900,
            filter_len: 1000,
            groups: 1,
            full_rank: 900,
            energy: 0.9,
            rank: 1,
            group_ranks: vec![1],
            whole_rank: 1,
            stable_rank: 1.0,
            effective_rank: 1.0,
            break_even_rank: 1.0,
            group_spectra: vec![spectrum.clone()],
            whole: spectrum,
        };
        let points = |figure: Figure| match figure.plot {
            Plot::Lines { mut series } => series.remove(0).points,
            _ => panic!("lines"),
        };
        let energy = points(energy_curves(&[&layer]));
        assert_eq!(energy[0], [0.0, 0.0]);
        assert!((energy[energy.len() - 1][0] - 1.0).abs() < 1e-12);
        assert!((energy[energy.len() - 1][1] - 100.0).abs() < 1e-9);
        for point in &energy {
            let rank = (point[0] * 900.0).round() as usize;
            assert!((point[1] - 100.0 * layer.whole.energy(rank)).abs() < 1e-9, "{point:?}");
        }
        let values = points(spectra(&[&layer]));
        assert_eq!(values[0], [1.0 / 900.0, 1.0]);
        assert!((values[values.len() - 1][1] - (1.0f64 / 900.0).sqrt()).abs() < 1e-12);
        assert!(energy.len() <= MOST_POINTS + 2 && values.len() <= MOST_POINTS + 2);

        let few = rank_ratios(&[&layer; 3], &[0.5, 1.0]);
        let Plot::Bars { series, .. } = &few.plot else { panic!("bars") };
        assert_eq!((series.len(), series[1].values[2]), (2, Some(1.0)));
        let many = rank_ratios(&[&layer; 30], &[0.5]);
        let Plot::Lines { series } = &many.plot else { panic!("lines") };
        assert_eq!((series[0].points.len(), series[0].name.as_str()), (30, "50 % energy"));
    }
}
