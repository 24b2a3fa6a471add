//! The oracle: every op as the plain `f64` loop of its formula, on the graph itself, for evaluation.
//!
//! Nothing is fused, folded or reordered, and nothing is fast. What every other implementation gives is compared with
//! this; itself it is compared with fixtures that PyTorch computed.

mod map;
mod ops;

use crate::backend::{Executable, Memory, State, StepInfo};
use crate::{Error, Result};
use cofilter_graph::{Model, Node, NodeId, Op};
use ops::Value;
use std::sync::Arc;
use std::time::Instant;

/// The main output of each image: `images` `[n, C, H, W]` to `[n, K]`, row-major.
///
/// # Errors
/// As [`outputs`].
pub fn run(model: &Model, images: &[f32]) -> Result<Vec<f64>> {
    Ok(outputs(model, images)?.swap_remove(0))
}

/// Every output of the network, auxiliary heads included, each `[n, K]`.
///
/// # Errors
/// [`Error::Images`] if `images` is empty or no whole number of images.
pub fn outputs(model: &Model, images: &[f32]) -> Result<Vec<Vec<f64>>> {
    let graph = model.graph();
    let image_len = graph.input_shape().elements();
    if images.is_empty() || !images.len().is_multiple_of(image_len) {
        return Err(Error::Images { image_len, batch: usize::MAX, found: images.len() });
    }
    let mut outputs = vec![Vec::new(); graph.outputs().len()];
    for image in images.chunks_exact(image_len) {
        let values = evaluate(model, image, None);
        for (output, id) in outputs.iter_mut().zip(graph.outputs()) {
            output.extend_from_slice(&values[id.index()]);
        }
    }
    Ok(outputs)
}

/// The value of every node for one image.
fn evaluate(model: &Model, image: &[f32], mut times_us: Option<&mut [f64]>) -> Vec<Vec<f64>> {
    let graph = model.graph();
    let mut values: Vec<Vec<f64>> = Vec::with_capacity(graph.nodes().len());
    for (id, node) in graph.iter() {
        let start = Instant::now();
        let operands: Vec<Value<'_>> = node
            .inputs()
            .iter()
            .map(|i| Value { data: &values[i.index()], shape: graph.node(*i).shape() })
            .collect();
        let value = match node.op() {
            Op::Input { .. } => image.iter().map(|v| f64::from(*v)).collect(),
            op => ops::apply(op, &operands, model.tensors(id), node.shape()),
        };
        debug_assert_eq!(value.len(), node.shape().elements(), "node `{}`", node.name());
        values.push(value);
        if let Some(times_us) = times_us.as_deref_mut() {
            times_us[id.index()] += start.elapsed().as_secs_f64() * 1e6;
        }
    }
    values
}

/// The oracle as a backend of a plan. It interprets the network as it was given, so that comparing the two checks the
/// lowering too.
pub(crate) struct Executor {
    model: Model,
}

impl Executor {
    pub(crate) fn new(model: &Model) -> Self {
        Self { model: model.clone() }
    }

    fn weight_bytes(&self, id: NodeId) -> usize {
        self.model.tensors(id).iter().map(|a| size_of_val(a.data())).sum()
    }
}

impl Executable for Executor {
    fn steps(&self) -> Vec<StepInfo> {
        let macs = self.model.cost();
        let info = |((id, node), cost): ((NodeId, &Node), &cofilter_graph::NodeCost)| StepInfo {
            nodes: node.name().into(),
            algorithm: format!("{}, f64 loops", node.op().kind()),
            result: node.shape(),
            macs: cost.macs,
            images: 1,
            weight_bytes: self.weight_bytes(id),
        };
        self.model.graph().iter().zip(macs.nodes()).map(info).collect()
    }

    fn memory(&self) -> Memory {
        let graph = self.model.graph();
        let values: usize = graph.nodes().iter().map(|node| node.shape().elements()).sum();
        let weight_bytes = graph.iter().map(|(id, _)| self.weight_bytes(id)).sum();
        Memory { weight_bytes, arena_bytes: values * size_of::<f64>(), scratch_bytes: 0 }
    }

    fn session(self: Arc<Self>) -> Box<dyn State> {
        Box::new(Interpreter(self))
    }
}

struct Interpreter(Arc<Executor>);

impl State for Interpreter {
    fn run(
        &mut self,
        n: usize,
        images: &[f32],
        logits: &mut [f32],
        mut times_us: Option<&mut [f64]>,
    ) -> Result<()> {
        let model = &self.0.model;
        let output = model.graph().outputs()[0].index();
        let images = images.chunks_exact(images.len() / n);
        for (image, logits) in images.zip(logits.chunks_exact_mut(logits.len() / n)) {
            let values = evaluate(model, image, times_us.as_deref_mut());
            for (logit, value) in logits.iter_mut().zip(&values[output]) {
                #[expect(clippy::cast_possible_truncation, reason = "computed in f64, given in f32")]
                let rounded = *value as f32;
                *logit = rounded;
            }
        }
        Ok(())
    }
}
