//! Sums of products, pixel by pixel.
//!
//! Output channels lie in the lanes; a block of sums holds some numbers of the input that
//! follow each other (channels, or taps of a planar map) times some blocks of outputs, and runs over pixels.
//!
//! Images are cut into chunks, each with sums of its own, which are added in order. Both the cut and the order depend on the
//! extents alone, so the result has the same bits for any number of threads.
#![expect(unsafe_code, reason = "tiles read maps through pointers and add to shared sums")]

use std::ops::Range;

use super::Method;
use super::product::{MAX_COLUMNS, Tile, add_up, multiply};
use crate::accumulate;
use crate::blocked::conv::{Window, at_once, blocks_of};
use crate::blocked::lanes::{Kernel, Lanes};
use crate::blocked::{BLOCK, View};
use crate::par::{Par, Shared, for_each_job};
use crate::tier::Tier;
/// Bytes of input and gradient that a tile reads again and again, tap after tap: most of a first-level cache.
const RESIDENT: usize = 32 * 1024;
/// Fewest pixels of a tile, if there are as many: its sums are read and written once.
const PIXELS: usize = 256;
/// Jobs, if there are as many images: enough for the threads of a small machine, few enough that adding them up costs little.
const JOBS: usize = 16;

/// For maps laid out in a given way.
#[derive(Debug)]
pub(super) struct Direct {
    tier: &'static Tier,
    src: View,
    grad: View,
    /// From the input of one pixel, or row of pixels, to that of the next.
    step: usize,
    row_step: usize,
    passes: Vec<Pass>,
    /// Rows and images of a tile, images of a chunk, chunks.
    rows: usize,
    at_once: usize,
    chunk: usize,
    images: usize,
    /// Numbers of all sums of a chunk.
    len: usize,
    group_in: usize,
    group_out: usize,
    taps: usize,
}

/// Blocks of outputs that are computed together.
#[derive(Debug)]
struct Pass {
    block: usize,
    blocks: usize,
    /// Outputs of each block.
    outputs: Vec<Range<usize>>,
    columns: Vec<Column>,
    /// First number of its sums `[column, blocks, BLOCK]`, then those of the biases `[blocks, BLOCK]`.
    sums: usize,
}

/// Numbers of the input that follow each other.
#[derive(Clone, Copy, Debug)]
struct Column {
    /// From the input's pixel (0, 0) to the first of them, for output pixel (0, 0).
    offset: isize,
    len: usize,
    /// First line of sums.
    line: usize,
    /// Channel and tap of the first.
    channel: usize,
    tap: usize,
    /// Whether they are channels of one tap, not taps of one channel.
    channels: bool,
}

impl Direct {
    pub(super) fn new(tier: &'static Tier, window: Window, src: &View, grad: &View, images: usize) -> Self {
        let Window { kernel, stride, groups, .. } = window;
        let (group_in, group_out) = (src.channels() / groups, grad.channels() / groups);
        let taps = kernel[0] * kernel[1];
        let mut passes: Vec<Pass> = Vec::new();
        let mut len = 0;
        let mut first = 0;
        let wanted: Vec<(Range<usize>, Range<usize>)> = (grad.lanes.iter())
            .map(|lanes| {
                let outputs = first..first + usize::from(*lanes);
                first = outputs.end;
                let groups = outputs.start / group_out..outputs.end.div_ceil(group_out);
                (outputs, groups.start * group_in..groups.end * group_in)
            })
            .collect();
        let mut block = 0;
        while block < wanted.len() {
            let channels = wanted[block].1.clone();
            let same = wanted[block..].iter().take_while(|(_, other)| *other == channels).count();
            let blocks = at_once(same, tier.blocks);
            let most = (tier.sums / blocks).min(MAX_COLUMNS);
            let columns = columns(&window, src, channels, most);
            let lines: usize = columns.iter().map(|column| column.len).sum();
            let outputs = wanted[block..block + blocks].iter().map(|(outputs, _)| outputs.clone()).collect();
            passes.push(Pass { block, blocks, outputs, columns, sums: len });
            len += (lines + 1) * blocks * BLOCK;
            block += blocks;
        }
        let [height, width] = grad.size;
        let widest = passes.iter().map(|pass| pass.blocks).max().unwrap_or(1);
        let row = size_of::<f32>() * BLOCK * width * (widest + stride[0] * stride[1]);
        let rows = (RESIDENT / row.max(1)).max(PIXELS.div_ceil(width.max(1))).clamp(1, height.max(1));
        let rows = height.div_ceil(height.div_ceil(rows).max(1)).max(1);
        let chunks = JOBS.div_ceil(passes.len().max(1)).clamp(1, images.max(1));
        let chunk = images.div_ceil(chunks).max(1);
        let at_once = if rows == height { (PIXELS / (height * width).max(1)).clamp(1, chunk) } else { 1 };
        Self {
            tier,
            step: stride[1] * src.pixel_stride / src.phases,
            row_step: stride[0] * src.row_stride,
            src: src.clone(),
            grad: grad.clone(),
            passes,
            rows,
            at_once,
            chunk,
            images,
            len,
            group_in,
            group_out,
            taps,
        }
    }
}

