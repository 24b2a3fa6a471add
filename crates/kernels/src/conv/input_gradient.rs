//! The gradient of a convolution with respect to its input.
//!
//! With stride 1 and an output of about the size of the input it is a convolution of the output gradient with
//! transposed filters. Else, where that would multiply many zeros, the product of the transposed filters and
//! the output gradient is added up tap by tap (`col2im`), a panel of output pixels at a time.
#![expect(unsafe_code, reason = "tiles write into the shared result")]

use std::ops::Range;

use super::ConvShape;
use super::correlation::{Correlation, Ending, Inputs};
use super::window::Window;
use crate::gemm::panel::{self, Columns};
use crate::gemm::tile::{Finish, Run, Tile};
use crate::gemm::{MAX_DEPTH, depth_blocks};
use crate::par::{LINE, Shared, aligned, for_each_job};
use crate::tier::{MAX_COLS, Tier};

/// Computes `grad_src` on up to `threads` threads.
pub(super) fn run(
    tier: &Tier,
    shape: &ConvShape,
    grad_dst: &[f32],
    weight: &[f32],
    grad_src: &mut [f32],
    threads: usize,
) {
    if grad_dst.is_empty() {
        grad_src.fill(0.0);
        return;
    }
    let in_pixels = shape.in_size[0] * shape.in_size[1];
    let few_zeros = shape.stride == [1, 1] && in_pixels * 4 <= shape.out_plane() * 5;
    if few_zeros && shape.in_channels / shape.groups >= tier.rows {
        correlate(tier, shape, grad_dst, weight, grad_src, threads);
    } else {
        Spread::new(tier, shape, threads).run(grad_dst, weight, grad_src);
    }
}

/// The gradient as a convolution of `grad_dst`; the stride is 1.
fn correlate(
    tier: &Tier,
    shape: &ConvShape,
    grad_dst: &[f32],
    weight: &[f32],
    grad_src: &mut [f32],
    threads: usize,
) {
    let [height, width] = shape.kernel;
    let reach = [(height - 1) * shape.dilation[0], (width - 1) * shape.dilation[1]];
    let before = [0, 1].map(|d| reach[d] as isize - shape.padding[d] as isize);
    let displacements = (0..height).flat_map(|r| {
        (0..width).map(move |s| [reach[0] - r * shape.dilation[0], reach[1] - s * shape.dilation[1]])
    });
    let correlation = Correlation {
        window: Window::new(shape.out_size(), shape.in_size, before, [1, 1], displacements),
        groups: shape.groups,
        channels: shape.out_channels / shape.groups,
        src_plane: shape.out_plane(),
        filters: shape.in_channels / shape.groups,
    };
    let transposed = transpose_filters(shape, weight);
    let mut scratch = vec![0.0; correlation.scratch_len(tier, shape.batch) * threads];
    let inputs = Inputs {
        tier,
        batch: shape.batch,
        threads,
        src: grad_dst,
        weight: &transposed,
        ending: Ending::default(),
    };
    correlation.run(&inputs, grad_src, &mut scratch);
}

/// Filters with input and output channels of each group exchanged: `[groups][channel][filter][tap]`.
fn transpose_filters(shape: &ConvShape, weight: &[f32]) -> Vec<f32> {
    /// Filters and channels that are exchanged at a time, so that both sides stay in the cache.
    const BLOCK: usize = 16;
    let (channels, filters) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let taps = shape.kernel[0] * shape.kernel[1];
    let group_len = channels * filters * taps;
    let mut transposed = vec![0.0; weight.len()];
    for (src, dst) in weight.chunks_exact(group_len).zip(transposed.chunks_exact_mut(group_len)) {
        for (filter, channel) in (0..filters)
            .step_by(BLOCK)
            .flat_map(|filter| (0..channels).step_by(BLOCK).map(move |channel| (filter, channel)))
        {
            for channel in channel..channels.min(channel + BLOCK) {
                for filter in filter..filters.min(filter + BLOCK) {
                    let src = &src[(filter * channels + channel) * taps..][..taps];
                    let dst = &mut dst[(channel * filters + filter) * taps..][..taps];
                    for (dst, src) in dst.iter_mut().zip(src) {
                        *dst = *src;
                    }
                }
            }
        }
    }
    transposed
}

