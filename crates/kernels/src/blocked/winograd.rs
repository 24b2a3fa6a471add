//! Winograd's convolution for 3x3 and 5x5 filters of stride 1 (Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural
//! Networks").
//!
//! The result is cut into tiles of `m x m` pixels. Each input tile of `(m + 2)^2` pixels and each filter is transformed, the
//! transforms are multiplied position by position (one product of matrices for each of the `(m + 2)^2` positions, over the
//! channels), and the result is transformed back: `(m + 2)^2` multiplications in place of `9 m^2`, 4 times fewer for `m = 4`, 2.25
//! times for `m = 2`, where a map is a multiple of the tile. For 5x5 filters it is `(m + 4)^2` in place of `25 m^2`, 2.78 times
//! fewer for `m = 2`.
#![expect(unsafe_code, reason = "tiles read packed weights and write into shared memory")]

mod choice;
mod filters;
mod maps;
#[cfg(test)]
mod tests;
pub(super) mod transform;

use std::ops::Range;
use std::sync::Arc;

use super::conv::{Line, PackedMemory, Source, Weights, Window, at_once, check, check_extents};
use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::micro::{self, MAX_WIDTH, Run, Start, Tile};
use super::sequence::{Stage, Step};
use super::{BLOCK, View};
use crate::par::{Par, Shared, for_each_job};
use crate::tier::{self, Tier};
pub use choice::WinogradTile;
use filters::Pack;
pub(super) use maps::{Grid, Spread, Transform};

impl Step {
    /// A convolution by Winograd's method; otherwise as [`Step::conv`]. `par` is how the filters are transformed, into
    /// memory that may have held others before.
    ///
    /// # Panics
    /// As [`Step::conv`], and unless the tile [`fits`](WinogradTile::fits).
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
        par: Par,
        memory: &mut PackedMemory,
    ) -> Self {
        check(&window, &weights, src, add, dst);
        let source = Source::of(&weights, &window, src, dst, &TAPS[..window.kernel[0] * window.kernel[1]]);
        let layer = Layer { window, source, relu: weights.relu, src, add, dst };
        layer.step(tier::active(), tile, images, threads, par, memory.take())
    }

    /// The gradient of such a convolution with respect to its input, which is one as well: of the gradient of the result, with
    /// inputs and outputs exchanged and the filters turned round.
    #[expect(clippy::too_many_arguments, reason = "what a gradient is made of")]
    pub(super) fn winograd_gradient(
        tier: &'static Tier,
        tile: WinogradTile,
        window: Window,
        weight: &[f32],
        grad: &View,
        src: &View,
        images: usize,
        threads: usize,
        par: Par,
        lines: Vec<Line>,
    ) -> Self {
        let (group_in, group_out) = (src.channels() / window.groups, grad.channels() / window.groups);
        let taps = window.kernel[0] * window.kernel[1];
        let source = Source {
            weight,
            bias: None,
            strides: [taps, group_in * taps],
            group: group_out * group_in * taps,
            taps: &TURNED[TURNED.len() - taps..],
        };
        let padding = [0, 1].map(|d| window.kernel[d] - 1 - window.padding[d]);
        let window = Window { padding, ..window };
        let layer = Layer { window, source, relu: false, src: grad, add: None, dst: src };
        layer.step(tier, tile, images, threads, par, lines)
    }
}

/// Taps of a filter in their order (the first ones of a smaller filter), and of one that is turned round (the last ones).
const TAPS: [usize; 25] = count(false);
const TURNED: [usize; 25] = count(true);

const fn count(down: bool) -> [usize; 25] {
    let mut numbers = [0; 25];
    let mut i = 0;
    while i < 25 {
        numbers[i] = if down { 24 - i } else { i };
        i += 1;
    }
    numbers
}

/// A convolution.
struct Layer<'a> {
    window: Window,
    source: Source<'a>,
    relu: bool,
    src: &'a View,
    add: Option<&'a View>,
    dst: &'a View,
}

impl Layer<'_> {
    fn step(
        &self,
        tier: &'static Tier,
        tile: WinogradTile,
        images: usize,
        threads: usize,
        par: Par,
        lines: Vec<Line>,
    ) -> Step {
        assert!(tile.fits(&self.window, self.src, self.dst), "winograd: {tile:?} for {:?}", self.window);
        match (tile, self.window.kernel[0]) {
            (WinogradTile::Two, 3) => {
                Step::from_stage(Winograd::<4, 3>::new(tier, self, images, threads, par, lines))
            }
            (WinogradTile::Two, _) => {
                Step::from_stage(Winograd::<6, 5>::new(tier, self, images, threads, par, lines))
            }
            (WinogradTile::Four, _) => {
                Step::from_stage(Winograd::<6, 3>::new(tier, self, images, threads, par, lines))
            }
        }
    }
}

