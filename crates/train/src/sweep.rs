use crate::net::{Mode, Net};
use crate::ops::loss::CrossEntropy;
use crate::ops::{self, Arg, Layer, Saved, tape};
use crate::{Error, Result};
use cofilter_graph::{Node, NodeId, Op, Params};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Elements a task of an elementwise loop handles; smaller tensors stay on one thread.
pub(crate) const PART: usize = 1 << 15;

/// Free buffers by length, so that an iteration touches no fresh memory. Contents are arbitrary.
#[derive(Debug, Default)]
pub(crate) struct Pool(BTreeMap<usize, Vec<Vec<f32>>>);

impl Pool {
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.0.get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; len]);
        if cfg!(debug_assertions) {
            // Whoever reads before writing is found out.
            buffer.fill(f32::NAN);
        }
        buffer
    }

    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        self.0.entry(buffer.len()).or_default().push(buffer);
    }

    fn release(&mut self, value: Option<Value>) {
        if let Some(Ok(buffer)) = value.map(|v| Arc::try_unwrap(v.data)) {
            self.give(buffer);
        }
    }
}

/// The value of a node; flatten and idle dropout share it with their input.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) dims: Vec<usize>,
    data: Arc<Vec<f32>>,
}

impl Value {
    pub(crate) fn data(&self) -> &[f32] {
        &self.data
    }
}

/// A forward pass: what each node gave and keeps for the way back.
pub(crate) struct Trace {
    values: Vec<Option<Value>>,
    layers: Vec<Option<(Box<dyn Layer>, Saved)>>,
}

impl Trace {
    /// The value of a node that was a target, or of any node of a pass that keeps.
    pub(crate) fn value(&self, id: NodeId) -> Option<&Value> {
        self.values[id.index()].as_ref()
    }
}

/// Forward and backward over a network on CPU, the layers of [`ops`] called on plain slices.
///
/// The same numbers as candle's tape gives, bit for bit, without its copies: a gradient is written where it is first
/// needed, and buffers are used again.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    pool: Pool,
    /// What the last backward pass left at each node.
    used: Vec<Saved>,
}

impl Sweep {
    pub(crate) fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Values of `targets` for `images`; all values if a backward pass follows (`keep`).
    pub(crate) fn forward(
        &mut self,
        net: &Net,
        images: Vec<f32>,
        mode: Mode,
        targets: &[NodeId],
        keep: bool,
    ) -> Result<Trace> {
        let graph = net.graph();
        let last_reader = last_readers(net, targets);
        let count = graph.nodes().len();
        let mut trace = Trace {
            values: vec![None; count],
            layers: std::iter::repeat_with(|| None).take(count).collect(),
        };
        let mut images = Some(images);
        for (id, node) in graph.iter() {
            let Some(last) = last_reader[id.index()] else { continue };
            trace.values[id.index()] = Some(match images.take() {
                Some(images) => input(node, images)?,
                None => self.run(net, id, node, mode, keep, &mut trace)?,
            });
            if !keep {
                for read in node.inputs() {
                    if last_reader[read.index()] == Some(id) {
                        self.pool.release(trace.values[read.index()].take());
                    }
                }
            }
            debug_assert!(last >= id, "a node is read after it is made");
        }
        Ok(trace)
    }

    fn run(
        &mut self,
        net: &Net,
        id: NodeId,
        node: &Node,
        mode: Mode,
        keep: bool,
        trace: &mut Trace,
    ) -> Result<Value> {
        let inputs: Vec<&Value> =
            node.inputs().iter().filter_map(|i| trace.values[i.index()].as_ref()).collect();
        let Some(layer) = ops::layer(node, mode, net.running(id, mode)?)? else {
            let dims = std::iter::once(inputs[0].dims[0]).chain(node.shape().dims()).collect();
            return Ok(Value { dims, data: Arc::clone(&inputs[0].data) });
        };
        let vars: Vec<&candle_core::Tensor> = net.learnt(id).map(|v| v.as_tensor()).collect();
        let mut saved = self.used.get_mut(id.index()).map(std::mem::take).unwrap_or_default();
        let value = tape::with_slices(layer.name(), &vars, |params| {
            let mut args: Vec<Arg<'_>> =
                inputs.iter().map(|v| Arg { data: &v.data, dims: &v.dims }).collect();
            args.extend_from_slice(params);
            let dims = layer.dst_dims(&args.iter().map(|a| a.dims).collect::<Vec<_>>());
            let mut dst = self.pool.take(dims.iter().product());
            layer.forward(&args, &mut dst, &mut saved, keep);
            Value { dims, data: Arc::new(dst) }
        })?;
        if let (Saved::Statistics(batch), Mode::Train { .. }) = (&saved, mode) {
            net.update_running(id, inputs[0].data.len(), batch)?;
        }
        trace.layers[id.index()] = Some((layer, saved));
        Ok(value)
    }

