//! What is merged, what is not, and that merging changes nothing.

use crate::numbers::{check, images, model, options, run};
use cofilter_graph::{BatchNorm, Conv2d, Graph, GraphBuilder, NodeId, Op, Pool2d, PoolKind, Shape};
use cofilter_runtime::{Options, Plan, Program};

fn conv3(b: &mut GraphBuilder, name: &str, x: NodeId) -> NodeId {
    let channels = b.shape(x).channels();
    b.conv2d(name, x, Conv2d { padding: [1, 1], ..Conv2d::new(channels, 3) }).unwrap()
}

fn steps(graph: Graph) -> Vec<String> {
    let program = Program::lower(&model(graph, 3)).unwrap();
    program.steps().iter().map(|step| step.nodes.join("+")).collect()
}

/// A residual block with a projection, as ResNets have it.
fn block() -> Graph {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 6, 6)).unwrap();
    let a = conv3(&mut b, "conv1", x);
    let a = b.batch_norm("bn1", a, BatchNorm::default()).unwrap();
    let a = b.relu("relu1", a).unwrap();
    let a = conv3(&mut b, "conv2", a);
    let a = b.batch_norm("bn2", a, BatchNorm::default()).unwrap();
    let s = b.conv2d("down", x, Conv2d::new(4, 1)).unwrap();
    let s = b.batch_norm("down_bn", s, BatchNorm::default()).unwrap();
    let a = b.sum("add", &[a, s]).unwrap();
    let a = b.relu("relu2", a).unwrap();
    let a = b.global_avg_pool("pool", a).unwrap();
    let a = b.flatten("flat", a).unwrap();
    let a = b.linear("fc1", a, 5).unwrap();
    let a = b.relu("relu3", a).unwrap();
    let a = b.dropout("drop", a, 0.5).unwrap();
    let a = b.linear("fc2", a, 3).unwrap();
    b.finish(&[a]).unwrap()
}

#[test]
fn followers_join_the_step_before_them() {
    assert_eq!(steps(block()), ["conv1+relu1", "conv2", "down+add+relu2", "pool", "fc1+relu3", "fc2"]);
    check(&model(block(), 3), 2, 1e-5, "residual block");
}

#[test]
fn a_value_that_somebody_else_reads_stays() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let c = conv3(&mut b, "conv", x);
    let r = b.relu("relu", c).unwrap();
    let s = b.sum("add", &[c, r]).unwrap();
    let graph = b.finish(&[s]).unwrap();
    assert_eq!(steps(graph.clone()), ["conv", "relu", "add"]);
    check(&model(graph, 5), 2, 1e-5, "two readers");

    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let c = conv3(&mut b, "conv", x);
    let twice = b.sum("add", &[c, c]).unwrap();
    let graph = b.finish(&[twice]).unwrap();
    assert_eq!(steps(graph.clone()), ["conv", "add"]);
    check(&model(graph, 5), 2, 1e-5, "a convolution added to itself");
}

#[test]
fn a_long_sum_becomes_steps_of_two_and_a_convolution_takes_the_last() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let c = conv3(&mut b, "conv", x);
    let pool = Pool2d { padding: [1, 1], ..Pool2d::torch(PoolKind::Max, 3, 1) };
    let p = b.pool2d("pool", x, pool).unwrap();
    let s = b.sum("add", &[p, c, x, p]).unwrap();
    let r = b.relu("relu", s).unwrap();
    let graph = b.finish(&[r]).unwrap();
    assert_eq!(steps(graph.clone()), ["pool", "add", "add", "conv+add+relu"]);
    check(&model(graph, 7), 3, 1e-5, "a sum of four");
}

