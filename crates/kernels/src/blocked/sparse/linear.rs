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

/// Images up to which outputs fill the vectors: LeNet's layer with 10 % of its weights takes 7 us for each, and 46 us for a vector of them.
const FEW: usize = 6;
/// Most features: that many, and one more, have numbers of sixteen bits.
const DEEPEST: usize = u16::MAX as usize;

impl Step {
    /// Whether [`Step::sparse_linear`] computes a layer of so many features.
    pub fn sparse_linear_fits(features: usize) -> bool {
        features <= DEEPEST
    }

    /// A fully connected layer that does nothing for weights of zero; otherwise as [`Step::linear`], but its weights are kept as they are.
    ///
    /// # Panics
    /// As [`Step::linear`], and if [`Step::sparse_linear_fits`] says no.
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
    assert!(Step::sparse_linear_fits(features), "sparse linear: {features} features");
    if images <= FEW {
        Step::from_stage(Gathered::new(tier, weights, src, dst, images, threads))
    } else {
        Step::from_stage(Turned::new(tier, weights, src, dst, images, threads))
    }
}

/// Places of a result of so many outputs: those of the last block, too, which are zero.
fn room(dst: &View) -> usize {
    let outputs = dst.channels();
    if dst.pixel_stride == BLOCK { outputs.next_multiple_of(BLOCK) } else { outputs }
}

/// The features of an image and the results.
fn ends(memory: &Memory, src: &View, dst: &View, image: usize) -> (*const f32, *mut f32) {
    (memory.at(src, image, 0, 0, 0), memory.at_mut(dst, image, 0, 0, 0))
}

#[cfg(test)]
mod tests;
