use crate::Par;
use crate::pieces::for_each_piece;

/// Elements per piece: 32 KiB of `f32`, a first-level cache.
const PIECE: usize = 8 * 1024;

/// `dst = max(src, 0)`, elementwise; a NaN stays a NaN, `-0.0` becomes `0.0`.
///
/// # Panics
///
/// If the lengths differ.
pub fn relu(src: &[f32], dst: &mut [f32], par: Par) {
    assert_eq!(src.len(), dst.len(), "relu: src and dst");
    for_each_piece(par, dst, PIECE, PIECE, |i, dst| {
        for (d, &s) in dst.iter_mut().zip(&src[i * PIECE..]) {
            *d = rectify(s);
        }
    });
}

/// Gradient of [`relu`] from its result: `grad_src = grad_dst` where `dst > 0`, 0 where `dst <= 0` (so 0 at 0).
///
/// # Panics
///
/// If the lengths differ.
pub fn relu_backward(dst: &[f32], grad_dst: &[f32], grad_src: &mut [f32], par: Par) {
    assert_eq!(dst.len(), grad_src.len(), "relu_backward: dst and grad_src");
    assert_eq!(grad_dst.len(), grad_src.len(), "relu_backward: grad_dst and grad_src");
    for_each_piece(par, grad_src, PIECE, PIECE, |i, grad_src| {
        let at = i * PIECE;
        for ((g, &d), &y) in grad_src.iter_mut().zip(&grad_dst[at..]).zip(&dst[at..]) {
            *g = if y <= 0.0 { 0.0 } else { d };
        }
    });
}

/// `dst = inputs[0] + inputs[1] + ...`, added in this order, then `max(., 0)` if `relu`.
///
/// The gradient of every input is the gradient of the sum.
///
/// # Panics
///
/// If there is no input or the lengths differ.
pub fn add(inputs: &[&[f32]], relu: bool, dst: &mut [f32], par: Par) {
    let (first, rest) = inputs.split_first().expect("add takes at least one input");
    for input in inputs {
        assert_eq!(input.len(), dst.len(), "add: input and dst");
    }
    for_each_piece(par, dst, PIECE, PIECE * inputs.len(), |i, dst| {
        let piece = i * PIECE..i * PIECE + dst.len();
        match rest.split_first() {
            None => dst.copy_from_slice(&first[piece.clone()]),
            Some((second, _)) => {
                for ((d, &a), &b) in dst.iter_mut().zip(&first[piece.clone()]).zip(&second[piece.clone()]) {
                    *d = a + b;
                }
            }
        }
        for input in rest.iter().skip(1) {
            for (d, &s) in dst.iter_mut().zip(&input[piece.clone()]) {
                *d += s;
            }
        }
        if relu {
            for d in dst.iter_mut() {
                *d = rectify(*d);
            }
        }
    });
}

#[inline(always)]
pub(crate) fn rectify(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}
