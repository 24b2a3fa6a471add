//! Forward and backward on an NVIDIA GPU, by the kernels of `cofilter-cuda`. Parameters, losses and updates stay where they are on CPU.

use crate::net::{Mode, Net, read};
use crate::ops::{RandomZeros, Statistics};
use crate::{Error, Result};
use cofilter_cuda::learn::{self, Learner, Param, Tape, Value};
use cofilter_cuda::{Elementwise, Geometry, Window};
use cofilter_graph::{Conv2d, LrnRegion, Node, NodeId, Op, Params, PoolKind, Role, Shape};

/// A network on a device, for batches of one length.
pub(crate) struct OnCuda {
    learner: Learner,
    batch: usize,
    params: Params<Option<Param>>,
    /// Normalisations and dropouts, in the order of the graph.
    norms: Vec<NodeId>,
    dropouts: Vec<NodeId>,
}

impl OnCuda {
    /// For batches of `batch` images; `train`: normalisations measure, and gradients of what is `wanted` can be asked for.
    pub(crate) fn new(
        net: &Net,
        heads: &[NodeId],
        wanted: &Params<bool>,
        (device, batch, train): (usize, usize, bool),
    ) -> Result<Self> {
        let device = cofilter_cuda::Device::open(device)?;
        let mut recorder = Recorder::new(net, heads, wanted, train);
        for (id, node) in net.graph().iter() {
            if recorder.read[id.index()] {
                recorder.record(id, node)?;
            }
        }
        let is_image = |head: &&NodeId| recorder.values[head.index()] == Some(recorder.images);
        if let Some(head) = heads.iter().find(is_image) {
            let node = net.graph().node(*head).name();
            return Err(Error::Input(format!("output `{node}`: on a GPU the images cannot be class scores")));
        }
        let values: Vec<Value> = heads.iter().filter_map(|head| recorder.values[head.index()]).collect();
        let mode = if train { learn::Mode::Train } else { learn::Mode::Eval };
        let cache = cofilter_cuda::compile::default_cache();
        let learner = Learner::new(&device, &recorder.tape, &values, (batch, mode), cache.as_deref())?;
        let Recorder { params, norms, dropouts, .. } = recorder;
        Ok(Self { learner, batch, params, norms, dropouts })
    }

    /// Images of a batch.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Computes the values of the heads; fewer images than a batch are filled up with zeros.
    pub(crate) fn forward(&mut self, net: &Net, images: &[f32], mode: Mode) -> Result<()> {
        let (given, rest) = self.learner.images_mut().split_at_mut(images.len());
        given.copy_from_slice(images);
        rest.fill(0.0);
        for (id, slot, param) in self.params.iter() {
            let Some(param) = *param else { continue };
            read(&net.params().get(id)[slot], |numbers| {
                self.learner.param_mut(param).copy_from_slice(numbers)
            })?;
        }
        if let Mode::Train { seed, iteration } = mode {
            for (n, id) in self.dropouts.iter().enumerate() {
                let node = net.graph().node(*id);
                let Op::Dropout { p } = *node.op() else { continue };
                let zeros = RandomZeros { p, seed, iteration, node: node.name().into() };
                let to = self.learner.factors_mut(n);
                to.copy_from_slice(&zeros.factors(to.len()));
            }
        } else {
            for (n, id) in self.norms.iter().enumerate() {
                let vars = &net.params().get(*id)[2..];
                let (mean, variance) = self.learner.moments_mut(n).split_at_mut(vars[0].elem_count());
                read(&vars[0], |numbers| mean.copy_from_slice(numbers))?;
                read(&vars[1], |numbers| variance.copy_from_slice(numbers))?;
            }
        }
        self.learner.forward()?;
        if matches!(mode, Mode::Train { .. }) {
            for (n, id) in self.norms.iter().enumerate() {
                let (mean, var) = self.learner.moments(n).split_at(self.learner.moments(n).len() / 2);
                let elements = self.batch * net.graph().node(*id).shape().elements();
                net.update_running(*id, elements, &Statistics { mean: mean.to_vec(), var: var.to_vec() })?;
            }
        }
        Ok(())
    }

