//! The innermost block of a product: a few rows times a few vectors, held in registers over the whole depth.
#![expect(unsafe_code, reason = "reads and writes blocks of matrices through pointers")]

use crate::simd::Simd;

/// A stretch of the depth of a product: `len` numbers of every row of the left matrix, from `start` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// What happens to a block before it is stored, in this order: `c = relu?(a b + c? + bias? + add?)`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finish {
    /// Add to what `c` holds.
    pub(crate) accumulate: bool,
    /// One number for each row of the block.
    pub(crate) bias: Option<*const f32>,
    /// A block of the same size, and the distance between its rows.
    pub(crate) add: Option<(*const f32, usize)>,
    /// Make negative results zero.
    pub(crate) relu: bool,
}

/// One block of a product, `c[i][j] = sum over k of a[i][k] b[k][j]`.
///
/// The depth `k` walks through `runs`: at position `p` of a run, row `i` of the left matrix is `a[rows[i] +
/// (start + p) * step]`. The right matrix is `b[k * b_step + j]`, and all vectors of a row are readable there
/// although only `width` of their numbers count.
pub(crate) struct Tile<'a> {
    pub(crate) a: *const f32,
    /// Offset of each row in `a`; at most as many as the tier's `rows`.
    pub(crate) rows: &'a [usize],
    pub(crate) step: usize,
    pub(crate) runs: &'a [Run],
    pub(crate) b: *const f32,
    pub(crate) b_step: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_step: usize,
    /// Columns of `c`, at most the tier's `cols`.
    pub(crate) width: usize,
    pub(crate) finish: Finish,
}

/// Computes a tile.
///
/// # Safety
/// The machine has `S` and the caller is compiled for it; `1 <= rows.len() <= S::ROWS`, `1 <= width <=
/// S::VECTORS * S::LANES`; the pointers are valid for everything that [`Tile`] and [`Finish`] name, and
/// nothing else reads or writes the block of `c` meanwhile.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(tile: &Tile<'_>) {
    debug_assert!((1..=S::ROWS).contains(&tile.rows.len()));
    debug_assert!((1..=S::VECTORS * S::LANES).contains(&tile.width));
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.width.div_ceil(S::LANES) {
            1 => multiply_vectors::<S, 1>(tile),
            2 if S::VECTORS >= 2 => multiply_vectors::<S, 2>(tile),
            _ if S::VECTORS >= 3 => multiply_vectors::<S, 3>(tile),
            _ => {}
        }
    }
}

/// # Safety
/// As [`multiply`], with `VECTORS` vectors in a row.
#[inline(always)]
unsafe fn multiply_vectors<S: Simd, const VECTORS: usize>(tile: &Tile<'_>) {
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.rows.len() {
            1 => block::<S, 1, VECTORS>(tile),
            2 => block::<S, 2, VECTORS>(tile),
            3 => block::<S, 3, VECTORS>(tile),
            4 => block::<S, 4, VECTORS>(tile),
            5 if S::ROWS >= 5 => block::<S, 5, VECTORS>(tile),
            6 if S::ROWS >= 6 => block::<S, 6, VECTORS>(tile),
            7 if S::ROWS >= 7 => block::<S, 7, VECTORS>(tile),
            _ if S::ROWS >= 8 => block::<S, 8, VECTORS>(tile),
            _ => {}
        }
    }
}

/// # Safety
/// As [`multiply`], with `ROWS` rows and `VECTORS` vectors in a row.
#[inline(always)]
unsafe fn block<S: Simd, const ROWS: usize, const VECTORS: usize>(tile: &Tile<'_>) {
    // SAFETY: every pointer stays inside what `Tile` names: rows x runs of `a`, one row of vectors of `b` for
    // each step of the depth, `ROWS x width` of `c`, `bias` and `add`.
    unsafe {
        let mut left_rows = [tile.a; ROWS];
        for (row, offset) in left_rows.iter_mut().zip(tile.rows) {
            *row = tile.a.add(*offset);
        }
        let mut sum = [[S::splat(0.0); VECTORS]; ROWS];
        let mut b = tile.b;
        for run in tile.runs {
            let mut offset = run.start * tile.step;
            for _ in 0..run.len {
                let mut right = [S::splat(0.0); VECTORS];
                for (v, right) in right.iter_mut().enumerate() {
                    *right = S::load(b.add(v * S::LANES));
                }
                for (row, sum) in left_rows.iter().zip(&mut sum) {
                    let left = S::splat(*row.add(offset));
                    for (sum, right) in sum.iter_mut().zip(right) {
                        *sum = S::mul_add(left, right, *sum);
                    }
                }
                offset += tile.step;
                b = b.add(tile.b_step);
            }
        }
        finish::<S, ROWS, VECTORS>(tile, sum);
    }
}

/// # Safety
/// As [`multiply`], with `ROWS` rows and `VECTORS` vectors in a row.
#[inline(always)]
unsafe fn finish<S: Simd, const ROWS: usize, const VECTORS: usize>(
    tile: &Tile<'_>,
    mut sum: [[S::Vector; VECTORS]; ROWS],
) {
    let last = tile.width - (VECTORS - 1) * S::LANES;
    // SAFETY: only the first `width` numbers of each row are read and written.
    unsafe {
        if tile.finish.accumulate {
            sum = plus::<S, ROWS, VECTORS>(sum, tile.c, tile.c_step, last);
        }
        if let Some(bias) = tile.finish.bias {
            for (i, row) in sum.iter_mut().enumerate() {
                let bias = S::splat(*bias.add(i));
                for sum in row {
                    *sum = S::add(*sum, bias);
                }
            }
        }
        if let Some((add, add_step)) = tile.finish.add {
            sum = plus::<S, ROWS, VECTORS>(sum, add, add_step, last);
        }
        if tile.finish.relu {
            for sum in sum.as_flattened_mut() {
                *sum = S::relu(*sum);
            }
        }
        for (i, row) in sum.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                let dst = tile.c.add(i * tile.c_step + v * S::LANES);
                if v + 1 < VECTORS {
                    S::store(dst, *sum);
                } else {
                    S::store_first(dst, last, *sum);
                }
            }
        }
    }
}

/// `sum` plus a block of memory, of whose last vectors only `last` numbers are read.
///
/// # Safety
/// The machine has `S`, and `src` is valid for the block.
#[inline(always)]
unsafe fn plus<S: Simd, const ROWS: usize, const VECTORS: usize>(
    mut sum: [[S::Vector; VECTORS]; ROWS],
    src: *const f32,
    src_step: usize,
    last: usize,
) -> [[S::Vector; VECTORS]; ROWS] {
    for (i, row) in sum.iter_mut().enumerate() {
        // SAFETY: row `i` of the block is valid for `VECTORS - 1` whole vectors and `last` numbers more.
        unsafe {
            let src = src.add(i * src_step);
            for (v, sum) in row.iter_mut().enumerate() {
                let src = src.add(v * S::LANES);
                let term = if v + 1 < VECTORS { S::load(src) } else { S::load_first(src, last) };
                *sum = S::add(term, *sum);
            }
        }
    }
    sum
}