    /// Gradients of the learnt tensors that `wanted` asks for, given those of some values; `None` where no path leads.
    ///
    /// Ends the trace.
    pub(crate) fn backward(
        &mut self,
        net: &Net,
        trace: Trace,
        seeds: Vec<(NodeId, Vec<f32>)>,
        wanted: &Params<bool>,
    ) -> Result<Params<Option<Vec<f32>>>> {
        let Trace { mut values, layers } = trace;
        let graph = net.graph();
        let needs = needs_gradient(net, wanted);
        let mut flowing: Vec<Option<Vec<f32>>> = vec![None; graph.nodes().len()];
        let mut result = net.params().map(|_, _, _| None);
        for (id, seed) in seeds {
            self.accumulate(&mut flowing[id.index()], seed);
        }
        let nodes: Vec<(NodeId, &Node)> = graph.iter().collect();
        for (id, node) in nodes.into_iter().rev() {
            match (flowing[id.index()].take(), &layers[id.index()]) {
                (Some(grad), _) if !needs[id.index()] => self.pool.give(grad),
                (Some(grad), None) => self.pass_on(node, grad, &needs, &mut flowing),
                (Some(grad), Some(_)) if matches!(node.op(), Op::Add) => {
                    self.pass_on(node, grad, &needs, &mut flowing);
                }
                (Some(grad), Some((layer, saved))) => {
                    let step =
                        Backward { net, id, node, layer: &**layer, saved, values: &values, needs: &needs };
                    let mut grads = self.node_backward(&step, &grad, wanted)?.into_iter();
                    self.pool.give(grad);
                    for (input, grad) in node.inputs().iter().zip(grads.by_ref()) {
                        if let Some(grad) = grad {
                            self.accumulate(&mut flowing[input.index()], grad);
                        }
                    }
                    result.get_mut(id).iter_mut().zip(grads).for_each(|(place, grad)| *place = grad);
                }
                (None, _) => {}
            }
            self.pool.release(values[id.index()].take());
        }
        self.used =
            layers.into_iter().map(|layer| layer.map(|(_, saved)| saved).unwrap_or_default()).collect();
        Ok(result)
    }

    /// The gradient of every operand is that of the result.
    fn pass_on(&mut self, node: &Node, grad: Vec<f32>, needs: &[bool], flowing: &mut [Option<Vec<f32>>]) {
        let mut takers = node.inputs().iter().filter(|i| needs[i.index()]);
        let first = takers.next();
        for taker in takers {
            let mut copy = self.pool.take(grad.len());
            copy.copy_from_slice(&grad);
            self.accumulate(&mut flowing[taker.index()], copy);
        }
        match first {
            Some(first) => self.accumulate(&mut flowing[first.index()], grad),
            None => self.pool.give(grad),
        }
    }

    fn node_backward(
        &mut self,
        step: &Backward<'_>,
        grad: &[f32],
        wanted: &Params<bool>,
    ) -> Result<Vec<Option<Vec<f32>>>> {
        let Backward { net, id, node, layer, saved, values, needs } = *step;
        let inputs: Vec<&Value> = node.inputs().iter().filter_map(|i| values[i.index()].as_ref()).collect();
        let Some(dst) = &values[id.index()] else { return Ok(Vec::new()) };
        let vars: Vec<&candle_core::Tensor> = net.learnt(id).map(|v| v.as_tensor()).collect();
        let wanted_inputs = node.inputs().iter().map(|i| needs[i.index()]);
        let wanted: Vec<bool> = wanted_inputs.chain(wanted.get(id).iter().copied()).collect();
        Ok(tape::with_slices(layer.name(), &vars, |params| {
            let mut args: Vec<Arg<'_>> =
                inputs.iter().map(|v| Arg { data: &v.data, dims: &v.dims }).collect();
            args.extend_from_slice(params);
            let mut grads: Vec<Option<Vec<f32>>> =
                args.iter().zip(&wanted).map(|(a, w)| w.then(|| self.pool.take(a.data.len()))).collect();
            let mut places: Vec<Option<&mut [f32]>> = grads.iter_mut().map(|g| g.as_deref_mut()).collect();
            layer.backward(&args, &dst.data, saved, grad, &mut places);
            grads
        })?)
    }

