//! Filters in the order in which tiles read them.

use std::ops::Range;

use super::{Weights, Window, blocks_of};
use crate::blocked::micro::{self, Run};
use crate::blocked::{BLOCK, View};
use crate::tier::Tier;

/// Numbers of packed weights that stay in the first-level cache while a tile after tile reads them: 32 KiB.
const RESIDENT: usize = 8 * 1024;

/// Filters as they are given.
#[derive(Clone, Copy, Debug)]
pub(in crate::blocked) struct Source<'a> {
    pub(in crate::blocked) weight: &'a [f32],
    /// `[out_channels]`.
    pub(in crate::blocked) bias: Option<&'a [f32]>,
    /// From an output to the next one of its group, and from a channel that it reads to the next.
    pub(in crate::blocked) strides: [usize; 2],
    /// From a group to the next.
    pub(in crate::blocked) group: usize,
    /// Place of each tap among those of a filter.
    pub(in crate::blocked) taps: &'a [usize],
}

impl<'a> Source<'a> {
    /// Filters `[outputs, inputs / groups, taps]`.
    pub(in crate::blocked) fn of(
        weights: &Weights<'a>,
        window: &Window,
        src: &View,
        dst: &View,
        taps: &'a [usize],
    ) -> Self {
        let (group_in, group_out) = (src.channels() / window.groups, dst.channels() / window.groups);
        Self {
            weight: weights.weight,
            bias: weights.bias,
            strides: [group_in * taps.len(), taps.len()],
            group: group_out * group_in * taps.len(),
            taps,
        }
    }

    /// Channels of a run that are of the output's group, and the first weight of those. A group has so many inputs and outputs.
    fn inside(
        &self,
        [group_in, group_out]: [usize; 2],
        output: usize,
        len: usize,
        channel: usize,
    ) -> (Range<usize>, usize) {
        let (group, local) = (output / group_out, output % group_out);
        let range = channel.max(group * group_in)..(channel + len).min((group + 1) * group_in);
        let at = (range.start.saturating_sub(group * group_in)) * self.strides[1];
        let first = group * self.group + local * self.strides[0] + at;
        (range.start.saturating_sub(channel)..range.end.saturating_sub(channel), first)
    }
}

/// A cache line of numbers, so that packed weights are aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(in crate::blocked) [f32; BLOCK]);

/// Memory of packed filters, to be used again: training packs them in every iteration.
#[derive(Debug, Default)]
pub struct PackedMemory(Vec<Vec<Line>>);

impl PackedMemory {
    pub(in crate::blocked) fn take(&mut self) -> Vec<Line> {
        self.0.pop().unwrap_or_default()
    }

    pub(in crate::blocked) fn give(&mut self, lines: Vec<Line>) {
        self.0.push(lines);
        // The largest one last, which is taken first; no more of them than the phases of a stride are at once.
        self.0.sort_by_key(Vec::capacity);
        let surplus = self.0.len().saturating_sub(16);
        self.0.drain(..surplus);
    }
}

/// How a pass multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// Channels of the result in the lanes, this many blocks at once.
    Wide { blocks: usize },
    /// Depth in the lanes, this many channels of one block at once.
    Thin { count: usize },
}

/// Blocks of the result that are computed together.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    pub(super) dst_block: usize,
    pub(super) product: Product,
    /// Which of the [`Filters::inputs`] it reads.
    input: usize,
    /// First packed line.
    weight: usize,
    /// First line of biases.
    bias: usize,
}

impl Pass {
    pub(super) fn dst_blocks(&self) -> Range<usize> {
        match self.product {
            Product::Wide { blocks } => self.dst_block..self.dst_block + blocks,
            Product::Thin { .. } => self.dst_block..self.dst_block + 1,
        }
    }
}

/// A part of the depth of a product whose weights fit the first-level cache.
#[derive(Clone, Debug)]
pub(super) struct Depth {
    runs: Range<usize>,
    /// First step of the depth.
    start: usize,
    len: usize,
}

