//! How the work of a convolution is cut into jobs.

use std::ops::Range;

use super::pack::Filters;
use super::{View, Window};

/// Multiply-accumulate operations that are worth a job of its own: some 0.15 us. Where a step is one job, one thread alone reads and
/// writes what lies partly in the cache of another one, and that costs microseconds.
const GRAIN: usize = 16 * 1024;
/// Pixels that share weights in the first-level cache, if there are as many.
const PIXELS: usize = 512;
/// Numbers of the input that a job should not exceed, so that they stay in the second-level cache: 512 KiB.
const RESIDENT: usize = 128 * 1024;
/// Jobs for each thread, so that the last ones end at about the same time.
const JOBS: usize = 4;

/// Images, rows and passes are each cut into equal ranges; the jobs are all combinations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    images: usize,
    rows: usize,
    passes: usize,
    height: usize,
    all_passes: usize,
}

/// Part of a convolution.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) images: Range<usize>,
    pub(super) rows: Range<usize>,
    pub(super) passes: Range<usize>,
}

impl Schedule {
    pub(super) fn new(
        filters: &Filters,
        src: &View,
        dst: &View,
        window: &Window,
        images: usize,
        threads: usize,
    ) -> Self {
        let [height, width] = dst.size;
        let macs = filters.macs_per_pixel() * height * width * images;
        let all_passes = filters.passes.len();
        let wanted = if threads == 1 { 1 } else { (macs / GRAIN).clamp(1, JOBS * threads) };
        // Rows: the input of a job fits the second-level cache.
        let row = (src.blocks() * src.row_stride * window.stride[0]).max(1);
        let row_tiles = (height * row).div_ceil(RESIDENT).clamp(1, height.max(1));
        let at_once = (PIXELS / (height * width).max(1)).clamp(1, images.max(1));
        // But not so few that weights are read more often than input.
        let fewest = PIXELS.div_ceil((width * at_once).max(1)).min(height);
        let mut schedule = Self {
            images: at_once,
            rows: height.div_ceil(row_tiles).max(fewest).max(1),
            passes: all_passes.max(1),
            height,
            all_passes,
        };
        // Then cut what is largest until there are jobs enough: images first (they share nothing but weights), then whichever
        // of weights and input is read by fewer jobs.
        let weights_are_larger = filters.bytes() / 4 > src.blocks() * src.block_stride;
        while schedule.jobs(images) < wanted {
            if schedule.images > 1 {
                schedule.images = schedule.images.div_ceil(2);
            } else if schedule.passes > 1 && (weights_are_larger || schedule.rows <= 4) {
                schedule.passes = schedule.passes.div_ceil(2);
            } else if schedule.rows > 1 {
                schedule.rows = schedule.rows.div_ceil(2);
            } else {
                break;
            }
        }
        schedule
    }

    /// One job for each image.
    pub(super) fn whole(filters: &Filters, dst: &View) -> Self {
        let (rows, passes) = (dst.size[0].max(1), filters.passes.len().max(1));
        Self { images: 1, rows, passes, height: dst.size[0], all_passes: filters.passes.len() }
    }

    /// Rows and images for a pair of convolutions, whose value in between is kept by the job: `row_len` numbers of it and of
    /// the input for each row of the result.
    pub(super) fn pair(macs: usize, row_len: usize, dst: &View, images: usize, threads: usize) -> Self {
        let [height, width] = dst.size;
        let wanted =
            if threads == 1 { 1 } else { (macs * height * width * images / GRAIN).clamp(1, JOBS * threads) };
        let tiles = (height * row_len).div_ceil(RESIDENT).clamp(1, height.max(1));
        let mut schedule = Self {
            images: (PIXELS / (height * width).max(1)).clamp(1, images.max(1)),
            rows: height.div_ceil(tiles).max(1),
            passes: 1,
            height,
            all_passes: 1,
        };
        while schedule.jobs(images) < wanted && (schedule.images > 1 || schedule.rows > 2) {
            if schedule.images > 1 {
                schedule.images = schedule.images.div_ceil(2);
            } else {
                schedule.rows = schedule.rows.div_ceil(2);
            }
        }
        schedule
    }

    /// Most images and rows of a job.
    pub(super) fn tile(&self) -> [usize; 2] {
        [self.images, self.rows]
    }

    pub(super) fn jobs(&self, images: usize) -> usize {
        images.div_ceil(self.images) * self.height.div_ceil(self.rows) * self.all_passes.div_ceil(self.passes)
    }

    pub(super) fn job(&self, index: usize, images: usize) -> Job {
        let passes = self.all_passes.div_ceil(self.passes);
        let rows = self.height.div_ceil(self.rows);
        let range = |index: usize, step: usize, len: usize| index * step..len.min((index + 1) * step);
        Job {
            images: range(index / passes / rows, self.images, images),
            rows: range(index / passes % rows, self.rows, self.height),
            passes: range(index % passes, self.passes, self.all_passes),
        }
    }
}
