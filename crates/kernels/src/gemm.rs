//! Matrix product.
//!
//! `c` is cut into jobs of up to 128 rows and 16 panels of columns. A job walks through the depth in blocks:
//! it packs the block of its rows of `a` unless they can be read in place, then for each panel the block of
//! `b`, and multiplies tile by tile. Every element of `c` is one chain of multiply-adds for each block of the
//! depth, and the blocks are added in order; neither depends on how `c` was cut, so the result has the same
//! bits for any number of threads.
#![expect(unsafe_code, reason = "tiles write into the shared result")]

pub(crate) mod panel;
pub(crate) mod tile;

use crate::Par;
use crate::par::{LINE, Shared, aligned, for_each_job};
#[cfg(test)]
use crate::tier::MAX_COLS;
use crate::tier::{self, MAX_ROWS, Tier};
use panel::Columns;
use tile::{Finish, Run, Tile};

/// A matrix as a view of a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows in `data`.
    pub row_stride: usize,
    /// Distance between columns in `data`.
    pub col_stride: usize,
}

impl MatRef<'_> {
    /// Panics unless every element lies inside `data`.
    fn check(&self, name: &str) {
        if self.rows > 0 && self.cols > 0 {
            // In u128, so that absurd strides cannot wrap around.
            let last = (self.rows - 1) as u128 * self.row_stride as u128
                + (self.cols - 1) as u128 * self.col_stride as u128;
            let found = self.data.len();
            assert!(last < found as u128, "gemm: {name} needs {} numbers, has {found}", last + 1);
        }
    }
}

/// Longest block of the depth: with it a packed panel of the right matrix (36 KiB) stays in the first-level
/// cache.
pub(crate) const MAX_DEPTH: usize = 192;

/// Cuts `0..depth` into equal blocks of at most [`MAX_DEPTH`]. The cut decides the rounding of a product, so
/// it is a function of the depth alone.
pub(crate) fn depth_blocks(depth: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let blocks = depth.div_ceil(MAX_DEPTH);
    (0..blocks).map(move |i| depth * i / blocks..depth * (i + 1) / blocks)
}

/// Rows of a job's part of the result.
const JOB_ROWS: usize = 128;
/// Panels of columns of a job's part of the result.
const JOB_PANELS: usize = 16;

/// `c = a b`, or `c += a b` with `accumulate`; `c` is row-major `[a.rows, b.cols]`.
///
/// ```
/// use cofilter_kernels::{MatRef, Par, gemm};
///
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
/// let mut c = [0.0; 2];
/// gemm(
///     MatRef { data: &a, rows: 2, cols: 2, row_stride: 2, col_stride: 1 },
///     MatRef { data: &b, rows: 2, cols: 1, row_stride: 1, col_stride: 1 },
///     false,
///     &mut c,
///     Par::Serial,
/// );
/// assert_eq!(c, [17.0, 39.0]);
/// ```
///
/// # Panics
/// If `a.cols` differs from `b.rows`, `c` has another length than `a.rows * b.cols`, or an element of `a` or
/// `b` lies outside its slice.
pub fn gemm(a: MatRef<'_>, b: MatRef<'_>, accumulate: bool, c: &mut [f32], par: Par) {
    assert_eq!(a.cols, b.rows, "gemm: columns of a and rows of b");
    assert_eq!(c.len(), a.rows * b.cols, "gemm: length of c for {} x {}", a.rows, b.cols);
    a.check("a");
    b.check("b");
    let threads = par.threads(a.rows as u64 * a.cols as u64 * b.cols as u64);
    multiply(tier::active(), a, b, accumulate, c, threads);
}

