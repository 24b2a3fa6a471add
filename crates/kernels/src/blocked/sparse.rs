//! Convolutions, and fully connected layers, whose weights are zero here and there.
//!
//! The map that is read is planar, so sixteen neighbouring pixels of a channel fill a vector, and a weight is one multiplication of such
//! vectors by a number: weights that are zero cost nothing. A tile of up to [`VECTORS`] vectors of pixels is computed for
//! [`FILTERS`] filters at once, so that every vector that is read serves all of them. Which filters have a weight at a place of the
//! window is one of fifteen patterns, and places are sorted by it: each pattern is a loop of its own without a branch, with sums that
//! stay in registers; patterns of few places go with another one that has their filters, zeros included. So many channels are
//! read at a time as the first-level cache holds, for all filters of a block, where these share what they read.
#![expect(unsafe_code, reason = "pixels are read and written through pointers to shared memory")]

mod linear;
mod multiply;
mod pack;

use super::conv::check;
use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::sequence::{Stage, Step};
use super::{BLOCK, View, Weights, Window};
use crate::tier::{self, Tier};
use pack::{Matrix, Shape, Weighted, filters_of};
use std::ops::Range;

/// Filters computed at once.
const FILTERS: usize = 4;
/// Filters that have a weight at a place: a bit each.
const PATTERNS: usize = 1 << FILTERS;
/// Most vectors of pixels in a tile, on any tier.
const VECTORS: usize = 6;

impl Step {
    /// Whether [`Step::sparse_conv`] computes a convolution of this window from this map.
    pub fn sparse_conv_fits(window: &Window, src: &View) -> bool {
        let Window { kernel, stride, padding, dilation, groups } = *window;
        let out = |d: usize| (src.size[d] + 2 * padding[d]).checked_sub(dilation[d] * (kernel[d] - 1));
        let (Some(height), Some(width)) = (out(0), out(1)) else { return false };
        stride == [1, 1]
            && groups > 0
            && src.channels().is_multiple_of(groups)
            && src.pixel_stride == 1
            && src.phases == 1
            && u32::try_from(src.image_stride).is_ok()
            && height > 0
            && width > 0
            && (height - 1) * src.row_stride + width >= BLOCK
    }

    /// A convolution that does nothing for weights of zero, from a planar map to a blocked one; otherwise as [`Step::conv`].
    ///
    /// # Panics
    /// As [`Step::conv`], and if [`Step::sparse_conv_fits`] says no.
    pub fn sparse_conv(
        window: Window,
        weights: Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
    ) -> Self {
        Self::from_stage(Sparse::new(tier::active(), window, &weights, src, add, dst))
    }
}

/// Neighbouring pixels, across the ends of rows.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// First pixel, counted with the border.
    start: usize,
    /// Vectors.
    vectors: usize,
    /// Where the last vector begins, from `start`: it reaches back where another one would read behind the end.
    last: isize,
}

#[derive(Debug)]
struct Sparse {
    tier: &'static Tier,
    window: Window,
    src: View,
    add: Option<View>,
    relu: bool,
    /// One for each filter of the blocks.
    bias: Vec<f32>,
    weighted: Weighted,
    tiles: Vec<Tile>,
    dst: View,
}

/// Vectors of pixels whose sums stay in the registers of a tier, beside those that are read and a weight.
struct MostVectors;

impl Kernel for MostVectors {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> usize {
        ((L::SUMS + 2) / (FILTERS + 1)).clamp(1, VECTORS)
    }
}

/// Cuts so many pixels, at least a vector, into tiles of at most so many vectors; nothing behind the end is read.
fn tiles(pixels: usize, most: usize) -> Vec<Tile> {
    let vectors = pixels.div_ceil(BLOCK);
    let count = vectors.div_ceil(most);
    let mut tiles = Vec::with_capacity(count);
    let mut done = 0;
    for i in 0..count {
        let of = (vectors - done).div_ceil(count - i);
        let start = done * BLOCK;
        let last = (start + (of - 1) * BLOCK).min(pixels - BLOCK) as isize - start as isize;
        tiles.push(Tile { start, vectors: of, last });
        done += of;
    }
    tiles
}

impl Sparse {
    fn new(
        tier: &'static Tier,
        window: Window,
        weights: &Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
    ) -> Self {
        check(&window, weights, src, add, dst);
        assert!(Step::sparse_conv_fits(&window, src), "sparse convolution: {window:?} of {src:?}");
        let [height, width] = window.kernel;
        let matrix = Matrix {
            weights: weights.weight,
            filters: dst.channels() / window.groups,
            columns: src.channels() / window.groups * height * width,
        };
        // Distance of each column of all groups.
        let distance = |column: usize| {
            let (channel, r, s) = (column / (height * width), column / width % height, column % width);
            channel * src.block_stride + r * window.dilation[0] * src.row_stride + s * window.dilation[1]
        };
        // SAFETY: the kernel reads and writes nothing.
        let most = unsafe { tier.launch(MostVectors) };
        let tiles = tiles((dst.size[0] - 1) * src.row_stride + dst.size[1], most);
        let vectors = tiles.iter().map(|tile| tile.vectors).max().unwrap_or(0);
        let window_len =
            (height - 1) * window.dilation[0] * src.row_stride + (width - 1) * window.dilation[1];
        let shape =
            Shape { vectors, taps: height * width, len: vectors * BLOCK + window_len, most: usize::MAX };
        let weighted = Weighted::new(&matrix, dst, &shape, distance);
        let bias = |filter: usize| weights.bias.map_or(0.0, |bias| bias[filter]);
        let biases = |filters: Range<usize>| {
            let end = filters.start + BLOCK;
            let there = filters.clone().map(bias);
            there.chain((filters.end..end).map(|_| 0.0)).collect::<Vec<f32>>()
        };
        Self {
            tier,
            window,
            src: src.clone(),
            add: add.cloned(),
            relu: weights.relu,
            bias: filters_of(dst).flat_map(biases).collect(),
            weighted,
            tiles,
            dst: dst.clone(),
        }
    }
}

