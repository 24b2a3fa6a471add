use crate::Par;
use rayon::prelude::*;

/// Elementary operations that make a task worth handing to another thread (about 10 us of streaming work).
const GRAIN: usize = 32 * 1024;

/// Calls `body(i, piece)` for every `piece_len` elements of `dst`, `cost` elementary operations each.
///
/// A piece is always computed whole by one thread, so the result does not depend on `par`.
pub(crate) fn for_each_piece<T: Send>(
    par: Par,
    dst: &mut [T],
    piece_len: usize,
    cost: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) {
    match min_pieces(par, dst.len().div_ceil(piece_len), cost) {
        None => dst.chunks_mut(piece_len).enumerate().for_each(|(i, piece)| body(i, piece)),
        Some(min) => {
            dst.par_chunks_mut(piece_len).enumerate().with_min_len(min).for_each(|(i, piece)| body(i, piece))
        }
    }
}

/// The same over two slices cut alike: `body(i, piece of a, piece of b)`.
pub(crate) fn for_each_piece_pair<A: Send, B: Send>(
    par: Par,
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    cost: usize,
    body: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    match min_pieces(par, a.len().div_ceil(a_len), cost) {
        None => {
            (a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate()).for_each(|(i, (a, b))| body(i, a, b))
        }
        Some(min) => (a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len)).enumerate())
            .with_min_len(min)
            .for_each(|(i, (a, b))| body(i, a, b)),
    }
}

/// How many pieces a task takes at least; `None` if one thread should do them all.
fn min_pieces(par: Par, pieces: usize, cost: usize) -> Option<usize> {
    let min = GRAIN.div_ceil(cost.max(1));
    (matches!(par, Par::Rayon) && pieces >= 2 * min).then_some(min)
}

/// Sum of `x[i]` in single precision, 16 partial sums wide. The order depends on the length alone.
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Sum of `term(a[i], b[i])`, in single precision over 512 elements (16 partial sums of 32) and in double precision over
/// those. The order depends on the length alone.
#[inline(always)]
pub(crate) fn wide_sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(512).zip(b.chunks(512)) {
        let mut lanes = [0.0; 16];
        let (a, a_rest) = a.as_chunks::<16>();
        let (b, b_rest) = b.as_chunks::<16>();
        for (a, b) in a.iter().zip(b) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += term(a, b);
            }
        }
        for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
            *lane += term(a, b);
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    total
}
