use crate::layer::Layer;
use cofilter_graph::Model;
use serde::{Deserialize, Serialize};

/// Zeros of one convolution or fully connected layer; biases are not counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerDensity {
    /// The layer.
    pub name: String,
    /// Number of weights.
    pub weights: usize,
    /// Weights other than zero.
    pub nonzeros: usize,
    /// `nonzeros / weights`; the sparsity is one minus this.
    pub density: f64,
    /// Number of filters (outputs of a fully connected layer).
    pub filters: usize,
    /// Filters that are all zero.
    pub zero_filters: usize,
    /// Columns of the weight matrix, summed over the groups: one weight position across the filters of a group.
    pub columns: usize,
    /// Columns that are all zero.
    pub zero_columns: usize,
    /// `1 / ((1 - c) (1 - f))` with the shares `c` and `f` of zero columns and filters: the gain of a dense product
    /// without them (Wen et al. 2016). `None` where nothing is left.
    pub structured_speedup: Option<f64>,
}

/// The zeros of every convolution and fully connected layer, in graph order.
#[must_use]
pub fn density(model: &Model) -> Vec<LayerDensity> {
    Layer::all(model).iter().map(of_layer).collect()
}

/// The zeros of some layers together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TotalDensity {
    /// Number of weights.
    pub weights: usize,
    /// Weights other than zero.
    pub nonzeros: usize,
    /// `nonzeros / weights`; 1 where there are no weights.
    pub density: f64,
}

/// The zeros of these layers together.
#[must_use]
pub fn total_density(layers: &[LayerDensity]) -> TotalDensity {
    let (nonzeros, weights) = layers.iter().fold((0, 0), |(n, w), l| (n + l.nonzeros, w + l.weights));
    TotalDensity { weights, nonzeros, density: if weights > 0 { ratio(nonzeros, weights) } else { 1.0 } }
}

fn of_layer(layer: &Layer<'_>) -> LayerDensity {
    let nonzeros = layer.weight.iter().filter(|w| **w != 0.0).count();
    let zero = |weights: &[f32]| weights.iter().all(|w| *w == 0.0);
    let zero_filters = layer.weight.chunks_exact(layer.columns).filter(|f| zero(f)).count();
    let group_len = layer.weight.len() / layer.groups;
    let zero_columns: usize = layer
        .weight
        .chunks_exact(group_len)
        .map(|group| {
            let column = |c: usize| group.iter().skip(c).step_by(layer.columns);
            (0..layer.columns).filter(|c| column(*c).all(|w| *w == 0.0)).count()
        })
        .sum();
    let columns = layer.columns * layer.groups;
    let left = ratio(columns - zero_columns, columns) * ratio(layer.filters - zero_filters, layer.filters);
    LayerDensity {
        name: layer.name.into(),
        weights: layer.weight.len(),
        nonzeros,
        density: ratio(nonzeros, layer.weight.len()),
        filters: layer.filters,
        zero_filters,
        columns,
        zero_columns,
        structured_speedup: (left > 0.0).then(|| 1.0 / left),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
