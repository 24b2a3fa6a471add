use crate::{Error, Method, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::{matmul, triangular};
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{Accum, Mat, MatRef, Par};
use std::cmp::Ordering;

/// Largest `rows * cols * min(rows, cols)` that is decomposed directly; above it the eigenvectors of the Gram matrix are
/// several times cheaper (AlexNet's fc6, 4096 x 9216, takes half a minute on one thread that way).
///
/// The eigenvalues of a Gram matrix in `f64` are right to about `1e-16` of the largest, so singular values below
/// `1e-8` of the largest are noise in that form. Weights are `f32` numbers, known to `6e-8` of their size: the direct
/// form resolves nothing there that the weights mean, and every rank rule squares the values anyway.
const DIRECT_LIMIT: usize = 4_000_000_000;

/// Singular values of a weight matrix `W` of `rows` filters, and the vectors that were asked for.
#[derive(Debug)]
pub(crate) struct Factors {
    /// `X = W^T`, `[len, rows]`: a filter is a column, contiguous.
    filters: Mat<f64>,
    /// Squares of the singular values, falling, `min(rows, len)` of them.
    pub(crate) squares: Vec<f64>,
    vectors: Vectors,
}

#[derive(Debug)]
enum Vectors {
    None,
    /// `V` `[rows, k]` and `U` `[len, k]` with `X = U S V^T`.
    Both {
        left: Mat<f64>,
        right: Mat<f64>,
    },
    /// `V` only; `U S = X V`.
    Left(Mat<f64>),
    /// `U` only; `V S = X^T U`.
    Right(Mat<f64>),
}

/// A pair of rank `m` for `rows` filters of `len` weights, row-major: `W ~ combination * basis`.
#[derive(Debug)]
pub(crate) struct Pair {
    /// `[m, len]`.
    pub(crate) basis: Vec<f32>,
    /// `[rows, m]`.
    pub(crate) combination: Vec<f32>,
}

impl Pair {
    /// `combination * basis`, `[rows, len]` row-major, computed in `f64`.
    pub(crate) fn product(&self, rows: usize, len: usize) -> Vec<f32> {
        let product = self.dense(rows, len);
        (0..rows * len).map(|i| single(product[(i % len, i / len)])).collect()
    }

    /// `||W - combination * basis||_F / ||W||_F` for `weight` `W` `[rows, len]`; 0 for a matrix of zeros.
    pub(crate) fn relative_error(&self, weight: &[f32], len: usize) -> f64 {
        let rows = weight.len() / len;
        let product = self.dense(rows, len);
        let (mut lost, mut whole) = (0.0, 0.0);
        for (i, w) in weight.iter().map(|w| f64::from(*w)).enumerate() {
            lost += (w - product[(i % len, i / len)]).powi(2);
            whole += w * w;
        }
        if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 }
    }

    /// The product, `[len, rows]`.
    fn dense(&self, rows: usize, len: usize) -> Mat<f64> {
        let rank = self.basis.len() / len;
        let basis = Mat::from_fn(len, rank, |position, m| f64::from(self.basis[m * len + position]));
        let combination = Mat::from_fn(rank, rows, |m, row| f64::from(self.combination[row * rank + m]));
        let mut product = Mat::zeros(len, rows);
        matmul(product.as_mut(), Accum::Replace, basis.as_ref(), combination.as_ref(), 1.0, Par::Seq);
        product
    }
}

impl Factors {
    /// Decomposes `weight` `[rows, len]`, row-major and finite; with `vectors` so that [`Factors::pair`] can be called.
    pub(crate) fn new(layer: &str, weight: &[f32], rows: usize, len: usize, vectors: bool) -> Result<Self> {
        let small = rows.min(len);
        let direct = rows.saturating_mul(len).saturating_mul(small) <= DIRECT_LIMIT;
        Self::with_form(weight, rows, len, vectors, direct)
            .ok_or_else(|| Error::NoConvergence { layer: layer.into() })
    }

    fn with_form(weight: &[f32], rows: usize, len: usize, vectors: bool, direct: bool) -> Option<Self> {
        let filters = Mat::from_fn(len, rows, |position, row| f64::from(weight[row * len + position]));
        let (squares, vectors) = if direct {
            direct_form(filters.as_ref(), vectors)?
        } else {
            gram_form(filters.as_ref(), vectors)?
        };
        Some(Self { filters, squares, vectors })
    }

