//! Rank rules on spectra that can be computed by hand.

use crate::oracle::{Numbers, one_conv, one_linear, tensor};
use cofilter_graph::{Array, Conv2d, Shape};
use cofilter_lowrank::{RankRule, Settings, analyse, decompose};

/// A diagonal weight: its singular values are the entries.
fn diagonal(entries: &[f32]) -> Array {
    let n = entries.len();
    Array::new(
        vec![n, n],
        (0..n * n).map(|i| if i / n == i % n { entries[i / n] } else { 0.0 }).collect::<Vec<_>>(),
    )
}

#[test]
fn each_rule_on_a_known_spectrum() {
    // Squares 16, 9, 4, 1 of 30: cumulative 0.5333, 0.8333, 0.9667, 1; roots 0.7303, 0.9129, 0.9832, 1.
    let model = one_linear(diagonal(&[-2.0, 4.0, 1.0, 3.0]), None);
    for (rule, rank) in [
        (RankRule::Energy(0.5), 1),
        (RankRule::Energy(16.0 / 30.0 - 1e-12), 1),
        (RankRule::Energy(16.0 / 30.0 + 1e-12), 2),
        (RankRule::Energy(0.95), 3),
        (RankRule::Energy(0.97), 4),
        (RankRule::Energy(1.0), 4),
        (RankRule::Energy(1e-9), 1),
        (RankRule::Norm(0.73), 1),
        (RankRule::Norm(0.74), 2),
        (RankRule::Norm(0.95), 3),
        (RankRule::Norm(0.99), 4),
        (RankRule::Norm(1.0), 4),
        (RankRule::Ratio(0.01), 1),
        (RankRule::Ratio(0.6), 2),
        (RankRule::Ratio(0.7), 3),
        (RankRule::Ratio(1.0), 4),
        (RankRule::by_name([("fc", 2)]), 2),
        (RankRule::Full, 4),
        // 30 / 16 = 1.875.
        (RankRule::StableRank(0.5), 1),
        (RankRule::StableRank(1.0), 2),
        (RankRule::StableRank(2.0), 4),
        (RankRule::StableRank(100.0), 4),
    ] {
        let settings = Settings { rule: rule.clone(), linear: true, grow: true, ..Settings::default() };
        let (_, report) = decompose(&model, &settings).unwrap();
        assert_eq!(report.layers[0].rank, rank, "{rule:?}");
        assert_eq!(report.ranks()["fc"], rank.into());
    }
}

#[test]
fn an_energy_of_one_stops_at_the_true_rank() {
    let model = one_linear(diagonal(&[3.0, 0.0, 2.0, 0.0]), None);
    let settings = Settings { rule: RankRule::Energy(1.0), linear: true, grow: true, ..Settings::default() };
    assert_eq!(decompose(&model, &settings).unwrap().1.layers[0].rank, 2);
}

#[test]
fn norm_rule_is_the_energy_rule_at_the_square() {
    let model = one_linear(Numbers::new(5).decaying(&[30, 40], 0.9), None);
    let spectrum = &analyse(&model, 0.95).unwrap()[0].whole;
    let ranks: Vec<_> = [0.1, 0.5, 0.9, 0.95, 0.99]
        .map(|r: f64| (spectrum.rank_at_norm(r), spectrum.rank_at_energy(r * r)))
        .to_vec();
    assert!(ranks.iter().all(|(a, b)| a == b), "{ranks:?}");
    assert!(ranks.windows(2).all(|w| w[0].0 <= w[1].0) && ranks[0].0 < ranks[4].0, "{ranks:?}");
}

#[test]
fn helpers_on_flat_and_peaked_spectra() {
    let flat = &analyse(&one_linear(diagonal(&[2.0; 7]), None), 0.95).unwrap()[0];
    assert!((flat.stable_rank - 7.0).abs() < 1e-12 && (flat.effective_rank - 7.0).abs() < 1e-12);
    assert_eq!((flat.rank, flat.rank_at_energy(0.5)), (7, 4));
    let peaked = &analyse(&one_linear(diagonal(&[0.0, 5.0, 0.0]), None), 0.95).unwrap()[0];
    assert!((peaked.stable_rank - 1.0).abs() < 1e-12 && (peaked.effective_rank - 1.0).abs() < 1e-12);
    // sigma 3, 1: p = 3/4, 1/4.
    let two = &analyse(&one_linear(diagonal(&[3.0, 1.0]), None), 0.95).unwrap()[0];
    let expected = (-(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln())).exp();
    assert!((two.effective_rank - expected).abs() < 1e-12);
    assert!((two.stable_rank - 10.0 / 9.0).abs() < 1e-12);
}

#[test]
fn what_the_switches_select() {
    let mut b = cofilter_graph::Graph::builder();
    let x = b.input("data", Shape::map(4, 5, 5)).unwrap();
    let x = b.conv2d("conv", x, Conv2d::new(6, 3)).unwrap();
    let x = b.conv2d("point", x, Conv2d::new(8, 1)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 5).unwrap();
    let model =
        cofilter_graph::Model::init(b.finish(&[x]).unwrap(), &cofilter_graph::Init::default(), 3).unwrap();
    let layers = |linear, pointwise, exclude: &[&str]| -> Vec<String> {
        let exclude = exclude.iter().map(|s| (*s).to_owned()).collect();
        let settings = Settings { linear, pointwise, exclude, grow: true, ..Settings::default() };
        decompose(&model, &settings).unwrap().1.layers.into_iter().map(|l| l.name).collect()
    };
    assert_eq!(layers(false, false, &[]), ["conv"]);
    assert_eq!(layers(true, false, &[]), ["conv", "fc"]);
    assert_eq!(layers(false, true, &[]), ["conv", "point"]);
    assert_eq!(layers(true, true, &["conv"]), ["point", "fc"]);
    assert!(layers(false, false, &["conv"]).is_empty());
    assert_eq!(analyse(&model, 0.95).unwrap().len(), 3);
}

#[test]
fn halves_of_a_pair_are_decomposed_only_by_name() {
    let mut numbers = Numbers::new(21);
    let conv = Conv2d::new(8, 3);
    let dense = one_conv(Shape::map(3, 6, 6), &conv, numbers.array(&[8, 3, 3, 3]), None);
    let all = Settings { pointwise: true, rule: RankRule::Ratio(0.5), grow: true, ..Settings::default() };
    let (pair, _) = decompose(&dense, &all).unwrap();
    let (same, report) = decompose(&pair, &all).unwrap();
    assert!(report.layers.is_empty() && same == pair);
    let named = Settings { rule: RankRule::by_name([("conv_lowrank", 2)]), ..all };
    let (again, _) = decompose(&pair, &named).unwrap();
    assert_eq!(tensor(&again, "conv_lowrank_lowrank", 0).dims(), [2, 3, 3, 3]);
}
