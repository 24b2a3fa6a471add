//! Pairs multiplied out again.

use crate::oracle::{Numbers, doubles, evaluate, input_of, names, one_conv, relative, tensor};
use cofilter_graph::{Array, Conv2d, Filler, Graph, Init, Linear, Model, Op, Shape};
use cofilter_lowrank::{RankRule, Settings, decompose, recompose};

fn network() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 8, 8)).unwrap();
    let x = b
        .conv2d("conv1", x, Conv2d { stride: [2, 1], padding: [1, 0], groups: 2, ..Conv2d::new(6, 3) })
        .unwrap();
    let x = b.conv2d("conv2", x, Conv2d { bias: false, dilation: [1, 2], ..Conv2d::new(5, 2) }).unwrap();
    let x = b.conv2d("conv3", x, Conv2d { kernel: [3, 4], ..Conv2d::new(7, 1) }).unwrap();
    let init = Init { bias: Filler::Gaussian(1.0), ..Init::default() };
    Model::init(b.finish(&[x]).unwrap(), &init, 4).unwrap()
}

#[test]
fn restores_names_shapes_and_at_full_rank_weights() {
    let dense = network();
    let settings = Settings { rule: RankRule::Full, ..Settings::default() };
    let (pairs, _) = decompose(&dense, &settings).unwrap();
    assert_eq!(pairs.graph().nodes().len(), 7);
    let back = recompose(&pairs).unwrap();
    assert_eq!(back.graph(), dense.graph());
    for (id, slot, array) in dense.params().iter() {
        let restored = &back.tensors(id)[slot];
        match slot {
            0 => assert!(
                relative(doubles(array), doubles(restored)) < 1e-6,
                "{}",
                dense.graph().node(id).name()
            ),
            _ => assert_eq!(array, restored, "biases come back exactly"),
        }
    }
}

#[test]
fn keeps_the_outputs_of_truncated_pairs() {
    let dense = network();
    let (pairs, _) =
        decompose(&dense, &Settings { rule: RankRule::Ratio(0.5), ..Settings::default() }).unwrap();
    assert_eq!(
        names(&pairs)[1..],
        ["conv1_lowrank", "conv1_linear", "conv2_lowrank", "conv2_linear", "conv3_lowrank", "conv3_linear"]
    );
    assert_eq!(input_of(&pairs, "conv2_lowrank"), "conv1_linear");
    let back = recompose(&pairs).unwrap();
    let mut numbers = Numbers::new(6);
    let image: Vec<f64> = (0..256).map(|_| numbers.next()).collect();
    assert!(relative(evaluate(&pairs, &image), evaluate(&back, &image)) < 1e-6);
    assert!(relative(evaluate(&dense, &image), evaluate(&back, &image)) > 1e-3);
}

#[test]
fn a_bias_of_the_basis_passes_through() {
    let mut numbers = Numbers::new(7);
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("c_lowrank", x, Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new(4, 3) }).unwrap();
    let x = b.conv2d("c_linear", x, Conv2d { groups: 2, bias: false, ..Conv2d::new(6, 1) }).unwrap();
    let mut pair = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 4).unwrap();
    let id = pair.graph().find("c_lowrank").unwrap();
    let mut params = pair.params().clone();
    params.get_mut(id)[1] = numbers.array(&[4]);
    pair = pair.with_params(params).unwrap();
    let dense = recompose(&pair).unwrap();
    assert_eq!(names(&dense), ["data", "c"]);
    let image: Vec<f64> = (0..50).map(|_| numbers.next()).collect();
    assert!(relative(evaluate(&pair, &image), evaluate(&dense, &image)) < 1e-6);
}

#[test]
fn what_is_no_pair_stays() {
    let linear = |b: &mut cofilter_graph::GraphBuilder, name: &str, x, n| {
        b.add(name, Op::Linear(Linear { out_features: n, bias: true }), &[x]).unwrap()
    };
    // The middle value is an output; is read twice; names do not match; the second kernel is no 1x1.
    let mut b = Graph::builder();
    let x = b.input("data", Shape::Vector(5)).unwrap();
    let a = linear(&mut b, "a_lowrank", x, 3);
    let y = linear(&mut b, "a_linear", a, 4);
    let c = linear(&mut b, "b_lowrank", y, 3);
    let d = linear(&mut b, "b_linear", c, 3);
    let e = b.sum("sum", &[c, d]).unwrap();
    let f = linear(&mut b, "c_lowrank", e, 3);
    let g = linear(&mut b, "d_linear", f, 4);
    let model = Model::init(b.finish(&[g, a]).unwrap(), &Init::default(), 2).unwrap();
    assert_eq!(recompose(&model).unwrap(), model);

    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let x = b.conv2d("a_lowrank", x, Conv2d::new(3, 3)).unwrap();
    let x = b.conv2d("a_linear", x, Conv2d { padding: [1, 1], ..Conv2d::new(4, 1) }).unwrap();
    let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 2).unwrap();
    assert_eq!(recompose(&model).unwrap(), model);
}

#[test]
fn an_untouched_network_stays_itself() {
    let dense = one_conv(Shape::map(1, 4, 4), &Conv2d::new(2, 2), Array::full(vec![2, 1, 2, 2], 0.5), None);
    assert_eq!(recompose(&dense).unwrap(), dense);
    assert_eq!(tensor(&dense, "conv", 0).data()[0], 0.5);
}
