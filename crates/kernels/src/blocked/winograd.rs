//! Winograd's convolution for 3x3 filters of stride 1 (Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//!
//! The result is cut into tiles of `m x m` pixels. Each input tile of `(m + 2)^2` pixels and each filter is transformed, the
//! transforms are multiplied position by position (one product of matrices for each of the `(m + 2)^2` positions, over the
//! channels), and the result is transformed back: `(m + 2)^2` multiplications in place of `9 m^2`, 4 times fewer for `m = 4`, 2.25
//! times for `m = 2`, where a map is a multiple of the tile.
#![expect(unsafe_code, reason = "tiles read packed weights and write into shared memory")]

#[cfg(test)]
mod tests;
mod transform;

use std::ops::Range;

use super::conv::{Weights, Window, at_once, check};
use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::micro::{self, MAX_WIDTH, Run, Start, Tile};
use super::sequence::{Stage, Step};
use super::{BLOCK, View};
use crate::tier::{self, Tier};

/// Size of a tile of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WinogradTile {
    /// 2x2 pixels, 2.25 times fewer multiplications.
    Two,
    /// 4x4 pixels, 4 times fewer multiplications.
    Four,
}

impl WinogradTile {
    /// Pixels on a side.
    pub fn size(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Largest error of a result relative to the largest result of the layer that is to be expected; the tests hold random
    /// layers to it.
    pub fn error_bound(self) -> f32 {
        match self {
            Self::Two => 4e-6,
            Self::Four => 3e-5,
        }
    }
}

impl Step {
    /// Whether a convolution can be computed by Winograd's method: 3x3 taps without gaps, stride 1, and no block of channels that
    /// belongs to two groups.
    pub fn winograd_fits(window: &Window, src: &View, dst: &View) -> bool {
        let whole = |view: &View| group_blocks(view, window.groups).is_some();
        window.kernel == [3, 3]
            && window.stride == [1, 1]
            && window.dilation == [1, 1]
            && src.pixel_stride == BLOCK
            && whole(src)
            && whole(dst)
    }

    /// A convolution by Winograd's method; otherwise as [`Step::conv`].
    ///
    /// # Panics
    /// As [`Step::conv`], and unless [`Step::winograd_fits`].
    #[expect(clippy::too_many_arguments, reason = "those of `Step::conv` and the tile")]
    pub fn winograd(
        tile: WinogradTile,
        window: Window,
        weights: Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        let tier = tier::active();
        match tile {
            WinogradTile::Two => {
                Self::from_stage(Winograd::<4>::new(tier, window, weights, src, add, dst, images, threads))
            }
            WinogradTile::Four => {
                Self::from_stage(Winograd::<6>::new(tier, window, weights, src, add, dst, images, threads))
            }
        }
    }
}

/// Blocks of each group, if no block belongs to two.
fn group_blocks(view: &View, groups: usize) -> Option<Vec<Range<usize>>> {
    let share = view.channels() / groups;
    let mut found = Vec::new();
    let (mut start, mut channels) = (0, 0);
    for (block, &lanes) in view.lanes.iter().enumerate() {
        channels += usize::from(lanes);
        if channels == share {
            found.push(start..block + 1);
            (start, channels) = (block + 1, 0);
        } else if channels > share {
            return None;
        }
    }
    (found.len() == groups).then_some(found)
}

/// A cache line of numbers, so that packed weights are aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; BLOCK]);

/// Numbers of a transformed input that a job should keep in the second-level cache: 640 KiB.
const RESIDENT: usize = 160 * 1024;
/// Bytes that arrive from the second or third cache in a cycle.
const LOADED: f64 = 16.0;
/// Fewest tiles that are worth cutting: a tile more or less changes the speed of a product little beyond.
const TILES: usize = 14;

/// A convolution with tiles of `N x N` input pixels.
#[derive(Debug)]
struct Winograd<const N: usize> {
    tier: &'static Tier,
    window: Window,
    src: View,
    dst: View,
    add: Option<View>,
    relu: bool,
    /// Tiles of the result in a column and a row.
    tiles: [usize; 2],
    passes: Vec<Pass>,
    lines: Vec<Line>,
    /// Tiles and passes of a job.
    tiles_at_once: usize,
    passes_at_once: usize,
}

/// Blocks of the result that are computed together.
#[derive(Debug)]
struct Pass {
    dst_block: usize,
    blocks: usize,
    /// Blocks of the source that they read.
    inputs: Range<usize>,
    depth: usize,
    /// First line of the weights, `[position, depth, blocks]`.
    weight: usize,
    /// First line of the biases.
    bias: usize,
}

impl<const N: usize> Winograd<N> {
    /// Pixels of the result on a side of a tile.
    const SIZE: usize = N - 2;
    /// Products for a tile.
    const POSITIONS: usize = N * N;

