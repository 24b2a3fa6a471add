//! From steps to kernels: what is ordered on the way there and on the way back.
#![expect(unsafe_code, reason = "kernels are ordered within memory that was laid out for them")]

use super::plan::{At, PARTS, Plan, Product, Region, SHARED, reversed};
use super::{Buffers, Op, Param, Step, Value};
use crate::api::DevicePtr;
use crate::call::{Elementwise, elementwise, named};
use crate::kernel::Kernel;
use crate::module::{Function, Module};
use crate::pack::{Geometry, int};
use crate::stream::Stream;
use crate::{Result, args};

/// The struct of a kernel.
#[derive(Clone, Copy)]
enum Argument {
    Conv(args::Conv),
    Map(args::Map),
    Packs(args::Packs),
    Source(args::Source),
    Learn(args::Learn),
}

/// A kernel with all that it is told.
pub(super) struct Launch {
    kernel: Kernel,
    function: Function,
    argument: Argument,
    grid: [u32; 3],
    shared: u32,
}

impl Launch {
    pub(super) fn name(&self) -> &'static str {
        self.kernel.name()
    }

    pub(super) fn order(&self, stream: &Stream) -> Result<()> {
        let Self { function, argument, grid, shared, .. } = self;
        // SAFETY: `Emit` made the struct for this kernel, with addresses in buffers of the learner, which waits for the stream before it
        // gives them back.
        unsafe {
            match argument {
                Argument::Conv(of) => stream.launch(function, of, *grid, *shared),
                Argument::Map(of) => stream.launch(function, of, *grid, *shared),
                Argument::Packs(of) => stream.launch(function, of, *grid, *shared),
                Argument::Source(of) => stream.launch(function, of, *grid, *shared),
                Argument::Learn(of) => stream.launch(function, of, *grid, *shared),
            }
        }
    }
}

/// Makes what is ordered.
pub(super) struct Emit<'a> {
    plan: &'a Plan<'a>,
    module: &'a Module,
    buffers: &'a Buffers,
    launches: Vec<Launch>,
    /// Values whose gradient was written: what comes later is added.
    written: Vec<bool>,
    /// Parameters whose gradient is computed.
    learnt: Vec<bool>,
}

impl<'a> Emit<'a> {
    /// What is ordered on the way there and on the way back, and of which parameters it computes gradients.
    pub(super) fn all(
        plan: &'a Plan<'a>,
        module: &'a Module,
        buffers: &'a Buffers,
        stream: &Stream,
    ) -> Result<([Vec<Launch>; 2], Vec<bool>)> {
        // The caller wrote the gradients of the heads.
        let written = plan.flows.iter().map(|at| matches!(at, Some(At(Region::Seeds, _)))).collect();
        let mut emit = Self {
            plan,
            module,
            buffers,
            launches: Vec::new(),
            written,
            learnt: vec![false; plan.params.len()],
        };
        let packs = emit.packs();
        if let Some(most) = packs.iter().map(|(_, len)| *len).max() {
            let words: Vec<u32> = packs.iter().flat_map(|(pack, _)| pack.words()).collect();
            stream.upload(&buffers.packs, &words)?;
            let list = args::Packs { list: buffers.packs.address() };
            // As many blocks for each as the largest keeps busy.
            let blocks = most.div_ceil(256).min(4 * plan.multiprocessors);
            emit.push("learn_pack", Argument::Packs(list), [blocks, packs.len(), 1], 0)?;
        }
        for (number, step) in plan.tape.steps.iter().enumerate() {
            emit.forward(number, step)?;
        }
        let forward = std::mem::take(&mut emit.launches);
        for (number, step) in plan.tape.steps.iter().enumerate().rev() {
            let Some(at) = plan.flows[step.dst.0].filter(|_| emit.written[step.dst.0]) else { continue };
            step.op.params().for_each(|param| emit.learnt[param.0] = true);
            emit.backward(number, step, emit.at(at))?;
        }
        Ok(([forward, emit.launches], emit.learnt))
    }

    fn at(&self, At(region, at): At) -> DevicePtr {
        let buffer = match region {
            Region::Input => &self.buffers.input,
            Region::Output => &self.buffers.output,
            Region::Seeds => &self.buffers.seeds,
            Region::Gradients => &self.buffers.gradients,
            Region::Arena => &self.buffers.arena,
        };
        buffer.address() + (at * size_of::<f32>()) as u64
    }

    fn value(&self, value: Value) -> DevicePtr {
        self.at(self.plan.values[value.0])
    }

