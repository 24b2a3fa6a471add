//! The ops as compositions of candle's own, in any float type: the second formulation that tests compare the kernels with.
//!
//! candle's pooling, ReLU and strided convolution gradients are wrong or missing (see `docs/ops.md`), so windows are
//! gathered with `index_select`.

use crate::{Mode, Result};
use candle_core::{D, DType, Device, Tensor};
use cofilter_graph::{BatchNorm, Conv2d, Lrn, LrnRegion, Node, Op, Pool2d, PoolKind};

/// Value of a node. `params`: its tensors in slot order.
pub(crate) fn compose(node: &Node, inputs: &[&Tensor], params: &[&Tensor], mode: Mode) -> Result<Tensor> {
    let x = inputs[0];
    Ok(match node.op() {
        Op::Input { .. } => x.clone(),
        Op::Conv2d(conv) => conv2d(conv, x, params[0], params.get(1).copied())?,
        Op::Linear(_) => {
            let y = x.matmul(&params[0].t()?)?;
            match params.get(1) {
                Some(bias) => y.broadcast_add(bias)?,
                None => y,
            }
        }
        Op::BatchNorm(bn) => batch_norm(bn, x, params, mode)?,
        Op::Relu => {
            let zeros = x.zeros_like()?;
            x.gt(&zeros)?.where_cond(x, &zeros)?
        }
        Op::Pool2d(pool) => pool2d(pool, node.shape().spatial(), x)?,
        Op::AdaptiveAvgPool { output } => adaptive_avg_pool(*output, x)?,
        Op::Lrn(l) => lrn(l, x)?,
        Op::Dropout { p } => match mode {
            Mode::Train { seed, iteration } if *p > 0.0 => {
                let zeros = super::dropout::RandomZeros { p: *p, seed, iteration, node: node.name().into() };
                let factors = Tensor::from_vec(zeros.factors(x.elem_count()), x.dims(), x.device())?;
                (x * factors.to_dtype(x.dtype())?)?
            }
            _ => x.clone(),
        },
        Op::Add => {
            let mut sum = x.clone();
            for input in &inputs[1..] {
                sum = (sum + *input)?;
            }
            sum
        }
        Op::Concat => Tensor::cat(inputs, 1)?,
        Op::Flatten => x.flatten_from(1)?,
        Op::Softmax => softmax(x)?,
        Op::PadChannels(pad) => x.pad_with_zeros(1, pad.before, pad.after)?,
    })
}

/// Mean over the batch of `-log softmax(x)[label]`, a scalar; `x [N, K]`, `labels [N]` of `u32`.
pub(crate) fn cross_entropy(x: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_softmax = shifted.broadcast_sub(&log_sum)?;
    Ok(log_softmax.gather(&labels.unsqueeze(1)?, 1)?.mean_all()?.neg()?)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

/// Windows of one plane: for each window (row by row) and each tap, the index in a plane of `width` columns.
fn window_indices(
    width: usize,
    out_size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
) -> Vec<u32> {
    let mut indices = Vec::with_capacity(out_size[0] * out_size[1] * kernel[0] * kernel[1]);
    for (oy, ox) in pairs(out_size) {
        for (ky, kx) in pairs(kernel) {
            let (y, x) = (oy * stride[0] + ky * dilation[0], ox * stride[1] + kx * dilation[1]);
            #[expect(clippy::cast_possible_truncation, reason = "a plane has far fewer than 2^32 elements")]
            indices.push((y * width + x) as u32);
        }
    }
    indices
}

fn pairs([a, b]: [usize; 2]) -> impl Iterator<Item = (usize, usize)> {
    (0..a).flat_map(move |i| (0..b).map(move |j| (i, j)))
}

/// `[N, C, H, W]` to `[N, C, windows, taps]`.
fn windows(x: &Tensor, indices: Vec<u32>, taps: usize) -> candle_core::Result<Tensor> {
    let (n, c, _, _) = x.dims4()?;
    let count = indices.len();
    let indices = Tensor::from_vec(indices, count, x.device())?;
    x.flatten_from(2)?.index_select(&indices, 2)?.reshape((n, c, count / taps, taps))
}

fn conv2d(conv: &Conv2d, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Conv2d { kernel, stride, padding, dilation, groups, out_channels, .. } = conv;
    let (n, c, h, w) = x.dims4()?;
    let out: Vec<usize> = (0..2)
        .map(|a| ([h, w][a] + 2 * padding[a] - (kernel[a] - 1) * dilation[a] - 1) / stride[a] + 1)
        .collect();
    let padded = x.pad_with_zeros(2, padding[0], padding[0])?.pad_with_zeros(3, padding[1], padding[1])?;
    let taps = kernel[0] * kernel[1];
    let indices = window_indices(w + 2 * padding[1], [out[0], out[1]], *kernel, *stride, *dilation);
    let columns = windows(&padded, indices, taps)?.transpose(2, 3)?.reshape((
        n,
        *groups,
        c / groups * taps,
        out[0] * out[1],
    ))?;
    let filters = weight.reshape((1, *groups, out_channels / groups, c / groups * taps))?;
    let filters = filters.broadcast_as((n, *groups, out_channels / groups, c / groups * taps))?;
    let y = filters.contiguous()?.matmul(&columns)?.reshape((n, *out_channels, out[0], out[1]))?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, *out_channels, 1, 1))?)?,
        None => y,
    })
}

