//! AVX-512 F.

use std::arch::x86_64::*;

use super::Simd;

pub(crate) struct Avx512;

/// Bits of the first `count <= 16` lanes.
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    // 24 accumulators, 3 vectors of the right matrix, 1 number of the left one: 28 of 32 registers.
    const ROWS: usize = 8;
    const VECTORS: usize = 3;
    type Vector = __m512;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: the machine has AVX-512 (contract of the trait).
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> __m512 {
        // SAFETY: `src` is valid for 16 numbers (contract of the trait).
        unsafe { _mm512_loadu_ps(src) }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: __m512) {
        // SAFETY: `dst` is valid for 16 numbers (contract of the trait).
        unsafe { _mm512_storeu_ps(dst, value) }
    }

    #[inline(always)]
    unsafe fn load_first(src: *const f32, count: usize) -> __m512 {
        // SAFETY: `src` is valid for `count` numbers (contract of the trait); masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first(count), src) }
    }

    #[inline(always)]
    unsafe fn load_even(src: *const f32) -> __m512 {
        // SAFETY: `src` is valid for 32 numbers (contract of the trait).
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_ps(_mm512_loadu_ps(src), even, _mm512_loadu_ps(src.add(16)))
        }
    }

    #[inline(always)]
    unsafe fn store_first(dst: *mut f32, count: usize, value: __m512) {
        // SAFETY: `dst` is valid for `count` numbers (contract of the trait); masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(dst, first(count), value) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the machine has AVX-512 (contract of the trait).
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the machine has AVX-512 (contract of the trait).
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn relu(a: __m512) -> __m512 {
        // The second operand is returned when either is NaN.
        // SAFETY: the machine has AVX-512 (contract of the trait).
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), a) }
    }

    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, last: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: the machine has AVX-512, and `src` and `dst` are valid for the rows named in the contract.
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut row = [zero; 16];
            for (i, row) in row.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(src.add(i.min(last) * src_stride));
            }
            // Pairs of rows, then fours: after both, lane block `b` of `four[4 i + j]` is column `4 b + j` of
            // the rows `4 i .. 4 i + 4`.
            let mut pair = [_mm512_setzero_pd(); 16];
            for i in 0..8 {
                pair[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(row[2 * i], row[2 * i + 1]));
                pair[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(row[2 * i], row[2 * i + 1]));
            }
            let mut four = [zero; 16];
            for i in 0..4 {
                four[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair[4 * i], pair[4 * i + 2]));
                four[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair[4 * i], pair[4 * i + 2]));
                four[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair[4 * i + 1], pair[4 * i + 3]));
                four[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair[4 * i + 1], pair[4 * i + 3]));
            }
            for j in 0..4 {
                let even_low = _mm512_shuffle_f32x4::<0x88>(four[j], four[4 + j]);
                let odd_low = _mm512_shuffle_f32x4::<0xdd>(four[j], four[4 + j]);
                let even_high = _mm512_shuffle_f32x4::<0x88>(four[8 + j], four[12 + j]);
                let odd_high = _mm512_shuffle_f32x4::<0xdd>(four[8 + j], four[12 + j]);
                let out = |column: usize| dst.add(column * dst_stride);
                _mm512_storeu_ps(out(j), _mm512_shuffle_f32x4::<0x88>(even_low, even_high));
                _mm512_storeu_ps(out(4 + j), _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high));
                _mm512_storeu_ps(out(8 + j), _mm512_shuffle_f32x4::<0xdd>(even_low, even_high));
                _mm512_storeu_ps(out(12 + j), _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high));
            }
        }
    }
}
