//! Networks of Caffe: real ones with their measured accuracies, small ones in text, damaged ones.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use cofilter_formats::{Error, caffe};
use cofilter_graph::{Op, PoolKind, Rounding, Shape};
use std::path::{Path, PathBuf};

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("COFILTER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    let found = data.join("weights/caffe").is_dir();
    if !found {
        println!("skipped: no ../shared/data");
    }
    found.then_some(data)
}

#[test]
fn real_networks_of_every_format_are_read() {
    let Some(data) = data() else { return };
    let folder = data.join("weights/caffe");
    for (description, tensors, nodes) in [
        ("lenet.prototxt", "lenet_iter_10000.v1.caffemodel", 10),
        ("lenet.prototxt", "lenet_iter_10000.v2.caffemodel", 10),
        ("cifar10_full.prototxt", "cifar10_full_iter_70000.v1.caffemodel", 15),
        ("cifar10_full.v1.prototxt", "cifar10_full_iter_70000.v1.caffemodel", 15),
        ("cifar10_full.prototxt", "cifar10_full_iter_70000.v2.caffemodel", 15),
        ("cifar10_quick.prototxt", "cifar10_quick_iter_5000.v1.caffemodel", 14),
        ("cifar10_quick.prototxt", "cifar10_quick_iter_5000.caffemodel.h5", 14),
    ] {
        let found = caffe::import(&folder.join(description), &folder.join(tensors), None).unwrap();
        assert_eq!(found.model.graph().nodes().len(), nodes, "{tensors}: {:?}", found.model.graph());
        assert_eq!(found.model.graph().output_shape(), Shape::Vector(10));
    }
    let (extents, numbers) = caffe::mean(&folder.join("cifar10_mean.binaryproto")).unwrap();
    assert_eq!((extents, numbers.len()), ([3, 32, 32], 3072));
}

/// Name of a layer; extents and numbers of its tensors.
type Trained<'a> = (&'a str, &'a [(&'a [i64], &'a [f32])]);

