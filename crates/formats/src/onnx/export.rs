//! Models to ONNX graphs.

use super::proto::{self, Attribute, Entry, ExtentValue, Graph, Node, Tensor, attribute, kind};
use super::{PROVENANCE, clipped};
use crate::{Error, Result};
use cofilter_graph::{
    Artifact, Conv2d, Lrn, LrnRegion, Model, NodeId, Op, Pool2d, PoolKind, Rounding, Shape, for_inference,
    write_atomically,
};
use prost::Message as _;
use prost::bytes::Bytes;
use std::collections::BTreeSet;
use std::path::Path;

/// Version of the file format that goes with the opset.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// What one protobuf message may hold.
const LARGEST: usize = i32::MAX as usize;

/// Writes a network for inference as an ONNX file: its main output, no dropout, batch normalisation merged into convolutions. Input
/// `input` and output `output` have an open number of images; tensors keep their names; the provenance is in the metadata.
///
/// Response normalisation within channels, and averages over windows that stick out, are written as several standard ops.
///
/// # Errors
/// As [`to_bytes`], and [`Error::Io`].
pub fn export(artifact: &Artifact, path: &Path) -> Result<()> {
    let bytes = to_bytes(artifact).map_err(|reason| Error::File { path: path.into(), reason })?;
    write_atomically(path, &bytes).map_err(|error| Error::graph(path, error))
}

/// The bytes of the file that [`export`] writes.
///
/// # Errors
/// What ONNX has no op for: adaptive averages whose windows differ in size. Networks of 2 GiB and more.
pub fn to_bytes(artifact: &Artifact) -> Result<Vec<u8>, String> {
    let model = for_inference(&artifact.model).map_err(|error| error.to_string())?;
    let mut writer = Writer::new(&model);
    for (id, _) in model.graph().iter().skip(1) {
        writer.node(id).map_err(|reason| format!("node `{}`: {reason}", model.graph().node(id).name()))?;
    }
    if model.graph().outputs()[0] == model.graph().input() {
        writer.push("Identity", vec!["input".into()], "output", Vec::new());
    }
    let provenance =
        serde_json::to_string(&artifact.provenance).map_err(|error| format!("provenance: {error}"))?;
    let described = |name: &str, shape: Shape| proto::Described {
        name: name.into(),
        kind: Some(proto::Kind {
            tensor: Some(proto::TensorKind { element: kind::FLOAT, shape: Some(extents(shape)) }),
        }),
    };
    let network = artifact.provenance.network.as_deref().filter(|name| !name.is_empty());
    let graph = Graph {
        nodes: writer.nodes,
        name: network.unwrap_or("network").to_owned(),
        initializers: writer.initializers,
        inputs: vec![described("input", model.graph().input_shape())],
        outputs: vec![described("output", model.graph().output_shape())],
        sparse_initializers: Vec::new(),
    };
    let file = proto::Model {
        ir_version: IR_VERSION,
        producer_name: "cofilter".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opsets: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
        metadata: vec![Entry { key: PROVENANCE.into(), value: provenance }],
        functions: Vec::new(),
    };
    match file.encoded_len() {
        len if len <= LARGEST => Ok(file.encode_to_vec()),
        len => Err(format!("{len} bytes, an ONNX file holds at most {LARGEST}")),
    }
}

/// `[N, C, H, W]` or `[N, F]` with an open number of images.
fn extents(shape: Shape) -> proto::Extents {
    let images = ExtentValue::Named("N".into());
    #[expect(clippy::cast_possible_wrap, reason = "extents of tensors that are in memory")]
    let fixed = shape.dims().into_iter().map(|dim| ExtentValue::Fixed(dim as i64));
    let dims = std::iter::once(images).chain(fixed).map(|value| proto::Extent { value: Some(value) });
    proto::Extents { dims: dims.collect() }
}

/// Nodes and tensors as they are written.
struct Writer<'a> {
    model: &'a Model,
    nodes: Vec<Node>,
    initializers: Vec<Tensor>,
    /// Name of each value.
    values: Vec<String>,
    names: BTreeSet<String>,
}

impl<'a> Writer<'a> {
    fn new(model: &'a Model) -> Self {
        let graph = model.graph();
        let mut writer = Self {
            model,
            nodes: Vec::new(),
            initializers: Vec::new(),
            values: Vec::new(),
            names: ["input", "output"].map(String::from).into(),
        };
        // Tensors keep their names, values give way to them.
        for (id, slot, _) in model.params().iter() {
            writer.names.insert(graph.tensor_name(id, slot));
        }
        for (id, node) in graph.iter() {
            let name = match id {
                id if id == graph.outputs()[0] && id != graph.input() => "output".into(),
                id if id == graph.input() => "input".into(),
                _ => writer.free(node.name()),
            };
            writer.values.push(name);
        }
        writer
    }

