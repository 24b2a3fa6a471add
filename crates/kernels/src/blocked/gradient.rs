//! Training on blocked maps: batch normalisation, channels that are put together, and the gradients of pooling and of local response
//! normalisation.
//!
//! Every function takes maps that own their memory, which begins with the border of the first image. Sums are taken block by
//! block of an image, in double precision over single ones of at most [`RUN`] pixels, and added image by image: the result has
//! the same bits for any number of threads.
#![expect(unsafe_code, reason = "loops of vectors")]

mod channels;
mod lrn;
mod pooling;

use super::lanes::{self, Kernel};
use super::{BLOCK, View};
use crate::Par;
use crate::pieces::for_each_piece;
use crate::tier::{self, Vectorised, vectorised};
pub use channels::{Channels, gather_channels};
pub use lrn::LocalNorm;
pub use pooling::{Pooling, adaptive_avg_pool_backward};
use rayon::prelude::*;

/// The numbers of a pixel.
type Lanes = [f32; BLOCK];
/// Pixels that are added up in single precision.
const RUN: usize = 64;

/// A map in memory of its own, and how many images of it there are.
#[derive(Clone, Copy, Debug)]
struct Maps<'a> {
    view: &'a View,
    images: usize,
}

impl<'a> Maps<'a> {
    /// # Panics
    /// If the view is not blocked or does not own its memory.
    fn new(what: &str, view: &'a View, images: usize) -> Self {
        let [above, beside] = view.border;
        let owns = view.offset == above * view.row_stride + beside * BLOCK
            && view.row_stride == (view.size[1] + 2 * beside) * BLOCK
            && view.block_stride == (view.size[0] + 2 * above) * view.row_stride
            && view.image_stride == view.blocks() * view.block_stride;
        assert!(view.pixel_stride == BLOCK && view.phases == 1 && owns, "{what}: {view:?}");
        assert!(images > 0 && view.blocks() > 0 && !view.size.contains(&0), "{what}: nothing of {view:?}");
        Self { view, images }
    }

    fn check(&self, what: &str, len: usize) {
        assert_eq!(len, self.images * self.view.image_stride, "{what}: numbers of {} images", self.images);
    }

    /// The numbers of block `k` of all blocks of all images, border included.
    #[inline(always)]
    fn block<'b>(&self, numbers: &'b [f32], k: usize) -> &'b [f32] {
        &numbers[k * self.view.block_stride..][..self.view.block_stride]
    }

    #[inline(always)]
    fn block_mut<'b>(&self, numbers: &'b mut [f32], k: usize) -> &'b mut [f32] {
        &mut numbers[k * self.view.block_stride..][..self.view.block_stride]
    }

    /// The pixels of a row of a block.
    #[inline(always)]
    fn row<'b>(&self, block: &'b [f32], y: usize) -> &'b [Lanes] {
        block[self.view.offset + y * self.view.row_stride..][..self.view.size[1] * BLOCK].as_chunks().0
    }

    #[inline(always)]
    fn row_mut<'b>(&self, block: &'b mut [f32], y: usize) -> &'b mut [Lanes] {
        block[self.view.offset + y * self.view.row_stride..][..self.view.size[1] * BLOCK].as_chunks_mut().0
    }

    /// Fills every block of every image of a result, whose border is zeroed before.
    fn fill(&self, par: Par, result: &mut [f32], cost: usize, op: &impl Fill) {
        let block_stride = self.view.block_stride;
        for_each_piece(par, result, block_stride, cost * block_stride, |k, block| {
            self.clear_border(block);
            vectorised(FillOne { op, k, block });
        });
    }

    /// The same where a block is filled with vectors of a tier.
    fn fill_lanes(&self, par: Par, result: &mut [f32], cost: usize, op: &impl FillLanes) {
        let block_stride = self.view.block_stride;
        for_each_piece(par, result, block_stride, cost * block_stride, |k, block| {
            self.clear_border(block);
            // SAFETY: the op demands nothing.
            unsafe { tier::active().launch(FillLanesOne { op, k, block }) };
        });
    }

    /// Zeroes the border of a block.
    fn clear_border(&self, block: &mut [f32]) {
        let View { border, row_stride, size, .. } = self.view;
        let ([above, beside], [height, width]) = (*border, *size);
        if *border == [0, 0] {
            return;
        }
        block[..above * row_stride].fill(0.0);
        block[(above + height) * row_stride..].fill(0.0);
        for row in block[above * row_stride..(above + height) * row_stride].chunks_exact_mut(*row_stride) {
            let pixels = row.as_chunks_mut().0;
            // Where it is one pixel, as nearly always, without a call.
            if let (1, [left, .., right]) = (beside, &mut *pixels) {
                [*left, *right] = [[0.0; BLOCK]; 2];
            } else {
                pixels[..beside].fill([0.0; BLOCK]);
                pixels[beside + width..].fill([0.0; BLOCK]);
            }
        }
    }

    /// The sums of every block of every image.
    fn sums<S: Sum>(&self, par: Par, op: &S) -> Vec<S::Sum> {
        let blocks = 0..self.images * self.view.blocks();
        match par {
            Par::Serial => blocks.map(|k| vectorised(SumOne { op, k })).collect(),
            Par::Rayon => blocks.into_par_iter().map(|k| vectorised(SumOne { op, k })).collect(),
        }
    }

    /// Numbers of a channel, over all images.
    fn count(&self) -> f64 {
        (self.images * self.view.size[0] * self.view.size[1]) as f64
    }

    /// Calls `body(channel, block, lane)` for every channel.
    fn channels(&self, mut body: impl FnMut(usize, usize, usize)) {
        let lanes = self.view.lanes.iter().enumerate();
        let places = lanes.flat_map(|(block, lanes)| (0..usize::from(*lanes)).map(move |lane| (block, lane)));
        places.enumerate().for_each(|(channel, (block, lane))| body(channel, block, lane));
    }

    /// A number of every channel, block by block; 0 in the lanes that hold none.
    fn spread(&self, number: impl Fn(usize) -> f32) -> Vec<Lanes> {
        let mut spread = vec![[0.0; BLOCK]; self.view.blocks()];
        self.channels(|channel, block, lane| spread[block][lane] = number(channel));
        spread
    }
}

