use crate::algebra::{TASKS, columns_of, eigen, orthonormal};
use crate::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::{matmul, triangular};
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{Accum, Mat, MatRef, Par};
use std::cmp::Ordering;

/// Largest `rows * cols * min(rows, cols)` that is decomposed directly; above it the eigenvectors of the Gram matrix are
/// several times cheaper.
///
/// The eigenvalues of a Gram matrix in `f64` are right to about `1e-16` of the largest, so singular values below
/// `1e-8` of the largest are noise in that form. Weights are `f32` numbers, known to `6e-8` of their size: the direct
/// form resolves nothing there that the weights mean, and every rank rule squares the values anyway.
const DIRECT_LIMIT: usize = 1_000_000;

/// Least `rows * cols * min(rows, cols)` of a matrix of which a few singular vectors are found by random projection: the
/// eigenvectors of fc6 of AlexNet, 4096 x 9216, take ten seconds.
const RANDOM_LEAST: usize = 20_000_000_000;
/// Of at most this share of full rank.
const RANDOM_SHARE: usize = 4;
/// Vectors beyond those that are asked for.
const OVERSAMPLING: usize = 32;
/// Times that the projection is multiplied with the matrix and its transpose, which brings it nearer to the largest
/// singular vectors (Halko, Martinsson and Tropp 2011, algorithm 4.4).
const POWERS: usize = 2;

/// Which factor the singular values go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// The basis: the combination has orthonormal columns.
    Basis,
    /// Their roots to both.
    Both,
    /// The combination: the basis has orthonormal rows.
    Combination,
}

/// Two factors, row-major.
#[derive(Debug)]
pub(crate) struct Split {
    /// `[rows, rank]`.
    pub(crate) combination: Vec<f64>,
    /// `[rank, len]`.
    pub(crate) basis: Vec<f64>,
}

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

impl Factors {
    /// Decomposes the matrix `[rows, len]` with these finite elements; with `vectors` so that [`Factors::split`] can be called.
    pub(crate) fn new(
        layer: &str,
        [rows, len]: [usize; 2],
        element: impl Fn(usize, usize) -> f64,
        vectors: bool,
    ) -> Result<Self> {
        let direct = work(rows, len) <= DIRECT_LIMIT;
        let filters = Mat::from_fn(len, rows, |position, row| element(row, position));
        Self::with_form(filters, vectors, direct).ok_or_else(|| Error::NoConvergence { layer: layer.into() })
    }

    /// As [`Factors::new`] of a matrix whose rows are stored one after the other.
    pub(crate) fn of_rows<T: Copy + Into<f64>>(
        layer: &str,
        weight: &[T],
        len: usize,
        vectors: bool,
    ) -> Result<Self> {
        let rows = weight.len() / len;
        let filters = columns_of(weight, len);
        let direct = work(rows, len) <= DIRECT_LIMIT;
        Self::with_form(filters, vectors, direct).ok_or_else(|| Error::NoConvergence { layer: layer.into() })
    }

    /// Whether [`Factors::leading`] is for this matrix and this rank.
    pub(crate) fn is_for_leading(rows: usize, len: usize, rank: usize) -> bool {
        work(rows, len) >= RANDOM_LEAST && rank + OVERSAMPLING <= rows.min(len) / RANDOM_SHARE
    }