/// The gradient as a product that is added up tap by tap.
struct Spread<'a> {
    tier: &'a Tier,
    shape: &'a ConvShape,
    threads: usize,
    /// Input channels and filters of a group, and taps of a filter in a channel.
    channels: usize,
    filters: usize,
    taps: usize,
    /// Input channels of a job.
    part: usize,
    /// Height and width of the padded input that outputs reach.
    padded: [usize; 2],
}

/// Rows of the product that a job has at least, if there are so many: the panel of the output gradient is
/// packed once for them.
const JOB_ROWS: usize = 64;
/// Numbers of padded input that a job should keep in the second-level cache (256 KiB).
const JOB_LEN: usize = 64 * 1024;

impl<'a> Spread<'a> {
    fn new(tier: &'a Tier, shape: &'a ConvShape, threads: usize) -> Self {
        let out_size = shape.out_size();
        let padded = [0, 1]
            .map(|d| (out_size[d] - 1) * shape.stride[d] + (shape.kernel[d] - 1) * shape.dilation[d] + 1);
        let channels = shape.in_channels / shape.groups;
        let taps = shape.kernel[0] * shape.kernel[1];
        let least = JOB_ROWS.div_ceil(taps);
        let mut part = (JOB_LEN / (padded[0] * padded[1])).max(least).min(channels);
        let images = shape.batch * shape.groups;
        if images < 2 * threads {
            part = part.min(channels.div_ceil((2 * threads).div_ceil(images)).max(least.min(channels)));
        }
        Self {
            tier,
            shape,
            threads,
            channels,
            filters: shape.out_channels / shape.groups,
            taps,
            part,
            padded,
        }
    }

    fn run(&self, grad_dst: &[f32], weight: &[f32], grad_src: &mut [f32]) {
        let (tier, shape) = (self.tier, self.shape);
        let packed = self.pack(weight);
        let parts = self.channels.div_ceil(self.part);
        let jobs = shape.batch * shape.groups * parts;
        let scratch_len = LINE + self.panel_len() + self.part * (self.taps * tier.cols + self.padded_len());
        let mut scratch = vec![0.0; scratch_len * self.threads.min(jobs)];
        let shared = Shared::new(grad_src);
        let group_len = packed.len() / shape.groups;
        for_each_job(self.threads, jobs, &mut scratch, scratch_len, |job, scratch| {
            let (first, group, image) =
                (job % parts * self.part, job / parts % shape.groups, job / parts / shape.groups);
            let channels = first..self.channels.min(first + self.part);
            let plane = shape.in_size[0] * shape.in_size[1];
            let start = (image * shape.in_channels + group * self.channels + first) * plane;
            let len = channels.len() * plane;
            // SAFETY: the channels of this image belong to this job alone; `part` checked the range.
            let grad_src = unsafe { std::slice::from_raw_parts_mut(shared.part(start, len), len) };
            let grad_dst =
                &grad_dst[(image * shape.out_channels + group * self.filters) * shape.out_plane()..];
            self.spread(channels, grad_dst, &packed[group * group_len..], grad_src, scratch);
        });
    }

    fn panel_len(&self) -> usize {
        self.filters.min(MAX_DEPTH) * self.tier.cols
    }

    fn padded_len(&self) -> usize {
        self.padded[0] * self.padded[1]
    }

    /// Packs the transposed filters: for each group, and each `tier.rows` of its (channel, tap) pairs,
    /// `[filter][pair]`.
    fn pack(&self, weight: &[f32]) -> Vec<f32> {
        let (rows, row) = (self.channels * self.taps, self.tier.rows);
        let group_len = rows.next_multiple_of(row) * self.filters;
        let mut packed = vec![0.0; self.shape.groups * group_len];
        for (src, dst) in weight.chunks_exact(self.filters * rows).zip(packed.chunks_exact_mut(group_len)) {
            for (filter, src) in src.chunks_exact(rows).enumerate() {
                for (src, dst) in src.chunks(row).zip(dst.chunks_exact_mut(row * self.filters)) {
                    dst[filter * row..][..src.len()].copy_from_slice(src);
                }
            }
        }
        packed
    }