    /// The best approximation of this rank as two factors.
    ///
    /// Each basis vector gets the sign that makes the largest entry of its combination column positive, so that the
    /// factors do not hang on a choice of the solver.
    pub(crate) fn pair(&self, rank: usize, method: Method) -> Pair {
        let (len, rows) = (self.filters.nrows(), self.filters.ncols());
        let (left, right, sigma) = self.columns(rank);
        let mut basis = vec![0.0; rank * len];
        let mut combination = vec![0.0; rows * rank];
        for (m, sigma) in sigma.into_iter().enumerate() {
            let sign = sign_of_largest((0..rows).map(|row| left[(row, m)]));
            let (for_basis, for_combination) = match method {
                Method::Pca => (sign * sigma, sign),
                Method::Svd => (sign * sigma.sqrt(), sign * sigma.sqrt()),
            };
            for position in 0..len {
                basis[m * len + position] = single(right[(position, m)] * for_basis);
            }
            for row in 0..rows {
                combination[row * rank + m] = single(left[(row, m)] * for_combination);
            }
        }
        Pair { basis, combination }
    }

    /// First columns of `V` and `U`, and the singular values that go with them.
    ///
    /// Where one side is computed from the other, the value is the length of the computed column, so that the product
    /// of the three is the projection to the last bit even where the value itself is noise.
    fn columns(&self, rank: usize) -> (Mat<f64>, Mat<f64>, Vec<f64>) {
        let x = self.filters.as_ref();
        match &self.vectors {
            Vectors::Both { left, right } => {
                let sigma = self.squares[..rank].iter().map(|s| s.sqrt()).collect();
                (left.subcols(0, rank).to_owned(), right.subcols(0, rank).to_owned(), sigma)
            }
            Vectors::Left(left) => {
                let left = left.subcols(0, rank).to_owned();
                let mut right = Mat::zeros(x.nrows(), rank);
                matmul(right.as_mut(), Accum::Replace, x, left.as_ref(), 1.0, Par::Seq);
                let sigma = normalise_columns(&mut right);
                (left, right, sigma)
            }
            Vectors::Right(right) => {
                let right = right.subcols(0, rank).to_owned();
                let mut left = Mat::zeros(x.ncols(), rank);
                matmul(left.as_mut(), Accum::Replace, x.transpose(), right.as_ref(), 1.0, Par::Seq);
                let sigma = normalise_columns(&mut left);
                (left, right, sigma)
            }
            Vectors::None => unreachable!("factors are asked of a decomposition with vectors only"),
        }
    }
}

