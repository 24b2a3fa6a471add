//! Weights projected to a rank, in place.

use crate::oracle::{doubles, relative, tensor};
use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
use cofilter_lowrank::{RankRule, Settings, analyse, decompose, low_rank_random, recompose};
use std::collections::BTreeMap;

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 8, 8)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(12, 3)).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { groups: 2, ..Conv2d::new(16, 3) }).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 10).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 9).unwrap()
}

#[test]
fn leaves_exactly_that_rank() {
    let dense = model();
    let ranks: BTreeMap<String, usize> =
        [("conv1", 5), ("conv2", 7), ("fc", 3)].into_iter().map(|(n, r)| (n.to_owned(), r)).collect();
    let low = low_rank_random(&dense, &ranks).unwrap();
    assert_eq!(low.graph(), dense.graph());
    // An odd total for two groups is rounded down.
    for (analysis, group_rank) in analyse(&low, 0.95).unwrap().iter().zip([5, 3, 3]) {
        for spectrum in &analysis.group_spectra {
            assert!(spectrum.normalised[group_rank - 1] > 1e-3, "{}", analysis.name);
            let tail: f64 = spectrum.normalised[group_rank..].iter().sum();
            assert!(tail < 1e-12, "{}: {tail}", analysis.name);
        }
    }
    let settings = Settings { rule: RankRule::by_name(ranks), linear: true, ..Settings::default() };
    let (_, report) = decompose(&low, &settings).unwrap();
    assert!(report.layers.iter().all(|l| l.relative_error < 1e-6));
    // It is the nearest matrix of that rank: what decomposing the dense network gives.
    let nearest = recompose(&decompose(&dense, &settings).unwrap().0).unwrap();
    for name in ["conv1", "conv2", "fc"] {
        assert!(relative(doubles(tensor(&nearest, name, 0)), doubles(tensor(&low, name, 0))) < 1e-6);
        assert_eq!(tensor(&dense, name, 1), tensor(&low, name, 1));
    }
}

#[test]
fn leaves_other_layers_alone() {
    let dense = model();
    let low = low_rank_random(&dense, &[("conv1".to_owned(), 2)].into()).unwrap();
    assert_eq!(tensor(&dense, "conv2", 0), tensor(&low, "conv2", 0));
    assert_ne!(tensor(&dense, "conv1", 0), tensor(&low, "conv1", 0));
    assert_eq!(low_rank_random(&dense, &BTreeMap::new()).unwrap(), dense);
}
