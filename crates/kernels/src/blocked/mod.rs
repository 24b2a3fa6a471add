//! Blocked maps: the layout, the steps of inference and the threads that run them, and what training needs beside those.
//!
//! A map is cut into blocks of [`BLOCK`] channels; a block is `[height, width, BLOCK]`, so the channels of one pixel
//! fill one vector. See [`View`] for the exact place of each number.

mod aligned;
mod conv;
mod denormals;
mod depthwise;
mod elementwise;
mod gradient;
pub(crate) mod lanes;
mod linear;
mod lrn;
mod memory;
mod micro;
mod pool;
mod relayout;
mod rowwise;
mod sequence;
mod sparse;
mod team;
#[cfg(test)]
pub(crate) mod testing;
mod view;
mod winograd;

pub use aligned::Aligned;
pub use conv::{InputGradient, PackedMemory, WeightGradient, Weights, Window};
pub use gradient::{
    BatchNorm, Channels, GradientSums, LocalNorm, Moments, Pooling, adaptive_avg_pool_backward,
    gather_channels,
};
pub use linear::{LinearWeights, Storage};
pub use sequence::{Lengths, Part, Sequence, Step};
pub use team::Team;
pub use view::{BLOCK, Place, View};
pub use winograd::WinogradTile;
