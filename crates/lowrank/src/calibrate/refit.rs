use super::Moments;
use crate::algebra::solve;
use crate::chain::{Chain, Kernel};
use crate::layer::Layer;
use crate::{Error, Result};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

/// `(W Cov(x, x') + r W) (Cov(x') + r I)^-1`: the weights `[N, L]`, row-major, that give the outputs of a group from what it
/// reads now, drawn to `W` by the ridge `r`. `W` itself where both are the same.
pub(crate) fn regression(layer: &Layer<'_>, group: usize, moments: &Moments, share: f64) -> Result<Vec<f64>> {
    let weight = layer.group(group);
    if moments.cross.is_none() {
        return Ok(weight.iter().map(|w| f64::from(*w)).collect());
    }
    let len = layer.len;
    let ridge = moments.ridge(share);
    let right = outputs(layer, group, moments, ridge);
    let solution = solve(ridged(&moments.own, ridge), right).ok_or_else(|| no_convergence(layer))?;
    Ok((0..layer.group_filters() * len).map(|i| solution[(i % len, i / len)]).collect())
}

/// `Cov(x', x) W^T + r W^T`, `[L, N]`.
fn outputs(layer: &Layer<'_>, group: usize, moments: &Moments, ridge: f64) -> Mat<f64> {
    let (len, weight) = (layer.len, layer.group(group));
    let weight = Mat::from_fn(len, layer.group_filters(), |i, n| f64::from(weight[n * len + i]));
    let mut right = weight.clone();
    matmul(right.as_mut(), Accum::Replace, moments.cross().transpose(), weight.as_ref(), 1.0, Par::Seq);
    right.as_mut().col_iter_mut().zip(weight.as_ref().col_iter()).for_each(|(to, from)| {
        to.iter_mut().zip(from.iter()).for_each(|(t, w)| *t += ridge * w);
    });
    right
}

pub(crate) fn ridged(covariance: &Mat<f64>, ridge: f64) -> Mat<f64> {
    let mut matrix = covariance.clone();
    (0..matrix.nrows()).for_each(|i| matrix[(i, i)] += ridge);
    matrix
}

fn no_convergence(layer: &Layer<'_>) -> Error {
    Error::NoConvergence { layer: layer.name.into() }
}

/// Fits the last of the new layers by least squares: of all weights it could have after the others, those that give the outputs
/// of the layer best.
pub(crate) fn refit(layer: &Layer<'_>, chain: &Chain, moments: &[Moments], share: f64) -> Result<Chain> {
    let mut before: Option<Kernel> = None;
    for link in &chain.links[..chain.links.len() - 1] {
        let kernel = link.kernel();
        before = Some(match before {
            None => kernel,
            Some(product) => {
                product.then(&kernel).expect("the layers of a decomposition make one convolution")
            }
        });
    }
    let (Some(before), Some(last)) = (before, chain.links.last()) else { return Ok(chain.clone()) };
    let last = last.kernel();
    let mut weight = Vec::with_capacity(last.weight.len());
    for (g, moments) in moments.iter().enumerate() {
        let seen = unfolded(layer, g, &before, &last);
        let ridge = moments.ridge(share);
        let right = outputs(layer, g, moments, ridge);
        let q = seen.ncols();
        // `A^T (C + r I) A` with the columns of `A` what the last layer reads; `A^T right`.
        let covariance = ridged(&moments.own, ridge);
        let mut half = Mat::zeros(layer.len, q);
        matmul(half.as_mut(), Accum::Replace, covariance.as_ref(), seen.as_ref(), 1.0, Par::Seq);
        let mut normal = Mat::zeros(q, q);
        matmul(normal.as_mut(), Accum::Replace, seen.transpose(), half.as_ref(), 1.0, Par::Seq);
        let mut of_outputs = Mat::zeros(q, layer.group_filters());
        matmul(of_outputs.as_mut(), Accum::Replace, seen.transpose(), right.as_ref(), 1.0, Par::Seq);
        // Directions that the others do not tell apart stay finite.
        #[expect(clippy::cast_precision_loss, reason = "a rank")]
        let mean = (0..q).map(|i| normal[(i, i)]).sum::<f64>() / q as f64;
        let normal = ridged(&normal, (1e-10 * mean).max(f64::MIN_POSITIVE.sqrt()));
        let solution = solve(normal, of_outputs).ok_or_else(|| no_convergence(layer))?;
        weight.extend((0..layer.group_filters() * q).map(|i| solution[(i % q, i / q)]));
    }
    Ok(chain.with_last(weight))
}

/// What one filter of the last layer reads, as sums over the layer's window: `[L, channels * taps]`.
fn unfolded(layer: &Layer<'_>, group: usize, before: &Kernel, last: &Kernel) -> Mat<f64> {
    let middle = last.channels / layer.groups;
    let [rows, columns] = layer.kernel();
    let ([own_rows, own_columns], [next_rows, next_columns]) = (before.conv.kernel, last.conv.kernel);
    let own = before.weight.len() / before.conv.out_channels;
    let (taps, next) = (own_rows * own_columns, next_rows * next_columns);
    let mut seen = Mat::zeros(layer.len, middle * next);
    for m in 0..middle {
        let filter = &before.weight[(group * middle + m) * own..][..own];
        for tap in 0..next {
            for (at, value) in filter.iter().enumerate() {
                let (c, tap_before) = (at / taps, at % taps);
                let row = tap_before / own_columns + tap / next_columns;
                let column = tap_before % own_columns + tap % next_columns;
                seen[((c * rows + row) * columns + column, m * next + tap)] = *value;
            }
        }
    }
    seen
}

/// `sum_n E (y_n - y'_n)^2 / sum_n Var y_n` of a group with new weights `[N, L]` and the bias that is best; 0 for outputs that
/// do not change.
pub(crate) fn output_error(layer: &Layer<'_>, group: usize, moments: &Moments, weight: &[f64]) -> [f64; 2] {
    let len = layer.len;
    let right = outputs(layer, group, moments, 0.0);
    let new = Mat::from_fn(len, layer.group_filters(), |i, n| weight[n * len + i]);
    let mut seen = new.clone();
    matmul(seen.as_mut(), Accum::Replace, moments.own.as_ref(), new.as_ref(), 1.0, Par::Seq);
    let mut lost = moments.variance;
    for n in 0..layer.group_filters() {
        let columns = new.col(n).iter().zip(seen.col(n).iter()).zip(right.col(n).iter());
        lost += columns.map(|((w, s), r)| w * (s - 2.0 * r)).sum::<f64>();
    }
    [lost.max(0.0), moments.variance]
}

/// The bias that keeps the means of a group's outputs.
pub(crate) fn bias(layer: &Layer<'_>, group: usize, moments: &Moments, weight: &[f64]) -> Vec<f64> {
    let rows = layer.group_filters();
    let old = layer.group(group).chunks_exact(layer.len);
    let pairs = old.zip(weight.chunks_exact(layer.len)).enumerate();
    pairs
        .map(|(n, (old, new))| {
            let before = layer.bias.map_or(0.0, |bias| f64::from(bias.data()[group * rows + n]));
            let was: f64 = old.iter().zip(&moments.mean).map(|(w, m)| f64::from(*w) * m).sum();
            let is: f64 = new.iter().zip(&moments.mean_now).map(|(w, m)| w * m).sum();
            before + was - is
        })
        .collect()
}
