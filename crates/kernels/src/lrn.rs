mod region;

use crate::Par;
use crate::pieces::for_each_piece;
use region::{Region, Sums};

/// A batch of maps to normalise. `src` and `dst` are `[batch, channels, size]`, row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrnShape {
    /// Images.
    pub batch: usize,
    /// Maps of an image.
    pub channels: usize,
    /// `[height, width]` of a map.
    pub size: [usize; 2],
    /// Extent of the neighbourhood, odd.
    pub local_size: usize,
    /// Weight of the squares.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Constant term.
    pub k: f32,
}

impl LrnShape {
    /// Elements of `src` and of `dst`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.plane()
    }

    /// Whether there is nothing to normalise.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn plane(&self) -> usize {
        self.size[0] * self.size[1]
    }

    fn check(&self, what: &str, maps: &[&[f32]]) {
        assert!(self.local_size % 2 == 1, "{what}: the neighbourhood {} is even", self.local_size);
        for map in maps {
            assert_eq!(map.len(), self.len(), "{what}: maps of {self:?}");
        }
    }
}

/// `dst = src / (k + alpha / local_size * sum of src^2 over the local_size channels around it)^beta`; there is nothing
/// beyond the first and the last channel.
///
/// # Panics
///
/// If a slice has another length than the shape says or `local_size` is even.
pub fn lrn_across(shape: &LrnShape, src: &[f32], dst: &mut [f32], par: Par) {
    shape.check("lrn_across", &[src, dst]);
    forward(shape, Region::AcrossChannels, src, dst, par);
}

/// Gradient of [`lrn_across`]. With `s` the term in brackets and `n` the size,
/// `grad_src = grad_dst * s^-beta - 2 alpha beta / n * src * sum of (grad_dst * src * s^(-beta - 1))` over the same
/// channels. Overwrites `grad_src`.
///
/// # Panics
///
/// If a slice has another length than the shape says or `local_size` is even.
pub fn lrn_across_backward(shape: &LrnShape, src: &[f32], grad_dst: &[f32], grad_src: &mut [f32], par: Par) {
    shape.check("lrn_across_backward", &[src, grad_dst, grad_src]);
    backward(shape, Region::AcrossChannels, src, grad_dst, grad_src, par);
}

/// `dst = src / (k + alpha / local_size^2 * sum of src^2 over the local_size x local_size window around it)^beta`, zeros
/// outside the map.
///
/// # Panics
///
/// If a slice has another length than the shape says or `local_size` is even.
pub fn lrn_within(shape: &LrnShape, src: &[f32], dst: &mut [f32], par: Par) {
    shape.check("lrn_within", &[src, dst]);
    forward(shape, Region::WithinChannel, src, dst, par);
}

/// Gradient of [`lrn_within`]: that of [`lrn_across`] with the window in place of the channels and its area in place of
/// `n`. Overwrites `grad_src`.
///
/// # Panics
///
/// If a slice has another length than the shape says or `local_size` is even.
pub fn lrn_within_backward(shape: &LrnShape, src: &[f32], grad_dst: &[f32], grad_src: &mut [f32], par: Par) {
    shape.check("lrn_within_backward", &[src, grad_dst, grad_src]);
    backward(shape, Region::WithinChannel, src, grad_dst, grad_src, par);
}

fn forward(shape: &LrnShape, region: Region, src: &[f32], dst: &mut [f32], par: Par) {
    if shape.is_empty() {
        return;
    }
    match Exponent::of(shape.beta) {
        Exponent::ThreeQuarters => forward_with(shape, region, src, dst, par, three_quarters),
        Exponent::Half => forward_with(shape, region, src, dst, par, half),
        Exponent::Other(beta) => forward_with(shape, region, src, dst, par, |v| v.powf(-beta)),
    }
}

fn backward(shape: &LrnShape, region: Region, src: &[f32], grad_dst: &[f32], grad_src: &mut [f32], par: Par) {
    if shape.is_empty() {
        return;
    }
    match Exponent::of(shape.beta) {
        Exponent::ThreeQuarters => backward_with(shape, region, src, grad_dst, grad_src, par, three_quarters),
        Exponent::Half => backward_with(shape, region, src, grad_dst, grad_src, par, half),
        Exponent::Other(beta) => {
            backward_with(shape, region, src, grad_dst, grad_src, par, |v| v.powf(-beta))
        }
    }
}

/// The exponents that networks use need roots alone, which are vector instructions; a general power is a call an element.
enum Exponent {
    ThreeQuarters,
    Half,
    Other(f32),
}

impl Exponent {
    fn of(beta: f32) -> Self {
        match beta {
            0.75 => Self::ThreeQuarters,
            0.5 => Self::Half,
            _ => Self::Other(beta),
        }
    }
}

#[inline(always)]
fn three_quarters(v: f32) -> f32 {
    let root = v.sqrt();
    1.0 / (root * root.sqrt())
}

#[inline(always)]
fn half(v: f32) -> f32 {
    1.0 / v.sqrt()
}

fn forward_with(
    shape: &LrnShape,
    region: Region,
    src: &[f32],
    dst: &mut [f32],
    par: Par,
    power: impl Fn(f32) -> f32 + Sync,
) {
    let (plane, block) = (shape.plane(), region.block(shape));
    let weight = region.weight(shape);
    for_each_piece(par, dst, plane, region.cost(shape) * plane, |i, dst| {
        let first = i * plane % block;
        let src = &src[i * plane - first..][..block];
        let mut sums = Sums::new(shape, region);
        region.for_each_tile(shape, first, dst, |at, dst| {
            let sums = sums.around(src, at, dst.len(), |x| x * x);
            for ((d, &x), sum) in dst.iter_mut().zip(&src[at..]).zip(sums) {
                *d = x * power(shape.k + weight * sum);
            }
        });
    });
}

fn backward_with(
    shape: &LrnShape,
    region: Region,
    src: &[f32],
    grad_dst: &[f32],
    grad_src: &mut [f32],
    par: Par,
    power: impl Fn(f32) -> f32 + Sync,
) {
    let block = region.block(shape);
    let (weight, factor) = (region.weight(shape), 2.0 * shape.beta * region.weight(shape));
    for_each_piece(par, grad_src, block, 2 * region.cost(shape) * block, |i, grad_src| {
        let (src, grad_dst) = (&src[i * block..][..block], &grad_dst[i * block..][..block]);
        // First grad_dst * s^-beta, and what it contributes to the neighbours: grad_dst * src * s^(-beta - 1).
        let mut shares = vec![0.0; block];
        let mut sums = Sums::new(shape, region);
        region.for_each_tile(shape, 0, &mut shares, |at, shares| {
            let sums = sums.around(src, at, shares.len(), |x| x * x);
            let operands = src[at..].iter().zip(&grad_dst[at..]);
            for (((share, g), (x, d)), sum) in
                shares.iter_mut().zip(&mut grad_src[at..]).zip(operands).zip(sums)
            {
                let scale = shape.k + weight * sum;
                *g = d * power(scale);
                *share = *g * x / scale;
            }
        });
        region.for_each_tile(shape, 0, grad_src, |at, grad_src| {
            let sums = sums.around(&shares, at, grad_src.len(), |x| x);
            for ((g, x), sum) in grad_src.iter_mut().zip(&src[at..]).zip(sums) {
                *g -= factor * x * sum;
            }
        });
    });
}