#[test]
fn a_rectified_value_may_be_read_again() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let p = b.pool2d("pool", x, Pool2d::caffe(PoolKind::Max, 3, 2)).unwrap();
    let r = b.relu("relu", p).unwrap();
    let q = b.relu("of_images", x).unwrap();
    let q = b.pool2d("pool2", q, Pool2d::caffe(PoolKind::Average, 3, 2)).unwrap();
    let kept = b.relu("kept", q).unwrap();
    let s = b.sum("add", &[r, kept, q]).unwrap();
    let model = model(b.finish(&[s]).unwrap(), 9);
    check(&model, 2, 1e-5, "rectified");
}

#[test]
fn flattening_dropout_and_a_network_without_steps_are_views() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 3, 3)).unwrap();
    let x = b.dropout("drop", x, 0.5).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let model = model(b.finish(&[x]).unwrap(), 1);
    let program = Program::lower(&model).unwrap();
    assert_eq!((program.steps().len(), program.output().id), (0, 0));
    let images = images(4 * 18, 2);
    assert_eq!(run(&model, &options(4, 1), &images), images);
}

#[test]
fn a_value_at_the_output_survives() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let first = b.relu("first", x).unwrap();
    let second = b.relu("second", first).unwrap();
    let auxiliary = b.relu("auxiliary", second).unwrap();
    let model = model(b.finish(&[second, auxiliary]).unwrap(), 1);
    assert_eq!(Program::lower(&model).unwrap().steps().len(), 2, "the auxiliary head is gone");
    check(&model, 2, 0.0, "main output");
}

/// The network that ends in `relu(conv + other)`, merged; and the same with every value kept by a concatenation.
fn kept_apart(merged: bool) -> Graph {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 7, 5)).unwrap();
    let c = conv3(&mut b, "conv", x);
    let s = b.sum("add", &[c, x]).unwrap();
    let r = b.relu("relu", s).unwrap();
    if merged {
        return b.finish(&[r]).unwrap();
    }
    let all = b.concat("all", &[r, c, s]).unwrap();
    b.finish(&[all]).unwrap()
}

#[test]
fn merged_and_separate_steps_agree() {
    let (merged, separate) = (model(kept_apart(true), 4), model(kept_apart(false), 4));
    assert_eq!(steps(kept_apart(true)), ["conv+add+relu"]);
    assert_eq!(steps(kept_apart(false)), ["conv", "add", "relu", "all"]);
    let images = images(2 * 3 * 7 * 5, 6);
    let (merged, separate) = (run(&merged, &options(2, 1), &images), run(&separate, &options(2, 1), &images));
    for image in 0..2 {
        let merged = &merged[image * 105..(image + 1) * 105];
        let separate = &separate[image * 315..image * 315 + 105];
        assert!(merged.iter().any(|v| *v > 0.1));
        for (a, b) in merged.iter().zip(separate) {
            // The kernel may add bias and other operand in another order: one rounding apart.
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} and {b}");
        }
    }
}

#[test]
fn the_arena_holds_what_lives_at_once_and_no_more() {
    let mut b = Graph::builder();
    let mut x = b.input("data", Shape::map(8, 16, 16)).unwrap();
    for i in 0..20 {
        x = conv3(&mut b, &format!("conv{i}"), x);
    }
    let model = model(b.finish(&[x]).unwrap(), 2);
    let arena_bytes =
        |batch| Plan::compile(&model, &Options { batch, ..Options::default() }).unwrap().memory().arena_bytes;
    // What is read and what is written: a block of 16 channels each, with a border for the padding.
    assert_eq!(arena_bytes(5) - arena_bytes(4), 2 * 16 * 18 * 18 * 4);
}

#[test]
fn every_step_counts_the_operations_of_its_nodes() {
    let model = model(block(), 3);
    let lean = cofilter_graph::for_inference(&model).unwrap();
    let program = Program::lower(&model).unwrap();
    let macs: usize = program.steps().iter().map(|s| s.macs).sum();
    assert_eq!(macs, lean.cost().macs());
    let conv1 = &program.steps()[0];
    assert!(matches!(conv1.op, Op::Conv2d(_)));
    assert_eq!(conv1.macs, 4 * 4 * 9 * 36);
}
