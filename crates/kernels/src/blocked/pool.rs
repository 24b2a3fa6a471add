//! Pooling of blocked maps.
#![expect(unsafe_code, reason = "rows are read and written through pointers to shared memory")]

use std::ops::Range;

use super::lanes::Lanes;
use super::memory::Memory;
use super::rowwise::{RowOp, Rowwise};
use super::sequence::Step;
use super::{BLOCK, View};

impl Step {
    /// The largest number of each window, clipped to the map: window `(y, x)` begins at `(y stride_h - padding_h, x stride_w -
    /// padding_w)`; NaN if there is one. How many windows there are is for `dst` to say.
    ///
    /// # Panics
    /// If the maps are not blocked, have other channels, or a window lies outside the map.
    pub fn max_pool(
        src: &View,
        dst: &View,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Self {
        check(src, dst);
        let windows = |d: usize| windows(src.size[d], dst.size[d], kernel[d], stride[d], padding[d]);
        let op =
            Pool { src: src.clone(), dst: dst.clone(), rows: windows(0), columns: windows(1), divisor: None };
        Self::from_stage(Rowwise::new(op))
    }

    /// The mean of each window as in [`max_pool`](Self::max_pool): the sum of its numbers inside the map over the numbers of the
    /// window clipped to the padded map, or, without `count_padding`, to the map.
    ///
    /// # Panics
    /// As [`max_pool`](Self::max_pool).
    pub fn avg_pool(
        src: &View,
        dst: &View,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        count_padding: bool,
    ) -> Self {
        check(src, dst);
        let windows = |d: usize| windows(src.size[d], dst.size[d], kernel[d], stride[d], padding[d]);
        let (rows, columns) = (windows(0), windows(1));
        let counts = |d: usize, clipped: &[Range<usize>]| -> Vec<usize> {
            let padded = |i: usize| kernel[d].min(src.size[d] + 2 * padding[d] - i * stride[d]);
            let count =
                |(i, window): (usize, &Range<usize>)| if count_padding { padded(i) } else { window.len() };
            clipped.iter().enumerate().map(count).collect()
        };
        let divisor = Some([counts(0, &rows), counts(1, &columns)]);
        Self::from_stage(Rowwise::new(Pool { src: src.clone(), dst: dst.clone(), rows, columns, divisor }))
    }

    /// The mean of `dst.size` windows that tile the map: window `i` of `n` covers rows `floor(i h / n) .. ceil((i + 1) h / n)`.
    ///
    /// # Panics
    /// As [`max_pool`](Self::max_pool).
    pub fn adaptive_avg_pool(src: &View, dst: &View) -> Self {
        check(src, dst);
        let [rows, columns] = [0, 1].map(|d| adaptive_windows(src.size[d], dst.size[d]));
        let counts =
            |windows: &[Range<usize>]| windows.iter().map(ExactSizeIterator::len).collect::<Vec<usize>>();
        let divisor = Some([counts(&rows), counts(&columns)]);
        Self::from_stage(Rowwise::new(Pool { src: src.clone(), dst: dst.clone(), rows, columns, divisor }))
    }
}

/// `n` windows that tile `len` pixels.
pub(super) fn adaptive_windows(len: usize, n: usize) -> Vec<Range<usize>> {
    (0..n).map(|i| i * len / n..((i + 1) * len).div_ceil(n)).collect()
}

fn check(src: &View, dst: &View) {
    assert!(src.pixel_stride == BLOCK && dst.pixel_stride == BLOCK, "pool: not blocked: {src:?} {dst:?}");
    assert!(src.lanes == dst.lanes, "pool: channels differ: {src:?} {dst:?}");
}

/// Windows along one axis, clipped to the map.
pub(super) fn windows(
    len: usize,
    count: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Vec<Range<usize>> {
    let window = |i: usize| {
        let end = (i * stride + kernel).saturating_sub(padding).min(len);
        let start = (i * stride).saturating_sub(padding);
        assert!(start < end, "pool: window {i} of {count} lies outside {len} numbers");
        start..end
    };
    (0..count).map(window).collect()
}

#[derive(Debug)]
struct Pool {
    src: View,
    dst: View,
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
    /// Rows and columns that count for each window of a mean; none for the largest.
    divisor: Option<[Vec<usize>; 2]>,
}

impl RowOp for Pool {
    fn srcs(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    fn cost(&self) -> usize {
        let most = |windows: &[Range<usize>]| windows.iter().map(ExactSizeIterator::len).max().unwrap_or(1);
        most(&self.rows) * most(&self.columns)
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, _: *mut f32, image: usize, block: usize, y: usize) {
        let src = memory.at(&self.src, image, block, 0, 0);
        let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
        let rows = &self.rows[y];
        for x in 0..self.dst.size[1] {
            let columns = &self.columns[x];
            // SAFETY: windows are clipped to the map.
            unsafe {
                let first = src.add(rows.start * self.src.row_stride + columns.start * BLOCK);
                let extents = [rows.end - rows.start, columns.end - columns.start];
                let value = match &self.divisor {
                    None => largest::<L>(first, self.src.row_stride, extents),
                    Some([rows, columns]) => {
                        let sum = sum::<L>(first, self.src.row_stride, extents);
                        L::div(sum, L::splat((rows[y] * columns[x]) as f32))
                    }
                };
                L::store(dst.add(x * BLOCK), value);
            }
        }
    }
}

/// # Safety
/// The machine has `L`, and the window is valid.
#[inline(always)]
unsafe fn largest<L: Lanes>(src: *const f32, row: usize, [height, width]: [usize; 2]) -> L::Vector {
    // SAFETY: promised by the caller.
    unsafe {
        let mut value = L::load(src);
        if height == 3 && width == 3 {
            for r in 0..3 {
                for s in 0..3 {
                    value = L::max(L::load(src.add(r * row + s * BLOCK)), value);
                }
            }
            return value;
        }
        for r in 0..height {
            for s in 0..width {
                value = L::max(L::load(src.add(r * row + s * BLOCK)), value);
            }
        }
        value
    }
}

/// # Safety
/// The machine has `L`, and the window is valid.
#[inline(always)]
unsafe fn sum<L: Lanes>(src: *const f32, row: usize, [height, width]: [usize; 2]) -> L::Vector {
    // SAFETY: promised by the caller.
    unsafe {
        let mut total = L::splat(0.0);
        for r in 0..height {
            let mut value = L::splat(0.0);
            for s in 0..width {
                value = L::add(value, L::load(src.add(r * row + s * BLOCK)));
            }
            total = L::add(total, value);
        }
        total
    }
}
