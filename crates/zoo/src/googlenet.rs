//! GoogLeNet (Szegedy et al. 2015): Caffe's with local response normalisation, torchvision's with batch normalisation.

mod bvlc;
mod torchvision;

pub use bvlc::{bvlc, init};
pub use torchvision::{torchvision, torchvision_init};

use cofilter_graph::Graph;

/// The layers the paper applies force to: all 59 convolutions with the auxiliary heads, 57 without.
#[must_use]
pub fn force_layers(graph: &Graph) -> Vec<String> {
    crate::fillers::convolutions(graph)
}

/// Name of a module and filters of its 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5 and pooling projection.
const MODULES: [(&str, [usize; 6]); 9] = [
    ("3a", [64, 96, 128, 16, 32, 32]),
    ("3b", [128, 128, 192, 32, 96, 64]),
    ("4a", [192, 96, 208, 16, 48, 64]),
    ("4b", [160, 112, 224, 24, 64, 64]),
    ("4c", [128, 128, 256, 24, 64, 64]),
    ("4d", [112, 144, 288, 32, 64, 64]),
    ("4e", [256, 160, 320, 32, 128, 128]),
    ("5a", [256, 160, 320, 32, 128, 128]),
    ("5b", [384, 192, 384, 48, 128, 128]),
];
