//! The blocks of sums in registers that convolutions and products are made of.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use half::{bf16, f16};

use super::lanes::{Kernel, Lanes};
use super::view::BLOCK;

/// Neighbouring numbers of the input along the depth of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they begin, from the input of the first pixel of a tile.
    pub(crate) src: isize,
    /// How many there are.
    pub(crate) len: usize,
}

/// What a block of sums starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// [`BLOCK`] numbers for each block of output channels.
    Bias(*const f32),
    /// What the result holds already.
    Result,
}

/// A part of the result: `rows x width` pixels of `blocks` blocks of output channels.
///
/// `dst[y, x, b, l] = relu?(start + sum over k of src[y row_step + x step + runs[k]] weight[k, b, l] + add)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile<'a, W = f32> {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) blocks: usize,
    /// Numbers from the input of one pixel to that of the next.
    pub(crate) step: usize,
    /// Numbers from the input of one row of pixels to that of the next.
    pub(crate) row_step: usize,
    pub(crate) src: *const f32,
    pub(crate) runs: &'a [Run],
    /// `[depth, blocks, BLOCK]`.
    pub(crate) weight: *const W,
    /// A line for each step of the depth that will be read soon.
    pub(crate) next: *const f32,
    pub(crate) start: Start,
    pub(crate) dst: *mut f32,
    pub(crate) dst_row: usize,
    pub(crate) dst_block: usize,
    /// Numbers from one pixel of the result to the next; [`BLOCK`] where something is added.
    pub(crate) dst_step: usize,
    /// First number, row stride and block stride of what is added.
    pub(crate) add: Option<(*const f32, usize, usize)>,
    pub(crate) relu: bool,
}

/// A number as weights are kept.
pub(crate) trait Weight: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The nearest one, ties to even.
    fn nearest(value: f32) -> Self;

    /// Reads sixteen.
    ///
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load<L: Lanes>(src: *const Self) -> L::Vector;
}

impl Weight for f32 {
    fn nearest(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(src: *const Self) -> L::Vector {
        // SAFETY: handed on from the caller.
        unsafe { L::load(src) }
    }
}

impl Weight for bf16 {
    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(src: *const Self) -> L::Vector {
        // SAFETY: handed on from the caller.
        unsafe { L::load_bf16(src) }
    }
}

impl Weight for f16 {
    fn nearest(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(src: *const Self) -> L::Vector {
        // SAFETY: handed on from the caller.
        unsafe { L::load_f16(src) }
    }
}

/// Most pixels in a row of a tile.
pub(crate) const MAX_WIDTH: usize = 14;
/// Most rows in a tile.
pub(crate) const MAX_ROWS: usize = 4;

/// Computes a tile.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it; the pointers are valid for all that [`Tile`] names, nothing else
/// touches the result meanwhile, and `rows width blocks <= L::SUMS`, `blocks <= L::BLOCKS`, `rows <= MAX_ROWS`, `width <=
/// MAX_WIDTH`, all positive, and `rows` is 1 unless `step` is one or two blocks and `width <= 7`.
#[inline(always)]
pub(crate) unsafe fn multiply<L: Lanes>(tile: &Tile<'_>) {
    debug_assert!(tile.rows * tile.width * tile.blocks <= L::SUMS, "{tile:?}");
    // SAFETY: handed on from the caller.
    unsafe {
        match (tile.blocks, tile.step) {
            (1, BLOCK) => by_rows::<L, 1, BLOCK>(tile),
            (2, BLOCK) => by_rows::<L, 2, BLOCK>(tile),
            (3, BLOCK) => by_rows::<L, 3, BLOCK>(tile),
            (1, STEP_2) => by_rows::<L, 1, STEP_2>(tile),
            (2, STEP_2) => by_rows::<L, 2, STEP_2>(tile),
            (3, STEP_2) => by_rows::<L, 3, STEP_2>(tile),
            (1, 1) => by_width::<L, f32, 1, 1, 1>(tile),
            (2, 1) => by_width::<L, f32, 1, 2, 1>(tile),
            (3, 1) => by_width::<L, f32, 1, 3, 1>(tile),
            (1, _) => by_width::<L, f32, 1, 1, 0>(tile),
            (2, _) => by_width::<L, f32, 1, 2, 0>(tile),
            (_, _) => by_width::<L, f32, 1, 3, 0>(tile),
        }
    }
}

/// Computes a tile of one row and at most two blocks, whatever its weights are kept as.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_row<L: Lanes, W: Weight>(tile: &Tile<'_, W>) {
    debug_assert!(tile.rows == 1 && tile.width * tile.blocks <= L::SUMS && tile.blocks <= 2, "{tile:?}");
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.blocks {
            1 => by_width::<L, W, 1, 1, 0>(tile),
            _ => by_width::<L, W, 1, 2, 0>(tile),
        }
    }
}