/// [`gemm`] on a given tier, once the extents are known to fit.
fn multiply(tier: &Tier, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool, c: &mut [f32], threads: usize) {
    let (rows, cols, depth) = (a.rows, b.cols, a.cols);
    if depth == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    if rows == 0 || cols == 0 {
        return;
    }
    let (job_rows, job_cols) = cut(tier, rows, cols, threads);
    let (down, across) = (rows.div_ceil(job_rows), cols.div_ceil(job_cols));
    let longest = depth.min(MAX_DEPTH);
    // Tiles read a row-major left matrix where it lies, which is as fast as reading it packed.
    let in_place = a.col_stride == 1;
    let (offsets, step): ([usize; MAX_ROWS], usize) = if in_place {
        (std::array::from_fn(|i| i * a.row_stride), 1)
    } else {
        (std::array::from_fn(|i| i), tier.rows)
    };
    let left_len = if in_place { 0 } else { longest * job_rows };
    let scratch_len = LINE + left_len + longest * tier.cols;
    let mut scratch = vec![0.0; scratch_len * threads.min(down * across)];
    let c = Shared::new(c);
    for_each_job(threads, down * across, &mut scratch, scratch_len, |job, scratch| {
        let (row, col) = (job % down * job_rows, job / down * job_cols);
        let (panel, left) = aligned(scratch).split_at_mut(longest * tier.cols);
        let (row_end, col_end) = (rows.min(row + job_rows), cols.min(col + job_cols));
        for block in depth_blocks(depth) {
            if !in_place {
                pack_left(tier, &a, row..row_end, block.clone(), left);
            }
            for first in (col..col_end).step_by(tier.cols) {
                let width = tier.cols.min(col_end - first);
                pack_right(tier, &b, block.clone(), first..first + width, panel);
                for i in (row..row_end).step_by(tier.rows) {
                    let height = tier.rows.min(row_end - i);
                    let tile = Tile {
                        a: if in_place {
                            a.data[i * a.row_stride + block.start..].as_ptr()
                        } else {
                            left[(i - row) * block.len()..].as_ptr()
                        },
                        rows: &offsets[..height],
                        step,
                        runs: &[Run { start: 0, len: block.len() }],
                        b: panel.as_ptr(),
                        b_step: tier.cols,
                        c: c.part(i * cols + first, (height - 1) * cols + width),
                        c_step: cols,
                        width,
                        finish: Finish { accumulate: accumulate || block.start > 0, ..Finish::default() },
                    };
                    // SAFETY: `left` and `panel` hold the packed block, and no other job has these rows and
                    // columns.
                    unsafe { tier.multiply(&tile) };
                }
            }
        }
    });
}

/// Rows and columns of a job's part of the result: large enough to repay packing, small enough to occupy the
/// threads.
fn cut(tier: &Tier, rows: usize, cols: usize, threads: usize) -> (usize, usize) {
    let whole_rows = |n: usize| n.next_multiple_of(tier.rows).max(tier.rows);
    let mut job_rows = whole_rows(rows.div_ceil(rows.div_ceil(JOB_ROWS)));
    let mut panels = cols.div_ceil(tier.cols).min(JOB_PANELS);
    let jobs = |job_rows: usize, panels: usize| rows.div_ceil(job_rows) * cols.div_ceil(panels * tier.cols);
    while threads > 1 && jobs(job_rows, panels) < 2 * threads {
        if panels > 2 {
            panels = panels.div_ceil(2);
        } else if job_rows > 4 * tier.rows {
            job_rows = whole_rows(job_rows / 2);
        } else {
            break;
        }
    }
    (job_rows, panels * tier.cols)
}

/// Packs a block of rows of the left matrix: for each group of `tier.rows` rows, `[depth][row]`.
fn pack_left(
    tier: &Tier,
    a: &MatRef<'_>,
    rows: std::ops::Range<usize>,
    depth: std::ops::Range<usize>,
    dst: &mut [f32],
) {
    let groups = dst.chunks_exact_mut(tier.rows * depth.len());
    for (first, dst) in rows.clone().step_by(tier.rows).zip(groups) {
        let height = tier.rows.min(rows.end - first);
        let src = &a.data[first * a.row_stride + depth.start * a.col_stride..];
        for (k, dst) in dst.chunks_exact_mut(tier.rows).enumerate() {
            for (i, dst) in dst.iter_mut().enumerate().take(height) {
                *dst = src[i * a.row_stride + k * a.col_stride];
            }
        }
    }
}

/// Packs a panel of columns of the right matrix: `[depth][column]`.
fn pack_right(
    tier: &Tier,
    b: &MatRef<'_>,
    depth: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    dst: &mut [f32],
) {
    let src = &b.data[depth.start * b.row_stride + cols.start * b.col_stride..];
    if b.row_stride == 1 {
        tier.transpose(src, b.col_stride, cols.len(), depth.len(), dst, tier.cols);
    } else if b.col_stride == 1 {
        let mut offsets = [0; MAX_DEPTH];
        for (k, offset) in offsets[..depth.len()].iter_mut().enumerate() {
            *offset = k * b.row_stride;
        }
        tier.gather(src, &offsets[..depth.len()], &[Columns { start: 0, len: cols.len(), src: 0 }], dst);
    } else {
        for (k, dst) in dst.chunks_exact_mut(tier.cols).enumerate().take(depth.len()) {
            for (j, dst) in dst.iter_mut().enumerate().take(cols.len()) {
                *dst = src[k * b.row_stride + j * b.col_stride];
            }
        }
    }
}

#[cfg(test)]
mod tests;
