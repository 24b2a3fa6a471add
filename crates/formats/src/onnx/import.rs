//! ONNX graphs to models, node by node.

mod layers;
mod pooling;
mod shapes;

use super::fold::Folder;
use super::proto::{ExtentValue, Graph, Node, kind};
use super::tensor::{Beside, Constant};
use crate::draft::{Draft, Reason, Value as Drafted};
use cofilter_graph::{Op, Pool2d, Shape};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Numbers of an image.
const MOST_ELEMENTS: usize = 1 << 28;
/// Nodes that are named for one unsupported op.
const NAMED: usize = 4;

/// Ops whose result a layer may be, and stays when it is scaled and shifted.
const LAYERS: [&str; 7] = ["Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div"];

/// What a name of a graph stands for.
#[derive(Clone, Debug)]
enum Value {
    /// A node of the network.
    Node(Drafted),
    /// Known before the network runs.
    Constant(Constant),
    /// A map with zeros around it, which a convolution or pooling takes over.
    Padded { of: Drafted, pads: Pads },
    /// An average over windows that stick out beyond the padded map, divided by all elements of a window, until it is corrected.
    Overhung { of: Drafted, pool: Pool2d, factors: Vec<f32> },
    /// A part of a response normalisation within channels.
    Response(Response),
    /// The result of a node with a problem, which its readers do not repeat.
    Unknown,
}

/// Zeros around a map: `[top, left, bottom, right]`.
type Pads = [usize; 4];

/// `(k + alpha * mean(of^2))^beta` as far as it was built.
#[derive(Clone, Copy, Debug)]
struct Response {
    of: Drafted,
    /// Extent of the windows of the mean, when it was taken.
    size: Option<usize>,
    alpha: f32,
    k: Option<f32>,
    beta: Option<f32>,
}

/// Builds a network from the nodes of a graph.
pub(super) struct Importer<'a> {
    graph: &'a Graph,
    folder: Folder,
    draft: Draft,
    values: BTreeMap<&'a str, Value>,
    /// How often each name is read.
    readers: BTreeMap<&'a str, usize>,
    /// Names that layers, scaled and shifted ones included, give their results.
    layers: BTreeSet<&'a str>,
    /// The number of images that the file fixes, if it does.
    batch: Option<i64>,
    problems: Problems,
}

/// Everything that cannot be imported, unsupported ops by kind.
#[derive(Debug, Default)]
struct Problems {
    unsupported: BTreeMap<String, Vec<String>>,
    others: Vec<String>,
}

impl Problems {
    fn list(self) -> Vec<String> {
        let ops = self.unsupported.into_iter().map(|(op, nodes)| {
            let named =
                nodes.iter().take(NAMED).map(|node| format!("`{node}`")).collect::<Vec<_>>().join(", ");
            let rest = nodes.len().saturating_sub(NAMED);
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            format!("op {op} is not supported: {named}{more}")
        });
        ops.chain(self.others).collect()
    }
}

/// A network and its outputs.
pub(super) struct Imported {
    pub(super) draft: Draft,
    pub(super) outputs: Vec<Drafted>,
}

impl<'a> Importer<'a> {
    pub(super) fn new(graph: &'a Graph, opset: i64, bytes: usize) -> Self {
        let mut readers = BTreeMap::new();
        let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
        for name in inputs.chain(graph.outputs.iter().map(|output| &output.name)) {
            *readers.entry(name.as_str()).or_insert(0) += 1;
        }
        let layers = graph.nodes.iter().filter(|node| LAYERS.contains(&node.op_type.as_str()));
        Self {
            graph,
            layers: layers.filter_map(|node| node.outputs.first()).map(String::as_str).collect(),
            folder: Folder::new(opset, bytes),
            draft: Draft::default(),
            values: BTreeMap::new(),
            readers,
            batch: None,
            problems: Problems::default(),
        }
    }

