//! AlexNet whole and as two towers: weights copied both ways, and which values agree.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{Array, Graph, LrnRegion, Model, Op, PoolKind, Shape};
use cofilter_zoo::{Config, Error, Network, alexnet};

/// Small enough for naive loops, large enough for maps of 24x24, 12x12, 6x6 and 3x3.
fn config() -> Config {
    Config { input: Some(Shape::map(3, 103, 103)), classes: Some(5), ..Config::default() }
}

fn whole(seed: u64) -> Model {
    Network::by_name("bvlc_alexnet", &config()).unwrap().model(seed).unwrap()
}

#[test]
fn weights_survive_both_ways_bit_for_bit() {
    let m = whole(3);
    let split = alexnet::split(&m).unwrap();
    assert_eq!(split.graph(), &alexnet::bvlc_split(&config()).unwrap());
    assert_eq!(alexnet::merge(&split).unwrap(), m);

    let s = Network::by_name("bvlc_alexnet_split", &config()).unwrap().model(4).unwrap();
    assert_eq!(alexnet::split(&alexnet::merge(&s).unwrap()).unwrap(), s);

    // With softmax too, and at the published extents.
    let published = Config { softmax: true, ..Config::default() };
    let m = Network::by_name("bvlc_alexnet", &published).unwrap().model(1).unwrap();
    assert_eq!(alexnet::merge(&alexnet::split(&m).unwrap()).unwrap(), m);
}

#[test]
fn towers_hold_the_rows_of_their_half() {
    let m = whole(3);
    let split = alexnet::split(&m).unwrap();
    let tensors = |model: &Model, name: &str| model.tensors(model.graph().find(name).unwrap()).to_vec();
    for layer in ["conv1", "conv2", "conv3", "conv4", "conv5"] {
        let whole = tensors(&m, layer);
        for (slot, array) in whole.iter().enumerate() {
            let half = array.data().len() / 2;
            for group in 0..2 {
                let tower = &tensors(&split, &format!("{layer}_group{group}"))[slot];
                assert_eq!(
                    tower.data(),
                    &array.data()[group * half..(group + 1) * half],
                    "{layer} {group} {slot}"
                );
            }
        }
    }
    assert_eq!(tensors(&m, "fc7"), tensors(&split, "fc7"));
}

#[test]
fn other_networks_are_refused() {
    let m = whole(1);
    let split = alexnet::split(&m).unwrap();
    let lenet = Network::by_name("lenet", &Config::default()).unwrap().model(1).unwrap();
    for e in [alexnet::split(&split), alexnet::merge(&m), alexnet::split(&lenet), alexnet::merge(&lenet)] {
        let e = e.unwrap_err();
        assert!(matches!(e, Error::Form { .. }), "{e}");
    }
    let message = alexnet::split(&split).unwrap_err().to_string();
    assert!(message.contains("bvlc_alexnet") && message.contains("conv1_group0"), "{message}");
    let message = alexnet::split(&without_lrn(&m)).unwrap_err().to_string();
    assert!(message.contains("pool1") && message.contains("norm1"), "{message}");
}

#[test]
fn without_normalisation_both_forms_give_the_same_bits() {
    let m = whole(7);
    let split = alexnet::split(&m).unwrap();
    let image = image(&m, 1.0);
    let a = values(&without_lrn(&m), &image);
    let b = values(&without_lrn(&split), &image);
    for node in ["pool1", "conv3", "relu4", "pool5"] {
        let joined = [b(&format!("{node}_group0")), b(&format!("{node}_group1"))].concat();
        assert_eq!(a(node), joined, "{node}");
    }
    assert_eq!(a("pool2"), b("concat2"));
    let scores = a("fc8");
    assert_eq!(scores, b("fc8"));
    assert!(scores.iter().any(|v| *v != scores[0]), "scores that do not depend on the weights prove nothing");
}

#[test]
fn normalisation_differs_at_the_border_between_the_towers_only() {
    let m = whole(7);
    let split = alexnet::split(&m).unwrap();
    // Responses in the hundreds, as images of bytes give them: else the normalisation hardly does anything.
    let image = image(&m, 100.0);
    let (a, b) = (values(&m, &image), values(&split, &image));
    let joined = [b("norm1_group0"), b("norm1_group1")].concat();
    let plane = joined.len() / 96;
    let differ: Vec<usize> = (0..96)
        .filter(|c| {
            let of = |v: &[f64]| v[c * plane..(c + 1) * plane].to_vec();
            of(&a("norm1")) != of(&joined)
        })
        .collect();
    assert_eq!(differ, [46, 47, 48, 49]);

    let (whole, towers) = (a("fc8"), b("fc8"));
    assert_ne!(whole, towers);
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference: Vec<f64> = whole.iter().zip(&towers).map(|(x, y)| x - y).collect();
    assert!(norm(&difference) < 0.05 * norm(&whole), "{whole:?} and {towers:?}");
}

