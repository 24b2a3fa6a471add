use crate::Par;
use crate::elementwise::rectify;
use crate::pieces::{for_each_piece, for_each_piece_pair, wide_sum};

/// A batch of maps `[batch, channels, plane]`, row-major; `plane` is height times width (1 for vectors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneShape {
    /// Images.
    pub batch: usize,
    /// Maps of an image.
    pub channels: usize,
    /// Elements of a map.
    pub plane: usize,
}

impl PlaneShape {
    /// Elements of the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.plane
    }

    /// Whether the batch has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements a channel has over the batch.
    fn count(&self) -> usize {
        self.batch * self.plane
    }

    /// The maps of channel `c`, one an image.
    fn planes<'a>(&self, src: &'a [f32], c: usize) -> impl Iterator<Item = &'a [f32]> {
        let map = c * self.plane..(c + 1) * self.plane;
        src.chunks_exact(self.channels * self.plane).map(move |image| &image[map.clone()])
    }

    fn check(&self, what: &str, maps: &[&[f32]], channels: &[&[f32]]) {
        assert!(!self.is_empty(), "{what}: empty batch {self:?}");
        for map in maps {
            assert_eq!(map.len(), self.len(), "{what}: maps of {self:?}");
        }
        for channel in channels {
            assert_eq!(channel.len(), self.channels, "{what}: channels of {self:?}");
        }
    }
}

/// Mean and biased variance (divided by `batch * plane`) of every channel; `mean` and `var` are `[channels]`.
///
/// # Panics
///
/// If a slice has another length than the shape says or the batch is empty.
pub fn batch_norm_statistics(shape: &PlaneShape, src: &[f32], mean: &mut [f32], var: &mut [f32], par: Par) {
    shape.check("batch_norm_statistics", &[src], &[mean, var]);
    for_each_piece_pair(par, (mean, 1), (var, 1), 2 * shape.count(), |c, mean, var| {
        let count = shape.count() as f64;
        let total: f64 = shape.planes(src, c).map(|x| wide_sum(x, x, |x, _| x)).sum();
        mean[0] = (total / count) as f32;
        // Around the rounded mean, then corrected for the rounding.
        let centre = mean[0];
        let squares: f64 =
            shape.planes(src, c).map(|x| wide_sum(x, x, |x, _| (x - centre) * (x - centre))).sum();
        let shift = total / count - f64::from(centre);
        var[0] = (squares / count - shift * shift).max(0.0) as f32;
    });
}

/// `dst = gamma * (src - mean) / sqrt(var + eps) + beta` by channel, then `max(., 0)` if `relu`.
///
/// # Panics
///
/// If a slice has another length than the shape says or the batch is empty.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn batch_norm(
    shape: &PlaneShape,
    src: &[f32],
    mean: &[f32],
    var: &[f32],
    eps: f32,
    gamma: &[f32],
    beta: &[f32],
    relu: bool,
    dst: &mut [f32],
    par: Par,
) {
    shape.check("batch_norm", &[src, dst], &[mean, var, gamma, beta]);
    for_each_piece(par, dst, shape.plane, shape.plane, |i, dst| {
        let c = i % shape.channels;
        let (mean, shift) = (mean[c], beta[c]);
        let scale = gamma[c] / (var[c] + eps).sqrt();
        for (d, &s) in dst.iter_mut().zip(&src[i * shape.plane..]) {
            let y = (s - mean) * scale + shift;
            *d = if relu { rectify(y) } else { y };
        }
    });
}

/// Gradient of [`batch_norm`] without `relu` where `mean` and `var` are the batch's own ([`batch_norm_statistics`]): it
/// passes through them too. With `n = batch * plane` and `x^ = (src - mean) / sqrt(var + eps)`:
///
/// ```text
/// grad_beta  = sum grad_dst
/// grad_gamma = sum grad_dst * x^
/// grad_src   = gamma / sqrt(var + eps) * (grad_dst - grad_beta / n - x^ * grad_gamma / n)
/// ```
///
/// Overwrites all three.
///
/// # Panics
///
/// If a slice has another length than the shape says or the batch is empty.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn batch_norm_backward(
    shape: &PlaneShape,
    src: &[f32],
    mean: &[f32],
    var: &[f32],
    eps: f32,
    gamma: &[f32],
    grad_dst: &[f32],
    grad_src: &mut [f32],
    grad_gamma: &mut [f32],
    grad_beta: &mut [f32],
    par: Par,
) {
    shape.check(
        "batch_norm_backward",
        &[src, grad_dst, grad_src],
        &[mean, var, gamma, grad_gamma, grad_beta],
    );
    for_each_piece_pair(
        par,
        (grad_gamma, 1),
        (grad_beta, 1),
        2 * shape.count(),
        |c, grad_gamma, grad_beta| {
            let (mut products, mut plain) = (0.0, 0.0);
            for (src, grad) in shape.planes(src, c).zip(shape.planes(grad_dst, c)) {
                products += wide_sum(src, grad, |x, g| g * (x - mean[c]));
                plain += wide_sum(grad, grad, |g, _| g);
            }
            grad_gamma[0] = (products / f64::from(var[c] + eps).sqrt()) as f32;
            grad_beta[0] = plain as f32;
        },
    );
    let count = shape.count() as f32;
    for_each_piece(par, grad_src, shape.plane, 2 * shape.plane, |i, grad_src| {
        let c = i % shape.channels;
        let inverse = 1.0 / (var[c] + eps).sqrt();
        let scale = gamma[c] * inverse;
        let (shift, slope) = (grad_beta[c] / count, grad_gamma[c] / count * inverse);
        let at = i * shape.plane;
        for ((d, &s), &g) in grad_src.iter_mut().zip(&src[at..]).zip(&grad_dst[at..]) {
            *d = scale * (g - shift - (s - mean[c]) * slope);
        }
    });
}
