//! torchvision's ResNets for ImageNet (He et al. 2016), "v1.5": a bottleneck has its stride in the 3x3 convolution.

use crate::{Config, Result, fillers};
use cofilter_graph::{
    BatchNorm, Conv2d, Filler, Graph, GraphBuilder, Init, NodeId, Op, Pool2d, PoolKind, Shape,
};

/// Number of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Basic blocks, 2 + 2 + 2 + 2.
    D18,
    /// Basic blocks, 3 + 4 + 6 + 3.
    D34,
    /// Bottlenecks, 3 + 4 + 6 + 3.
    D50,
}

/// A ResNet; 3x224x224 in, 1000 classes.
///
/// # Errors
/// [`crate::Error::Graph`] for 0 classes or an input that is no map.
pub fn resnet(depth: Depth, config: &Config) -> Result<Graph> {
    let blocks = match depth {
        Depth::D18 => [2, 2, 2, 2],
        Depth::D34 | Depth::D50 => [3, 4, 6, 3],
    };
    let (mut b, x) = config.start("input", Shape::map(3, 224, 224))?;
    let x = b.conv2d("conv1", x, conv(64, 7, 2))?;
    let x = b.batch_norm("bn1", x, BatchNorm::default())?;
    let x = b.relu("relu", x)?;
    let mut x = b.pool2d("maxpool", x, Pool2d { padding: [1; 2], ..Pool2d::torch(PoolKind::Max, 3, 2) })?;
    for (stage, width) in [64, 128, 256, 512].into_iter().enumerate() {
        for block in 0..blocks[stage] {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let convs = match depth {
                Depth::D18 | Depth::D34 => vec![conv(width, 3, stride), conv(width, 3, 1)],
                Depth::D50 => vec![conv(width, 1, 1), conv(width, 3, stride), conv(4 * width, 1, 1)],
            };
            x = residual_block(&mut b, &name, x, convs, stride)?;
        }
    }
    let x = b.global_avg_pool("avgpool", x)?;
    let x = b.flatten("flatten", x)?;
    let scores = b.linear("fc", x, config.classes(1000))?;
    config.finish(b, scores, &[])
}

/// Without bias, padded so that stride 1 keeps the extents.
fn conv(filters: usize, kernel: usize, stride: usize) -> Conv2d {
    Conv2d { stride: [stride; 2], padding: [kernel / 2; 2], bias: false, ..Conv2d::new(filters, kernel) }
}

/// Convolutions with batch normalisation, ReLU between them and after the sum; where the extents change, the shortcut
/// is a 1x1 convolution with batch normalisation.
fn residual_block(
    b: &mut GraphBuilder,
    name: &str,
    input: NodeId,
    convs: Vec<Conv2d>,
    stride: usize,
) -> Result<NodeId> {
    let mut x = input;
    let last = convs.len();
    for (i, conv) in convs.into_iter().enumerate().map(|(i, conv)| (i + 1, conv)) {
        x = b.conv2d(&format!("{name}.conv{i}"), x, conv)?;
        x = b.batch_norm(&format!("{name}.bn{i}"), x, BatchNorm::default())?;
        if i < last {
            x = b.relu(&format!("{name}.relu{i}"), x)?;
        }
    }
    let mut short = input;
    let channels = b.shape(x).channels();
    if stride > 1 || b.shape(input).channels() != channels {
        short = b.conv2d(&format!("{name}.downsample.0"), short, conv(channels, 1, stride))?;
        short = b.batch_norm(&format!("{name}.downsample.1"), short, BatchNorm::default())?;
    }
    let x = b.sum(&format!("{name}.add"), &[x, short])?;
    Ok(b.relu(name, x)?)
}

/// torchvision's fillers: convolutions normal with variance `2 / (filters * kernel area)`; `fc` as PyTorch's default,
/// with a normal in place of the uniform distribution of the same variance.
#[must_use]
pub fn init(graph: &Graph) -> Init {
    let mut init = fillers::torch_default(graph);
    for (id, node) in graph.iter() {
        if let Op::Conv2d(conv) = node.op() {
            let fan_out = conv.out_channels * conv.kernel[0] * conv.kernel[1];
            let filler = Filler::Gaussian(fillers::deviation(2.0, fan_out));
            init.tensors.insert(graph.tensor_name(id, 0), filler);
        }
    }
    init
}

/// The convolutions of the blocks, neither `conv1` nor the shortcuts: the paper's choice for the CIFAR ResNets.
#[must_use]
pub fn force_layers(graph: &Graph) -> Vec<String> {
    let not = |name: &String| name != "conv1" && !name.contains(".downsample.");
    fillers::convolutions(graph).into_iter().filter(not).collect()
}

/// The shortcuts, which the paper leaves as they are in the CIFAR ResNets.
#[must_use]
pub fn exclude(graph: &Graph) -> Vec<String> {
    fillers::convolutions(graph).into_iter().filter(|name| name.contains(".downsample.")).collect()
}
