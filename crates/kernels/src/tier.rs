//! Which instructions the products run on: one table, best first, resolved once.
#![expect(unsafe_code, reason = "calls functions compiled for instructions that the machine has")]

use std::sync::OnceLock;

use crate::blocked::lanes::{self, Kernel, Lanes};
use crate::gemm::panel::{self, Columns, Spread};
use crate::gemm::tile::{self, Tile};
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd};

/// Environment variable that names the tier to use.
const VARIABLE: &str = "COFILTER_CPU";
/// Most rows in a tile of any tier.
pub(crate) const MAX_ROWS: usize = 8;
/// Most columns in a panel of any tier.
pub(crate) const MAX_COLS: usize = 48;

/// Kernels for one instruction set. A reference to a `Tier` is only handed out on a machine that has it.
pub(crate) struct Tier {
    pub(crate) name: &'static str,
    /// Rows of a tile.
    pub(crate) rows: usize,
    /// Columns of a panel, and so of a tile.
    pub(crate) cols: usize,
    /// Numbers in a vector.
    pub(crate) lanes: usize,
    /// Vectors of sums that stay in registers, see [`Lanes::SUMS`].
    pub(crate) sums: usize,
    /// Blocks of output channels at once, see [`Lanes::BLOCKS`].
    pub(crate) blocks: usize,
    set: Set,
    supported: fn() -> bool,
    multiply: unsafe fn(&Tile<'_>),
    gather: Gather,
    transpose: Transpose,
    spread: unsafe fn(&Spread<'_>, &[f32], &mut [f32]),
    take: unsafe fn(&[f32], usize, &mut [f32]),
}

/// Which instruction set.
#[derive(Clone, Copy)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

/// Signature of [`panel::gather`].
type Gather = unsafe fn(&[f32], &[usize], &[Columns], &mut [f32]);
/// Signature of [`panel::transpose`].
type Transpose = unsafe fn(&[f32], usize, usize, usize, &mut [f32], usize);

impl Tier {
    /// Runs a kernel that was compiled for this tier.
    ///
    /// # Safety
    /// As the kernel demands.
    #[inline]
    pub(crate) unsafe fn launch<K: Kernel>(&self, kernel: K) -> K::Output {
        // SAFETY: the machine has this tier, because a reference to it exists; the rest is the caller's promise.
        unsafe {
            match self.set {
                #[cfg(target_arch = "x86_64")]
                Set::Avx512 => lanes::Avx512::call(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => lanes::Avx2::call(kernel),
                #[cfg(target_arch = "aarch64")]
                Set::Neon => lanes::Neon::call(kernel),
                Set::Portable => lanes::Portable::call(kernel),
            }
        }
    }

    /// Computes a tile, see [`tile::multiply`].
    ///
    /// # Safety
    /// The pointers of the tile are valid, its extents are at most `rows` and `cols`, and nothing else
    /// touches its `c`.
    #[inline]
    pub(crate) unsafe fn multiply(&self, tile: &Tile<'_>) {
        debug_assert!((1..=self.rows).contains(&tile.rows.len()) && (1..=self.cols).contains(&tile.width));
        // SAFETY: the machine has this tier, because a reference to it exists; the rest is the caller's
        // promise.
        unsafe { (self.multiply)(tile) }
    }

    /// Packs columns that are contiguous in pieces, see [`panel::gather`].
    #[inline]
    pub(crate) fn gather(&self, src: &[f32], offsets: &[usize], columns: &[Columns], dst: &mut [f32]) {
        // SAFETY: the machine has this tier, because a reference to it exists.
        unsafe { (self.gather)(src, offsets, columns, dst) }
    }

    /// Packs columns that run along the depth, see [`panel::transpose`].
    #[inline]
    pub(crate) fn transpose(
        &self,
        src: &[f32],
        src_step: usize,
        columns: usize,
        depth: usize,
        dst: &mut [f32],
        dst_step: usize,
    ) {
        // SAFETY: the machine has this tier, because a reference to it exists.
        unsafe { (self.transpose)(src, src_step, columns, depth, dst, dst_step) }
    }

    /// Adds products to the places that their columns came from, see [`panel::spread`].
    #[inline]
    pub(crate) fn spread(&self, spread: &Spread<'_>, src: &[f32], dst: &mut [f32]) {
        // SAFETY: the machine has this tier, because a reference to it exists.
        unsafe { (self.spread)(spread, src, dst) }
    }

    /// Takes every `step`-th number, see [`panel::take`].
    #[inline]
    pub(crate) fn take(&self, src: &[f32], step: usize, dst: &mut [f32]) {
        // SAFETY: the machine has this tier, because a reference to it exists.
        unsafe { (self.take)(src, step, dst) }
    }
}

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Compiles the kernels of one instruction set and describes them.
macro_rules! tier {
    ($module:ident, $simd:ident, $features:meta, $supported:expr) => {
        mod $module {
            use super::*;

            /// # Safety
            /// As [`tile::multiply`].
            #[$features]
            unsafe fn multiply(tile: &Tile<'_>) {
                // SAFETY: this function is compiled for the instruction set; the rest is the caller's
                // promise.
                unsafe { tile::multiply::<$simd>(tile) }
            }

            /// # Safety
            /// As [`panel::gather`].
            #[$features]
            unsafe fn gather(src: &[f32], offsets: &[usize], columns: &[Columns], dst: &mut [f32]) {
                // SAFETY: this function is compiled for the instruction set, and the caller runs it on such a
                // machine.
                unsafe { panel::gather::<$simd>(src, offsets, columns, dst) }
            }

            /// # Safety
            /// As [`panel::transpose`].
            #[$features]
            unsafe fn transpose(
                src: &[f32],
                src_step: usize,
                columns: usize,
                depth: usize,
                dst: &mut [f32],
                dst_step: usize,
            ) {
                // SAFETY: this function is compiled for the instruction set, and the caller runs it on such a
                // machine.
                unsafe { panel::transpose::<$simd>(src, src_step, columns, depth, dst, dst_step) }
            }

            /// # Safety
            /// As [`panel::spread`].
            #[$features]
            unsafe fn spread(spread: &Spread<'_>, src: &[f32], dst: &mut [f32]) {
                // SAFETY: this function is compiled for the instruction set, and the caller runs it on such a
                // machine.
                unsafe { panel::spread::<$simd>(spread, src, dst) }
            }

            /// # Safety
            /// As [`panel::take`].
            #[$features]
            unsafe fn take(src: &[f32], step: usize, dst: &mut [f32]) {
                // SAFETY: this function is compiled for the instruction set, and the caller runs it on such a
                // machine.
                unsafe { panel::take::<$simd>(src, step, dst) }
            }

            pub(super) static TIER: Tier = Tier {
                name: stringify!($module),
                rows: <$simd>::ROWS,
                cols: <$simd>::VECTORS * <$simd>::LANES,
                lanes: <$simd>::LANES,
                sums: <lanes::$simd as Lanes>::SUMS,
                blocks: <lanes::$simd as Lanes>::BLOCKS,
                set: Set::$simd,
                supported: $supported,
                multiply,
                gather,
                transpose,
                spread,
                take,
            };
            const _: () = assert!(TIER_ROWS <= MAX_ROWS && TIER_COLS <= MAX_COLS);
            const TIER_ROWS: usize = <$simd>::ROWS;
            const TIER_COLS: usize = <$simd>::VECTORS * <$simd>::LANES;
        }
    };
}

#[cfg(target_arch = "x86_64")]
tier!(avx512, Avx512, target_feature(enable = "avx512f"), || is_x86_feature_detected!("avx512f"));
#[cfg(target_arch = "x86_64")]
tier!(avx2, Avx2, target_feature(enable = "avx2,fma,f16c"), || is_x86_feature_detected!("avx2")
    && is_x86_feature_detected!("fma")
    && is_x86_feature_detected!("f16c"));
#[cfg(target_arch = "aarch64")]
tier!(neon, Neon, target_feature(enable = "neon"), || std::arch::is_aarch64_feature_detected!("neon"));
tier!(portable, Portable, inline, || true);

/// Every tier compiled in, best first. The last one runs anywhere.
static TIERS: &[&Tier] = &[
    #[cfg(target_arch = "x86_64")]
    &avx512::TIER,
    #[cfg(target_arch = "x86_64")]
    &avx2::TIER,
    #[cfg(target_arch = "aarch64")]
    &neon::TIER,
    &portable::TIER,
];

/// The tiers that this machine has, best first.
pub(crate) fn available() -> impl Iterator<Item = &'static Tier> {
    TIERS.iter().copied().filter(|tier| (tier.supported)())
}

/// The tier that the kernels use.
pub(crate) fn active() -> &'static Tier {
    static ACTIVE: OnceLock<&Tier> = OnceLock::new();
    ACTIVE.get_or_init(|| {
        let (tier, complaint) = choose(std::env::var(VARIABLE).ok().as_deref());
        if let Some(complaint) = complaint {
            eprintln!("{complaint}");
        }
        tier
    })
}

/// The tier that `wanted` names, or the best one and why it is not the one that was asked for.
fn choose(wanted: Option<&str>) -> (&'static Tier, Option<String>) {
    let best = available().next().expect("the portable tier is always supported");
    let Some(wanted) = wanted.filter(|name| !name.is_empty()) else {
        return (best, None);
    };
    if let Some(tier) = available().find(|tier| tier.name == wanted) {
        return (tier, None);
    }
    let names: Vec<_> = available().map(|tier| tier.name).collect();
    let complaint =
        format!("{VARIABLE}={wanted}: this machine has the tiers {}; using {}", names.join(", "), best.name);
    (best, Some(complaint))
}

/// Plain loops that are to become vectors as wide as the machine's.
///
/// A closure would not do: it is compiled for the oldest machine unless it happens to be inlined, which nobody can ask for.
pub trait Vectorised {
    /// What it computes.
    type Output;

