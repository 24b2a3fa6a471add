//! The gradient of a convolution with respect to its filters.
//!
//! For each group this is a product whose depth is the output pixels of all images: rows are taps, read in
//! place from the windows of the images, columns are filters, from the transposed output gradient. The batch
//! is cut into chunks, each with a sum of its own; the sums are added in order. The cut is a function of the
//! shape alone, so the result does not depend on the number of threads.
#![expect(unsafe_code, reason = "tiles write into the shared sums")]

use std::ops::Range;

use super::ConvShape;
use super::window::{Layout, Window};
use crate::gemm::MAX_DEPTH;
use crate::gemm::tile::{Finish, Run, Tile};
use crate::par::{LINE, Shared, aligned, for_each_job};
use crate::tier::{MAX_ROWS, Tier};

/// Most chunks that a batch is cut into.
const MAX_CHUNKS: usize = 16;
/// Output pixels that a chunk has at least, so that adding the sums is cheap beside computing them.
const CHUNK_PIXELS: usize = 2048;

/// Extents of the product and how it is cut.
pub(super) struct WeightGradient<'a> {
    tier: &'a Tier,
    shape: &'a ConvShape,
    window: &'a Window,
    /// Input channels and filters of a group.
    channels: usize,
    filters: usize,
    /// Images of a chunk.
    chunk: usize,
    /// Images whose windows are laid out at once; their pixels are one stretch of the depth.
    images: usize,
}

impl<'a> WeightGradient<'a> {
    pub(super) fn new(tier: &'a Tier, shape: &'a ConvShape, window: &'a Window) -> Self {
        let pixels = shape.out_plane();
        let chunks = (shape.batch * pixels / CHUNK_PIXELS).clamp(1, MAX_CHUNKS.min(shape.batch));
        let chunk = shape.batch.div_ceil(chunks);
        Self {
            tier,
            shape,
            window,
            channels: shape.in_channels / shape.groups,
            filters: shape.out_channels / shape.groups,
            chunk,
            images: MAX_DEPTH.div_ceil(pixels).min(chunk),
        }
    }

    fn chunks(&self) -> usize {
        self.shape.batch.div_ceil(self.chunk)
    }

    /// Numbers in a filter: the rows of the product.
    fn depth(&self) -> usize {
        self.channels * self.window.taps()
    }

    /// Computes the gradient on up to `threads` threads. `dst` is `[out_channels, filter]`, neither empty,
    /// and there are output pixels.
    pub(super) fn run(&self, src: &[f32], grad_dst: &[f32], dst: &mut [f32], threads: usize) {
        // Channels are only split where chunks alone do not occupy the threads.
        let parts = (2 * threads).div_ceil(self.chunks() * self.shape.groups).min(self.channels);
        let part = self.channels.div_ceil(if threads > 1 { parts } else { 1 });
        let parts = self.channels.div_ceil(part);
        let rows = self.shape.out_size()[0];
        let copy_len = self.images * self.window.copy_len(part, rows);
        let scratch_len = LINE + self.panel_len() + copy_len;
        let jobs = self.chunks() * self.shape.groups * parts;
        let mut scratch = vec![0.0; scratch_len * threads.min(jobs)];
        // The sums of a chunk are `[group][tap of a filter][filter]`.
        let mut sums = vec![0.0; self.chunks() * dst.len()];
        let shared = Shared::new(&mut sums);
        for_each_job(threads, jobs, &mut scratch, scratch_len, |job, scratch| {
            let (chunk, group, first) =
                (job / parts / self.shape.groups, job / parts % self.shape.groups, job % parts);
            let channels = first * part..self.channels.min((first + 1) * part);
            Part { gradient: self, chunk, group, channels, sums: shared }.run(src, grad_dst, scratch);
        });
        self.add_chunks(&sums, dst, threads);
    }

    fn panel_len(&self) -> usize {
        MAX_DEPTH * self.tier.cols
    }

