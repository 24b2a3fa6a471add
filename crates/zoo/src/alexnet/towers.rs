use super::{bvlc, bvlc_split};
use crate::{Config, Error, Result};
use cofilter_graph::{Array, Graph, Model, Op, Params};

/// The two towers of a [`bvlc`] AlexNet, with the same weights: tower `g` gets the rows of group `g` of every
/// convolution (of the halves of the filters, where it has no groups); fully connected layers are copied.
///
/// Given equal inputs, a tower's convolution gives bit for bit the maps of its half, and so do ReLU, pooling and what
/// follows the concatenations: without local response normalisation both forms are the same function. That one looks
/// at five neighbouring channels, and a tower does not see the other's: `norm1` differs in channels 46..50 of 96 and
/// `norm2`, for equal inputs, in 126..130 of 256, each next to the border between the halves. With it, the outputs of
/// the two forms are close and not equal, as in the original.
///
/// # Errors
/// [`Error::Form`] if the model is not a [`bvlc`] AlexNet.
pub fn split(model: &Model) -> Result<Model> {
    let config = config_of(model.graph(), "bvlc_alexnet")?;
    same_graph(model.graph(), &bvlc(&config)?, "bvlc_alexnet")?;
    let graph = bvlc_split(&config)?;
    let tensors = |name: &str| -> Result<Vec<Array>> {
        let tower = name.strip_suffix("_group0").map(|whole| (whole, 0));
        match tower.or_else(|| name.strip_suffix("_group1").map(|whole| (whole, 1))) {
            Some((whole, tower)) => Ok(find(model, whole)?.iter().map(|a| half(a, tower)).collect()),
            None if name.starts_with("concat") => Ok(Vec::new()),
            None => Ok(find(model, name)?.to_vec()),
        }
    };
    let params = graph.nodes().iter().map(|n| tensors(n.name())).collect::<Result<_>>()?;
    Ok(Model::new(graph, Params::new(params))?)
}

/// The inverse of [`split`]: `merge(split(m)) == m` bit for bit, and `split(merge(m)) == m`.
///
/// # Errors
/// [`Error::Form`] if the model is not a [`bvlc_split`] AlexNet.
pub fn merge(model: &Model) -> Result<Model> {
    let config = config_of(model.graph(), "bvlc_alexnet_split")?;
    same_graph(model.graph(), &bvlc_split(&config)?, "bvlc_alexnet_split")?;
    let graph = bvlc(&config)?;
    let tensors = |node: &cofilter_graph::Node| -> Result<Vec<Array>> {
        if !matches!(node.op(), Op::Conv2d(_)) {
            return if node.op() == &Op::Relu || matches!(node.op(), Op::Lrn(_) | Op::Pool2d(_)) {
                Ok(Vec::new())
            } else {
                Ok(find(model, node.name())?.to_vec())
            };
        }
        let tower = |group: usize| find(model, &format!("{}_group{group}", node.name()));
        Ok(tower(0)?.iter().zip(tower(1)?).map(|(a, b)| stack(a, b)).collect())
    };
    let params = graph.nodes().iter().map(tensors).collect::<Result<_>>()?;
    Ok(Model::new(graph, Params::new(params))?)
}

fn find<'a>(model: &'a Model, name: &str) -> Result<&'a [Array]> {
    Ok(model.tensors(model.graph().find(name)?))
}

/// Rows of one half.
fn half(array: &Array, tower: usize) -> Array {
    let mut dims = array.dims().to_vec();
    dims[0] /= 2;
    let len = array.data().len() / 2;
    Array::new(dims, &array.data()[tower * len..(tower + 1) * len])
}

/// Rows of both halves, one after the other.
fn stack(first: &Array, second: &Array) -> Array {
    let mut dims = first.dims().to_vec();
    dims[0] *= 2;
    Array::new(dims, [first.data(), second.data()].concat())
}

fn config_of(graph: &Graph, expected: &'static str) -> Result<Config> {
    let form = |e: cofilter_graph::Error| Error::Form { expected, reason: e.to_string() };
    let scores = graph.find("fc8").map_err(form)?;
    Ok(Config {
        classes: Some(graph.node(scores).shape().elements()),
        input: Some(graph.input_shape()),
        softmax: graph.find("prob").is_ok(),
        ..Config::default()
    })
}

fn same_graph(found: &Graph, wanted: &Graph, expected: &'static str) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let pairs = found.nodes().iter().zip(wanted.nodes());
    let reason = match pairs.clone().find(|(a, b)| a != b) {
        Some((a, b)) => {
            format!("node `{}` ({:?}) in place of `{}` ({:?})", a.name(), a.op(), b.name(), b.op())
        }
        None => {
            format!("{} nodes in place of {}, or other outputs", found.nodes().len(), wanted.nodes().len())
        }
    };
    Err(Error::Form { expected, reason })
}
