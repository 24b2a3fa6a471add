//! Sizes of tiles, and which of them is worth its while.

use super::{LOADED, group_blocks};
use crate::blocked::conv::Window;
use crate::blocked::{BLOCK, View};

/// Size of a tile of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WinogradTile {
    /// 2x2 pixels: 2.25 times fewer multiplications for 3x3 filters, 2.78 times for 5x5.
    Two,
    /// 4x4 pixels: 4 times fewer multiplications for 3x3 filters.
    Four,
}

/// Cycles to pack the taps of a block of filters for one channel: for each of them, and for each position of their transform.
const PACKED: f64 = 15.0;
const TRANSFORMED: f64 = 8.0;
/// Cycles to read and write a block of sums.
const SUMMED: f64 = 5.0;
/// Fewest tiles that fill the registers.
const NARROW: usize = 7;
/// Bytes that stay in a second-level cache.
const NEAR: f64 = 1e6;

impl WinogradTile {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Two, Self::Four];

    /// Pixels on a side.
    pub fn size(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Products for a tile and a channel, with filters of `kernel` taps on a side.
    pub fn positions(self, kernel: usize) -> usize {
        (self.size() + kernel - 1).pow(2)
    }

    /// Largest error of a result relative to the largest result of the layer that is to be expected with filters of `kernel` taps on
    /// a side; the tests hold random layers to it.
    pub fn error_bound(self, kernel: usize) -> f32 {
        match (self, kernel) {
            (Self::Two, ..=3) => 4e-6,
            _ => 3e-5,
        }
    }

    /// Whether filters are computed with such tiles: 3x3 taps, or 5x5 with the smaller tile, without gaps, and stride 1.
    pub fn suits(self, kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2]) -> bool {
        let known = kernel == [3, 3] || kernel == [5, 5] && self == Self::Two;
        known && stride == [1, 1] && dilation == [1, 1]
    }

    /// Whether a convolution of these maps can be computed with such tiles: it [`suits`](Self::suits), and no block of channels
    /// belongs to two groups.
    pub fn fits(self, window: &Window, src: &View, dst: &View) -> bool {
        let whole = |view: &View| view.pixel_stride == BLOCK && group_blocks(view, window.groups).is_some();
        self.suits(window.kernel, window.stride, window.dilation) && whole(src) && whole(dst)
    }

    /// The same for its gradient with respect to the input.
    pub fn fits_gradient(self, window: &Window, src: &View, grad: &View) -> bool {
        let reach = [0, 1].iter().all(|d| window.padding[*d] < window.kernel[*d]);
        reach && self.fits(window, grad, src)
    }

    /// The tile with which a convolution takes the least time, about, if its filters are transformed for a batch of `images`, of
    /// which `at_once` are computed at once; none if plain sums take less, or none fits whose [`error_bound`](Self::error_bound) is
    /// within `tolerance`. Extents alone decide.
    pub fn fastest(
        window: &Window,
        src: &View,
        dst: &View,
        images: usize,
        at_once: usize,
        tolerance: f32,
    ) -> Option<Self> {
        let layer = Layer::new(window, src, dst);
        let runs = images.div_ceil(at_once.max(1)) as f64;
        let plain = layer.sums(images) / 0.9 + PACKED * layer.taps * layer.filters;
        let fitting = Self::within(window, src, dst, tolerance);
        least(plain, fitting, |tile| {
            let positions = tile.positions(window.kernel[0]) as f64;
            let tiles = layer.tiles(tile, at_once);
            let products = positions * layer.filters / 2.0 / 0.85 * tiles.max(NARROW) as f64;
            let transforms = 2.2 * positions * layer.blocks * tiles as f64;
            // Filters that do not stay near arrive in each run.
            let bytes = positions * layer.filters * (BLOCK * size_of::<f32>()) as f64;
            let arriving = if bytes > NEAR { bytes / LOADED } else { 0.0 };
            runs * (products + transforms + arriving) + TRANSFORMED * positions * layer.filters
        })
    }

    /// Those that fit, and whose error does too.
    fn within(window: &Window, src: &View, dst: &View, tolerance: f32) -> impl Iterator<Item = Self> {
        let error = |tile: Self| tile.error_bound(window.kernel[0]);
        Self::ALL.into_iter().filter(move |tile| tile.fits(window, src, dst) && error(*tile) <= tolerance)
    }

    /// The tile with which the gradient of the filters takes the least time, about. `piece` says how many images have sums of their
    /// own, if not all share some; of those `at_once` are added at once.
    pub fn fastest_gradient(
        window: &Window,
        src: &View,
        grad: &View,
        images: usize,
        piece: Option<usize>,
        at_once: usize,
        tolerance: f32,
    ) -> Option<Self> {
        let layer = Layer::new(window, src, grad);
        let pieces = piece.map_or(1, |piece| images.div_ceil(piece.max(1))) as f64;
        let runs = images.div_ceil(at_once.max(1)) as f64;
        let plain = layer.sums(images) / 0.82 + pieces * SUMMED * layer.taps * layer.filters;
        let fitting = Self::within(window, src, grad, tolerance);
        least(plain, fitting, |tile| {
            let positions = tile.positions(window.kernel[0]) as f64;
            let tiles = layer.tiles(tile, images) as f64;
            let products = positions * layer.filters / 2.0 / 0.75 * tiles;
            let transforms = 2.2 * positions * layer.blocks * tiles;
            products + transforms + (pieces + runs) * SUMMED * positions * layer.filters
        })
    }
}

/// A layer, for estimates in cycles of a machine that does two operations on a block in one.
struct Layer {
    /// Channels that an output reads, times blocks of outputs.
    filters: f64,
    /// Blocks of both maps.
    blocks: f64,
    taps: f64,
    size: [usize; 2],
}

impl Layer {
    fn new(window: &Window, src: &View, dst: &View) -> Self {
        Self {
            filters: (src.channels() / window.groups * dst.blocks()) as f64,
            blocks: (src.blocks() + dst.blocks()) as f64,
            taps: (window.kernel[0] * window.kernel[1]) as f64,
            size: dst.size,
        }
    }

    /// Cycles of plain sums.
    fn sums(&self, images: usize) -> f64 {
        (images * self.size[0] * self.size[1]) as f64 * self.taps * self.filters / 2.0
    }

    fn tiles(&self, tile: WinogradTile, images: usize) -> usize {
        images * self.size[0].div_ceil(tile.size()) * self.size[1].div_ceil(tile.size())
    }
}

/// The tile that takes the fewest cycles, if those are fewer than `plain`.
fn least(
    plain: f64,
    tiles: impl Iterator<Item = WinogradTile>,
    cycles: impl Fn(WinogradTile) -> f64,
) -> Option<WinogradTile> {
    let found = tiles.map(|tile| (cycles(tile), tile)).min_by(|a, b| a.0.total_cmp(&b.0));
    found.filter(|(cycles, _)| *cycles < plain).map(|(_, tile)| tile)
}
