//! Sixteen numbers at a time, on every tier.
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

use half::{bf16, f16};

/// Code that is compiled for every tier.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// The code; `#[inline(always)]`, and everything that uses `L` in it too.
    ///
    /// # Safety
    /// The machine has `L` and the caller is compiled for it; what else is required is the kernel's to say.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Sixteen numbers of one instruction set.
///
/// # Safety
/// Every method requires that the machine has the instruction set, and (but for `call`) that the caller is compiled for it.
/// Pointers must be valid for the numbers a method names; no alignment is needed.
pub(crate) trait Lanes: 'static {
    /// Vectors of sixteen that a block of sums may fill, so that none leaves the registers.
    const SUMS: usize;
    /// Most vectors of output channels in a block of sums.
    const BLOCKS: usize;
    /// Sixteen numbers.
    type Vector: Copy;

    /// Runs a kernel in a function of its own that is compiled for this tier.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    /// Asks for a cache line that will be read later, wherever it is; any address will do.
    unsafe fn prefetch(src: *const f32);
    /// Equal numbers.
    unsafe fn splat(value: f32) -> Self::Vector;
    /// Reads sixteen numbers.
    unsafe fn load(src: *const f32) -> Self::Vector;
    /// Reads sixteen numbers kept as bfloat16.
    unsafe fn load_bf16(src: *const bf16) -> Self::Vector;
    /// Reads sixteen numbers kept in half precision.
    unsafe fn load_f16(src: *const f16) -> Self::Vector;
    /// Reads the numbers at sixteen places, counted from `src`.
    #[inline(always)]
    unsafe fn gather(src: *const f32, places: *const u16) -> Self::Vector {
        // SAFETY: there are sixteen places, and numbers at them (contract of the trait).
        unsafe {
            let numbers: [f32; 16] = std::array::from_fn(|i| *src.add(usize::from(*places.add(i))));
            Self::load(numbers.as_ptr())
        }
    }
    /// Writes sixteen numbers.
    unsafe fn store(dst: *mut f32, value: Self::Vector);
    /// `a b + c`, rounded once where the tier can.
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a + b`.
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`.
    unsafe fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a b`.
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a / b`.
    unsafe fn div(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Square root.
    unsafe fn sqrt(a: Self::Vector) -> Self::Vector;
    /// The larger one; NaN if either is.
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `max(a, 0)`; NaN stays NaN.
    unsafe fn relu(a: Self::Vector) -> Self::Vector;
    /// `x` where `a` equals `b`, elsewhere (where either is NaN too) `y`.
    unsafe fn pick(a: Self::Vector, b: Self::Vector, x: Self::Vector, y: Self::Vector) -> Self::Vector;
    /// Sum of all lanes, always in the same order on one tier.
    unsafe fn sum(a: Self::Vector) -> f32;
    /// A vector whose lane `i < 16` is the sum of all lanes of `rows[i]`; rows from `count` on are not looked at, and their
    /// lanes are zero. Always in the same order on one tier.
    unsafe fn sums(rows: &[Self::Vector; 16], count: usize) -> Self::Vector;
    /// Lane `j` of row `i` becomes lane `i` of row `j`.
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::Vector; 16]) {
        let mut numbers = [[0.0; 16]; 16];
        let mut turned = [[0.0; 16]; 16];
        // SAFETY: handed on from the caller; rows of sixteen numbers are written and read.
        unsafe {
            numbers.iter_mut().zip(rows.iter()).for_each(|(to, row)| Self::store(to.as_mut_ptr(), *row));
            for (i, row) in turned.iter_mut().enumerate() {
                row.iter_mut().zip(&numbers).for_each(|(to, from)| *to = from[i]);
            }
            rows.iter_mut().zip(&turned).for_each(|(row, from)| *row = Self::load(from.as_ptr()));
        }
    }
}