    /// Where the gradient of a value goes to, and whether it is added; `None` if nothing needs it.
    fn flow(&mut self, value: Value) -> Option<(DevicePtr, bool)> {
        let at = self.at(self.plan.flows[value.0]?);
        Some((at, std::mem::replace(&mut self.written[value.0], true)))
    }

    fn param(&self, param: Param) -> DevicePtr {
        self.at(At(Region::Input, self.plan.params[param.0].start))
    }

    /// Where the gradient of a parameter goes to; 0 if nobody wants it.
    fn gradient(&self, param: Param) -> DevicePtr {
        self.plan.gradients[param.0].as_ref().map_or(0, |range| self.at(At(Region::Gradients, range.start)))
    }

    fn table(&self, word: usize) -> DevicePtr {
        self.buffers.tables.address() + (word * size_of::<u32>()) as u64
    }

    fn scratch(&self) -> DevicePtr {
        self.at(At(Region::Arena, self.plan.scratch))
    }

    fn len(&self, value: Value) -> usize {
        self.plan.tape.lens[value.0]
    }

    fn push(&mut self, name: &str, argument: Argument, grid: [usize; 3], parts: usize) -> Result<()> {
        let kernel = named(name)?;
        self.launches.push(Launch {
            kernel,
            function: *self.module.function(kernel)?,
            argument,
            grid: grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            shared: u32::try_from(kernel.shared_bytes(parts)).unwrap_or(u32::MAX),
        });
        Ok(())
    }

    /// A kernel of which each thread has an element.
    fn each(&mut self, name: &str, argument: Argument, elements: usize) -> Result<()> {
        self.push(name, argument, [elements.div_ceil(named(name)?.tile()[1]), 1, 1], 0)
    }

    /// Parts of the images that sums over a channel are made of.
    fn parts(&self, channels: usize, area: usize) -> usize {
        const EACH: usize = 1024;
        let batch = self.plan.batch;
        let filled = (8 * self.plan.multiprocessors).div_ceil(channels);
        filled.min(batch * area / EACH).clamp(1, PARTS.min(batch))
    }

    fn forward(&mut self, number: usize, step: &Step) -> Result<()> {
        let plan = self.plan;
        let (src, dst) = (self.value(step.srcs[0]), self.value(step.dst));
        let (src_len, dst_len) = (self.len(step.srcs[0]), self.len(step.dst));
        match &step.op {
            Op::Conv { geometry, bias, .. } => {
                let Some(tables) = &plan.convs[number] else { return Ok(()) };
                let bias = bias.map_or(0, |bias| self.param(bias));
                let of = args::Conv {
                    bias,
                    relu: step.relu.into(),
                    padding: geometry.padding.map(int),
                    ..args::Conv::default()
                };
                self.product(&tables.forward, geometry, [src, dst], of)
            }
            Op::Normalise { channels, extents, eps, weight, bias } => {
                let area = extents[0] * extents[1];
                let of = args::Learn {
                    src,
                    weight_src: self.param(*weight),
                    bias_src: self.param(*bias),
                    eps: *eps,
                    ..self.normalisation(number, *channels, *extents)
                };
                let parts = if plan.measures() { self.parts(*channels, area) } else { 0 };
                let of = args::Learn { parts: int(parts), ..of };
                if parts > 0 {
                    self.push("learn_moments", Argument::Learn(of), [*channels, parts, 1], 0)?;
                }
                self.push("learn_statistics", Argument::Learn(of), [*channels, 1, 1], parts)?;
                let of = args::Learn { dst, kind: step.relu.into(), ..of };
                self.each("learn_normalise", Argument::Learn(of), plan.batch * dst_len)
            }
            Op::Sum => {
                // The first two together, then one more each time.
                let mut from = src;
                let others: Vec<DevicePtr> = step.srcs[1..].iter().map(|src| self.value(*src)).collect();
                let last = others.len().saturating_sub(1);
                for (i, add) in others.iter().copied().chain(others.is_empty().then_some(0)).enumerate() {
                    let len = plan.batch * dst_len;
                    let kind = (step.relu && i == last).into();
                    let of = args::Learn {
                        src: from,
                        grad: add,
                        dst,
                        size: int(len),
                        kind,
                        ..args::Learn::default()
                    };
                    self.each("learn_add", Argument::Learn(of), len)?;
                    from = dst;
                }
                Ok(())
            }
            Op::Part(at) => {
                let dst = dst + (at * size_of::<f32>()) as u64;
                let map = args::Map { src, dst, relu: step.relu.into(), ..self.copy(src_len, dst_len) };
                self.each("map_copy", Argument::Map(map), plan.batch * src_len)
            }
            Op::Factors => {
                let factor = self.at(At(Region::Input, plan.factors[plan.ordinals[number]].start));
                let of = args::Learn { factor, dst, ..self.passed(src, dst_len) };
                self.each("learn_pass", Argument::Learn(of), plan.batch * dst_len)
            }
            Op::Map(shape, of) => {
                let (name, map, _) = elementwise(*shape, *of);
                let map = args::Map {
                    src,
                    dst,
                    images: int(plan.batch),
                    src_image: int(src_len),
                    dst_image: int(dst_len),
                    relu: step.relu.into(),
                    ..map
                };
                self.each(name, Argument::Map(map), plan.batch * dst_len)
            }
        }
    }