    /// A name that nothing has: this one, or with a sign behind it.
    fn free(&mut self, name: &str) -> String {
        let mut name = name.to_owned();
        while !self.names.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    fn node(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.model.graph().node(id);
        let inputs: Vec<String> =
            node.inputs().iter().map(|input| self.values[input.index()].clone()).collect();
        let name = self.values[id.index()].clone();
        let x = self.model.graph().input_shapes(id)[0];
        let tensors = self.tensors(id);
        let with_tensors = || inputs.iter().cloned().chain(tensors).collect::<Vec<_>>();
        match node.op() {
            Op::Input { .. } => return Err("is a second input".into()),
            Op::Conv2d(conv) => {
                let of = with_tensors();
                self.push("Conv", of, &name, conv_attributes(conv));
            }
            Op::Linear(_) => {
                let of = with_tensors();
                self.push("Gemm", of, &name, vec![int("transB", 1)]);
            }
            Op::BatchNorm(bn) => {
                let attributes = vec![float("epsilon", bn.eps), float("momentum", 1.0 - bn.momentum)];
                let of = with_tensors();
                self.push("BatchNormalization", of, &name, attributes);
            }
            Op::Relu => self.push("Relu", inputs, &name, Vec::new()),
            Op::Pool2d(pool) => self.pool(pool, x, &inputs[0], &name),
            Op::AdaptiveAvgPool { output: [1, 1] } => {
                self.push("GlobalAveragePool", inputs, &name, Vec::new())
            }
            Op::AdaptiveAvgPool { output } => {
                let [height, width] = x.spatial();
                if !height.is_multiple_of(output[0]) || !width.is_multiple_of(output[1]) {
                    return Err(format!(
                        "averages {height}x{width} to {}x{}, windows of several sizes, for which ONNX has no op",
                        output[0], output[1]
                    ));
                }
                let windows = [height / output[0], width / output[1]];
                let attributes = vec![ints("kernel_shape", &windows), ints("strides", &windows)];
                self.push("AveragePool", inputs, &name, attributes);
            }
            Op::Lrn(lrn) => self.lrn(lrn, &inputs[0], &name),
            Op::Dropout { .. } => self.push("Identity", inputs, &name, Vec::new()),
            Op::Add => {
                let op = if inputs.len() == 2 { "Add" } else { "Sum" };
                self.push(op, inputs, &name, Vec::new());
            }
            Op::Concat => self.push("Concat", inputs, &name, vec![int("axis", 1)]),
            Op::Flatten => self.push("Flatten", inputs, &name, vec![int("axis", 1)]),
            Op::Softmax => self.push("Softmax", inputs, &name, vec![int("axis", 1)]),
            Op::PadChannels(pad) => {
                let pads = [0, pad.before, 0, 0, 0, pad.after, 0, 0];
                let pads = self.integers(&format!("{name}.pads"), &pads);
                self.push("Pad", vec![inputs[0].clone(), pads], &name, Vec::new());
            }
        }
        Ok(())
    }

    fn push(&mut self, op: &str, inputs: Vec<String>, output: &str, attributes: Vec<Attribute>) {
        self.nodes.push(Node {
            inputs,
            outputs: vec![output.into()],
            name: output.into(),
            op_type: op.into(),
            attributes,
            domain: String::new(),
        });
    }

    /// An intermediate value.
    fn step(&mut self, op: &str, inputs: &[&str], name: &str, attributes: Vec<Attribute>) -> String {
        let name = self.free(name);
        self.push(op, inputs.iter().map(|input| (*input).to_owned()).collect(), &name, attributes);
        name
    }

    /// Writes the tensors of a node, whose names it gives.
    fn tensors(&mut self, id: NodeId) -> Vec<String> {
        let graph = self.model.graph();
        let named = self.model.tensors(id).iter().enumerate().map(|(slot, array)| {
            let name = graph.tensor_name(id, slot);
            self.initializers.push(floats(&name, array.dims(), array.data()));
            name
        });
        named.collect()
    }

    fn constant(&mut self, name: &str, dims: &[usize], numbers: &[f32]) -> String {
        let name = self.free(name);
        self.initializers.push(floats(&name, dims, numbers));
        name
    }

    fn integers(&mut self, name: &str, numbers: &[usize]) -> String {
        let name = self.free(name);
        let raw: Vec<u8> = numbers.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
        self.initializers.push(Tensor {
            dims: signed(&[numbers.len()]),
            kind: kind::INT64,
            raw: raw.into(),
            name: name.clone(),
            ..Tensor::default()
        });
        name
    }

    /// Rounded-up counts are written as padding behind the map: opsets differ in what `ceil_mode` means.
    fn pool(&mut self, pool: &Pool2d, x: Shape, input: &str, name: &str) {
        let windows = Op::Pool2d(pool.clone()).infer("", &[x]).map_or([0; 2], Shape::spatial);
        let behind = [0, 1].map(|at| {
            if pool.rounding == Rounding::Floor {
                return pool.padding[at];
            }
            let reach = windows[at].saturating_sub(1) * pool.stride[at] + pool.kernel[at];
            reach.saturating_sub(x.spatial()[at] + pool.padding[at])
        });
        let [top, left] = pool.padding;
        let mut attributes = vec![
            ints("kernel_shape", &pool.kernel),
            ints("pads", &[top, left, behind[0], behind[1]]),
            ints("strides", &pool.stride),
        ];
        if pool.kind == PoolKind::Max {
            return self.push("MaxPool", vec![input.into()], name, attributes);
        }
        if !pool.count_padding {
            return self.push("AveragePool", vec![input.into()], name, attributes);
        }
        attributes.push(int("count_include_pad", 1));
        let factors = clipped(pool, x);
        if factors.iter().all(|factor| *factor == 1.0) {
            return self.push("AveragePool", vec![input.into()], name, attributes);
        }
        let all = self.step("AveragePool", &[input], &format!("{name}.all"), attributes);
        let factors = self.constant(&format!("{name}.clipped"), &[1, 1, windows[0], windows[1]], &factors);
        self.push("Mul", vec![all, factors], name, Vec::new());
    }

    fn lrn(&mut self, lrn: &Lrn, input: &str, name: &str) {
        if lrn.region == LrnRegion::AcrossChannels {
            let attributes = vec![
                float("alpha", lrn.alpha),
                float("beta", lrn.beta),
                float("bias", lrn.k),
                int("size", lrn.size),
            ];
            return self.push("LRN", vec![input.into()], name, attributes);
        }
        let part = |step: &str| format!("{name}.{step}");
        let square = self.step("Mul", &[input, input], &part("square"), Vec::new());
        let windows = vec![
            ints("kernel_shape", &[lrn.size; 2]),
            ints("pads", &[lrn.size / 2; 4]),
            ints("strides", &[1, 1]),
            int("count_include_pad", 1),
        ];
        let mean = self.step("AveragePool", &[&square], &part("mean"), windows);
        let alpha = self.constant(&part("alpha"), &[], &[lrn.alpha]);
        let k = self.constant(&part("k"), &[], &[lrn.k]);
        let beta = self.constant(&part("beta"), &[], &[lrn.beta]);
        let scaled = self.step("Mul", &[&mean, &alpha], &part("scaled"), Vec::new());
        let sum = self.step("Add", &[&scaled, &k], &part("sum"), Vec::new());
        let power = self.step("Pow", &[&sum, &beta], &part("power"), Vec::new());
        self.push("Div", vec![input.into(), power], name, Vec::new());
    }
}

fn conv_attributes(conv: &Conv2d) -> Vec<Attribute> {
    let [rows, columns] = conv.padding;
    vec![
        ints("dilations", &conv.dilation),
        int("group", conv.groups),
        ints("kernel_shape", &conv.kernel),
        ints("pads", &[rows, columns, rows, columns]),
        ints("strides", &conv.stride),
    ]
}

#[expect(clippy::cast_possible_wrap, reason = "extents of tensors that are in memory")]
fn signed(numbers: &[usize]) -> Vec<i64> {
    numbers.iter().map(|number| *number as i64).collect()
}

fn floats(name: &str, dims: &[usize], numbers: &[f32]) -> Tensor {
    let raw: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor {
        dims: signed(dims),
        kind: kind::FLOAT,
        raw: Bytes::from(raw),
        name: name.into(),
        ..Tensor::default()
    }
}

fn int(name: &str, value: usize) -> Attribute {
    Attribute {
        name: name.into(),
        int: signed(&[value]).first().copied(),
        kind: attribute::INT,
        ..Attribute::default()
    }
}

fn ints(name: &str, values: &[usize]) -> Attribute {
    Attribute { name: name.into(), ints: signed(values), kind: attribute::INTS, ..Attribute::default() }
}

fn float(name: &str, value: f32) -> Attribute {
    Attribute { name: name.into(), float: Some(value), kind: attribute::FLOAT, ..Attribute::default() }
}