/// A description with these tensors.
fn import(text: &str, blobs: &[Trained<'_>]) -> Result<cofilter_graph::Artifact, Error> {
    caffe::from_bytes(
        text.as_bytes(),
        Path::new("net.prototxt"),
        caffemodel(blobs),
        Path::new("net.caffemodel"),
        None,
    )
}

/// The bytes of a `.caffemodel`.
fn caffemodel(layers: &[Trained<'_>]) -> Vec<u8> {
    fn varint(mut value: u64, to: &mut Vec<u8>) {
        while value >= 128 {
            to.push((value & 127) as u8 | 128);
            value >>= 7;
        }
        to.push(value as u8);
    }
    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        varint(number << 3 | 2, &mut bytes);
        varint(content.len() as u64, &mut bytes);
        bytes.extend(content);
        bytes
    }
    let mut file = Vec::new();
    for (name, blobs) in layers {
        let mut layer = field(1, name.as_bytes());
        for (dims, numbers) in *blobs {
            let mut packed = Vec::new();
            dims.iter().for_each(|dim| varint(dim.cast_unsigned(), &mut packed));
            let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            layer.extend(field(7, &[field(5, &data), field(7, &field(1, &packed))].concat()));
        }
        file.extend(field(100, &layer));
    }
    file
}

const HEAD: &str = "name: 'small' input: \"data\" input_shape { dim: 1 dim: 2 dim: 5 dim: 5 }\n";

#[test]
fn batch_norm_and_scale_are_one_node() {
    let text = format!(
        "{HEAD}
        layer {{ name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv'
          convolution_param {{ num_output: 2 kernel_size: 1 bias_term: false }} }} # a comment
        layer {{ name: 'bn' type: 'BatchNorm' bottom: 'conv' top: 'conv' batch_norm_param {{ eps: 0.5 }} }}
        layer {{ name: 'scale' type: 'Scale' bottom: 'conv' top: 'conv' scale_param {{ bias_term: true }} }}
        layer {{ name: 'alone' type: 'BatchNorm' bottom: 'conv' top: 'out' }}
        layer {{ name: 'relu' type: 'ReLU' bottom: 'out' top: 'out' }}"
    );
    let statistics: &[(&[i64], &[f32])] = &[(&[2], &[2.0, 4.0]), (&[2], &[8.0, 16.0]), (&[1], &[4.0])];
    let found = import(
        &text,
        &[
            ("conv", &[(&[2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0])]),
            ("bn", statistics),
            ("scale", &[(&[2], &[3.0, 5.0]), (&[2], &[7.0, 9.0])]),
            ("alone", statistics),
        ],
    )
    .unwrap()
    .model;
    let names: Vec<&str> = found.graph().nodes().iter().map(|node| node.name()).collect();
    assert_eq!(names, ["data", "conv", "bn", "alone", "relu"]);
    let bn = found.graph().find("bn").unwrap();
    let tensors: Vec<&[f32]> = found.tensors(bn).iter().map(|tensor| tensor.data()).collect();
    assert_eq!(tensors, [&[3.0, 5.0], &[7.0, 9.0], &[0.5, 1.0], &[2.0, 4.0]]);
    assert!(matches!(found.graph().node(bn).op(), Op::BatchNorm(bn) if bn.eps == 0.5));
    let alone = found.tensors(found.graph().find("alone").unwrap());
    assert_eq!([alone[0].data(), alone[1].data()], [&[1.0, 1.0], &[0.0, 0.0]]);
}

#[test]
fn layers_of_training_are_left_out() {
    let text = format!(
        "{HEAD}
        layer {{ name: 'data' type: 'Data' top: 'data' top: 'label' include {{ phase: TRAIN }} }}
        layer {{ name: 'pool' type: POOLING bottom: 'data' top: 'pool'
          pooling_param {{ pool: AVE kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 }} }}
        layer {{ name: 'ip' type: 'InnerProduct' bottom: 'pool' top: 'ip' inner_product_param {{ num_output: 1 }} }}
        layer {{ name: 'loss' type: 'SoftmaxWithLoss' bottom: 'ip' bottom: 'label' top: 'loss' }}
        layer {{ name: 'accuracy' type: 'Accuracy' bottom: 'ip' bottom: 'label' top: 'accuracy' include: {{ phase: TEST }} }}"
    );
    let found = import(&text, &[("ip", &[(&[1, 18], &[1.0; 18]), (&[1], &[0.0])])]).unwrap();
    assert_eq!(found.provenance.network.as_deref(), Some("small"));
    let graph = found.model.graph();
    assert_eq!(graph.output_shape(), Shape::Vector(1));
    let Op::Pool2d(pool) = graph.node(graph.find("pool").unwrap()).op() else { panic!("{graph:?}") };
    assert_eq!((pool.kind, pool.rounding, pool.kernel), (PoolKind::Average, Rounding::Ceil, [3, 2]));
}

#[test]
fn everything_unsupported_is_listed_at_once() {
    let text = format!(
        "{HEAD}
        layer {{ name: 'a' type: 'Sigmoid' bottom: 'data' top: 'a' }}
        layer {{ name: 'b' type: 'ReLU' bottom: 'a' top: 'b' }}
        layer {{ name: 'c' type: 'Convolution' bottom: 'data' top: 'c' convolution_param {{ num_output: 2 kernel_size: 3 }} }}
        layer {{ name: 'd' type: 'ReLU' bottom: 'data' top: 'd' relu_param {{ negative_slope: 0.1 }} }}
        layer {{ name: 'e' type: 'Pooling' bottom: 'nowhere' top: 'e' pooling_param {{ kernel_size: 2 }} }}
        layer {{ name: 'f' type: 'Concat' bottom: 'data' bottom: 'data' top: 'f' concat_param {{ weird: 1 }} }}"
    );
    let error = import(&text, &[("c", &[(&[2, 2, 3, 2], &[0.0; 24]), (&[2], &[0.0; 2])])]).unwrap_err();
    let Error::Unsupported { problems, .. } = &error else { panic!("{error}") };
    let expected = [
        "layer `a` (Sigmoid): is not supported",
        "layer `c` (Convolution): weight: expected [2, 2, 3, 3], found [2, 2, 3, 2]",
        "layer `d` (ReLU): negative_slope 0.1",
        "layer `e` (Pooling): reads `nowhere`",
        "layer `f` (Concat): `weird` in concat_param",
    ];
    assert_eq!(problems.len(), expected.len(), "{error}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn damaged_descriptions_name_the_line() {
    for (text, reason) in [
        ("name: 'a\nlayer {}", "line 1: a string does not end"),
        ("layer {\n name: 'a'", "line 2: the file ends where `}` is expected"),
        ("layer }", "line 1: expected `:` or a message after `layer`"),
        ("a: [1, 2\n", "expected a name or a value, found the end"),
        (&"a { ".repeat(100), "nested"),
    ] {
        let error = import(text, &[("a", &[(&[1], &[1.0])])]).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("net.prototxt"), "{error}");
    }
    let error = import("name: 'a'", &[]).unwrap_err().to_string();
    assert!(error.contains("net.caffemodel: not a caffemodel"), "{error}");
    let error = import("name: 'a'", &[("a", &[(&[1], &[1.0])])]).unwrap_err().to_string();
    assert!(error.contains("--image CxHxW"), "{error}");
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/caffe")
}

fn tensor(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixtures().join("tiny.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// All forms of one network, through the f64 reference, against PyTorch; and as an ONNX file, in standard ops.
#[test]
fn a_network_gives_its_result() {
    for name in ["tiny.caffemodel", "tiny.v1.caffemodel", "tiny.caffemodel.h5"] {
        let found = caffe::import(&fixtures().join("tiny.prototxt"), &fixtures().join(name), None).unwrap();
        let bytes = cofilter_formats::onnx::to_bytes(&found).unwrap();
        let back = cofilter_formats::onnx::from_bytes(bytes, Path::new("tiny.onnx"), None).unwrap();
        for model in [found.model, back.model] {
            let output = cofilter_runtime::reference::run(&model, &tensor("input")).unwrap();
            let expected = tensor("output");
            assert_eq!(output.len(), expected.len(), "{name}");
            for (found, expected) in output.iter().zip(expected) {
                assert!((found - f64::from(expected)).abs() <= 1e-6, "{name}: {found} {expected}");
            }
        }
    }
}

/// A batch normalisation whose result others read too keeps it apart from the factors.
#[test]
fn batch_norm_is_merged_with_its_scale_only_where_nobody_sees_it() {
    let text = format!(
        "{HEAD}
        layer {{ name: 'bn' type: 'BatchNorm' bottom: 'data' top: 'bn' }}
        layer {{ name: 'scale' type: 'Scale' bottom: 'bn' top: 'scaled' }}
        layer {{ name: 'sum' type: 'Eltwise' bottom: 'bn' bottom: 'scaled' top: 'sum' }}"
    );
    let statistics: &[(&[i64], &[f32])] = &[(&[2], &[2.0, 4.0]), (&[2], &[4.0, 16.0]), (&[1], &[2.0])];
    let found = import(&text, &[("bn", statistics), ("scale", &[(&[2], &[3.0, 5.0])])]).unwrap().model;
    let names: Vec<&str> = found.graph().nodes().iter().map(|node| node.name()).collect();
    assert_eq!(names, ["data", "bn", "scale", "sum"]);
    let output = cofilter_runtime::reference::run(&found, &[7.0; 50]).unwrap();
    // (7 - 1) / sqrt(2) once and three times; (7 - 2) / sqrt(8) once and five times.
    let expected = [6.0 / (2.0_f64 + 1e-5).sqrt() * 4.0, 5.0 / (8.0_f64 + 1e-5).sqrt() * 6.0];
    assert!((output[0] - expected[0]).abs() < 1e-6 && (output[49] - expected[1]).abs() < 1e-6, "{output:?}");
}

#[test]
fn what_would_change_the_result_is_refused() {
    for (layer, reason) in [
        ("name: 'a' type: 'ReLU' bottom: 'data' top: 'a' include { stage: 'deploy' }", "include by `stage`"),
        ("name: 'a' type: 'Softmax' bottom: 'data' top: 'a'", "is at each position of a map"),
        (
            "name: 'a' type: 'Dropout' bottom: 'data' top: 'a' dropout_param { scale_train: false }",
            "scale_train",
        ),
        (
            "name: 'a' type: 'Pooling' bottom: 'data' top: 'a' top: 'mask' pooling_param { kernel_size: 2 }",
            "gives 2 blobs",
        ),
        ("name: 'a' type: 'ArgMax' bottom: 'data' top: 'a'", "is not supported"),
    ] {
        let error = import(&format!("{HEAD} layer {{ {layer} }}"), &[("b", &[(&[1], &[1.0])])])
            .unwrap_err()
            .to_string();
        assert!(error.contains("layer `a`") && error.contains(reason), "{error}");
    }
}
