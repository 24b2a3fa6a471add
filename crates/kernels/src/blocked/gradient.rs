//! Training on blocked maps: batch normalisation and the gradients of pooling.
//!
//! Every function takes maps that own their memory, which begins with the border of the first image. Sums are taken block by
//! block of an image, in double precision over single ones of at most [`RUN`] pixels, and added image by image: the result has
//! the same bits for any number of threads.

use super::pool::windows;
use super::{BLOCK, View};
use crate::Par;
use crate::pieces::for_each_piece;
use crate::tier::vectorised;
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
    fn block<'b>(&self, numbers: &'b [f32], k: usize) -> &'b [f32] {
        &numbers[k * self.view.block_stride..][..self.view.block_stride]
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

    /// Calls `body(k, block)` for every block of every image of a result, whose border is zeroed before.
    fn fill(&self, par: Par, result: &mut [f32], cost: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
        let View { block_stride, border, row_stride, size, .. } = self.view;
        for_each_piece(par, result, *block_stride, cost * block_stride, |k, block| {
            let ([above, beside], [height, width]) = (*border, *size);
            if *border != [0, 0] {
                block[..above * row_stride].fill(0.0);
                block[(above + height) * row_stride..].fill(0.0);
                for row in
                    block[above * row_stride..(above + height) * row_stride].chunks_exact_mut(*row_stride)
                {
                    row[..beside * BLOCK].fill(0.0);
                    row[(beside + width) * BLOCK..].fill(0.0);
                }
            }
            vectorised(|| body(k, block));
        });
    }

    /// `sums(k)` of every block of every image.
    fn map<T: Send>(&self, par: Par, sums: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let blocks = 0..self.images * self.view.blocks();
        match par {
            Par::Serial => blocks.map(|k| vectorised(|| sums(k))).collect(),
            Par::Rayon => blocks.into_par_iter().map(|k| vectorised(|| sums(k))).collect(),
        }
    }

    /// Sums of `term(x, y)` over the pixels of a block of two maps, for two terms.
    #[inline(always)]
    fn sums(
        &self,
        a: &[f32],
        b: &[f32],
        term: impl Fn(&Lanes, &Lanes, &mut Lanes, &mut Lanes),
    ) -> [[f64; BLOCK]; 2] {
        let mut total = [[0.0; BLOCK]; 2];
        for y in 0..self.view.size[0] {
            for (a, b) in self.row(a, y).chunks(RUN).zip(self.row(b, y).chunks(RUN)) {
                let (mut first, mut second) = ([0.0; BLOCK], [0.0; BLOCK]);
                for (a, b) in a.iter().zip(b) {
                    term(a, b, &mut first, &mut second);
                }
                for lane in 0..BLOCK {
                    total[0][lane] += f64::from(first[lane]);
                    total[1][lane] += f64::from(second[lane]);
                }
            }
        }
        total
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

/// Means of the channels of a block of an image, and sums of squared distances from those.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    mean: [f64; BLOCK],
    around: [f64; BLOCK],
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
        let pixels = (view.size[0] * view.size[1]) as f64;
        maps.map(par, |k| {
            let block = maps.block(src, k);
            let [sum, _] = maps.sums(block, block, |x, _, sum, _| {
                for lane in 0..BLOCK {
                    sum[lane] += x[lane];
                }
            });
            let centre = sum.map(|sum| (sum / pixels) as f32);
            let [shift, squares] = maps.sums(block, block, |x, _, shift, squares| {
                for lane in 0..BLOCK {
                    let distance = x[lane] - centre[lane];
                    shift[lane] += distance;
                    squares[lane] += distance * distance;
                }
            });
            let mean: [f64; BLOCK] =
                std::array::from_fn(|lane| f64::from(centre[lane]) + shift[lane] / pixels);
            let around: [f64; BLOCK] =
                std::array::from_fn(|lane| squares[lane] - shift[lane] * shift[lane] / pixels);
            Moments { mean, around }
        })
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

    fn check(&self, view: &View) {
        let channels = view.channels();
        let all = [self.mean, self.var, self.gamma, self.beta];
        assert!(all.iter().all(|numbers| numbers.len() == channels), "batch norm: {channels} channels");
    }

    /// Mean, factor and summand of each channel, block by block.
    fn lanes(&self, maps: &Maps<'_>) -> Vec<[Lanes; 3]> {
        let scale = |channel: usize| self.gamma[channel] / (self.var[channel] + self.eps).sqrt();
        let mean = maps.spread(|channel| self.mean[channel]);
        let (scale, beta) = (maps.spread(scale), maps.spread(|channel| self.beta[channel]));
        mean.into_iter().zip(scale).zip(beta).map(|((mean, scale), beta)| [mean, scale, beta]).collect()
    }

    /// Normalises `images` images, zeros in the border of the result included.
    ///
    /// # Panics
    /// If a view is not blocked or does not own its memory, channels or pixels differ, or a length does not fit.
    pub fn forward(&self, view: &View, images: usize, src: &[f32], to: &View, dst: &mut [f32], par: Par) {
        let (from, to) = (Maps::new("batch norm", view, images), Maps::new("batch norm", to, images));
        from.check("batch norm", src.len());
        to.check("batch norm", dst.len());
        assert!(view.lanes == to.view.lanes && view.size == to.view.size, "batch norm: maps differ");
        self.check(view);
        let lanes = self.lanes(&from);
        to.fill(par, dst, 1, |k, block| {
            let [mean, scale, beta] = &lanes[k % view.blocks()];
            let src = from.block(src, k);
            for y in 0..view.size[0] {
                for (dst, src) in to.row_mut(block, y).iter_mut().zip(from.row(src, y)) {
                    for lane in 0..BLOCK {
                        let value = (src[lane] - mean[lane]) * scale[lane] + beta[lane];
                        dst[lane] = if self.relu && value <= 0.0 { 0.0 } else { value };
                    }
                }
            }
        });
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
    /// These are the first two, over all images; `grad_dst` is laid out like the result. [`backward_src`](Self::backward_src)
    /// gives the third.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    pub fn backward(
        &self,
        view: &View,
        images: usize,
        src: &[f32],
        to: &View,
        grad_dst: &[f32],
        grad_gamma: &mut [f32],
        grad_beta: &mut [f32],
        par: Par,
    ) {
        let (from, to) = (Maps::new("batch norm", view, images), Maps::new("batch norm", to, images));
        from.check("batch norm", src.len());
        to.check("batch norm", grad_dst.len());
        assert!(view.lanes == to.view.lanes && view.size == to.view.size, "batch norm: maps differ");
        self.check(view);
        let channels = view.channels();
        assert!(grad_gamma.len() == channels && grad_beta.len() == channels, "batch norm: gradients");
        let lanes = self.lanes(&from);
        // Maps of different borders have rows of different strides, so rows are paired here.
        let parts = from.map(par, |k| {
            let [mean, scale, beta] = &lanes[k % view.blocks()];
            let (src, grad) = (from.block(src, k), to.block(grad_dst, k));
            let mut total = [[0.0_f64; BLOCK]; 2];
            for y in 0..view.size[0] {
                let rows = from.row(src, y).chunks(RUN).zip(to.row(grad, y).chunks(RUN));
                for (src, grad) in rows {
                    let (mut plain, mut product) = ([0.0; BLOCK], [0.0; BLOCK]);
                    for (src, grad) in src.iter().zip(grad) {
                        for lane in 0..BLOCK {
                            let g = self.masked(grad[lane], src[lane], [mean[lane], scale[lane], beta[lane]]);
                            plain[lane] += g;
                            product[lane] += g * (src[lane] - mean[lane]);
                        }
                    }
                    for lane in 0..BLOCK {
                        total[0][lane] += f64::from(plain[lane]);
                        total[1][lane] += f64::from(product[lane]);
                    }
                }
            }
            total
        });
        from.channels(|channel, block, lane| {
            let sum = |which: usize| -> f64 {
                parts.iter().skip(block).step_by(view.blocks()).map(|part| part[which][lane]).sum()
            };
            grad_beta[channel] = sum(0) as f32;
            grad_gamma[channel] = (sum(1) / f64::from(self.var[channel] + self.eps).sqrt()) as f32;
        });
    }

    /// The gradient of the result where the ReLU lets it pass.
    #[inline(always)]
    fn masked(&self, grad: f32, x: f32, [mean, scale, beta]: [f32; 3]) -> f32 {
        let value = (x - mean) * scale + beta;
        if self.relu && value <= 0.0 { 0.0 } else { grad }
    }

    /// Gradient of the input of `images` images, given the sums of [`backward`](Self::backward) over all `batch` images of which
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
        let (from, to) = (Maps::new("batch norm", view, images), Maps::new("batch norm", to, images));
        from.check("batch norm", src.len());
        from.check("batch norm", grad_src.len());
        to.check("batch norm", grad_dst.len());
        assert!(view.lanes == to.view.lanes && view.size == to.view.size, "batch norm: maps differ");
        self.check(view);
        let channels = view.channels();
        assert!(grad_gamma.len() == channels && grad_beta.len() == channels, "batch norm: gradients");
        let lanes = self.lanes(&from);
        let count = (batch * view.size[0] * view.size[1]) as f32;
        let inverse = |channel: usize| 1.0 / (self.var[channel] + self.eps).sqrt();
        let shift = from.spread(|channel| grad_beta[channel] / count);
        let slope = from.spread(|channel| grad_gamma[channel] / count * inverse(channel));
        from.fill(par, grad_src, 2, |k, block| {
            let index = k % view.blocks();
            let ([mean, scale, beta], shift, slope) = (&lanes[index], &shift[index], &slope[index]);
            let (src, grad) = (from.block(src, k), to.block(grad_dst, k));
            for y in 0..view.size[0] {
                let rows = from.row_mut(block, y).iter_mut().zip(from.row(src, y)).zip(to.row(grad, y));
                for ((result, src), grad) in rows {
                    for lane in 0..BLOCK {
                        let g = self.masked(grad[lane], src[lane], [mean[lane], scale[lane], beta[lane]]);
                        let distance = src[lane] - mean[lane];
                        result[lane] = scale[lane] * (g - shift[lane] - distance * slope[lane]);
                    }
                }
            }
        });
    }
}