    #[expect(clippy::too_many_arguments, reason = "those of `Step::conv` and the tier")]
    fn new(
        tier: &'static Tier,
        window: Window,
        weights: Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        check(&window, &weights, src, add, dst);
        assert!(Step::winograd_fits(&window, src, dst), "winograd: {window:?} of {src:?} to {dst:?}");
        let groups = |view: &View| group_blocks(view, window.groups).unwrap_or_default();
        let mut winograd = Self {
            tier,
            window,
            src: src.clone(),
            dst: dst.clone(),
            add: add.cloned(),
            relu: weights.relu,
            tiles: dst.size.map(|size| size.div_ceil(Self::SIZE)),
            passes: Vec::new(),
            lines: Vec::new(),
            tiles_at_once: 1,
            passes_at_once: 1,
        };
        for (group, (inputs, outputs)) in groups(src).into_iter().zip(groups(dst)).enumerate() {
            let mut block = outputs.start;
            while block < outputs.end {
                let blocks = at_once(outputs.end - block, tier.blocks);
                winograd.pack(group, block, blocks, inputs.clone(), &weights);
                block += blocks;
            }
        }
        winograd.schedule(images, threads);
        winograd
    }

    fn pack(
        &mut self,
        group: usize,
        dst_block: usize,
        blocks: usize,
        inputs: Range<usize>,
        weights: &Weights<'_>,
    ) {
        let depth = self.src.lanes[inputs.clone()].iter().map(|&lanes| usize::from(lanes)).sum::<usize>();
        let outputs = self.dst.channels() / self.window.groups;
        let first: usize = self.dst.lanes[..dst_block].iter().map(|&lanes| usize::from(lanes)).sum();
        let bias = self.lines.len();
        let lanes: Vec<usize> =
            self.dst.lanes[dst_block..dst_block + blocks].iter().map(|&l| usize::from(l)).collect();
        self.lines.resize(bias + blocks * (1 + Self::POSITIONS * depth), Line([0.0; BLOCK]));
        let weight = bias + blocks;
        let mut output = first;
        for (block, lanes) in lanes.into_iter().enumerate() {
            for lane in 0..lanes {
                self.lines[bias + block].0[lane] = weights.bias.map_or(0.0, |bias| bias[output]);
                for k in 0..depth {
                    let at = (output * depth + k) * 9;
                    let filter: [f32; 9] = std::array::from_fn(|tap| weights.weight[at + tap]);
                    for (position, value) in transform::filter::<N>(&filter).into_iter().flatten().enumerate()
                    {
                        self.lines[weight + (position * depth + k) * blocks + block].0[lane] = value;
                    }
                }
                output += 1;
            }
        }
        debug_assert!(output <= (group + 1) * outputs);
        self.passes.push(Pass { dst_block, blocks, inputs, depth, weight, bias });
    }