impl Method for Direct {
    fn sums_len(&self) -> usize {
        self.len
    }

    fn add_scratch_len(&self) -> usize {
        0
    }

    fn run_scratch_len(&self) -> usize {
        self.len * self.images.div_ceil(self.chunk).max(1)
    }

    unsafe fn add(
        &self,
        images: usize,
        src: *const f32,
        grad: *const f32,
        sums: &mut [f32],
        _scratch: &mut [f32],
    ) {
        for pass in &self.passes {
            let sums = sums[pass.sums..][..pass.lines() * pass.blocks * BLOCK].as_mut_ptr();
            // SAFETY: handed on from the caller, and these sums belong to this pass alone.
            unsafe { self.tier.launch(PassOf { all: self, pass, images: 0..images, src, grad, sums }) };
        }
    }

    unsafe fn run(
        &self,
        images: usize,
        src: &[f32],
        grad: &[f32],
        weight: &mut [f32],
        bias: Option<&mut [f32]>,
        scratch: &mut [f32],
        par: Par,
    ) {
        let chunks = images.div_ceil(self.chunk).max(1);
        let (scratch, _) = scratch.split_at_mut(self.len * chunks);
        let macs = (weight.len() * self.grad.size[0] * self.grad.size[1] * images) as u64;
        let threads = par.threads(macs);
        let sums = Shared::new(scratch);
        for_each_job(threads, chunks * self.passes.len(), &mut [], 0, |job, _| {
            let (chunk, pass) = (job / self.passes.len(), &self.passes[job % self.passes.len()]);
            let pass_len = pass.lines() * pass.blocks * BLOCK;
            let part = PassOf {
                all: self,
                pass,
                images: chunk * self.chunk..images.min((chunk + 1) * self.chunk),
                src: src.as_ptr(),
                grad: grad.as_ptr(),
                sums: sums.part(chunk * self.len + pass.sums, pass_len),
            };
            // SAFETY: handed on from the caller, and these sums belong to this job alone.
            unsafe {
                std::ptr::write_bytes(part.sums, 0, pass_len);
                self.tier.launch(part);
            }
        });
        self.finish(scratch, weight, bias, par);
    }

    fn finish(&self, sums: &mut [f32], weight: &mut [f32], mut bias: Option<&mut [f32]>, par: Par) {
        let chunks = sums.len() / self.len;
        // All sums into the first ones; then to where the filters have them.
        let (first, others) = sums.split_at_mut(self.len);
        let weight = Shared::new(weight);
        let bias = bias.as_mut().map(|bias| Shared::new(bias));
        let first = Shared::new(first);
        // Reading a number costs about as much as a few multiplications.
        let threads = par.threads(8 * (self.len * chunks) as u64);
        let cuts: Vec<(usize, Range<usize>)> = (self.passes.iter().enumerate())
            .flat_map(|(pass, Pass { columns, .. })| {
                let step = columns.len().div_ceil(4).max(1);
                let ranges = (0..columns.len()).step_by(step);
                ranges.map(move |from| (pass, from..columns.len().min(from + step)))
            })
            .collect();
        for_each_job(threads, cuts.len(), &mut [], 0, |job, _| {
            let (pass, range) = &cuts[job];
            let pass = &self.passes[*pass];
            let line = pass.blocks * BLOCK;
            let from = pass.columns[range.start].line;
            // The last columns take the biases with them.
            let last = range.end == pass.columns.len();
            let to = if last { pass.lines() } else { pass.columns[range.end].line };
            let (at, len) = (pass.sums + from * line, (to - from) * line);
            // SAFETY: these sums, and the weights and biases that they belong to, are this job's alone; `part` checks that they
            // are inside.
            unsafe {
                let sums = std::slice::from_raw_parts_mut(first.part(at, len), len);
                for other in others.chunks_exact(self.len) {
                    accumulate(&other[at..at + len], sums, Par::Serial);
                }
                for column in &pass.columns[range.clone()] {
                    let sums = &sums[(column.line - from) * line..][..column.len * line];
                    self.unpack(pass, column, sums, &weight);
                }
                if let Some(bias) = bias.as_ref().filter(|_| last) {
                    for (outputs, sums) in pass.outputs.iter().zip(sums[len - line..].chunks_exact(BLOCK)) {
                        let dst = bias.part(outputs.start, outputs.len());
                        dst.copy_from_nonoverlapping(sums.as_ptr(), outputs.len());
                    }
                }
            }
        });
    }
}