    /// The value of the `n`th head, image by image.
    pub(crate) fn head(&self, n: usize) -> &[f32] {
        self.learner.head(n)
    }

    /// See [`Learner::times`].
    pub(crate) fn times(&self) -> Result<Vec<(&'static str, f64)>> {
        Ok(self.learner.times()?)
    }

    /// Gradients of the learnt tensors, given those of the heads; `None` where no path leads.
    pub(crate) fn backward(&mut self, seeds: &[Vec<f32>]) -> Result<Params<Option<Vec<f32>>>> {
        // Heads may be one value.
        (0..seeds.len()).for_each(|n| self.learner.seed_mut(n).fill(0.0));
        for (n, seed) in seeds.iter().enumerate() {
            self.learner.seed_mut(n).iter_mut().zip(seed).for_each(|(sum, seed)| *sum += seed);
        }
        self.learner.backward()?;
        Ok(self.params.map(|_, _, param| param.and_then(|of| self.learner.gradient(of)).map(<[f32]>::to_vec)))
    }
}

/// Writes a graph down as steps.
struct Recorder<'a> {
    net: &'a Net,
    train: bool,
    tape: Tape,
    images: Value,
    values: Vec<Option<Value>>,
    params: Params<Option<Param>>,
    norms: Vec<NodeId>,
    dropouts: Vec<NodeId>,
    /// Whether a head needs the node.
    read: Vec<bool>,
    /// Whether the ReLU that alone reads a node is computed along with it.
    rectified: Vec<bool>,
}

impl<'a> Recorder<'a> {
    fn new(net: &'a Net, heads: &[NodeId], wanted: &Params<bool>, train: bool) -> Self {
        let graph = net.graph();
        let mut read = vec![false; graph.nodes().len()];
        let mut readers = vec![0; read.len()];
        heads.iter().for_each(|head| read[head.index()] = true);
        let nodes: Vec<(NodeId, &Node)> = graph.iter().collect();
        for (id, node) in nodes.iter().rev() {
            for input in node.inputs().iter().filter(|_| read[id.index()]) {
                readers[input.index()] += 1;
            }
            if read[id.index()] {
                node.inputs().iter().for_each(|input| read[input.index()] = true);
            }
        }
        let mut rectified = vec![false; read.len()];
        for (id, node) in nodes.iter().filter(|(_, node)| matches!(node.op(), Op::Relu)) {
            let input = node.inputs()[0];
            let folds =
                matches!(graph.node(input).op(), Op::Conv2d(_) | Op::Linear(_) | Op::BatchNorm(_) | Op::Add);
            rectified[input.index()] =
                folds && read[id.index()] && readers[input.index()] == 1 && !heads.contains(&input);
        }
        let (mut tape, images) = Tape::new(graph.input_shape().elements());
        let mut values = vec![None; read.len()];
        values[graph.input().index()] = Some(images);
        let params = net.params().map(|id, slot, var| {
            let learnt = net.slots(id)[slot].role != Role::Statistic;
            (learnt && read[id.index()]).then(|| tape.param(var.elem_count(), wanted.get(id)[slot]))
        });
        Self {
            net,
            train,
            tape,
            images,
            values,
            params,
            norms: Vec::new(),
            dropouts: Vec::new(),
            read,
            rectified,
        }
    }

