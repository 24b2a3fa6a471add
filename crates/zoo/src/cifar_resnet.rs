//! ResNets for CIFAR (He et al. 2016, section 4.2): three stages of 16, 32 and 64 channels.

use crate::{Config, Error, Result, fillers};
use cofilter_graph::{
    BatchNorm, Conv2d, Filler, Graph, GraphBuilder, Init, NodeId, Op, Pool2d, PoolKind, Shape,
};

/// How the first block of the second and the third stage passes its input on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// Option A: every second row and column, and channels of zeros on both sides; no parameters. The names and the
    /// lack of convolution biases are those of the PyTorch checkpoints of akamaster/pytorch_resnet_cifar10.
    PadChannels,
    /// Option B: a 1x1 convolution of stride 2 without bias, then batch normalisation, under the names of the same checkpoints.
    Convolution,
    /// As the paper's authors trained it in Caffe: a 1x1 convolution of stride 2 without bias and without batch
    /// normalisation; the first convolution has a bias.
    Projection,
}

/// A ResNet of `depth = 6 n + 2` layers; 3x32x32 in, 10 classes.
///
/// # Errors
/// [`Error::Depth`] for another depth, [`Error::Graph`] for 0 classes or an input that is no map.
pub fn cifar_resnet(depth: usize, shortcut: Shortcut, config: &Config) -> Result<Graph> {
    if depth < 8 || !(depth - 2).is_multiple_of(6) {
        return Err(Error::Depth(depth));
    }
    let blocks = (depth - 2) / 6;
    match shortcut {
        Shortcut::PadChannels | Shortcut::Convolution => torch(blocks, shortcut, config),
        Shortcut::Projection => projection(blocks, config),
    }
}

/// 3x3 without bias.
fn conv3x3(filters: usize, stride: usize) -> Conv2d {
    Conv2d { stride: [stride; 2], padding: [1; 2], bias: false, ..Conv2d::new(filters, 3) }
}

fn torch(blocks: usize, shortcut: Shortcut, config: &Config) -> Result<Graph> {
    let (mut b, x) = config.start("input", Shape::map(3, 32, 32))?;
    let x = b.conv2d("conv1", x, conv3x3(16, 1))?;
    let x = b.batch_norm("bn1", x, BatchNorm::default())?;
    let mut x = b.relu("relu1", x)?;
    for (stage, filters) in [(1, 16), (2, 32), (3, 64)] {
        for block in 0..blocks {
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            x = torch_block(&mut b, &format!("layer{stage}.{block}"), x, filters, stride, shortcut)?;
        }
    }
    let x = b.global_avg_pool("avgpool", x)?;
    let x = b.flatten("flatten", x)?;
    let scores = b.linear("linear", x, config.classes(10))?;
    config.finish(b, scores, &[])
}

fn torch_block(
    b: &mut GraphBuilder,
    name: &str,
    input: NodeId,
    filters: usize,
    stride: usize,
    shortcut: Shortcut,
) -> Result<NodeId> {
    let part = |suffix: &str| format!("{name}.{suffix}");
    let x = b.conv2d(&part("conv1"), input, conv3x3(filters, stride))?;
    let x = b.batch_norm(&part("bn1"), x, BatchNorm::default())?;
    let x = b.relu(&part("relu1"), x)?;
    let x = b.conv2d(&part("conv2"), x, conv3x3(filters, 1))?;
    let x = b.batch_norm(&part("bn2"), x, BatchNorm::default())?;
    let mut short = input;
    if stride > 1 && shortcut == Shortcut::Convolution {
        let conv = Conv2d { stride: [stride; 2], bias: false, ..Conv2d::new(filters, 1) };
        short = b.conv2d(&part("shortcut.0"), short, conv)?;
        short = b.batch_norm(&part("shortcut.1"), short, BatchNorm::default())?;
    } else if stride > 1 {
        // Windows of one element: every `stride`-th row and column.
        short = b.pool2d(&part("subsample"), short, Pool2d::torch(PoolKind::Max, 1, stride))?;
        short = b.pad_channels(&part("shortcut"), short, filters / 4, filters / 4)?;
    }
    let x = b.sum(&part("add"), &[x, short])?;
    Ok(b.relu(name, x)?)
}

