//! faer's solvers with a number of tasks of their own: in which order numbers are summed hangs on it, and not on how many threads
//! there are.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::householder;
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::{Conj, Mat, Par};

/// Tasks of a product of one large matrix.
pub(crate) const TASKS: usize = 8;

/// Rows that are stored one after the other, in single or double precision, as columns.
pub(crate) fn columns_of<T: Copy + Into<f64>>(rows: &[T], len: usize) -> Mat<f64> {
    let mut x = Mat::zeros(len, rows.len() / len);
    for (column, row) in x.col_iter_mut().zip(rows.chunks_exact(len)) {
        let column = column.try_as_col_major_mut().expect("columns are stored one after the other");
        column.as_slice_mut().iter_mut().zip(row).for_each(|(to, from)| *to = (*from).into());
    }
    x
}

/// An orthonormal basis of the columns, of which there are no more than rows.
pub(crate) fn orthonormal(mut columns: Mat<f64>) -> Mat<f64> {
    let par = Par::rayon(TASKS);
    let (rows, count) = columns.shape();
    let block = qr::recommended_block_size::<f64>(rows, count);
    let mut coefficients = Mat::zeros(block, count);
    let scratch = qr::qr_in_place_scratch::<f64>(rows, count, block, par, Default::default());
    qr::qr_in_place(
        columns.as_mut(),
        coefficients.as_mut(),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    // What is left below the diagonal are the reflections.
    for j in 0..count {
        for i in 0..j {
            columns[(i, j)] = 0.0;
        }
        columns[(j, j)] = 1.0;
    }
    let mut basis = Mat::identity(rows, count);
    let scratch =
        householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(rows, block, count);
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        columns.as_ref(),
        coefficients.as_ref(),
        Conj::No,
        basis.as_mut(),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    basis
}

/// Eigenvalues of a symmetric matrix, of which the lower half is read, falling and at least 0, and the vectors that go with them.
pub(crate) fn eigen(matrix: &Mat<f64>, vectors: bool) -> Option<(Vec<f64>, Mat<f64>)> {
    let size = matrix.nrows();
    let compute = if vectors { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
    let columns = if vectors { size } else { 0 };
    let (mut values, mut basis) = (Diag::<f64>::zeros(size), Mat::<f64>::zeros(columns, columns));
    let scratch = evd::self_adjoint_evd_scratch::<f64>(size, compute, Par::Seq, Default::default());
    evd::self_adjoint_evd(
        matrix.as_ref(),
        values.as_mut(),
        vectors.then(|| basis.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    // Eigenvalues come rising; rounding can make a zero slightly negative.
    let squares = values.column_vector().iter().rev().map(|v| v.max(0.0)).collect();
    Some((squares, basis.as_ref().reverse_cols().to_owned()))
}

/// The solution of a system with a positive definite matrix; `None` if it is not.
pub(crate) fn solve(mut matrix: Mat<f64>, mut right: Mat<f64>) -> Option<Mat<f64>> {
    let par = Par::rayon(TASKS);
    let size = matrix.nrows();
    let scratch = llt::factor::cholesky_in_place_scratch::<f64>(size, par, Default::default());
    llt::factor::cholesky_in_place(
        matrix.as_mut(),
        Default::default(),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let scratch = llt::solve::solve_in_place_scratch::<f64>(size, right.ncols(), par);
    llt::solve::solve_in_place(
        matrix.as_ref(),
        right.as_mut(),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Mat<f64> {
        let mut state = 11u64;
        Mat::from_fn(rows, columns, |_, _| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
    }

    #[test]
    fn a_basis_is_orthonormal_and_spans_the_columns() {
        for (rows, columns) in [(9, 4), (70, 33), (5, 5), (3, 1)] {
            let x = matrix(rows, columns);
            let q = orthonormal(x.clone());
            let unit = q.transpose() * &q;
            let projected = &q * (q.transpose() * &x);
            for j in 0..columns {
                for i in 0..columns {
                    assert!((unit[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-12);
                }
                for i in 0..rows {
                    assert!((projected[(i, j)] - x[(i, j)]).abs() < 1e-12, "{rows}x{columns}");
                }
            }
        }
        // Columns that hang on each other.
        let q = orthonormal(Mat::full(6, 3, 1.0));
        let unit = q.transpose() * &q;
        assert!((0..3).all(|i| (unit[(i, i)] - 1.0).abs() < 1e-12));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, right) = (matrix(300, 700), matrix(300, 90));
        let positive = &x * x.transpose();
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (solve(positive.clone(), right.clone()).unwrap(), orthonormal(right.clone())))
        };
        assert!(of(1) == of(2) && of(1) == of(5));
    }

    #[test]
    fn systems_are_solved_or_refused() {
        let x = matrix(12, 40);
        let positive = &x * x.transpose();
        let right = matrix(12, 3);
        let solution = solve(positive.clone(), right.clone()).unwrap();
        let back = &positive * &solution;
        assert!((0..12).all(|i| (0..3).all(|j| (back[(i, j)] - right[(i, j)]).abs() < 1e-10)));
        assert!(solve(Mat::full(3, 3, -1.0), matrix(3, 1)).is_none());
    }
}
