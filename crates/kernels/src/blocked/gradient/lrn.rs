//! Gradient of local response normalisation.
#![expect(unsafe_code, reason = "loops of vectors")]

use super::{FillLanes, Lanes as Pixel, Maps};
use crate::Par;
use crate::blocked::lanes::{Kernel, Lanes};
use crate::blocked::{BLOCK, View};
use crate::pieces::for_each_piece;
use crate::tier;

/// A local response normalisation, see [`Step::lrn_across`](crate::blocked::Step::lrn_across) and
/// [`Step::lrn_within`](crate::blocked::Step::lrn_within).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalNorm {
    /// Extent of the neighbourhood, odd.
    pub local_size: usize,
    /// Weight of the squares.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Constant term.
    pub k: f32,
}

impl LocalNorm {
    /// Gradient of the normalisation across channels. With `s = k + alpha / n sum of src^2` over the `n` channels around,
    /// `grad_src = grad_dst s^-beta - 2 alpha beta / n src sum of (grad_dst src s^(-beta - 1))` over the same channels. It is
    /// overwritten, zeros in its border included.
    ///
    /// # Panics
    /// If a view is not blocked or does not own its memory, the maps differ, `local_size` is even, or a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn across_backward(
        &self,
        view: &View,
        images: usize,
        src: &[f32],
        to: &View,
        grad_dst: &[f32],
        grad_src: &mut [f32],
        par: Par,
    ) {
        let (from, to) = self.maps(view, images, src, to, grad_dst, grad_src);
        let power = Power::new(self, self.local_size);
        let cost = (2 * self.local_size + 16) * view.image_stride;
        for_each_piece(par, grad_src, view.image_stride, cost, |image, grad_src| {
            for block in grad_src.chunks_exact_mut(view.block_stride) {
                from.clear_border(block);
            }
            let src = &src[image * view.image_stride..][..view.image_stride];
            let grad = &grad_dst[image * to.view.image_stride..][..to.view.image_stride];
            let half = self.local_size / 2;
            // SAFETY: the kernel demands nothing.
            unsafe { tier::active().launch(Across { from, to, half, power, src, grad, grad_src }) };
        });
    }

    /// Gradient of the normalisation within a channel: that of [`across_backward`](Self::across_backward) with a window of
    /// `local_size x local_size` pixels in place of the channels and its area in place of `n`.
    ///
    /// # Panics
    /// As [`across_backward`](Self::across_backward).
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn within_backward(
        &self,
        view: &View,
        images: usize,
        src: &[f32],
        to: &View,
        grad_dst: &[f32],
        grad_src: &mut [f32],
        par: Par,
    ) {
        let (from, to) = self.maps(view, images, src, to, grad_dst, grad_src);
        let power = Power::new(self, self.local_size * self.local_size);
        let half = self.local_size / 2;
        from.fill_lanes(par, grad_src, 4 * half + 16, &Within { from, to, half, power, src, grad: grad_dst });
    }

    fn maps<'a>(
        &self,
        view: &'a View,
        images: usize,
        src: &[f32],
        to: &'a View,
        grad_dst: &[f32],
        grad_src: &[f32],
    ) -> (Maps<'a>, Maps<'a>) {
        assert!(self.local_size % 2 == 1, "lrn: a neighbourhood of {}", self.local_size);
        assert!(view.lanes == to.lanes && view.size == to.size, "lrn: maps differ");
        let (from, to) = (Maps::new("lrn", view, images), Maps::new("lrn", to, images));
        from.check("lrn", src.len());
        from.check("lrn", grad_src.len());
        to.check("lrn", grad_dst.len());
        (from, to)
    }
}

/// `s^-beta` of `s = k + weight sum`, and `2 beta weight`.
#[derive(Clone, Copy)]
struct Power {
    weight: f32,
    k: f32,
    beta: f32,
    factor: f32,
}

impl Power {
    fn new(norm: &LocalNorm, count: usize) -> Self {
        let weight = (f64::from(norm.alpha) / count as f64) as f32;
        Self { weight, k: norm.k, beta: norm.beta, factor: 2.0 * norm.beta * weight }
    }