    /// Imports the whole graph.
    ///
    /// # Errors
    /// Everything that is not supported, a line each.
    pub(super) fn run(
        mut self,
        folder: Option<&Path>,
        input: Option<Shape>,
    ) -> Result<Imported, Vec<String>> {
        let graph = self.graph;
        let mut beside = Beside::new(folder);
        for tensor in &graph.initializers {
            let value = Constant::read(tensor, &mut beside).map(Value::Constant).unwrap_or_else(|reason| {
                self.problems.others.push(format!("tensor `{}`: {reason}", tensor.name));
                Value::Unknown
            });
            self.values.insert(&tensor.name, value);
        }
        // Numbers beside the file are as much its own as those in it.
        self.folder.room = self.folder.room.saturating_add(beside.bytes);
        if !self.graph.sparse_initializers.is_empty() {
            self.problems.others.push("sparse initializers are not supported".into());
        }
        if let Err(reason) = self.input(input) {
            self.problems.others.push(reason);
            return Err(self.problems.list());
        }
        match sorted(graph, &self.values) {
            Ok(nodes) => nodes.into_iter().for_each(|node| self.take(node, &mut beside)),
            Err(reason) => self.problems.others.push(reason),
        }
        let mut outputs = Vec::new();
        for output in &graph.outputs {
            match self.values.get(output.name.as_str()) {
                Some(Value::Node(value)) => outputs.push(*value),
                Some(Value::Unknown) => {}
                Some(Value::Constant(_)) => {
                    self.problems
                        .others
                        .push(format!("output `{}` does not depend on the input", output.name));
                }
                Some(other) => {
                    let reason = format!("output `{}`: {}", output.name, other.alone());
                    self.problems.others.push(reason);
                }
                None => self.problems.others.push(format!("output `{}` is not computed", output.name)),
            }
        }
        let problems = self.problems.list();
        if problems.is_empty() { Ok(Imported { draft: self.draft, outputs }) } else { Err(problems) }
    }