/// Blocks of each group, if no block belongs to two.
pub(super) fn group_blocks(view: &View, groups: usize) -> Option<Vec<Range<usize>>> {
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

/// Numbers of a transformed input that a job should keep in the second-level cache: 640 KiB.
const RESIDENT: usize = 160 * 1024;
/// Bytes that arrive from the second or third cache in a cycle.
const LOADED: f64 = 16.0;
/// Fewest tiles that are worth cutting: a tile more or less changes the speed of a product little beyond.
const TILES: usize = 14;

/// A convolution with tiles of `N x N` input pixels.
#[derive(Clone, Debug)]
struct Winograd<const N: usize, const K: usize> {
    tier: &'static Tier,
    window: Window,
    src: View,
    dst: View,
    add: Option<View>,
    relu: bool,
    grid: Grid<N, K>,
    passes: Vec<Pass>,
    lines: Arc<Vec<Line>>,
    /// Tiles and passes of a job.
    tiles_at_once: usize,
    passes_at_once: usize,
}

/// Blocks of the result that are computed together.
#[derive(Clone, Debug)]
struct Pass {
    group: usize,
    dst_block: usize,
    blocks: usize,
    /// Blocks of the source that they read.
    inputs: Range<usize>,
    depth: usize,
    /// First line of the weights, `[position, depth, blocks]` with one more line for each position, so that these do not fall on the
    /// same lines of the cache.
    weight: usize,
    /// First line of the biases.
    bias: usize,
}

impl Pass {
    /// Lines from the weights of one position to those of the next.
    fn stride(&self) -> usize {
        self.depth * self.blocks + 1
    }
}

impl<const N: usize, const K: usize> Winograd<N, K> {
    /// Products for a tile.
    const POSITIONS: usize = N * N;

    fn new(
        tier: &'static Tier,
        layer: &Layer<'_>,
        images: usize,
        threads: usize,
        par: Par,
        mut lines: Vec<Line>,
    ) -> Self {
        let Layer { window, source, relu, src, add, dst } = layer;
        check_extents(window, src, dst);
        let groups = |view: &View| group_blocks(view, window.groups).unwrap_or_default();
        let mut passes: Vec<Pass> = Vec::new();
        let mut end = 0;
        for (group, (inputs, outputs)) in groups(src).into_iter().zip(groups(dst)).enumerate() {
            let depth = src.lanes[inputs.clone()].iter().map(|&lanes| usize::from(lanes)).sum::<usize>();
            let mut block = outputs.start;
            while block < outputs.end {
                let blocks = at_once(outputs.end - block, tier.blocks);
                let (bias, weight) = (end, end + blocks);
                let inputs = inputs.clone();
                passes.push(Pass { group, dst_block: block, blocks, inputs, depth, weight, bias });
                end = weight + Self::POSITIONS * (depth * blocks + 1);
                block += blocks;
            }
        }
        // Whatever they held is overwritten, but for what nobody reads.
        lines.resize(end, Line([0.0; BLOCK]));
        // SAFETY: a line is `BLOCK` numbers without gaps.
        let numbers = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), end * BLOCK) };
        let numbers = Shared::new(numbers);
        let threads_to_pack = par.threads(16 * (end * BLOCK) as u64);
        for_each_job(threads_to_pack, passes.len(), &mut [], 0, |job, _| {
            let pass = &passes[job];
            let len = (pass.blocks + Self::POSITIONS * pass.stride()) * BLOCK;
            let lines = numbers.part(pass.bias * BLOCK, len);
            let pack = Pack::<'_, N, K> { tier, pass, source, dst, groups: window.groups, lines };
            // SAFETY: these lines are this job's alone.
            unsafe { tier.launch(pack) };
        });
        let mut winograd = Self {
            tier,
            window: *window,
            src: (*src).clone(),
            dst: (*dst).clone(),
            add: add.cloned(),
            relu: *relu,
            grid: Grid::new(dst.size),
            passes,
            lines: Arc::new(lines),
            tiles_at_once: 1,
            passes_at_once: 1,
        };
        winograd.schedule(images, threads);
        winograd
    }

    /// Cuts tiles and passes into the jobs that should end first. Transforming the input again for other passes costs little where
    /// there are many of them; reading the weights again for other tiles costs little where they are small.
    fn schedule(&mut self, images: usize, threads: usize) {
        let all = self.grid.tiles(images).max(1);
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

    /// Numbers from one position of the transformed input to the next; not a power of two, so that positions do not fall on the
    /// same lines of the cache.
    fn input_stride(&self) -> usize {
        self.src.blocks() * self.tiles_at_once * BLOCK + BLOCK
    }

    /// Numbers from one position of the products to the next.
    fn product_stride(&self) -> usize {
        self.tier.blocks * self.tiles_at_once * BLOCK + BLOCK
    }
}

