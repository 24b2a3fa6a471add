use super::MODULES;
use crate::{Config, Result};
use cofilter_graph::{
    Conv2d, Filler, Graph, GraphBuilder, Init, Lrn, LrnRegion, NodeId, Op, Pool2d, PoolKind, Shape,
};

/// Caffe's GoogLeNet: 3x224x224 in, 1000 classes; with auxiliary heads after modules 4a and 4d, whose scores are the
/// second and third output. Inputs under 223x223 leave less than the 7x7 map that `pool5/7x7_s1` averages; it then
/// takes the whole map, where Caffe would refuse.
///
/// # Errors
/// [`crate::Error::Graph`] for 0 classes or, with auxiliary heads, an input under 47x47.
pub fn bvlc(config: &Config) -> Result<Graph> {
    let (mut b, data) = config.start("data", Shape::map(3, 224, 224))?;
    let classes = config.classes(1000);
    let mut x = stem(&mut b, data)?;
    let mut heads = Vec::new();
    for (name, filters) in MODULES {
        x = inception(&mut b, &format!("inception_{name}"), x, filters)?;
        match name {
            "3b" => x = b.pool2d("pool3/3x3_s2", x, max_pool())?,
            "4a" if config.auxiliary => heads.push(auxiliary_head(&mut b, "loss1", x, classes)?),
            "4d" if config.auxiliary => heads.push(auxiliary_head(&mut b, "loss2", x, classes)?),
            "4e" => x = b.pool2d("pool4/3x3_s2", x, max_pool())?,
            _ => {}
        }
    }
    let kernel = b.shape(x).spatial().map(|extent| extent.min(7));
    let x = b.pool2d("pool5/7x7_s1", x, Pool2d { kernel, ..Pool2d::caffe(PoolKind::Average, 7, 1) })?;
    let x = b.flatten("flatten", x)?;
    let x = b.dropout("pool5/drop_7x7_s1", x, 0.4)?;
    let scores = b.linear("loss3/classifier", x, classes)?;
    config.finish(b, scores, &heads)
}

fn stem(b: &mut GraphBuilder, data: NodeId) -> Result<NodeId> {
    let lrn = || Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 };
    let conv = Conv2d { stride: [2; 2], padding: [3; 2], ..Conv2d::new(64, 7) };
    let x = b.conv2d("conv1/7x7_s2", data, conv)?;
    let x = b.relu("conv1/relu_7x7", x)?;
    let x = b.pool2d("pool1/3x3_s2", x, max_pool())?;
    let x = b.lrn("pool1/norm1", x, lrn())?;
    let x = conv_relu(b, "conv2", "3x3_reduce", x, Conv2d::new(64, 1))?;
    let x = conv_relu(b, "conv2", "3x3", x, Conv2d { padding: [1; 2], ..Conv2d::new(192, 3) })?;
    let x = b.lrn("conv2/norm2", x, lrn())?;
    Ok(b.pool2d("pool2/3x3_s2", x, max_pool())?)
}

fn max_pool() -> Pool2d {
    Pool2d::caffe(PoolKind::Max, 3, 2)
}

/// `<module>/<part>` and `<module>/relu_<part>`.
fn conv_relu(b: &mut GraphBuilder, module: &str, part: &str, x: NodeId, conv: Conv2d) -> Result<NodeId> {
    let x = b.conv2d(&format!("{module}/{part}"), x, conv)?;
    Ok(b.relu(&format!("{module}/relu_{part}"), x)?)
}

/// Four branches, concatenated in `<name>/output`.
fn inception(b: &mut GraphBuilder, name: &str, input: NodeId, filters: [usize; 6]) -> Result<NodeId> {
    let [c1, r3, c3, r5, c5, proj] = filters;
    let padded = |filters, kernel: usize| Conv2d { padding: [kernel / 2; 2], ..Conv2d::new(filters, kernel) };
    let one = conv_relu(b, name, "1x1", input, Conv2d::new(c1, 1))?;
    let three = conv_relu(b, name, "3x3_reduce", input, Conv2d::new(r3, 1))?;
    let three = conv_relu(b, name, "3x3", three, padded(c3, 3))?;
    let five = conv_relu(b, name, "5x5_reduce", input, Conv2d::new(r5, 1))?;
    let five = conv_relu(b, name, "5x5", five, padded(c5, 5))?;
    let pool = Pool2d { padding: [1; 2], ..Pool2d::caffe(PoolKind::Max, 3, 1) };
    let pooled = b.pool2d(&format!("{name}/pool"), input, pool)?;
    let pooled = conv_relu(b, name, "pool_proj", pooled, Conv2d::new(proj, 1))?;
    Ok(b.concat(&format!("{name}/output"), &[one, three, five, pooled])?)
}

fn auxiliary_head(b: &mut GraphBuilder, name: &str, x: NodeId, classes: usize) -> Result<NodeId> {
    let x = b.pool2d(&format!("{name}/ave_pool"), x, Pool2d::caffe(PoolKind::Average, 5, 3))?;
    let x = conv_relu(b, name, "conv", x, Conv2d::new(128, 1))?;
    let x = b.flatten(&format!("{name}/flatten"), x)?;
    let x = b.linear(&format!("{name}/fc"), x, 1024)?;
    let x = b.relu(&format!("{name}/relu_fc"), x)?;
    let x = b.dropout(&format!("{name}/drop_fc"), x, 0.7)?;
    Ok(b.linear(&format!("{name}/classifier"), x, classes)?)
}

/// Caffe's fillers, for a graph made by [`bvlc`]: xavier weights; biases 0.2, those of the classifiers 0.
#[must_use]
pub fn init(graph: &Graph) -> Init {
    let mut init = Init { weight: Filler::Xavier, bias: Filler::Constant(0.2), ..Init::default() };
    for (id, node) in graph.iter() {
        if matches!(node.op(), Op::Linear(_)) && node.name().ends_with("/classifier") {
            init.tensors.insert(graph.tensor_name(id, 1), Filler::Constant(0.0));
        }
    }
    init
}