impl Depth {
    /// Steps of the depth.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// What the blocks of one group of channels read.
#[derive(Clone, Debug)]
struct Input {
    channels: Range<usize>,
    /// Runs of all taps and channels of the range.
    runs: Vec<Run>,
    /// Channel and tap of the first number of each run.
    sources: Vec<(usize, usize)>,
    /// The same with whole blocks, for thin products; empty if the source is planar.
    thin_runs: Vec<Run>,
    /// Cuts of `runs`, for one, two and three blocks at once.
    depths: [Vec<Depth>; 3],
}

/// All filters of a convolution, packed.
#[derive(Debug)]
pub(super) struct Filters {
    pub(super) passes: Vec<Pass>,
    inputs: Vec<Input>,
    lines: Vec<Line>,
}

impl Filters {
    /// In memory that held others before.
    pub(super) fn new(
        tier: &Tier,
        window: &Window,
        source: &Source<'_>,
        src: &View,
        dst: &View,
        mut lines: Vec<Line>,
    ) -> Self {
        lines.clear();
        let mut filters = Self { passes: Vec::new(), inputs: Vec::new(), lines };
        let group_in = src.channels() / window.groups;
        let group_out = dst.channels() / window.groups;
        let mut first = 0;
        // Blocks of the result, and the channels that the groups in them read.
        let mut wanted: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for &lanes in &*dst.lanes {
            let outputs = first..first + usize::from(lanes);
            let groups = outputs.start / group_out..outputs.end.div_ceil(group_out);
            wanted.push((outputs.clone(), groups.start * group_in..groups.end * group_in));
            first = outputs.end;
        }
        let mut block = 0;
        let groups = [group_in, group_out];
        while block < wanted.len() {
            let channels = wanted[block].1.clone();
            let same = wanted[block..].iter().take_while(|(_, other)| *other == channels).count();
            let input = filters.input(window, src, channels);
            let mut end = block + same;
            let read = &filters.inputs[input];
            let live: Vec<Vec<bool>> =
                wanted[block..end].iter().map(|(outputs, _)| read.live(source, outputs, groups)).collect();
            // The last block of a group may be too thin to fill the lanes.
            let (last, thin) = (&live[same - 1], wanted[end - 1].0.len());
            let whole = read.whole_runs(last);
            // Thin products write neighbours.
            let is_thin = dst.pixel_stride == BLOCK && read.worth_thin(thin, tier.sums, last, &whole);
            if is_thin {
                end -= 1;
            }
            let mut live = &live[..];
            while block < end {
                let (blocks, steps) = together(&live[..end - block], tier.blocks);
                let input = filters.only(input, &steps);
                filters.pack(Product::Wide { blocks }, block, input, source, &wanted, groups);
                block += blocks;
                live = &live[blocks..];
            }
            if is_thin {
                let input = filters.only(input, &whole);
                filters.pack(Product::Thin { count: thin }, block, input, source, &wanted, groups);
                block += 1;
            }
        }
        filters
    }

    /// Index of an input that leaves out the steps of the depth at which no weight is.
    fn only(&mut self, input: usize, live: &[bool]) -> usize {
        // A few steps less are not worth runs that are shorter.
        if steps(live) * 16 > live.len() * 15 {
            return input;
        }
        let part = self.inputs[input].only(live);
        let known = self
            .inputs
            .iter()
            .position(|i| i.runs == part.runs && i.sources == part.sources && i.thin_runs == part.thin_runs);
        known.unwrap_or_else(|| {
            self.inputs.push(part);
            self.inputs.len() - 1
        })
    }

    /// Index of the input for a range of channels.
    fn input(&mut self, window: &Window, src: &View, channels: Range<usize>) -> usize {
        if let Some(known) = self.inputs.iter().position(|input| input.channels == channels) {
            return known;
        }
        self.inputs.push(Input::new(window, src, channels));
        self.inputs.len() - 1
    }