impl<const N: usize, const K: usize> Stage for Winograd<N, K> {
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
        size_of_val(&**self.lines)
    }

    fn alone(&self, images: usize) -> Option<Box<dyn Stage>> {
        let mut alone = self.clone();
        alone.schedule(images, 1);
        Some(Box::new(alone))
    }

    fn into_lines(self: Box<Self>) -> Vec<Line> {
        Arc::try_unwrap(self.lines).unwrap_or_default()
    }

    fn jobs(&self, images: usize) -> usize {
        self.grid.tiles(images).div_ceil(self.tiles_at_once) * self.passes.len().div_ceil(self.passes_at_once)
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32) {
        let pass_jobs = self.passes.len().div_ceil(self.passes_at_once);
        let first = job / pass_jobs * self.tiles_at_once;
        let tiles = first..self.grid.tiles(images).min(first + self.tiles_at_once);
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

impl<const N: usize, const K: usize> Winograd<N, K> {
    /// Zeroes the border beside the tiles at the edges.
    ///
    /// # Safety
    /// As [`Stage::run`].
    unsafe fn clear_border(&self, memory: &Memory, tiles: Range<usize>, pass: &Pass) {
        for tile in tiles {
            let (image, y, x) = self.grid.place(tile);
            // The first tile of a row clears the border of the whole row.
            if x == 0 {
                let rows = y..self.dst.size[0].min(y + Grid::<N, K>::SIZE);
                let blocks = pass.dst_block..pass.dst_block + pass.blocks;
                // SAFETY: handed on from the caller; nobody else touches the border of these rows.
                unsafe { memory.clear_border(&self.dst, image, blocks, rows) };
            }
        }
    }
}

/// One job.
struct Part<'a, const N: usize, const K: usize> {
    winograd: &'a Winograd<N, K>,
    memory: &'a Memory,
    /// `[position, block, tile, BLOCK]`.
    input: *mut f32,
    /// `[position, block of the pass, tile, BLOCK]`.
    products: *mut f32,
    tiles: Range<usize>,
    passes: &'a [Pass],
}

impl<const N: usize, const K: usize> Kernel for Part<'_, N, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (Some(first), Some(last)) = (self.passes.first(), self.passes.last()) else { return };
        // SAFETY: handed on from the caller.
        unsafe {
            for block in first.inputs.start..last.inputs.end {
                L::call(Transform {
                    src: &self.winograd.src,
                    padding: self.winograd.window.padding,
                    grid: self.winograd.grid,
                    memory: self.memory,
                    block,
                    tiles: self.tiles.clone(),
                    to: self.input.wrapping_add(block * self.winograd.tiles_at_once * BLOCK),
                    stride: self.winograd.input_stride(),
                });
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

impl<const N: usize, const K: usize> Part<'_, N, K> {
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
            let mut line = pass.weight + position * pass.stride();
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

/// The products of one block of channels, transformed back.
struct Back<'a, const N: usize, const K: usize> {
    part: &'a Part<'a, N, K>,
    pass: &'a Pass,
    /// Of the pass.
    block: usize,
}

impl<const N: usize, const K: usize> Kernel for Back<'_, N, K> {
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
                let (image, y, x) = winograd.grid.place(tile);
                let from = products.wrapping_add((self.block * winograd.tiles_at_once + index) * BLOCK);
                let mut half = [[L::splat(0.0); N]; N];
                #[expect(clippy::needless_range_loop, reason = "a column, across the rows")]
                for s in 0..N {
                    let mut column = [L::splat(0.0); N];
                    for (r, value) in column.iter_mut().enumerate() {
                        *value = L::load(from.add((r * N + s) * stride));
                    }
                    let column = transform::output::<L, N, K>(column);
                    for (r, value) in column.iter().enumerate() {
                        half[r][s] = *value;
                    }
                }
                let to = memory.at_mut(dst, image, block, y as isize, x as isize);
                for (r, row) in half.iter().enumerate() {
                    if r + K > N || y + r >= dst.size[0] {
                        break;
                    }
                    let row = transform::output::<L, N, K>(*row);
                    for (s, value) in row.iter().enumerate() {
                        if s + K <= N && x + s < dst.size[1] {
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
