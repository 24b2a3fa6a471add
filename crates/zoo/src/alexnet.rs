//! AlexNet: Caffe's with groups and local response normalisation, the same as two towers, and torchvision's.

mod bvlc;
mod torchvision;
mod towers;

pub use bvlc::{bvlc, bvlc_split, init};
pub use torchvision::{torchvision, torchvision_init};
pub use towers::{merge, split};

use cofilter_graph::Graph;

/// The layers the paper applies force to: every convolution, in both towers; never a fully connected layer.
#[must_use]
pub fn force_layers(graph: &Graph) -> Vec<String> {
    crate::fillers::convolutions(graph)
}
