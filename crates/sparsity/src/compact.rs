use crate::branches::drop_constant_sides;
use crate::layer::Layer;
use crate::liveness::Liveness;
use crate::{Error, Result};
use cofilter_graph::{Array, Conv2d, Linear, Model, NodeId, Op, PadChannels};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was taken out of one convolution or fully connected layer. Channels are numbered as before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The layer.
    pub layer: String,
    /// Filters (outputs) it had.
    pub filters_before: usize,
    /// Filters taken out, rising.
    pub filters: Vec<usize>,
    /// Input channels it had, over all groups.
    pub inputs_before: usize,
    /// Input channels taken out, rising.
    pub inputs: Vec<usize>,
    /// Weights and biases before.
    pub params_before: usize,
    /// Weights and biases after.
    pub params_after: usize,
}

/// Takes out every channel that cannot change an output, and everything that computes or reads it: filters and basis
/// vectors that are all zero, and those that nobody reads with a weight other than zero. One call reaches the fixed
/// point; the records, in graph order, are of the layers that lost something.
///
/// A channel whose filter and bias are zero is zero everywhere; so is it after rectification, pooling, dropout, either
/// normalisation of responses, and batch normalisation where that gives zero for it (also for any input, where its
/// scale and shift are zero). A channel that is the same number everywhere goes into the biases of its readers, where
/// all of them have one and no padding: otherwise its border differs and it stays. Sums drop a channel on all sides or
/// on none, concatenation and flattening carry blocks along, zero channels that were padded in are dropped like filters.
///
/// A side of a sum whose channels are all the same everywhere goes as a whole, and with it a residual block that is all zero; where
/// its channels are not zero, a batch normalisation that shifts takes its place.
///
/// What stays: inputs and outputs of the network; every channel into or out of a normalisation across channels, where
/// even a zero separates its neighbours; the last channel of any value; and in a convolution with groups as many
/// channels in every group as the fullest one needs.
///
/// Outputs in evaluation are those of before to the rounding of `f32` (a product's sum may be ordered differently).
///
/// # Errors
/// [`Error::Graph`] for a number that is not finite.
pub fn compact(model: &Model) -> Result<(Model, Vec<Removal>)> {
    model.check_finite()?;
    let whole = model;
    let model = &drop_constant_sides(whole)?;
    let liveness = Liveness::new(model);
    let kept: Vec<Vec<usize>> = model.graph().iter().map(|(id, _)| liveness.kept(id)).collect();
    let mut removals = Vec::new();
    let small = model.rewrite(|b, id, inputs| {
        let node = model.graph().node(id);
        let of_input = |i: usize| &kept[node.inputs()[i].index()];
        let (op, tensors) = match node.op() {
            Op::Conv2d(_) | Op::Linear(_) => {
                let Some(layer) = liveness.layer(id) else { return Ok(b.keep(id, inputs)?) };
                let (op, tensors) =
                    shorten(&liveness, layer, node.op(), node.inputs()[0], &kept[id.index()], of_input(0));
                removals.extend(removal(model, layer, &kept[id.index()], of_input(0), &tensors));
                (op, tensors)
            }
            Op::BatchNorm(_) => {
                let shorter = |array: &Array| pick(array, &kept[id.index()]);
                (node.op().clone(), model.tensors(id).iter().map(shorter).collect())
            }
            Op::PadChannels(pad) => {
                let inner = pad.before..pad.before + model.graph().input_shapes(id)[0].channels();
                let before = kept[id.index()].iter().filter(|c| **c < inner.start).count();
                let after = kept[id.index()].iter().filter(|c| **c >= inner.end).count();
                (Op::PadChannels(PadChannels { before, after }), Vec::new())
            }
            _ => (node.op().clone(), model.tensors(id).to_vec()),
        };
        Ok::<_, Error>(b.add(node.name(), op, inputs, tensors)?)
    })?;
    Ok((small, in_order(whole, model, removals)))
}

/// The removals in the order of the network's layers, with those of layers that are gone altogether.
fn in_order(before: &Model, after: &Model, removals: Vec<Removal>) -> Vec<Removal> {
    let gone = |layer: Layer<'_>| {
        let inputs = layer.group_inputs() * layer.groups;
        Removal {
            layer: layer.name.into(),
            filters_before: layer.filters,
            filters: (0..layer.filters).collect(),
            inputs_before: inputs,
            inputs: (0..inputs).collect(),
            params_before: before.tensors(layer.id).iter().map(|a| a.data().len()).sum(),
            params_after: 0,
        }
    };
    let mut shortened: BTreeMap<String, Removal> =
        removals.into_iter().map(|r| (r.layer.clone(), r)).collect();
    let of = |layer: Layer<'_>| match after.graph().find(layer.name) {
        Ok(_) => shortened.remove(layer.name),
        Err(_) => Some(gone(layer)),
    };
    Layer::all(before).into_iter().filter_map(of).collect()
}

/// A layer with these filters and these inputs only.
fn shorten(
    liveness: &Liveness<'_>,
    layer: &Layer<'_>,
    op: &Op,
    input: NodeId,
    filters: &[usize],
    inputs: &[usize],
) -> (Op, Vec<Array>) {
    let mut stays = vec![false; layer.group_inputs() * layer.groups];
    inputs.iter().for_each(|channel| stays[*channel] = true);
    let mut weight = Vec::new();
    let mut bias = Vec::new();
    for filter in filters {
        let mut constant = layer.bias.map_or(0.0, |b| f64::from(b[*filter]));
        for (channel, weights) in layer.taps(*filter) {
            if stays[channel] {
                weight.extend_from_slice(weights);
            } else if let Some(value) = liveness.constant(input, channel).filter(|v| *v != 0.0) {
                constant += f64::from(value) * weights.iter().map(|w| f64::from(*w)).sum::<f64>();
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
        bias.push(constant as f32);
    }
    let group_inputs = inputs.len() / layer.groups;
    let (op, dims) = match op {
        Op::Conv2d(conv) => (
            Op::Conv2d(Conv2d { out_channels: filters.len(), ..conv.clone() }),
            vec![filters.len(), group_inputs, conv.kernel[0], conv.kernel[1]],
        ),
        Op::Linear(linear) => (
            Op::Linear(Linear { out_features: filters.len(), ..linear.clone() }),
            vec![filters.len(), group_inputs],
        ),
        other => (other.clone(), Vec::new()),
    };
    let mut tensors = vec![Array::new(dims, weight)];
    if layer.bias.is_some() {
        tensors.push(Array::new(vec![filters.len()], bias));
    }
    (op, tensors)
}

fn removal(
    model: &Model,
    layer: &Layer<'_>,
    filters: &[usize],
    inputs: &[usize],
    tensors: &[Array],
) -> Option<Removal> {
    let missing = |kept: &[usize], of: usize| (0..of).filter(|c| kept.binary_search(c).is_err()).collect();
    let inputs_before = layer.group_inputs() * layer.groups;
    if filters.len() == layer.filters && inputs.len() == inputs_before {
        return None;
    }
    let count = |tensors: &[Array]| tensors.iter().map(|a| a.data().len()).sum();
    Some(Removal {
        layer: layer.name.into(),
        filters_before: layer.filters,
        filters: missing(filters, layer.filters),
        inputs_before,
        inputs: missing(inputs, inputs_before),
        params_before: count(model.tensors(layer.id)),
        params_after: count(tensors),
    })
}

/// The entries of a vector at these places.
fn pick(array: &Array, places: &[usize]) -> Array {
    Array::new(vec![places.len()], places.iter().map(|p| array.data()[*p]).collect::<Vec<_>>())
}