    /// `grad`: of the result.
    fn backward(&mut self, number: usize, step: &Step, grad: DevicePtr) -> Result<()> {
        let plan = self.plan;
        let (src, dst, dst_len) = (step.srcs[0], self.value(step.dst), self.len(step.dst));
        let result = if step.relu { dst } else { 0 };
        match &step.op {
            Op::Conv { geometry, weight, bias } => {
                if step.relu {
                    // In place: nobody else reads it.
                    let of = args::Learn { result, dst: grad, ..self.passed(grad, dst_len) };
                    self.each("learn_pass", Argument::Learn(of), plan.batch * dst_len)?;
                }
                self.bias(*bias, geometry, grad)?;
                self.filters(number, geometry, self.value(src), (grad, self.gradient(*weight)))?;
                match self.flow(src) {
                    Some(flow) => self.source(number, geometry, (grad, *weight), flow),
                    None => Ok(()),
                }
            }
            Op::Normalise { channels, extents, weight, bias, .. } => {
                let parts = self.parts(*channels, extents[0] * extents[1]);
                let of = args::Learn {
                    src: self.value(src),
                    grad,
                    result,
                    weight_dst: self.gradient(*weight),
                    bias_dst: self.gradient(*bias),
                    parts: int(parts),
                    ..self.normalisation(number, *channels, *extents)
                };
                self.push("learn_sums", Argument::Learn(of), [*channels, parts, 1], 0)?;
                self.push("learn_sums_all", Argument::Learn(of), [*channels, 1, 1], parts)?;
                let Some((dst, accumulate)) = self.flow(src) else { return Ok(()) };
                let of = args::Learn { dst, accumulate: accumulate.into(), ..of };
                self.each("learn_normalised", Argument::Learn(of), plan.batch * dst_len)
            }
            Op::Sum | Op::Part(_) | Op::Factors => {
                let factor = match step.op {
                    Op::Factors => self.at(At(Region::Input, plan.factors[plan.ordinals[number]].start)),
                    _ => 0,
                };
                let at = if let Op::Part(at) = step.op { at } else { 0 };
                for src in &step.srcs {
                    let Some((dst, accumulate)) = self.flow(*src) else { continue };
                    let of = args::Learn {
                        result,
                        factor,
                        dst,
                        accumulate: accumulate.into(),
                        at: int(at),
                        size: int(self.len(*src)),
                        ..self.passed(grad, dst_len)
                    };
                    self.each("learn_pass", Argument::Learn(of), plan.batch * self.len(*src))?;
                }
                Ok(())
            }
            Op::Map(shape, of) => {
                let src_len = self.len(src);
                let Some((dst, accumulate)) = self.flow(src) else { return Ok(()) };
                let (_, map, _) = elementwise(*shape, *of);
                let of = args::Learn {
                    src: self.value(src),
                    grad,
                    dst,
                    images: int(plan.batch),
                    channels: int(shape[0]),
                    extents: map.extents,
                    results: map.results,
                    kernel: map.kernel,
                    stride: map.stride,
                    padding: map.padding,
                    kind: map.kind,
                    size: map.size,
                    accumulate: accumulate.into(),
                    weight: map.weight,
                    beta: map.beta,
                    k: map.k,
                    ..args::Learn::default()
                };
                let name = match step.op {
                    Op::Map(_, Elementwise::Adaptive { .. }) => "learn_adaptive",
                    Op::Map(_, Elementwise::Lrn { .. }) => "learn_lrn",
                    _ => "learn_pool",
                };
                self.each(name, Argument::Learn(of), plan.batch * src_len)
            }
        }
    }

