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
    let math = if math != Math::F32 && about.capability < 80 { Math::F32 } else { math };
    let mut best: Option<(f64, Kernel, usize)> = None;
    for kernel in Kernel::convolutions(math, geometry.is_pointwise()) {
        let mut splits = 1;
        while splits <= MOST_SPLITS {
            let cost = cost(about, kernel, geometry, batch, splits);
            if best.is_none_or(|(least, ..)| cost < least) {
                best = Some((cost, kernel, splits));
            }
            splits *= 2;
        }
    }
    best.map(|(_, kernel, splits)| (kernel, splits))
}

/// The kernel of a low-rank pair as one call, if it is expected to take less time than its two convolutions.
#[must_use]
pub fn pair(about: &About, math: Math, basis: &Geometry, outputs: usize, batch: usize) -> Option<Kernel> {
    if math != Math::F32 || basis.groups != 1 {
        return None;
    }
    let depth = basis.filters.next_multiple_of(64);
    let combination = Geometry {
        channels: basis.filters,
        filters: outputs,
        extents: basis.results,
        ..Geometry::linear(basis.filters, outputs)
    };
    let combination = Geometry { results: basis.results, ..combination };
    let apart: f64 = [basis, &combination]
        .iter()
        .map(|of| {
            convolution(about, math, of, batch)
                .map_or(0.0, |(kernel, splits)| cost(about, kernel, of, batch, splits))
        })
        .sum();
    let together = |kernel: &Kernel| {
        let [_, pixels] = kernel.tile();
        let blocks = (batch * basis.area()).div_ceil(pixels);
        let each = pixels * depth * (basis.columns() + outputs.next_multiple_of(64));
        waves(about, blocks) * each as f64 * penalty(kernel.tile())
    };
    let fits = |kernel: &Kernel| kernel.shared_bytes(depth) <= about.shared_memory;
    let best = Kernel::pairs().filter(fits).min_by(|a, b| together(a).total_cmp(&together(b)))?;
    (together(&best) < apart).then_some(best)
}

fn waves(about: &About, blocks: usize) -> f64 {
    blocks.div_ceil(about.multiprocessors * AT_ONCE) as f64
}

/// Time of a multiplication in a tile over that in a large one.
fn penalty([filters, pixels]: [usize; 2]) -> f64 {
    // Elements that are loaded for each multiplication, beside what the multiplication itself takes.
    0.5 + 32.0 * (1.0 / filters as f64 + 1.0 / pixels as f64)
}

/// In multiplications of a block.
fn cost(about: &About, kernel: Kernel, geometry: &Geometry, batch: usize, splits: usize) -> f64 {
    let [filters, pixels] = kernel.tile();
    let tiles = (geometry.filters / geometry.groups).div_ceil(filters);
    let blocks = (batch * geometry.area()).div_ceil(pixels) * tiles * geometry.groups * splits;
    // Steps that fill and drain a block.
    let columns = geometry.columns().div_ceil(splits) + 2 * kernel.depth();
    let product = waves(about, blocks) * (filters * pixels * columns) as f64 * penalty([filters, pixels]);
    let sum = match splits {
        1 => 0.0,
        // A launch, and an element written and read for each part, at some multiplications each.
        _ => {
            2e5 + 64.0 * (splits * geometry.filters * geometry.area() * batch) as f64
                / about.multiprocessors as f64
        }
    };
    product + sum
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
