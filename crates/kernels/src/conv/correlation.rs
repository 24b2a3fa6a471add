//! A convolution as a product of its filters and the pixels gathered around each output.
//!
//! The depth of the product is (channel, tap), its columns are output pixels. Pixels are packed panel by
//! panel on the fly, so the whole `im2col` matrix never exists. The gradient with respect to the input of a
//! convolution with stride 1 is the same product with transposed filters.
#![expect(unsafe_code, reason = "tiles write into the shared result")]

use std::ops::Range;

use super::schedule::Schedule;
use super::window::{Layout, Window};
use crate::gemm::panel::Columns;
use crate::gemm::tile::{Finish, Run, Tile};
use crate::gemm::{MAX_DEPTH, depth_blocks};
use crate::par::{LINE, Shared, aligned, for_each_job};
use crate::tier::{MAX_COLS, MAX_ROWS, Tier};

/// Extents of the product; the batch is given when it runs.
#[derive(Clone, Debug)]
pub(super) struct Correlation {
    pub(super) window: Window,
    pub(super) groups: usize,
    /// Source channels of a group.
    pub(super) channels: usize,
    /// Numbers in a channel of the source.
    pub(super) src_plane: usize,
    /// Filters of a group.
    pub(super) filters: usize,
}

/// What the product is computed from, and on how many threads at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) tier: &'a Tier,
    pub(super) batch: usize,
    pub(super) threads: usize,
    /// `[batch, groups * channels, src_plane]`.
    pub(super) src: &'a [f32],
    /// `[groups * filters, depth]`.
    pub(super) weight: &'a [f32],
    pub(super) ending: Ending<'a>,
}

/// What follows the product: `dst = relu?(product + bias? + add?)`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ending<'a> {
    /// One number for each filter of all groups.
    pub(super) bias: Option<&'a [f32]>,
    /// Numbers laid out as `dst`.
    pub(super) add: Option<&'a [f32]>,
    pub(super) relu: bool,
}

/// One job: which part of the result it computes.
struct Span {
    images: Range<usize>,
    rows: Range<usize>,
    group: usize,
    filters: Range<usize>,
}

impl Correlation {
    /// Numbers in a filter.
    pub(super) fn depth(&self) -> usize {
        self.channels * self.window.taps()
    }

    /// Pixels that a filter is applied to in an image.
    pub(super) fn pixels(&self) -> usize {
        self.window.grid[0] * self.window.grid[1]
    }

    /// Multiply-accumulate operations for one image.
    pub(super) fn macs(&self) -> u64 {
        (self.groups * self.filters * self.depth()) as u64 * self.pixels() as u64
    }

    /// Numbers in a source image.
    fn src_image(&self) -> usize {
        self.groups * self.channels * self.src_plane
    }

    /// Numbers of scratch that each thread needs for a batch, however many threads there are.
    pub(super) fn scratch_len(&self, tier: &Tier, batch: usize) -> usize {
        if batch == 0 || self.pixels() == 0 {
            return 0;
        }
        let schedule = Schedule::new(self, tier, batch, 1);
        let results = if self.joins_images(tier, schedule.images) { self.filters * self.pixels() } else { 0 };
        let copy = self.window.copy_len(self.channels, schedule.rows);
        LINE + self.panel_len(tier) + schedule.images * (copy + results)
    }

    /// Numbers in an image of the result.
    fn dst_image(&self) -> usize {
        self.groups * self.filters * self.pixels()
    }

    fn panel_len(&self, tier: &Tier) -> usize {
        self.depth().min(MAX_DEPTH) * tier.cols
    }

    /// Whether panels run over the borders of images. That wastes no columns where the last panel of an image
    /// would be nearly empty, but results have to be moved to their images afterwards.
    fn joins_images(&self, tier: &Tier, images: usize) -> bool {
        images > 1 && self.pixels().next_multiple_of(tier.lanes) * 8 > self.pixels() * 9
    }

