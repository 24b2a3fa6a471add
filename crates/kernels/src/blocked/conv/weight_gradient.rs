//! Gradient of a convolution of blocked maps with respect to its filters and biases.
//!
//! `grad_weight[o, c, r, s]` is the sum over images and pixels of the gradient of output `o` times the number that it read: a
//! product whose depth are the pixels. It is computed as it stands, or tile by tile by Winograd's method.
#![expect(unsafe_code, reason = "methods read maps through pointers that are checked here")]

mod direct;
mod product;
#[cfg(test)]
mod tests;
mod transformed;

use super::{Window, check_extents};
use crate::blocked::{BLOCK, Step, View, WinogradTile};
use crate::par::{Par, aligned};
use crate::tier::{self, Tier};
use direct::Direct;
use transformed::Transformed;

/// The gradient of a convolution with respect to its filters, for maps laid out in a given way.
#[derive(Debug)]
pub struct WeightGradient {
    src: View,
    grad: View,
    images: usize,
    /// Numbers of the filters.
    len: usize,
    method: Box<dyn Method>,
}

/// A way of computing it. The result has the same bits for any number of threads.
trait Method: Send + Sync + std::fmt::Debug {
    /// Numbers of the sums that images add to.
    fn sums_len(&self) -> usize;
    /// Numbers of scratch memory for [`add`](Self::add), and for [`run`](Self::run) with any number of threads.
    fn add_scratch_len(&self) -> usize;
    fn run_scratch_len(&self) -> usize;
    /// Adds what some images give to the sums, on the calling thread.
    ///
    /// # Safety
    /// The views of so many images are inside the memory; `scratch` is long enough and begins at a cache line.
    unsafe fn add(
        &self,
        images: usize,
        src: *const f32,
        grad: *const f32,
        sums: &mut [f32],
        scratch: &mut [f32],
    );
    /// The gradients of some images.
    ///
    /// # Safety
    /// As [`add`](Self::add), and `weight` and `bias` have the right lengths.
    #[expect(clippy::too_many_arguments, reason = "operands and results of one sum")]
    unsafe fn run(
        &self,
        images: usize,
        src: &[f32],
        grad: &[f32],
        weight: &mut [f32],
        bias: Option<&mut [f32]>,
        scratch: &mut [f32],
        par: Par,
    );
    /// The gradients from several sums, one after the other in `sums`, added in order; what those hold is lost. Lengths were
    /// checked.
    fn finish(&self, sums: &mut [f32], weight: &mut [f32], bias: Option<&mut [f32]>, par: Par);
}

impl WeightGradient {
    /// For filters `[outputs, inputs / groups, kernel_h, kernel_w]` over `src`, whose results have gradients like `grad`, and up
    /// to `images` images; by Winograd's method if there is a `tile`.
    ///
    /// # Panics
    /// If the extents do not describe a convolution of these maps, or `grad` is not blocked, or there is a tile and it
    /// does not [fit](WinogradTile::fits).
    pub fn new(window: Window, src: &View, grad: &View, tile: Option<WinogradTile>, images: usize) -> Self {
        Self::on(tier::active(), window, src, grad, tile, images)
    }

    fn on(
        tier: &'static Tier,
        window: Window,
        src: &View,
        grad: &View,
        tile: Option<WinogradTile>,
        images: usize,
    ) -> Self {
        check_extents(&window, src, grad);
        assert!(grad.pixel_stride == BLOCK, "weight gradient: the gradient is not blocked");
        let fits = tile.is_none_or(|tile| tile.fits(&window, src, grad));
        assert!(fits, "weight gradient: {tile:?} for {window:?}");
        let method: Box<dyn Method> = match (tile, window.kernel[0]) {
            (None, _) => Box::new(Direct::new(tier, window, src, grad, images)),
            (Some(WinogradTile::Two), 3) => {
                Box::new(Transformed::<4, 3>::new(tier, window, src, grad, images))
            }
            (Some(WinogradTile::Two), _) => {
                Box::new(Transformed::<6, 5>::new(tier, window, src, grad, images))
            }
            (Some(WinogradTile::Four), _) => {
                Box::new(Transformed::<6, 3>::new(tier, window, src, grad, images))
            }
        };
        let len = grad.channels() * src.channels() / window.groups * window.kernel[0] * window.kernel[1];
        Self { src: src.clone(), grad: grad.clone(), images, len, method }
    }

