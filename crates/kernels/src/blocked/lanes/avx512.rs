//! AVX-512 F.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes};

pub(crate) struct Avx512;

// SAFETY of every block below: the machine has AVX-512 and pointers are valid for 16 numbers (contract of the trait).
impl Lanes for Avx512 {
    // With two vectors of weights and one of the input: 31 of 32 registers.
    const SUMS: usize = 28;
    const BLOCKS: usize = 3;
    type Vector = __m512;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f")]
        #[inline(never)]
        unsafe fn shell<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: this function is compiled for the tier; the rest is the caller's promise.
            unsafe { kernel.run::<Avx512>() }
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
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(src) }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> __m512 {
        // A bfloat16 is the upper half of a number.
        // SAFETY: as above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.cast())) }
    }

    #[inline(always)]
    unsafe fn gather(src: *const f32, places: *const u16) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let places = _mm512_cvtepu16_epi32(_mm256_loadu_si256(places.cast()));
            _mm512_i32gather_ps::<4>(places, src)
        }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(dst, value) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sqrt(a: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // The second operand is returned when either is NaN, so a NaN in the first one needs a second look.
        // SAFETY: as above.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_mask_mov_ps(_mm512_max_ps(a, b), nan, a)
        }
    }

    #[inline(always)]
    unsafe fn relu(a: __m512) -> __m512 {
        // The second operand is returned when either is NaN.
        // SAFETY: as above.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), a) }
    }

    #[inline(always)]
    unsafe fn pick(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b), y, x) }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe {
            let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, a);
            let a = _mm512_add_ps(a, high);
            let odd = _mm512_shuffle_f32x4::<0b01_01_01_01>(a, a);
            let a = _mm512_castps512_ps128(_mm512_add_ps(a, odd));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    unsafe fn sums(rows: &[__m512; 16], count: usize) -> __m512 {
        // A tree: each level adds the halves of two vectors into one, so that a vector then holds the part sums of twice as
        // many rows.
        // SAFETY: as above.
        unsafe {
            let zero = _mm512_setzero_ps();
            // After a level, rows i and i + 1 alternate in pairs of lanes; then four rows; the order of lanes is mended last.
            let mut four = [zero; 4];
            for (i, four) in four.iter_mut().enumerate() {
                if 4 * i >= count {
                    break;
                }
                let mut row = [zero; 4];
                for (j, row) in row.iter_mut().enumerate() {
                    if 4 * i + j < count {
                        *row = rows[4 * i + j];
                    }
                }
                let [a, b, c, d] = row;
                let ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
                let cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
                *four = _mm512_add_ps(
                    _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
                );
            }
            // Every 128-bit lane of `four[i]` holds part sums of rows 4 i .. 4 i + 4.
            let [a, b, c, d] = four;
            let eight = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
            );
            let last = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d),
            );
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(eight, last),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(eight, last),
            )
        }
    }

    #[inline(always)]
    unsafe fn transpose(r: &mut [__m512; 16]) {
        // SAFETY: as above.
        unsafe {
            let pd = |v: __m512| _mm512_castps_pd(v);
            let ps = |v: __m512d| _mm512_castpd_ps(v);
            // Pairs of rows, then fours: `four[4 i + j]` has columns j, 4 + j, 8 + j, 12 + j of rows 4 i to 4 i + 3, one in each quarter.
            let mut four = [r[0]; 16];
            for i in 0..4 {
                let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
                let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (low2, high2) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                four[4 * i] = ps(_mm512_unpacklo_pd(pd(low), pd(low2)));
                four[4 * i + 1] = ps(_mm512_unpackhi_pd(pd(low), pd(low2)));
                four[4 * i + 2] = ps(_mm512_unpacklo_pd(pd(high), pd(high2)));
                four[4 * i + 3] = ps(_mm512_unpackhi_pd(pd(high), pd(high2)));
            }
            // Even and odd quarters of two fours, then of all.
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(four[j], four[4 + j]);
                let even2 = _mm512_shuffle_f32x4::<0x88>(four[8 + j], four[12 + j]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(four[j], four[4 + j]);
                let odd2 = _mm512_shuffle_f32x4::<0xdd>(four[8 + j], four[12 + j]);
                r[j] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                r[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                r[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                r[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
        }
    }
}