/// What is written to a block of an image.
trait Fill: Sync {
    /// Fills block `k`; `#[inline(always)]`.
    fn fill(&self, k: usize, block: &mut [f32]);
}

/// The same with vectors of a tier.
trait FillLanes: Sync {
    /// Fills block `k`; `#[inline(always)]`.
    ///
    /// # Safety
    /// The machine has `L` and the caller is compiled for it.
    unsafe fn fill<L: lanes::Lanes>(&self, k: usize, block: &mut [f32]);
}

struct FillLanesOne<'a, F> {
    op: &'a F,
    k: usize,
    block: &'a mut [f32],
}

impl<F: FillLanes> Kernel for FillLanesOne<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: lanes::Lanes>(self) {
        // SAFETY: handed on from the caller.
        unsafe { self.op.fill::<L>(self.k, self.block) };
    }
}

struct FillOne<'a, F> {
    op: &'a F,
    k: usize,
    block: &'a mut [f32],
}

impl<F: Fill> Vectorised for FillOne<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.op.fill(self.k, self.block);
    }
}

/// What is added up over a block of an image.
trait Sum: Sync {
    type Sum: Send;

    /// Adds up block `k`; `#[inline(always)]`.
    fn sum(&self, k: usize) -> Self::Sum;
}

struct SumOne<'a, S> {
    op: &'a S,
    k: usize,
}

impl<S: Sum> Vectorised for SumOne<'_, S> {
    type Output = S::Sum;

    #[inline(always)]
    fn run(self) -> S::Sum {
        self.op.sum(self.k)
    }
}

/// Adds sums in single precision to those in double precision.
#[inline(always)]
fn add_up(total: &mut [f64; BLOCK], part: &Lanes) {
    for lane in 0..BLOCK {
        total[lane] += f64::from(part[lane]);
    }
}

/// Means of the channels of a block of an image, and sums of squared distances from those.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    mean: [f64; BLOCK],
    around: [f64; BLOCK],
}

/// Sums over a block of an image: gradients of the result of a normalisation, and those times the distances from the mean.
#[derive(Clone, Copy, Debug)]
pub struct GradientSums {
    plain: [f64; BLOCK],
    product: [f64; BLOCK],
}

/// A normalisation of a batch: `x^ = (src - mean) / sqrt(var + eps)`, `dst = gamma x^ + beta`, `max(dst, 0)` if `relu`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// `[channels]`.
    pub mean: &'a [f32],
    /// `[channels]`, biased.
    pub var: &'a [f32],
    /// What keeps the root from 0.
    pub eps: f32,
    /// `[channels]`.
    pub gamma: &'a [f32],
    /// `[channels]`.
    pub beta: &'a [f32],
    /// Whether negative results become zero.
    pub relu: bool,
}

