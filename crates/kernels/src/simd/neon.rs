//! NEON, which every 64-bit ARM processor has.

use std::arch::aarch64::*;

use super::Simd;

pub(crate) struct Neon;

impl Simd for Neon {
    const LANES: usize = 4;
    // 24 accumulators, 3 vectors of the right matrix, 1 number of the left one: 28 of 32 registers.
    const ROWS: usize = 8;
    const VECTORS: usize = 3;
    type Vector = float32x4_t;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        // SAFETY: the machine has NEON (contract of the trait).
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> float32x4_t {
        // SAFETY: `src` is valid for 4 numbers (contract of the trait).
        unsafe { vld1q_f32(src) }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: float32x4_t) {
        // SAFETY: `dst` is valid for 4 numbers (contract of the trait).
        unsafe { vst1q_f32(dst, value) }
    }

    #[inline(always)]
    unsafe fn load_first(src: *const f32, count: usize) -> float32x4_t {
        let mut numbers = [0.0; 4];
        // SAFETY: `src` is valid for `count <= 4` numbers (contract of the trait).
        unsafe {
            std::ptr::copy_nonoverlapping(src, numbers.as_mut_ptr(), count);
            vld1q_f32(numbers.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn load_even(src: *const f32) -> float32x4_t {
        // SAFETY: `src` is valid for 8 numbers (contract of the trait).
        unsafe { vuzp1q_f32(vld1q_f32(src), vld1q_f32(src.add(4))) }
    }

    #[inline(always)]
    unsafe fn store_first(dst: *mut f32, count: usize, value: float32x4_t) {
        let mut numbers = [0.0; 4];
        // SAFETY: `dst` is valid for `count <= 4` numbers (contract of the trait).
        unsafe {
            vst1q_f32(numbers.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), dst, count);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: the machine has NEON (contract of the trait).
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the machine has NEON (contract of the trait).
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn relu(a: float32x4_t) -> float32x4_t {
        // NaN if either is NaN.
        // SAFETY: the machine has NEON (contract of the trait).
        unsafe { vmaxq_f32(a, vdupq_n_f32(0.0)) }
    }

    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, last: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: the machine has NEON, and `src` and `dst` are valid for the rows named in the contract.
        unsafe {
            let row = |i: usize| vld1q_f32(src.add(i.min(last) * src_stride));
            let (a, b) = (vtrnq_f32(row(0), row(1)), vtrnq_f32(row(2), row(3)));
            let low = |a: float32x4_t, b: float32x4_t| vcombine_f32(vget_low_f32(a), vget_low_f32(b));
            let high = |a: float32x4_t, b: float32x4_t| vcombine_f32(vget_high_f32(a), vget_high_f32(b));
            vst1q_f32(dst, low(a.0, b.0));
            vst1q_f32(dst.add(dst_stride), low(a.1, b.1));
            vst1q_f32(dst.add(2 * dst_stride), high(a.0, b.0));
            vst1q_f32(dst.add(3 * dst_stride), high(a.1, b.1));
        }
    }
}
