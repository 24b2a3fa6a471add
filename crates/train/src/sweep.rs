use crate::layout::{Layout, read};
use crate::net::{Mode, Net};
use crate::ops::{Arg, Layer, Saved, tape};
use crate::{Error, Result};
use cofilter_graph::{Node, NodeId, Op, Params};
use cofilter_kernels::blocked::{GradientSums, Moments, PackedMemory, Place, Step, View};
use cofilter_kernels::{Par, accumulate, relu_backward_in_place};
use conv::Through;
use inlined::Inlined;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

mod conv;
mod dense;
mod inlined;
mod maps;

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

    /// A buffer that begins at a cache line, for vectors that are as wide.
    fn aligned(&mut self, len: usize) -> Numbers {
        let numbers = self.take(len + LINE);
        let skip = numbers.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Numbers { numbers, range: skip..skip + len }
    }

    /// Scratch memory of `len` numbers for each of some threads, for a kernel.
    fn scratch(&mut self, len: usize, threads: usize) -> Vec<f32> {
        self.take(if len == 0 { 0 } else { len * threads + Step::SCRATCH_MORE })
    }

    fn back(&mut self, numbers: Numbers) {
        self.give(numbers.numbers);
    }

    /// Takes numbers back, unless someone else still has them.
    fn release(&mut self, numbers: Arc<Numbers>) {
        if let Ok(numbers) = Arc::try_unwrap(numbers) {
            self.back(numbers);
        }
    }
}

/// Numbers in a cache line.
const LINE: usize = 16;

/// The numbers of a value or of its gradient: a part of a buffer.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    numbers: Vec<f32>,
    range: Range<usize>,
}

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        Self { range: 0..numbers.len(), numbers }
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers[self.range.clone()]
    }
}

impl DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[self.range.clone()]
    }
}

/// The gradient of a value; operands of a sum share theirs.
#[derive(Clone, Debug)]
struct Gradient(Arc<Numbers>);

impl From<Numbers> for Gradient {
    fn from(numbers: Numbers) -> Self {
        Self(Arc::new(numbers))
    }
}

impl Deref for Gradient {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl Gradient {
    /// Whether no other node has it as well.
    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Its numbers, or a copy of them where other nodes have it as well.
    fn own(self, pool: &mut Pool) -> Numbers {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| {
            let mut copy = pool.aligned(shared.len());
            copy.copy_from_slice(&shared);
            copy
        })
    }
}

/// Gradients of the inputs of a node, and of its learnt tensors.
#[derive(Default)]
struct Gradients {
    inputs: Vec<Option<Numbers>>,
    learnt: Vec<Option<Vec<f32>>>,
}

/// The value of a node, laid out as [`Layout`] says; a value that passes unchanged is shared.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) dims: Vec<usize>,
    data: Arc<Numbers>,
}

impl Value {
    pub(crate) fn data(&self) -> &[f32] {
        &self.data
    }
}

/// What a node did on the way forward.
enum Done {
    /// Nothing: the value is that of its input.
    Passed,
    /// A map became a vector.
    Flattened,
    /// An op on blocked maps.
    Mapped(Saved),
    /// A normalisation that is computed where it is read.
    Later(Saved),
    /// A layer on dense numbers.
    Dense(Box<dyn Layer>, Saved),
}

/// What an op on blocked maps gave.
enum Made {
    Map(Value),
    /// What reads the node computes it.
    Later,
    /// There is no such op.
    Nothing,
}

/// A forward pass: what each node gave and keeps for the way back.
pub(crate) struct Trace {
    images: usize,
    values: Vec<Option<Value>>,
    done: Vec<Option<Done>>,
}

impl Trace {
    /// The value of a node that was a target, or of any node of a pass that keeps but those that are computed where they are read.
    /// Maps lie in blocks.
    pub(crate) fn value(&self, id: NodeId) -> Option<&Value> {
        self.values[id.index()].as_ref()
    }
}

/// Forward and backward over a network on CPU.
///
/// The same as candle's tape gives but for rounding, without its copies: maps stay in blocks of channels from op to op, a ReLU is
/// part of what comes before it, a gradient is written where it is first needed, and buffers are used again. In training, a
/// normalisation that only a convolution or a sum reads is computed there, forward and backward, and never stored. Ops that have
/// no kernel for blocked maps run as the layers of [`ops`] do on the tape, on dense copies.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// See [`Recipe::tolerance`](crate::Recipe::tolerance).
    tolerance: f32,
    pool: Pool,
    packed: PackedMemory,
    layout: Option<Layout>,
    /// What the last backward pass left at each node.
    used: Vec<Saved>,
    /// Moments of the input of a normalisation, where that was computed along with them.
    moments: BTreeMap<NodeId, Vec<Moments>>,
    /// Sums of the gradients of a normalisation, where those were computed along with them.
    sums: BTreeMap<NodeId, Vec<GradientSums>>,
    /// What the gradient that reaches a convolution has still to pass.
    through: BTreeMap<NodeId, Through>,
}

