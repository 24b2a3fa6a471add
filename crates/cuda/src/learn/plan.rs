//! Where everything lies, and by which kernels convolutions are computed.

use super::{Mode, Op, Step, Tape, Value};
use crate::call::{at_most, named};
use crate::device::Device;
use crate::kernel::{Kernel, Math, Tiling};
use crate::pack::{Geometry, NONE, int};
use crate::{Result, call, kernel};
use std::ops::Range;

/// A buffer of the learner.
#[derive(Clone, Copy, Debug)]
pub(super) enum Region {
    Input,
    Output,
    Seeds,
    Gradients,
    Arena,
}

/// First element of something.
#[derive(Clone, Copy, Debug)]
pub(super) struct At(pub(super) Region, pub(super) usize);

/// Most parts that a sum is made of.
pub(super) const PARTS: usize = 64;
/// Most taps of a filter: eight channels of one filter have to lie in the shared memory that every kernel may have.
pub(super) const MOST_TAPS: usize = SHARED / 8;
/// Words of that.
pub(super) const SHARED: usize = 48 * 1024 / 4;
/// Numbers that parts of a gradient of filters may take.
const PARTIAL: usize = 1 << 26;

/// The plan of a [`Learner`](super::Learner).
pub(super) struct Plan<'a> {
    pub(super) tape: &'a Tape,
    pub(super) batch: usize,
    mode: Mode,
    pub(super) multiprocessors: usize,
    /// Whether 3x3 windows are computed on tensor cores.
    on_tensor_cores: bool,
    pub(super) input_len: usize,
    pub(super) output_len: usize,
    pub(super) head_len: usize,
    pub(super) seeds_len: usize,
    pub(super) gradients_len: usize,
    pub(super) arena_len: usize,
    pub(super) moments_at: usize,
    pub(super) params: Vec<Range<usize>>,
    pub(super) factors: Vec<Range<usize>>,
    pub(super) heads: Vec<Range<usize>>,
    pub(super) gradients: Vec<Option<Range<usize>>>,
    pub(super) tables: Vec<u32>,
    pub(super) values: Vec<At>,
    /// Of values that a gradient has to reach.
    pub(super) flows: Vec<Option<At>>,
    /// What is known of each normalisation beside its moments.
    pub(super) about: Vec<usize>,
    /// Parts of gradients, parts of sums: of one step at a time.
    pub(super) scratch: usize,
    /// By step: tables of the convolution, of its gradients by filter and by source.
    pub(super) convs: Vec<Option<Tables>>,
    /// Of each step: how many of its kind come before it.
    pub(super) ordinals: Vec<usize>,
}

/// Where the tables of a convolution begin, and the kernels.
pub(super) struct Tables {
    pub(super) forward: Product,
    /// For the source, by the kernels of the way there.
    pub(super) source: Option<Product>,
    /// For the filters: kernel, table of the columns one by one, parts of the pixels.
    pub(super) filter: (Kernel, usize, usize),
    /// Of a convolution with windows of 3x3 around each element.
    pub(super) around: Option<Tiling>,
}

/// A kernel for a convolution: words of its tables, tiles of a group, columns with those that fill the last step.
pub(super) struct Product {
    pub(super) kernel: Kernel,
    pub(super) table: usize,
    pub(super) spans: usize,
    pub(super) tiles: usize,
    pub(super) depth: usize,
    /// Packed weights.
    pub(super) weights: usize,
    /// Of a kernel with windows of 3x3.
    pub(super) tiling: Option<Tiling>,
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(64)
}

