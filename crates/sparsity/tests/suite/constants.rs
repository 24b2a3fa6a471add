//! Channels that are one number everywhere go into biases, where that is exact.

use crate::build::{assert_same_outputs, drawn, edit, extents};
use cofilter_graph::{Conv2d, Graph, GraphBuilder, LrnRegion, Model, NodeId, Pool2d, PoolKind, Shape};
use cofilter_sparsity::compact;

/// conv1 with filter 1 zero and bias `bias`, then what `middle` adds, then conv2.
fn between(bias: f32, conv2: Conv2d, middle: impl Fn(&mut GraphBuilder, NodeId) -> NodeId) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 8, 8)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(4, 3)).unwrap();
    let x = middle(&mut b, x);
    let x = b.conv2d("conv2", x, conv2).unwrap();
    let model = drawn(b.finish(&[x]).unwrap(), 5);
    let model = edit(&model, "conv1.weight", |i, v| if i[0] == 1 { 0.0 } else { v });
    edit(&model, "conv1.bias", |i, v| if i[0] == 1 { bias } else { v })
}

fn filters_left(what: &str, model: &Model) -> usize {
    let (small, _) = compact(model).unwrap();
    assert_same_outputs(what, model, &small);
    extents(&small, "conv1")[0]
}

fn relu(b: &mut GraphBuilder, x: NodeId) -> NodeId {
    b.relu("relu", x).unwrap()
}

fn pool(kind: PoolKind, padding: usize, count_padding: bool) -> impl Fn(&mut GraphBuilder, NodeId) -> NodeId {
    move |b, x| {
        let pool = Pool2d { padding: [padding; 2], count_padding, ..Pool2d::caffe(kind, 3, 2) };
        b.pool2d("pool", x, pool).unwrap()
    }
}

fn lrn(region: LrnRegion) -> impl Fn(&mut GraphBuilder, NodeId) -> NodeId {
    move |b, x| {
        b.lrn("lrn", x, cofilter_graph::Lrn { region, size: 3, alpha: 0.5, beta: 0.75, k: 1.0 }).unwrap()
    }
}

#[test]
fn where_a_constant_is_exact() {
    let plain = Conv2d::new(3, 3);
    let padded = Conv2d { padding: [1, 1], ..plain.clone() };
    let bare = Conv2d { bias: false, ..plain.clone() };
    let max = || pool(PoolKind::Max, 1, true);
    for (what, left, model) in [
        ("folded", 3, between(0.8, plain.clone(), relu)),
        ("border differs", 4, between(0.8, padded.clone(), relu)),
        ("no bias to take it", 4, between(0.8, bare.clone(), relu)),
        ("cut to zero", 3, between(-0.8, padded.clone(), relu)),
        ("cut to zero, no bias", 3, between(-0.8, bare, relu)),
        ("maximum pooling", 3, between(0.8, plain.clone(), max())),
        ("negative, maximum pooling", 3, between(-0.8, plain.clone(), max())),
        ("average over the inside", 3, between(0.8, plain.clone(), pool(PoolKind::Average, 0, true))),
        (
            "average with padding not counted",
            3,
            between(0.8, plain.clone(), pool(PoolKind::Average, 1, false)),
        ),
        ("average with padding counted", 4, between(0.8, plain.clone(), pool(PoolKind::Average, 1, true))),
        ("zero, padding counted", 3, between(0.0, plain.clone(), pool(PoolKind::Average, 1, true))),
        ("zero within its channel", 3, between(0.0, padded, lrn(LrnRegion::WithinChannel))),
        ("constant within its channel", 4, between(0.8, plain.clone(), lrn(LrnRegion::WithinChannel))),
        ("zero across channels", 4, between(0.0, plain, lrn(LrnRegion::AcrossChannels))),
    ] {
        assert_eq!(filters_left(what, &model), left, "{what}");
    }
}

#[test]
fn a_constant_passes_through_a_flattened_vector() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(4, 3)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc1", x, 6).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.linear("fc2", x, 3).unwrap();
    let model = drawn(b.finish(&[x]).unwrap(), 5);
    let model = edit(&model, "conv1.weight", |i, v| if i[0] == 2 { 0.0 } else { v });
    let model = edit(&model, "fc1.weight", |i, v| if i[0] == 5 { 0.0 } else { v });
    let model = edit(&model, "fc1.bias", |i, v| if i[0] == 5 { 2.0 } else { v });
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("vector", &model, &small);
    assert_eq!(
        (extents(&small, "conv1"), extents(&small, "fc1"), extents(&small, "fc2")),
        ([3, 2], [5, 27], [3, 5])
    );
}

#[test]
fn a_filter_on_constants_is_constant() {
    // conv2 filter 0 reads the constant channel 1 of conv1 only, conv3 folds what comes of it.
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 8, 8)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(4, 3)).unwrap();
    let x = b.conv2d("conv2", x, Conv2d::new(5, 2)).unwrap();
    let x = b.conv2d("conv3", x, Conv2d::new(2, 2)).unwrap();
    let model = drawn(b.finish(&[x]).unwrap(), 6);
    let model = edit(&model, "conv1.weight", |i, v| if i[0] == 1 { 0.0 } else { v });
    let model = edit(&model, "conv2.weight", |i, v| if i[0] == 0 && i[1] != 1 { 0.0 } else { v });
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("constants", &model, &small);
    assert_eq!(
        (extents(&small, "conv1"), extents(&small, "conv2"), extents(&small, "conv3")),
        ([3, 2], [4, 3], [2, 4])
    );
}

#[test]
fn a_padded_filter_on_constants_differs_at_the_border() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 8, 8)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(4, 3)).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { padding: [1, 1], ..Conv2d::new(5, 3) }).unwrap();
    let x = b.conv2d("conv3", x, Conv2d::new(2, 2)).unwrap();
    let model = drawn(b.finish(&[x]).unwrap(), 6);
    let model = edit(&model, "conv1.weight", |i, v| if i[0] == 1 { 0.0 } else { v });
    let model = edit(&model, "conv2.weight", |i, v| if i[0] == 0 && i[1] != 1 { 0.0 } else { v });
    assert_eq!(compact(&model).unwrap().0, model);
}