/// Windows of a pooling, see [`Step::max_pool`](super::Step::max_pool).
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
    fn windows(&self, src: &View, dst: &View) -> [Vec<std::ops::Range<usize>>; 2] {
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
        let [rows, columns] = self.windows(view, to.view);
        from.fill(par, grad_src, 2, |k, block| {
            let (src, dst, grad) = (from.block(src, k), to.block(dst, k), to.block(grad_dst, k));
            (0..view.size[0]).for_each(|y| from.row_mut(block, y).fill([0.0; BLOCK]));
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
        });
    }

    /// Gradient of the mean of each window, see [`Step::avg_pool`](super::Step::avg_pool); `grad_src` is overwritten, zeros in
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
        let [rows, columns] = &windows;
        from.fill(par, grad_src, 2, |k, block| {
            let grad = to.block(grad_dst, k);
            (0..view.size[0]).for_each(|y| from.row_mut(block, y).fill([0.0; BLOCK]));
            for (y, rows) in rows.iter().enumerate() {
                for (x, (columns, grad)) in columns.iter().zip(to.row(grad, y)).enumerate() {
                    let share = grad.map(|g| g / (counts[0][y] * counts[1][x]) as f32);
                    for row in rows.clone() {
                        for sum in &mut from.row_mut(block, row)[columns.clone()] {
                            for lane in 0..BLOCK {
                                sum[lane] += share[lane];
                            }
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