impl Direct {
    /// Writes the sums `[column.len, blocks, BLOCK]` of a column to the filters.
    ///
    /// # Safety
    /// Nothing else touches these weights.
    unsafe fn unpack(&self, pass: &Pass, column: &Column, sums: &[f32], weight: &Shared<'_>) {
        let (step, line) = (if column.channels { self.taps } else { 1 }, pass.blocks * BLOCK);
        for (b, outputs) in pass.outputs.iter().enumerate() {
            for (lane, output) in outputs.clone().enumerate() {
                // Those of other groups that share a block are not wanted.
                let first = output / self.group_out * self.group_in;
                let inside = first..first + self.group_in;
                let count = if column.channels {
                    let wanted =
                        column.channel.max(inside.start)..(column.channel + column.len).min(inside.end);
                    if wanted.is_empty() {
                        continue;
                    }
                    wanted.start - column.channel..wanted.end - column.channel
                } else if inside.contains(&column.channel) {
                    0..column.len
                } else {
                    continue;
                };
                let channel = column.channel + if column.channels { count.start } else { 0 } - first;
                let at = (output * self.group_in + channel) * self.taps + column.tap;
                let dst = weight.part(at, (count.len() - 1) * step + 1);
                for (i, k) in count.enumerate() {
                    // SAFETY: `part` checked the last one; the rest is the caller's promise.
                    unsafe { *dst.add(i * step) = sums[k * line + b * BLOCK + lane] };
                }
            }
        }
    }
}

impl Pass {
    /// Lines of sums, that of the biases included.
    fn lines(&self) -> usize {
        1 + self.columns.last().map_or(0, |column| column.line + column.len)
    }
}

/// What the outputs that read these channels read, in pieces of at most `most` numbers that follow each other.
fn columns(window: &Window, src: &View, channels: Range<usize>, most: usize) -> Vec<Column> {
    let Window { kernel, padding, dilation, .. } = *window;
    let origin = src.at(0, 0, 0, 0) as isize;
    let mut columns: Vec<Column> = Vec::new();
    let mut line = 0;
    let mut push = |offset: isize, len: usize, channel: usize, tap: usize, channels: bool| {
        let parts = len.div_ceil(most);
        for part in 0..parts {
            let range = len * part / parts..len * (part + 1) / parts;
            let (channel, tap) =
                if channels { (channel + range.start, tap) } else { (channel, tap + range.start) };
            let offset = offset + range.start as isize;
            columns.push(Column { offset, len: range.len(), line, channel, tap, channels });
            line += range.len();
        }
    };
    let mut channel = channels.start;
    for (block, lanes) in blocks_of(&src.lanes, channels) {
        for r in 0..kernel[0] {
            let at = |s: usize| {
                let y = (r * dilation[0]) as isize - padding[0] as isize;
                let x = (s * dilation[1]) as isize - padding[1] as isize;
                src.at(0, block, y, x) as isize - origin
            };
            let tap = |s: usize| r * kernel[1] + s;
            if src.pixel_stride == 1 && src.phases == 1 && dilation[1] == 1 {
                push(at(0), kernel[1], channel, tap(0), false);
            } else {
                for s in 0..kernel[1] {
                    push(at(s) + lanes.start as isize, lanes.len(), channel, tap(s), true);
                }
            }
        }
        channel += lanes.len();
    }
    columns
}

/// One pass over the images of a chunk.
struct PassOf<'a> {
    all: &'a Direct,
    pass: &'a Pass,
    images: Range<usize>,
    src: *const f32,
    grad: *const f32,
    sums: *mut f32,
}

impl Kernel for PassOf<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { all, pass, images, src, grad, sums } = self;
        let [height, width] = all.grad.size;
        let line = pass.blocks * BLOCK;
        let biases = sums.wrapping_add((pass.lines() - 1) * line);
        for first in images.clone().step_by(all.at_once) {
            for top in (0..height).step_by(all.rows) {
                let mut tile = Tile {
                    images: all.at_once.min(images.end - first),
                    rows: all.rows.min(height - top),
                    width,
                    columns: 0,
                    blocks: pass.blocks,
                    src: std::ptr::null(),
                    src_step: all.step,
                    src_row: all.row_step,
                    src_image: all.src.image_stride,
                    grad: grad.wrapping_add(all.grad.at(first, pass.block, top as isize, 0)),
                    grad_row: all.grad.row_stride,
                    grad_image: all.grad.image_stride,
                    grad_block: all.grad.block_stride,
                    sums: biases,
                };
                // SAFETY: handed on from the caller: pixels of the gradient, and what they read, are inside the slices.
                unsafe { add_up::<L>(&tile) };
                let origin = src.wrapping_add(all.src.at(first, 0, 0, 0) + top * all.row_step);
                for column in &pass.columns {
                    tile.columns = column.len;
                    tile.src = origin.wrapping_offset(column.offset);
                    tile.sums = sums.wrapping_add(column.line * line);
                    // SAFETY: as above.
                    unsafe { multiply::<L>(&tile) };
                }
            }
        }
    }
}