    /// The one input that is no initializer.
    fn input(&mut self, given: Option<Shape>) -> Result<(), Reason> {
        let graph = self.graph;
        let inputs: Vec<_> =
            graph.inputs.iter().filter(|input| !self.values.contains_key(input.name.as_str())).collect();
        let [input] = inputs[..] else {
            let names: Vec<_> = inputs.iter().take(8).map(|input| input.name.as_str()).collect();
            return Err(format!("expected one input, found {}: {}", inputs.len(), names.join(", ")));
        };
        let fail = |reason: &str| format!("input `{}`: {reason}", input.name);
        let tensor = input.kind.as_ref().and_then(|kind| kind.tensor.as_ref());
        let tensor = tensor.ok_or_else(|| fail("is no tensor"))?;
        if ![kind::FLOAT, kind::FLOAT16, kind::BFLOAT16, kind::DOUBLE].contains(&tensor.element) {
            return Err(fail("expected floats"));
        }
        let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dims);
        let fixed: Vec<Option<usize>> = (dims.iter())
            .map(|dim| match dim.value {
                Some(ExtentValue::Fixed(extent)) => usize::try_from(extent).ok().filter(|extent| *extent > 0),
                _ => None,
            })
            .collect();
        let described = match fixed[..] {
            [_, Some(channels), Some(height), Some(width)] => Some(Shape::map(channels, height, width)),
            [_, Some(features)] => Some(Shape::Vector(features)),
            _ => None,
        };
        let shape = match (described, given) {
            (Some(described), Some(given)) if described != given => {
                return Err(fail(&format!("is {described}, {given} was asked for")));
            }
            (Some(shape), _) | (None, Some(shape)) => shape,
            (None, None) => {
                return Err(fail(
                    "its extents are open or not those of an image; say which are meant (`--image CxHxW`)",
                ));
            }
        };
        let fits = fixed.is_empty() || fixed.len() == shape.dims().len() + 1;
        let agrees =
            fixed.iter().skip(1).zip(shape.dims()).all(|(fixed, dim)| fixed.is_none_or(|fixed| fixed == dim));
        if !fits || !agrees {
            return Err(fail(&format!("{shape} does not fit its {} extents", fixed.len())));
        }
        // What every network needs for an image, so that no constant by channel is larger than a file could mean.
        if shape.elements() > MOST_ELEMENTS {
            return Err(fail(&format!(
                "{shape}: images of more than {MOST_ELEMENTS} numbers are not supported"
            )));
        }
        self.batch = fixed.first().copied().flatten().and_then(|batch| i64::try_from(batch).ok());
        let value = self
            .draft
            .add(&input.name, Op::Input { shape }, &[], Vec::new())
            .map_err(|reason| fail(&reason))?;
        self.values.insert(&input.name, Value::Node(value));
        Ok(())
    }

    /// Imports a node, or remembers why it cannot be.
    fn take(&mut self, node: &'a Node, beside: &mut Beside<'_>) {
        // What an optional operand that is left out stands for is for the op to say.
        let operands: Vec<Option<Value>> = (node.inputs.iter())
            .map(|name| if name.is_empty() { None } else { self.values.get(name.as_str()).cloned() })
            .collect();
        let missing =
            node.inputs.iter().find(|name| !name.is_empty() && !self.values.contains_key(name.as_str()));
        let broken = operands.iter().any(|operand| matches!(operand, Some(Value::Unknown)));
        let result = match missing {
            Some(name) => Err(Failure::Because(format!("input `{name}` is not computed"))),
            None if broken => Ok(Value::Unknown),
            None => self.node(node, &operands, beside),
        };
        let value = match result {
            Ok(value) => value,
            Err(Failure::Unsupported) => {
                let domain = if standard(&node.domain) { "" } else { &node.domain };
                let op = format!("{domain}{}{}", if domain.is_empty() { "" } else { "." }, node.op_type);
                self.problems.unsupported.entry(op).or_default().push(name_of(node).to_owned());
                Value::Unknown
            }
            Err(Failure::Because(reason)) => {
                self.problems.others.push(format!("node `{}` ({}): {reason}", name_of(node), node.op_type));
                Value::Unknown
            }
        };
        for (at, output) in node.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            // Only the first result of an op is ever supported: masks and indices of training are not.
            let value = if at == 0 { value.clone() } else { self.second(node, output) };
            self.values.insert(output, value);
        }
    }

    /// A further result, which nobody may read.
    fn second(&mut self, node: &Node, output: &str) -> Value {
        if self.readers.get(output).copied().unwrap_or(0) > 0 {
            let reason =
                format!("node `{}` ({}): its result `{output}` is read", name_of(node), node.op_type);
            self.problems.others.push(reason);
        }
        Value::Unknown
    }

    fn node(
        &mut self,
        node: &Node,
        operands: &[Option<Value>],
        beside: &mut Beside<'_>,
    ) -> Result<Value, Failure> {
        if !standard(&node.domain) {
            return Err(Failure::Unsupported);
        }
        if node.op_type == "Constant" {
            return Ok(Value::Constant(shapes::constant(node, beside)?));
        }
        let constants: Option<Vec<Option<&Constant>>> = (operands.iter())
            .map(|operand| match operand {
                None => Some(None),
                Some(Value::Constant(constant)) => Some(Some(constant)),
                Some(_) => None,
            })
            .collect();
        if let Some(constants) = constants.filter(|constants| !constants.is_empty()) {
            return Ok(Value::Constant(self.folder.apply(node, &constants)?));
        }
        let call = Call { node, operands };
        match node.op_type.as_str() {
            "Conv" => self.conv(&call),
            "Gemm" => self.gemm(&call),
            "MatMul" => self.matmul(&call),
            "BatchNormalization" => self.batch_norm(&call),
            "LRN" => self.lrn(&call),
            "Relu" => self.relu(&call),
            "Clip" => self.clip(&call),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Sum" => self.arithmetic(&call),
            "Dropout" => self.dropout(&call),
            "Softmax" => self.softmax(&call),
            "MaxPool" | "AveragePool" => self.pool(&call),
            "GlobalAveragePool" | "GlobalMaxPool" => self.global_pool(&call),
            "ReduceMean" => self.reduce_mean(&call),
            "Concat" => self.concat(&call),
            "Flatten" => self.flatten(&call),
            "Reshape" => self.reshape(&call),
            "Squeeze" => self.squeeze(&call),
            "Transpose" => self.transpose(&call),
            "Pad" => self.pad(&call),
            "Slice" => self.slice(&call),
            "Shape" => self.shape(&call),
            "Identity" => Ok(call.any(0)?.clone()),
            "Cast" => self.cast(&call),
            _ => return Err(Failure::Unsupported),
        }
        .map_err(Failure::Because)
    }

    /// Whether nobody but one reader sees the result of the node of this name.
    fn sole(&self, name: &str) -> bool {
        self.readers.get(name) == Some(&1)
    }
}

/// Why a node is not imported.
enum Failure {
    Unsupported,
    Because(Reason),
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self::Because(reason)
    }
}