    /// Adds the sums of all chunks, in order, and turns them into filters.
    fn add_chunks(&self, sums: &[f32], dst: &mut [f32], threads: usize) {
        let (depth, filters, tier) = (self.depth(), self.filters, self.tier);
        let columns = tier.cols;
        let parts = filters.div_ceil(columns);
        let scratch_len = depth * columns;
        let jobs = self.shape.groups * parts;
        let mut scratch = vec![0.0; scratch_len * threads.min(jobs)];
        let group_len = depth * filters;
        let shared = Shared::new(dst);
        for_each_job(threads, jobs, &mut scratch, scratch_len, |job, sum| {
            let (group, first) = (job / parts, job % parts * columns);
            let width = columns.min(filters - first);
            for (i, chunk) in sums.chunks_exact(self.shape.weight_len()).enumerate() {
                let chunk = &chunk[group * group_len..(group + 1) * group_len];
                for (sum, chunk) in sum.chunks_exact_mut(columns).zip(chunk.chunks_exact(filters)) {
                    let terms = sum.iter_mut().zip(&chunk[first..first + width]);
                    if i == 0 {
                        terms.for_each(|(sum, term)| *sum = *term);
                    } else {
                        terms.for_each(|(sum, term)| *sum += *term);
                    }
                }
            }
            let len = width * depth;
            // SAFETY: the filters of this group and part belong to this job alone; `part` checked the range.
            let dst = unsafe {
                std::slice::from_raw_parts_mut(shared.part((group * filters + first) * depth, len), len)
            };
            // Whole vectors of taps at a time, then the rest.
            let whole = depth - depth % tier.lanes;
            for k in (0..whole).step_by(tier.lanes) {
                tier.transpose(&sum[k * columns..], columns, tier.lanes, width, &mut dst[k..], depth);
            }
            for k in whole..depth {
                for filter in 0..width {
                    dst[filter * depth + k] = sum[k * columns + filter];
                }
            }
        });
    }
}

/// One job: the sums over the images of a chunk, for some input channels of a group.
struct Part<'a> {
    gradient: &'a WeightGradient<'a>,
    chunk: usize,
    group: usize,
    channels: Range<usize>,
    sums: Shared<'a>,
}