impl Stage for Sparse {
    fn reads(&self) -> Vec<&View> {
        [&self.src].into_iter().chain(&self.add).collect()
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        BLOCK * BLOCK * VECTORS
    }

    fn weight_bytes(&self) -> usize {
        self.weighted.bytes() + size_of_val(&*self.bias)
    }

    fn jobs(&self, images: usize) -> usize {
        images * self.tiles.len() * self.dst.blocks()
    }

    unsafe fn run(&self, job: usize, _images: usize, memory: &Memory, scratch: *mut f32) {
        // Blocks of a tile come one after the other: they read the same pixels.
        let (block, tile) = (job % self.dst.blocks(), job / self.dst.blocks() % self.tiles.len());
        let image = job / self.dst.blocks() / self.tiles.len();
        // SAFETY: handed on from the caller; jobs differ in image, block or pixels.
        unsafe {
            self.tier.launch(Part { sparse: self, memory, scratch, image, block, tile: self.tiles[tile] });
            if tile == 0 {
                memory.clear_border(&self.dst, image, block..block + 1, 0..self.dst.size[0]);
            }
        }
    }
}

/// A tile of a block of channels.
struct Part<'a> {
    sparse: &'a Sparse,
    memory: &'a Memory,
    scratch: *mut f32,
    image: usize,
    block: usize,
    tile: Tile,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: handed on from the caller.
        unsafe {
            match self.tile.vectors {
                1 => self.vectors::<L, 1>(),
                2 => self.vectors::<L, 2>(),
                3 => self.vectors::<L, 3>(),
                4 => self.vectors::<L, 4>(),
                5 => self.vectors::<L, 5>(),
                _ => self.vectors::<L, VECTORS>(),
            }
        }
    }
}

impl Part<'_> {
    /// All filters of the block, for so many vectors of pixels.
    ///
    /// # Safety
    /// As [`Stage::run`]; the machine has `L` and the caller is compiled for it.
    #[inline(always)]
    unsafe fn vectors<L: Lanes, const N: usize>(&self) {
        let Sparse { window, src, bias, weighted, .. } = self.sparse;
        let Weighted { filters, parts, .. } = weighted;
        let [above, left] = window.padding.map(|padding| padding as isize);
        let pixels = self.memory.at(src, self.image, 0, -above, -left);
        let each = BLOCK / FILTERS;
        let bias = &bias[self.block * BLOCK..(self.block + 1) * BLOCK];
        let filters = &filters[self.block * parts * each..(self.block + 1) * parts * each];
        // SAFETY: all places of the window are inside the map for all pixels of a tile; scratch is long enough.
        unsafe {
            let pixels = pixels.add(self.tile.start);
            for (i, packed) in filters.iter().enumerate() {
                let first = i % each * FILTERS;
                let at = |f: usize, n: usize| self.scratch.add(((first + f) * N + n) * BLOCK);
                let sums: [[L::Vector; N]; FILTERS] = std::array::from_fn(|f| match i < each {
                    true => [L::splat(bias[first + f]); N],
                    false => std::array::from_fn(|n| L::load(at(f, n))),
                });
                let sums = weighted.add_to::<L, N>(packed, pixels, self.tile.last, sums);
                for (f, sums) in sums.iter().enumerate() {
                    for (n, sum) in sums.iter().enumerate() {
                        L::store(at(f, n), *sum);
                    }
                }
            }
            self.write::<L, N>();
        }
    }

    /// Turns the sums in scratch memory into pixels of the block, with what is added to them.
    ///
    /// # Safety
    /// As [`Part::vectors`].
    #[inline(always)]
    unsafe fn write<L: Lanes, const N: usize>(&self) {
        let Sparse { src, add, relu, dst, .. } = self.sparse;
        let (row, [height, width]) = (src.row_stride, dst.size);
        let add_stride = add.as_ref().map_or(0, |add| add.pixel_stride);
        let at = |y: usize, x: usize| {
            let [y, x] = [y, x].map(|at| at as isize);
            let with = add.as_ref().map(|add| self.memory.at(add, self.image, self.block, y, x));
            (self.memory.at_mut(dst, self.image, self.block, y, x), with.unwrap_or(std::ptr::null()))
        };
        for n in 0..N {
            let from = self.tile.start + n * BLOCK;
            let mut pixel =
                if n + 1 < N { from } else { self.tile.start.wrapping_add_signed(self.tile.last) };
            let (mut y, mut x) = (pixel / row, pixel % row);
            let (mut to, mut with) = at(y, x);
            // All pixels are wanted, and of one row.
            let whole = pixel == from && x + BLOCK <= width;
            // SAFETY: handed on from the caller; pixels of the border are left out.
            unsafe {
                let mut rows: [L::Vector; BLOCK] =
                    std::array::from_fn(|channel| L::load(self.scratch.add((channel * N + n) * BLOCK)));
                L::transpose(&mut rows);
                for mut value in rows {
                    // What lies before was computed by the vector before, too.
                    if whole || (pixel >= from && x < width && y < height) {
                        if add.is_some() {
                            value = L::add(value, L::load(with));
                        }
                        L::store(to, if *relu { L::relu(value) } else { value });
                    }
                    (to, with) = (to.wrapping_add(dst.pixel_stride), with.wrapping_add(add_stride));
                    (pixel, x) = (pixel + 1, x + 1);
                    if x == row && !whole {
                        (x, y) = (0, y + 1);
                        (to, with) = at(y, x);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
