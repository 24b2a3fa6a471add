//! The closed forms of the force gradient, and how exact they are.
//!
//! # Closed forms
//! With `r_ij = 1 / d_ij^p` (0 for a pair that is skipped) the projection on the tangent plane at `w_i`
//! removes every multiple of `w_i` from the sum over pairs. What is left of L2 needs no pairs at all:
//! `G_i = (s . w_i) W_i - ||W_i|| s` with `s = sum_j w_j`, so every filter turns towards the mean direction.
//! The other forces become one matrix, `G = Q W` with `Q_ij = -||W_i|| r_ij / ||W_j||` and
//! `Q_ii = sum_j r_ij cos_ij`: two products of `N^2 C` multiplications (`C` columns) and nothing else of that
//! size.
//!
//! # Precision
//! Filters under force become parallel, and there both steps cancel. Where products are rounded to `e`,
//! `d^2 = 2 - 2 cos` leaves an error of `e / d` in `d`, and the projection a relative one of `e / d` in `G`.
//! In `f32` that makes `d` wrong by 7 % at an angle of 1e-3 and nonsense below, although filters count as
//! coincident only at 1e-4. Working with differences does not save `f32`: the directions `w_i` are rounded
//! themselves, so the difference of two that are 1e-3 apart is good to 4 digits.
//!
//! In tensors everything is hence computed in `f64` from the exact `f32` weights. At the smallest distance that
//! counts, 1e-4, `d^2` is then good to 1e-7 and the projection to 1e-12, so the result is the pair loop's
//! rounded to `f32`. The price is double precision in two products, `4 N^2 C` operations at half the speed of
//! single precision, several times what the force may cost.
//!
//! On the CPU, [`gradient_into`] keeps to the same error, a few units of `f32` in the norm of `G`, with products
//! in single precision:
//! - Directions are taken from their mean `m`, `u_i = w_i - m` computed in `f64`, and `d_ij^2 = |u_i|^2 +
//!   |u_j|^2 - 2 u_i . u_j`. Filters that are all nearly parallel then lose nothing.
//! - Where there are several clusters they would, within each: pairs whose `d^2` is at most a tenth of `|u_i|^2 +
//!   |u_j|^2` are *near*, and each adds its true difference, in `f64`. Where more than one pair in 50 is near,
//!   the `f64` products are faster than the pairs and take over.
//! - What is left of the sum, `t_i = sum_j r_ij (u_i - u_j)`, is one product of `N^2 C` multiplications; the
//!   projection follows in `f64`.
//!
//! The Gram matrix being symmetric, that is `3 N^2 C` operations in single precision. L2 needs a few passes over
//! the weights, in `f64`.
//!
//! `f64` weights promise more digits, so their distances come from the Gram matrix of two parts: each
//! direction is rounded to a multiple of 2^-26, whose products with each other are multiples of 2^-52 below 2
//! and add without error in any order; the products with the remainder, 2^-27 of the whole, are rounded
//! harmlessly. That costs one product more and makes distances as good as the pair loop's.
//!
//! # Determinism
//! On the CPU the result has the same bits for any number of threads (tested): products, ours and candle's,
//! share out rows and columns, never the summed dimension; row sums are serial, and sums over filters are cut
//! by the extents alone. Another processor may choose
//! other vector instructions and differ in the last bits.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use crate::{Error, Force, Result, Scratch, gradient_into};

/// Norms and distances up to this one count as zero (the authors' `ZERO_THRESHOLD`, an absolute figure).
pub const VANISHING: f64 = 1e-4;

/// Directions are split at this fraction for exact distances.
const SPLIT: f64 = (1u64 << 26) as f64;

/// Elements handled at a time where filters are only read or written once: temporaries of this size stay in
/// cache and in the allocator's hands, where whole ones would be fetched from the system and given back in
/// every call.
pub(crate) const BLOCK: usize = 1 << 16;

