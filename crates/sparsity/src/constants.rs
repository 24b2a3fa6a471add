use crate::layer::Layer;
use cofilter_graph::{Array, BatchNorm, Model, NodeId, Op, PoolKind};

/// For each node and channel the one value that every place of it has in evaluation, whatever the image; `None` where
/// it depends on the image or on the place.
#[derive(Debug)]
pub(crate) struct Constants(Vec<Vec<Option<f32>>>);

impl Constants {
    pub(crate) fn new(model: &Model) -> Self {
        let mut constants = Self(Vec::with_capacity(model.graph().nodes().len()));
        for (id, _) in model.graph().iter() {
            let channels = constants.of_op(model, id);
            constants.0.push(channels);
        }
        constants
    }

    pub(crate) fn get(&self, node: NodeId, channel: usize) -> Option<f32> {
        self.0[node.index()][channel]
    }

    fn of_op(&self, model: &Model, id: NodeId) -> Vec<Option<f32>> {
        let node = model.graph().node(id);
        let channels = node.shape().channels();
        let input = |i: usize| &self.0[node.inputs()[i].index()];
        let only_zero = |values: &[Option<f32>]| values.iter().map(|v| v.filter(|v| *v == 0.0)).collect();
        match node.op() {
            Op::Conv2d(_) | Op::Linear(_) => {
                let layer = Layer::at(model, id);
                (0..channels)
                    .map(|filter| self.of_filter(layer.as_ref()?, node.inputs()[0], filter))
                    .collect()
            }
            Op::BatchNorm(bn) => {
                let normalise =
                    |(c, value): (usize, &Option<f32>)| normalised(bn, model.tensors(id), c, *value);
                input(0).iter().enumerate().map(normalise).collect()
            }
            Op::Relu => input(0).iter().map(|v| v.map(|v| v.max(0.0))).collect(),
            Op::Dropout { .. } | Op::AdaptiveAvgPool { .. } => input(0).clone(),
            Op::Pool2d(pool) => {
                // An average that counts its padding is smaller at the border.
                let even = pool.kind == PoolKind::Max || pool.padding == [0, 0] || !pool.count_padding;
                if even { input(0).clone() } else { only_zero(input(0)) }
            }
            // Other channels, or zeros beyond the border, are in the sum.
            Op::Lrn(_) => only_zero(input(0)),
            Op::Add => (0..channels)
                .map(|c| node.inputs().iter().map(|i| self.get(*i, c)).sum::<Option<f32>>())
                .collect(),
            Op::Concat => node.inputs().iter().flat_map(|i| self.0[i.index()].clone()).collect(),
            Op::Flatten => {
                let block = channels / input(0).len();
                input(0).iter().flat_map(|v| std::iter::repeat_n(*v, block)).collect()
            }
            Op::PadChannels(pad) => {
                let zeros = |n| std::iter::repeat_n(Some(0.0), n);
                zeros(pad.before).chain(input(0).iter().copied()).chain(zeros(pad.after)).collect()
            }
            _ => vec![None; channels],
        }
    }

    /// The bias, and what constant inputs add to it.
    fn of_filter(&self, layer: &Layer<'_>, input: NodeId, filter: usize) -> Option<f32> {
        let mut sum = layer.bias.map_or(0.0, |b| f64::from(b[filter]));
        for (channel, weights) in layer.taps(filter) {
            if weights.iter().all(|w| *w == 0.0) {
                continue;
            }
            let value = self.get(input, channel)?;
            if value != 0.0 && layer.padded {
                return None;
            }
            sum += f64::from(value) * weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        }
        finite(sum)
    }
}

fn normalised(bn: &BatchNorm, tensors: &[Array], channel: usize, value: Option<f32>) -> Option<f32> {
    let [scale, shift, mean, var] = [0, 1, 2, 3].map(|slot| f64::from(tensors[slot].data()[channel]));
    let deviation = (var + f64::from(bn.eps)).sqrt();
    let spread = match value {
        Some(value) => (f64::from(value) - mean) / deviation,
        // A scale of zero forgets its input.
        None if scale == 0.0 && deviation > 0.0 => 0.0,
        None => return None,
    };
    finite(scale * spread + shift)
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, used as f32")]
fn finite(value: f64) -> Option<f32> {
    (value as f32).is_finite().then_some(value as f32)
}
