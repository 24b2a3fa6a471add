//! Pooling, normalisation and elementwise kernels against oracles in `f64`, and against PyTorch.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batch_norm;
mod check;
mod elementwise;
mod fixtures;
mod lrn;
mod pool;
mod softmax;