    /// Computes `dst`, `[batch, groups * filters, pixels]`.
    ///
    /// `scratch` holds [`Self::scratch_len`] numbers for each thread that is to take part.
    pub(super) fn run(&self, inputs: &Inputs<'_>, dst: &mut [f32], scratch: &mut [f32]) {
        let Inputs { tier, batch, threads, src, weight, ending } = *inputs;
        if batch == 0 || self.pixels() == 0 {
            return;
        }
        assert_eq!(src.len(), batch * self.src_image());
        assert_eq!(dst.len(), batch * self.dst_image());
        assert_eq!(weight.len(), self.groups * self.filters * self.depth());
        assert!(ending.add.is_none_or(|add| add.len() == dst.len()));
        assert!(ending.bias.is_none_or(|bias| bias.len() == self.groups * self.filters));
        let schedule = Schedule::new(self, tier, batch, threads);
        let dst = Shared::new(dst);
        for_each_job(threads, schedule.jobs, scratch, self.scratch_len(tier, batch), |job, scratch| {
            let [image, group, row, part] = schedule.position(job);
            let span = Span {
                images: image..batch.min(image + schedule.images),
                rows: row..self.window.grid[0].min(row + schedule.rows),
                group,
                filters: part..self.filters.min(part + schedule.filters),
            };
            let task = Task { correlation: self, tier, span, weight, ending, dst };
            task.run(src, schedule.rows, scratch);
        });
    }
}

/// One job with everything it needs.
struct Task<'a> {
    correlation: &'a Correlation,
    tier: &'a Tier,
    span: Span,
    weight: &'a [f32],
    ending: Ending<'a>,
    dst: Shared<'a>,
}

/// Where a tile of some columns goes: `c` for the first filter of the job, and the distance between filters.
struct Target<'a> {
    c: Shared<'a>,
    first: usize,
    filter_step: usize,
    /// What follows the product; `None` where it is done when the results are moved.
    ending: Option<Ending<'a>>,
}