fn projection(blocks: usize, config: &Config) -> Result<Graph> {
    let (mut b, x) = config.start("data", Shape::map(3, 32, 32))?;
    let x = b.conv2d("conv1", x, Conv2d { bias: true, ..conv3x3(16, 1) })?;
    let x = b.batch_norm("conv1_bn", x, caffe_batch_norm())?;
    let mut x = b.relu("conv1_relu", x)?;
    for (group, filters) in [(1, 16), (2, 32), (3, 64)] {
        for block in 1..=blocks {
            let stride = if group > 1 && block == 1 { 2 } else { 1 };
            x = projection_block(&mut b, &format!("res_grp{group}_{block}"), x, filters, stride)?;
        }
    }
    let x = b.global_avg_pool("pool1", x)?;
    let x = b.flatten("flatten", x)?;
    let scores = b.linear("ip1", x, config.classes(10))?;
    config.finish(b, scores, &[])
}

fn projection_block(
    b: &mut GraphBuilder,
    name: &str,
    input: NodeId,
    filters: usize,
    stride: usize,
) -> Result<NodeId> {
    let part = |suffix: &str| format!("{name}_{suffix}");
    let x = b.conv2d(&part("conv1"), input, conv3x3(filters, stride))?;
    let x = b.batch_norm(&part("bn1"), x, caffe_batch_norm())?;
    let x = b.relu(&part("relu1"), x)?;
    let x = b.conv2d(&part("conv2"), x, conv3x3(filters, 1))?;
    let x = b.batch_norm(&part("bn2"), x, caffe_batch_norm())?;
    let short = if stride > 1 {
        let conv = Conv2d { stride: [stride; 2], bias: false, ..Conv2d::new(filters, 1) };
        b.conv2d(&part("downsampling"), input, conv)?
    } else {
        input
    };
    let x = b.sum(&part("add"), &[short, x])?;
    Ok(b.relu(name, x)?)
}

/// `moving_average_fraction: 0.999`. Caffe sums with that factor and divides by the sum of the factors, which after
/// some thousand iterations is the running mean written here.
fn caffe_batch_norm() -> BatchNorm {
    BatchNorm { eps: 1e-5, momentum: 0.001 }
}

/// The fillers of the original, for a graph made by [`cifar_resnet()`].
///
/// All: `msra` weights. With [`Shortcut::Projection`] biases are 0, and the factors of batch normalisation are drawn
/// from `msra` on a vector, that is normal with variance 2 and random sign, as the authors' generator writes it. With the
/// others those are 1, and the last bias is drawn with the variance of PyTorch's default.
#[must_use]
pub fn init(graph: &Graph) -> Init {
    let mut init = Init::default();
    for (id, node) in graph.iter() {
        match node.op() {
            Op::BatchNorm(_) if is_projection(graph) => {
                init.tensors.insert(graph.tensor_name(id, 0), Filler::Msra);
            }
            Op::Linear(_) if !is_projection(graph) => {
                let fan_in: usize = graph.input_shapes(id)[0].elements();
                let filler = Filler::Gaussian(fillers::deviation(1.0 / 3.0, fan_in));
                init.tensors.insert(graph.tensor_name(id, 1), filler);
            }
            _ => {}
        }
    }
    init
}

fn is_projection(graph: &Graph) -> bool {
    graph.nodes()[0].name() == "data"
}

/// The layers the paper applies force to: the 3x3 convolutions of the blocks, neither `conv1` nor the shortcuts.
#[must_use]
pub fn force_layers(graph: &Graph) -> Vec<String> {
    let not = |name: &String| name != "conv1" && !is_shortcut(name);
    fillers::convolutions(graph).into_iter().filter(not).collect()
}

/// The layers the paper never decomposes: the shortcuts.
#[must_use]
pub fn exclude(graph: &Graph) -> Vec<String> {
    fillers::convolutions(graph).into_iter().filter(|name| is_shortcut(name)).collect()
}

fn is_shortcut(name: &str) -> bool {
    name.ends_with("_downsampling") || name.ends_with(".shortcut.0")
}
