//! ONNX files: those of PyTorch's exporters, our own, and what is not supported.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use cofilter_formats::{Error, onnx, verify};
use cofilter_graph::{
    Artifact, Conv2d, Graph, Init, Lrn, LrnRegion, Model, Pool2d, PoolKind, Preprocessing, Rounding, Shape,
};
use cofilter_lowrank::{RankRule, Settings, decompose};
use cofilter_runtime::reference;
use cofilter_zoo::{Config, Network};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/onnx")
}

/// Extents and numbers of a tensor of a safetensors file.
fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Every committed file, through the f64 reference, against what wrote it.
#[test]
fn networks_of_other_exporters_give_their_results() {
    let (mut count, mut settings) = (0, 0);
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let network = name.split('.').next().unwrap();
        let expected = fixtures().join(format!("{network}.safetensors"));
        let model = onnx::import(&path, None).unwrap_or_else(|error| panic!("{error}")).model;
        let outputs = reference::outputs(&model, &tensor(&expected, "input")).unwrap();
        for (at, found) in outputs.iter().enumerate() {
            let output = if at == 0 { "output".into() } else { format!("output{at}") };
            let expected = tensor(&expected, &output);
            assert_eq!(found.len(), expected.len(), "{name} {output}");
            let largest = expected.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - f64::from(*expected)).abs();
                assert!(error <= 1e-5 * f64::from(largest), "{name} {output}: {found} {expected}");
            }
        }
        settings += outputs.len();
        count += 1;
    }
    assert_eq!((count, settings), (16, 113), "files in fixtures/onnx, and their outputs");
}

#[test]
fn layers_keep_the_names_of_their_weights() {
    for exporter in ["old17", "dynamo"] {
        let model = onnx::import(&fixtures().join(format!("branches.{exporter}.onnx")), None).unwrap().model;
        for name in ["conv1", "grouped", "wide", "bn2", "fc"] {
            assert!(model.graph().find(name).is_ok(), "{exporter}: {name} of {:?}", model.graph());
        }
    }
}

/// Writes a model and reads it back.
fn there_and_back(artifact: &Artifact) -> Artifact {
    let bytes = onnx::to_bytes(artifact).unwrap();
    onnx::from_bytes(bytes, Path::new("written.onnx"), None).unwrap()
}

#[test]
fn networks_of_the_zoo_come_back() {
    for name in cofilter_zoo::NAMES {
        // Deep ones on small images; what pools to fixed extents needs its own.
        let small = name.starts_with("resnet")
            && !name.contains("_projection")
            && ["18", "34", "50"].iter().any(|d| name.ends_with(d));
        let input = small.then(|| Shape::map(3, 64, 64));
        let network = Network::by_name(name, &Config { input, ..Config::default() }).unwrap();
        // From some published starts the scores are hardly more than the last bias, whatever the other layers do.
        let model = Model::init(network.graph, &Init::default(), 1).unwrap();
        let settings = Settings { rule: RankRule::Energy(0.5), ..Settings::default() };
        let (low, _) = decompose(&model, &settings).unwrap();
        for model in [model, low] {
            let back = there_and_back(&Artifact::new(model.clone()));
            let agreement = verify(&model, &back.model, 1, 1).unwrap();
            assert!(agreement.largest_error <= 1e-5, "{name}: {agreement:?}");
        }
    }
}