/// Takes a range of so many elements from the end of something.
fn take(end: &mut usize, len: usize) -> Range<usize> {
    let at = *end;
    *end = aligned(at + len);
    at..at + len
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        device: &Device,
        tape: &'a Tape,
        heads: &[Value],
        (batch, mode): (usize, Mode),
    ) -> Result<Self> {
        let needs = needs(tape, mode);
        let mut plan = Self {
            tape,
            batch,
            mode,
            multiprocessors: device.about().multiprocessors,
            on_tensor_cores: kernel::multiplies_fast(device.about().capability),
            input_len: 0,
            output_len: 0,
            head_len: 0,
            seeds_len: 0,
            gradients_len: 0,
            arena_len: 0,
            moments_at: 0,
            params: Vec::new(),
            factors: Vec::new(),
            heads: Vec::new(),
            gradients: Vec::new(),
            tables: Vec::new(),
            values: Vec::new(),
            flows: Vec::new(),
            about: Vec::new(),
            scratch: 0,
            convs: Vec::new(),
            ordinals: ordinals(tape),
        };
        take(&mut plan.input_len, batch * tape.lens[0]);
        for step in tape.steps.iter().filter(|step| matches!(step.op, Op::Factors)) {
            plan.factors.push(take(&mut plan.input_len, batch * tape.lens[step.dst.0]));
        }
        for (len, wanted) in &tape.params {
            plan.params.push(take(&mut plan.input_len, *len));
            let wanted = *wanted && mode == Mode::Train;
            plan.gradients.push(wanted.then(|| take(&mut plan.gradients_len, *len)));
        }
        let moments = tape.moments().last().map_or(0, |range| range.end);
        if mode == Mode::Eval {
            plan.moments_at = take(&mut plan.input_len, moments).start;
        }
        for (number, len) in tape.lens.iter().enumerate() {
            let len = batch * len;
            let head = heads.iter().any(|head| head.0 == number);
            plan.values.push(match number {
                0 => At(Region::Input, 0),
                _ if head => At(Region::Output, take(&mut plan.output_len, len).start),
                _ => At(Region::Arena, take(&mut plan.arena_len, len).start),
            });
            plan.flows.push(match needs[number] {
                false => None,
                // A gradient lies in the seeds where its value lies in the output.
                true if head => plan.values.last().map(|at| At(Region::Seeds, at.1)),
                true => Some(At(Region::Arena, take(&mut plan.arena_len, len).start)),
            });
        }
        for head in heads {
            let at = plan.values[head.0].1;
            plan.heads.push(at..at + batch * tape.lens[head.0]);
        }
        (plan.head_len, plan.seeds_len) = (plan.output_len, plan.output_len);
        if mode == Mode::Train {
            take(&mut plan.output_len, moments);
        }
        let mut scratch = 0;
        for step in &tape.steps {
            if let Op::Normalise { channels, .. } = step.op {
                plan.about.push(take(&mut plan.arena_len, 6 * channels).start);
            }
            let tables = plan.tables_of(step)?;
            scratch = scratch.max(plan.scratch_of(step, tables.as_ref()));
            plan.convs.push(tables);
        }
        plan.scratch = take(&mut plan.arena_len, scratch).start;
        for len in [plan.input_len, plan.output_len, plan.gradients_len, plan.tables.len()] {
            at_most("elements of a network in training", len, call::COUNTED)?;
        }
        Ok(plan)
    }

    fn tables_of(&mut self, step: &Step) -> Result<Option<Tables>> {
        let Op::Conv { geometry, .. } = &step.op else { return Ok(None) };
        let around = is_around(geometry).then(|| Tiling::of(geometry.extents));
        let forward = self.product(geometry, around)?;
        let back = self.flows[step.srcs[0].0].is_some() && geometry.stride == [1; 2];
        let source = back.then(|| self.product(&reversed(geometry), around)).transpose()?;
        let room = (PARTIAL / (geometry.filters * geometry.columns()).max(1)).max(1);
        let filter = match around {
            Some(tiling) => {
                let kernel = Kernel::around_filter(tiling.columns, self.on_tensor_cores)?;
                let blocks = geometry.filters.div_ceil(16) * geometry.channels.div_ceil(kernel.channels());
                let all = (self.batch * tiling.tiles).div_ceil(tiling.at_once);
                // As many blocks as a multiprocessor has room for.
                let each = if kernel.channels() > 8 { 4 } else { 8 };
                let splits = (each * self.multiprocessors).div_ceil(blocks).min(all).min(room);
                (kernel, 0, splits.max(1))
            }
            None => {
                let table = self.table(&geometry.entries());
                let filters = geometry.filters / geometry.groups;
                let kernel = named(if filters > 32 { "learn_filter_64x64" } else { "learn_filter_16x64" })?;
                let [rows, across] = kernel.tile();
                let blocks = filters.div_ceil(rows) * geometry.columns().div_ceil(across) * geometry.groups;
                let steps = (self.batch * geometry.area()).div_ceil(kernel.depth());
                let splits = (4 * self.multiprocessors).div_ceil(blocks).min(steps / 4).min(room);
                (kernel, table, splits.max(1))
            }
        };
        Ok(Some(Tables { forward, source, filter, around }))
    }

    /// Where a list of elements of windows begins.
    fn table(&mut self, entries: &[[i32; 2]]) -> usize {
        // They are read two words at a time.
        self.tables.resize(self.tables.len().next_multiple_of(2), 0);
        let table = self.tables.len();
        self.tables.extend(entries.iter().flatten().map(|x| x.cast_unsigned()));
        table
    }

    /// The kernel that computes a convolution, and its tables: every tile of filters has all columns.
    fn product(&mut self, of: &Geometry, around: Option<Tiling>) -> Result<Product> {
        let filters = of.filters / of.groups;
        let kernel = match around {
            Some(tiling) => self.around(tiling, of.filters)?,
            None => self.kernel(of)?,
        };
        let [rows, _] = kernel.tile();
        let (tiles, depth) = (filters.div_ceil(rows), of.columns().next_multiple_of(kernel.depth()));
        let packed = of.groups * tiles * depth * rows;
        at_most("weights of a convolution, packed", packed, call::COUNTED)?;
        let weights = take(&mut self.arena_len, packed).start;
        if around.is_some() {
            return Ok(Product { kernel, table: 0, spans: 0, tiles, depth, weights, tiling: around });
        }
        let mut entries = of.entries();
        entries.resize(depth, NONE);
        let table = self.table(&entries);
        let spans = self.tables.len();
        for tile in 0..tiles * of.groups {
            self.tables.extend([0, depth, tile * depth * rows].map(|n| int(n).cast_unsigned()));
        }
        Ok(Product { kernel, table, spans, tiles, depth, weights, tiling: None })
    }

    /// More filters at a time read less, but on tensor cores one block alone has nothing to multiply while it reads.
    fn around(&self, of: Tiling, filters: usize) -> Result<Kernel> {
        let blocks = (self.batch * of.tiles).div_ceil(of.at_once) * filters.div_ceil(32);
        let many = filters > 16 && (!self.on_tensor_cores || blocks > self.multiprocessors);
        Kernel::around(of.columns, if many { 32 } else { 16 }, self.on_tensor_cores)
    }

    /// The largest tile that enough blocks fill, or the smallest one that the filters fill.
    fn kernel(&self, of: &Geometry) -> Result<Kernel> {
        let (filters, pixels) = (of.filters / of.groups, self.batch * of.area());
        let fills = |kernel: &Kernel| {
            let [rows, columns] = kernel.tile();
            let blocks = filters.div_ceil(rows) * pixels.div_ceil(columns) * of.groups;
            2 * filters > rows && blocks >= 2 * self.multiprocessors
        };
        let pointwise = of.is_pointwise();
        let found = Kernel::convolutions(Math::F32, pointwise).find(fills);
        let small = match (filters <= 16, pointwise) {
            (true, false) => "conv_16x64",
            (false, false) => "conv_32x32",
            (true, true) => "conv1x1_16x64",
            (false, true) => "conv1x1_32x32",
        };
        found.map_or_else(|| named(small), Ok)
    }

    /// Whether normalisations measure their moments.
    pub(super) fn measures(&self) -> bool {
        self.mode == Mode::Train
    }

    /// Mean and variance of a normalisation.
    pub(super) fn moments(&self, ordinal: usize) -> At {
        let at = self.tape.moments()[ordinal].start;
        match self.mode {
            Mode::Train => At(Region::Output, self.head_len + at),
            Mode::Eval => At(Region::Input, self.moments_at + at),
        }
    }

    fn scratch_of(&self, step: &Step, tables: Option<&Tables>) -> usize {
        let sums = |channels: usize| 2 * PARTS * channels;
        match (&step.op, tables) {
            (Op::Conv { geometry, .. }, Some(Tables { filter: (_, _, splits), .. })) => {
                let parts = if *splits > 1 { *splits } else { 0 };
                (parts * geometry.filters * geometry.columns()).max(sums(geometry.filters))
            }
            (Op::Normalise { channels, .. }, _) => sums(*channels),
            _ => 0,
        }
    }
}

