use crate::Par;
use crate::pieces::{for_each_piece, sum};
use std::ops::Range;

/// `dst[p, i, j]` = mean of `src[p]` over rows `floor(i * h / n) .. ceil((i + 1) * h / n)` and columns alike, for a map
/// of height `h` and `n` rows of result. `src` is `[planes, in_size]`, `dst` `[planes, out_size]`.
///
/// # Panics
///
/// If a slice has another length than the sizes say or an extent is 0.
pub fn adaptive_avg_pool(
    planes: usize,
    in_size: [usize; 2],
    out_size: [usize; 2],
    src: &[f32],
    dst: &mut [f32],
    par: Par,
) {
    let (in_plane, out_plane) = check(planes, in_size, out_size, src.len(), dst.len());
    for_each_piece(par, dst, out_plane, in_plane + out_plane, |i, dst| {
        let src = &src[i * in_plane..(i + 1) * in_plane];
        if out_plane == 1 {
            dst[0] = sum(src) / in_plane as f32;
            return;
        }
        for (o, d) in dst.iter_mut().enumerate() {
            let (rows, cols) = window(o, in_size, out_size);
            let count = (rows.len() * cols.len()) as f32;
            let total: f32 = rows.map(|y| sum(&src[y * in_size[1]..][cols.clone()])).sum();
            *d = total / count;
        }
    });
}

/// Gradient of [`adaptive_avg_pool`]: `grad_dst` is `[planes, out_size]`. Overwrites `grad_src`, `[planes, in_size]`.
///
/// # Panics
///
/// If a slice has another length than the sizes say or an extent is 0.
pub fn adaptive_avg_pool_backward(
    planes: usize,
    in_size: [usize; 2],
    out_size: [usize; 2],
    grad_dst: &[f32],
    grad_src: &mut [f32],
    par: Par,
) {
    let (in_plane, out_plane) = check(planes, in_size, out_size, grad_src.len(), grad_dst.len());
    for_each_piece(par, grad_src, in_plane, in_plane + out_plane, |i, grad_src| {
        grad_src.fill(0.0);
        for (o, &g) in grad_dst[i * out_plane..(i + 1) * out_plane].iter().enumerate() {
            let (rows, cols) = window(o, in_size, out_size);
            let share = g / (rows.len() * cols.len()) as f32;
            for y in rows {
                for d in &mut grad_src[y * in_size[1]..][cols.clone()] {
                    *d += share;
                }
            }
        }
    });
}

/// Checks the lengths and gives the elements of a plane before and after.
fn check(
    planes: usize,
    in_size: [usize; 2],
    out_size: [usize; 2],
    src_len: usize,
    dst_len: usize,
) -> (usize, usize) {
    let (in_plane, out_plane) = (in_size[0] * in_size[1], out_size[0] * out_size[1]);
    assert!(in_plane > 0 && out_plane > 0, "adaptive_avg_pool: {in_size:?} to {out_size:?}");
    assert_eq!(src_len, planes * in_plane, "adaptive_avg_pool: map before");
    assert_eq!(dst_len, planes * out_plane, "adaptive_avg_pool: map after");
    (in_plane, out_plane)
}

/// Rows and columns of window `o` of a plane.
fn window(o: usize, in_size: [usize; 2], out_size: [usize; 2]) -> (Range<usize>, Range<usize>) {
    let range = |i: usize, len: usize, n: usize| i * len / n..((i + 1) * len).div_ceil(n);
    (range(o / out_size[1], in_size[0], out_size[0]), range(o % out_size[1], in_size[1], out_size[1]))
}
