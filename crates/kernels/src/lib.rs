//! CPU kernels for convolutional networks: products, convolutions, pooling, normalisation.
//!
//! Every function works on slices of `f32` and plain extents; graphs, devices and thread pools belong to the
//! caller.
//!
//! # Layout
//! Images are `[batch, channels, height, width]`, filters `[out_channels, in_channels / groups, kernel_h,
//! kernel_w]`, matrices row-major, all without gaps. A function overwrites `dst` (or `grad_src`,
//! `grad_weight`, ..) unless it says otherwise.
//!
//! # Threads and determinism
//! A function that takes [`Par`] runs on the calling thread or in the ambient rayon pool. Its result has the
//! same bits either way and for any number of threads: work is split over elements of the result, and where a
//! sum is split, the cut depends on the extents alone and its parts are added in order. An image's result
//! does not depend on the batch it is part of, except in the sums over a batch.
//!
//! # Instruction tiers
//! Products run on the best of three tiers that the machine has, `avx512`, `avx2` (with FMA) or `portable`;
//! see [`cpu_tier`]. The environment variable `COFILTER_CPU` forces one. Tiers may differ in the last bits,
//! because `portable` rounds after each multiplication.
//!
//! # Errors
//! Extents are the caller's to get right: a slice of the wrong length is a bug and panics, before anything is
//! written.

mod batch_norm;
pub mod blocked;
mod conv;
mod elementwise;
mod gemm;
mod linear;
mod lrn;
mod par;
mod pieces;
mod pool;
mod simd;
mod softmax;
mod tier;

pub mod yardstick;

pub use batch_norm::{PlaneShape, batch_norm, batch_norm_backward, batch_norm_statistics};
pub use conv::{
    ConvShape, Epilogue, PackedConv, conv2d, conv2d_backward_bias, conv2d_backward_src,
    conv2d_backward_weight,
};
pub use elementwise::{accumulate, add, relu, relu_backward, relu_backward_in_place};
pub use gemm::{MatRef, gemm};
pub use linear::PackedLinear;
pub use lrn::{LrnShape, lrn_across, lrn_across_backward, lrn_within, lrn_within_backward};
pub use par::Par;
pub use pool::{
    PoolShape, adaptive_avg_pool, adaptive_avg_pool_backward, avg_pool, avg_pool_backward, max_pool,
    max_pool_backward,
};
pub use softmax::{softmax, softmax_cross_entropy};
pub use tier::{Vectorised, cpu_tier, vectorised};
