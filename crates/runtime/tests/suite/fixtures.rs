//! Every op's cases from PyTorch, on the oracle and on the processor.

use crate::numbers::{options, relative_error, run};
use cofilter_graph::{Array, Conv2d, Graph, Linear, Model, NodeId, Op, Params, Shape};
use cofilter_runtime::reference;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One op on operands that are slices of one input, and what PyTorch computed.
struct Case {
    model: Model,
    images: Vec<f32>,
    expected: Vec<f64>,
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    files
}

fn array(view: &TensorView<'_>) -> Array {
    let bytes = view.data().chunks_exact(4);
    let data: Vec<f32> = bytes.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Array::new(view.shape().to_vec(), data)
}

/// The shape of one image of a tensor `[n, ..]`.
fn shape(dims: &[usize]) -> Shape {
    match dims {
        [_, len] => Shape::Vector(*len),
        [_, channels, height, width] => Shape::map(*channels, *height, *width),
        _ => panic!("{dims:?}"),
    }
}

/// The op of a file with its case; none if it is for training.
fn read(path: &Path) -> Option<(Op, Case)> {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    if metadata["mode"] != "eval" {
        println!("skipped: {} is for training", metadata["case"]);
        return None;
    }
    let op: Op = serde_json::from_str(&metadata["op"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| file.tensor(name).ok().map(|view| array(&view));
    let inputs: Vec<Array> = match tensor("input") {
        Some(input) => vec![input],
        None => (0..).map_while(|i| tensor(&format!("input.{i}"))).collect(),
    };
    let expected = tensor("expected").unwrap();

    let shapes: Vec<Shape> = inputs.iter().map(|input| shape(input.dims())).collect();
    let model = model(&op, &shapes, |slot| tensor(slot).unwrap());
    assert_eq!(model.graph().output_shape(), shape(expected.dims()), "{}", path.display());
    let n = expected.dims()[0];
    let mut images = Vec::new();
    for image in 0..n {
        for input in &inputs {
            let len = input.data().len() / n;
            images.extend_from_slice(&input.data()[image * len..(image + 1) * len]);
        }
    }
    let expected = expected.data().iter().map(|v| f64::from(*v)).collect();
    Some((op, Case { model, images, expected }))
}

/// A network of the op alone; several operands lie one after the other along the channels of the input and are taken
/// out by a 1x1 convolution or a matrix of zeros and ones, which is exact.
fn model(op: &Op, shapes: &[Shape], tensor: impl Fn(&str) -> Array) -> Model {
    let channels: usize = shapes.iter().map(|s| s.channels()).sum();
    let mut params = vec![Vec::new()];
    let mut b = Graph::builder();
    let whole = match shapes[0] {
        Shape::Map { height, width, .. } => Shape::map(channels, height, width),
        Shape::Vector(_) => Shape::Vector(channels),
    };
    let x = b.input("data", whole).unwrap();
    let mut operands = vec![x];
    if shapes.len() > 1 {
        operands.clear();
        let mut first = 0;
        for (i, shape) in shapes.iter().enumerate() {
            let out = shape.channels();
            let mut ones = vec![0.0; out * channels];
            (0..out).for_each(|o| ones[o * channels + first + o] = 1.0);
            first += out;
            let (op, dims) = match shape {
                Shape::Map { .. } => {
                    (Op::Conv2d(Conv2d { bias: false, ..Conv2d::new(out, 1) }), vec![out, channels, 1, 1])
                }
                Shape::Vector(_) => {
                    (Op::Linear(Linear { out_features: out, bias: false }), vec![out, channels])
                }
            };
            operands.push(b.add(&format!("operand{i}"), op, &[x]).unwrap());
            params.push(vec![Array::new(dims, ones)]);
        }
    }
    let id: NodeId = b.add("op", op.clone(), &operands).unwrap();
    let graph = b.finish(&[id]).unwrap();
    params.push(graph.slots(id).iter().map(|slot| tensor(slot.name)).collect());
    Model::new(graph, Params::new(params)).unwrap()
}

/// Calls `f` for every case and returns the kinds of ops seen.
fn for_each(f: impl Fn(&str, &Case)) -> BTreeSet<&'static str> {
    let mut kinds = BTreeSet::new();
    for path in files() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if let Some((op, case)) = read(&path) {
            f(&name, &case);
            kinds.insert(op.kind());
        }
    }
    kinds
}

#[test]
fn the_oracle_equals_pytorch_on_every_op() {
    let kinds = for_each(|name, case| {
        let found = reference::run(&case.model, &case.images).unwrap();
        let found: Vec<f32> = found.iter().map(|v| *v as f32).collect();
        let error = relative_error(&found, &case.expected);
        // Both are computed in f64 and rounded once.
        assert!(error < 1e-7, "{name}: relative error {error:e}");
    });
    let every = [
        "adaptive_avg_pool",
        "add",
        "batch_norm",
        "concat",
        "conv2d",
        "dropout",
        "flatten",
        "linear",
        "lrn",
        "pad_channels",
        "pool2d",
        "relu",
        "softmax",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), every);
}

#[test]
fn the_processor_equals_pytorch_on_every_op() {
    for_each(|name, case| {
        let n = case.images.len() / case.model.graph().input_shape().elements();
        for threads in [1, 2] {
            let error = relative_error(&run(&case.model, &options(n, threads), &case.images), &case.expected);
            assert!(error < 2e-6, "{name}, {threads} threads: relative error {error:e}");
        }
    });
}
