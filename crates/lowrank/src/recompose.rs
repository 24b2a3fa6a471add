use crate::chain::{Kernel, Link, join};
use crate::factor::single;
use crate::layer::Layer;
use crate::{Error, Result};
use cofilter_graph::{Array, Conv2d, Model, NodeId};

/// Multiplies every chain of layers that [`crate::decompose`] makes (`<name>_lowrank`, `<name>_linear`; `<name>_v`,
/// `<name>_h`; ...) out to one dense layer `<name>`, whose weight is the product (in `f64`, rounded once). Outputs stay the
/// same to rounding; a bias in the middle, which [`crate::decompose`] never makes, goes through what follows into the layer's.
///
/// Chains whose middle values are read elsewhere too, or are outputs, stay, and so do layers that only have such names.
///
/// # Errors
/// [`Error::Graph`] where a node is already named `<name>`.
pub fn recompose(model: &Model) -> Result<Model> {
    let chains = chains(model);
    model.rewrite(|b, id, inputs| {
        let Some((name, layers)) =
            chains.iter().find(|(_, layers)| layers.iter().any(|layer| layer.id == id))
        else {
            return Ok::<_, Error>(b.keep(id, inputs)?);
        };
        if layers[layers.len() - 1].id != id {
            // The dense layer takes its place at the last one.
            return Ok(inputs[0]);
        }
        let (kernel, bias) = product(layers);
        let (op, weight) = Link::new("", kernel).layer(&layers[0], bias.is_some());
        let bias = bias
            .map(|bias| Array::new(vec![bias.len()], bias.iter().map(|v| single(*v)).collect::<Vec<_>>()));
        Ok(b.add(name, op, inputs, [Some(weight), bias].into_iter().flatten().collect())?)
    })
}

/// Layers of all chains: they are parts of a decomposition.
pub(crate) fn parts(model: &Model) -> Vec<NodeId> {
    chains(model).iter().flat_map(|(_, layers)| layers.iter().map(|layer| layer.id)).collect()
}

/// Every chain: the name of what it was, and its layers.
pub(crate) fn chains(model: &Model) -> Vec<(&str, Vec<Layer<'_>>)> {
    let mut found = Vec::new();
    for (name, nodes) in model.graph().decomposed() {
        let layers: Option<Vec<Layer<'_>>> = nodes.into_iter().map(|id| Layer::at(model, id)).collect();
        found.extend(layers.filter(|layers| is_one(layers)).map(|layers| (name, layers)));
    }
    found
}

/// Whether they are one layer together.
fn is_one(layers: &[Layer<'_>]) -> bool {
    let mut one: Option<Conv2d> = None;
    let mut biased = false;
    for layer in layers {
        let conv = layer.as_conv();
        // On the border fewer taps see the bias of what comes before.
        if layer.kind() != layers[0].kind() || (biased && conv.padding != [0, 0]) {
            return false;
        }
        biased |= layer.bias.is_some();
        one = match one {
            None => Some(conv),
            Some(before) => match join(&before, &conv) {
                None => return false,
                joined => joined,
            },
        };
    }
    true
}

/// Layers that are one, multiplied out.
fn product(layers: &[Layer<'_>]) -> (Kernel, Option<Vec<f64>>) {
    let mut kernel = Kernel::of(&layers[0]);
    let mut bias = layers[0].bias.map(doubles);
    for layer in &layers[1..] {
        let next = Kernel::of(layer);
        let own = layer.bias.map(doubles);
        bias = match bias {
            None => own,
            Some(before) => Some(through(&next, &before, own)),
        };
        kernel = kernel.then(&next).expect("the layers were checked to be one");
    }
    (kernel, bias)
}

/// The bias of what comes before, seen behind this convolution, and its own.
fn through(kernel: &Kernel, before: &[f64], own: Option<Vec<f64>>) -> Vec<f64> {
    let filters = kernel.conv.out_channels;
    let middle = before.len() / kernel.conv.groups;
    let len = kernel.weight.len() / filters;
    let mut bias = own.unwrap_or_else(|| vec![0.0; filters]);
    for (n, (bias, row)) in bias.iter_mut().zip(kernel.weight.chunks_exact(len)).enumerate() {
        let first = n / (filters / kernel.conv.groups) * middle;
        let inputs = &before[first..first + middle];
        *bias +=
            row.chunks_exact(len / middle).zip(inputs).map(|(w, v)| w.iter().sum::<f64>() * v).sum::<f64>();
    }
    bias
}

fn doubles(array: &Array) -> Vec<f64> {
    array.data().iter().map(|v| f64::from(*v)).collect()
}
