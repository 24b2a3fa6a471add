//! LeNet as Caffe trains it on MNIST.

use crate::{Config, Result};
use cofilter_graph::{Conv2d, Filler, Graph, Init, Pool2d, PoolKind, Shape};

/// Two 5x5 convolutions with 2x2 maximum pooling and no rectification, then 500 and 10 features; 1x28x28 in.
///
/// # Errors
/// [`crate::Error::Graph`] for an input under 13x13 or 0 classes.
pub fn lenet(config: &Config) -> Result<Graph> {
    let (mut b, x) = config.start("data", Shape::map(1, 28, 28))?;
    let pool = || Pool2d::caffe(PoolKind::Max, 2, 2);
    let x = b.conv2d("conv1", x, Conv2d::new(20, 5))?;
    let x = b.pool2d("pool1", x, pool())?;
    let x = b.conv2d("conv2", x, Conv2d::new(50, 5))?;
    let x = b.pool2d("pool2", x, pool())?;
    let x = b.flatten("flatten", x)?;
    let x = b.linear("ip1", x, 500)?;
    let x = b.relu("relu1", x)?;
    let scores = b.linear("ip2", x, config.classes(10))?;
    config.finish(b, scores, &[])
}

/// Caffe's fillers: xavier weights, biases 0.
#[must_use]
pub fn init() -> Init {
    Init { weight: Filler::Xavier, ..Init::default() }
}

/// The layers the paper applies force to.
#[must_use]
pub fn force_layers() -> Vec<String> {
    ["conv1", "conv2"].map(str::to_owned).to_vec()
}
