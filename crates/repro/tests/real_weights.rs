//! Decompositions of real trained weights, those of `../shared/data`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use cofilter_formats::StateDict;
use cofilter_graph::{Array, Conv2d, Graph, Linear, Model, Op, Params, Shape};
use cofilter_lowrank::{Method, RankRule, Settings, decompose};
use cofilter_runtime::reference;
use std::path::{Path, PathBuf};

fn weights() -> Option<PathBuf> {
    let data = std::env::var_os("COFILTER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    let weights = data.join("weights");
    if !weights.is_dir() {
        println!("skipped: no ../shared/data");
        return None;
    }
    Some(weights)
}

fn network(weights: &Path, name: &str, file: &str) -> Model {
    let graph = cofilter_zoo::by_name(name, &cofilter_zoo::Config::default()).unwrap();
    StateDict::read(weights.join(file)).unwrap().into_model(name, graph).unwrap()
}

fn images(model: &Model, count: usize) -> Vec<f32> {
    let len = model.graph().input_shape().elements();
    (0..count * len).map(|i| ((i * 7919) % 2048) as f32 / 1024.0 - 1.0).collect()
}

/// Distance of the outputs of two networks, relative to those of the first.
fn distance(a: &Model, b: &Model, images: &[f32]) -> f64 {
    let [a, b] = [a, b].map(|model| reference::run(model, images).unwrap());
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

fn one(name: &str, input: Shape, op: Op, weight: Array) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", input).unwrap();
    let x = b.add(name, op, &[x]).unwrap();
    Model::new(b.finish(&[x]).unwrap(), Params::new(vec![vec![], vec![weight]])).unwrap()
}

/// The weights of a real layer in every form that a layer can have.
fn forms(weight: &Array) -> Vec<(&'static str, Model)> {
    let [filters, channels, rows, columns] = *weight.dims() else { panic!("no convolution") };
    let plain = Conv2d { kernel: [rows, columns], bias: false, ..Conv2d::new(filters, 1) };
    let conv = |form, channels, conv: Conv2d| {
        (form, one("conv", Shape::map(channels, 7, 6), Op::Conv2d(conv), weight.clone()))
    };
    let len = channels * rows * columns;
    let mut all = vec![
        conv("plain", channels, Conv2d { padding: [1, 1], ..plain.clone() }),
        conv("strided", channels, Conv2d { stride: [2, 3], ..plain.clone() }),
        conv("dilated", channels, Conv2d { dilation: [2, 2], padding: [2, 2], ..plain.clone() }),
        conv("grouped", 4 * channels, Conv2d { groups: 4, padding: [1, 0], ..plain.clone() }),
    ];
    let flat = Array::new(vec![filters, len, 1, 1], weight.data().to_vec());
    let pointwise = Conv2d { kernel: [1, 1], ..plain };
    all.push(("1x1", one("conv", Shape::map(len, 2, 2), Op::Conv2d(pointwise), flat)));
    let flat = Array::new(vec![filters, len], weight.data().to_vec());
    let op = Op::Linear(Linear { out_features: filters, bias: false });
    all.push(("fully connected", one("conv", Shape::Vector(len), op, flat)));
    all
}

#[test]
fn real_weights_at_full_rank_are_the_identity_in_every_form() {
    let Some(weights) = weights() else { return };
    let model = network(&weights, "resnet20", "resnet20-12fca82f.th");
    let mut worst = 0.0f64;
    for layer in ["conv1", "layer1.1.conv1", "layer2.0.conv1", "layer3.2.conv2"] {
        let weight = &model.tensors(model.graph().find(layer).unwrap())[0];
        for (form, dense) in forms(weight) {
            // CP has no full rank.
            for method in Method::ALL.into_iter().filter(|method| *method != Method::Cp) {
                let settings = |rule| Settings {
                    method,
                    rule,
                    linear: true,
                    pointwise: true,
                    grow: true,
                    ..Settings::default()
                };
                let (small, report) = decompose(&dense, &settings(RankRule::Full)).unwrap();
                assert_eq!(report.layers[0].rank, report.layers[0].full_rank);
                let off = distance(&dense, &small, &images(&dense, 2));
                assert!(off < 1e-6, "{layer}, {form}, {method:?}: {off}");
                worst = worst.max(off);
                // What is cut off is what is lost, where theory says so: one matrix is cut, and the best of its rank kept.
                if matches!(method, Method::Pca | Method::Svd | Method::Spatial | Method::Channel) {
                    let (_, report) = decompose(&dense, &settings(RankRule::Energy(0.8))).unwrap();
                    let of = &report.layers[0];
                    let off = (of.relative_error.powi(2) - (1.0 - of.energy)).abs();
                    assert!(off < 1e-6, "{layer}, {form}, {method:?}: {off}");
                }
            }
        }
    }
    println!("largest error of outputs: {worst:.1e}");
}

#[test]
fn real_networks_at_full_rank_give_the_same_outputs() {
    let Some(weights) = weights() else { return };
    for (name, file) in [("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")] {
        let dense = network(&weights, name, file);
        let images = images(&dense, 1);
        for method in Method::ALL.into_iter().filter(|method| *method != Method::Cp) {
            let settings = Settings {
                method,
                rule: RankRule::Full,
                linear: true,
                pointwise: true,
                ..Settings::default()
            };
            let (small, report) = decompose(&dense, &settings).unwrap();
            assert!(report.kept.is_empty(), "{name}, {method:?}");
            let off = distance(&dense, &small, &images);
            println!("{name}, {}: {off:.1e}", method.name());
            assert!(off < 1e-5, "{name}, {method:?}: {off}");
        }
    }
}
