//! The passes of the graph do not change what a network computes: the oracle says so on both sides.

use crate::numbers::{images, model};
use cofilter_graph::{BatchNorm, Conv2d, Graph, Op, Shape, fold_batch_norm, for_inference};
use cofilter_runtime::reference;

fn net() -> Graph {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 9, 9)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { bias: false, ..Conv2d::new(6, 3) }).unwrap();
    let x = b.batch_norm("bn1", x, BatchNorm { eps: 0.1, ..BatchNorm::default() }).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let x = b.batch_norm("alone", x, BatchNorm::default()).unwrap();
    let y = b.conv2d("conv2", x, Conv2d { groups: 3, stride: [2, 1], ..Conv2d::new(6, 3) }).unwrap();
    let z = b.batch_norm("bn2", y, BatchNorm::default()).unwrap();
    let shared = b.conv2d("shared", x, Conv2d { stride: [2, 1], ..Conv2d::new(6, 3) }).unwrap();
    let normed = b.batch_norm("bn3", shared, BatchNorm::default()).unwrap();
    let x = b.sum("add", &[z, shared, normed]).unwrap();
    let x = b.dropout("drop", x, 0.4).unwrap();
    let head = b.relu("head", x).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 4).unwrap();
    b.finish(&[x, head]).unwrap()
}

fn batch_norms(graph: &Graph) -> usize {
    graph.nodes().iter().filter(|node| matches!(node.op(), Op::BatchNorm(_))).count()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(b.iter().any(|v| v.abs() > 0.1));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn folding_batch_normalisation_keeps_every_output() {
    let model = model(net(), 31);
    let folded = fold_batch_norm(&model).unwrap();
    assert_eq!((batch_norms(model.graph()), batch_norms(folded.graph())), (4, 2));
    let images = images(2 * 243, 3);
    let before = reference::outputs(&model, &images).unwrap();
    let after = reference::outputs(&folded, &images).unwrap();
    assert_eq!((before.len(), before[1].len()), (2, 2 * 6 * 3 * 5));
    for (before, after) in before.iter().zip(&after) {
        // Merged weights are rounded to f32 once.
        assert!(largest_difference(after, before) < 1e-5);
    }
}

#[test]
fn inference_passes_keep_the_main_output() {
    let model = model(net(), 32);
    let lean = for_inference(&model).unwrap();
    assert_eq!(lean.graph().outputs().len(), 1);
    assert!(lean.graph().find("drop").is_err() && lean.graph().find("head").is_err());
    let images = images(243, 4);
    let (before, after) = (reference::run(&model, &images).unwrap(), reference::run(&lean, &images).unwrap());
    assert!(largest_difference(&after, &before) < 1e-5);
}