    fn record(&mut self, id: NodeId, node: &Node) -> Result<()> {
        let graph = self.net.graph();
        let srcs: Vec<Value> = node.inputs().iter().filter_map(|input| self.values[input.index()]).collect();
        let Some(first) = srcs.first().copied() else { return Ok(()) };
        let input = graph.node(node.inputs()[0]).shape();
        let relu = self.rectified[id.index()];
        let params: Vec<Param> = self.params.get(id).iter().copied().flatten().collect();
        let op = match node.op() {
            Op::Input { .. } => return Ok(()),
            Op::Flatten => return self.alias(id, first),
            Op::Dropout { p } if !self.train || *p == 0.0 => return self.alias(id, first),
            Op::Relu if self.rectified[node.inputs()[0].index()] => return self.alias(id, first),
            Op::Softmax => {
                return Err(Error::Input(format!(
                    "node `{}`: a softmax is computed on CPU alone, unless it is what a loss or a score reads",
                    node.name()
                )));
            }
            Op::Concat => return self.concat(id, node, &srcs),
            Op::Conv2d(conv) => learn::Op::Conv {
                geometry: geometry(conv, input, node.shape()),
                weight: params[0],
                bias: params.get(1).copied(),
            },
            Op::Linear(of) => learn::Op::Conv {
                geometry: Geometry::linear(input.elements(), of.out_features),
                weight: params[0],
                bias: params.get(1).copied(),
            },
            Op::BatchNorm(of) => {
                self.norms.push(id);
                learn::Op::Normalise {
                    channels: input.channels(),
                    extents: input.spatial(),
                    eps: of.eps,
                    weight: params[0],
                    bias: params[1],
                }
            }
            Op::Relu => {
                return self.step(id, node, (learn::Op::Sum, true), &srcs);
            }
            Op::Dropout { .. } => {
                self.dropouts.push(id);
                learn::Op::Factors
            }
            Op::Add => learn::Op::Sum,
            Op::PadChannels(pad) => {
                let [height, width] = input.spatial();
                learn::Op::Part(pad.before * height * width)
            }
            Op::Pool2d(pool) => {
                let window = Window {
                    kernel: pool.kernel,
                    stride: pool.stride,
                    padding: pool.padding,
                    results: node.shape().spatial(),
                };
                map(
                    input,
                    match pool.kind {
                        PoolKind::Max => Elementwise::MaxPool(window),
                        PoolKind::Average => {
                            Elementwise::MeanPool { window, count_padding: pool.count_padding }
                        }
                    },
                )
            }
            Op::AdaptiveAvgPool { output } => map(input, Elementwise::Adaptive { results: *output }),
            Op::Lrn(of) => {
                let within = of.region == LrnRegion::WithinChannel;
                let count = if within { of.size * of.size } else { of.size };
                #[expect(clippy::cast_precision_loss, reason = "a neighbourhood is far smaller than 2^24")]
                let weight = of.alpha / count as f32;
                map(input, Elementwise::Lrn { within, size: of.size, weight, beta: of.beta, k: of.k })
            }
        };
        self.step(id, node, (op, relu), &srcs)
    }

    fn alias(&mut self, id: NodeId, value: Value) -> Result<()> {
        self.values[id.index()] = Some(value);
        Ok(())
    }

    fn step(&mut self, id: NodeId, node: &Node, (op, relu): (learn::Op, bool), srcs: &[Value]) -> Result<()> {
        let dst = self.tape.value(node.shape().elements());
        self.tape.push(op, srcs, dst, relu)?;
        self.alias(id, dst)
    }

    fn concat(&mut self, id: NodeId, node: &Node, srcs: &[Value]) -> Result<()> {
        let dst = self.tape.value(node.shape().elements());
        let mut at = 0;
        for (src, input) in srcs.iter().zip(node.inputs()) {
            self.tape.push(learn::Op::Part(at), &[*src], dst, false)?;
            at += self.net.graph().node(*input).shape().elements();
        }
        self.alias(id, dst)
    }
}

fn map(shape: Shape, of: Elementwise) -> learn::Op {
    let [height, width] = shape.spatial();
    learn::Op::Map([shape.channels(), height, width], of)
}

fn geometry(conv: &Conv2d, input: Shape, result: Shape) -> Geometry {
    Geometry {
        channels: input.channels(),
        filters: conv.out_channels,
        groups: conv.groups,
        extents: input.spatial(),
        results: result.spatial(),
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
        dilation: conv.dilation,
    }
}