    /// The first `rank` singular vectors of a large matrix whose rows are stored one after the other, by random projection with a
    /// fixed seed. Their product is near the best one of that rank; the squares are those of these vectors alone, so they are
    /// no spectrum.
    pub(crate) fn leading<T: Copy + Into<f64>>(
        layer: &str,
        weight: &[T],
        len: usize,
        rank: usize,
    ) -> Result<Self> {
        let rows = weight.len() / len;
        let par = Par::rayon(TASKS);
        let x = columns_of(weight, len);
        let count = (rank + OVERSAMPLING).min(rows.min(len));
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        // Sums of uniform draws: near enough to a normal law for a direction.
        #[expect(clippy::cast_precision_loss, reason = "53 bits")]
        let mut draw = || {
            (0..4).fold(0.0, |sum, _| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                sum + (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
            })
        };
        let mut of_rows = Mat::from_fn(rows, count, |_, _| draw());
        let mut of_positions = Mat::zeros(len, count);
        for power in 0..=POWERS {
            matmul(of_positions.as_mut(), Accum::Replace, x.as_ref(), of_rows.as_ref(), 1.0, par);
            of_positions = orthonormal(of_positions);
            matmul(of_rows.as_mut(), Accum::Replace, x.transpose(), of_positions.as_ref(), 1.0, par);
            if power < POWERS {
                of_rows = orthonormal(of_rows);
            }
        }
        // `x` is near `Q Q^T x`, and the last product is the transpose of `Q^T x`.
        let mut gram = Mat::zeros(count, count);
        matmul(gram.as_mut(), Accum::Replace, of_rows.transpose(), of_rows.as_ref(), 1.0, par);
        let (squares, turn) =
            eigen(&gram, true).ok_or_else(|| Error::NoConvergence { layer: layer.into() })?;
        let mut right = Mat::zeros(len, rank);
        let turn = turn.subcols(0, rank);
        matmul(right.as_mut(), Accum::Replace, of_positions.as_ref(), turn, 1.0, par);
        Ok(Self { filters: x, squares: squares[..rank].to_vec(), vectors: Vectors::Right(right) })
    }

    /// Of weights `B` `[rows, len]`, row-major, for inputs of this covariance `C`: the eigenvectors `V` of `B C B^T`, so that of
    /// all approximations of a rank `V_M V_M^T B` has the least error of outputs, and the squares are what outputs keep.
    pub(crate) fn of_outputs(layer: &str, weight: &[f64], covariance: &Mat<f64>) -> Result<Self> {
        let len = covariance.nrows();
        let rows = weight.len() / len;
        let filters = columns_of(weight, len);
        let mut seen = Mat::zeros(len, rows);
        matmul(seen.as_mut(), Accum::Replace, covariance.as_ref(), filters.as_ref(), 1.0, Par::Seq);
        let mut outputs = Mat::zeros(rows, rows);
        matmul(outputs.as_mut(), Accum::Replace, filters.transpose(), seen.as_ref(), 1.0, Par::Seq);
        let (mut squares, left) =
            eigen(&outputs, true).ok_or_else(|| Error::NoConvergence { layer: layer.into() })?;
        squares.truncate(rows.min(len));
        Ok(Self { filters, squares, vectors: Vectors::Left(left) })
    }

    fn with_form(filters: Mat<f64>, vectors: bool, direct: bool) -> Option<Self> {
        let (squares, vectors) = if direct {
            direct_form(filters.as_ref(), vectors)?
        } else {
            gram_form(filters.as_ref(), vectors)?
        };
        Some(Self { filters, squares, vectors })
    }