/// Step of a convolution with horizontal stride 2.
const STEP_2: usize = 2 * BLOCK;

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn by_rows<L: Lanes, const BLOCKS: usize, const STEP: usize>(tile: &Tile<'_>) {
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.rows {
            1 => by_width::<L, f32, 1, BLOCKS, STEP>(tile),
            2 => by_short_width::<L, 2, BLOCKS, STEP>(tile),
            3 => by_short_width::<L, 3, BLOCKS, STEP>(tile),
            _ => by_short_width::<L, 4, BLOCKS, STEP>(tile),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn by_short_width<L: Lanes, const ROWS: usize, const BLOCKS: usize, const STEP: usize>(
    tile: &Tile<'_>,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.width {
            1 => block::<L, f32, ROWS, 1, BLOCKS, STEP>(tile),
            2 => block::<L, f32, ROWS, 2, BLOCKS, STEP>(tile),
            3 => block::<L, f32, ROWS, 3, BLOCKS, STEP>(tile),
            4 => block::<L, f32, ROWS, 4, BLOCKS, STEP>(tile),
            5 => block::<L, f32, ROWS, 5, BLOCKS, STEP>(tile),
            6 => block::<L, f32, ROWS, 6, BLOCKS, STEP>(tile),
            _ => block::<L, f32, ROWS, 7, BLOCKS, STEP>(tile),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn by_width<L: Lanes, W: Weight, const ROWS: usize, const BLOCKS: usize, const STEP: usize>(
    tile: &Tile<'_, W>,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.width {
            1 => block::<L, W, ROWS, 1, BLOCKS, STEP>(tile),
            2 => block::<L, W, ROWS, 2, BLOCKS, STEP>(tile),
            3 => block::<L, W, ROWS, 3, BLOCKS, STEP>(tile),
            4 => block::<L, W, ROWS, 4, BLOCKS, STEP>(tile),
            5 => block::<L, W, ROWS, 5, BLOCKS, STEP>(tile),
            6 => block::<L, W, ROWS, 6, BLOCKS, STEP>(tile),
            7 => block::<L, W, ROWS, 7, BLOCKS, STEP>(tile),
            8 => block::<L, W, ROWS, 8, BLOCKS, STEP>(tile),
            9 => block::<L, W, ROWS, 9, BLOCKS, STEP>(tile),
            10 => block::<L, W, ROWS, 10, BLOCKS, STEP>(tile),
            11 => block::<L, W, ROWS, 11, BLOCKS, STEP>(tile),
            12 => block::<L, W, ROWS, 12, BLOCKS, STEP>(tile),
            13 => block::<L, W, ROWS, 13, BLOCKS, STEP>(tile),
            _ => block::<L, W, ROWS, 14, BLOCKS, STEP>(tile),
        }
    }
}

/// # Safety
/// As [`multiply`], with the extents of the tile known at compile time; `STEP` 0 is any step.
#[inline(always)]
unsafe fn block<
    L: Lanes,
    W: Weight,
    const ROWS: usize,
    const WIDTH: usize,
    const BLOCKS: usize,
    const STEP: usize,
>(
    tile: &Tile<'_, W>,
) {
    // Blocks of sums that no tier asks for are not compiled.
    if ROWS * WIDTH * BLOCKS <= L::SUMS && BLOCKS <= L::BLOCKS {
        // SAFETY: handed on from the caller.
        unsafe { L::call(Block::<'_, W, ROWS, WIDTH, BLOCKS, STEP>(tile)) }
    }
}

struct Block<'a, W, const ROWS: usize, const WIDTH: usize, const BLOCKS: usize, const STEP: usize>(
    &'a Tile<'a, W>,
);

impl<W: Weight, const ROWS: usize, const WIDTH: usize, const BLOCKS: usize, const STEP: usize> Kernel
    for Block<'_, W, ROWS, WIDTH, BLOCKS, STEP>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let tile = self.0;
        if ROWS * WIDTH * BLOCKS > L::SUMS || BLOCKS > L::BLOCKS {
            return;
        }
        let step = if STEP == 0 { tile.step } else { STEP };
        // SAFETY: every pointer stays inside what `Tile` names.
        unsafe {
            let mut sum = start::<L, W, ROWS, WIDTH, BLOCKS>(tile);
            let mut weight = tile.weight;
            let mut next = tile.next;
            for run in tile.runs {
                let mut src = tile.src.offset(run.src);
                for _ in 0..run.len {
                    L::prefetch(next);
                    next = next.wrapping_add(BLOCK);
                    let mut w = [L::splat(0.0); BLOCKS];
                    for (b, w) in w.iter_mut().enumerate() {
                        *w = W::load::<L>(weight.add(b * BLOCK));
                    }
                    for (y, sum) in sum.iter_mut().enumerate() {
                        let row = src.add(y * tile.row_step);
                        for (x, sum) in sum.iter_mut().enumerate() {
                            let pixel = L::splat(*row.add(x * step));
                            for (sum, w) in sum.iter_mut().zip(w) {
                                *sum = L::mul_add(pixel, w, *sum);
                            }
                        }
                    }
                    weight = weight.add(BLOCKS * BLOCK);
                    src = src.add(1);
                }
            }
            finish::<L, W, ROWS, WIDTH, BLOCKS>(tile, &mut sum);
        }
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn start<L: Lanes, W, const ROWS: usize, const WIDTH: usize, const BLOCKS: usize>(
    tile: &Tile<'_, W>,
) -> [[[L::Vector; BLOCKS]; WIDTH]; ROWS] {
    // SAFETY: handed on from the caller.
    unsafe {
        let mut sum = [[[L::splat(0.0); BLOCKS]; WIDTH]; ROWS];
        match tile.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                for b in 0..BLOCKS {
                    let bias = L::load(bias.add(b * BLOCK));
                    for row in &mut sum {
                        for sum in row {
                            sum[b] = bias;
                        }
                    }
                }
            }
            Start::Result => {
                for (y, sum) in sum.iter_mut().enumerate() {
                    for (x, sum) in sum.iter_mut().enumerate() {
                        for (b, sum) in sum.iter_mut().enumerate() {
                            *sum = L::load(
                                tile.dst.add(y * tile.dst_row + b * tile.dst_block + x * tile.dst_step),
                            );
                        }
                    }
                }
            }
        }
        sum
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn finish<L: Lanes, W, const ROWS: usize, const WIDTH: usize, const BLOCKS: usize>(
    tile: &Tile<'_, W>,
    sum: &mut [[[L::Vector; BLOCKS]; WIDTH]; ROWS],
) {
    // SAFETY: handed on from the caller.
    unsafe {
        if let Some((add, add_row, add_block)) = tile.add {
            for (y, sum) in sum.iter_mut().enumerate() {
                for (x, sum) in sum.iter_mut().enumerate() {
                    for (b, sum) in sum.iter_mut().enumerate() {
                        *sum = L::add(*sum, L::load(add.add(y * add_row + b * add_block + x * BLOCK)));
                    }
                }
            }
        }
        if tile.relu {
            for row in &mut *sum {
                for sum in row {
                    for sum in sum {
                        *sum = L::relu(*sum);
                    }
                }
            }
        }
        for (y, sum) in sum.iter().enumerate() {
            for (x, sum) in sum.iter().enumerate() {
                for (b, sum) in sum.iter().enumerate() {
                    L::store(tile.dst.add(y * tile.dst_row + b * tile.dst_block + x * tile.dst_step), *sum);
                }
            }
        }
    }
}

/// A part of a thin result: `width` pixels of `count` output channels, one block of the result.
///
/// The depth of the product lies in the lanes, so that no lane is lost to channels that do not exist: `dst[x, j] =
/// relu?(start[j] + sum over runs r and lanes l of src[x step + runs[r] + l] weight[r, j, l] + add)`, zero in lanes `j >= count`
/// but for `start` and `add`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThinTile<'a> {
    pub(crate) width: usize,
    pub(crate) count: usize,
    pub(crate) step: usize,
    pub(crate) src: *const f32,
    /// Where the input of each step begins, always [`BLOCK`] numbers.
    pub(crate) runs: &'a [Run],
    /// `[runs, count, BLOCK]`.
    pub(crate) weight: *const f32,
    /// [`BLOCK`] numbers.
    pub(crate) bias: *const f32,
    pub(crate) dst: *mut f32,
    pub(crate) add: Option<*const f32>,
    pub(crate) relu: bool,
}

/// Most output channels of a thin tile on a tier with `sums` sums.
pub(crate) fn max_thin(sums: usize) -> usize {
    if sums >= 24 { 12 } else { sums.min(6) }
}

/// Computes a thin tile.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it; the pointers are valid for all that [`ThinTile`] names, nothing else
/// touches the result meanwhile, and `1 <= count <= max_thin(L::SUMS)`.
#[inline(always)]
pub(crate) unsafe fn multiply_thin<L: Lanes>(tile: &ThinTile<'_>) {
    // SAFETY: handed on from the caller.
    unsafe {
        match tile.count {
            1 => thin_by_width::<L, 1>(tile),
            2 => thin_by_width::<L, 2>(tile),
            3 => thin_by_width::<L, 3>(tile),
            4 => thin_by_width::<L, 4>(tile),
            5 => thin_by_width::<L, 5>(tile),
            6 => thin_by_width::<L, 6>(tile),
            7 => thin_by_width::<L, 7>(tile),
            8 => thin_by_width::<L, 8>(tile),
            9 => thin_by_width::<L, 9>(tile),
            10 => thin_by_width::<L, 10>(tile),
            11 => thin_by_width::<L, 11>(tile),
            _ => thin_by_width::<L, 12>(tile),
        }
    }
}

/// # Safety
/// As [`multiply_thin`].
#[inline(always)]
unsafe fn thin_by_width<L: Lanes, const COUNT: usize>(tile: &ThinTile<'_>) {
    let mut done = 0;
    // SAFETY: handed on from the caller; the parts lie inside the tile.
    unsafe {
        while 8 * COUNT <= L::SUMS && done + 8 <= tile.width {
            thin::<L, 8, COUNT>(&tile.from(done));
            done += 8;
        }
        while 4 * COUNT <= L::SUMS && done + 4 <= tile.width {
            thin::<L, 4, COUNT>(&tile.from(done));
            done += 4;
        }
        while 2 * COUNT <= L::SUMS && done + 2 <= tile.width {
            thin::<L, 2, COUNT>(&tile.from(done));
            done += 2;
        }
        while done < tile.width {
            thin::<L, 1, COUNT>(&tile.from(done));
            done += 1;
        }
    }
}

impl ThinTile<'_> {
    /// The pixels from `x` on.
    #[inline(always)]
    fn from(&self, x: usize) -> Self {
        Self {
            src: self.src.wrapping_add(x * self.step),
            dst: self.dst.wrapping_add(x * BLOCK),
            add: self.add.map(|add| add.wrapping_add(x * BLOCK)),
            width: self.width - x,
            ..*self
        }
    }
}