    /// Numbers of scratch memory for [`run`](Self::run).
    pub fn scratch_len(&self) -> usize {
        self.method.run_scratch_len() + Step::SCRATCH_MORE
    }

    /// Numbers of the sums of [`add`](Self::add), and of its scratch memory.
    pub fn sums_len(&self) -> usize {
        self.method.sums_len()
    }

    /// Numbers of the scratch memory of [`add`](Self::add), and [`Step::SCRATCH_MORE`].
    pub fn add_scratch_len(&self) -> usize {
        self.method.add_scratch_len()
    }

    fn check(&self, images: usize, src: &[f32], grad: &[f32]) {
        assert!(images <= self.images, "weight gradient: {images} images of {}", self.images);
        for (name, view, found) in [("input", &self.src, src.len()), ("gradient", &self.grad, grad.len())] {
            let inside = view.inside(images, found);
            assert!(inside, "weight gradient: {name} of {images} images in {found} numbers: {view:?}");
        }
    }

    /// Adds what `images` images give to sums in an order of their own, on the calling thread. What `scratch` holds does not
    /// matter.
    ///
    /// # Panics
    /// If a slice is shorter than its view, `sums` has another length than [`sums_len`](Self::sums_len), `scratch` is too short,
    /// or there are more images than it was made for.
    pub fn add(&self, images: usize, src: &[f32], grad: &[f32], sums: &mut [f32], scratch: &mut [f32]) {
        self.check(images, src, grad);
        assert_eq!(sums.len(), self.sums_len(), "weight gradient: length of sums");
        let scratch = aligned(scratch);
        assert!(scratch.len() >= self.add_scratch_len(), "weight gradient: length of scratch");
        // SAFETY: the views are inside the slices, and the scratch memory is long enough.
        unsafe { self.method.add(images, src.as_ptr(), grad.as_ptr(), sums, scratch) };
    }

    fn check_results(&self, weight: &[f32], bias: Option<&[f32]>) {
        assert_eq!(weight.len(), self.len, "weight gradient: length of weight");
        let outputs = self.grad.channels();
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "weight gradient: length of bias");
    }

    /// Overwrites the gradients of the filters and of the biases `[outputs]`, if those are asked for, with the sums over `images`
    /// images. What `scratch` holds does not matter.
    ///
    /// # Panics
    /// If a slice is shorter than its view, or than [`scratch_len`](Self::scratch_len), or `weight` or `bias` has another length,
    /// or there are more images than it was made for.
    #[expect(clippy::too_many_arguments, reason = "operands and results of one sum")]
    pub fn run(
        &self,
        images: usize,
        src: &[f32],
        grad: &[f32],
        weight: &mut [f32],
        bias: Option<&mut [f32]>,
        scratch: &mut [f32],
        par: Par,
    ) {
        self.check(images, src, grad);
        self.check_results(weight, bias.as_deref());
        assert!(scratch.len() >= self.scratch_len(), "weight gradient: length of scratch");
        // SAFETY: the views are inside the slices, and the scratch memory is long enough.
        unsafe { self.method.run(images, src, grad, weight, bias, aligned(scratch), par) };
    }

    /// Overwrites the gradients of the filters and of the biases, if those are asked for, with the total of several sums, one after
    /// the other in `sums`, added in order; what those hold is lost.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn finish(&self, sums: &mut [f32], weight: &mut [f32], bias: Option<&mut [f32]>, par: Par) {
        self.check_results(weight, bias.as_deref());
        let len = self.sums_len();
        assert!(!sums.is_empty() && sums.len().is_multiple_of(len), "weight gradient: length of sums");
        self.method.finish(sums, weight, bias, par);
    }
}