/// Ops that ONNX has in another form, over extents where windows stick out or do not.
#[test]
fn ops_without_a_counterpart_come_back() {
    for extent in [7, 8, 9, 10] {
        for (kernel, stride, padding) in [(3, 2, 0), (3, 2, 1), (2, 2, 1), (3, 1, 1), (5, 3, 2), (4, 3, 1)] {
            for kind in [PoolKind::Max, PoolKind::Average] {
                for rounding in [Rounding::Floor, Rounding::Ceil] {
                    for count_padding in [false, true] {
                        let pool = Pool2d {
                            padding: [padding; 2],
                            rounding,
                            count_padding,
                            ..Pool2d::caffe(kind, kernel, stride)
                        };
                        let mut b = Graph::builder();
                        let x = b.input("input", Shape::map(2, extent, extent + 1)).unwrap();
                        let x = b.pool2d("output", x, pool.clone()).unwrap();
                        let x = b.conv2d("conv", x, Conv2d::new(3, 1)).unwrap();
                        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
                        let back = there_and_back(&Artifact::new(model.clone())).model;
                        let agreement = verify(&model, &back, 2, 1).unwrap();
                        assert!(agreement.largest_error <= 1e-5, "{extent} {pool:?}: {agreement:?}");
                    }
                }
            }
        }
    }
    for region in [LrnRegion::AcrossChannels, LrnRegion::WithinChannel] {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(6, 7, 5)).unwrap();
        let x = b.lrn("norm", x, Lrn { region, size: 3, alpha: 0.7, beta: 0.75, k: 1.5 }).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
        let back = there_and_back(&Artifact::new(model.clone())).model;
        assert_eq!(back.graph().nodes().len(), 2, "{:?}", back.graph());
        let agreement = verify(&model, &back, 2, 1).unwrap();
        assert!(agreement.largest_error <= 1e-6, "{region:?}: {agreement:?}");
    }
}

#[test]
fn provenance_comes_back() {
    let network = Network::by_name("lenet", &Config::default()).unwrap();
    let mut artifact = Artifact::new(network.model(1).unwrap());
    artifact.provenance.network = Some("lenet".into());
    artifact.provenance.preprocessing =
        Some(Preprocessing { classes: vec!["one".into()], ..cofilter_data::preprocessing::lenet(&[]) });
    assert_eq!(there_and_back(&artifact).provenance, artifact.provenance);
}

#[test]
fn everything_unsupported_is_listed_at_once() {
    // A field of a message: its number and kind, then its length and content.
    let field = |number: u8, content: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        assert!(content.len() < 128);
        bytes.push(u8::try_from(content.len()).unwrap());
        bytes.extend(content);
        bytes
    };
    let node = |input: &str, output: &str, op: &str| {
        let node =
            [field(1, input.as_bytes()), field(2, output.as_bytes()), field(4, op.as_bytes())].concat();
        field(1, &node)
    };
    let dim = |value: u8| field(1, &[0x08, value]);
    let shape = field(2, &[dim(1), dim(3), dim(8), dim(8)].concat());
    let kind = field(1, &[vec![0x08, 1], shape].concat());
    let described =
        |number: u8, name: &str| field(number, &[field(1, name.as_bytes()), field(2, &kind)].concat());
    let graph = [
        node("x", "a", "Sigmoid"),
        node("a", "b", "Relu"),
        node("x", "c", "Erf"),
        node("c", "d", "Sigmoid"),
        node("nowhere", "e", "Relu"),
        described(11, "x"),
        described(12, "b"),
    ]
    .concat();
    let mut file = vec![7 << 3 | 2];
    let len = graph.len();
    file.extend([u8::try_from(len & 127).unwrap() | 128, u8::try_from(len >> 7).unwrap()]);
    file.extend(graph);
    file.extend(field(8, &[0x10, 17]));
    let error = onnx::from_bytes(file, Path::new("net.onnx"), None).unwrap_err();
    let Error::Unsupported { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 3, "{error}");
    // What reads the result of an unsupported node is no problem of its own.
    assert!(problems[0].contains("op Erf is not supported: `c`"), "{error}");
    assert!(problems[1].contains("op Sigmoid is not supported: `a`"), "{error}");
    assert!(problems[2].contains("node `e` (Relu): input `nowhere` is not computed"), "{error}");
    assert!(error.to_string().contains("net.onnx"), "{error}");
}

#[test]
fn other_files_are_refused() {
    for (bytes, reason) in
        [(&b""[..], "holds no graph"), (b"PK\x03\x04", "not an ONNX file"), (b"\x3a\x00", "names no opset")]
    {
        let error = onnx::from_bytes(bytes.to_vec(), Path::new("a.onnx"), None).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("a.onnx"), "{error}");
    }
}
