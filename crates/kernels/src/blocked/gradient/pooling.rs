//! Gradients of pooling.

use super::{Fill, Maps};
use crate::Par;
use crate::blocked::pool::windows;
use crate::blocked::{BLOCK, View};
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
        from.fill(par, grad_src, 2, &Largest { from, to, windows, src, dst, grad: grad_dst });
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
        from.fill(par, grad_src, 2, &Mean { from, to, windows, counts, grad: grad_dst });
    }
}

struct Largest<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    windows: [Vec<Range<usize>>; 2],
    src: &'a [f32],
    dst: &'a [f32],
    grad: &'a [f32],
}

impl Fill for Largest<'_> {
    #[inline(always)]
    fn fill(&self, k: usize, block: &mut [f32]) {
        let Self { from, to, windows: [rows, columns], .. } = self;
        let (src, dst, grad) = (from.block(self.src, k), to.block(self.dst, k), to.block(self.grad, k));
        for y in 0..from.view.size[0] {
            from.row_mut(block, y).fill([0.0; BLOCK]);
        }
        for (y, rows) in rows.iter().enumerate() {
            for ((columns, largest), grad) in columns.iter().zip(to.row(dst, y)).zip(to.row(grad, y)) {
                let mut open = [1.0_f32; BLOCK];
                for row in rows.clone() {
                    let numbers = &from.row(src, row)[columns.clone()];
                    let sums = &mut from.row_mut(block, row)[columns.clone()];
                    for (sum, number) in sums.iter_mut().zip(numbers) {
                        for lane in 0..BLOCK {
                            let hit = if number[lane] == largest[lane] { open[lane] } else { 0.0 };
                            open[lane] -= hit;
                            // An infinite gradient must not become NaN elsewhere.
                            sum[lane] += if hit > 0.0 { grad[lane] } else { 0.0 };
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

impl Fill for Mean<'_> {
    #[inline(always)]
    fn fill(&self, k: usize, block: &mut [f32]) {
        let Self { from, to, windows: [rows, columns], counts, .. } = self;
        let grad = to.block(self.grad, k);
        for y in 0..from.view.size[0] {
            from.row_mut(block, y).fill([0.0; BLOCK]);
        }
        for (y, rows) in rows.iter().enumerate() {
            for (x, (columns, grad)) in columns.iter().zip(to.row(grad, y)).enumerate() {
                let count = (counts[0][y] * counts[1][x]) as f32;
                for row in rows.clone() {
                    for sum in &mut from.row_mut(block, row)[columns.clone()] {
                        for lane in 0..BLOCK {
                            sum[lane] += grad[lane] / count;
                        }
                    }
                }
            }
        }
    }
}