    /// `grad s^-beta`, and what a number adds to the gradients of its neighbours: `grad src s^(-beta - 1)`.
    ///
    /// # Safety
    /// The machine has `L` and the caller is compiled for it.
    #[inline(always)]
    unsafe fn apply<L: Lanes>(&self, src: L::Vector, grad: L::Vector, sum: L::Vector) -> [L::Vector; 2] {
        // SAFETY: promised by the caller.
        unsafe {
            let base = L::mul_add(sum, L::splat(self.weight), L::splat(self.k));
            // The exponents that networks use need roots alone, which are vector instructions.
            let own = if self.beta == 0.75 {
                let root = L::sqrt(base);
                L::div(grad, L::mul(root, L::sqrt(root)))
            } else if self.beta == 0.5 {
                L::div(grad, L::sqrt(base))
            } else {
                let mut numbers = [0.0; BLOCK];
                L::store(numbers.as_mut_ptr(), base);
                for number in &mut numbers {
                    *number = number.powf(-self.beta);
                }
                L::mul(grad, L::load(numbers.as_ptr()))
            };
            [own, L::div(L::mul(own, src), base)]
        }
    }

    /// `own - factor src sum`.
    ///
    /// # Safety
    /// The machine has `L` and the caller is compiled for it.
    #[inline(always)]
    unsafe fn minus<L: Lanes>(&self, own: L::Vector, src: L::Vector, sum: L::Vector) -> L::Vector {
        // SAFETY: promised by the caller.
        unsafe { L::mul_add(L::mul(src, sum), L::splat(-self.factor), own) }
    }
}

struct Within<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    half: usize,
    power: Power,
    src: &'a [f32],
    grad: &'a [f32],
}

impl FillLanes for Within<'_> {
    #[inline(always)]
    unsafe fn fill<L: Lanes>(&self, k: usize, block: &mut [f32]) {
        let Self { from, to, half, power, .. } = self;
        let [height, width] = from.view.size;
        let lanes = usize::from(from.view.lanes[k % from.view.blocks()]);
        let (src, grad) = (from.block(self.src, k), to.block(self.grad, k));
        let mut squares = vec![[0.0; BLOCK]; height * width];
        let mut shares = vec![[0.0; BLOCK]; height * width];
        let mut columns = vec![[0.0; BLOCK]; width];
        // SAFETY: promised by the caller; every pointer is to a whole pixel.
        unsafe {
            for (y, squares) in squares.chunks_exact_mut(width).enumerate() {
                for (square, x) in squares.iter_mut().zip(from.row(src, y)) {
                    let x = L::load(x.as_ptr());
                    L::store(square.as_mut_ptr(), L::mul(x, x));
                }
            }
            for (y, shares) in shares.chunks_exact_mut(width).enumerate() {
                sum_columns::<L>(&squares, &mut columns, y, *half);
                let operands = from.row(src, y).iter().zip(to.row(grad, y));
                let results = from.row_mut(block, y).iter_mut().zip(shares);
                for (x, ((src, grad), (result, share))) in operands.zip(results).enumerate() {
                    let sum = sum_around::<L>(&columns, x, *half);
                    let (src, grad) = (L::load(src.as_ptr()), L::load(grad.as_ptr()));
                    let [own, part] = power.apply::<L>(src, grad, sum);
                    L::store(result.as_mut_ptr(), own);
                    L::store(share.as_mut_ptr(), part);
                }
            }
            for y in 0..height {
                sum_columns::<L>(&shares, &mut columns, y, *half);
                let row = from.row_mut(block, y).iter_mut().zip(from.row(src, y));
                for (x, (result, src)) in row.enumerate() {
                    let sum = sum_around::<L>(&columns, x, *half);
                    let (own, src) = (L::load(result.as_ptr()), L::load(src.as_ptr()));
                    L::store(result.as_mut_ptr(), power.minus::<L>(own, src, sum));
                    // Lanes that hold no channel stay zero, whatever the constant term.
                    result[lanes..].fill(0.0);
                }
            }
        }
    }
}

