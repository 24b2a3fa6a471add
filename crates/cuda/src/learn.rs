//! Networks in training: values and gradients of one batch, in `f32`.
//!
//! A [`Tape`] collects the steps of a network, a [`Learner`] has them on a device with all values and gradients, none of which are
//! thrown away. The caller writes images and parameters into page-locked memory, lets values be computed, looks at those that it asked
//! for, writes their gradients, and lets those of the parameters be computed: two copies and one graph each way. Losses and
//! updates are the caller's.
//!
//! Sums are in a fixed order: the same numbers give the same bits on the same device.

mod emit;
mod plan;

use crate::call::{Elementwise, at_most, exactly};
use crate::device::{Buffer, Device, Pinned};
use crate::kernel::Set;
use crate::module::Module;
use crate::pack::Geometry;
use crate::stream::{Event, Graph, Stream};
use crate::{Result, args, call};
use emit::{Emit, Launch};
use plan::Plan;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Numbers of each image, in a network of a [`Tape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(usize);

/// Numbers that all images share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param(usize);

/// What a step computes.
#[derive(Clone, Debug)]
pub enum Op {
    /// A convolution, or a fully connected layer as one. `weight` `[filters, channels / groups, height, width]`, `bias` `[filters]`.
    Conv {
        /// Extents.
        geometry: Geometry,
        /// Filters.
        weight: Param,
        /// Added to each filter's results.
        bias: Option<Param>,
    },
    /// Batch normalisation: `weight * (x - mean) / sqrt(variance + eps) + bias` by channel.
    Normalise {
        /// Channels.
        channels: usize,
        /// `[height, width]`.
        extents: [usize; 2],
        /// Added to the variance.
        eps: f32,
        /// Factor of each channel.
        weight: Param,
        /// Added to each channel.
        bias: Param,
    },
    /// The sum of the sources.
    Sum,
    /// The source as a part of each image of the result, after so many elements. Other steps may write other parts; what none
    /// writes is zero.
    Part(usize),
    /// The source, each element times a factor that the caller gives.
    Factors,
    /// What looks at a few elements of a map `[channels, height, width]`: pooling or response normalisation.
    Map([usize; 3], Elementwise),
}

impl Op {
    fn params(&self) -> impl Iterator<Item = Param> {
        let both = match self {
            Self::Conv { weight, bias, .. } => [Some(*weight), *bias],
            Self::Normalise { weight, bias, .. } => [Some(*weight), Some(*bias)],
            _ => [None; 2],
        };
        both.into_iter().flatten()
    }
}

/// A step of a network.
#[derive(Clone, Debug)]
struct Step {
    op: Op,
    srcs: Vec<Value>,
    dst: Value,
    relu: bool,
}

/// A network, step by step.
#[derive(Debug)]
pub struct Tape {
    /// Elements of an image, by value. The first are the images.
    lens: Vec<usize>,
    /// Numbers, and whether their gradient is wanted.
    params: Vec<(usize, bool)>,
    steps: Vec<Step>,
}

/// How batch normalisation takes its mean and variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Of the batch; gradients can be asked for.
    Train,
    /// Those that the caller gives; there are no gradients.
    Eval,
}

impl Tape {
    /// For images of so many elements, and they themselves.
    #[must_use]
    pub fn new(image_len: usize) -> (Self, Value) {
        (Self { lens: vec![image_len], params: Vec::new(), steps: Vec::new() }, Value(0))
    }

    /// A value of so many elements of each image.
    pub fn value(&mut self, len: usize) -> Value {
        self.lens.push(len);
        Value(self.lens.len() - 1)
    }

    /// So many numbers that all images share, and whether their gradient is wanted.
    pub fn param(&mut self, len: usize, wanted: bool) -> Param {
        self.params.push((len, wanted));
        Param(self.params.len() - 1)
    }

    /// Adds a step; `relu`: its result is rectified, which there is for convolutions, normalisations and sums. A value is the result of
    /// one step, but for parts, and of one whose sources were made before it; a parameter belongs to one step.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) if something does not fit, [`Error::TooLarge`](crate::Error::TooLarge) for what is beyond
    /// its image or more than the kernels can count.
    pub fn push(&mut self, op: Op, srcs: &[Value], dst: Value, relu: bool) -> Result<()> {
        let step = Step { op, srcs: srcs.to_vec(), dst, relu };
        self.check(&step)?;
        self.steps.push(step);
        Ok(())
    }

    fn len(&self, value: Value) -> Result<usize> {
        at_most("number of a value", value.0 + 1, self.lens.len())?;
        Ok(self.lens[value.0])
    }

    /// A parameter belongs to one step.
    fn takes(&self, what: &str, param: Param, len: usize) -> Result<()> {
        at_most("number of a parameter", param.0 + 1, self.params.len())?;
        let taken = self.steps.iter().flat_map(|step| step.op.params()).filter(|other| *other == param);
        exactly("steps before with the same parameter", taken.count(), 0)?;
        exactly(what, self.params[param.0].0, len)
    }

    fn check(&self, step: &Step) -> Result<()> {
        let Step { op, srcs, dst, relu } = step;
        let Some(first) = srcs.first() else { return exactly("sources of a step", 0, 1) };
        if !matches!(op, Op::Sum) {
            exactly("sources of a step", srcs.len(), 1)?;
        }
        let (src, len) = (self.len(*first)?, self.len(*dst)?);
        for src in srcs {
            exactly("sources that come after their step", usize::from(src.0 >= dst.0), 0)?;
        }
        let parts = |other: &Step| matches!((op, &other.op), (Op::Part(_), Op::Part(_)));
        let written = self.steps.iter().filter(|other| other.dst == *dst && !parts(other)).count();
        exactly("steps before with the same result", written, 0)?;
        let same = |src: usize| exactly("elements of the source of a step", src, len);
        let plain = |what: &str| exactly(&format!("rectifications after {what}"), usize::from(*relu), 0);
        match op {
            Op::Conv { geometry, weight, bias } => {
                let groups = geometry.groups;
                let whole = groups > 0
                    && geometry.channels.is_multiple_of(groups)
                    && geometry.filters.is_multiple_of(groups)
                    && geometry.channels.min(geometry.filters) > 0
                    && geometry.is_regular();
                exactly("convolutions whose extents do not fit together", usize::from(!whole), 0)?;
                call::check_windows(geometry, &at_most)?;
                let taps = geometry.kernel[0] * geometry.kernel[1];
                at_most("taps of a filter in training", taps, plan::MOST_TAPS)?;
                at_most(
                    "filters or channels of a group",
                    geometry.filters.max(geometry.channels) / groups,
                    65_535 * 8,
                )?;
                at_most("groups", groups, 1 << 10)?;
                let [reads, writes] = geometry.lens();
                exactly("elements of the source of a convolution", src, reads)?;
                exactly("elements of the result of a convolution", len, writes)?;
                self.takes("weights of a convolution", *weight, geometry.filters * geometry.columns())?;
                bias.map_or(Ok(()), |bias| self.takes("biases", bias, geometry.filters))
            }
            Op::Normalise { channels, extents: [height, width], weight, bias, .. } => {
                exactly("elements of a normalised map", src, channels * height * width)?;
                exactly("maps without elements", usize::from(src == 0), 0)?;
                self.takes("factors of a normalisation", *weight, *channels)?;
                self.takes("summands of a normalisation", *bias, *channels)?;
                same(src)
            }
            Op::Sum => srcs.iter().try_for_each(|src| same(self.len(*src)?)),
            Op::Part(at) => at_most("end of a part of an image", at.saturating_add(src), len),
            Op::Factors => {
                plain("factors")?;
                same(src)
            }
            Op::Map(shape, of) => {
                plain("a map")?;
                let (name, map, result) = call::elementwise(*shape, *of);
                let unknown = matches!(of, Elementwise::Softmax | Elementwise::Copy { .. });
                exactly(&format!("gradients of {name}"), usize::from(unknown), 0)?;
                let pools = matches!(of, Elementwise::MaxPool(_) | Elementwise::MeanPool { .. });
                let stands = pools && map.stride.iter().chain(&map.kernel).any(|n| *n < 1);
                exactly("windows without extent or step", usize::from(stands), 0)?;
                call::check_extents(&map, &at_most)?;
                exactly("elements of a map", src, shape.iter().product())?;
                exactly("elements of its result", result, len)
            }
        }
    }

    /// Places of the mean and the variance of each normalisation among the moments, in the order of the steps.
    fn moments(&self) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        for step in &self.steps {
            if let Op::Normalise { channels, .. } = step.op {
                ranges.push(at..at + 2 * channels);
                at += 2 * channels;
            }
        }
        ranges
    }
}

/// A network in training on a device, for a number of images. Two heads that are one value are one: their seeds are to be added.
pub struct Learner {
    images: Range<usize>,
    params: Vec<Range<usize>>,
    factors: Vec<Range<usize>>,
    moments: Vec<Range<usize>>,
    heads: Vec<Range<usize>>,
    gradients: Vec<Option<Range<usize>>>,
    mode: Mode,
    // Dropped in this order: what uses memory before the memory.
    forward: Pass,
    backward: Pass,
    stream: Stream,
    input: Pinned,
    output: Pinned,
    seeds: Pinned,
    results: Pinned,
    buffers: Buffers,
    device: Device,
    _module: Arc<Module>,
}

/// Memory on the device.
struct Buffers {
    /// Images, factors, parameters and, to evaluate, moments.
    input: Buffer,
    /// Values that were asked for and, in training, moments.
    output: Buffer,
    /// Gradients of those values.
    seeds: Buffer,
    /// Gradients of parameters.
    gradients: Buffer,
    /// Everything else.
    arena: Buffer,
    /// Where elements of windows lie.
    tables: Buffer,
    /// How weights are packed.
    packs: Buffer,
}

/// What is ordered at a time.
struct Pass {
    launches: Vec<Launch>,
    /// Once it has run twice.
    graph: Option<Graph>,
    has_run: bool,
}

impl Learner {
    /// Puts a network on a device for `batch` images; `heads` are the values that are looked at. The kernels are compiled, or taken from
    /// `cache`.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) for what the kernels cannot count, [`Error::Memory`](crate::Error::Memory), what the
    /// compiler and the driver say.
    pub fn new(
        device: &Device,
        tape: &Tape,
        heads: &[Value],
        (batch, mode): (usize, Mode),
        cache: Option<&Path>,
    ) -> Result<Self> {
        exactly("batches without images", usize::from(batch == 0), 0)?;
        for head in heads {
            tape.len(*head)?;
            exactly("images that are looked at", usize::from(head.0 == 0), 0)?;
        }
        for len in &tape.lens {
            at_most("elements of a batch", batch.saturating_mul(*len), call::COUNTED)?;
        }
        let module = Module::shared(Set::Learn, device, cache)?;
        let plan = Plan::new(device, tape, heads, (batch, mode))?;
        let bytes = |len: usize| len.max(1) * size_of::<f32>();
        let buffers = Buffers {
            input: Buffer::new(device, "images and parameters", bytes(plan.input_len))?,
            output: Buffer::new(device, "results", bytes(plan.output_len))?,
            seeds: Buffer::new(device, "gradients of results", bytes(plan.seeds_len))?,
            gradients: Buffer::new(device, "gradients of parameters", bytes(plan.gradients_len))?,
            arena: Buffer::new(device, "values and gradients", bytes(plan.arena_len))?,
            tables: Buffer::new(device, "tables", bytes(plan.tables.len()))?,
            packs: Buffer::new(device, "lists of weights", 2 * tape.steps.len() * size_of::<args::Pack>())?,
        };
        let stream = Stream::new(device)?;
        stream.upload(&buffers.tables, &plan.tables)?;
        let ([forward, backward], learnt) = Emit::all(&plan, &module, &buffers, &stream)?;
        let pinned = |what, len| Pinned::new(device, what, len);
        let mut learner = Self {
            images: 0..batch * tape.lens[0],
            params: plan.params,
            factors: plan.factors,
            moments: tape.moments(),
            heads: plan.heads,
            gradients: plan
                .gradients
                .into_iter()
                .zip(learnt)
                .map(|(range, learnt)| range.filter(|_| learnt))
                .collect(),
            mode,
            input: pinned("images and parameters", plan.input_len)?,
            output: pinned("results", plan.output_len)?,
            seeds: pinned("gradients of results", plan.seeds_len)?,
            results: pinned("gradients of parameters", plan.gradients_len)?,
            forward: Pass { launches: forward, graph: None, has_run: false },
            backward: Pass { launches: backward, graph: None, has_run: false },
            buffers,
            stream,
            device: device.clone(),
            _module: module,
        };
        let before = if mode == Mode::Eval { plan.moments_at } else { plan.head_len };
        learner.moments.iter_mut().for_each(|range| *range = range.start + before..range.end + before);
        // What no part of an image writes.
        if tape.steps.iter().any(|step| matches!(step.op, Op::Part(_))) {
            learner.zero(&learner.buffers.arena, plan.arena_len)?;
            learner.zero(&learner.buffers.output, plan.output_len)?;
        }
        Ok(learner)
    }

    fn zero(&self, buffer: &Buffer, len: usize) -> Result<()> {
        const AT_ONCE: usize = 1 << 20;
        let zeros = vec![0_u32; len.min(AT_ONCE)];
        for at in (0..len).step_by(AT_ONCE) {
            let part = &zeros[..(len - at).min(AT_ONCE)];
            self.stream.upload_at(buffer, at * size_of::<f32>(), part)?;
        }
        Ok(())
    }

    /// The images, one after the other, to be written.
    pub fn images_mut(&mut self) -> &mut [f32] {
        &mut self.input.as_mut_slice()[self.images.clone()]
    }

    /// A parameter, to be written; it stays until it is written again.
    pub fn param_mut(&mut self, param: Param) -> &mut [f32] {
        &mut self.input.as_mut_slice()[self.params[param.0].clone()]
    }

    /// The factors of the `n`th step that has some, to be written.
    pub fn factors_mut(&mut self, n: usize) -> &mut [f32] {
        &mut self.input.as_mut_slice()[self.factors[n].clone()]
    }

    /// Means, then variances, of the channels of the `n`th normalisation, to be written; nobody reads them where they are measured.
    ///
    /// # Panics
    /// As all that takes a number or a parameter, where there are not as many.
    pub fn moments_mut(&mut self, n: usize) -> &mut [f32] {
        let range = self.moments[n].clone();
        match self.mode {
            Mode::Eval => &mut self.input.as_mut_slice()[range],
            Mode::Train => &mut self.output.as_mut_slice()[range],
        }
    }

    /// As they were in the last batch: means, then variances divided by the number of elements.
    #[must_use]
    pub fn moments(&self, n: usize) -> &[f32] {
        let numbers = if self.mode == Mode::Eval { &self.input } else { &self.output };
        &numbers.as_slice()[self.moments[n].clone()]
    }

    /// The `n`th head, image by image.
    #[must_use]
    pub fn head(&self, n: usize) -> &[f32] {
        &self.output.as_slice()[self.heads[n].clone()]
    }

    /// The gradient of the `n`th head, to be written.
    pub fn seed_mut(&mut self, n: usize) -> &mut [f32] {
        &mut self.seeds.as_mut_slice()[self.heads[n].clone()]
    }

    /// The gradient of a parameter, if it is wanted and something leads to it.
    #[must_use]
    pub fn gradient(&self, param: Param) -> Option<&[f32]> {
        self.gradients[param.0].clone().map(|range| &self.results.as_slice()[range])
    }

    /// Computes all values.
    ///
    /// # Errors
    /// What the driver says. The device can hardly be used after that.
    pub fn forward(&mut self) -> Result<()> {
        let (from, to) = ((&self.input, &self.buffers.input), (&self.output, &self.buffers.output));
        self.forward.run(&self.stream, from, to)
    }

    /// Computes the gradients of the parameters from those of the heads, for the values that were computed last.
    ///
    /// # Errors
    /// As [`Learner::forward`].
    pub fn backward(&mut self) -> Result<()> {
        let (from, to) = ((&self.seeds, &self.buffers.seeds), (&self.results, &self.buffers.gradients));
        self.backward.run(&self.stream, from, to)
    }
}

impl Learner {
    /// Names of the kernels of both ways, in order, each with its time in microseconds. Values and gradients on the device become those of
    /// what the host has written so far.
    ///
    /// # Errors
    /// As [`Learner::forward`].
    pub fn times(&self) -> Result<Vec<(&'static str, f64)>> {
        let launches = || self.forward.launches.iter().chain(&self.backward.launches);
        let mut moments = Vec::new();
        let mut moment = || {
            let event = Event::new(&self.device)?;
            event.record(&self.stream)?;
            moments.push(event);
            Ok(())
        };
        self.stream.bind()?;
        let mut order = || {
            // While these are copied, what follows is ordered: times would be those of the host.
            for _ in 0..64 {
                self.stream.copy_to_device(&self.buffers.input, &self.input, self.input.as_slice().len())?;
            }
            for launch in launches() {
                moment()?;
                launch.order(&self.stream)?;
            }
            moment()
        };
        let ordered = order();
        let waited = self.stream.synchronize();
        ordered.and(waited)?;
        let time = |(launch, pair): (&Launch, &[Event])| Ok((launch.name(), pair[1].since_us(&pair[0])?));
        launches().zip(moments.windows(2)).map(time).collect()
    }
}

impl std::fmt::Debug for Learner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner").field("mode", &self.mode).field("params", &self.params.len()).finish()
    }
}

impl Pass {
    /// Copies in, computes, copies out, and waits.
    fn run(&mut self, stream: &Stream, from: (&Pinned, &Buffer), to: (&Pinned, &Buffer)) -> Result<()> {
        let launches = &self.launches;
        let order = || {
            stream.copy_to_device(from.1, from.0, from.0.as_slice().len())?;
            launches.iter().try_for_each(|launch| launch.order(stream))?;
            stream.copy_to_host(to.0, to.1, 0, to.0.as_slice().len())
        };
        stream.bind()?;
        // Kernels are loaded when they first run, which is not possible in a capture.
        if self.has_run && self.graph.is_none() {
            self.graph = Some(stream.capture(order)?);
        }
        let ordered = match &self.graph {
            Some(graph) => stream.launch_graph(graph),
            None => order(),
        };
        // Whatever was ordered reads and writes memory that the caller may look at now.
        let waited = stream.synchronize();
        self.has_run = true;
        ordered.and(waited)
    }
}
