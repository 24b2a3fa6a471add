//! The few vector operations that the product kernels are written in.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// One instruction set.
///
/// # Safety
/// Every method requires that the machine has the instruction set, and that the caller is compiled for it
/// (all methods are inlined into a function with that `target_feature`). Pointers must be valid for the
/// numbers a method names; no alignment is needed.
pub(crate) trait Simd {
    /// Numbers in a vector.
    const LANES: usize;
    /// Rows of the largest block that stays in registers.
    const ROWS: usize;
    /// Vectors in a row of that block.
    const VECTORS: usize;
    /// A vector of `LANES` numbers.
    type Vector: Copy;

    /// A vector of equal numbers.
    unsafe fn splat(value: f32) -> Self::Vector;
    /// Reads `LANES` numbers.
    unsafe fn load(src: *const f32) -> Self::Vector;
    /// Writes `LANES` numbers.
    unsafe fn store(dst: *mut f32, value: Self::Vector);
    /// Reads the first `count <= LANES` numbers; the others are 0.
    unsafe fn load_first(src: *const f32, count: usize) -> Self::Vector;
    /// Reads `2 LANES` numbers and keeps those at even positions.
    unsafe fn load_even(src: *const f32) -> Self::Vector;
    /// Writes the first `count <= LANES` numbers.
    unsafe fn store_first(dst: *mut f32, count: usize, value: Self::Vector);
    /// `a b + c`.
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a + b`.
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `max(a, 0)`; NaN stays NaN.
    unsafe fn relu(a: Self::Vector) -> Self::Vector;
    /// Writes `dst[j * dst_stride + i] = src[min(i, last) * src_stride + j]` for `i, j < LANES`.
    unsafe fn transpose(src: *const f32, src_stride: usize, last: usize, dst: *mut f32, dst_stride: usize);
}
