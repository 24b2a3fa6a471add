//! The products of weights and vectors.
#![expect(unsafe_code, reason = "vectors and weights are read through pointers")]

use super::super::BLOCK;
use super::super::lanes::Lanes;
use super::FILTERS;
use super::pack::{Packed, Weighted};

impl Weighted {
    /// Adds the products of some filters to their sums, for `N` vectors: place `p` of vector `n` is at `pixels + p + n BLOCK`, that of the
    /// last one at `pixels + p + last`.
    ///
    /// # Safety
    /// The machine has `L` and the caller is compiled for it; `packed` is one of `self.filters`, and all its places may be read.
    #[inline(always)]
    pub(super) unsafe fn add_to<L: Lanes, const N: usize>(
        &self,
        packed: &Packed,
        pixels: *const f32,
        last: isize,
        mut sums: [[L::Vector; N]; FILTERS],
    ) -> [[L::Vector; N]; FILTERS] {
        // SAFETY: handed on from the caller.
        unsafe {
            macro_rules! patterns {
                ($($pattern:literal)*) => {
                    $(self.pattern::<L, N, $pattern>(packed, pixels, last, &mut sums);)*
                };
            }
            patterns!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            sums
        }
    }

    /// All places of a pattern: those at which the filters of `P` have a weight, or some of them.
    ///
    /// # Safety
    /// As [`Weighted::add_to`].
    #[inline(always)]
    unsafe fn pattern<L: Lanes, const N: usize, const P: usize>(
        &self,
        packed: &Packed,
        pixels: *const f32,
        last: isize,
        sums: &mut [[L::Vector; N]; FILTERS],
    ) {
        let places = &self.places[packed.places[P] as usize..packed.places[P + 1] as usize];
        let weights = &self.weights[packed.weights[P] as usize..];
        debug_assert!(weights.len() >= places.len() * P.count_ones() as usize, "a weight for each filter");
        let mut weight = weights.as_ptr();
        for &place in places {
            // SAFETY: handed on from the caller; the weights of a pattern are one for each place and filter.
            unsafe {
                let src = pixels.wrapping_add(place as usize);
                let values: [L::Vector; N] = std::array::from_fn(|n| match n + 1 < N {
                    true => L::load(src.add(n * BLOCK)),
                    false => L::load(src.offset(last)),
                });
                for (f, sums) in sums.iter_mut().enumerate() {
                    if P >> f & 1 == 1 {
                        let factor = L::splat(*weight);
                        weight = weight.add(1);
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = L::mul_add(value, factor, *sum);
                        }
                    }
                }
            }
        }
    }
}