fn without_lrn(model: &Model) -> Model {
    model
        .rewrite::<cofilter_graph::Error>(|b, id, inputs| match b.old(id).op() {
            Op::Lrn(_) => Ok(inputs[0]),
            _ => b.keep(id, inputs),
        })
        .unwrap()
}

/// A smooth image with detail, of this amplitude.
fn image(model: &Model, amplitude: f64) -> Vec<f64> {
    let len = model.graph().input_shape().elements();
    (0..len).map(|i| amplitude * ((i as f64 * 0.37).sin() + (i as f64 * 0.011).cos())).collect()
}

/// Values of all nodes by name, computed as the formulas say, in f64.
fn values(model: &Model, image: &[f64]) -> impl Fn(&str) -> Vec<f64> + use<> {
    let graph = model.graph().clone();
    let mut all: Vec<Vec<f64>> = Vec::new();
    for (id, node) in graph.iter() {
        let inputs: Vec<(&[f64], Shape)> =
            node.inputs().iter().map(|i| (all[i.index()].as_slice(), graph.node(*i).shape())).collect();
        let value = match node.op() {
            Op::Input { .. } => image.to_vec(),
            op => apply(op, &inputs, node.shape(), model.tensors(id)),
        };
        all.push(value);
    }
    move |name: &str| all[find(&graph, name)].clone()
}

fn find(graph: &Graph, name: &str) -> usize {
    graph.find(name).unwrap().index()
}

fn apply(op: &Op, inputs: &[(&[f64], Shape)], out: Shape, tensors: &[Array]) -> Vec<f64> {
    let (x, shape) = inputs[0];
    let [height, width] = shape.spatial();
    let [out_height, out_width] = out.spatial();
    let mut y = Vec::with_capacity(out.elements());
    let positions = || (0..out_height).flat_map(|i| (0..out_width).map(move |j| (i, j)));
    match op {
        Op::Relu => y.extend(x.iter().map(|v| v.max(0.0))),
        Op::Dropout { .. } | Op::Flatten => y.extend(x),
        Op::Concat => inputs.iter().for_each(|(x, _)| y.extend(*x)),
        Op::Linear(l) => {
            let (w, b) = (tensors[0].data(), tensors[1].data());
            for o in 0..l.out_features {
                let products = x.iter().zip(&w[o * x.len()..]).map(|(x, w)| x * f64::from(*w));
                y.push(products.sum::<f64>() + f64::from(b[o]));
            }
        }
        Op::Conv2d(c) => {
            let (w, b) = (tensors[0].data(), tensors[1].data());
            let channels = shape.channels() / c.groups;
            let [k, s, p] = [c.kernel[0], c.stride[0], c.padding[0]];
            for o in 0..c.out_channels {
                let first = o / (c.out_channels / c.groups) * channels;
                for (i, j) in positions() {
                    let mut sum = f64::from(b[o]);
                    for ch in 0..channels {
                        for (u, v) in (0..k).flat_map(|u| (0..k).map(move |v| (u, v))) {
                            let (r, q) = ((i * s + u).wrapping_sub(p), (j * s + v).wrapping_sub(p));
                            if r < height && q < width {
                                let weight = w[((o * channels + ch) * k + u) * k + v];
                                sum += x[((first + ch) * height + r) * width + q] * f64::from(weight);
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
        Op::Pool2d(pool) => {
            assert_eq!((pool.kind, pool.padding), (PoolKind::Max, [0, 0]));
            let [k, s] = [pool.kernel[0], pool.stride[0]];
            for c in 0..shape.channels() {
                for (i, j) in positions() {
                    let window = (i * s..height.min(i * s + k)).flat_map(|r| {
                        (j * s..width.min(j * s + k)).map(move |q| (c * height + r) * width + q)
                    });
                    y.push(window.map(|at| x[at]).fold(f64::NEG_INFINITY, f64::max));
                }
            }
        }
        Op::Lrn(lrn) => {
            assert_eq!(lrn.region, LrnRegion::AcrossChannels);
            let plane = height * width;
            for (at, v) in x.iter().enumerate() {
                let (c, position) = (at / plane, at % plane);
                let near = c.saturating_sub(lrn.size / 2)..(c + lrn.size / 2 + 1).min(shape.channels());
                let squares: f64 = near.map(|c| x[c * plane + position].powi(2)).sum();
                let scale = f64::from(lrn.k) + f64::from(lrn.alpha) / lrn.size as f64 * squares;
                y.push(v / scale.powf(f64::from(lrn.beta)));
            }
        }
        other => panic!("AlexNet has no {other:?}"),
    }
    assert_eq!(y.len(), out.elements());
    y
}
