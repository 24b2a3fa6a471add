use crate::Result;
use crate::constants::Constants;
use cofilter_graph::{Array, BatchNorm, Model, NodeId, Op};

/// Leaves out the sides of sums that have the same number at every place of each channel, whatever the image: what is left of a
/// residual block that is all zero is its shortcut. Where those numbers are not zero, a batch normalisation that only shifts takes
/// the place of the block. Sums that are outputs of the network stay, and those with no other side.
pub(crate) fn drop_constant_sides(model: &Model) -> Result<Model> {
    let graph = model.graph();
    let constants = Constants::new(model);
    let channels = |id: NodeId| graph.node(id).shape().channels();
    let values =
        |id: NodeId| -> Option<Vec<f32>> { (0..channels(id)).map(|c| constants.get(id, c)).collect() };
    model.rewrite(|b, id, inputs| {
        let node = graph.node(id);
        let sides: Vec<Option<Vec<f32>>> = match node.op() {
            Op::Add if !graph.outputs().contains(&id) => node.inputs().iter().map(|i| values(*i)).collect(),
            _ => Vec::new(),
        };
        let constant = sides.iter().flatten().count();
        if constant == 0 || constant == sides.len() {
            return Ok(b.keep(id, inputs)?);
        }
        let mut shift = vec![0.0; channels(id)];
        for side in sides.iter().flatten() {
            shift.iter_mut().zip(side).for_each(|(shift, value)| *shift += value);
        }
        let kept: Vec<NodeId> =
            inputs.iter().zip(&sides).filter(|(_, side)| side.is_none()).map(|(i, _)| *i).collect();
        let shifted = shift.iter().any(|value| *value != 0.0);
        let sum = match kept.as_slice() {
            [only] => *only,
            _ if shifted => b.add(&format!("{}_sum", node.name()), Op::Add, &kept, Vec::new())?,
            _ => b.add(node.name(), Op::Add, &kept, Vec::new())?,
        };
        if !shifted {
            return Ok(sum);
        }
        let bn = BatchNorm::default();
        let ones = |value: f32| Array::full(vec![shift.len()], value);
        let tensors =
            vec![ones(1.0), Array::new(vec![shift.len()], shift.clone()), ones(0.0), ones(1.0 - bn.eps)];
        Ok(b.add(node.name(), Op::BatchNorm(bn), &[sum], tensors)?)
    })
}
