//! AVX2 with FMA and F16C, which every processor with AVX2 has: two vectors of eight.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes};

pub(crate) struct Avx2;

type Pair = [__m256; 2];

// SAFETY of every block below: the machine has AVX2, FMA and F16C, and pointers are valid for 16 numbers (contract of the trait).
impl Lanes for Avx2 {
    // Twelve registers; two are for weights and one for the input.
    const SUMS: usize = 6;
    const BLOCKS: usize = 1;
    type Vector = Pair;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        unsafe fn shell<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: this function is compiled for the tier; the rest is the caller's promise.
            unsafe { kernel.run::<Avx2>() }
        }
        // SAFETY: as above.
        unsafe { shell(kernel) }
    }

    #[inline(always)]
    unsafe fn prefetch(src: *const f32) {
        // SAFETY: as above; a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(src.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_loadu_ps(src), _mm256_loadu_ps(src.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> Pair {
        // A bfloat16 is the upper half of a number.
        // SAFETY: as above.
        unsafe {
            let half = |src: *const bf16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [half(src), half(src.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> Pair {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(src.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(src.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gather(src: *const f32, places: *const u16) -> Pair {
        // SAFETY: as above.
        unsafe {
            let half = |places: *const u16| {
                let places = _mm256_cvtepu16_epi32(_mm_loadu_si128(places.cast()));
                _mm256_i32gather_ps::<4>(src, places)
            };
            [half(places), half(places.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: Pair) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(dst, value[0]);
            _mm256_storeu_ps(dst.add(8), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sqrt(a: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        // The second operand is returned when either is NaN, so a NaN in the first one needs a second look.
        // SAFETY: as above.
        unsafe {
            [
                _mm256_blendv_ps(_mm256_max_ps(a[0], b[0]), a[0], _mm256_cmp_ps::<_CMP_UNORD_Q>(a[0], a[0])),
                _mm256_blendv_ps(_mm256_max_ps(a[1], b[1]), a[1], _mm256_cmp_ps::<_CMP_UNORD_Q>(a[1], a[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn relu(a: Pair) -> Pair {
        // The second operand is returned when either is NaN.
        // SAFETY: as above.
        unsafe {
            let zero = _mm256_setzero_ps();
            [_mm256_max_ps(zero, a[0]), _mm256_max_ps(zero, a[1])]
        }
    }

    #[inline(always)]
    unsafe fn pick(a: Pair, b: Pair, x: Pair, y: Pair) -> Pair {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn sum(a: Pair) -> f32 {
        // SAFETY: as above.
        unsafe {
            let a = _mm256_add_ps(a[0], a[1]);
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    unsafe fn sums(rows: &[Pair; 16], count: usize) -> Pair {
        // SAFETY: as above.
        unsafe {
            let mut sums = [0.0; 16];
            for (sum, row) in sums.iter_mut().zip(&rows[..count]) {
                *sum = Self::sum(*row);
            }
            Self::load(sums.as_ptr())
        }
    }
}