    /// Cuts tiles and passes into the jobs that should end first. Transforming the input again for other passes costs little where
    /// there are many of them; reading the weights again for other tiles costs little where they are small.
    fn schedule(&mut self, images: usize, threads: usize) {
        let all = self.tiles_of(images).max(1);
        let passes = self.passes.len().max(1);
        let tile = Self::POSITIONS * self.src.blocks() * BLOCK;
        let most = (RESIDENT / tile / TILES * TILES).max(TILES);
        let rounds = all.div_ceil(most);
        let mut best = (f64::INFINITY, all, passes);
        let pass_jobs: &[usize] = if threads == 1 { &[1] } else { &[1, 2, 3, 4, 6, 8] };
        for tile_jobs in rounds..=(rounds + threads).next_multiple_of(threads) {
            let several = pass_jobs.iter().map(|jobs| jobs * threads.div_ceil(2));
            for pass_jobs in std::iter::once(1).chain(several.filter(|jobs| *jobs <= passes)) {
                let (tiles, passes_each) = (all.div_ceil(tile_jobs), passes.div_ceil(pass_jobs));
                let jobs = all.div_ceil(tiles) * passes.div_ceil(passes_each);
                let cycles = jobs.div_ceil(threads) as f64 * self.cycles(tiles, passes_each);
                if cycles < best.0 {
                    best = (cycles, tiles, passes_each);
                }
            }
        }
        (_, self.tiles_at_once, self.passes_at_once) = best;
    }

    /// About how long a job takes, in cycles of a machine that does two operations on 16 numbers in one.
    fn cycles(&self, tiles: usize, passes: usize) -> f64 {
        let Some(pass) = self.passes.first() else { return 0.0 };
        let most = (self.tier.sums / pass.blocks).min(MAX_WIDTH);
        let columns = tiles.div_ceil(most);
        // A narrow product waits for the sums before it; the first one for the weights.
        let width = (tiles as f64 / columns as f64 * pass.blocks as f64 / 2.0).max(4.0);
        let weights = (pass.blocks * BLOCK * size_of::<f32>()) as f64 / LOADED;
        let step = width * (columns - 1) as f64 + width.max(weights);
        let products = (Self::POSITIONS * pass.depth) as f64 * step;
        let transforms = (tiles * N * N) as f64 * 2.0;
        transforms * pass.inputs.len() as f64
            + passes as f64 * (products + transforms * pass.blocks as f64)
            + 500.0
    }

    fn tiles_of(&self, images: usize) -> usize {
        images * self.tiles[0] * self.tiles[1]
    }

    /// Numbers from one position of the transformed input to the next; not a power of two, so that positions do not fall on the
    /// same lines of the cache.
    fn input_stride(&self) -> usize {
        self.src.blocks() * self.tiles_at_once * BLOCK + BLOCK
    }

    /// Numbers from one position of the products to the next.
    fn product_stride(&self) -> usize {
        self.tier.blocks * self.tiles_at_once * BLOCK + BLOCK
    }

    /// Image, row and column of the first pixel of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let [rows, columns] = self.tiles;
        (tile / (rows * columns), tile / columns % rows * Self::SIZE, tile % columns * Self::SIZE)
    }
}

impl<const N: usize> Stage for Winograd<N> {
    fn reads(&self) -> Vec<&View> {
        [&self.src].into_iter().chain(&self.add).collect()
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        Self::POSITIONS * (self.input_stride() + self.product_stride())
    }

    fn weight_bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    fn jobs(&self, images: usize) -> usize {
        self.tiles_of(images).div_ceil(self.tiles_at_once) * self.passes.len().div_ceil(self.passes_at_once)
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32) {
        let pass_jobs = self.passes.len().div_ceil(self.passes_at_once);
        let first = job / pass_jobs * self.tiles_at_once;
        let tiles = first..self.tiles_of(images).min(first + self.tiles_at_once);
        let first = job % pass_jobs * self.passes_at_once;
        let passes = &self.passes[first..self.passes.len().min(first + self.passes_at_once)];
        let products = scratch.wrapping_add(Self::POSITIONS * self.input_stride());
        // SAFETY: handed on from the caller; jobs differ in tiles or passes, and so in what they write.
        unsafe {
            let part =
                Part { winograd: self, memory, input: scratch, products, tiles: tiles.clone(), passes };
            self.tier.launch(part);
            if self.dst.border != [0, 0] {
                for pass in passes {
                    self.clear_border(memory, tiles.clone(), pass);
                }
            }
        }
    }
}

