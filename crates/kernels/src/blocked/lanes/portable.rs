//! Plain code that any machine runs.

use half::{bf16, f16};

use super::{Kernel, Lanes};

pub(crate) struct Portable;

/// Lane by lane.
#[inline(always)]
fn each(a: [f32; 16], b: [f32; 16], op: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| op(a[i], b[i]))
}

impl Lanes for Portable {
    const SUMS: usize = 2;
    const BLOCKS: usize = 1;
    type Vector = [f32; 16];

    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: any machine has this tier; the rest is the caller's promise.
        unsafe { kernel.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 16] {
        [value; 16]
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> [f32; 16] {
        // SAFETY: `src` is valid for 16 numbers (contract of the trait).
        unsafe { src.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> [f32; 16] {
        // SAFETY: `src` is valid for 16 numbers (contract of the trait).
        unsafe { src.cast::<[bf16; 16]>().read_unaligned() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> [f32; 16] {
        // SAFETY: `src` is valid for 16 numbers (contract of the trait).
        unsafe { src.cast::<[f16; 16]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: [f32; 16]) {
        // SAFETY: `dst` is valid for 16 numbers (contract of the trait).
        unsafe { dst.cast::<[f32; 16]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        // Rounded twice: without hardware for it, a fused product is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn sqrt(a: [f32; 16]) -> [f32; 16] {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    unsafe fn max(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| if a > b || a.is_nan() { a } else { b })
    }

    #[inline(always)]
    unsafe fn relu(a: [f32; 16]) -> [f32; 16] {
        a.map(|a| if a < 0.0 { 0.0 } else { a })
    }

    #[inline(always)]
    unsafe fn pick(a: [f32; 16], b: [f32; 16], x: [f32; 16], y: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| if a[i] == b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    unsafe fn sum(a: [f32; 16]) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    unsafe fn sums(rows: &[[f32; 16]; 16], count: usize) -> [f32; 16] {
        // SAFETY: any machine has this tier.
        std::array::from_fn(|i| if i < count { unsafe { Self::sum(rows[i]) } } else { 0.0 })
    }
}