fn pool2d(pool: &Pool2d, out: [usize; 2], x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    // Rounded up, the last window may stick out beyond the padding.
    let behind: Vec<usize> = (0..2)
        .map(|a| {
            let reach = (out[a] - 1) * pool.stride[a] + pool.kernel[a];
            reach.saturating_sub([h, w][a] + pool.padding[a])
        })
        .collect();
    let filler = match pool.kind {
        PoolKind::Max => f64::NEG_INFINITY,
        PoolKind::Average => 0.0,
    };
    let padded = pad(&pad(x, 2, pool.padding[0], behind[0], filler)?, 3, pool.padding[1], behind[1], filler)?;
    let indices = window_indices(padded.dim(3)?, out, pool.kernel, pool.stride, [1, 1]);
    let taps = windows(&padded, indices, pool.kernel[0] * pool.kernel[1])?;
    let y = match pool.kind {
        PoolKind::Max => {
            let places = taps.argmax_keepdim(D::Minus1)?;
            taps.gather(&places, D::Minus1)?.squeeze(D::Minus1)?
        }
        PoolKind::Average => {
            let shares: Vec<f64> =
                pairs(out).map(|(oy, ox)| 1.0 / window_size(pool, [h, w], [oy, ox])).collect();
            taps.sum(D::Minus1)?.broadcast_mul(&constant(shares, x)?)?
        }
    };
    Ok(y.reshape((n, c, out[0], out[1]))?)
}

/// By how much an average is divided: the window clipped to the padded map, or to the map.
#[expect(clippy::cast_precision_loss, reason = "a window is far smaller than 2^52")]
fn window_size(pool: &Pool2d, size: [usize; 2], window: [usize; 2]) -> f64 {
    let extent = |a: usize| {
        let start = window[a] * pool.stride[a];
        let (low, high) = if pool.count_padding {
            (0, size[a] + 2 * pool.padding[a])
        } else {
            (pool.padding[a], size[a] + pool.padding[a])
        };
        (start + pool.kernel[a]).min(high) - start.max(low)
    };
    (extent(0) * extent(1)) as f64
}

fn pad(x: &Tensor, axis: usize, before: usize, after: usize, value: f64) -> candle_core::Result<Tensor> {
    let block = |len: usize| -> candle_core::Result<Tensor> {
        let mut dims = x.dims().to_vec();
        dims[axis] = len;
        Tensor::full(value, dims, x.device())?.to_dtype(x.dtype())
    };
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(block(before)?);
    }
    parts.push(x.clone());
    if after > 0 {
        parts.push(block(after)?);
    }
    if parts.len() == 1 { Ok(x.clone()) } else { Tensor::cat(&parts, axis) }
}

