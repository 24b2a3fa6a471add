//! Networks on NVIDIA GPUs: kernels in CUDA C++, compiled for a device when it is first used, and the host code around them.
//!
//! Nothing of CUDA is needed to build this crate or to start a program with it: the driver is opened by [`Device::open`], the compiler
//! (NVRTC) when there is no machine code for the device yet, and what is missing is an error. A [`Builder`] collects calls and
//! packs their weights, a [`Sequence`] has them on a device, a [`Session`] runs them for one caller: one copy in, one graph, one
//! copy out.
//!
//! The kernels see maps `[image, channel, row, column]`. Convolutions are products with a matrix of windows that is never
//! written; columns of zeros are left out for each tile of filters. A low-rank pair can be one call, its middle in shared memory.
//!
//! Where cuDNN or cuBLASLt is there, a [`Tuner`] may choose one of their [routines](Routine) for a convolution, by its time; what else a
//! convolution does follows in place by a kernel of ours.

mod api;
mod args;
mod call;
pub mod choose;
pub mod compile;
mod cublaslt;
mod cudnn;
mod descriptor;
mod device;
mod error;
mod kernel;
pub mod learn;
mod libraries;
mod module;
mod pack;
mod sequence;
mod stream;
mod tune;

pub use call::{Builder, Elementwise, Flow, Made, Place, Region, Window};
pub use device::{About, Device};
pub use error::{Error, Result};
pub use kernel::{Kernel, Math, Set};
pub use libraries::{Opened, Routine};
pub use pack::Geometry;
pub use sequence::{Sequence, Session};
pub use tune::{Choice, Libraries, Tuner};