/// Whether it has windows of 3x3 around each element. Few channels fill no step of its kernels.
fn is_around(of: &Geometry) -> bool {
    let ones = [of.stride, of.padding, of.dilation];
    of.kernel == [3; 2]
        && ones == [[1; 2]; 3]
        && of.extents == of.results
        && of.groups == 1
        && of.channels.min(of.filters) > 4
}

fn ordinals(tape: &Tape) -> Vec<usize> {
    let kind = |step: &Step| std::mem::discriminant(&step.op);
    let before = |n: usize| tape.steps[..n].iter().filter(|step| kind(step) == kind(&tape.steps[n])).count();
    (0..tape.steps.len()).map(before).collect()
}

/// Whether a gradient has to reach each value: something before it is learnt.
fn needs(tape: &Tape, mode: Mode) -> Vec<bool> {
    let mut needs = vec![false; tape.lens.len()];
    let wanted = |param: &super::Param| tape.params[param.0].1;
    for step in tape.steps.iter().filter(|_| mode == Mode::Train) {
        let learns = match &step.op {
            Op::Conv { weight, bias, .. } => wanted(weight) || bias.as_ref().is_some_and(wanted),
            Op::Normalise { weight, bias, .. } => wanted(weight) || wanted(bias),
            _ => false,
        };
        needs[step.dst.0] |= learns || step.srcs.iter().any(|src| needs[src.0]);
    }
    needs
}

/// The convolution that gives the gradient of the source, of a convolution of stride 1, but for its padding.
pub(super) fn reversed(of: &Geometry) -> Geometry {
    Geometry {
        channels: of.filters,
        filters: of.channels,
        extents: of.results,
        results: of.extents,
        padding: [0; 2],
        ..*of
    }
}