impl Sweep {
    pub(crate) fn new(tolerance: f32) -> Self {
        Self { tolerance, ..Self::default() }
    }

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
        let layout = self.layout.take().unwrap_or_else(|| Layout::new(graph));
        // A pass that failed may have left something.
        self.moments.clear();
        self.sums.clear();
        self.through.clear();
        let last_reader = last_readers(net, targets);
        let count = graph.nodes().len();
        let mut trace = Trace {
            images: 0,
            values: vec![None; count],
            done: std::iter::repeat_with(|| None).take(count).collect(),
        };
        let mut images = Some(images);
        for (id, node) in graph.iter() {
            let Some(last) = last_reader[id.index()] else { continue };
            let value = match images.take() {
                Some(images) => Some(self.input(&layout, id, node, images)?),
                None => {
                    let pass = Pass { net, layout: &layout, id, node, images: trace.images };
                    let mut saved = self.used.get_mut(id.index()).map(std::mem::take).unwrap_or_default();
                    let inputs: Vec<&Value> =
                        node.inputs().iter().filter_map(|i| trace.values[i.index()].as_ref()).collect();
                    let inlined = Inlined::of((net, &layout), id, &trace.values, &trace.done);
                    let (value, done) =
                        match self.map_forward(&pass, &inputs, inlined, mode, keep, &mut saved)? {
                            Made::Map(value) => (Some(value), Done::Mapped(saved)),
                            Made::Later => (None, Done::Later(saved)),
                            // A ReLU of such a node.
                            Made::Nothing if inputs.is_empty() => (None, Done::Passed),
                            Made::Nothing => {
                                let (value, done) = self.other_forward(&pass, &inputs, mode, keep, saved)?;
                                (Some(value), done)
                            }
                        };
                    if let (
                        Done::Mapped(Saved::Statistics(s))
                        | Done::Later(Saved::Statistics(s))
                        | Done::Dense(_, Saved::Statistics(s)),
                        Mode::Train { .. },
                    ) = (&done, mode)
                    {
                        net.update_running(id, inputs[0].dims.iter().product(), s)?;
                    }
                    trace.done[id.index()] = Some(done);
                    value
                }
            };
            trace.images = value.as_ref().map_or(trace.images, |value| value.dims[0]);
            trace.values[id.index()] = value;
            if !keep {
                for read in node.inputs() {
                    if last_reader[read.index()] == Some(id)
                        && let Some(value) = trace.values[read.index()].take()
                    {
                        self.pool.release(value.data);
                    }
                }
            }
            debug_assert!(last >= id, "a node is read after it is made");
        }
        self.layout = Some(layout);
        Ok(trace)
    }

    /// The value of a target without gaps.
    pub(crate) fn dense(&mut self, net: &Net, trace: &Trace, id: NodeId) -> Option<Vec<f32>> {
        let value = trace.value(id)?;
        let view = self.layout.as_ref().and_then(|layout| layout.view(id)).cloned();
        let Some(view) = view else { return Some(value.data().to_vec()) };
        let to = dense(net.graph().node(id), Place::Arena);
        Some(self.relayout(&view, &to, trace.images, value.data()).to_vec())
    }

    /// The images, laid out for what reads them.
    fn input(&mut self, layout: &Layout, id: NodeId, node: &Node, images: Vec<f32>) -> Result<Value> {
        let len = node.shape().elements();
        if images.is_empty() || !images.len().is_multiple_of(len) {
            return Err(Error::Input(format!(
                "images: expected a multiple of {len} numbers, found {}",
                images.len()
            )));
        }
        let count = images.len() / len;
        let dims = std::iter::once(count).chain(node.shape().dims()).collect();
        let data = match layout.view(id) {
            Some(view) if *view != dense(node, Place::Arena) => {
                let mut laid_out = self.relayout(&dense(node, Place::Images), view, count, &images);
                // Planes of an image need not fill its memory.
                let used = view.blocks() * view.block_stride;
                laid_out.chunks_mut(view.image_stride).for_each(|image| image[used..].fill(0.0));
                self.pool.give(images);
                laid_out
            }
            _ => images.into(),
        };
        Ok(Value { dims, data: Arc::new(data) })
    }

    /// The numbers of a map in another layout.
    fn relayout(&mut self, from: &View, to: &View, images: usize, numbers: &[f32]) -> Numbers {
        let mut result = self.pool.aligned(to.memory_len(images));
        Step::relayout(&read(from), to).run(images, numbers, &mut result, Par::Rayon);
        result
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
        let Trace { images, mut values, done } = trace;
        let graph = net.graph();
        let layout = self.layout.take().unwrap_or_else(|| Layout::new(graph));
        let needs = needs_gradient(net, wanted);
        let mut flowing: Vec<Option<Gradient>> = vec![None; graph.nodes().len()];
        let mut result = net.params().map(|_, _, _| None);
        for (id, seed) in seeds {
            self.accumulate(&mut flowing[id.index()], Numbers::from(seed).into());
        }
        let nodes: Vec<(NodeId, &Node)> = graph.iter().collect();
        for (id, node) in nodes.into_iter().rev() {
            let grad = flowing[id.index()].take();
            let pass = Pass { net, layout: &layout, id, node, images };
            match (grad, &done[id.index()]) {
                (Some(grad), _) if !needs[id.index()] => self.pool.release(grad.0),
                (Some(grad), None | Some(Done::Passed)) => self.pass_on(node, grad, &needs, &mut flowing),
                (Some(grad), Some(Done::Flattened)) => {
                    let input = node.inputs()[0];
                    if let Some(view) = layout.view(input) {
                        let map =
                            self.relayout(&dense(graph.node(input), Place::Images), view, images, &grad);
                        self.accumulate(&mut flowing[input.index()], map.into());
                    }
                    self.pool.release(grad.0);
                }
                (Some(grad), Some(_)) if matches!(node.op(), Op::Add) => {
                    let mut grad = grad;
                    if let (true, Some(value)) = (layout.rectified(id), &values[id.index()]) {
                        let mut own = grad.own(&mut self.pool);
                        relu_backward_in_place(value.data(), &mut own, Par::Rayon);
                        grad = own.into();
                    }
                    self.pass_on(node, grad, &needs, &mut flowing);
                }
                (Some(grad), Some(made)) => {
                    let input = node.inputs()[0].index();
                    let wanted_inputs = node.inputs().iter().map(|i| needs[i.index()]);
                    let wanted: Vec<bool> = wanted_inputs.chain(wanted.get(id).iter().copied()).collect();
                    let mut onto = flowing[input].take();
                    let grads = match made {
                        Done::Dense(layer, saved) => {
                            self.other_backward(&pass, &**layer, saved, &values, &grad, &wanted)?
                        }
                        Done::Mapped(saved) | Done::Later(saved) => {
                            let inlined = Inlined::of((net, &layout), id, &values, &done);
                            self.map_backward(&pass, saved, &values, inlined, &grad, &mut onto, &wanted)?
                        }
                        Done::Passed | Done::Flattened => Gradients::default(),
                    };
                    flowing[input] = onto;
                    match self.through.contains_key(&node.inputs()[0]) {
                        // A normalisation hands its gradient on as it is.
                        true => flowing[input] = Some(grad),
                        false => self.pool.release(grad.0),
                    }
                    for (input, grad) in node.inputs().iter().zip(grads.inputs) {
                        if let Some(grad) = grad {
                            self.accumulate(&mut flowing[input.index()], grad.into());
                        }
                    }
                    let places = result.get_mut(id).iter_mut().zip(grads.learnt);
                    places.for_each(|(place, grad)| *place = grad);
                }
                (None, _) => {}
            }
            if let Some(value) = values[id.index()].take() {
                self.pool.release(value.data);
            }
        }
        self.used = done.into_iter().map(|done| done.map(Done::into_saved).unwrap_or_default()).collect();
        self.layout = Some(layout);
        Ok(result)
    }

    /// The gradient of every operand is that of the result.
    fn pass_on(&mut self, node: &Node, grad: Gradient, needs: &[bool], flowing: &mut [Option<Gradient>]) {
        for taker in node.inputs().iter().filter(|i| needs[i.index()]) {
            self.accumulate(&mut flowing[taker.index()], grad.clone());
        }
        self.pool.release(grad.0);
    }

    /// `sum + grad`, or `grad` itself if it is the first.
    fn accumulate(&mut self, sum: &mut Option<Gradient>, grad: Gradient) {
        *sum = Some(match sum.take() {
            None => grad,
            Some(sum) => {
                // Added to the one that need not be copied.
                let (to, from) = if sum.is_alone() { (sum, grad) } else { (grad, sum) };
                let mut to = to.own(&mut self.pool);
                accumulate(&from, &mut to, Par::Rayon);
                self.pool.release(from.0);
                to.into()
            }
        });
    }
}

/// A node on the way.
#[derive(Clone, Copy)]
struct Pass<'a> {
    net: &'a Net,
    layout: &'a Layout,
    id: NodeId,
    node: &'a Node,
    images: usize,
}

impl Done {
    fn into_saved(self) -> Saved {
        match self {
            Self::Passed | Self::Flattened => Saved::Nothing,
            Self::Mapped(saved) | Self::Later(saved) | Self::Dense(_, saved) => saved,
        }
    }
}

/// Runs `f` with the learnt tensors of a node.
fn with_learnt<T>(net: &Net, id: NodeId, f: impl FnOnce(&[Arg<'_>]) -> T) -> Result<T> {
    let vars: Vec<&candle_core::Tensor> = net.learnt(id).map(|v| v.as_tensor()).collect();
    Ok(tape::with_slices("sweep", &vars, f)?)
}

/// A layout that a node's op asked for, or a value of it, is missing: better no gradient than a wrong one.
fn no_map(node: &Node) -> Error {
    Error::Input(format!(
        "node `{}`: its value or that of an input was not kept for the way back",
        node.name()
    ))
}

/// The map of a node without gaps.
fn dense(node: &Node, place: Place) -> View {
    View::dense(place, node.shape().channels(), node.shape().spatial())
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
