//! Fully connected layers whose weights are zero here and there.
//!
//! For a few images, sixteen outputs fill a vector: each step multiplies the next weight that each of them has by the feature it
//! stands at. For more, sixteen images fill a vector, as pixels do for convolutions: features are turned into such vectors first.

mod gathered;
mod turned;

use super::super::linear::LinearWeights;
use super::super::memory::Memory;
use super::super::sequence::Step;
use super::super::{BLOCK, View};
use crate::tier::{self, Tier};
use gathered::Gathered;
use turned::Turned;

/// Images up to which outputs fill the vectors. LeNet's layer with 10 % of its weights takes about 8 us for each of them on a thread
/// with AVX-512, and about 50 us for sixteen (`cargo xtask bench sparse --net fully --batch N`).
const FEW: usize = 6;
/// Most features: sixteen bits number them and the zero behind them.
const DEEPEST: usize = u16::MAX as usize;

impl Step {
    /// Whether [`Step::sparse_linear`] computes a layer of so many features and outputs: of up to 65,535 features, and fewer than 2^32
    /// weights.
    pub fn sparse_linear_fits(features: usize, outputs: usize) -> bool {
        let weights =
            outputs.checked_next_multiple_of(BLOCK).and_then(|outputs| outputs.checked_mul(features));
        features <= DEEPEST && weights.is_some_and(|weights| u32::try_from(weights).is_ok())
    }

    /// Whether the weights of a layer for so many images are read image by image, and not for sixteen at once.
    pub fn sparse_linear_gathers(images: usize) -> bool {
        images <= FEW
    }

    /// A fully connected layer that leaves out weights of zero; otherwise as [`Step::linear`]. Weights are kept in `f32` whatever their
    /// storage. `images`, the most that it is run for, decides on the order of sums; how many it is run for does not. A few zeros may
    /// be multiplied where that is faster.
    ///
    /// # Panics
    /// If an extent or a length does not fit, or [`Step::sparse_linear_fits`] says no.
    pub fn sparse_linear(
        weights: LinearWeights<'_>,
        src: &View,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        sparse_linear_on(tier::active(), &weights, src, dst, images, threads)
    }
}

fn sparse_linear_on(
    tier: &'static Tier,
    weights: &LinearWeights<'_>,
    src: &View,
    dst: &View,
    images: usize,
    threads: usize,
) -> Step {
    weights.check(src, dst);
    let features = src.channels() * src.size[0] * src.size[1];
    let outputs = dst.channels();
    assert!(
        Step::sparse_linear_fits(features, outputs),
        "sparse linear: {features} features, {outputs} outputs"
    );
    if Step::sparse_linear_gathers(images) {
        Step::from_stage(Gathered::new(tier, weights, src, dst, images, threads))
    } else {
        Step::from_stage(Turned::new(tier, weights, src, dst, images, threads))
    }
}

/// The features of an image and the results.
fn ends(memory: &Memory, src: &View, dst: &View, image: usize) -> (*const f32, *mut f32) {
    (memory.at(src, image, 0, 0, 0), memory.at_mut(dst, image, 0, 0, 0))
}

#[cfg(test)]
mod tests;
