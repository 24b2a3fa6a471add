//! Gradients of pooling.
#![expect(unsafe_code, reason = "loops of vectors")]

use super::{FillLanes, Maps};
use crate::Par;
use crate::blocked::pool::{adaptive_windows, windows};
use crate::blocked::{BLOCK, View, lanes};
use std::ops::Range;

/// Windows of a pooling, see [`Step::max_pool`](crate::blocked::Step::max_pool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step of the windows.
    pub stride: [usize; 2],
    /// Rows above and columns left of the map that belong to the first windows.
    pub padding: [usize; 2],
}

impl Pooling {
    fn windows(&self, src: &View, dst: &View) -> [Vec<Range<usize>>; 2] {
        [0, 1].map(|d| windows(src.size[d], dst.size[d], self.kernel[d], self.stride[d], self.padding[d]))
    }

    /// Gradient of the largest number of each window: it goes to the first of the largest numbers, row by row, and is lost where
    /// the window holds a NaN. `dst` are the results for the images `src`; `grad_src` is overwritten, zeros in its border
    /// included.
    ///
    /// # Panics
    /// If a view is not blocked or does not own its memory, channels differ, or a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn max_backward(
        &self,
        view: &View,
        images: usize,
        src: &[f32],
        to: &View,
        dst: &[f32],
        grad_dst: &[f32],
        grad_src: &mut [f32],
        par: Par,
    ) {
        let (from, to) = (Maps::new("max pool", view, images), Maps::new("max pool", to, images));
        from.check("max pool", src.len());
        from.check("max pool", grad_src.len());
        to.check("max pool", dst.len());
        to.check("max pool", grad_dst.len());
        assert!(view.lanes == to.view.lanes, "max pool: channels differ");
        let windows = self.windows(view, to.view);
        from.fill_lanes(par, grad_src, 2, &Largest { from, to, windows, src, dst, grad: grad_dst });
    }

    /// Gradient of the mean of each window, see [`Step::avg_pool`](crate::blocked::Step::avg_pool); `grad_src` is overwritten, zeros in
    /// its border included.
    ///
    /// # Panics
    /// As [`max_backward`](Self::max_backward).
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn avg_backward(
        &self,
        count_padding: bool,
        view: &View,
        images: usize,
        to: &View,
        grad_dst: &[f32],
        grad_src: &mut [f32],
        par: Par,
    ) {
        let (from, to) = (Maps::new("avg pool", view, images), Maps::new("avg pool", to, images));
        from.check("avg pool", grad_src.len());
        to.check("avg pool", grad_dst.len());
        assert!(view.lanes == to.view.lanes, "avg pool: channels differ");
        let windows = self.windows(view, to.view);
        let counts = [0, 1].map(|d| -> Vec<usize> {
            let padded =
                |i: usize| self.kernel[d].min(view.size[d] + 2 * self.padding[d] - i * self.stride[d]);
            let all = windows[d].iter().enumerate();
            all.map(|(i, window)| if count_padding { padded(i) } else { window.len() }).collect()
        });
        from.fill_lanes(par, grad_src, 2, &Mean { from, to, windows, counts, grad: grad_dst });
    }
}

/// Gradient of [`Step::adaptive_avg_pool`](crate::blocked::Step::adaptive_avg_pool); `grad_src` is overwritten, zeros in its
/// border included.
///
/// # Panics
/// As [`Pooling::max_backward`].
pub fn adaptive_avg_pool_backward(
    view: &View,
    images: usize,
    to: &View,
    grad_dst: &[f32],
    grad_src: &mut [f32],
    par: Par,
) {
    let (from, to) = (Maps::new("adaptive pool", view, images), Maps::new("adaptive pool", to, images));
    from.check("adaptive pool", grad_src.len());
    to.check("adaptive pool", grad_dst.len());
    assert!(view.lanes == to.view.lanes, "adaptive pool: channels differ");
    let windows = [0, 1].map(|d| adaptive_windows(view.size[d], to.view.size[d]));
    let counts = [0, 1].map(|d: usize| windows[d].iter().map(ExactSizeIterator::len).collect());
    from.fill_lanes(par, grad_src, 2, &Mean { from, to, windows, counts, grad: grad_dst });
}

struct Largest<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    windows: [Vec<Range<usize>>; 2],
    src: &'a [f32],
    dst: &'a [f32],
    grad: &'a [f32],
}

impl FillLanes for Largest<'_> {
    #[inline(always)]
    unsafe fn fill<L: lanes::Lanes>(&self, k: usize, block: &mut [f32]) {
        let Self { from, to, windows: [rows, columns], .. } = self;
        let (src, dst, grad) = (from.block(self.src, k), to.block(self.dst, k), to.block(self.grad, k));
        for y in 0..from.view.size[0] {
            from.row_mut(block, y).fill([0.0; BLOCK]);
        }
        for (y, rows) in rows.iter().enumerate() {
            for ((columns, largest), grad) in columns.iter().zip(to.row(dst, y)).zip(to.row(grad, y)) {
                // SAFETY: promised by the caller; every pointer is to a whole pixel.
                unsafe {
                    let (zero, largest) = (L::splat(0.0), L::load(largest.as_ptr()));
                    // What no number has taken yet.
                    let mut left = L::load(grad.as_ptr());
                    for row in rows.start..rows.end {
                        let numbers = &from.row(src, row)[columns.start..columns.end];
                        let sums = &mut from.row_mut(block, row)[columns.start..columns.end];
                        for (sum, number) in sums.iter_mut().zip(numbers) {
                            let number = L::load(number.as_ptr());
                            let taken = L::pick(number, largest, left, zero);
                            left = L::pick(number, largest, zero, left);
                            L::store(sum.as_mut_ptr(), L::add(L::load(sum.as_ptr()), taken));
                        }
                    }
                }
            }
        }
    }
}

struct Mean<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    windows: [Vec<Range<usize>>; 2],
    /// Rows and columns that each window counts.
    counts: [Vec<usize>; 2],
    grad: &'a [f32],
}

impl FillLanes for Mean<'_> {
    #[inline(always)]
    unsafe fn fill<L: lanes::Lanes>(&self, k: usize, block: &mut [f32]) {
        let Self { from, to, windows: [rows, columns], counts, .. } = self;
        let grad = to.block(self.grad, k);
        for y in 0..from.view.size[0] {
            from.row_mut(block, y).fill([0.0; BLOCK]);
        }
        for (y, rows) in rows.iter().enumerate() {
            for (x, (columns, grad)) in columns.iter().zip(to.row(grad, y)).enumerate() {
                let count = (counts[0][y] * counts[1][x]) as f32;
                // SAFETY: promised by the caller; every pointer is to a whole pixel.
                unsafe {
                    let share = L::div(L::load(grad.as_ptr()), L::splat(count));
                    for row in rows.start..rows.end {
                        for sum in &mut from.row_mut(block, row)[columns.start..columns.end] {
                            L::store(sum.as_mut_ptr(), L::add(L::load(sum.as_ptr()), share));
                        }
                    }
                }
            }
        }
    }
}
