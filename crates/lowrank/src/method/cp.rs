//! Canonical polyadic decomposition by alternating least squares.

use super::matrix::{factors, turn};
use crate::algebra::solve;
use crate::factor::Scale;
use crate::layer::Layer;
use crate::{Error, Method, Result};
use faer::Mat;

/// A round that lowers the relative squared error by less than this is the last.
const GAIN: f64 = 1e-7;
const ROUNDS: usize = 300;
/// Added to the diagonal of the normal equations, relative to its mean: terms that become alike would make them singular.
const RIDGE: f64 = 1e-10;
/// Squared norms of the terms over that of the weight above which they mostly cancel each other.
const UNSTABLE: f64 = 4.0;

/// Extents of `[N, C, h, w]`, each with its matrix `[extent, rank]`.
struct Terms {
    rank: usize,
    factors: [Vec<f64>; 4],
}

/// The weights of a group's four new layers at this rank, and a word if they are unstable.
pub(super) fn weights(
    layer: &Layer<'_>,
    weight: &[f64],
    rank: usize,
) -> Result<(Vec<Vec<f64>>, Option<String>)> {
    let [rows, columns] = layer.kernel();
    let extents = [layer.group_filters(), layer.group_channels(), rows, columns];
    let mut terms = Terms::start(layer, weight, extents, rank)?;
    terms.fit(layer, weight, extents)?;
    let sum = terms.cancellation(weight);
    let warning = (sum > UNSTABLE).then(|| {
        format!("the decomposition is unstable: its terms have {sum:.0} times the squared norm of the weight")
    });
    terms.balance();
    let [filters, channels, v, h] = terms.factors;
    let by_term = |from: &[f64]| turn(from, from.len() / rank, rank);
    Ok((vec![by_term(&channels), by_term(&v), by_term(&h), filters], warning))
}

impl Terms {
    /// Singular vectors of the channel sides where there are enough of them, numbers from a fixed seed elsewhere.
    fn start(layer: &Layer<'_>, weight: &[f64], extents: [usize; 4], rank: usize) -> Result<Self> {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        #[expect(clippy::cast_precision_loss, reason = "53 bits")]
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        let mut of_extent = extents.map(|extent| (0..extent * rank).map(|_| draw()).collect::<Vec<_>>());
        let sides = [(0, Method::Pca), (1, Method::Channel)];
        for (side, method) in sides {
            let decomposed = factors(layer, weight, method, true)?;
            let known = rank.min(decomposed.squares.len());
            let vectors = match method {
                Method::Pca => decomposed.split(known, Scale::Basis).combination,
                _ => {
                    let basis = decomposed.split(known, Scale::Combination).basis;
                    let extent = extents[side];
                    (0..extent * known).map(|i| basis[i % known * extent + i / known]).collect()
                }
            };
            for (row, vector) in of_extent[side].chunks_exact_mut(rank).zip(vectors.chunks_exact(known)) {
                row[..known].copy_from_slice(vector);
            }
        }
        Ok(Self { rank, factors: of_extent })
    }

    fn fit(&mut self, layer: &Layer<'_>, weight: &[f64], extents: [usize; 4]) -> Result<()> {
        let whole: f64 = weight.iter().map(|w| w * w).sum();
        if whole <= 0.0 {
            self.factors.iter_mut().flatten().for_each(|v| *v = 0.0);
            return Ok(());
        }
        let mut before = f64::INFINITY;
        for _ in 0..ROUNDS {
            let mut lost = 0.0;
            for side in 0..4 {
                lost = self.solve(layer, weight, extents, side, whole)?;
            }
            if before - lost < GAIN * whole {
                break;
            }
            before = lost;
        }
        Ok(())
    }

    /// Least squares for the matrix of one side; returns the squared error.
    fn solve(
        &mut self,
        layer: &Layer<'_>,
        weight: &[f64],
        extents: [usize; 4],
        side: usize,
        whole: f64,
    ) -> Result<f64> {
        let rank = self.rank;
        let mut gram = Mat::<f64>::full(rank, rank, 1.0);
        for (other, factor) in self.factors.iter().enumerate().filter(|(other, _)| *other != side) {
            let rows = extents[other];
            for a in 0..rank {
                for b in 0..rank {
                    gram[(a, b)] *=
                        (0..rows).map(|i| factor[i * rank + a] * factor[i * rank + b]).sum::<f64>();
                }
            }
        }
        let right = self.right(weight, extents, side);
        let mut ridged = gram.clone();
        #[expect(clippy::cast_precision_loss, reason = "a rank")]
        let mean = (0..rank).map(|a| gram[(a, a)]).sum::<f64>() / rank as f64;
        (0..rank).for_each(|a| ridged[(a, a)] += RIDGE * mean.max(f64::MIN_POSITIVE));
        let solution =
            solve(ridged, right.clone()).ok_or_else(|| Error::NoConvergence { layer: layer.name.into() })?;
        let extent = extents[side];
        let factor = &mut self.factors[side];
        for i in 0..extent {
            for a in 0..rank {
                factor[i * rank + a] = solution[(a, i)];
            }
        }
        // |W|^2 - 2 <W, terms> + |terms|^2.
        let mut lost = whole;
        for i in 0..extent {
            for a in 0..rank {
                let along: f64 = (0..rank).map(|b| gram[(a, b)] * solution[(b, i)]).sum();
                lost += solution[(a, i)] * (along - 2.0 * right[(a, i)]);
            }
        }
        Ok(lost.max(0.0))
    }

    /// `[rank, extent]`: the weight times the matrices of the other sides.
    fn right(&self, weight: &[f64], extents: [usize; 4], side: usize) -> Mat<f64> {
        let rank = self.rank;
        let mut sums = Mat::zeros(rank, extents[side]);
        let [_, channels, rows, columns] = extents;
        let mut product = vec![0.0; rank];
        for (at, w) in weight.iter().enumerate() {
            let index = [
                at / (channels * rows * columns),
                at / (rows * columns) % channels,
                at / columns % rows,
                at % columns,
            ];
            product.fill(*w);
            for (other, factor) in self.factors.iter().enumerate().filter(|(other, _)| *other != side) {
                let row = &factor[index[other] * rank..][..rank];
                product.iter_mut().zip(row).for_each(|(p, f)| *p *= f);
            }
            sums.col_mut(index[side]).iter_mut().zip(&product).for_each(|(s, p)| *s += p);
        }
        sums
    }

    /// Squared norms of the terms, over that of the weight.
    fn cancellation(&self, weight: &[f64]) -> f64 {
        let whole: f64 = weight.iter().map(|w| w * w).sum();
        let norm =
            |factor: &[f64], a: usize| factor.iter().skip(a).step_by(self.rank).map(|v| v * v).sum::<f64>();
        let terms = (0..self.rank).map(|a| self.factors.iter().map(|f| norm(f, a)).product::<f64>());
        if whole > 0.0 { terms.sum::<f64>() / whole } else { 0.0 }
    }

    /// Gives all four vectors of a term the same length, which training likes.
    fn balance(&mut self) {
        for a in 0..self.rank {
            let norms: Vec<f64> = self
                .factors
                .iter()
                .map(|f| f.iter().skip(a).step_by(self.rank).map(|v| v * v).sum::<f64>().sqrt())
                .collect();
            let length = norms.iter().product::<f64>().powf(0.25);
            for (factor, norm) in self.factors.iter_mut().zip(norms) {
                let by = if norm > 0.0 { length / norm } else { 0.0 };
                factor.iter_mut().skip(a).step_by(self.rank).for_each(|v| *v *= by);
            }
        }
    }
}