    /// The loops; mark it, and all that it calls, `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// Runs `loops` compiled for the instructions of the active tier.
///
/// ```
/// struct Double<'a>(&'a mut [f32]);
///
/// impl cofilter_kernels::Vectorised for Double<'_> {
///     type Output = ();
///
///     #[inline(always)]
///     fn run(self) {
///         self.0.iter_mut().for_each(|x| *x *= 2.0);
///     }
/// }
///
/// let mut numbers = [1.0; 100];
/// cofilter_kernels::vectorised(Double(&mut numbers));
/// assert_eq!(numbers, [2.0; 100]);
/// ```
#[inline]
pub fn vectorised<V: Vectorised>(loops: V) -> V::Output {
    // SAFETY: safe code demands nothing.
    unsafe { active().launch(Loops(loops)) }
}

struct Loops<V>(V);

impl<V: Vectorised> Kernel for Loops<V> {
    type Output = V::Output;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> V::Output {
        self.0.run()
    }
}

/// Name of the instruction tier that the product kernels run on: `avx512`, `avx2`, `neon` or `portable`.
///
/// It is the best one that the machine has, unless the environment variable `COFILTER_CPU` names another; a
/// name that is unknown, or not supported by the machine, is answered by one line on standard error and the
/// best tier. The choice is made once, at the first use of a kernel.
pub fn cpu_tier() -> &'static str {
    active().name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supported_tier_can_be_forced() {
        for tier in available() {
            let (chosen, complaint) = choose(Some(tier.name));
            assert_eq!((chosen.name, complaint), (tier.name, None));
        }
        assert_eq!(choose(Some("portable")).0.name, "portable");
    }

    #[test]
    fn nothing_or_nonsense_means_the_best_tier() {
        let best = available().next().unwrap().name;
        for unset in [None, Some("")] {
            let (chosen, complaint) = choose(unset);
            assert_eq!((chosen.name, complaint), (best, None));
        }
        let (chosen, complaint) = choose(Some("mmx"));
        assert_eq!(chosen.name, best);
        let complaint = complaint.unwrap();
        assert!(complaint.contains("COFILTER_CPU=mmx") && complaint.contains("portable"), "{complaint}");
    }
}