impl Task<'_> {
    /// Computes the job; `most_rows` is the number of output rows in the largest job.
    fn run(&self, src: &[f32], most_rows: usize, scratch: &mut [f32]) {
        let (correlation, span) = (self.correlation, &self.span);
        let window = &correlation.window;
        let (channels, src_image) = (correlation.channels, correlation.src_image());
        let layout = window.layout(channels, src_image, most_rows, span.rows.start);
        let (packed, rest) = aligned(scratch).split_at_mut(correlation.panel_len(self.tier));
        let (copy, results) =
            rest.split_at_mut(if window.in_place() { 0 } else { span.images.len() * layout.image });
        let src = &src[span.images.start * src_image + span.group * channels * correlation.src_plane..];
        let pixels = if window.in_place() {
            src
        } else {
            let images = src.chunks(src_image).take(span.images.len());
            for (src, dst) in images.zip(copy.chunks_exact_mut(layout.image)) {
                window.copy(
                    self.tier,
                    &layout,
                    &src[..channels * correlation.src_plane],
                    span.rows.clone(),
                    dst,
                );
            }
            copy
        };
        let mut offsets = [0; MAX_DEPTH];
        for block in depth_blocks(correlation.depth()) {
            let offsets = &mut offsets[..block.len()];
            for (k, offset) in block.clone().zip(offsets.iter_mut()) {
                let (channel, tap) = (k / window.taps(), k % window.taps());
                *offset = channel * layout.channel + window.offset(&layout, tap);
            }
            self.multiply(&layout, &block, pixels, offsets, packed, results);
        }
        if correlation.joins_images(self.tier, span.images.len()) {
            self.part_images(results);
        }
    }

    /// Output pixels that the job computes of each of its images.
    fn pixels_per_image(&self) -> usize {
        self.span.rows.len() * self.correlation.window.grid[1]
    }

    /// Position in `dst` of the job's first pixel of an image and filter.
    fn position(&self, image: usize, filter: usize) -> usize {
        let channel = (self.span.images.start + image) * self.correlation.groups * self.correlation.filters
            + self.span.group * self.correlation.filters
            + filter;
        channel * self.correlation.pixels() + self.span.rows.start * self.correlation.window.grid[1]
    }

    /// Multiplies one block of the depth, panel by panel.
    fn multiply(
        &self,
        layout: &Layout,
        block: &Range<usize>,
        pixels: &[f32],
        offsets: &[usize],
        packed: &mut [f32],
        results: &mut [f32],
    ) {
        let per_image = self.pixels_per_image();
        let total = self.span.images.len() * per_image;
        let join = self.correlation.joins_images(self.tier, self.span.images.len());
        let results = Shared::new(results);
        let mut columns = [Columns::default(); MAX_COLS];
        let mut start = 0;
        while start < total {
            let image = start / per_image;
            let end = if join { total } else { (image + 1) * per_image }.min(start + self.tier.cols);
            let columns = self.columns(layout, start..end, &mut columns);
            self.tier.gather(pixels, offsets, columns, packed);
            let target = if join {
                Target { c: results, first: start, filter_step: total, ending: None }
            } else {
                let first = self.position(image, self.span.filters.start) + start % per_image;
                let filter_step = self.correlation.pixels();
                Target { c: self.dst, first, filter_step, ending: Some(self.ending) }
            };
            self.multiply_panel(block, packed, end - start, &target);
            start = end;
        }
    }

    /// The stretches of the window that the outputs of a panel start from. Outputs are counted through
    /// images, rows and columns.
    fn columns<'c>(
        &self,
        layout: &Layout,
        panel: Range<usize>,
        columns: &'c mut [Columns; MAX_COLS],
    ) -> &'c [Columns] {
        let (width, per_image) = (self.correlation.window.grid[1], self.pixels_per_image());
        let mut count = 0_usize;
        let mut column = panel.start;
        while column < panel.end {
            let (image, pixel) = (column / per_image, column % per_image);
            let (y, x) = (self.span.rows.start + pixel / width, pixel % width);
            let len = (width - x).min(panel.end - column);
            let src = image * layout.image + (y - layout.first_row) * layout.row + x;
            match columns[..count].last_mut() {
                Some(last) if last.src + last.len == src => last.len += len,
                _ => {
                    columns[count] = Columns { start: column - panel.start, len, src };
                    count += 1;
                }
            }
            column += len;
        }
        &columns[..count]
    }

    /// Multiplies one block of the depth of the job's filters by a packed panel of `width` columns.
    fn multiply_panel(&self, block: &Range<usize>, packed: &[f32], width: usize, target: &Target<'_>) {
        let depth = self.correlation.depth();
        // Filters are read where they lie, which is as fast as from a packed copy.
        let rows: [usize; MAX_ROWS] = std::array::from_fn(|i| i * depth);
        let ending = target.ending.filter(|_| block.end == depth).unwrap_or_default();
        for filter in self.span.filters.clone().step_by(self.tier.rows) {
            let height = self.tier.rows.min(self.span.filters.end - filter);
            let channel = self.span.group * self.correlation.filters + filter;
            let start = target.first + (filter - self.span.filters.start) * target.filter_step;
            let len = (height - 1) * target.filter_step + width;
            let tile = Tile {
                a: self.weight[channel * depth + block.start..].as_ptr(),
                rows: &rows[..height],
                step: 1,
                runs: &[Run { start: 0, len: block.len() }],
                b: packed.as_ptr(),
                b_step: self.tier.cols,
                c: target.c.part(start, len),
                c_step: target.filter_step,
                width,
                finish: Finish {
                    accumulate: block.start > 0,
                    bias: ending.bias.map(|bias| bias[channel..channel + height].as_ptr()),
                    add: ending.add.map(|add| (add[start..start + len].as_ptr(), target.filter_step)),
                    relu: ending.relu,
                },
            };
            // SAFETY: filters and panel hold the block, and these rows and columns of the target belong to
            // this job alone.
            unsafe { self.tier.multiply(&tile) };
        }
    }

    /// Moves results of joined images to where they belong, and does what follows the product.
    fn part_images(&self, results: &[f32]) {
        let per_image = self.pixels_per_image();
        let total = self.span.images.len() * per_image;
        for (filter, results) in self.span.filters.clone().zip(results.chunks_exact(total)) {
            let channel = self.span.group * self.correlation.filters + filter;
            let bias = self.ending.bias.map(|bias| bias[channel]);
            for (image, results) in results.chunks_exact(per_image).enumerate() {
                let start = self.position(image, filter);
                let add = self.ending.add.map(|add| &add[start..start + per_image]);
                // SAFETY: these elements of `dst` belong to this job alone; `part` checked the range.
                let dst =
                    unsafe { std::slice::from_raw_parts_mut(self.dst.part(start, per_image), per_image) };
                for (i, (dst, result)) in dst.iter_mut().zip(results).enumerate() {
                    let mut sum = bias.map_or(*result, |bias| result + bias);
                    if let Some(add) = add {
                        sum += add[i];
                    }
                    *dst = if self.ending.relu && sum < 0.0 { 0.0 } else { sum };
                }
            }
        }
    }
}
