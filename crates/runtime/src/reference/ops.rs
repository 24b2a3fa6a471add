//! One function an op, straight from the formulas in the documentation of [`Op`].

use super::map::{adaptive_avg_pool, conv2d, lrn, pool2d};
use cofilter_graph::{Array, Op, Shape};

/// A value of one image, row-major.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) data: &'a [f64],
    pub(super) shape: Shape,
}

/// The result of one op other than the input; `tensors` in slot order.
///
/// # Panics
/// For the input, which has no operand.
pub(super) fn apply(op: &Op, operands: &[Value<'_>], tensors: &[Array], shape: Shape) -> Vec<f64> {
    let src = operands[0];
    match op {
        Op::Conv2d(conv) => conv2d(conv, src, &tensors[0], tensors.get(1), shape),
        Op::Linear(_) => linear(src.data, &tensors[0], tensors.get(1), shape.elements()),
        Op::BatchNorm(bn) => batch_norm(src, tensors, f64::from(bn.eps)),
        Op::Relu => src.data.iter().map(|&x| if x < 0.0 { 0.0 } else { x }).collect(),
        Op::Pool2d(pool) => pool2d(pool, src, shape),
        Op::AdaptiveAvgPool { .. } => adaptive_avg_pool(src, shape),
        Op::Lrn(norm) => lrn(norm, src),
        Op::Dropout { .. } | Op::Flatten => src.data.to_vec(),
        Op::Add => (0..src.data.len()).map(|i| operands.iter().map(|o| o.data[i]).sum()).collect(),
        Op::Concat => operands.iter().flat_map(|o| o.data).copied().collect(),
        Op::Softmax => softmax(src.data),
        Op::PadChannels(pad) => {
            let [height, width] = src.shape.spatial();
            let zeros = |channels: usize| vec![0.0; channels * height * width];
            [&zeros(pad.before), src.data, &zeros(pad.after)].concat()
        }
        Op::Input { .. } => unreachable!("an input has no operand"),
    }
}

/// `y_o = sum_i w_oi x_i + b_o`.
fn linear(src: &[f64], weight: &Array, bias: Option<&Array>, out_features: usize) -> Vec<f64> {
    let row = |o: usize| &weight.data()[o * src.len()..(o + 1) * src.len()];
    let dot = |o: usize| row(o).iter().zip(src).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    (0..out_features).map(|o| dot(o) + bias.map_or(0.0, |b| f64::from(b.data()[o]))).collect()
}

/// `weight * (x - mean) / sqrt(var + eps) + bias` by channel.
fn batch_norm(src: Value<'_>, tensors: &[Array], eps: f64) -> Vec<f64> {
    let [height, width] = src.shape.spatial();
    let normalise = |(i, &x): (usize, &f64)| {
        let c = i / (height * width);
        let [weight, bias, mean, var] = [0, 1, 2, 3].map(|slot: usize| f64::from(tensors[slot].data()[c]));
        weight * (x - mean) / (var + eps).sqrt() + bias
    };
    src.data.iter().enumerate().map(normalise).collect()
}

/// `exp(x_i - m) / sum_j exp(x_j - m)` with the largest `m`, which changes nothing but avoids overflow.
fn softmax(src: &[f64]) -> Vec<f64> {
    let largest = src.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = src.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}