/// A vector of constants in the type and on the device of `like`.
fn constant(values: Vec<f64>, like: &Tensor) -> candle_core::Result<Tensor> {
    let len = values.len();
    Tensor::from_vec(values, len, &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

fn adaptive_avg_pool(output: [usize; 2], x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let rows = averaging(output[0], h, x)?;
    let columns = averaging(output[1], w, x)?;
    let planes = x.reshape((n * c, h, w))?;
    Ok(rows
        .broadcast_matmul(&planes)?
        .broadcast_matmul(&columns.t()?)?
        .reshape((n, c, output[0], output[1]))?)
}

/// The matrix `[out, extent]` whose row `i` averages `floor(i*extent/out) .. ceil((i+1)*extent/out)`.
#[expect(clippy::cast_precision_loss, reason = "extents are far below 2^52")]
fn averaging(out: usize, extent: usize, like: &Tensor) -> candle_core::Result<Tensor> {
    let mut matrix = vec![0.0; out * extent];
    for i in 0..out {
        let (start, end) = (i * extent / out, ((i + 1) * extent).div_ceil(out));
        matrix[i * extent + start..i * extent + end].fill(1.0 / (end - start) as f64);
    }
    constant(matrix, like)?.reshape((out, extent))
}

#[expect(clippy::cast_precision_loss, reason = "a neighbourhood is far smaller than 2^52")]
fn lrn(l: &Lrn, x: &Tensor) -> Result<Tensor> {
    let (_, c, h, w) = x.dims4()?;
    let reach = l.size / 2;
    let squares = x.sqr()?;
    let (sum, share) = match l.region {
        LrnRegion::AcrossChannels => {
            let padded = squares.pad_with_zeros(1, reach, reach)?;
            let mut sum = padded.narrow(1, 0, c)?;
            for offset in 1..l.size {
                sum = (sum + padded.narrow(1, offset, c)?)?;
            }
            (sum, l.size)
        }
        LrnRegion::WithinChannel => {
            let padded = squares.pad_with_zeros(2, reach, reach)?.pad_with_zeros(3, reach, reach)?;
            let mut sum = squares.zeros_like()?;
            for (dy, dx) in pairs([l.size; 2]) {
                sum = (sum + padded.narrow(2, dy, h)?.narrow(3, dx, w)?)?;
            }
            (sum, l.size * l.size)
        }
    };
    let scale = sum.affine(f64::from(l.alpha) / share as f64, f64::from(l.k))?;
    Ok((x * scale.powf(-f64::from(l.beta))?)?)
}

/// Batch statistics of `[N, C, H, W]`: mean and biased variance, each `[1, C, 1, 1]`.
pub(crate) fn statistics(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = x.mean_keepdim((0, 2, 3))?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
    Ok((mean, var))
}

fn batch_norm(bn: &BatchNorm, x: &Tensor, params: &[&Tensor], mode: Mode) -> Result<Tensor> {
    let channels = (1, x.dim(1)?, 1, 1);
    let (mean, var) = match mode {
        Mode::Train { .. } => statistics(x)?,
        Mode::Eval => (params[2].reshape(channels)?, params[3].reshape(channels)?),
    };
    let scale = (var + f64::from(bn.eps))?.sqrt()?.recip()?.broadcast_mul(&params[0].reshape(channels)?)?;
    Ok(x.broadcast_sub(&mean)?.broadcast_mul(&scale)?.broadcast_add(&params[1].reshape(channels)?)?)
}

/// Labels as a tensor for [`cross_entropy`].
pub(crate) fn labels(labels: &[u32], device: &Device) -> Result<Tensor> {
    let labels = Tensor::from_slice(labels, labels.len(), device)?;
    debug_assert_eq!(labels.dtype(), DType::U32);
    Ok(labels)
}
