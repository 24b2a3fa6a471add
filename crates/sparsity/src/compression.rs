use crate::density::ratio;
use crate::layer::Layer;
use crate::{Error, Result};
use cofilter_graph::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How much smaller a network became.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compression {
    /// Every layer of the original, in graph order.
    pub layers: Vec<LayerCompression>,
    /// Weights of all layers of the original over what is left of them; `None` where nothing is left.
    pub total: Option<f64>,
}

/// How much smaller one layer became.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerCompression {
    /// The layer of the original.
    pub name: String,
    /// Its weights, zeros included, biases not.
    pub weights: usize,
    /// Weights other than zero of the layer, or of those that stand for it, in the smaller network.
    pub nonzeros: usize,
    /// `weights / nonzeros`, the compression rate; `None` where nothing is left.
    pub rate: Option<f64>,
}

/// Compression rates as the paper counts them: dense weights of the *original* layer over the weights other than zero
/// of the layer itself or, where it was decomposed, of the layers that stand for it together. Biases do not
/// count. Zeros that are removed physically and zeros that are stored give the same rate.
///
/// # Errors
/// [`Error::MissingLayer`] if the smaller network lacks a layer of the original and has others.
pub fn compression(original: &Model, smaller: &Model) -> Result<Compression> {
    let mut nonzeros: BTreeMap<&str, usize> = Layer::all(smaller)
        .into_iter()
        .map(|l| (l.name, l.weight.iter().filter(|w| **w != 0.0).count()))
        .collect();
    let graph = smaller.graph();
    for (name, parts) in graph.decomposed() {
        let sum = parts.iter().filter_map(|id| nonzeros.get(graph.node(*id).name())).sum();
        nonzeros.entry(name).or_insert(sum);
    }
    // What is gone as a whole, a residual block, has nothing left; but a network with other layers is no smaller one.
    let originals = Layer::all(original);
    let parts = graph.decomposed().into_iter().flat_map(|(_, parts)| parts).map(|id| graph.node(id).name());
    let parts: Vec<&str> = parts.collect();
    let known = |name: &str| parts.contains(&name) || originals.iter().any(|layer| layer.name == name);
    let strange = Layer::all(smaller).iter().any(|layer| !known(layer.name));
    let left = |name: &str| nonzeros.get(name).copied().or((!strange).then_some(0));
    let rate = |weights: usize, nonzeros: usize| (nonzeros > 0).then(|| ratio(weights, nonzeros));
    let layers = originals
        .iter()
        .map(|layer| {
            let nonzeros =
                left(layer.name).ok_or_else(|| Error::MissingLayer { layer: layer.name.into() })?;
            let weights = layer.weight.len();
            Ok(LayerCompression { name: layer.name.into(), weights, nonzeros, rate: rate(weights, nonzeros) })
        })
        .collect::<Result<Vec<_>>>()?;
    let total = rate(layers.iter().map(|l| l.weights).sum(), layers.iter().map(|l| l.nonzeros).sum());
    Ok(Compression { layers, total })
}
