use super::MODULES;
use crate::{Config, Result, fillers};
use cofilter_graph::{
    BatchNorm, Conv2d, Filler, Graph, GraphBuilder, Init, NodeId, Op, Pool2d, PoolKind, Rounding, Shape,
};

/// torchvision's GoogLeNet: 3x224x224 in, 1000 classes; batch normalisation (eps 0.001) after every convolution, no
/// local response normalisation, 3x3 where the original has 5x5, pooling rounded up. With auxiliary heads after modules
/// 4a and 4d, whose scores are the second and third output.
///
/// # Errors
/// [`crate::Error::Graph`] for 0 classes or an input that is no map.
pub fn torchvision(config: &Config) -> Result<Graph> {
    let (mut b, x) = config.start("input", Shape::map(3, 224, 224))?;
    let classes = config.classes(1000);
    let x = basic_conv(&mut b, "conv1", x, Conv2d { stride: [2; 2], ..conv(64, 7) })?;
    let x = b.pool2d("maxpool1", x, max_pool(3, 2))?;
    let x = basic_conv(&mut b, "conv2", x, conv(64, 1))?;
    let x = basic_conv(&mut b, "conv3", x, conv(192, 3))?;
    let mut x = b.pool2d("maxpool2", x, max_pool(3, 2))?;
    let mut heads = Vec::new();
    for (name, filters) in MODULES {
        x = inception(&mut b, &format!("inception{name}"), x, filters)?;
        match name {
            "3b" => x = b.pool2d("maxpool3", x, max_pool(3, 2))?,
            "4a" if config.auxiliary => heads.push(auxiliary_head(&mut b, "aux1", x, classes)?),
            "4d" if config.auxiliary => heads.push(auxiliary_head(&mut b, "aux2", x, classes)?),
            "4e" => x = b.pool2d("maxpool4", x, max_pool(2, 2))?,
            _ => {}
        }
    }
    let x = b.global_avg_pool("avgpool", x)?;
    let x = b.flatten("flatten", x)?;
    let x = b.dropout("dropout", x, 0.2)?;
    let scores = b.linear("fc", x, classes)?;
    config.finish(b, scores, &heads)
}

/// Without bias, padded so that stride 1 keeps the extents.
fn conv(filters: usize, kernel: usize) -> Conv2d {
    Conv2d { padding: [kernel / 2; 2], bias: false, ..Conv2d::new(filters, kernel) }
}

fn max_pool(kernel: usize, stride: usize) -> Pool2d {
    Pool2d { rounding: Rounding::Ceil, ..Pool2d::torch(PoolKind::Max, kernel, stride) }
}

/// `<name>.conv`, `<name>.bn` and `<name>.relu`.
fn basic_conv(b: &mut GraphBuilder, name: &str, x: NodeId, conv: Conv2d) -> Result<NodeId> {
    let x = b.conv2d(&format!("{name}.conv"), x, conv)?;
    let x = b.batch_norm(&format!("{name}.bn"), x, BatchNorm { eps: 1e-3, ..BatchNorm::default() })?;
    Ok(b.relu(&format!("{name}.relu"), x)?)
}

/// Four branches, concatenated in `<name>`.
fn inception(b: &mut GraphBuilder, name: &str, input: NodeId, filters: [usize; 6]) -> Result<NodeId> {
    let [c1, r3, c3, r5, c5, proj] = filters;
    let branch = |suffix: &str| format!("{name}.branch{suffix}");
    let one = basic_conv(b, &branch("1"), input, conv(c1, 1))?;
    let two = basic_conv(b, &branch("2.0"), input, conv(r3, 1))?;
    let two = basic_conv(b, &branch("2.1"), two, conv(c3, 3))?;
    let three = basic_conv(b, &branch("3.0"), input, conv(r5, 1))?;
    let three = basic_conv(b, &branch("3.1"), three, conv(c5, 3))?;
    let four = b.pool2d(&branch("4.0"), input, Pool2d { padding: [1; 2], ..max_pool(3, 1) })?;
    let four = basic_conv(b, &branch("4.1"), four, conv(proj, 1))?;
    Ok(b.concat(name, &[one, two, three, four])?)
}

fn auxiliary_head(b: &mut GraphBuilder, name: &str, x: NodeId, classes: usize) -> Result<NodeId> {
    let part = |suffix: &str| format!("{name}.{suffix}");
    let x = b.add(&part("avgpool"), Op::AdaptiveAvgPool { output: [4, 4] }, &[x])?;
    let x = basic_conv(b, &part("conv"), x, conv(128, 1))?;
    let x = b.flatten(&part("flatten"), x)?;
    let x = b.linear(&part("fc1"), x, 1024)?;
    let x = b.relu(&part("relu"), x)?;
    let x = b.dropout(&part("dropout"), x, 0.7)?;
    Ok(b.linear(&part("fc2"), x, classes)?)
}

/// torchvision's fillers: weights normal with deviation 0.01 (its truncation at 200 deviations does not matter); biases
/// as PyTorch's default, with a normal in place of the uniform distribution of the same variance.
#[must_use]
pub fn torchvision_init(graph: &Graph) -> Init {
    let mut init = fillers::torch_default(graph);
    for (name, filler) in &mut init.tensors {
        if name.ends_with(".weight") {
            *filler = Filler::Gaussian(0.01);
        }
    }
    init
}
