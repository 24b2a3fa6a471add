use crate::{Config, Result};
use cofilter_graph::{
    Conv2d, Filler, Graph, GraphBuilder, Init, Lrn, LrnRegion, NodeId, Op, Pool2d, PoolKind, Shape,
};

/// Filters, kernel, stride, padding and groups of the five convolutions.
const CONVOLUTIONS: [(usize, usize, usize, usize, usize); 5] =
    [(96, 11, 4, 0, 1), (256, 5, 1, 2, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2)];

fn conv(layer: usize) -> Conv2d {
    let (filters, kernel, stride, padding, groups) = CONVOLUTIONS[layer - 1];
    Conv2d { stride: [stride; 2], padding: [padding; 2], groups, ..Conv2d::new(filters, kernel) }
}

/// Caffe's AlexNet: 3x227x227 in, 1000 classes. Convolutions 2, 4 and 5 have two groups; each of the first two layers
/// is convolution, ReLU, normalisation across channels, maximum pooling.
///
/// # Errors
/// [`crate::Error::Graph`] for an input under 39x39 or 0 classes.
pub fn bvlc(config: &Config) -> Result<Graph> {
    let (mut b, mut x) = config.start("data", Shape::map(3, 227, 227))?;
    for layer in 1..=5 {
        x = stage(&mut b, layer, "", conv(layer), x)?;
    }
    let scores = classifier(&mut b, x, config.classes(1000))?;
    config.finish(b, scores, &[])
}

/// The form in which the paper's authors apply force: no groups, two towers with half of the filters each,
/// `conv1_group0` and `conv1_group1` and so on. Both see the whole input and, in `conv3`, both halves of `pool2`.
///
/// # Errors
/// As [`bvlc`].
pub fn bvlc_split(config: &Config) -> Result<Graph> {
    let (mut b, data) = config.start("data", Shape::map(3, 227, 227))?;
    let mut towers = [data; 2];
    for layer in 1..=5 {
        let half = Conv2d { out_channels: conv(layer).out_channels / 2, groups: 1, ..conv(layer) };
        for (group, x) in towers.iter_mut().enumerate() {
            *x = stage(&mut b, layer, &format!("_group{group}"), half.clone(), *x)?;
        }
        if layer == 2 {
            towers = [b.concat("concat2", &towers)?; 2];
        }
    }
    let x = b.concat("concat5", &towers)?;
    let scores = classifier(&mut b, x, config.classes(1000))?;
    config.finish(b, scores, &[])
}

/// Convolution and ReLU, then normalisation (layers 1 and 2) and pooling (1, 2 and 5).
fn stage(b: &mut GraphBuilder, layer: usize, suffix: &str, conv: Conv2d, x: NodeId) -> Result<NodeId> {
    let name = |part: &str| format!("{part}{layer}{suffix}");
    let x = b.conv2d(&name("conv"), x, conv)?;
    let mut x = b.relu(&name("relu"), x)?;
    if layer <= 2 {
        let lrn = Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 };
        x = b.lrn(&name("norm"), x, lrn)?;
    }
    if [1, 2, 5].contains(&layer) {
        x = b.pool2d(&name("pool"), x, Pool2d::caffe(PoolKind::Max, 3, 2))?;
    }
    Ok(x)
}

fn classifier(b: &mut GraphBuilder, x: NodeId, classes: usize) -> Result<NodeId> {
    let mut x = b.flatten("flatten", x)?;
    for layer in [6, 7] {
        x = b.linear(&format!("fc{layer}"), x, 4096)?;
        x = b.relu(&format!("relu{layer}"), x)?;
        x = b.dropout(&format!("drop{layer}"), x, 0.5)?;
    }
    Ok(b.linear("fc8", x, classes)?)
}

/// Caffe's fillers, for a graph made by [`bvlc`] or [`bvlc_split`]: weights normal with deviation 0.01, 0.005 in `fc6`
/// and `fc7`; biases 0.1 in `conv2`, `conv4`, `conv5`, `fc6` and `fc7`, else 0.
#[must_use]
pub fn init(graph: &Graph) -> Init {
    let mut init = Init { weight: Filler::Gaussian(0.01), ..Init::default() };
    for (id, node) in graph.iter() {
        let hidden = matches!(node.name(), "fc6" | "fc7");
        if hidden {
            init.tensors.insert(graph.tensor_name(id, 0), Filler::Gaussian(0.005));
        }
        let biased = ["conv2", "conv4", "conv5"].iter().any(|conv| node.name().starts_with(conv));
        if hidden || (biased && matches!(node.op(), Op::Conv2d(_))) {
            init.tensors.insert(graph.tensor_name(id, 1), Filler::Constant(0.1));
        }
    }
    init
}