    /// A copy of images of `len` elements into images of `dst_len`.
    fn copy(&self, len: usize, dst_len: usize) -> args::Map {
        args::Map {
            images: int(self.plan.batch),
            channels: int(len),
            size: int(len),
            extents: [1; 2],
            results: [1; 2],
            src_image: int(len),
            dst_image: int(dst_len),
            add_image: int(len),
            ..args::Map::default()
        }
    }

    /// Images of `len` elements, passed on.
    fn passed(&self, grad: DevicePtr, len: usize) -> args::Learn {
        args::Learn {
            grad,
            images: int(self.plan.batch),
            size: int(len),
            image_len: int(len),
            ..args::Learn::default()
        }
    }

    fn normalisation(&self, number: usize, channels: usize, extents: [usize; 2]) -> args::Learn {
        let plan = self.plan;
        let ordinal = plan.ordinals[number];
        args::Learn {
            sums: self.scratch(),
            moments: self.at(plan.moments(ordinal)),
            about: self.at(At(Region::Arena, plan.about[ordinal])),
            images: int(plan.batch),
            channels: int(channels),
            extents: extents.map(int),
            results: extents.map(int),
            ..args::Learn::default()
        }
    }

    /// Weights in the orders of the kernels, and how many numbers that are.
    fn packs(&self) -> Vec<(args::Pack, usize)> {
        let mut packs = Vec::new();
        for (step, tables) in self.plan.tape.steps.iter().zip(&self.plan.convs) {
            let (Op::Conv { geometry, weight, .. }, Some(tables)) = (&step.op, tables) else { continue };
            packs.push(self.pack(&tables.forward, geometry, *weight, false));
            packs.extend(tables.source.as_ref().map(|by| self.pack(by, geometry, *weight, true)));
        }
        packs
    }

    fn pack(&self, to: &Product, of: &Geometry, weight: Param, transposed: bool) -> (args::Pack, usize) {
        let tile = to.kernel.tile()[0];
        let pack = args::Pack {
            src: self.param(weight),
            dst: self.at(At(Region::Arena, to.weights)),
            filters: int(of.filters / of.groups),
            channels: int(of.channels / of.groups),
            taps: int(of.kernel[0] * of.kernel[1]),
            depth: int(to.depth),
            tile: int(tile),
            tiles: int(to.tiles),
            groups: int(of.groups),
            transposed: transposed.into(),
        };
        (pack, of.groups * to.tiles * to.depth * tile)
    }

    /// A convolution with the weights that were packed; `of` has what follows the product, and the padding.
    fn product(
        &mut self,
        by: &Product,
        geometry: &Geometry,
        [src, dst]: [DevicePtr; 2],
        of: args::Conv,
    ) -> Result<()> {
        let [src_len, dst_len] = geometry.lens();
        let pixels = self.plan.batch * geometry.area();
        let of = args::Conv {
            src,
            dst,
            weights: self.at(At(Region::Arena, by.weights)),
            table: self.table(by.table),
            spans: self.table(by.spans),
            filters: int(geometry.filters / geometry.groups),
            tiles: int(by.tiles),
            splits: 1,
            pixels: int(pixels),
            src_image: int(src_len),
            dst_image: int(dst_len),
            ..self.windows(geometry, of)
        };
        if let Some(tiling) = by.tiling {
            let tiles = self.plan.batch * tiling.tiles;
            let of = args::Conv { tiles: int(tiles), src_group: int(geometry.channels), ..of };
            let grid = [tiles.div_ceil(tiling.at_once), by.tiles, 1];
            return self.push(by.kernel.name(), Argument::Conv(of), grid, 0);
        }
        let grid = [pixels.div_ceil(by.kernel.tile()[1]), by.tiles, geometry.groups];
        self.push(by.kernel.name(), Argument::Conv(of), grid, 0)
    }

    /// Where windows lie.
    fn windows(&self, of: &Geometry, rest: args::Conv) -> args::Conv {
        args::Conv {
            area: int(of.area()),
            columns: int(of.results[1]),
            height: int(of.extents[0]),
            width: int(of.extents[1]),
            stride: of.stride.map(int),
            src_group: int(of.channels / of.groups * of.extents[0] * of.extents[1]),
            ..rest
        }
    }

