//! Global magnitude pruning.

use crate::build::{drawn, edit};
use cofilter_graph::{BatchNorm, Conv2d, Graph, Model, Shape};
use cofilter_sparsity::{Error, Pruning, apply, density, prune_magnitude};

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("conv", x, Conv2d::new(4, 3)).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 5).unwrap();
    drawn(b.finish(&[x]).unwrap(), 1)
}

const WEIGHTS: usize = 72 + 5 * 36;

fn at(sparsity: f64, exclude: &[&str]) -> Pruning {
    Pruning { sparsity, exclude: exclude.iter().map(|s| (*s).to_owned()).collect() }
}

fn weights<'a>(model: &'a Model, layer: &str) -> &'a [f32] {
    model.tensors(model.graph().find(layer).unwrap())[0].data()
}

fn zeros(model: &Model) -> usize {
    density(model).iter().map(|l| l.weights - l.nonzeros).sum()
}

#[test]
fn the_smallest_of_all_layers_go() {
    let model = model();
    for sparsity in [0.0, 0.001, 0.3, 0.77, 0.999] {
        let (sparse, masks) = prune_magnitude(&model, &at(sparsity, &[])).unwrap();
        let wanted = (sparsity * WEIGHTS as f64).round() as usize;
        assert_eq!(zeros(&sparse), wanted, "{sparsity}");
        let pairs =
            || ["conv", "fc"].into_iter().flat_map(|l| weights(&model, l).iter().zip(weights(&sparse, l)));
        let largest_gone = pairs().filter(|(_, a)| **a == 0.0).map(|(b, _)| b.abs()).fold(0.0, f32::max);
        let smallest_kept =
            pairs().filter(|(_, a)| **a != 0.0).map(|(b, _)| b.abs()).fold(f32::MAX, f32::min);
        assert!(largest_gone <= smallest_kept, "{sparsity}: {largest_gone} gone, {smallest_kept} kept");
        assert!(pairs().all(|(b, a)| *a == 0.0 || a == b));
        assert_eq!(apply(&model, &masks).unwrap(), sparse);
        for (id, slot, array) in model.params().iter().filter(|(_, slot, _)| *slot > 0) {
            assert_eq!(*array, sparse.tensors(id)[slot], "biases and statistics stay");
        }
    }
}

#[test]
fn excluded_layers_neither_change_nor_count() {
    let model = model();
    let (sparse, _) = prune_magnitude(&model, &at(0.5, &["fc"])).unwrap();
    assert_eq!(weights(&model, "fc"), weights(&sparse, "fc"));
    assert_eq!(zeros(&sparse), 36);
    let (none, masks) = prune_magnitude(&model, &at(0.5, &["fc", "conv"])).unwrap();
    assert_eq!(none, model);
    assert!(masks.iter().all(|(_, _, m)| m.data().iter().all(|v| *v == 1.0)));
}

#[test]
fn equal_magnitudes_go_in_graph_order() {
    let model = edit(
        &edit(&model(), "conv.weight", |i, _| if i[3] == 1 { -0.5 } else { 0.5 }),
        "fc.weight",
        |_, _| 0.5,
    );
    let (sparse, _) = prune_magnitude(&model, &at(10.0 / WEIGHTS as f64, &[])).unwrap();
    assert!(weights(&sparse, "conv")[..10].iter().all(|w| *w == 0.0));
    assert!(weights(&sparse, "conv")[10..].iter().chain(weights(&sparse, "fc")).all(|w| w.abs() == 0.5));
    let (sparse, _) = prune_magnitude(&model, &at(75.0 / WEIGHTS as f64, &[])).unwrap();
    assert!(weights(&sparse, "conv").iter().chain(&weights(&sparse, "fc")[..3]).all(|w| *w == 0.0));
    assert!(weights(&sparse, "fc")[3..].iter().all(|w| *w == 0.5));
}

#[test]
fn zeros_that_are_there_count_first_and_are_masked() {
    let model = edit(&model(), "fc.weight", |i, v| if i[0] == 0 { -0.0 } else { v });
    let (sparse, masks) = prune_magnitude(&model, &at(0.05, &[])).unwrap();
    // 36 are more than the 13 asked for.
    assert_eq!(zeros(&sparse), 36);
    let mask = &masks.get(model.graph().find("fc").unwrap())[0];
    assert_eq!(mask.data().iter().filter(|m| **m == 0.0).count(), 36);
    assert!(weights(&sparse, "fc")[..36].iter().all(|w| w.to_bits() == 0));
    let (sparse, _) = prune_magnitude(&model, &at(0.5, &[])).unwrap();
    assert_eq!(zeros(&sparse), WEIGHTS / 2);
}

#[test]
fn wrong_requests_are_refused() {
    for sparsity in [-0.1, 1.0, 1.5, f64::NAN] {
        assert!(matches!(prune_magnitude(&model(), &at(sparsity, &[])), Err(Error::Sparsity(_))));
    }
    for name in ["nope", "bn"] {
        let error = prune_magnitude(&model(), &at(0.5, &[name])).unwrap_err();
        assert!(error.to_string().contains(name) && error.to_string().contains("conv, fc"), "{error}");
    }
    let broken = edit(&model(), "conv.weight", |i, v| if i == [0, 0, 0, 0] { f32::INFINITY } else { v });
    assert!(matches!(prune_magnitude(&broken, &at(0.5, &[])), Err(Error::Graph(_))));
}