    fn pack(
        &mut self,
        product: Product,
        dst_block: usize,
        input: usize,
        source: &Source<'_>,
        wanted: &[(Range<usize>, Range<usize>)],
        groups: [usize; 2],
    ) {
        let bias = self.lines.len();
        let pass = Pass { dst_block, product, input, weight: 0, bias };
        let blocks = pass.dst_blocks();
        for (outputs, _) in &wanted[blocks.clone()] {
            let mut line = Line([0.0; BLOCK]);
            for (lane, output) in outputs.clone().enumerate() {
                line.0[lane] = source.bias.map_or(0.0, |bias| bias[output]);
            }
            self.lines.push(line);
        }
        let weight = self.lines.len();
        let read = &self.inputs[input];
        let inside =
            |output: usize, run: &Run, channel: usize| source.inside(groups, output, run.len, channel);
        match product {
            Product::Wide { blocks: count } => {
                let lines = count * read.depth();
                self.lines.resize(weight + lines, Line([0.0; BLOCK]));
                let mut at = weight;
                // What one block of channels is multiplied with stays in the first-level cache.
                let runs: Vec<(&Run, &(usize, usize))> = read.runs.iter().zip(&read.sources).collect();
                for runs in runs.chunk_by(|a, b| a.1.0 == b.1.0) {
                    for (b, (outputs, _)) in wanted[blocks.clone()].iter().enumerate() {
                        for (lane, output) in outputs.clone().enumerate() {
                            let mut line = at + b;
                            for (run, (channel, tap)) in runs {
                                let (channels, first) = inside(output, run, *channel);
                                if !channels.is_empty() {
                                    let weights = source.weight[first + source.taps[*tap]..].iter();
                                    let lines = self.lines[line + channels.start * count..].iter_mut();
                                    let pairs = lines.step_by(count).zip(weights.step_by(source.strides[1]));
                                    pairs.take(channels.len()).for_each(|(line, w)| line.0[lane] = *w);
                                }
                                line += run.len * count;
                            }
                        }
                    }
                    at += count * runs.iter().map(|(run, _)| run.len).sum::<usize>();
                }
            }
            Product::Thin { .. } => {
                for (i, (run, (channel, tap))) in read.runs.iter().zip(&read.sources).enumerate() {
                    // A run of a thin product is a whole block: the lanes outside the range of channels get weight 0.
                    let before = (run.src - read.thin_runs[i].src) as usize;
                    for output in wanted[dst_block].0.clone() {
                        let mut line = Line([0.0; BLOCK]);
                        let (channels, first) = inside(output, run, *channel);
                        for (i, k) in channels.enumerate() {
                            line.0[before + k] =
                                source.weight[first + i * source.strides[1] + source.taps[*tap]];
                        }
                        self.lines.push(line);
                    }
                }
            }
        }
        self.passes.push(Pass { weight, ..pass });
    }

    pub(super) fn depth_blocks(&self, pass: &Pass) -> &[Depth] {
        &self.inputs[pass.input].depths[pass.dst_blocks().len() - 1]
    }

    pub(super) fn runs(&self, pass: &Pass, depth: &Depth) -> &[Run] {
        &self.inputs[pass.input].runs[depth.runs.clone()]
    }

    pub(super) fn weight(&self, pass: &Pass, depth: &Depth, width: usize) -> *const f32 {
        self.lines[pass.weight + depth.start * width / BLOCK..].as_ptr().cast()
    }

    pub(super) fn bias(&self, pass: &Pass) -> *const f32 {
        self.lines[pass.bias..].as_ptr().cast()
    }

    pub(super) fn thin_runs(&self, pass: &Pass) -> &[Run] {
        &self.inputs[pass.input].thin_runs
    }

    pub(super) fn thin_weight(&self, pass: &Pass) -> *const f32 {
        self.lines[pass.weight..].as_ptr().cast()
    }

    pub(super) fn into_lines(self) -> Vec<Line> {
        self.lines
    }

    /// Multiply-accumulate operations for a pixel of the result, padding of lanes included.
    pub(super) fn macs_per_pixel(&self) -> usize {
        self.lines.len() * BLOCK
    }

    /// Bytes of packed weights and biases.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }
}

/// How many of the blocks that are left are computed at once.
pub(in crate::blocked) fn at_once(left: usize, most: usize) -> usize {
    match left {
        _ if most == 1 => 1,
        3 if most >= 3 => 3,
        1 => 1,
        // Never leave a single block, which is the slowest.
        3 => 2,
        _ if most >= 3 && left % 2 == 1 => 3,
        _ => 2,
    }
}

/// How many of some blocks are computed at once, and at which steps of the depth they have a weight.
fn together(live: &[Vec<bool>], most: usize) -> (usize, Vec<bool>) {
    let blocks = at_once(live.len(), most);
    let mut all = live[0].clone();
    for other in &live[1..blocks] {
        all.iter_mut().zip(other).for_each(|(all, other)| *all |= other);
    }
    // A block alone skips all that it can, at some four fifths of the speed of two.
    let apart: usize = live[..blocks].iter().map(|live| steps(live)).sum();
    if blocks > 1 && apart * 5 / 4 < steps(&all) * blocks { (1, live[0].clone()) } else { (blocks, all) }
}

/// Steps that are taken.
fn steps(live: &[bool]) -> usize {
    live.iter().filter(|live| **live).count()
}

impl Input {
    fn new(window: &Window, src: &View, channels: Range<usize>) -> Self {
        let mut input = Self {
            runs: Vec::new(),
            sources: Vec::new(),
            thin_runs: Vec::new(),
            depths: [const { Vec::new() }; 3],
            channels,
        };
        let mut channel = input.channels.start;
        let origin = src.at(0, 0, 0, 0) as isize;
        for (block, lanes) in blocks_of(&src.lanes, input.channels.clone()) {
            for r in 0..window.kernel[0] {
                for s in 0..window.kernel[1] {
                    let y = (r * window.dilation[0]) as isize - window.padding[0] as isize;
                    let x = (s * window.dilation[1]) as isize - window.padding[1] as isize;
                    let at = src.at(0, block, y, x) as isize - origin;
                    input.runs.push(Run { src: at + lanes.start as isize, len: lanes.len() });
                    input.sources.push((channel, r * window.kernel[1] + s));
                    if src.pixel_stride == BLOCK {
                        input.thin_runs.push(Run { src: at, len: BLOCK });
                    }
                }
            }
            channel += lanes.len();
        }
        input.cut();
        input
    }