/// The force gradient `G` of a weight `[N, ..]`, to be added to the loss gradient times the strength.
///
/// The rows `W_i` are the filters. With `w_i = W_i / ||W_i||`, `d_ij = ||w_i - w_j||` and the exponent `p` of
/// the force
///
/// ```text
/// G_i = ||W_i|| (I - w_i^T w_i) sum_{j != i} (w_i - w_j) / d_ij^p
/// ```
///
/// so that `W - rate * G` brings the filters together (Wen et al. 2017, and the authors' CPU solver). A pair is
/// skipped if one of its norms is at most [`VANISHING`] and, unless `p` is 0, if its distance is. `G_i` is
/// orthogonal to `W_i`. For L2 and L1, `G_i = ||W_i||^2 / 2 * dR / dW_i` with the regulariser `R = sum_ij
/// d_ij^2 / 2` or `R = sum_ij d_ij`.
///
/// The result has the shape and type of the weight and is not part of any graph of gradients. NaN in a weight
/// makes NaN. Forces other than L2 need some ten `N x N` matrices of `f64` as scratch.
///
/// # Errors
/// A weight of less than 2 dimensions, or neither `f32` nor `f64`; a failure of the device.
pub fn gradient(weight: &Tensor, force: Force) -> Result<Tensor> {
    gradient_grouped(weight, 1, force)
}

/// [`gradient`](gradient()) with forces inside each of `groups` equal blocks of filters only, as for the towers of a
/// grouped convolution.
///
/// The authors' code never does this; they train AlexNet with its groups written out as separate layers,
/// which is the same.
///
/// # Errors
/// As [`gradient`](gradient()); also filters that cannot be split into `groups`.
pub fn gradient_grouped(weight: &Tensor, groups: usize, force: Force) -> Result<Tensor> {
    if weight.device().is_cpu() && weight.dtype() == DType::F32 && weight.rank() >= 2 {
        return on_slices(&weight.contiguous()?, groups, force);
    }
    in_tensors(weight, groups, force)
}

/// [`gradient_into`] on the numbers of a contiguous tensor.
fn on_slices(weight: &Tensor, groups: usize, force: Force) -> Result<Tensor> {
    let (storage, layout) = weight.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(numbers)), Some((from, to))) = (&*storage, layout.contiguous_offsets())
    else {
        return in_tensors(weight, groups, force);
    };
    let mut result = vec![0.0; to - from];
    let filters = weight.dim(0)?;
    gradient_into(&numbers[from..to], filters, groups, force, &mut result, &mut Scratch::default()).map_err(
        |error| match error {
            Error::Shape { .. } => Error::Shape { found: weight.shape().clone() },
            other => other,
        },
    )?;
    Ok(Tensor::from_vec(result, weight.shape(), weight.device())?)
}

/// The sum over pairs of one group of `f32` filters, all of it in double precision.
pub(crate) fn in_double(weight: &[f32], filters: usize, force: Force, result: &mut [f32]) -> Result<()> {
    let weight = Tensor::from_slice(weight, (filters, weight.len() / filters), &Device::Cpu)?;
    let gradient = in_tensors(&weight, 1, force)?.flatten_all()?.to_vec1::<f32>()?;
    result.copy_from_slice(&gradient);
    Ok(())
}

/// [`gradient_grouped`] in candle's operations, for every device and type.
pub(crate) fn in_tensors(weight: &Tensor, groups: usize, force: Force) -> Result<Tensor> {
    let filters = Filters::new(weight, groups)?;
    let gradient = match force {
        Force::L2 => filters.towards_mean()?,
        Force::L1 | Force::Linear | Force::Gravity => filters.towards_each_other(force)?,
    };
    Ok(gradient.reshape(weight.shape())?)
}

/// The filters of each group and, in `f64`, their norms. A norm up to [`VANISHING`] and its inverse are 0, so
/// that neither what is scaled by the one nor what is scaled by the other takes part.
struct Filters {
    /// `[groups, N / groups, columns]`, as given.
    weight: Tensor,
    /// `[groups, N / groups, 1]`.
    norm: Tensor,
    /// `[groups, N / groups, 1]`.
    inverse: Tensor,
}

impl Filters {
    fn new(weight: &Tensor, groups: usize) -> Result<Filters> {
        let dtype = weight.dtype();
        if !matches!(dtype, DType::F32 | DType::F64) {
            return Err(Error::DType { weight: dtype, gradient: dtype });
        }
        if weight.rank() < 2 || weight.elem_count() == 0 {
            return Err(Error::Shape { found: weight.shape().clone() });
        }
        let filters = weight.dim(0)?;
        if groups == 0 || !filters.is_multiple_of(groups) {
            return Err(Error::Groups { filters, groups });
        }
        let weight = weight.detach().reshape((groups, filters / groups, weight.elem_count() / filters))?;
        let mut squares = Vec::new();
        for (from, len) in blocks(&weight) {
            squares.push(weight.narrow(1, from, len)?.to_dtype(DType::F64)?.sqr()?.sum_keepdim(2)?);
        }
        let norm = Tensor::cat(&squares, 1)?.sqrt()?;
        let vanishing = norm.le(VANISHING)?;
        let zero = norm.zeros_like()?;
        let inverse = vanishing.where_cond(&zero, &norm.recip()?)?;
        let norm = vanishing.where_cond(&zero, &norm)?;
        Ok(Filters { weight, norm, inverse })
    }

