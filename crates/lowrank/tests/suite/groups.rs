//! Convolutions with groups: decomposed one by one, kept equal.

use crate::oracle::{Numbers, doubles, evaluate, one_conv, relative, singular_values, tensor};
use cofilter_graph::{Array, Conv2d, Model, Shape};
use cofilter_lowrank::{RankRule, Settings, analyse, decompose, recompose};

const ROWS: usize = 8;
const LEN: usize = 3 * 9;

/// Two groups, the first of nearly flat spectrum, the second of rank 2.
fn unequal() -> (Model, Vec<Array>) {
    let mut numbers = Numbers::new(31);
    let first = numbers.decaying(&[ROWS, LEN], 0.9);
    let mut second = vec![0.0f32; ROWS * LEN];
    let patterns = [numbers.array(&[LEN]), numbers.array(&[LEN])];
    for row in second.chunks_exact_mut(LEN) {
        let factors = [numbers.next(), numbers.next()];
        for (i, w) in row.iter_mut().enumerate() {
            *w = (0..2).map(|p| factors[p] as f32 * patterns[p].data()[i]).sum();
        }
    }
    let second = Array::new(vec![ROWS, LEN], second);
    let weight = Array::new(vec![2 * ROWS, 3, 3, 3], [first.data(), second.data()].concat());
    let conv = Conv2d { groups: 2, padding: [1, 1], ..Conv2d::new(2 * ROWS, 3) };
    (one_conv(Shape::map(6, 5, 5), &conv, weight, Some(numbers.array(&[2 * ROWS]))), vec![first, second])
}

fn rank_of(matrix: &Array, energy: f64) -> usize {
    let (rows, cols) = matrix.matrix_dims();
    let sigma = singular_values(&doubles(matrix).collect::<Vec<_>>(), rows, cols);
    let whole: f64 = sigma.iter().map(|s| s * s).sum();
    (1..).find(|m| sigma[..*m].iter().map(|s| s * s).sum::<f64>() >= energy * whole).unwrap()
}

#[test]
fn analysis_tells_each_group_their_sum_and_the_whole() {
    let (model, groups) = unequal();
    let analysis = &analyse(&model, 0.95).unwrap()[0];
    let expected: Vec<usize> = groups.iter().map(|g| rank_of(g, 0.95)).collect();
    assert_eq!(expected[1], 2);
    assert!(expected[0] > 2);
    assert_eq!(analysis.group_ranks, expected);
    assert_eq!(analysis.rank, expected[0] + 2);
    let whole = Array::new(vec![2 * ROWS, LEN], tensor(&model, "conv", 0).data());
    assert_eq!(analysis.whole_rank, rank_of(&whole, 0.95));
    assert_ne!(analysis.whole_rank, analysis.rank, "this case tells the two apart");
    assert_eq!(
        (analysis.full_rank, analysis.groups, analysis.filters, analysis.filter_len),
        (16, 2, 16, LEN)
    );
    assert_eq!(analysis.rank_at_energy(0.5), groups.iter().map(|g| rank_of(g, 0.5)).sum::<usize>());
}

#[test]
fn the_energy_rule_takes_the_largest_group_rank() {
    let (model, groups) = unequal();
    let (pair, report) = decompose(&model, &Settings::default()).unwrap();
    let layer = &report.layers[0];
    let largest = groups.iter().map(|g| rank_of(g, 0.95)).max().unwrap();
    assert_eq!(layer.rank, 2 * largest);
    assert_eq!(
        layer.group_reports.iter().map(|g| g.chosen_rank).collect::<Vec<_>>(),
        [Some(largest), Some(2)]
    );
    assert_eq!(tensor(&pair, "conv_lowrank", 0).dims(), [2 * largest, 3, 3, 3]);
    assert_eq!(tensor(&pair, "conv_linear", 0).dims(), [2 * ROWS, largest, 1, 1]);
    assert!(layer.energy >= 0.95 && layer.energy < 1.0);
    // The squared errors of the groups, weighted by their squared norms, are the layer's.
    let dense = tensor(&model, "conv", 0);
    let measured = relative(doubles(dense), doubles(tensor(&recompose(&pair).unwrap(), "conv", 0)));
    assert!((measured - layer.relative_error).abs() < 1e-6);
    assert!((measured.powi(2) - (1.0 - layer.energy)).abs() < 1e-6);
    assert_eq!(layer.spectrum.as_ref().unwrap().normalised.len(), 16);
    assert!(layer.spectrum.as_ref().unwrap().normalised.windows(2).all(|w| w[0] >= w[1]));
}

#[test]
fn an_explicit_total_is_rounded_down_to_equal_groups() {
    let (model, _) = unequal();
    let at = |rank: usize| {
        let rule = RankRule::by_name([("conv", rank)]);
        decompose(&model, &Settings { rule, ..Settings::default() }).unwrap()
    };
    let (pair, report) = at(7);
    assert_eq!((report.layers[0].requested_rank, report.layers[0].rank), (Some(7.into()), 6));
    assert_eq!(pair, at(6).0);
    assert_eq!(at(16).1.layers[0].rank, 16);
    assert!(report.layers[0].group_reports.iter().all(|g| g.chosen_rank.is_none()));
}

#[test]
fn truncated_groups_do_not_leak_into_each_other() {
    let (model, _) = unequal();
    let (pair, _) = decompose(&model, &Settings::default()).unwrap();
    let recomposed = recompose(&pair).unwrap();
    let mut numbers = Numbers::new(5);
    let image: Vec<f64> = (0..150).map(|_| numbers.next()).collect();
    assert!(relative(evaluate(&recomposed, &image), evaluate(&pair, &image)) < 1e-6);
    // The second group is of rank 2 and so exact at any larger rank, whatever the first one loses.
    let (before, after) = (evaluate(&model, &image), evaluate(&pair, &image));
    let half = before.len() / 2;
    assert!(relative(before[half..].iter().copied(), after[half..].iter().copied()) < 1e-6);
    assert!(relative(before[..half].iter().copied(), after[..half].iter().copied()) > 1e-3);
}
