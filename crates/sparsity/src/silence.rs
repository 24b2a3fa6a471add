use crate::Result;
use crate::layer::Layer;
use cofilter_graph::{Array, Model, NodeId, Op};

/// Sets to zero what keeps filters of zeros in the network: their biases and, where a batch normalisation alone reads them, its scales
/// and shifts. Without that such a filter gives a number other than zero everywhere, which a padded convolution does not see as one number,
/// so [`compact`](crate::compact) has to keep it. Channels that end in a sum are left alone: other sides of it keep them.
///
/// This changes the outputs by what those numbers did; fine-tune afterwards.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for parameters that do not fit the graph; there are none.
pub fn silence(model: &Model) -> Result<Model> {
    let mut params = model.params().clone();
    for (id, slot, channels) in silent(model) {
        let array = &mut params.get_mut(id)[slot];
        let quiet = array.data().iter().zip(&channels).map(|(v, zero)| if *zero { 0.0 } else { *v });
        *array = Array::new(array.dims().to_vec(), quiet.collect::<Vec<f32>>());
    }
    Ok(model.with_params(params)?)
}

/// Node, slot and channels of the numbers that [`silence`] sets to zero.
pub(crate) fn silent(model: &Model) -> Vec<(NodeId, usize, Vec<bool>)> {
    let graph = model.graph();
    let consumers = graph.consumers();
    let mut found = Vec::new();
    for layer in Layer::all(model) {
        let zero: Vec<bool> =
            (0..layer.filters).map(|filter| layer.filter(filter).iter().all(|w| *w == 0.0)).collect();
        if !zero.contains(&true) {
            continue;
        }
        let norm = match consumers[layer.id.index()].as_slice() {
            [reader] if matches!(graph.node(*reader).op(), Op::BatchNorm(_)) => Some(*reader),
            _ => None,
        };
        if stays(model, &consumers, layer.id) {
            continue;
        }
        if layer.bias.is_some() {
            found.push((layer.id, 1, zero.clone()));
        }
        if let Some(norm) = norm {
            found.extend([0, 1].map(|slot| (norm, slot, zero.clone())));
        }
    }
    found
}

/// Whether the channels of a node are an output or end in a sum, by way of anything but another layer.
fn stays(model: &Model, consumers: &[Vec<NodeId>], id: NodeId) -> bool {
    let graph = model.graph();
    graph.outputs().contains(&id)
        || consumers[id.index()].iter().any(|reader| match graph.node(*reader).op() {
            Op::Add => true,
            Op::Conv2d(_) | Op::Linear(_) => false,
            _ => stays(model, consumers, *reader),
        })
}
