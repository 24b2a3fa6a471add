//! Plain Rust, for every machine: the compiler turns the arrays into whatever vectors the target has.

use super::Simd;

pub(crate) struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    // 8 accumulators of 4 lanes fit the 16 registers of baseline x86-64.
    const ROWS: usize = 4;
    const VECTORS: usize = 2;
    type Vector = [f32; 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> [f32; 4] {
        // SAFETY: `src` is valid for 4 numbers (contract of the trait).
        unsafe { src.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: [f32; 4]) {
        // SAFETY: `dst` is valid for 4 numbers (contract of the trait).
        unsafe { dst.cast::<[f32; 4]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_first(src: *const f32, count: usize) -> [f32; 4] {
        let mut value = [0.0; 4];
        for (i, value) in value.iter_mut().enumerate().take(count) {
            // SAFETY: `src` is valid for `count` numbers (contract of the trait).
            *value = unsafe { *src.add(i) };
        }
        value
    }

    #[inline(always)]
    unsafe fn load_even(src: *const f32) -> [f32; 4] {
        // SAFETY: `src` is valid for 8 numbers (contract of the trait).
        std::array::from_fn(|i| unsafe { *src.add(2 * i) })
    }

    #[inline(always)]
    unsafe fn store_first(dst: *mut f32, count: usize, value: [f32; 4]) {
        for (i, value) in value.iter().enumerate().take(count) {
            // SAFETY: `dst` is valid for `count` numbers (contract of the trait).
            unsafe { *dst.add(i) = *value };
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn relu(a: [f32; 4]) -> [f32; 4] {
        a.map(|value| if value < 0.0 { 0.0 } else { value })
    }

    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, last: usize, dst: *mut f32, dst_stride: usize) {
        for i in 0..4 {
            for j in 0..4 {
                // SAFETY: `src` and `dst` are valid for the rows named in the contract of the trait.
                unsafe { *dst.add(j * dst_stride + i) = *src.add(i.min(last) * src_stride + j) };
            }
        }
    }
}