    /// The best approximation `combination * basis` of this rank: `[rows, rank]` and `[rank, len]`, both row-major.
    ///
    /// Each basis vector gets the sign that makes the largest entry of its combination column positive, so that the
    /// factors do not hang on a choice of the solver.
    pub(crate) fn split(&self, rank: usize, scale: Scale) -> Split {
        let (len, rows) = (self.filters.nrows(), self.filters.ncols());
        let (left, right, sigma) = self.columns(rank);
        let mut basis = vec![0.0; rank * len];
        let mut combination = vec![0.0; rows * rank];
        for (m, sigma) in sigma.into_iter().enumerate() {
            let sign = sign_of_largest((0..rows).map(|row| left[(row, m)]));
            let (for_basis, for_combination) = match scale {
                Scale::Basis => (sign * sigma, sign),
                Scale::Both => (sign * sigma.sqrt(), sign * sigma.sqrt()),
                Scale::Combination => (sign, sign * sigma),
            };
            for position in 0..len {
                basis[m * len + position] = right[(position, m)] * for_basis;
            }
            for row in 0..rows {
                combination[row * rank + m] = left[(row, m)] * for_combination;
            }
        }
        Split { combination, basis }
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

fn work(rows: usize, len: usize) -> usize {
    rows.saturating_mul(len).saturating_mul(rows.min(len))
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
    let (squares, falling) = eigen(&gram, vectors)?;
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
pub(crate) fn sign_of_largest(column: impl Iterator<Item = f64>) -> f64 {
    let larger =
        |a: f64, b: f64| if b.abs().partial_cmp(&a.abs()) == Some(Ordering::Greater) { b } else { a };
    if column.fold(0.0, larger) < 0.0 { -1.0 } else { 1.0 }
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
pub(crate) fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(weight: &[f32], len: usize) -> Mat<f64> {
        Mat::from_fn(len, weight.len() / len, |position, row| f64::from(weight[row * len + position]))
    }

    fn product(split: &Split, rows: usize, len: usize) -> Vec<f64> {
        let rank = split.basis.len() / len;
        let sum = |row: usize, position: usize| {
            (0..rank).map(|m| split.combination[row * rank + m] * split.basis[m * len + position]).sum()
        };
        (0..rows * len).map(|i| sum(i / len, i % len)).collect()
    }

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
            let direct = Factors::with_form(matrix(&w, len), true, true).unwrap();
            let gram = Factors::with_form(matrix(&w, len), true, false).unwrap();
            assert_eq!(direct.squares.len(), rows.min(len));
            assert_eq!(gram.squares.len(), rows.min(len));
            let bare = Factors::with_form(matrix(&w, len), false, false).unwrap();
            for i in 0..rows.min(len) {
                for other in [&gram, &bare] {
                    let off = (direct.squares[i] - other.squares[i]).abs() / direct.squares[0];
                    assert!(off < 1e-13, "{rows}x{len}, value {i}: {off}");
                }
            }
            for rank in [1, rows.min(len).div_ceil(2), rows.min(len)] {
                for scale in [Scale::Basis, Scale::Both, Scale::Combination] {
                    let (a, b) = (direct.split(rank, scale), gram.split(rank, scale));
                    let (a, b) = (product(&a, rows, len), product(&b, rows, len));
                    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{rows}x{len} at {rank}");
                }
            }
        }
    }

    #[test]
    fn random_projections_come_near_the_best_of_their_rank() {
        let (rows, len, rank) = (300, 420, 20);
        let noise: Vec<f64> = weight(rows, len).into_iter().map(f64::from).collect();
        let mut state = 5u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        let flat: Vec<f64> = (0..rows * len).map(|_| next()).collect();
        let lost = |w: &[f64], factors: &Factors| {
            let found = product(&factors.split(rank, Scale::Basis), rows, len);
            w.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        };
        // A spectrum that falls, one that hardly does, and none.
        for (name, w, most) in
            [("falling", &noise, 1.001), ("flat", &flat, 1.03), ("zeros", &vec![0.0; rows * len], 1.0)]
        {
            let best = lost(w, &Factors::of_rows("x", w, len, true).unwrap());
            let found = lost(w, &Factors::leading("x", w, len, rank).unwrap());
            assert!(found <= most * best + 1e-9, "{name}: {found}, best {best}");
            let threads = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let split =
                    pool.install(|| Factors::leading("x", w, len, rank).unwrap().split(rank, Scale::Both));
                (split.basis, split.combination)
            };
            assert!(threads(1) == threads(3), "{name}: threads change the result");
        }
        assert!(Factors::is_for_leading(4096, 9216, 512));
        assert!(!Factors::is_for_leading(4096, 9216, 1024) && !Factors::is_for_leading(512, 4608, 64));
    }

    #[test]
    fn the_gram_form_survives_deficient_and_zero_matrices() {
        for (rows, len) in [(8, 20), (20, 8)] {
            // Rank 1, then rank 0.
            for size in [1.0f32, 0.0] {
                let w: Vec<f32> = (0..rows * len)
                    .map(|i| size * ((i / len) as f32 - 3.0) * ((i % len) as f32 + 1.0))
                    .collect();
                let gram = Factors::with_form(matrix(&w, len), true, false).unwrap();
                assert!(gram.squares.iter().all(|s| *s >= 0.0));
                assert!(gram.squares[1] <= 1e-14 * gram.squares[0]);
                for scale in [Scale::Basis, Scale::Both, Scale::Combination] {
                    let split = gram.split(rows.min(len), scale);
                    assert!(split.basis.iter().chain(&split.combination).all(|v| v.is_finite()));
                    let found = product(&split, rows, len);
                    let off =
                        found.iter().zip(&w).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
                    assert!(off < 1e-5, "{rows}x{len}: {off}");
                }
            }
        }
    }
}