impl<const N: usize> Winograd<N> {
    /// Zeroes the border beside the tiles at the edges.
    ///
    /// # Safety
    /// As [`Stage::run`].
    unsafe fn clear_border(&self, memory: &Memory, tiles: Range<usize>, pass: &Pass) {
        for tile in tiles {
            let (image, y, x) = self.place(tile);
            // The first tile of a row clears the border of the whole row.
            if x == 0 {
                let rows = y..self.dst.size[0].min(y + Self::SIZE);
                let blocks = pass.dst_block..pass.dst_block + pass.blocks;
                // SAFETY: handed on from the caller; nobody else touches the border of these rows.
                unsafe { memory.clear_border(&self.dst, image, blocks, rows) };
            }
        }
    }
}

/// One job.
struct Part<'a, const N: usize> {
    winograd: &'a Winograd<N>,
    memory: &'a Memory,
    /// `[position, block, tile, BLOCK]`.
    input: *mut f32,
    /// `[position, block of the pass, tile, BLOCK]`.
    products: *mut f32,
    tiles: Range<usize>,
    passes: &'a [Pass],
}

impl<const N: usize> Kernel for Part<'_, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (Some(first), Some(last)) = (self.passes.first(), self.passes.last()) else { return };
        // SAFETY: handed on from the caller.
        unsafe {
            for block in first.inputs.start..last.inputs.end {
                L::call(Transform { part: &self, block });
            }
            for pass in self.passes {
                self.multiply::<L>(pass);
                for block in 0..pass.blocks {
                    L::call(Back { part: &self, pass, block });
                }
            }
        }
    }
}

impl<const N: usize> Part<'_, N> {
    /// The products of all positions for the blocks of a pass.
    #[inline(always)]
    unsafe fn multiply<L: Lanes>(&self, pass: &Pass) {
        let winograd = self.winograd;
        let count = self.tiles.end - self.tiles.start;
        let block_stride = winograd.tiles_at_once * BLOCK;
        let most = (L::SUMS / pass.blocks).min(MAX_WIDTH);
        let columns = count.div_ceil(most);
        // One run for each block of the source: as many as fit a page of the stack at once.
        let mut runs = [Run { src: 0, len: 0 }; RUNS];
        for position in 0..N * N {
            let input = self.input.wrapping_add(position * winograd.input_stride());
            let products = self.products.wrapping_add(position * winograd.product_stride());
            let mut line = pass.weight + position * pass.depth * pass.blocks;
            let mut block = pass.inputs.start;
            while block < pass.inputs.end {
                let first = block;
                let mut depth = 0;
                let mut used = 0;
                while block < pass.inputs.end && used < RUNS {
                    let lanes = usize::from(winograd.src.lanes[block]);
                    runs[used] = Run { src: (block * block_stride) as isize, len: lanes };
                    (depth, used, block) = (depth + lanes, used + 1, block + 1);
                }
                // The first products ask for the weights of the next position.
                let mut ahead = depth * pass.blocks * BLOCK;
                let (mut done, mut left) = (0, columns);
                while done < count {
                    let width = (count - done).div_ceil(left);
                    let tile = Tile {
                        rows: 1,
                        width,
                        blocks: pass.blocks,
                        step: BLOCK,
                        row_step: 0,
                        src: input.wrapping_add(done * BLOCK),
                        runs: &runs[..used],
                        weight: winograd.lines[line..].as_ptr().cast(),
                        next: winograd.lines[line..].as_ptr().cast::<f32>().wrapping_add(ahead),
                        start: if first == pass.inputs.start { Start::Zero } else { Start::Result },
                        dst: products.wrapping_add(done * BLOCK),
                        dst_row: 0,
                        dst_block: block_stride,
                        dst_step: BLOCK,
                        add: None,
                        relu: false,
                    };
                    // SAFETY: the scratch memory has room for all positions, blocks and tiles.
                    unsafe { micro::multiply::<L>(&tile) };
                    ahead += depth * BLOCK;
                    done += width;
                    left -= 1;
                }
                line += depth * pass.blocks;
            }
        }
    }
}

/// Blocks of the source whose weights stay in the first-level cache for all tiles: 256 channels.
const RUNS: usize = 16;

/// The input of one block of channels, transformed.
struct Transform<'a, const N: usize> {
    part: &'a Part<'a, N>,
    block: usize,
}