impl BatchNorm<'_> {
    /// What [`statistics`](Self::statistics) adds up for each of `images` images.
    ///
    /// # Panics
    /// If the view is not blocked or does not own its memory, or a length does not fit.
    pub fn moments(view: &View, images: usize, src: &[f32], par: Par) -> Vec<Moments> {
        let maps = Maps::new("batch norm", view, images);
        maps.check("batch norm", src.len());
        maps.sums(par, &MomentsOf { maps, src })
    }

    /// Mean and biased variance of every channel from the moments of all images, in order.
    ///
    /// # Panics
    /// If there are none, or not as many for each image as the view has blocks, or a length does not fit.
    pub fn statistics(view: &View, moments: &[Moments], mean: &mut [f32], var: &mut [f32]) {
        assert!(mean.len() == view.channels() && var.len() == mean.len(), "batch norm: channels");
        assert!(
            !moments.is_empty() && moments.len().is_multiple_of(view.blocks()),
            "batch norm: {} moments of {view:?}",
            moments.len()
        );
        let maps = Maps::new("batch norm", view, moments.len() / view.blocks());
        let pixels = (view.size[0] * view.size[1]) as f64;
        maps.channels(|channel, block, lane| {
            let parts = || moments.iter().skip(block).step_by(view.blocks());
            let all = parts().map(|part| part.mean[lane]).sum::<f64>() / maps.images as f64;
            let within: f64 = parts().map(|part| part.around[lane]).sum();
            let between: f64 = parts().map(|part| (part.mean[lane] - all).powi(2)).sum();
            mean[channel] = all as f32;
            var[channel] = ((within + pixels * between) / maps.count()).max(0.0) as f32;
        });
    }

    /// Both maps, which must have the channels of the normalisation and the same pixels.
    fn maps<'m>(&self, from: &'m View, to: &'m View, images: usize) -> (Maps<'m>, Maps<'m>) {
        let channels = from.channels();
        let all = [self.mean, self.var, self.gamma, self.beta];
        assert!(all.iter().all(|numbers| numbers.len() == channels), "batch norm: {channels} channels");
        assert!(from.lanes == to.lanes && from.size == to.size, "batch norm: maps differ");
        (Maps::new("batch norm", from, images), Maps::new("batch norm", to, images))
    }

    /// Mean, factor and summand of each channel, block by block.
    fn lanes(&self, maps: &Maps<'_>) -> Vec<[Lanes; 3]> {
        let scale = |channel: usize| self.gamma[channel] / (self.var[channel] + self.eps).sqrt();
        let mean = maps.spread(|channel| self.mean[channel]);
        let (scale, beta) = (maps.spread(scale), maps.spread(|channel| self.beta[channel]));
        mean.into_iter().zip(scale).zip(beta).map(|((mean, scale), beta)| [mean, scale, beta]).collect()
    }

    /// Normalises `images` images, zeros in the border of the result included. If there is a summand, laid out like the result, it
    /// is added before negative results become zero.
    ///
    /// # Panics
    /// If a view is not blocked or does not own its memory, channels or pixels differ, or a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn forward(
        &self,
        view: &View,
        images: usize,
        src: &[f32],
        add: Option<&[f32]>,
        to: &View,
        dst: &mut [f32],
        par: Par,
    ) {
        let (from, to) = self.maps(view, to, images);
        from.check("batch norm", src.len());
        to.check("batch norm", dst.len());
        add.iter().for_each(|add| to.check("batch norm", add.len()));
        let lanes = self.lanes(&from);
        to.fill_lanes(par, dst, 1, &Forward { from, to, lanes, src, add, relu: self.relu });
    }

    /// What [`gradients`](Self::gradients) adds up for each of `images` images; `grad_dst` is laid out like the result.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn gradient_sums(
        &self,
        view: &View,
        images: usize,
        src: &[f32],
        to: &View,
        grad_dst: &[f32],
        par: Par,
    ) -> Vec<GradientSums> {
        let (from, to) = self.maps(view, to, images);
        from.check("batch norm", src.len());
        to.check("batch norm", grad_dst.len());
        let lanes = self.lanes(&from);
        from.sums(par, &SumsOf { from, to, lanes, src, grad: grad_dst, relu: self.relu })
    }

    /// Gradient of [`forward`](Self::forward) where mean and variance are the batch's own: it passes through them too. With `n`
    /// numbers in a channel, and gradients of the result set to 0 where it is not above 0 if `relu`:
    ///
    /// ```text
    /// grad_beta  = sum grad_dst
    /// grad_gamma = sum grad_dst * x^
    /// grad_src   = gamma / sqrt(var + eps) * (grad_dst - grad_beta / n - x^ * grad_gamma / n)
    /// ```
    ///
    /// These are the first two, from the sums of all images, in order. [`backward_src`](Self::backward_src) gives the third.
    ///
    /// # Panics
    /// If there are not as many sums for each image as the view has blocks, or a length does not fit.
    pub fn gradients(
        &self,
        view: &View,
        sums: &[GradientSums],
        grad_gamma: &mut [f32],
        grad_beta: &mut [f32],
    ) {
        let channels = view.channels();
        assert!(grad_gamma.len() == channels && grad_beta.len() == channels, "batch norm: gradients");
        assert!(
            self.var.len() == channels && !sums.is_empty() && sums.len().is_multiple_of(view.blocks()),
            "batch norm: {} sums of {view:?}",
            sums.len()
        );
        let maps = Maps::new("batch norm", view, sums.len() / view.blocks());
        maps.channels(|channel, block, lane| {
            let parts = || sums.iter().skip(block).step_by(view.blocks());
            let product: f64 = parts().map(|part| part.product[lane]).sum();
            grad_beta[channel] = parts().map(|part| part.plain[lane]).sum::<f64>() as f32;
            grad_gamma[channel] = (product / f64::from(self.var[channel] + self.eps).sqrt()) as f32;
        });
    }

    /// Gradient of the input of `images` images, given the [`gradients`](Self::gradients) over all `batch` images of which
    /// these are some. It is laid out like the input and overwritten, zeros in its border included.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn backward_src(
        &self,
        batch: usize,
        view: &View,
        images: usize,
        src: &[f32],
        to: &View,
        grad_dst: &[f32],
        [grad_gamma, grad_beta]: [&[f32]; 2],
        grad_src: &mut [f32],
        par: Par,
    ) {
        let (from, to) = self.maps(view, to, images);
        from.check("batch norm", src.len());
        from.check("batch norm", grad_src.len());
        to.check("batch norm", grad_dst.len());
        let channels = view.channels();
        assert!(grad_gamma.len() == channels && grad_beta.len() == channels, "batch norm: gradients");
        let lanes = self.lanes(&from);
        let count = (batch * view.size[0] * view.size[1]) as f32;
        let inverse = |channel: usize| 1.0 / (self.var[channel] + self.eps).sqrt();
        let shift = from.spread(|channel| grad_beta[channel] / count);
        let slope = from.spread(|channel| grad_gamma[channel] / count * inverse(channel));
        let sums = SumsOf { from, to, lanes, src, grad: grad_dst, relu: self.relu };
        from.fill(par, grad_src, 2, &Backward { sums, shift, slope });
    }
}