/// Sums over the rows `y - half ..= y + half` of a map, column by column.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
unsafe fn sum_columns<L: Lanes>(map: &[Pixel], columns: &mut [Pixel], y: usize, half: usize) {
    let width = columns.len();
    let rows = y.saturating_sub(half)..(map.len() / width).min(y + half + 1);
    for (x, column) in columns.iter_mut().enumerate() {
        // SAFETY: promised by the caller; every pointer is to a whole pixel.
        unsafe {
            let mut sum = L::splat(0.0);
            for row in rows.start..rows.end {
                sum = L::add(sum, L::load(map[row * width + x].as_ptr()));
            }
            L::store(column.as_mut_ptr(), sum);
        }
    }
}

/// The sum of the columns `x - half ..= x + half`.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
unsafe fn sum_around<L: Lanes>(columns: &[Pixel], x: usize, half: usize) -> L::Vector {
    // SAFETY: promised by the caller; every pointer is to a whole pixel.
    unsafe {
        let mut total = L::splat(0.0);
        for column in &columns[x.saturating_sub(half)..columns.len().min(x + half + 1)] {
            total = L::add(total, L::load(column.as_ptr()));
        }
        total
    }
}

/// One image.
struct Across<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    half: usize,
    power: Power,
    src: &'a [f32],
    grad: &'a [f32],
    grad_src: &'a mut [f32],
}

impl Kernel for Across<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { from, to, half, power, src, grad, grad_src } = self;
        let [height, width] = from.view.size;
        let lanes = &from.view.lanes;
        let channels: usize = lanes.iter().map(|lanes| usize::from(*lanes)).sum();
        // The channels of a pixel one after the other, between as many zeros as a neighbourhood reaches beyond them, and room for
        // what the lanes beyond the last channel write.
        let len = half + channels + half + BLOCK;
        let (mut squares, mut shares) = (vec![0.0; len], vec![0.0; len]);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            // SAFETY: promised by the caller; every pointer is to a whole pixel, or to as many numbers of the channels.
            unsafe {
                let mut at = half;
                for (block, lanes) in lanes.iter().enumerate() {
                    let pixel = L::load(from.row(from.block(src, block), y)[x].as_ptr());
                    L::store(squares[at..at + BLOCK].as_mut_ptr(), L::mul(pixel, pixel));
                    at += usize::from(*lanes);
                }
                squares[at..].fill(0.0);
                let mut at = half;
                for (block, lanes) in lanes.iter().enumerate() {
                    let pixel = L::load(from.row(from.block(src, block), y)[x].as_ptr());
                    let grad = L::load(to.row(to.block(grad, block), y)[x].as_ptr());
                    let sum = neighbours::<L>(&squares, at - half, half);
                    let [own, share] = power.apply::<L>(pixel, grad, sum);
                    let result = &mut from.row_mut(from.block_mut(grad_src, block), y)[x];
                    L::store(result.as_mut_ptr(), own);
                    L::store(shares[at..at + BLOCK].as_mut_ptr(), share);
                    at += usize::from(*lanes);
                }
                shares[at..].fill(0.0);
                let mut at = half;
                for (block, lanes) in lanes.iter().enumerate() {
                    let pixel = L::load(from.row(from.block(src, block), y)[x].as_ptr());
                    let sum = neighbours::<L>(&shares, at - half, half);
                    let result = &mut from.row_mut(from.block_mut(grad_src, block), y)[x];
                    let own = L::load(result.as_ptr());
                    L::store(result.as_mut_ptr(), power.minus::<L>(own, pixel, sum));
                    result[usize::from(*lanes)..].fill(0.0);
                    at += usize::from(*lanes);
                }
            }
        }
    }
}

/// For each of [`BLOCK`] channels, the sum over its neighbourhood, which begins at `at` for the first.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
unsafe fn neighbours<L: Lanes>(numbers: &[f32], at: usize, half: usize) -> L::Vector {
    let all = &numbers[at..at + 2 * half + BLOCK];
    // SAFETY: promised by the caller; the slice holds all neighbourhoods.
    unsafe {
        let mut total = L::splat(0.0);
        for offset in 0..=2 * half {
            total = L::add(total, L::load(all.as_ptr().add(offset)));
        }
        total
    }
}