fn direct_form(x: MatRef<'_, f64>, vectors: bool) -> Option<(Vec<f64>, Vectors)> {
    let (len, rows) = (x.nrows(), x.ncols());
    let small = len.min(rows);
    let compute = if vectors { ComputeSvdVectors::Thin } else { ComputeSvdVectors::No };
    let mut sigma = Diag::<f64>::zeros(small);
    let columns = if vectors { small } else { 0 };
    let (mut right, mut left) = (Mat::<f64>::zeros(len, columns), Mat::<f64>::zeros(rows, columns));
    let scratch = svd::svd_scratch::<f64>(len, rows, compute, compute, Par::Seq, Default::default());
    svd::svd(
        x,
        sigma.as_mut(),
        vectors.then(|| right.as_mut()),
        vectors.then(|| left.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let squares = sigma.column_vector().iter().map(|s| s * s).collect();
    Some((squares, if vectors { Vectors::Both { left, right } } else { Vectors::None }))
}

fn gram_form(x: MatRef<'_, f64>, vectors: bool) -> Option<(Vec<f64>, Vectors)> {
    // The smaller of X^T X and X X^T.
    let of_filters = x.ncols() <= x.nrows();
    let x = if of_filters { x } else { x.transpose() };
    let size = x.ncols();
    let mut gram = Mat::zeros(size, size);
    triangular::matmul(
        gram.as_mut(),
        triangular::BlockStructure::TriangularLower,
        Accum::Replace,
        x.transpose(),
        triangular::BlockStructure::Rectangular,
        x,
        triangular::BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    let compute = if vectors { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
    let columns = if vectors { size } else { 0 };
    let (mut values, mut basis) = (Diag::<f64>::zeros(size), Mat::<f64>::zeros(columns, columns));
    let scratch = evd::self_adjoint_evd_scratch::<f64>(size, compute, Par::Seq, Default::default());
    evd::self_adjoint_evd(
        gram.as_ref(),
        values.as_mut(),
        vectors.then(|| basis.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    // Eigenvalues come rising; rounding can make a zero slightly negative.
    let squares = values.column_vector().iter().rev().map(|v| v.max(0.0)).collect();
    let falling = basis.as_ref().reverse_cols().to_owned();
    let vectors = match (vectors, of_filters) {
        (false, _) => Vectors::None,
        (true, true) => Vectors::Left(falling),
        (true, false) => Vectors::Right(falling),
    };
    Some((squares, vectors))
}

/// Scales every column to length 1 and returns the lengths; a column of zeros stays.
fn normalise_columns(matrix: &mut Mat<f64>) -> Vec<f64> {
    (0..matrix.ncols())
        .map(|m| {
            let length = matrix.col(m).iter().map(|v| v * v).sum::<f64>().sqrt();
            if length > 0.0 {
                matrix.col_mut(m).iter_mut().for_each(|v| *v /= length);
            }
            length
        })
        .collect()
}

/// Sign of the entry of largest magnitude, the first of equals.
fn sign_of_largest(column: impl Iterator<Item = f64>) -> f64 {
    let larger =
        |a: f64, b: f64| if b.abs().partial_cmp(&a.abs()) == Some(Ordering::Greater) { b } else { a };
    if column.fold(0.0, larger) < 0.0 { -1.0 } else { 1.0 }
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(rows: usize, len: usize) -> Vec<f32> {
        let mut state = 7u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1u32 << 23) - 1.0
        };
        let noise: Vec<f64> = (0..rows * len).map(next).collect();
        // Rows that resemble each other more and more, so that the spectrum falls.
        (0..rows * len).map(|i| (noise[i % len] + noise[i] / (1.0 + (i / len) as f64)) as f32).collect()
    }

    #[test]
    fn both_forms_agree_for_tall_and_wide_matrices() {
        for (rows, len) in [(12, 40), (40, 12), (9, 9), (1, 5), (5, 1)] {
            let w = weight(rows, len);
            let direct = Factors::with_form(&w, rows, len, true, true).unwrap();
            let gram = Factors::with_form(&w, rows, len, true, false).unwrap();
            assert_eq!(direct.squares.len(), rows.min(len));
            assert_eq!(gram.squares.len(), rows.min(len));
            let bare = Factors::with_form(&w, rows, len, false, false).unwrap();
            for i in 0..rows.min(len) {
                for other in [&gram, &bare] {
                    let off = (direct.squares[i] - other.squares[i]).abs() / direct.squares[0];
                    assert!(off < 1e-13, "{rows}x{len}, value {i}: {off}");
                }
            }
            for rank in [1, rows.min(len).div_ceil(2), rows.min(len)] {
                for method in [Method::Pca, Method::Svd] {
                    let (a, b) = (direct.pair(rank, method), gram.pair(rank, method));
                    assert!((a.relative_error(&w, len) - b.relative_error(&w, len)).abs() < 1e-6);
                    let (a, b) = (a.product(rows, len), b.product(rows, len));
                    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{rows}x{len} at {rank}");
                }
            }
        }
    }

    #[test]
    fn the_gram_form_survives_deficient_and_zero_matrices() {
        for (rows, len) in [(8, 20), (20, 8)] {
            // Rank 1, then rank 0.
            for scale in [1.0f32, 0.0] {
                let w: Vec<f32> = (0..rows * len)
                    .map(|i| scale * ((i / len) as f32 - 3.0) * ((i % len) as f32 + 1.0))
                    .collect();
                let gram = Factors::with_form(&w, rows, len, true, false).unwrap();
                assert!(gram.squares.iter().all(|s| *s >= 0.0));
                assert!(gram.squares[1] <= 1e-14 * gram.squares[0]);
                for method in [Method::Pca, Method::Svd] {
                    let pair = gram.pair(rows.min(len), method);
                    assert!(pair.basis.iter().chain(&pair.combination).all(|v| v.is_finite()));
                    assert!(pair.relative_error(&w, len) < 1e-6);
                }
            }
        }
    }
}
