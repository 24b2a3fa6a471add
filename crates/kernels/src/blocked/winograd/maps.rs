//! Maps, transformed tile by tile.
#![expect(unsafe_code, reason = "tiles are read and written through pointers to shared memory")]

use std::ops::Range;

use super::transform;
use crate::blocked::lanes::{Kernel, Lanes};
use crate::blocked::memory::Memory;
use crate::blocked::{BLOCK, View};

/// Tiles of `N x N` input pixels for filters of `K x K` taps.
#[derive(Clone, Copy, Debug)]
pub(in crate::blocked) struct Grid<const N: usize, const K: usize> {
    /// Tiles of the result in a column and a row.
    tiles: [usize; 2],
}

impl<const N: usize, const K: usize> Grid<N, K> {
    /// Pixels of the result on a side of a tile.
    pub(super) const SIZE: usize = N - K + 1;

    /// For a result of so many rows and columns.
    pub(in crate::blocked) fn new(size: [usize; 2]) -> Self {
        Self { tiles: size.map(|size| size.div_ceil(Self::SIZE)) }
    }

    /// Tiles of some images.
    pub(in crate::blocked) fn tiles(&self, images: usize) -> usize {
        images * self.tiles[0] * self.tiles[1]
    }

    /// Image, row and column of the first pixel of a tile of the result.
    #[inline(always)]
    pub(super) fn place(&self, tile: usize) -> (usize, usize, usize) {
        let [rows, columns] = self.tiles;
        (tile / (rows * columns), tile / columns % rows * Self::SIZE, tile % columns * Self::SIZE)
    }
}

/// The input of one block of channels, transformed.
pub(in crate::blocked) struct Transform<'a, const N: usize, const K: usize> {
    pub(in crate::blocked) src: &'a View,
    pub(in crate::blocked) padding: [usize; 2],
    pub(in crate::blocked) grid: Grid<N, K>,
    pub(in crate::blocked) memory: &'a Memory,
    pub(in crate::blocked) block: usize,
    pub(in crate::blocked) tiles: Range<usize>,
    /// `[tile, BLOCK]` for each position, so many numbers apart.
    pub(in crate::blocked) to: *mut f32,
    pub(in crate::blocked) stride: usize,
}

impl<const N: usize, const K: usize> Transform<'_, N, K> {
    /// Rows from a tile to the one that is asked for along with it.
    const AHEAD: usize = Grid::<N, K>::SIZE;
}

impl<const N: usize, const K: usize> Kernel for Transform<'_, N, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { src, padding: [above, beside], grid, memory, block, tiles, to, stride } = self;
        let (high, wide) = (src.size[0] + src.border[0], src.size[1] + src.border[1]);
        for (index, tile) in (tiles.start..tiles.end).enumerate() {
            let (image, y, x) = grid.place(tile);
            // The first input pixel, counted from the border that is read.
            let first =
                memory.at(src, image, block, y as isize - above as isize, x as isize - beside as isize);
            let to = to.wrapping_add(index * BLOCK);
            // SAFETY: pixels are read inside the map and its border only; the scratch memory has room for the tile.
            unsafe {
                let pixel = |r: usize, s: usize| first.wrapping_add(r * src.row_stride + s * BLOCK);
                // Columns, then rows.
                let half = if y + N <= high + above && x + N <= wide + beside {
                    // What the tile below reads beyond this one: rows are too short for the machine to see it coming.
                    for (r, s) in (K - 1..N).flat_map(|r| (K - 1..N).map(move |s| (r, s))) {
                        L::prefetch(pixel(r + Self::AHEAD, s));
                    }
                    columns::<L, N>(|r, s| L::load(pixel(r, s)))
                } else {
                    columns::<L, N>(|r, s| match y + r < high + above && x + s < wide + beside {
                        true => L::load(pixel(r, s)),
                        false => L::splat(0.0),
                    })
                };
                for (r, row) in half.iter().enumerate() {
                    let row = transform::input::<L, N>(*row);
                    for (s, value) in row.iter().enumerate() {
                        L::store(to.add((r * N + s) * stride), *value);
                    }
                }
            }
        }
    }
}

/// The columns of a tile, transformed.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
unsafe fn columns<L: Lanes, const N: usize>(
    pixel: impl Fn(usize, usize) -> L::Vector,
) -> [[L::Vector; N]; N] {
    // SAFETY: promised by the caller.
    unsafe {
        let mut half = [[L::splat(0.0); N]; N];
        for s in 0..N {
            let mut column = [L::splat(0.0); N];
            for (r, value) in column.iter_mut().enumerate() {
                *value = pixel(r, s);
            }
            for (row, value) in half.iter_mut().zip(transform::input::<L, N>(column)) {
                row[s] = value;
            }
        }
        half
    }
}

/// The gradient of one block of channels of the result, transformed for the gradient of the filters.
pub(in crate::blocked) struct Spread<'a, const N: usize, const K: usize> {
    pub(in crate::blocked) grad: &'a View,
    pub(in crate::blocked) grid: Grid<N, K>,
    pub(in crate::blocked) memory: &'a Memory,
    pub(in crate::blocked) block: usize,
    pub(in crate::blocked) tiles: Range<usize>,
    /// As in [`Transform`].
    pub(in crate::blocked) to: *mut f32,
    pub(in crate::blocked) stride: usize,
}

impl<const N: usize, const K: usize> Kernel for Spread<'_, N, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { grad, grid, memory, block, tiles, to, stride } = self;
        let [height, width] = grad.size;
        for (index, tile) in (tiles.start..tiles.end).enumerate() {
            let (image, y, x) = grid.place(tile);
            let first = memory.at(grad, image, block, y as isize, x as isize);
            let to = to.wrapping_add(index * BLOCK);
            // SAFETY: pixels are read inside the map only; there is room for the tile.
            unsafe {
                // Zero beyond the map; the last `K - 1` rows and columns mean nothing.
                let mut half = [[L::splat(0.0); N]; N];
                for s in 0..Grid::<N, K>::SIZE {
                    let mut column = [L::splat(0.0); N];
                    if x + s < width {
                        for (r, value) in column[..Grid::<N, K>::SIZE].iter_mut().enumerate() {
                            if y + r < height {
                                *value = L::load(first.add(r * grad.row_stride + s * BLOCK));
                            }
                        }
                    }
                    let column = transform::spread::<L, N, K>(column);
                    for (row, value) in half.iter_mut().zip(column) {
                        row[s] = value;
                    }
                }
                for (r, row) in half.iter().enumerate() {
                    let row = transform::spread::<L, N, K>(*row);
                    for (s, value) in row.iter().enumerate() {
                        L::store(to.add((r * N + s) * stride), *value);
                    }
                }
            }
        }
    }
}