    fn depth(&self) -> usize {
        self.runs.iter().map(|run| run.len).sum()
    }

    /// At which steps of the depth some of these outputs have a weight.
    fn live(&self, source: &Source<'_>, outputs: &Range<usize>, groups: [usize; 2]) -> Vec<bool> {
        let mut live = vec![false; self.depth()];
        for output in outputs.clone() {
            let mut at = 0;
            for (run, (channel, tap)) in self.runs.iter().zip(&self.sources) {
                let (channels, first) = source.inside(groups, output, run.len, *channel);
                if !channels.is_empty() {
                    let weights =
                        source.weight[first + source.taps[*tap]..].iter().step_by(source.strides[1]);
                    let live = live[at + channels.start..at + channels.end].iter_mut();
                    live.zip(weights).for_each(|(live, weight)| *live |= *weight != 0.0);
                }
                at += run.len;
            }
            if live.iter().all(|live| *live) {
                break;
            }
        }
        live
    }

    /// The same for whole runs.
    fn whole_runs(&self, live: &[bool]) -> Vec<bool> {
        let mut at = 0;
        let runs = self.runs.iter().flat_map(|run| {
            at += run.len;
            std::iter::repeat_n(live[at - run.len..at].contains(&true), run.len)
        });
        runs.collect()
    }

    /// What is left of it if only some steps of the depth are taken; the first one if none are.
    fn only(&self, live: &[bool]) -> Self {
        let whole = self.whole_runs(live) == live;
        let mut only = Self {
            channels: 0..0,
            runs: Vec::new(),
            sources: Vec::new(),
            thin_runs: Vec::new(),
            depths: [const { Vec::new() }; 3],
        };
        let none = !live.contains(&true);
        let mut at = 0;
        for (i, (run, &(channel, tap))) in self.runs.iter().zip(&self.sources).enumerate() {
            let taken = |k: usize| live[at + k] || none && at + k == 0;
            if whole && taken(0) {
                only.runs.push(*run);
                only.sources.push((channel, tap));
                only.thin_runs.extend(self.thin_runs.get(i));
            } else if !whole {
                // Each for itself: the end of a loop of any length is foretold by nothing.
                for k in (0..run.len).filter(|k| taken(*k)) {
                    only.runs.push(Run { src: run.src + k as isize, len: 1 });
                    only.sources.push((channel + k, tap));
                }
            }
            at += run.len;
        }
        only.cut();
        only
    }

    /// Whether `count` channels cost less with the depth in the lanes, where these steps are taken, or else these runs.
    fn worth_thin(&self, count: usize, sums: usize, live: &[bool], runs: &[bool]) -> bool {
        if count > micro::max_thin(sums) || self.thin_runs.is_empty() {
            return false;
        }
        // In operations on whole vectors for a pixel; a reduction takes some three a channel, and a single block of channels
        // reaches about four fifths of the speed of two.
        let mut at = 0;
        let taken = self.runs.iter().filter(|run| {
            at += run.len;
            runs[at - run.len]
        });
        let thin = taken.count() * count + 3 * count + 8;
        let wide = steps(live) * 5 / 4;
        thin < wide
    }

    /// Cuts the depth into parts.
    fn cut(&mut self) {
        for (blocks, depths) in self.depths.iter_mut().enumerate() {
            *depths = cut(&self.runs, RESIDENT / ((blocks + 1) * BLOCK));
        }
    }
}

/// Cuts runs into parts of at most `most` steps, at least one run each, as equal as may be.
fn cut(runs: &[Run], most: usize) -> Vec<Depth> {
    let total: usize = runs.iter().map(|run| run.len).sum();
    let parts = total.div_ceil(most).max(1);
    let target = total.div_ceil(parts);
    let mut depths = Vec::new();
    let (mut first, mut start, mut len) = (0, 0, 0);
    for (i, run) in runs.iter().enumerate() {
        len += run.len;
        if len >= target || i + 1 == runs.len() {
            depths.push(Depth { runs: first..i + 1, start, len });
            (first, start, len) = (i + 1, start + len, 0);
        }
    }
    depths
}
