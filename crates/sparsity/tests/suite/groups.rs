//! Groups of weights against their definition: sets of places (filter, channel, row, column).

use crate::build::drawn;
use cofilter_graph::{Conv2d, Graph, Model, Shape};
use cofilter_sparsity::{Grouping, Groups, apply, masks_of_zero_groups, zero_groups};
use std::collections::BTreeMap;

/// Filters, channels of the input, kernel and groups.
const CASES: [(usize, usize, [usize; 2], usize); 5] =
    [(6, 4, [3, 2], 1), (6, 4, [3, 3], 2), (9, 3, [1, 1], 3), (5, 7, [1, 3], 1), (1, 1, [1, 1], 1)];

const GROUPINGS: [Grouping; 8] = [
    Grouping::Filters,
    Grouping::Channels,
    Grouping::Columns,
    Grouping::Layer,
    Grouping::Blocks { rows: 1, columns: 4 },
    Grouping::Blocks { rows: 4, columns: 1 },
    Grouping::Blocks { rows: 2, columns: 3 },
    Grouping::Blocks { rows: 100, columns: 100 },
];

fn model((filters, channels, kernel, groups): (usize, usize, [usize; 2], usize), seed: u64) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(channels, 5, 5)).unwrap();
    let conv = Conv2d { kernel, groups, ..Conv2d::new(filters, 1) };
    let x = b.conv2d("conv", x, conv).unwrap();
    drawn(b.finish(&[x]).unwrap(), seed)
}

/// What names the group of a weight, from the definition.
fn name(
    grouping: Grouping,
    part: usize,
    row: usize,
    channel: usize,
    area: usize,
    place: usize,
) -> [usize; 3] {
    let column = channel * area + place;
    match grouping {
        Grouping::Filters => [0, row, 0],
        Grouping::Channels => [row / part, 0, channel],
        Grouping::Columns => [row / part, 0, column],
        Grouping::Blocks { rows, columns } => [row / part, row % part / rows.min(part), column / columns],
        Grouping::Layer => [0, 0, 0],
    }
}

/// The places of each group.
fn sets(case: (usize, usize, [usize; 2], usize), grouping: Grouping) -> BTreeMap<[usize; 3], Vec<usize>> {
    let (filters, channels, kernel, groups) = case;
    let (channels, area, part) = (channels / groups, kernel[0] * kernel[1], filters / groups);
    let mut sets: BTreeMap<[usize; 3], Vec<usize>> = BTreeMap::new();
    for row in 0..filters {
        for channel in 0..channels {
            for place in 0..area {
                let key = name(grouping, part, row, channel, area, place);
                sets.entry(key).or_default().push((row * channels + channel) * area + place);
            }
        }
    }
    sets
}

fn of(model: &Model, grouping: Grouping) -> (Groups, &[f32]) {
    let id = model.graph().find("conv").unwrap();
    (Groups::of_node(model.graph(), id, grouping).unwrap(), model.tensors(id)[0].data())
}

#[test]
fn norms_and_sizes_are_those_of_the_sets() {
    for case in CASES {
        for grouping in GROUPINGS {
            let model = model(case, 3);
            let (groups, weight) = of(&model, grouping);
            let sets = sets(case, grouping);
            assert_eq!(groups.count(), sets.len(), "{case:?} {grouping:?}");
            let mut expected: Vec<(usize, f64)> = sets
                .values()
                .map(|set| (set.len(), set.iter().map(|i| f64::from(weight[*i]).powi(2)).sum::<f64>().sqrt()))
                .collect();
            let mut found: Vec<(usize, f64)> = groups.sizes().into_iter().zip(groups.norms(weight)).collect();
            for list in [&mut expected, &mut found] {
                list.sort_by(|a, b| a.1.total_cmp(&b.1));
            }
            for (found, expected) in found.iter().zip(&expected) {
                let near = (found.1 - expected.1).abs() < 1e-12;
                assert!(found.0 == expected.0 && near, "{case:?} {grouping:?}: {found:?}, {expected:?}");
            }
        }
    }
}

/// The proximal operator is where `||v - w||^2 / 2 + step sum_g ||v_g||` is least: `v_g = w_g max(0, 1 - step / ||w_g||)`.
#[test]
fn shrinking_is_the_proximal_operator_of_the_group_lasso() {
    for case in CASES {
        for grouping in GROUPINGS {
            let model = model(case, 5);
            let (groups, weight) = of(&model, grouping);
            let mut norms = groups.norms(weight);
            norms.sort_by(f64::total_cmp);
            // About half of the groups go.
            let step = norms[norms.len() / 2] * 1.000_001;
            let mut found = weight.to_vec();
            groups.shrink(&mut found, step);
            let mut gradient = vec![0.0; weight.len()];
            groups.add_subgradient(weight, 0.3, &mut gradient);
            for set in sets(case, grouping).values() {
                let norm = set.iter().map(|i| f64::from(weight[*i]).powi(2)).sum::<f64>().sqrt();
                let factor = (1.0 - step / norm).max(0.0);
                for i in set {
                    let expected = f64::from(weight[*i]) * factor;
                    assert!((f64::from(found[*i]) - expected).abs() < 1e-6, "{case:?} {grouping:?}");
                    assert!(factor > 0.0 || found[*i].to_bits() == 0, "{case:?} {grouping:?}: {}", found[*i]);
                    let expected = 0.3 * f64::from(weight[*i]) / norm;
                    assert!((f64::from(gradient[*i]) - expected).abs() < 1e-6, "{case:?} {grouping:?}");
                }
            }
        }
    }
}

#[test]
fn a_group_of_zeros_has_no_subgradient() {
    let model = model(CASES[0], 1);
    let (groups, weight) = of(&model, Grouping::Filters);
    let mut gradient = vec![1.0; weight.len()];
    groups.add_subgradient(&vec![0.0; weight.len()], 5.0, &mut gradient);
    assert!(gradient.iter().all(|g| *g == 1.0));
}

#[test]
fn groups_that_are_zero_stay_so_and_single_zeros_do_not() {
    for case in CASES {
        for grouping in GROUPINGS {
            let model = model(case, 7);
            let id = model.graph().find("conv").unwrap();
            let sets: Vec<Vec<usize>> = sets(case, grouping).into_values().collect();
            // Every second group, and one weight of each of the others.
            let zero: Vec<usize> = sets.iter().step_by(2).flatten().copied().collect();
            let lone: Vec<usize> =
                sets.iter().skip(1).step_by(2).filter(|set| set.len() > 1).map(|set| set[0]).collect();
            let array = &model.tensors(id)[0];
            let edited: Vec<f32> = (array.data().iter().enumerate())
                .map(|(i, w)| if zero.contains(&i) || lone.contains(&i) { 0.0 } else { *w })
                .collect();
            let mut params = model.params().clone();
            params.get_mut(id)[0] = cofilter_graph::Array::new(array.dims().to_vec(), edited);
            let edited = model.with_params(params).unwrap();
            let masks = masks_of_zero_groups(&edited, grouping);
            for (i, mask) in masks.get(id)[0].data().iter().enumerate() {
                assert_eq!(*mask == 0.0, zero.contains(&i), "{case:?} {grouping:?}: weight {i}");
            }
            assert_eq!(apply(&edited, &masks).unwrap(), edited);
            let listed = zero_groups(&edited, grouping);
            let gone = listed[0].1.iter().filter(|zero| **zero).count();
            assert_eq!((listed.len(), listed[0].0.as_str(), gone), (1, "conv", sets.len().div_ceil(2)));
        }
    }
}
