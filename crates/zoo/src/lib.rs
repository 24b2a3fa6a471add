//! The networks of the paper and their torchvision relatives, each a list of builder calls.
//!
//! | name for [`by_name`] | function | definition |
//! |---|---|---|
//! | `lenet` | [`lenet`](lenet()) | Caffe's LeNet for MNIST |
//! | `convnet` | [`convnet`](convnet()) | Caffe's `cifar10_full` |
//! | `resnet20` .. `resnet110` | [`cifar_resnet`](cifar_resnet()) | CIFAR ResNet, [`Shortcut::PadChannels`] (He et al. 2016, option A) |
//! | `resnet20_projection` .. | [`cifar_resnet`](cifar_resnet()) | the same as the authors trained it, [`Shortcut::Projection`] |
//! | `resnet18`, `resnet34`, `resnet50` | [`resnet`](resnet()) | torchvision, "v1.5" |
//! | `bvlc_alexnet`, `bvlc_alexnet_split` | [`alexnet::bvlc`], [`alexnet::bvlc_split`] | Caffe's AlexNet, whole and as two towers |
//! | `alexnet` | [`alexnet::torchvision`] | torchvision's AlexNet |
//! | `bvlc_googlenet` | [`googlenet::bvlc`] | Caffe's GoogLeNet |
//! | `googlenet` | [`googlenet::torchvision`] | torchvision's GoogLeNet, with batch normalisation |
//!
//! Nodes are named so that `node.slot` is the tensor's name in the original: `inception_3a/3x3.weight` in Caffe's
//! networks (whose `BatchNorm` and `Scale` layers are one node here), `layer1.0.conv1.weight` in PyTorch's. The input
//! is `data` or `input`, the last node the scores of the classes, and a residual block or inception module ends in the
//! node that bears its name. [`Network`] adds the fillers of the original, the layers the paper applies force to and
//! those it never decomposes.
//!
//! ```
//! use cofilter_zoo::{Config, Network, by_name};
//!
//! let graph = by_name("lenet", &Config::default())?;
//! assert_eq!(graph.cost().params(), 431_080);
//!
//! let fewer = Config { classes: Some(5), ..Config::default() };
//! let model = Network::by_name("resnet20", &fewer)?.model(1)?;
//! assert_eq!(model.graph().output_shape(), cofilter_graph::Shape::Vector(5));
//! # Ok::<(), cofilter_zoo::Error>(())
//! ```

pub mod alexnet;
pub mod cifar_resnet;
mod config;
pub mod convnet;
mod error;
mod fillers;
pub mod googlenet;
pub mod lenet;
mod network;
pub mod resnet;

pub use cifar_resnet::{Shortcut, cifar_resnet};
pub use config::Config;
pub use convnet::convnet;
pub use error::{Error, Result};
pub use lenet::lenet;
pub use network::{NAMES, Network, by_name};
pub use resnet::{Depth, resnet};
