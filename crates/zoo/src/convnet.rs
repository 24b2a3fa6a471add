//! ConvNet, Caffe's `cifar10_full`.

use crate::{Config, Result};
use cofilter_graph::{Conv2d, Filler, Graph, Init, Lrn, LrnRegion, Pool2d, PoolKind, Shape};

/// Three 5x5 convolutions with overlapping pooling and local response normalisation within the channel; 3x32x32 in.
/// The first layer pools before it rectifies.
///
/// # Errors
/// [`crate::Error::Graph`] for an input under 8x8 or 0 classes.
pub fn convnet(config: &Config) -> Result<Graph> {
    let (mut b, x) = config.start("data", Shape::map(3, 32, 32))?;
    let conv = |filters| Conv2d { padding: [2; 2], ..Conv2d::new(filters, 5) };
    let pool = |kind| Pool2d::caffe(kind, 3, 2);
    let lrn = || Lrn { region: LrnRegion::WithinChannel, size: 3, alpha: 5e-5, beta: 0.75, k: 1.0 };
    let x = b.conv2d("conv1", x, conv(32))?;
    let x = b.pool2d("pool1", x, pool(PoolKind::Max))?;
    let x = b.relu("relu1", x)?;
    let x = b.lrn("norm1", x, lrn())?;
    let x = b.conv2d("conv2", x, conv(32))?;
    let x = b.relu("relu2", x)?;
    let x = b.pool2d("pool2", x, pool(PoolKind::Average))?;
    let x = b.lrn("norm2", x, lrn())?;
    let x = b.conv2d("conv3", x, conv(64))?;
    let x = b.relu("relu3", x)?;
    let x = b.pool2d("pool3", x, pool(PoolKind::Average))?;
    let x = b.flatten("flatten", x)?;
    let scores = b.linear("ip1", x, config.classes(10))?;
    config.finish(b, scores, &[])
}

/// Caffe's fillers: normal with deviation 0.01, 0.0001 for `conv1`; biases 0.
#[must_use]
pub fn init() -> Init {
    let tensors = [("conv1.weight".to_owned(), Filler::Gaussian(1e-4))].into();
    Init { weight: Filler::Gaussian(0.01), bias: Filler::Constant(0.0), tensors }
}

/// The layers the paper applies force to.
#[must_use]
pub fn force_layers() -> Vec<String> {
    ["conv1", "conv2", "conv3"].map(str::to_owned).to_vec()
}
