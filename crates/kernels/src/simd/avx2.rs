//! AVX2 and FMA.

use std::arch::x86_64::*;

use super::Simd;

pub(crate) struct Avx2;

/// `MASK[8 - count ..]` starts with `count` lanes that are on.
static MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The first `count <= 8` lanes.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    // SAFETY: the machine has AVX2, and `8 - count + 8 <= 16` because the caller keeps `count <= 8`.
    unsafe { _mm256_loadu_si256(MASK.as_ptr().add(8 - count).cast()) }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    // 12 accumulators, 2 vectors of the right matrix, 1 number of the left one: 15 of 16 registers.
    const ROWS: usize = 6;
    const VECTORS: usize = 2;
    type Vector = __m256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: the machine has AVX2 (contract of the trait).
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> __m256 {
        // SAFETY: `src` is valid for 8 numbers (contract of the trait).
        unsafe { _mm256_loadu_ps(src) }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: __m256) {
        // SAFETY: `dst` is valid for 8 numbers (contract of the trait).
        unsafe { _mm256_storeu_ps(dst, value) }
    }

    #[inline(always)]
    unsafe fn load_first(src: *const f32, count: usize) -> __m256 {
        // SAFETY: `src` is valid for `count` numbers (contract of the trait); masked lanes are not read.
        unsafe { _mm256_maskload_ps(src, first(count)) }
    }

    #[inline(always)]
    unsafe fn load_even(src: *const f32) -> __m256 {
        // SAFETY: `src` is valid for 16 numbers (contract of the trait).
        unsafe {
            let both = _mm256_shuffle_ps::<0x88>(_mm256_loadu_ps(src), _mm256_loadu_ps(src.add(8)));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(_mm256_castps_pd(both)))
        }
    }

    #[inline(always)]
    unsafe fn store_first(dst: *mut f32, count: usize, value: __m256) {
        // SAFETY: `dst` is valid for `count` numbers (contract of the trait); masked lanes are not written.
        unsafe { _mm256_maskstore_ps(dst, first(count), value) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the machine has FMA (contract of the trait).
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the machine has AVX2 (contract of the trait).
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn relu(a: __m256) -> __m256 {
        // The second operand is returned when either is NaN.
        // SAFETY: the machine has AVX2 (contract of the trait).
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), a) }
    }

    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_stride: usize, last: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: the machine has AVX2, and `src` and `dst` are valid for the rows named in the contract.
        unsafe {
            let zero = _mm256_setzero_ps();
            let mut row = [zero; 8];
            for (i, row) in row.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(src.add(i.min(last) * src_stride));
            }
            let mut pair = [zero; 8];
            for i in 0..4 {
                pair[2 * i] = _mm256_unpacklo_ps(row[2 * i], row[2 * i + 1]);
                pair[2 * i + 1] = _mm256_unpackhi_ps(row[2 * i], row[2 * i + 1]);
            }
            let mut four = [zero; 8];
            for i in 0..2 {
                four[4 * i] = _mm256_shuffle_ps::<0x44>(pair[4 * i], pair[4 * i + 2]);
                four[4 * i + 1] = _mm256_shuffle_ps::<0xee>(pair[4 * i], pair[4 * i + 2]);
                four[4 * i + 2] = _mm256_shuffle_ps::<0x44>(pair[4 * i + 1], pair[4 * i + 3]);
                four[4 * i + 3] = _mm256_shuffle_ps::<0xee>(pair[4 * i + 1], pair[4 * i + 3]);
            }
            for j in 0..4 {
                let (low, high) = (four[j], four[4 + j]);
                _mm256_storeu_ps(dst.add(j * dst_stride), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(dst.add((4 + j) * dst_stride), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }
}