    /// Computes the gradient of some channels of one image and group.
    fn spread(
        &self,
        channels: Range<usize>,
        grad_dst: &[f32],
        packed: &[f32],
        grad_src: &mut [f32],
        scratch: &mut [f32],
    ) {
        let pixels = self.shape.out_plane();
        let (panel, rest) = aligned(scratch).split_at_mut(self.panel_len());
        let (products, padded) = rest.split_at_mut(self.part * self.taps * self.tier.cols);
        let padded = &mut padded[..channels.len() * self.padded_len()];
        padded.fill(0.0);
        let mut offsets = [0; MAX_DEPTH];
        for first in (0..pixels).step_by(self.tier.cols) {
            let width = self.tier.cols.min(pixels - first);
            for block in depth_blocks(self.filters) {
                let offsets = &mut offsets[..block.len()];
                for (k, offset) in block.clone().zip(offsets.iter_mut()) {
                    *offset = k * pixels + first;
                }
                self.tier.gather(grad_dst, offsets, &[Columns { start: 0, len: width, src: 0 }], panel);
                self.multiply(&channels, &block, packed, panel, width, products);
            }
            self.add_taps(first..first + width, products, padded);
        }
        self.crop(padded, grad_src);
    }

    /// Multiplies one block of the depth of the transposed filters of some channels by a packed panel.
    ///
    /// The rows of a job need not start at a whole group of packed rows.
    fn multiply(
        &self,
        channels: &Range<usize>,
        block: &Range<usize>,
        packed: &[f32],
        panel: &[f32],
        width: usize,
        products: &mut [f32],
    ) {
        let (tier, end) = (self.tier, channels.end * self.taps);
        let start = channels.start * self.taps;
        let mut row = start;
        while row < end {
            let within = row % tier.rows;
            let height = (tier.rows - within).min(end - row);
            let rows: [usize; crate::tier::MAX_ROWS] = std::array::from_fn(|i| within + i);
            let tile = Tile {
                a: packed[(row - within) * self.filters + block.start * tier.rows..].as_ptr(),
                rows: &rows[..height],
                step: tier.rows,
                runs: &[Run { start: 0, len: block.len() }],
                b: panel.as_ptr(),
                b_step: tier.cols,
                c: products[(row - start) * tier.cols..][..height * tier.cols].as_mut_ptr(),
                c_step: tier.cols,
                width,
                finish: Finish { accumulate: block.start > 0, ..Finish::default() },
            };
            // SAFETY: packed filters and panel hold the block, and `products` has a row for each row of the
            // job.
            unsafe { tier.multiply(&tile) };
            row += height;
        }
    }

    /// Adds the products of a panel of output pixels to the padded input pixels that each tap reads.
    fn add_taps(&self, pixels: Range<usize>, products: &[f32], padded: &mut [f32]) {
        let (shape, width) = (self.shape, self.shape.out_size()[1]);
        let (mut columns, mut count, mut pixel) = ([Columns::default(); MAX_COLS], 0, pixels.start);
        while pixel < pixels.end {
            let (y, x) = (pixel / width, pixel % width);
            let len = (width - x).min(pixels.end - pixel);
            let src = y * shape.stride[0] * self.padded[1] + x * shape.stride[1];
            columns[count] = Columns { start: pixel - pixels.start, len, src };
            count += 1;
            pixel += len;
        }
        let spread = panel::Spread {
            rows: padded.len() / self.padded_len(),
            src_row: self.taps * self.tier.cols,
            dst_row: self.padded_len(),
            dst_col: shape.stride[1],
            columns: &columns[..count],
        };
        for tap in 0..self.taps {
            let (r, s) = (tap / shape.kernel[1], tap % shape.kernel[1]);
            let offset = r * shape.dilation[0] * self.padded[1] + s * shape.dilation[1];
            self.tier.spread(&spread, &products[tap * self.tier.cols..], &mut padded[offset..]);
        }
    }

    /// Copies what lies inside the image.
    fn crop(&self, padded: &[f32], grad_src: &mut [f32]) {
        let (shape, [height, width]) = (self.shape, self.shape.in_size);
        // Columns of the image that some output may read.
        let left = shape.padding[1].min(self.padded[1]);
        let len = (self.padded[1] - left).min(width);
        let planes = padded.chunks_exact(self.padded_len()).zip(grad_src.chunks_exact_mut(height * width));
        for (padded, grad_src) in planes {
            for (y, dst) in grad_src.chunks_exact_mut(width).enumerate() {
                let row = y + shape.padding[0];
                if row < self.padded[0] {
                    dst[..len].copy_from_slice(&padded[row * self.padded[1] + left..][..len]);
                    dst[len..].fill(0.0);
                } else {
                    dst.fill(0.0);
                }
            }
        }
    }
}