/// # Safety
/// As [`multiply_thin`], for the first `WIDTH` pixels.
#[inline(always)]
unsafe fn thin<L: Lanes, const WIDTH: usize, const COUNT: usize>(tile: &ThinTile<'_>) {
    if WIDTH * COUNT <= L::SUMS {
        // SAFETY: handed on from the caller.
        unsafe { L::call(Thin::<'_, WIDTH, COUNT>(tile)) }
    }
}

struct Thin<'a, const WIDTH: usize, const COUNT: usize>(&'a ThinTile<'a>);

impl<const WIDTH: usize, const COUNT: usize> Kernel for Thin<'_, WIDTH, COUNT> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let tile = self.0;
        if WIDTH * COUNT > L::SUMS {
            return;
        }
        // SAFETY: every pointer stays inside what `ThinTile` names.
        unsafe {
            let mut sum = [[L::splat(0.0); COUNT]; WIDTH];
            let mut weight = tile.weight;
            for run in tile.runs {
                let src = tile.src.offset(run.src);
                let mut pixel = [L::splat(0.0); WIDTH];
                for (x, pixel) in pixel.iter_mut().enumerate() {
                    *pixel = L::load(src.add(x * tile.step));
                }
                for j in 0..COUNT {
                    let w = L::load(weight.add(j * BLOCK));
                    for (sum, pixel) in sum.iter_mut().zip(pixel) {
                        sum[j] = L::mul_add(pixel, w, sum[j]);
                    }
                }
                weight = weight.add(COUNT * BLOCK);
            }
            let bias = L::load(tile.bias);
            for (x, sum) in sum.iter().enumerate() {
                let mut rows = [L::splat(0.0); 16];
                for (row, sum) in rows.iter_mut().zip(sum) {
                    *row = *sum;
                }
                let mut value = L::add(L::sums(&rows, COUNT), bias);
                if let Some(add) = tile.add {
                    value = L::add(value, L::load(add.add(x * BLOCK)));
                }
                if tile.relu {
                    value = L::relu(value);
                }
                L::store(tile.dst.add(x * BLOCK), value);
            }
        }
    }
}