struct MomentsOf<'a> {
    maps: Maps<'a>,
    src: &'a [f32],
}

impl Sum for MomentsOf<'_> {
    type Sum = Moments;

    #[inline(always)]
    fn sum(&self, k: usize) -> Moments {
        let block = self.maps.block(self.src, k);
        let [height, width] = self.maps.view.size;
        let pixels = (height * width) as f64;
        let mut sum = [0.0; BLOCK];
        for y in 0..height {
            for run in self.maps.row(block, y).chunks(RUN) {
                let mut part = [0.0; BLOCK];
                for x in run {
                    for lane in 0..BLOCK {
                        part[lane] += x[lane];
                    }
                }
                add_up(&mut sum, &part);
            }
        }
        let mut centre = [0.0_f32; BLOCK];
        for lane in 0..BLOCK {
            centre[lane] = (sum[lane] / pixels) as f32;
        }
        let (mut shift, mut squares) = ([0.0; BLOCK], [0.0; BLOCK]);
        for y in 0..height {
            for run in self.maps.row(block, y).chunks(RUN) {
                let (mut plain, mut squared) = ([0.0; BLOCK], [0.0; BLOCK]);
                for x in run {
                    for lane in 0..BLOCK {
                        let distance = x[lane] - centre[lane];
                        plain[lane] += distance;
                        squared[lane] += distance * distance;
                    }
                }
                add_up(&mut shift, &plain);
                add_up(&mut squares, &squared);
            }
        }
        let mut moments = Moments { mean: [0.0; BLOCK], around: [0.0; BLOCK] };
        for lane in 0..BLOCK {
            moments.mean[lane] = f64::from(centre[lane]) + shift[lane] / pixels;
            moments.around[lane] = squares[lane] - shift[lane] * shift[lane] / pixels;
        }
        moments
    }
}

