//! How a convolution is cut into jobs.

use super::correlation::Correlation;
use crate::tier::Tier;

/// Extents of a job, and how many there are. Which cut is taken changes the time a convolution takes, never
/// its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Images of a job; more than one only where `rows` is all of them.
    pub(super) images: usize,
    /// Output rows of a job.
    pub(super) rows: usize,
    /// Filters of a job.
    pub(super) filters: usize,
    pub(super) jobs: usize,
    groups: usize,
    row_parts: usize,
    filter_parts: usize,
}

/// Numbers of input and output that a job should keep in the second-level cache (512 KiB).
const JOB_LEN: usize = 128 * 1024;
/// Multiply-accumulate operations below which a job is not worth handing out (about 10 us).
const JOB_MACS: u64 = 1 << 20;

impl Schedule {
    /// A cut for `threads` threads; more threads never make a job larger.
    pub(super) fn new(correlation: &Correlation, tier: &Tier, batch: usize, threads: usize) -> Self {
        let grid = correlation.window.grid;
        let pixels = correlation.pixels();
        let (mut images, mut rows, mut filters) = (1, grid[0], correlation.filters);
        // Columns that fit the cache, but enough of them that the filters are not read too often.
        let copy_len =
            correlation.window.copy_len(correlation.channels, grid[0]).max(correlation.channels * pixels);
        let columns =
            (JOB_LEN * pixels / (copy_len + correlation.filters * pixels).max(1)).max(4 * tier.cols);
        if pixels > columns {
            rows = even(grid[0], (columns / grid[1]).max(1));
        } else {
            let worth = JOB_MACS.div_ceil(correlation.macs().max(1)) as usize;
            images = (columns / pixels).max(worth.min(JOB_LEN / copy_len.max(1))).clamp(1, batch);
        }
        let jobs = |images: usize, rows: usize, filters: usize| {
            batch.div_ceil(images)
                * correlation.groups
                * grid[0].div_ceil(rows)
                * correlation.filters.div_ceil(filters)
        };
        if threads > 1 {
            images = images.min((batch * correlation.groups).div_ceil(4 * threads)).max(1);
            while jobs(images, rows, filters) < 2 * threads && rows > 1 && rows * grid[1] >= 4 * tier.cols {
                rows = even(grid[0], rows.div_ceil(2));
            }
            while jobs(images, rows, filters) < threads && filters > 2 * tier.rows {
                filters = filters.div_ceil(2).next_multiple_of(tier.rows);
            }
        }
        Self {
            images,
            rows,
            filters,
            jobs: jobs(images, rows, filters),
            groups: correlation.groups,
            row_parts: grid[0].div_ceil(rows),
            filter_parts: correlation.filters.div_ceil(filters),
        }
    }

    /// First image, group, first output row and first filter of a job.
    pub(super) fn position(&self, job: usize) -> [usize; 4] {
        let (job, part) = (job / self.filter_parts, job % self.filter_parts);
        let (job, row) = (job / self.row_parts, job % self.row_parts);
        [job / self.groups * self.images, job % self.groups, row * self.rows, part * self.filters]
    }
}

/// `total` cut into as many parts as parts of `most` would need, all of nearly the same size.
fn even(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most))
}
