//! Decompose, prune, compact: the last stages of the paper in a row.

use crate::build::assert_same_outputs;
use cofilter_lowrank::{Settings, decompose};
use cofilter_sparsity::{Pruning, apply, compact, compression, density, masks_of_zeros, prune_magnitude};
use cofilter_zoo::{Config, Network};

#[test]
fn a_low_rank_lenet_pruned_and_compacted() {
    let dense = Network::by_name("lenet", &Config::default()).unwrap().model(3).unwrap();
    let (low, _) = decompose(&dense, &Settings { linear: true, grow: true, ..Settings::default() }).unwrap();
    let pruning = Pruning { sparsity: 0.97, exclude: vec!["ip2_linear".into()], ..Pruning::default() };
    let (sparse, masks) = prune_magnitude(&low, &pruning).unwrap();
    let zeros: usize = density(&sparse).iter().map(|l| l.weights - l.nonzeros).sum();
    let counted: usize = density(&low).iter().filter(|l| l.name != "ip2_linear").map(|l| l.weights).sum();
    assert_eq!(zeros, (counted as f64 * 0.97).round() as usize);
    assert_eq!(apply(&sparse, &masks).unwrap(), sparse);

    let (small, removals) = compact(&sparse).unwrap();
    assert_same_outputs("lenet", &sparse, &small);
    assert!(removals.iter().any(|r| r.layer.ends_with("_lowrank") && !r.filters.is_empty()), "{removals:?}");
    assert!(small.cost().params() < sparse.cost().params());
    let (before, after) = (compression(&dense, &sparse).unwrap(), compression(&dense, &small).unwrap());
    assert!(after.total.unwrap() >= before.total.unwrap() && before.total.unwrap() > 10.0);
    // What is fine-tuned next keeps the zeros that are left.
    let masks = masks_of_zeros(&small);
    assert_eq!(apply(&small, &masks).unwrap(), small);
    let pair = small.graph().find("ip1_linear").unwrap();
    assert!(masks.get(pair)[0].data().contains(&0.0));
}