struct Forward<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    lanes: Vec<[Lanes; 3]>,
    src: &'a [f32],
    add: Option<&'a [f32]>,
    relu: bool,
}

impl FillLanes for Forward<'_> {
    // With plain arrays the compiler takes sixteen pixels at a time in place of sixteen channels, and gathers them.
    #[inline(always)]
    unsafe fn fill<L: lanes::Lanes>(&self, k: usize, block: &mut [f32]) {
        let Self { from, to, src, relu, .. } = *self;
        let (src, add) = (from.block(src, k), self.add.map(|add| to.block(add, k)));
        let numbers = &self.lanes[k % self.lanes.len()];
        // SAFETY: promised by the caller; every pointer is to a whole pixel.
        unsafe {
            let [mean, scale, beta] = [0, 1, 2].map(|i: usize| L::load(numbers[i].as_ptr()));
            let normalise = |src: &Lanes| {
                let distance = L::sub(L::load(src.as_ptr()), mean);
                L::add(L::mul(distance, scale), beta)
            };
            let store = |dst: &mut Lanes, value| {
                L::store(dst.as_mut_ptr(), if relu { L::relu(value) } else { value });
            };
            for y in 0..from.view.size[0] {
                let row = to.row_mut(block, y).iter_mut().zip(from.row(src, y));
                match add {
                    None => row.for_each(|(dst, src)| store(dst, normalise(src))),
                    Some(add) => row.zip(to.row(add, y)).for_each(|((dst, src), add)| {
                        store(dst, L::add(normalise(src), L::load(add.as_ptr())));
                    }),
                }
            }
        }
    }
}

struct SumsOf<'a> {
    from: Maps<'a>,
    to: Maps<'a>,
    lanes: Vec<[Lanes; 3]>,
    src: &'a [f32],
    grad: &'a [f32],
    relu: bool,
}

impl SumsOf<'_> {
    /// Results up to this one let no gradient pass.
    #[inline(always)]
    fn least(&self) -> f32 {
        if self.relu { 0.0 } else { f32::NEG_INFINITY }
    }
}

impl Sum for SumsOf<'_> {
    type Sum = GradientSums;

    #[inline(always)]
    fn sum(&self, k: usize) -> GradientSums {
        let [mean, scale, beta] = &self.lanes[k % self.lanes.len()];
        let (src, grad) = (self.from.block(self.src, k), self.to.block(self.grad, k));
        let least = self.least();
        let mut total = GradientSums { plain: [0.0; BLOCK], product: [0.0; BLOCK] };
        for y in 0..self.from.view.size[0] {
            let runs = self.from.row(src, y).chunks(RUN).zip(self.to.row(grad, y).chunks(RUN));
            for (src, grad) in runs {
                let (mut plain, mut product) = ([0.0; BLOCK], [0.0; BLOCK]);
                for (src, grad) in src.iter().zip(grad) {
                    for lane in 0..BLOCK {
                        let distance = src[lane] - mean[lane];
                        let value = distance * scale[lane] + beta[lane];
                        let g = if value <= least { 0.0 } else { grad[lane] };
                        plain[lane] += g;
                        product[lane] += g * distance;
                    }
                }
                add_up(&mut total.plain, &plain);
                add_up(&mut total.product, &product);
            }
        }
        total
    }
}

struct Backward<'a> {
    sums: SumsOf<'a>,
    shift: Vec<Lanes>,
    slope: Vec<Lanes>,
}

impl Fill for Backward<'_> {
    #[inline(always)]
    fn fill(&self, k: usize, block: &mut [f32]) {
        let SumsOf { from, to, lanes, src, grad, .. } = &self.sums;
        let index = k % lanes.len();
        let ([mean, scale, beta], shift, slope) = (lanes[index], self.shift[index], self.slope[index]);
        let (src, grad) = (from.block(src, k), to.block(grad, k));
        let least = self.sums.least();
        for y in 0..from.view.size[0] {
            let rows = from.row_mut(block, y).iter_mut().zip(from.row(src, y)).zip(to.row(grad, y));
            for ((result, src), grad) in rows {
                let (src, mut number) = (*src, *grad);
                for lane in 0..BLOCK {
                    let distance = src[lane] - mean[lane];
                    let value = distance * scale[lane] + beta[lane];
                    let g = if value <= least { 0.0 } else { number[lane] };
                    number[lane] = scale[lane] * (g - shift[lane] - distance * slope[lane]);
                }
                *result = number;
            }
        }
    }
}

#[cfg(test)]
mod tests;