    /// `G` of the L2 force.
    fn towards_mean(&self) -> Result<Tensor> {
        let part =
            |tensor: &Tensor, from, len| tensor.narrow(1, from, len)?.to_dtype(DType::F64)?.contiguous();
        let mut sum =
            Tensor::zeros((self.weight.dim(0)?, 1, self.weight.dim(2)?), DType::F64, self.weight.device())?;
        for (from, len) in blocks(&self.weight) {
            let inverse = part(&self.inverse, from, len)?;
            sum = (sum + inverse.t()?.matmul(&part(&self.weight, from, len)?)?)?;
        }
        let mut result = Vec::new();
        for (from, len) in blocks(&self.weight) {
            let rows = part(&self.weight, from, len)?;
            let along = (rows.matmul(&sum.t()?)? * part(&self.inverse, from, len)?)?;
            let mean = sum.broadcast_mul(&part(&self.norm, from, len)?)?;
            result.push((rows.broadcast_mul(&along)? - mean)?.to_dtype(self.weight.dtype())?);
        }
        Ok(Tensor::cat(&result, 1)?)
    }

    /// `G` of the other forces: `Q W`.
    fn towards_each_other(&self, force: Force) -> Result<Tensor> {
        let rows = self.weight.to_dtype(DType::F64)?;
        let squared = if self.weight.dtype() == DType::F64 {
            exact_squared_distances(&rows.broadcast_mul(&self.inverse)?)?
        } else {
            let cosine =
                rows.matmul(&rows.t()?)?.broadcast_mul(&self.inverse)?.broadcast_mul(&self.inverse.t()?)?;
            cosine.affine(-2.0, 2.0)?
        };
        // A pair with a vanishing filter gets distance 0, which is skipped like that of coincident ones.
        let present = self.inverse.gt(0.0)?.to_dtype(DType::F64)?;
        let squared = squared.broadcast_mul(&present)?.broadcast_mul(&present.t()?)?;
        let power = match force {
            Force::L2 => squared.ones_like()?,
            Force::L1 => squared.sqrt()?,
            Force::Linear => squared.clone(),
            Force::Gravity => (&squared * squared.sqrt()?)?,
        };
        let skipped = squared.le(VANISHING * VANISHING)?;
        let pull = skipped.where_cond(&squared.zeros_like()?, &power.recip()?)?;
        let cosine = squared.affine(-0.5, 1.0)?;
        let radial = (&pull * cosine)?.sum_keepdim(2)?;
        let diagonal = Tensor::eye(rows.dim(1)?, DType::F64, rows.device())?.broadcast_mul(&radial)?;
        let mixing = (diagonal - pull.broadcast_mul(&self.norm)?.broadcast_mul(&self.inverse.t()?)?)?;
        Ok(mixing.matmul(&rows)?.to_dtype(self.weight.dtype())?)
    }
}

/// First filter and number of filters of each block of [`BLOCK`] elements of a `[groups, N, columns]` tensor.
fn blocks(weight: &Tensor) -> impl Iterator<Item = (usize, usize)> + use<> {
    let count = weight.dims()[1];
    let step = (BLOCK * count / weight.elem_count()).max(1);
    (0..count).step_by(step).map(move |from| (from, step.min(count - from)))
}

/// `d_ij^2` of directions `[groups, N, columns]` from the Gram matrices of their two parts.
fn exact_squared_distances(unit: &Tensor) -> Result<Tensor> {
    let coarse = ((unit * SPLIT)?.round()? / SPLIT)?;
    let fine = (unit - &coarse)?;
    // `u_i . u_j = coarse_i . coarse_j + (fine_i . other_j + other_i . fine_j) / 2`
    let other = (&coarse + unit)?;
    let half = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        let square = (a * b)?.sum_keepdim(2)?;
        Ok(square.broadcast_sub(&a.matmul(&b.t()?)?)?)
    };
    let (coarse, fine) = (half(&coarse, &coarse)?, half(&fine, &other)?);
    Ok(((&coarse + coarse.t()?)? + (&fine + fine.t()?)?)?)
}
