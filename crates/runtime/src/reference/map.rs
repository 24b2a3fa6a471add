//! The ops that look at neighbours in a map `[channels, height, width]`.

use super::ops::Value;
use cofilter_graph::{Array, Conv2d, Lrn, LrnRegion, Pool2d, PoolKind, Shape};

impl Value<'_> {
    /// Row `[c, y]`; empty outside the map.
    fn row(&self, c: usize, y: isize) -> &[f64] {
        let [height, width] = self.shape.spatial();
        match usize::try_from(y) {
            Ok(y) if y < height => &self.data[(c * height + y) * width..][..width],
            _ => &[],
        }
    }

    /// Element `[c, y, x]`; 0 outside the map.
    fn at(&self, c: usize, y: isize, x: isize) -> f64 {
        element(self.row(c, y), x)
    }
}

/// Element `x` of a row; 0 outside.
fn element(row: &[f64], x: isize) -> f64 {
    usize::try_from(x).ok().and_then(|x| row.get(x)).copied().unwrap_or(0.0)
}

/// Calls `f` for every element of a map, in order.
fn build(shape: Shape, mut f: impl FnMut(usize, usize, usize) -> f64) -> Vec<f64> {
    let [height, width] = shape.spatial();
    let mut dst = Vec::with_capacity(shape.elements());
    for c in 0..shape.channels() {
        for y in 0..height {
            for x in 0..width {
                dst.push(f(c, y, x));
            }
        }
    }
    dst
}

/// `y[o, i, j] = sum_{c, u, v} w[o, c, u, v] x[g C + c, i s - p + u d, j s - p + v d] + b[o]`, where `g` is the group of
/// filter `o` and `C` the number of channels of a group; zeros outside the map.
pub(super) fn conv2d(
    conv: &Conv2d,
    src: Value<'_>,
    weight: &Array,
    bias: Option<&Array>,
    shape: Shape,
) -> Vec<f64> {
    let channels = src.shape.channels() / conv.groups;
    let filters = conv.out_channels / conv.groups;
    let [kernel_h, kernel_w] = conv.kernel;
    let tap = |at: usize, offset: usize, axis: usize| {
        signed(at * conv.stride[axis] + offset * conv.dilation[axis]) - signed(conv.padding[axis])
    };
    build(shape, |o, i, j| {
        let mut sum = bias.map_or(0.0, |b| f64::from(b.data()[o]));
        for c in 0..channels {
            for u in 0..kernel_h {
                let src = src.row(o / filters * channels + c, tap(i, u, 0));
                let weight = &weight.data()[((o * channels + c) * kernel_h + u) * kernel_w..][..kernel_w];
                for (v, w) in weight.iter().enumerate() {
                    sum += f64::from(*w) * element(src, tap(j, v, 1));
                }
            }
        }
        sum
    })
}

/// Maximum or mean of the part of each window that lies in the map. The mean divides by that part, or by the part that
/// lies in the padded map.
pub(super) fn pool2d(pool: &Pool2d, src: Value<'_>, shape: Shape) -> Vec<f64> {
    let extents = src.shape.spatial();
    let window = |at: usize, axis: usize| {
        let start = signed(at * pool.stride[axis]) - signed(pool.padding[axis]);
        let end = (start + signed(pool.kernel[axis])).min(signed(extents[axis] + pool.padding[axis]));
        (start..end, start.max(0)..end.min(signed(extents[axis])))
    };
    build(shape, |c, i, j| {
        let ((padded_rows, rows), (padded_columns, columns)) = (window(i, 0), window(j, 1));
        let elements = rows.clone().flat_map(|y| columns.clone().map(move |x| src.at(c, y, x)));
        match pool.kind {
            PoolKind::Max => elements.fold(f64::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m }),
            PoolKind::Average if pool.count_padding => {
                elements.sum::<f64>() / (padded_rows.len() * padded_columns.len()) as f64
            }
            PoolKind::Average => elements.sum::<f64>() / (rows.len() * columns.len()) as f64,
        }
    })
}

/// Mean over window `i` of `n`: rows `floor(i h / n) .. ceil((i + 1) h / n)`.
pub(super) fn adaptive_avg_pool(src: Value<'_>, shape: Shape) -> Vec<f64> {
    let (from, to) = (src.shape.spatial(), shape.spatial());
    let window = |i: usize, axis: usize| i * from[axis] / to[axis]..((i + 1) * from[axis]).div_ceil(to[axis]);
    build(shape, |c, i, j| {
        let (rows, columns) = (window(i, 0), window(j, 1));
        let count = (rows.len() * columns.len()) as f64;
        let elements = rows.flat_map(|y| columns.clone().map(move |x| src.at(c, signed(y), signed(x))));
        elements.sum::<f64>() / count
    })
}

/// `x / (k + alpha / m * sum x'^2)^beta`: over `size` neighbouring channels with `m = size`, or over a window of
/// `size x size` with `m = size^2`; zeros outside the map.
pub(super) fn lrn(norm: &Lrn, src: Value<'_>) -> Vec<f64> {
    let half = norm.size / 2;
    let [alpha, beta, k] = [norm.alpha, norm.beta, norm.k].map(f64::from);
    let channels = src.shape.channels();
    build(src.shape, |c, y, x| {
        let (y, x) = (signed(y), signed(x));
        let (sum, count): (f64, usize) = match norm.region {
            LrnRegion::AcrossChannels => {
                let neighbours = c.saturating_sub(half)..channels.min(c + half + 1);
                (neighbours.map(|c| src.at(c, y, x).powi(2)).sum(), norm.size)
            }
            LrnRegion::WithinChannel => {
                let around = |at: isize| at - signed(half)..=at + signed(half);
                let window = around(y).flat_map(|y| around(x).map(move |x| (y, x)));
                (window.map(|(y, x)| src.at(c, y, x).powi(2)).sum(), norm.size * norm.size)
            }
        };
        src.at(c, y, x) / (k + alpha / count as f64 * sum).powf(beta)
    })
}

/// Extents are below `isize::MAX / 4`: the graph checked that.
fn signed(extent: usize) -> isize {
    extent.cast_signed()
}
