//! A network that is being read: nodes can still change, and names are made usable.

use cofilter_graph::{Array, Conv2d, Error, Graph, Model, NodeId, Op, Params, Shape};
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with a part of a file.
pub(crate) type Reason = String;

/// A node of a [`Draft`], which is also its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value(usize);

#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    op: Op,
    inputs: Vec<Value>,
    shape: Shape,
    tensors: Vec<Array>,
}

/// Nodes in topological order with their tensors.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    nodes: Vec<Node>,
    /// Names that are taken, with the last number that was put behind each.
    names: BTreeMap<String, usize>,
}

impl Draft {
    /// Adds a node under this name or one like it.
    ///
    /// # Errors
    /// Where op, inputs and tensors do not fit together.
    pub(crate) fn add(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Value],
        tensors: Vec<Array>,
    ) -> Result<Value, Reason> {
        let shapes: Vec<Shape> = inputs.iter().map(|input| self.shape(*input)).collect();
        let shape = op.infer(name, &shapes).map_err(reason)?;
        let slots = op.slots(&shapes);
        for (slot, tensor) in slots.iter().zip(&tensors) {
            if slot.dims != tensor.dims() {
                return Err(format!("{}: expected {:?}, found {:?}", slot.name, slot.dims, tensor.dims()));
            }
        }
        if slots.len() != tensors.len() {
            return Err(format!("expected {} tensors, found {}", slots.len(), tensors.len()));
        }
        let name = self.unique(name, op.kind());
        self.nodes.push(Node { name, op, inputs: inputs.to_vec(), shape, tensors });
        Ok(Value(self.nodes.len() - 1))
    }

    pub(crate) fn shape(&self, value: Value) -> Shape {
        self.nodes[value.0].shape
    }

    /// Numbers of the weight of a layer; 0 for other nodes.
    pub(crate) fn weights(&self, value: Value) -> usize {
        self.nodes[value.0].tensors.first().map_or(0, |weight| weight.data().len())
    }

    pub(crate) fn op(&self, value: Value) -> &Op {
        &self.nodes[value.0].op
    }

    /// Scales and shifts a value by channel: `scale * x + shift`. What a layer gives that `sole` says nobody else reads is changed
    /// in the layer itself, other maps by a 1x1 convolution of each channel for itself.
    ///
    /// # Errors
    /// For vectors that are not such a layer's.
    pub(crate) fn affine(
        &mut self,
        name: &str,
        value: Value,
        sole: bool,
        scale: &[f32],
        shift: &[f32],
    ) -> Result<Value, Reason> {
        let shape = self.shape(value);
        debug_assert!(scale.len() == shape.channels() && shift.len() == shape.channels());
        if sole && self.nodes[value.0].absorb(scale, shift) {
            return Ok(value);
        }
        match shape {
            Shape::Map { channels, .. } => {
                let conv = Conv2d { groups: channels, ..Conv2d::new(channels, 1) };
                let weight = Array::new(vec![channels, 1, 1, 1], scale.to_vec());
                self.add(
                    name,
                    Op::Conv2d(conv),
                    &[value],
                    vec![weight, Array::new(vec![channels], shift.to_vec())],
                )
            }
            Shape::Vector(_) => {
                Err("scales or shifts a vector that is not the result of a fully connected layer alone"
                    .into())
            }
        }
    }

    /// The model that gives these values.
    ///
    /// # Errors
    /// [`Error`] for graphs without output and numbers that cannot be.
    pub(crate) fn finish(self, outputs: &[Value]) -> Result<Model, Error> {
        let mut builder = Graph::builder();
        let mut ids: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        let mut params = Vec::with_capacity(self.nodes.len());
        for node in self.nodes {
            let inputs: Vec<NodeId> = node.inputs.iter().map(|input| ids[input.0]).collect();
            ids.push(builder.add(&node.name, node.op, &inputs)?);
            params.push(node.tensors);
        }
        let mut seen = BTreeSet::new();
        let outputs: Vec<NodeId> =
            outputs.iter().filter(|output| seen.insert(**output)).map(|output| ids[output.0]).collect();
        let model = Model::new(builder.finish(&outputs)?, Params::new(params))?;
        model.check_finite()?;
        // Drops what no output needs.
        model.rewrite(|b, id, inputs| b.keep(id, inputs))
    }

    /// A usable name that nobody has: `name` without what names cannot have, and a number where it is taken.
    fn unique(&mut self, name: &str, kind: &str) -> String {
        let usable = |c: char| if c.is_ascii_alphanumeric() || "_./-".contains(c) { c } else { '_' };
        let mut name: String = name.trim_matches('/').chars().map(usable).collect();
        if name.is_empty() {
            kind.clone_into(&mut name);
        }
        let mut free = name.clone();
        while self.names.contains_key(&free) {
            // Every name counts for itself, so that many equal ones do not take long.
            let last = self.names.entry(name.clone()).or_insert(1);
            *last += 1;
            free = format!("{name}_{last}");
        }
        self.names.insert(free.clone(), 1);
        free
    }
}

impl Node {
    /// Scales and shifts the result of a layer by changing its tensors; whether it is a layer.
    fn absorb(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        let bias = match &mut self.op {
            Op::Conv2d(conv) => &mut conv.bias,
            Op::Linear(linear) => &mut linear.bias,
            _ => return false,
        };
        let old_bias = bias.then(|| self.tensors[1].data().to_vec());
        *bias = true;
        let weight = &self.tensors[0];
        if scale.iter().any(|factor| *factor != 1.0) {
            let (_, columns) = weight.matrix_dims();
            let rows = weight.data().chunks_exact(columns).zip(scale);
            let scaled: Vec<f32> =
                rows.flat_map(|(row, factor)| row.iter().map(move |w| w * factor)).collect();
            self.tensors[0] = Array::new(weight.dims().to_vec(), scaled);
        }
        let bias: Vec<f32> = match old_bias {
            Some(old) => {
                old.iter().zip(scale).zip(shift).map(|((old, scale), shift)| old * scale + shift).collect()
            }
            None => shift.to_vec(),
        };
        self.tensors.truncate(1);
        self.tensors.push(Array::new(vec![bias.len()], bias));
        true
    }
}

/// Why an op does not fit, without the node's name, which callers put in front.
pub(crate) fn reason(error: Error) -> Reason {
    match error {
        Error::Node { reason, .. } => reason,
        other => other.to_string(),
    }
}