impl Part<'_> {
    fn run(&self, src: &[f32], grad_dst: &[f32], scratch: &mut [f32]) {
        let WeightGradient { tier, shape, window, .. } = *self.gradient;
        let out_size = shape.out_size();
        let (src_image, src_plane) = (shape.src_image_len(), shape.in_size[0] * shape.in_size[1]);
        let layout = window.layout(self.channels.len(), src_image, out_size[0], 0);
        let (panel, copy) = aligned(scratch).split_at_mut(self.gradient.panel_len());
        let images = self.chunk_images();
        let first_channel = self.group * self.gradient.channels + self.channels.start;
        for first in images.clone().step_by(self.gradient.images) {
            let count = self.gradient.images.min(images.end - first);
            let src = &src[first * src_image + first_channel * src_plane..];
            let windows = if window.in_place() {
                src
            } else {
                let images = src.chunks(src_image).take(count);
                for (src, dst) in images.zip(copy.chunks_exact_mut(layout.image)) {
                    window.copy(tier, &layout, &src[..self.channels.len() * src_plane], 0..out_size[0], dst);
                }
                &*copy
            };
            let pixels = count * shape.out_plane();
            let blocks = pixels.div_ceil(MAX_DEPTH);
            for i in 0..blocks {
                let block = pixels * i / blocks..pixels * (i + 1) / blocks;
                let mut runs = [Run::default(); MAX_DEPTH];
                let runs = runs_of(&layout, out_size, &block, &mut runs);
                for filter in (0..self.gradient.filters).step_by(tier.cols) {
                    let filters = filter..self.gradient.filters.min(filter + tier.cols);
                    self.pack(first, &filters, &block, grad_dst, panel);
                    let accumulate = first > images.start || i > 0;
                    self.multiply(&layout, windows, runs, panel, &filters, accumulate);
                }
            }
        }
    }

    fn chunk_images(&self) -> Range<usize> {
        let len = self.gradient.chunk;
        self.chunk * len..self.gradient.shape.batch.min((self.chunk + 1) * len)
    }

    /// Packs the output gradient of a block of pixels, counted from the first pixel of an image, transposed:
    /// `[pixel][filter]`.
    fn pack(
        &self,
        image: usize,
        filters: &Range<usize>,
        block: &Range<usize>,
        grad_dst: &[f32],
        panel: &mut [f32],
    ) {
        let WeightGradient { tier, shape, .. } = *self.gradient;
        let pixels = shape.out_plane();
        let mut pixel = block.start;
        while pixel < block.end {
            let at = pixel % pixels;
            let len = (pixels - at).min(block.end - pixel);
            let channel = (image + pixel / pixels) * shape.out_channels
                + self.group * self.gradient.filters
                + filters.start;
            let src = &grad_dst[channel * pixels + at..];
            let dst = &mut panel[(pixel - block.start) * tier.cols..];
            tier.transpose(src, pixels, filters.len(), len, dst, tier.cols);
            pixel += len;
        }
    }

    /// Multiplies all taps of the job's channels by a packed panel.
    fn multiply(
        &self,
        layout: &Layout,
        windows: &[f32],
        runs: &[Run],
        panel: &[f32],
        filters: &Range<usize>,
        accumulate: bool,
    ) {
        let WeightGradient { tier, shape, window, .. } = *self.gradient;
        let (taps, step) = (window.taps(), self.gradient.filters);
        let sum = self.chunk * shape.weight_len()
            + (self.group * self.gradient.depth() + self.channels.start * taps) * step
            + filters.start;
        let rows = self.channels.len() * taps;
        let reach = runs.iter().map(|run| run.start + run.len).max().unwrap_or(0);
        for first in (0..rows).step_by(tier.rows) {
            let height = tier.rows.min(rows - first);
            let mut offsets = [0; MAX_ROWS];
            for (i, offset) in offsets[..height].iter_mut().enumerate() {
                let (channel, tap) = ((first + i) / taps, (first + i) % taps);
                *offset = channel * layout.channel + window.offset(layout, tap);
            }
            assert!(
                offsets[..height].iter().all(|offset| offset + reach <= windows.len()),
                "a tap outside the windows"
            );
            let tile = Tile {
                a: windows.as_ptr(),
                rows: &offsets[..height],
                step: 1,
                runs,
                b: panel.as_ptr(),
                b_step: tier.cols,
                c: self.sums.part(sum + first * step, (height - 1) * step + filters.len()),
                c_step: step,
                width: filters.len(),
                finish: Finish { accumulate, ..Finish::default() },
            };
            // SAFETY: each tap of each pixel of the runs lies in the windows, the panel holds their
            // gradients, and the sums of this chunk, group and these channels belong to this job alone.
            unsafe { tier.multiply(&tile) };
        }
    }
}

/// The stretches of the windows that a block of output pixels, counted through images, rows and columns,
/// starts from.
fn runs_of<'r>(
    layout: &Layout,
    [rows, width]: [usize; 2],
    block: &Range<usize>,
    runs: &'r mut [Run; MAX_DEPTH],
) -> &'r [Run] {
    let (mut count, mut pixel) = (0_usize, block.start);
    while pixel < block.end {
        let (image, y, x) = (pixel / (rows * width), pixel / width % rows, pixel % width);
        let len = (width - x).min(block.end - pixel);
        let start = image * layout.image + y * layout.row + x;
        match runs[..count].last_mut() {
            Some(last) if last.start + last.len == start => last.len += len,
            _ => {
                runs[count] = Run { start, len };
                count += 1;
            }
        }
        pixel += len;
    }
    &runs[..count]
}