/// A node with what its inputs stand for.
struct Call<'a> {
    node: &'a Node,
    operands: &'a [Option<Value>],
}

impl<'a> Call<'a> {
    fn any(&self, at: usize) -> Result<&'a Value, Reason> {
        self.operands.get(at).and_then(Option::as_ref).ok_or_else(|| format!("input {at} is missing"))
    }

    /// An operand that is a value of the network.
    fn value(&self, at: usize) -> Result<Drafted, Reason> {
        match self.any(at)? {
            Value::Node(value) => Ok(*value),
            other => Err(other.alone()),
        }
    }

    /// An operand that is known; `None` if it is left out.
    fn optional(&self, at: usize) -> Result<Option<&'a Constant>, Reason> {
        match self.operands.get(at).and_then(Option::as_ref) {
            None => Ok(None),
            Some(Value::Constant(constant)) => Ok(Some(constant)),
            Some(_) => Err(format!("input {at} depends on the image, expected a constant")),
        }
    }

    fn constant(&self, at: usize) -> Result<&'a Constant, Reason> {
        self.optional(at)?.ok_or_else(|| format!("input {at} is missing"))
    }

    /// Operands for ops that look at constants only; what depends on the image is left out.
    fn constants(&self) -> Vec<Option<&'a Constant>> {
        let of = |operand: &'a Option<Value>| match operand {
            Some(Value::Constant(constant)) => Some(constant),
            _ => None,
        };
        self.operands.iter().map(of).collect()
    }

    /// A name for a layer: that of its weights without the last part, else that of the node, in which exporters put the op last.
    fn name(&self) -> &'a str {
        let weight = self.node.inputs.get(1).and_then(|name| name.strip_suffix(".weight"));
        let name = name_of(self.node);
        let module = name.strip_suffix(self.node.op_type.as_str()).and_then(|name| name.strip_suffix('/'));
        weight.or(module).filter(|name| !name.is_empty()).unwrap_or(name)
    }

    /// Refuses more operands than the op has.
    fn at_most(&self, count: usize) -> Result<(), Reason> {
        match self.operands.len() {
            found if found <= count => Ok(()),
            found => Err(format!("{found} inputs, expected at most {count}")),
        }
    }
}

impl Value {
    /// Why a value cannot be read where a map or vector is expected.
    fn alone(&self) -> Reason {
        match self {
            Self::Node(_) | Self::Unknown => "is a value of the network".into(),
            Self::Constant(_) => "expected a value that depends on the image, found a constant".into(),
            Self::Padded { .. } => "reads a padded map: only convolutions and poolings can".into(),
            Self::Overhung { .. } => {
                "reads an average over windows that stick out, of which all elements are counted: not supported".into()
            }
            Self::Response(_) => "reads a part of what looked like a response normalisation".into(),
        }
    }
}

/// The name of a node, or of its result where it has none.
fn name_of(node: &Node) -> &str {
    let output = node.outputs.first().map_or("", String::as_str);
    if node.name.is_empty() { output } else { &node.name }
}

fn standard(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// The nodes in an order in which each comes after what it reads.
fn sorted<'a>(graph: &'a Graph, known: &BTreeMap<&'a str, Value>) -> Result<Vec<&'a Node>, Reason> {
    let mut maker: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            if known.contains_key(output.as_str()) || maker.insert(output, at).is_some() {
                return Err(format!("`{output}` is computed twice"));
            }
        }
    }
    let mut waiting = vec![0_usize; graph.nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        let sources: BTreeSet<usize> =
            node.inputs.iter().filter_map(|name| maker.get(name.as_str())).copied().collect();
        waiting[at] = sources.len();
        sources.into_iter().for_each(|source| readers[source].push(at));
    }
    // In the order of the file as far as that goes.
    let mut ready: BTreeSet<usize> = (0..waiting.len()).filter(|at| waiting[*at] == 0).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(at) = ready.pop_first() {
        order.push(&graph.nodes[at]);
        for reader in &readers[at] {
            waiting[*reader] -= 1;
            if waiting[*reader] == 0 {
                ready.insert(*reader);
            }
        }
    }
    match waiting.iter().position(|left| *left > 0) {
        Some(at) => Err(format!("node `{}` waits for its own result", name_of(&graph.nodes[at]))),
        None => Ok(order),
    }
}
