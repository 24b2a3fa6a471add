//! Which kernel a convolution takes, by a model of what it costs.

use crate::device::About;
use crate::kernel::{Kernel, Math};
use crate::pack::Geometry;

/// Blocks that a multiprocessor has at the same time, about.
const AT_ONCE: usize = 2;
/// Most parts of the columns.
const MOST_SPLITS: usize = 16;

/// The kernel and the number of parts for a convolution of `batch` images that is expected to take the least time.
///
/// A block takes as long as its multiplications, more for small tiles (which load more for each multiplication); blocks run in waves of as
/// many as the device holds; parts have to be written and summed.
#[must_use]
pub fn convolution(about: &About, math: Math, geometry: &Geometry, batch: usize) -> Option<(Kernel, usize)> {
    candidates(about, math, geometry, batch).into_iter().next()
}

/// All kernels and numbers of parts, that which is expected to take the least time first.
pub(crate) fn candidates(
    about: &About,
    math: Math,
    geometry: &Geometry,
    batch: usize,
) -> Vec<(Kernel, usize)> {
    let math = if math != Math::F32 && about.capability < 80 { Math::F32 } else { math };
    let splits = || {
        std::iter::successors(Some(1), |splits| Some(2 * splits)).take_while(|splits| *splits <= MOST_SPLITS)
    };
    let kernels = Kernel::convolutions(math, geometry.is_pointwise());
    let mut all: Vec<(Kernel, usize)> =
        kernels.flat_map(|kernel| splits().map(move |splits| (kernel, splits))).collect();
    let cost = |(kernel, splits): &(Kernel, usize)| cost(about, *kernel, geometry, batch, *splits);
    all.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    all
}

/// The kernel of a low-rank pair as one call, if it is expected to take less time than its two convolutions.
#[must_use]
pub fn pair(about: &About, math: Math, basis: &Geometry, outputs: usize, batch: usize) -> Option<Kernel> {
    let apart: f64 = [basis, &combination(basis, outputs)]
        .iter()
        .map(|of| {
            convolution(about, math, of, batch)
                .map_or(0.0, |(kernel, splits)| cost(about, kernel, of, batch, splits))
        })
        .sum();
    let together = |kernel: &Kernel| {
        let [filters, pixels] = kernel.tile();
        let blocks = (batch * basis.area()).div_ceil(pixels);
        let depth = basis.filters.next_multiple_of(filters);
        let each = pixels * depth * (basis.columns() + outputs.next_multiple_of(filters));
        let [src, dst] = [basis.channels * basis.extents[0] * basis.extents[1], outputs * basis.area()];
        LAUNCH
            + waves(about, blocks) * each as f64 * penalty(kernel.tile())
            + traffic(about, (src + dst) * batch)
    };
    let best =
        pairs_that_fit(about, math, basis).into_iter().min_by(|a, b| together(a).total_cmp(&together(b)))?;
    (together(&best) < apart).then_some(best)
}

/// The kernels that can compute a pair with this basis as one call, that with the most pixels first. There is none on tensor cores.
#[must_use]
pub fn pairs_that_fit(about: &About, math: Math, basis: &Geometry) -> Vec<Kernel> {
    let fits = |kernel: &Kernel| {
        kernel.shared_bytes(basis.filters.next_multiple_of(kernel.tile()[0])) <= about.shared_memory
    };
    Kernel::pairs().filter(|kernel| math == Math::F32 && basis.groups == 1 && fits(kernel)).collect()
}

/// The 1x1 convolution behind a basis.
pub(crate) fn combination(basis: &Geometry, outputs: usize) -> Geometry {
    Geometry { extents: basis.results, results: basis.results, ..Geometry::linear(basis.filters, outputs) }
}

fn waves(about: &About, blocks: usize) -> f64 {
    blocks.div_ceil(about.multiprocessors * AT_ONCE) as f64
}

