//! Blocks of sums over pixels.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use crate::blocked::BLOCK;
use crate::blocked::lanes::{Kernel, Lanes};

/// Most columns in a block of sums.
pub(super) const MAX_COLUMNS: usize = 16;

/// `sums[k, b, l] += sum over pixels of src[pixel + k] grad[pixel, b, l]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) images: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) columns: usize,
    pub(super) blocks: usize,
    pub(super) src: *const f32,
    pub(super) src_step: usize,
    pub(super) src_row: usize,
    pub(super) src_image: usize,
    pub(super) grad: *const f32,
    pub(super) grad_row: usize,
    pub(super) grad_image: usize,
    pub(super) grad_block: usize,
    pub(super) sums: *mut f32,
}

/// `sums[b, l] += sum over pixels of grad[pixel, b, l]`.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it; the pointers are valid for all that [`Tile`] names.
#[inline(always)]
pub(super) unsafe fn add_up<L: Lanes>(tile: &Tile) {
    // SAFETY: handed on from the caller.
    unsafe {
        for b in 0..tile.blocks {
            let mut sum = L::splat(0.0);
            for image in 0..tile.images {
                for y in 0..tile.rows {
                    let row =
                        tile.grad.add(image * tile.grad_image + y * tile.grad_row + b * tile.grad_block);
                    for x in 0..tile.width {
                        sum = L::add(sum, L::load(row.add(x * BLOCK)));
                    }
                }
            }
            let dst = tile.sums.add(b * BLOCK);
            L::store(dst, L::add(L::load(dst), sum));
        }
    }
}

/// # Safety
/// As [`add_up`], and `columns <= MAX_COLUMNS`, `columns blocks <= L::SUMS`, `blocks <= L::BLOCKS`, both positive.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes>(tile: &Tile) {
    debug_assert!(tile.columns * tile.blocks <= L::SUMS && tile.blocks <= L::BLOCKS, "{tile:?}");
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.blocks {
            1 => by_columns::<L, 1>(tile),
            2 => by_columns::<L, 2>(tile),
            _ => by_columns::<L, 3>(tile),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn by_columns<L: Lanes, const BLOCKS: usize>(tile: &Tile) {
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.columns {
            1 => block::<L, 1, BLOCKS>(tile),
            2 => block::<L, 2, BLOCKS>(tile),
            3 => block::<L, 3, BLOCKS>(tile),
            4 => block::<L, 4, BLOCKS>(tile),
            5 => block::<L, 5, BLOCKS>(tile),
            6 => block::<L, 6, BLOCKS>(tile),
            7 => block::<L, 7, BLOCKS>(tile),
            8 => block::<L, 8, BLOCKS>(tile),
            9 => block::<L, 9, BLOCKS>(tile),
            10 => block::<L, 10, BLOCKS>(tile),
            11 => block::<L, 11, BLOCKS>(tile),
            12 => block::<L, 12, BLOCKS>(tile),
            13 => block::<L, 13, BLOCKS>(tile),
            14 => block::<L, 14, BLOCKS>(tile),
            15 => block::<L, 15, BLOCKS>(tile),
            _ => block::<L, 16, BLOCKS>(tile),
        }
    }
}

/// # Safety
/// As [`multiply`], with the extents of the tile known at compile time.
#[inline(always)]
unsafe fn block<L: Lanes, const COLUMNS: usize, const BLOCKS: usize>(tile: &Tile) {
    // Blocks of sums that no tier asks for are not compiled.
    if COLUMNS * BLOCKS <= L::SUMS && BLOCKS <= L::BLOCKS {
        // SAFETY: handed on from the caller.
        unsafe { L::call(Block::<'_, COLUMNS, BLOCKS>(tile)) }
    }
}

struct Block<'a, const COLUMNS: usize, const BLOCKS: usize>(&'a Tile);

impl<const COLUMNS: usize, const BLOCKS: usize> Kernel for Block<'_, COLUMNS, BLOCKS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let tile = self.0;
        if COLUMNS * BLOCKS > L::SUMS || BLOCKS > L::BLOCKS {
            return;
        }
        // SAFETY: every pointer stays inside what `Tile` names.
        unsafe {
            let mut sums = [[L::splat(0.0); BLOCKS]; COLUMNS];
            for image in 0..tile.images {
                for y in 0..tile.rows {
                    let mut src = tile.src.add(image * tile.src_image + y * tile.src_row);
                    let mut grad = tile.grad.add(image * tile.grad_image + y * tile.grad_row);
                    for _ in 0..tile.width {
                        let mut g = [L::splat(0.0); BLOCKS];
                        for (b, g) in g.iter_mut().enumerate() {
                            *g = L::load(grad.add(b * tile.grad_block));
                        }
                        for (k, sums) in sums.iter_mut().enumerate() {
                            let number = L::splat(*src.add(k));
                            for (sum, g) in sums.iter_mut().zip(g) {
                                *sum = L::mul_add(number, g, *sum);
                            }
                        }
                        src = src.wrapping_add(tile.src_step);
                        grad = grad.wrapping_add(BLOCK);
                    }
                }
            }
            for (k, sums) in sums.iter().enumerate() {
                for (b, sum) in sums.iter().enumerate() {
                    let dst = tile.sums.add((k * BLOCKS + b) * BLOCK);
                    L::store(dst, L::add(L::load(dst), *sum));
                }
            }
        }
    }
}