    /// The gradient of the biases, if it is wanted.
    fn bias(&mut self, bias: Option<Param>, of: &Geometry, grad: DevicePtr) -> Result<()> {
        let bias_dst = bias.map_or(0, |bias| self.gradient(bias));
        if bias_dst == 0 {
            return Ok(());
        }
        let parts = self.parts(of.filters, of.area());
        let of = args::Learn {
            grad,
            bias_dst,
            sums: self.scratch(),
            images: int(self.plan.batch),
            channels: int(of.filters),
            extents: of.results.map(int),
            parts: int(parts),
            ..args::Learn::default()
        };
        let channels = usize::try_from(of.channels).unwrap_or(0);
        self.push("learn_sums", Argument::Learn(of), [channels, parts, 1], 0)?;
        self.push("learn_sums_all", Argument::Learn(of), [channels, 1, 1], parts)
    }

    /// The gradient of the filters, if it is wanted.
    fn filters(
        &mut self,
        number: usize,
        of: &Geometry,
        src: DevicePtr,
        (grad, dst): (DevicePtr, DevicePtr),
    ) -> Result<()> {
        let Some(tables) = self.plan.convs[number].as_ref().filter(|_| dst != 0) else { return Ok(()) };
        let (kernel, table, splits) = tables.filter;
        let ([src_len, dst_len], columns) = (of.lens(), of.columns());
        let filters = of.filters / of.groups;
        let rest = args::Conv {
            src,
            add: grad,
            table: self.table(table),
            partial: if splits > 1 { self.scratch() } else { dst },
            filters: int(filters),
            tiles: int(columns),
            splits: int(splits),
            pixels: int(self.plan.batch * of.area()),
            padding: of.padding.map(int),
            src_image: int(src_len),
            add_image: int(dst_len),
            ..args::Conv::default()
        };
        let windows = self.windows(of, rest);
        match tables.around {
            Some(tiling) => {
                let tiles = int(self.plan.batch * tiling.tiles);
                let of_tiles = args::Conv { tiles, src_group: int(of.channels), ..windows };
                let grid = [of.channels.div_ceil(kernel.channels()), filters.div_ceil(16), splits];
                self.push(kernel.name(), Argument::Conv(of_tiles), grid, 0)?;
            }
            None => {
                let [rows, across] = kernel.tile();
                let grid = [columns.div_ceil(across), filters.div_ceil(rows), of.groups * splits];
                self.push(kernel.name(), Argument::Conv(windows), grid, 0)?;
            }
        }
        if splits == 1 {
            return Ok(());
        }
        let len = of.filters * columns;
        let sum = args::Learn {
            src: self.scratch(),
            dst,
            size: int(len),
            parts: int(splits),
            ..args::Learn::default()
        };
        self.each("learn_sum", Argument::Learn(sum), len)
    }

    /// The gradient of the source.
    fn source(
        &mut self,
        number: usize,
        of: &Geometry,
        (grad, weight): (DevicePtr, Param),
        (dst, add): (DevicePtr, bool),
    ) -> Result<()> {
        let plan = self.plan;
        let Some(tables) = &plan.convs[number] else { return Ok(()) };
        if let Some(by) = &tables.source {
            let back = reversed(of);
            let padding =
                [0, 1].map(|axis| int(of.dilation[axis] * (of.kernel[axis] - 1)) - int(of.padding[axis]));
            let rest = args::Conv {
                add: if add { dst } else { 0 },
                add_image: int(of.lens()[0]),
                padding,
                ..args::Conv::default()
            };
            return self.product(by, &back, [grad, dst], rest);
        }
        let taps = of.kernel[0] * of.kernel[1];
        let at_once = (SHARED / (8 * taps)).clamp(1, 16);
        let source = args::Source {
            grad,
            weights: self.param(weight),
            dst,
            images: int(plan.batch),
            groups: int(of.groups),
            filters: int(of.filters / of.groups),
            channels: int(of.channels / of.groups),
            extents: of.extents.map(int),
            results: of.results.map(int),
            kernel: of.kernel.map(int),
            stride: of.stride.map(int),
            padding: of.padding.map(int),
            step: of.dilation.map(int),
            accumulate: add.into(),
            at_once: int(at_once),
        };
        let halves = of.kernel == [3; 2] && [of.stride, of.padding, of.dilation] == [[2; 2], [1; 2], [1; 2]];
        let (name, [height, width]) =
            if halves { ("learn_source_3x3", of.results) } else { ("learn_source", of.extents) };
        let elements = plan.batch * height * width;
        let grid = [elements.div_ceil(256), (of.channels / of.groups).div_ceil(8), of.groups];
        self.push(name, Argument::Source(source), grid, at_once * taps)
    }
}