/// Time of a multiplication in a tile over that in a large one.
fn penalty([filters, pixels]: [usize; 2]) -> f64 {
    // Elements that are loaded for each multiplication, beside what the multiplication itself takes.
    0.5 + 32.0 * (1.0 / filters as f64 + 1.0 / pixels as f64)
}

/// What a launch takes, some 2 us, in multiplications of a block.
const LAUNCH: f64 = 2e5;
/// What a multiprocessor takes to read or write an element, in multiplications of a block.
const ACCESS: f64 = 16.0;

/// Of reading and writing so many elements once.
fn traffic(about: &About, elements: usize) -> f64 {
    ACCESS * elements as f64 / about.multiprocessors as f64
}

/// In multiplications of a block.
fn cost(about: &About, kernel: Kernel, geometry: &Geometry, batch: usize, splits: usize) -> f64 {
    let [filters, pixels] = kernel.tile();
    let tiles = (geometry.filters / geometry.groups).div_ceil(filters);
    let blocks = (batch * geometry.area()).div_ceil(pixels) * tiles * geometry.groups * splits;
    // Steps that fill and drain a block.
    let columns = geometry.columns().div_ceil(splits) + 2 * kernel.depth();
    let product = waves(about, blocks) * (filters * pixels * columns) as f64 * penalty([filters, pixels]);
    let [src, dst] =
        [geometry.channels * geometry.extents[0] * geometry.extents[1], geometry.filters * geometry.area()];
    let sum = match splits {
        1 => 0.0,
        _ => LAUNCH + traffic(about, 2 * splits * dst * batch),
    };
    LAUNCH + product + traffic(about, (src + dst) * batch) + sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            ordinal: 0,
            name: "H100".into(),
            capability: 90,
            multiprocessors: 132,
            memory: 80 << 30,
            shared_memory: 227 << 10,
        }
    }

    fn geometry(channels: usize, filters: usize, extent: usize, kernel: usize) -> Geometry {
        Geometry {
            channels,
            filters,
            extents: [extent; 2],
            results: [extent; 2],
            kernel: [kernel; 2],
            padding: [kernel / 2; 2],
            ..Geometry::linear(channels, filters)
        }
    }

    #[test]
    fn small_maps_are_cut_into_parts_and_large_ones_take_large_tiles() {
        let (kernel, splits) = convolution(&about(), Math::F32, &geometry(512, 512, 7, 3), 1).unwrap();
        assert!(splits > 4, "{kernel:?} in {splits}");
        let (kernel, splits) = convolution(&about(), Math::F32, &geometry(256, 256, 28, 3), 64).unwrap();
        assert_eq!((kernel.name(), splits), ("conv_128x128", 1));
        let (kernel, _) = convolution(&about(), Math::Bf16, &geometry(256, 256, 28, 1), 64).unwrap();
        assert_eq!(kernel.name(), "conv_bf16_128x128");
        let (kernel, _) = convolution(&about(), Math::F32, &geometry(16, 16, 32, 1), 32).unwrap();
        assert_eq!(kernel.name(), "conv1x1_16x64");
        let old = About { capability: 75, ..about() };
        let (kernel, _) = convolution(&old, Math::Bf16, &geometry(256, 256, 28, 3), 64).unwrap();
        assert_eq!(kernel.name(), "conv_128x128", "no tensor cores for bfloat16");
    }

    #[test]
    fn a_pair_is_one_call_where_there_are_pixels_enough() {
        let of = geometry(256, 64, 28, 3);
        assert!(pair(&about(), Math::F32, &of, 256, 64).is_some());
        assert!(pair(&about(), Math::F32, &geometry(512, 64, 7, 3), 512, 1).is_none());
        assert!(pair(&about(), Math::F16, &of, 256, 64).is_none());
        let large = geometry(256, 2_000, 28, 3);
        assert!(pair(&about(), Math::F32, &large, 256, 64).is_none(), "more than shared memory");
    }
}