    /// `sum += grad`, or `grad` itself if it is the first.
    fn accumulate(&mut self, sum: &mut Option<Vec<f32>>, grad: Vec<f32>) {
        match sum {
            None => *sum = Some(grad),
            Some(sum) => {
                let parts = sum.par_chunks_mut(PART).zip(grad.par_chunks(PART));
                parts.for_each(|(sum, grad)| sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g));
                self.pool.give(grad);
            }
        }
    }

    /// Mean cross entropy of the rows of a value, and its gradient times `weight`.
    pub(crate) fn loss(&mut self, logits: &Value, labels: &[u32], weight: f64) -> (f64, Vec<f32>) {
        let mut grad = self.pool.take(logits.data.len());
        let loss = cofilter_kernels::softmax_cross_entropy(
            logits.dims[0],
            logits.dims[1],
            &logits.data,
            labels,
            Some(&mut grad),
        );
        if weight != 1.0 {
            #[expect(clippy::cast_possible_truncation, reason = "a factor, applied in f32")]
            grad.iter_mut().for_each(|g| *g *= weight as f32);
        }
        (loss, grad)
    }
}

struct Backward<'a> {
    net: &'a Net,
    id: NodeId,
    node: &'a Node,
    layer: &'a dyn Layer,
    saved: &'a Saved,
    values: &'a [Option<Value>],
    needs: &'a [bool],
}

fn input(node: &Node, images: Vec<f32>) -> Result<Value> {
    let len = node.shape().elements();
    if images.is_empty() || !images.len().is_multiple_of(len) {
        return Err(Error::Input(format!(
            "images: expected a multiple of {len} numbers, found {}",
            images.len()
        )));
    }
    let dims = std::iter::once(images.len() / len).chain(node.shape().dims()).collect();
    Ok(Value { dims, data: Arc::new(images) })
}

/// For each node that a target needs, the last node that reads it (a target: the last node of all).
fn last_readers(net: &Net, targets: &[NodeId]) -> Vec<Option<NodeId>> {
    let nodes: Vec<(NodeId, &Node)> = net.graph().iter().collect();
    let end = nodes[nodes.len() - 1].0;
    let mut last: Vec<Option<NodeId>> = vec![None; nodes.len()];
    last[0] = Some(net.graph().input());
    for target in targets {
        last[target.index()] = Some(end);
    }
    for (id, node) in nodes.into_iter().rev() {
        if last[id.index()].is_some() {
            for input in node.inputs() {
                let place = &mut last[input.index()];
                *place = Some(place.map_or(id, |l| l.max(id)));
            }
        }
    }
    last
}

/// Whether a gradient has to reach a node: it or something before it is learnt.
fn needs_gradient(net: &Net, wanted: &Params<bool>) -> Vec<bool> {
    let mut needs = vec![false; net.graph().nodes().len()];
    for (id, node) in net.graph().iter() {
        needs[id.index()] = wanted.get(id).contains(&true) || node.inputs().iter().any(|i| needs[i.index()]);
    }
    needs
}

/// The value that a loss or a score reads: what goes into a softmax, where an output is one.
pub(crate) fn logits(net: &Net, output: NodeId) -> NodeId {
    let node = net.graph().node(output);
    if matches!(node.op(), Op::Softmax) { node.inputs()[0] } else { output }
}

/// The same loss on candle's tape, weighted sum over the heads; for devices without kernels of ours.
pub(crate) fn loss_on_tape(
    heads: &[candle_core::Tensor],
    labels: &[u32],
    weights: &[f64],
) -> Result<(Vec<f64>, candle_core::Tensor)> {
    let mut losses = Vec::with_capacity(heads.len());
    let mut total: Option<candle_core::Tensor> = None;
    for (logits, weight) in heads.iter().zip(weights) {
        let loss = if logits.device().is_cpu() {
            tape::apply(Box::new(CrossEntropy { labels: labels.to_vec() }), &[logits])?.0.squeeze(0)?
        } else {
            ops::compose::cross_entropy(logits, &ops::compose::labels(labels, logits.device())?)?
        };
        losses.push(f64::from(loss.to_scalar::<f32>()?));
        let weighted = (loss * *weight)?;
        total = Some(match total {
            None => weighted,
            Some(sum) => (sum + weighted)?,
        });
    }
    total.map(|t| (losses, t)).ok_or_else(|| Error::Input("no output to take a loss of".into()))
}
