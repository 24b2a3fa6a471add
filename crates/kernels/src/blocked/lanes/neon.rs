//! NEON: four vectors of four.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes};

pub(crate) struct Neon;

type Four = [float32x4_t; 4];

// SAFETY of every block below: the machine has NEON and pointers are valid for 16 numbers (contract of the trait).
impl Lanes for Neon {
    // 24 registers of sums, 4 of weights and 1 of the input: 29 of 32.
    const SUMS: usize = 6;
    const BLOCKS: usize = 1;
    type Vector = Four;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        unsafe fn shell<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: this function is compiled for the tier; the rest is the caller's promise.
            unsafe { kernel.run::<Neon>() }
        }
        // SAFETY: as above.
        unsafe { shell(kernel) }
    }

    #[inline(always)]
    unsafe fn prefetch(src: *const f32) {
        // SAFETY: a prefetch reads nothing.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{}]", in(reg) src, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Four {
        // SAFETY: as above.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    unsafe fn load(src: *const f32) -> Four {
        // SAFETY: as above.
        unsafe { [vld1q_f32(src), vld1q_f32(src.add(4)), vld1q_f32(src.add(8)), vld1q_f32(src.add(12))] }
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> Four {
        // A bfloat16 is the upper half of a number.
        // SAFETY: as above.
        unsafe {
            std::array::from_fn(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(src.add(4 * i).cast()))))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> Four {
        // The intrinsic needs a type that is not stable.
        // SAFETY: as above.
        unsafe {
            std::array::from_fn(|i| {
                let half = vld1_u16(src.add(4 * i).cast());
                let wide: float32x4_t;
                std::arch::asm!(
                    "fcvtl {wide:v}.4s, {half:v}.4h",
                    wide = out(vreg) wide,
                    half = in(vreg) half,
                    options(pure, nomem, nostack, preserves_flags),
                );
                wide
            })
        }
    }

    #[inline(always)]
    unsafe fn store(dst: *mut f32, value: Four) {
        // SAFETY: as above.
        unsafe {
            vst1q_f32(dst, value[0]);
            vst1q_f32(dst.add(4), value[1]);
            vst1q_f32(dst.add(8), value[2]);
            vst1q_f32(dst.add(12), value[3]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Four, b: Four, c: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn add(a: Four, b: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn sub(a: Four, b: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vsubq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul(a: Four, b: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn div(a: Four, b: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vdivq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn sqrt(a: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vsqrtq_f32(a[i])) }
    }

    #[inline(always)]
    unsafe fn max(a: Four, b: Four) -> Four {
        // NaN if either is NaN.
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vmaxq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn relu(a: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vmaxq_f32(a[i], vdupq_n_f32(0.0))) }
    }

    #[inline(always)]
    unsafe fn pick(a: Four, b: Four, x: Four, y: Four) -> Four {
        // SAFETY: as above.
        unsafe { std::array::from_fn(|i| vbslq_f32(vceqq_f32(a[i], b[i]), x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn sum(a: Four) -> f32 {
        // SAFETY: as above.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3]))) }
    }

    #[inline(always)]
    unsafe fn sums(rows: &[Four; 16], count: usize) -> Four {
        // SAFETY: as above.
        unsafe {
            let part = |i: usize| match i < count {
                true => vaddq_f32(vaddq_f32(rows[i][0], rows[i][1]), vaddq_f32(rows[i][2], rows[i][3])),
                false => vdupq_n_f32(0.0),
            };
            // Neighbours are added twice: each vector then holds the sums of four rows.
            let four =
                |i: usize| vpaddq_f32(vpaddq_f32(part(i), part(i + 1)), vpaddq_f32(part(i + 2), part(i + 3)));
            [four(0), four(4), four(8), four(12)]
        }
    }
}
