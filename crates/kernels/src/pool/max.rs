use super::PoolShape;
use super::row::Row;
use crate::Par;
use crate::pieces::{for_each_piece, for_each_piece_pair};

/// `dst[o]` = the largest element of its window.
///
/// A NaN in a window gives NaN. `argmax` (as long as `dst`) takes the flat index within the plane of the element that
/// won: the first maximum in row-major order, or the first NaN.
///
/// # Panics
///
/// If a slice has another length than the shape says, a window has no element of the map, or, with `argmax`, a plane has
/// 2^32 elements or more.
pub fn max_pool(shape: &PoolShape, src: &[f32], dst: &mut [f32], argmax: Option<&mut [u32]>, par: Par) {
    shape.check();
    assert_eq!(src.len(), shape.src_len(), "max_pool: src");
    assert_eq!(dst.len(), shape.dst_len(), "max_pool: dst");
    let (len, cost) = (shape.out_plane(), shape.cost());
    let plane = |i: usize| &src[i * shape.in_plane()..(i + 1) * shape.in_plane()];
    match argmax {
        None => for_each_piece(par, dst, len, cost, |i, dst| values(shape, plane(i), dst)),
        Some(argmax) => {
            assert_eq!(argmax.len(), shape.dst_len(), "max_pool: argmax");
            assert!(
                u32::try_from(shape.in_plane()).is_ok(),
                "max_pool: a plane of {} elements",
                shape.in_plane()
            );
            for_each_piece_pair(par, (dst, len), (argmax, len), cost, |i, dst, argmax| {
                indexed(shape, plane(i), dst, argmax);
            });
        }
    }
}

/// Gradient of [`max_pool`]: every window's gradient goes to the element that won it. `argmax` and `grad_dst` are
/// `[planes, out_size]`. Overwrites `grad_src`, `[planes, in_size]`.
///
/// # Panics
///
/// If a slice has another length than the shape says or an index is outside the plane.
pub fn max_pool_backward(
    shape: &PoolShape,
    argmax: &[u32],
    grad_dst: &[f32],
    grad_src: &mut [f32],
    par: Par,
) {
    shape.check();
    assert_eq!(argmax.len(), shape.dst_len(), "max_pool_backward: argmax");
    assert_eq!(grad_dst.len(), shape.dst_len(), "max_pool_backward: grad_dst");
    assert_eq!(grad_src.len(), shape.src_len(), "max_pool_backward: grad_src");
    let len = shape.out_plane();
    for_each_piece(par, grad_src, shape.in_plane(), shape.in_plane() + len, |i, grad_src| {
        grad_src.fill(0.0);
        for (&at, &g) in argmax[i * len..(i + 1) * len].iter().zip(&grad_dst[i * len..(i + 1) * len]) {
            grad_src[at as usize] += g;
        }
    });
}

/// Pools one plane.
fn values(shape: &PoolShape, src: &[f32], dst: &mut [f32]) {
    // Without NaNs a maximum is one instruction.
    if has_nan(src) {
        fold(shape, src, dst, |best, x| if x > best || (x.is_nan() && !best.is_nan()) { x } else { best });
    } else {
        fold(shape, src, dst, |best, x| if x > best { x } else { best });
    }
}

/// Pools one plane, then looks for the elements that won.
fn indexed(shape: &PoolShape, src: &[f32], dst: &mut [f32], argmax: &mut [u32]) {
    values(shape, src, dst);
    if has_nan(src) {
        find(shape, src, dst, argmax, |x, best| x == best || x.is_nan());
    } else {
        find(shape, src, dst, argmax, |x, best| x == best);
    }
}

fn has_nan(src: &[f32]) -> bool {
    src.iter().fold(false, |found, x| found | x.is_nan())
}

#[inline(always)]
fn fold(shape: &PoolShape, src: &[f32], dst: &mut [f32], combine: impl Fn(f32, f32) -> f32 + Copy) {
    let columns = Row::new(shape);
    for (oy, dst) in dst.chunks_exact_mut(shape.out_size[1]).enumerate() {
        dst.fill(f32::NEG_INFINITY);
        for y in shape.window(0, oy) {
            columns.fold(&src[y * shape.in_size[1]..(y + 1) * shape.in_size[1]], dst, combine);
        }
    }
}

#[inline(always)]
fn find(
    shape: &PoolShape,
    src: &[f32],
    dst: &[f32],
    argmax: &mut [u32],
    hit: impl Fn(f32, f32) -> bool + Copy,
) {
    let columns = Row::new(shape);
    let out = shape.out_size[1];
    for (oy, (dst, argmax)) in dst.chunks_exact(out).zip(argmax.chunks_exact_mut(out)).enumerate() {
        // The last to be found is the first in row-major order.
        for y in shape.window(0, oy).rev() {
            let row = y * shape.in_size[1];
            columns.find(&src[row..row + shape.in_size[1]], dst, argmax, row as u32, hit);
        }
    }
}