impl<const N: usize> Kernel for Transform<'_, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Part { winograd, memory, input, ref tiles, .. } = *self.part;
        let src = &winograd.src;
        let (high, wide) = (src.size[0] + src.border[0], src.size[1] + src.border[1]);
        let [above, beside] = winograd.window.padding;
        let stride = winograd.input_stride();
        for (index, tile) in (tiles.start..tiles.end).enumerate() {
            let (image, y, x) = winograd.place(tile);
            // The first input pixel, counted from the border that is read.
            let first =
                memory.at(src, image, self.block, y as isize - above as isize, x as isize - beside as isize);
            let to = input.wrapping_add((self.block * winograd.tiles_at_once + index) * BLOCK);
            // SAFETY: pixels are read inside the map and its border only; the scratch memory has room for the tile.
            unsafe {
                let mut pixels = [[L::splat(0.0); N]; N];
                if y + N <= high + above && x + N <= wide + beside {
                    for (r, row) in pixels.iter_mut().enumerate() {
                        for (s, pixel) in row.iter_mut().enumerate() {
                            *pixel = L::load(first.add(r * src.row_stride + s * BLOCK));
                        }
                    }
                } else {
                    for (r, row) in pixels.iter_mut().enumerate() {
                        for (s, pixel) in row.iter_mut().enumerate() {
                            if y + r < high + above && x + s < wide + beside {
                                *pixel = L::load(first.add(r * src.row_stride + s * BLOCK));
                            }
                        }
                    }
                }
                // Columns, then rows.
                let mut half = [[L::splat(0.0); N]; N];
                for s in 0..N {
                    let mut column = [L::splat(0.0); N];
                    for (r, value) in column.iter_mut().enumerate() {
                        *value = pixels[r][s];
                    }
                    let column = transform::input::<L, N>(column);
                    for (r, value) in column.iter().enumerate() {
                        half[r][s] = *value;
                    }
                }
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

/// The products of one block of channels, transformed back.
struct Back<'a, const N: usize> {
    part: &'a Part<'a, N>,
    pass: &'a Pass,
    /// Of the pass.
    block: usize,
}

impl<const N: usize> Kernel for Back<'_, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Part { winograd, memory, products, ref tiles, .. } = *self.part;
        let dst = &winograd.dst;
        let stride = winograd.product_stride();
        let block = self.pass.dst_block + self.block;
        // SAFETY: the products were written; pixels are read and written inside the map only.
        unsafe {
            let bias = L::load(winograd.lines[self.pass.bias + self.block].0.as_ptr());
            for (index, tile) in (tiles.start..tiles.end).enumerate() {
                let (image, y, x) = winograd.place(tile);
                let from = products.wrapping_add((self.block * winograd.tiles_at_once + index) * BLOCK);
                let mut half = [[L::splat(0.0); N]; N];
                #[expect(clippy::needless_range_loop, reason = "a column, across the rows")]
                for s in 0..N {
                    let mut column = [L::splat(0.0); N];
                    for (r, value) in column.iter_mut().enumerate() {
                        *value = L::load(from.add((r * N + s) * stride));
                    }
                    let column = transform::output::<L, N>(column);
                    for (r, value) in column.iter().enumerate() {
                        half[r][s] = *value;
                    }
                }
                let to = memory.at_mut(dst, image, block, y as isize, x as isize);
                for (r, row) in half.iter().enumerate() {
                    if r + 2 >= N || y + r >= dst.size[0] {
                        break;
                    }
                    let row = transform::output::<L, N>(*row);
                    for (s, value) in row.iter().enumerate() {
                        if s + 2 < N && x + s < dst.size[1] {
                            let mut value = L::add(*value, bias);
                            if let Some(add) = &winograd.add {
                                let other = memory.at(add, image, block, (y + r) as isize, (x + s) as isize);
                                value = L::add(value, L::load(other));
                            }
                            if winograd.relu {
                                value = L::relu(value);
                            }
                            L::store(to.add(r * dst.row_stride + s * BLOCK), value);
                        }
                    }
                }
            }
        }
    }
}
