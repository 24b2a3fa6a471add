use crate::{Array, BatchNorm, Conv2d, Error, Model, NodeId, Op, Result};

/// Merges each batch normalisation into the convolution before it, where nobody else reads that convolution:
/// `w' = w * g / sqrt(var + eps)`, `b' = (b - mean) * g / sqrt(var + eps) + beta`. Outputs are those of evaluation mode.
///
/// The merged node keeps the convolution's name. Other batch normalisations stay.
///
/// # Errors
/// None that a valid model can cause; the rewriting primitive is fallible.
pub fn fold_batch_norm(model: &Model) -> Result<Model> {
    let graph = model.graph();
    let consumers = graph.consumers();
    let folded = |id: NodeId| -> Option<(NodeId, &BatchNorm)> {
        let Op::BatchNorm(bn) = graph.node(id).op() else { return None };
        let conv = graph.node(id).inputs()[0];
        let sole = consumers[conv.index()].len() == 1 && !graph.outputs().contains(&conv);
        (sole && matches!(graph.node(conv).op(), Op::Conv2d(_))).then_some((conv, bn))
    };
    model.rewrite(|b, id, inputs| {
        if let Some((conv, bn)) = folded(id) {
            // `inputs[0]` stands for the convolution's own input: see the arm below.
            let (op, tensors) = merge(model, conv, bn, model.tensors(id));
            return b.add(graph.node(conv).name(), op, inputs, tensors);
        }
        match consumers[id.index()].as_slice() {
            [reader] if folded(*reader).is_some_and(|(conv, _)| conv == id) => Ok(inputs[0]),
            _ => b.keep(id, inputs),
        }
    })
}

fn merge(model: &Model, conv: NodeId, bn: &BatchNorm, stats: &[Array]) -> (Op, Vec<Array>) {
    let Op::Conv2d(op) = model.graph().node(conv).op() else { unreachable!("`folded` checked the op") };
    let [gamma, beta, mean, var] = stats else { unreachable!("a batch norm has four slots") };
    let weight = &model.tensors(conv)[0];
    let (filters, len) = weight.matrix_dims();
    let mut merged = Vec::with_capacity(weight.data().len());
    let mut bias = Vec::with_capacity(filters);
    for filter in 0..filters {
        let value = |a: &Array| f64::from(a.data()[filter]);
        let scale = value(gamma) / (value(var) + f64::from(bn.eps)).sqrt();
        let old_bias = model.tensors(conv).get(1).map_or(0.0, &value);
        #[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
        {
            let row = &weight.data()[filter * len..(filter + 1) * len];
            merged.extend(row.iter().map(|w| (f64::from(*w) * scale) as f32));
            bias.push(((old_bias - value(mean)) * scale + value(beta)) as f32);
        }
    }
    let op = Op::Conv2d(Conv2d { bias: true, ..op.clone() });
    (op, vec![Array::new(weight.dims().to_vec(), merged), Array::new(vec![filters], bias)])
}

/// What is left for inference: the main output only, no dropout, batch normalisation merged where possible.
///
/// # Errors
/// None that a valid model can cause; the rewriting primitive is fallible.
pub fn for_inference(model: &Model) -> Result<Model> {
    let graph = model.graph();
    let main = &graph.outputs()[..1];
    let lean = model.rewrite_outputs(main, |b, id, inputs| match graph.node(id).op() {
        Op::Dropout { .. } => Ok::<_, Error>(inputs[0]),
        _ => b.keep(id, inputs),
    })?;
    fold_batch_norm(&lean)
}
