use crate::Par;
use crate::pieces::for_each_piece;
use crate::tier::{Vectorised, vectorised};

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
        let src = &src[i * PIECE..][..dst.len()];
        vectorised(Relu { src, dst });
    });
}

struct Relu<'a> {
    src: &'a [f32],
    dst: &'a mut [f32],
}

impl Vectorised for Relu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (d, &s) in self.dst.iter_mut().zip(self.src) {
            *d = rectify(s);
        }
    }
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
        let piece = i * PIECE..i * PIECE + grad_src.len();
        vectorised(ReluBackward { dst: &dst[piece.clone()], grad_dst: &grad_dst[piece], grad_src });
    });
}

struct ReluBackward<'a> {
    dst: &'a [f32],
    grad_dst: &'a [f32],
    grad_src: &'a mut [f32],
}

impl Vectorised for ReluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((g, &d), &y) in self.grad_src.iter_mut().zip(self.grad_dst).zip(self.dst) {
            *g = if y <= 0.0 { 0.0 } else { d };
        }
    }
}

/// `grad = 0` where `dst <= 0`: the gradient of [`relu`] in the place of that of its result.
///
/// # Panics
///
/// If the lengths differ.
pub fn relu_backward_in_place(dst: &[f32], grad: &mut [f32], par: Par) {
    assert_eq!(dst.len(), grad.len(), "relu_backward_in_place: dst and grad");
    for_each_piece(par, grad, PIECE, PIECE, |i, grad| {
        vectorised(Mask { dst: &dst[i * PIECE..][..grad.len()], grad });
    });
}

struct Mask<'a> {
    dst: &'a [f32],
    grad: &'a mut [f32],
}

impl Vectorised for Mask<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (g, &y) in self.grad.iter_mut().zip(self.dst) {
            *g = if y <= 0.0 { 0.0 } else { *g };
        }
    }
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
        let first = &first[piece.clone()];
        match rest.split_first() {
            None => dst.copy_from_slice(first),
            Some((second, _)) => vectorised(Sum { first, second: &second[piece.clone()], dst }),
        }
        for input in rest.iter().skip(1) {
            vectorised(Accumulate { src: &input[piece.clone()], dst });
        }
        if relu {
            vectorised(Rectify(dst));
        }
    });
}

struct Sum<'a> {
    first: &'a [f32],
    second: &'a [f32],
    dst: &'a mut [f32],
}

impl Vectorised for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((d, &a), &b) in self.dst.iter_mut().zip(self.first).zip(self.second) {
            *d = a + b;
        }
    }
}

struct Rectify<'a>(&'a mut [f32]);

impl Vectorised for Rectify<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.0.iter_mut().for_each(|x| *x = rectify(*x));
    }
}

/// `dst += src`.
///
/// # Panics
///
/// If the lengths differ.
pub fn accumulate(src: &[f32], dst: &mut [f32], par: Par) {
    assert_eq!(src.len(), dst.len(), "accumulate: src and dst");
    for_each_piece(par, dst, PIECE, PIECE, |i, dst| {
        vectorised(Accumulate { src: &src[i * PIECE..][..dst.len()], dst });
    });
}

struct Accumulate<'a> {
    src: &'a [f32],
    dst: &'a mut [f32],
}

impl Vectorised for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (d, &s) in self.dst.iter_mut().zip(self.src) {
            *d += s;
        }
    }
}

#[inline(always)]
pub(crate) fn rectify(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}
