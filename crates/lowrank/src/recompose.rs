use crate::layer::{Layer, LayerOp};
use crate::{Error, Result};
use cofilter_graph::{Array, Conv2d, Graph, Linear, Model, NodeId, Op};

/// Multiplies every pair `<name>_lowrank`, `<name>_linear` out to one dense layer `<name>`, whose weight is the product
/// (in `f64`, rounded once). Outputs stay the same to rounding; a bias of the basis, which [`crate::decompose`] never
/// makes, goes through the combination into the layer's.
///
/// Pairs whose middle value is read elsewhere too, or is an output, stay.
///
/// # Errors
/// [`Error::Graph`] where a node is already named `<name>`.
pub fn recompose(model: &Model) -> Result<Model> {
    let graph = model.graph();
    let combinations = combinations(graph);
    let basis_of: Vec<Option<NodeId>> =
        graph.iter().map(|(id, _)| combinations.contains(&id).then(|| graph.node(id).inputs()[0])).collect();
    model.rewrite(|b, id, inputs| {
        if basis_of.contains(&Some(id)) {
            // The dense layer takes its place at the combination.
            return Ok(inputs[0]);
        }
        let pair =
            basis_of[id.index()].and_then(|basis| Some((Layer::at(model, basis)?, Layer::at(model, id)?)));
        match pair {
            Some((basis, combination)) => {
                let name = base_name(combination.name, "_linear").unwrap_or(combination.name);
                let (op, tensors) = multiply(&basis, &combination);
                Ok::<_, Error>(b.add(name, op, inputs, tensors)?)
            }
            None => Ok(b.keep(id, inputs)?),
        }
    })
}

/// Bases and combinations of all pairs.
pub(crate) fn halves(graph: &Graph) -> Vec<NodeId> {
    combinations(graph).into_iter().flat_map(|c| [graph.node(c).inputs()[0], c]).collect()
}

/// The second layers of all pairs.
fn combinations(graph: &Graph) -> Vec<NodeId> {
    let consumers = graph.consumers();
    let second = |id: NodeId| {
        let node = graph.node(id);
        let first = *node.inputs().first()?;
        let basis = graph.node(first);
        let same_name = base_name(node.name(), "_linear")? == base_name(basis.name(), "_lowrank")?;
        let fits = match (basis.op(), node.op()) {
            (Op::Conv2d(a), Op::Conv2d(b)) => {
                let plain = Conv2d { groups: b.groups, bias: b.bias, ..Conv2d::new(b.out_channels, 1) };
                *b == plain && a.groups == b.groups
            }
            (Op::Linear(_), Op::Linear(_)) => true,
            _ => false,
        };
        let alone = consumers[first.index()].len() == 1 && !graph.outputs().contains(&first);
        (same_name && fits && alone).then_some(id)
    };
    graph.iter().filter_map(|(id, _)| second(id)).collect()
}

fn base_name<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    name.strip_suffix(suffix).filter(|base| !base.is_empty())
}

/// The dense layer of a pair.
fn multiply(basis: &Layer<'_>, combination: &Layer<'_>) -> (Op, Vec<Array>) {
    let (rank, len, filters) = (combination.len, basis.len, combination.filters);
    let mut weight = Vec::with_capacity(filters * len);
    let mut bias: Vec<f64> =
        combination.bias.map_or(vec![0.0; filters], |b| b.data().iter().map(|v| f64::from(*v)).collect());
    let group_filters = combination.group_filters();
    for (filter, bias) in bias.iter_mut().enumerate() {
        let group = filter / group_filters;
        let row = &combination.weight.data()[filter * rank..(filter + 1) * rank];
        let mut sum = vec![0.0f64; len];
        for (factor, vector) in row.iter().zip(basis.group(group).chunks_exact(len)) {
            sum.iter_mut().zip(vector).for_each(|(s, v)| *s += f64::from(*factor) * f64::from(*v));
        }
        if let Some(inner) = basis.bias {
            let inner = &inner.data()[group * rank..(group + 1) * rank];
            *bias += row.iter().zip(inner).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        }
        weight.extend(sum.into_iter().map(single));
    }
    let has_bias = basis.bias.is_some() || combination.bias.is_some();
    let mut dims = basis.weight.dims().to_vec();
    dims[0] = filters;
    let op = match basis.op {
        LayerOp::Conv2d(conv) => Op::Conv2d(Conv2d { out_channels: filters, bias: has_bias, ..conv.clone() }),
        LayerOp::Linear(_) => Op::Linear(Linear { out_features: filters, bias: has_bias }),
    };
    let bias = has_bias.then(|| Array::new(vec![filters], bias.into_iter().map(single).collect::<Vec<_>>()));
    (op, [Some(Array::new(dims, weight)), bias].into_iter().flatten().collect())
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
fn single(value: f64) -> f32 {
    value as f32
}
