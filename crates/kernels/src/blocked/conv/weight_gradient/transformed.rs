//! Sums of products of transforms, tile by tile (the transpose of Lavin & Gray 2016).
//!
//! The convolution is `A^T ((G g G^T) (B^T d B)) A` for each tile, multiplied position by position; so the gradient of its filters
//! is `G^T (sum over tiles of (B^T d B) (A y A^T)) G` with the gradients `y` of the result: `N^2` products for a tile where the plain
//! sum takes `K^2 (N - K + 1)^2`.
#![expect(unsafe_code, reason = "tiles read maps through pointers and add to shared sums")]

use std::ops::Range;

use super::Method;
use super::product::{MAX_COLUMNS, Tile, add_up, multiply};
use crate::accumulate;
use crate::blocked::conv::{Window, at_once};
use crate::blocked::lanes::{Kernel, Lanes};
use crate::blocked::memory::Memory;
use crate::blocked::winograd::{Grid, Spread, Transform, group_blocks, transform};
use crate::blocked::{BLOCK, Place, View};
use crate::par::{Par, Shared, for_each_job};
use crate::tier::Tier;

/// Numbers of transforms that [`Method::add`] keeps in the second-level cache: 1 MiB.
const RESIDENT: usize = 256 * 1024;
/// Tiles that are multiplied before the next position's.
const CHUNK: usize = 512;
/// Tiles that a job transforms.
const TILES: usize = 64;
/// Blocks of inputs that a job multiplies: their sums stay in the second-level cache.
const INPUTS: usize = 4;

/// For maps laid out in a given way, with tiles of `N x N` input pixels and filters of `K x K` taps.
#[derive(Debug)]
pub(super) struct Transformed<const N: usize, const K: usize> {
    tier: &'static Tier,
    src: View,
    grad: View,
    padding: [usize; 2],
    grid: Grid<N, K>,
    passes: Vec<Pass>,
    images: usize,
    /// Numbers of all sums.
    len: usize,
    group_in: usize,
}

/// Blocks of outputs that are computed together.
#[derive(Debug)]
struct Pass {
    block: usize,
    blocks: usize,
    /// Outputs of each block.
    outputs: Vec<Range<usize>>,
    /// Blocks of inputs that they read, and the first channel of each within its group.
    inputs: Range<usize>,
    channels: Vec<usize>,
    /// First number of its sums: for each block of inputs `[position, lanes, blocks, BLOCK]`; then those of the biases `[blocks,
    /// BLOCK]`.
    sums: usize,
    len: usize,
}

impl Pass {
    /// Numbers of the sums of a channel.
    fn channel_len<const N: usize>(&self) -> usize {
        N * N * self.blocks * BLOCK
    }

    /// The biases among its sums.
    fn biases(&self) -> Range<usize> {
        self.len - self.blocks * BLOCK..self.len
    }
}

/// Where the transforms of so many tiles lie: `[position, block, tile, BLOCK]`, first those of the input, then those of the
/// gradient.
#[derive(Clone, Copy)]
struct Room {
    tiles: usize,
    /// From one position to the next; not a power of two, so that positions do not fall on the same lines of the cache.
    strides: [usize; 2],
}

impl Room {
    fn len<const N: usize>(&self) -> usize {
        N * N * (self.strides[0] + self.strides[1])
    }
}

impl<const N: usize, const K: usize> Transformed<N, K> {
    pub(super) fn new(tier: &'static Tier, window: Window, src: &View, grad: &View, images: usize) -> Self {
        let groups = |view: &View| group_blocks(view, window.groups).unwrap_or_default();
        let (mut passes, mut len, mut first) = (Vec::new(), 0, 0);
        for (inputs, outputs) in groups(src).into_iter().zip(groups(grad)) {
            let mut block = outputs.start;
            while block < outputs.end {
                let blocks = at_once(outputs.end - block, tier.blocks);
                let outputs = grad.lanes[block..block + blocks].iter().map(|&lanes| {
                    let outputs = first..first + usize::from(lanes);
                    first = outputs.end;
                    outputs
                });
                let mut pass = Pass {
                    block,
                    blocks,
                    outputs: outputs.collect(),
                    inputs: inputs.clone(),
                    channels: Vec::new(),
                    sums: len,
                    len: 0,
                };
                let mut channel = 0;
                for &lanes in &src.lanes[inputs.clone()] {
                    pass.channels.push(channel);
                    channel += usize::from(lanes);
                }
                pass.len = channel * pass.channel_len::<N>() + blocks * BLOCK;
                len += pass.len;
                passes.push(pass);
                block += blocks;
            }
        }
        Self {
            tier,
            src: View { place: Place::Images, ..src.clone() },
            grad: View { place: Place::Images, ..grad.clone() },
            padding: window.padding,
            grid: Grid::new(grad.size),
            passes,
            images,
            len,
            group_in: src.channels() / window.groups,
        }
    }

    fn room(&self, tiles: usize) -> Room {
        Room { tiles, strides: [&self.src, &self.grad].map(|view| view.blocks() * tiles * BLOCK + BLOCK) }
    }

    /// Tiles that [`Method::add`] transforms at once.
    fn tiles_of_add(&self) -> usize {
        let one = N * N * (self.src.blocks() + self.grad.blocks()) * BLOCK;
        (RESIDENT / one).max(14).min(self.grid.tiles(self.images)).max(1)
    }

    /// Transforms some of the tiles of a block of the input, or of the gradient after those, to their place among `tiles`.
    ///
    /// # Safety
    /// The maps hold the tiles, the room the transforms, and nothing else touches those.
    unsafe fn transform(
        &self,
        [src, grad]: [*const f32; 2],
        block: usize,
        tiles: Range<usize>,
        room: Room,
        at: usize,
        to: *mut f32,
    ) {
        let memory = |images: *const f32| Memory { images, ..Memory::default() };
        let place = |block: usize| (block * room.tiles + at) * BLOCK;
        // SAFETY: handed on from the caller.
        unsafe {
            match block.checked_sub(self.src.blocks()) {
                None => self.tier.launch(Transform {
                    src: &self.src,
                    padding: self.padding,
                    grid: self.grid,
                    memory: &memory(src),
                    block,
                    tiles,
                    to: to.wrapping_add(place(block)),
                    stride: room.strides[0],
                }),
                Some(block) => self.tier.launch(Spread {
                    grad: &self.grad,
                    grid: self.grid,
                    memory: &memory(grad),
                    block,
                    tiles,
                    to: to.wrapping_add(N * N * room.strides[0] + place(block)),
                    stride: room.strides[1],
                }),
            }
        }
    }

    /// Jobs of sums: a pass, and some of its blocks of inputs (counted from its first).
    fn cuts(&self) -> Vec<(usize, Range<usize>)> {
        let passes = self.passes.iter().enumerate();
        let cuts = passes.flat_map(|(index, pass)| {
            let count = pass.inputs.len();
            (0..count).step_by(INPUTS).map(move |from| (index, from..count.min(from + INPUTS)))
        });
        cuts.collect()
    }

    /// The sums of some blocks of inputs of a pass.
    fn sums_of(&self, pass: &Pass, inputs: &Range<usize>) -> Range<usize> {
        let channel = |index: usize| {
            pass.channels.get(index).map_or(pass.biases().start, |c| c * pass.channel_len::<N>())
        };
        channel(inputs.start)..channel(inputs.end)
    }

    /// Adds the gradients of the biases of a pass.
    ///
    /// # Safety
    /// The map holds the images.
    unsafe fn add_biases(&self, pass: &Pass, images: usize, grad: *const f32, sums: &mut [f32]) {
        // SAFETY: handed on from the caller.
        unsafe {
            let biases = sums.as_mut_ptr();
            self.tier.launch(Biases { grad: &self.grad, pass, images, from: grad, biases });
        }
    }

    /// Writes the gradients of the filters of a pass that read some blocks of inputs.
    ///
    /// # Safety
    /// Nothing else touches those.
    unsafe fn write(&self, pass: &Pass, inputs: &Range<usize>, sums: &[f32], weight: &Shared<'_>) {
        // SAFETY: handed on from the caller.
        unsafe { self.tier.launch(Write { all: self, pass, inputs: inputs.clone(), sums, weight }) };
    }
}

impl<const N: usize, const K: usize> Method for Transformed<N, K> {
    fn sums_len(&self) -> usize {
        self.len
    }

    fn add_scratch_len(&self) -> usize {
        self.room(self.tiles_of_add()).len::<N>()
    }

    fn run_scratch_len(&self) -> usize {
        self.room(self.grid.tiles(self.images)).len::<N>() + self.len
    }

    unsafe fn add(
        &self,
        images: usize,
        src: *const f32,
        grad: *const f32,
        sums: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (all, at_once) = (self.grid.tiles(images), self.tiles_of_add());
        let room = self.room(at_once);
        let from = scratch.as_mut_ptr();
        for first in (0..all).step_by(at_once) {
            let tiles = first..all.min(first + at_once);
            for block in 0..self.src.blocks() + self.grad.blocks() {
                // SAFETY: handed on from the caller; the scratch memory has room for so many tiles.
                unsafe { self.transform([src, grad], block, tiles.clone(), room, 0, from) };
            }
            for pass in &self.passes {
                let sums = sums[pass.sums..][..pass.len].as_mut_ptr();
                let (inputs, tiles) = (0..pass.inputs.len(), 0..tiles.len());
                // SAFETY: the tiles were transformed, and these sums belong to this pass alone.
                unsafe {
                    self.tier.launch(Products::<N, K> { all: self, pass, inputs, tiles, room, from, sums })
                };
            }
        }
        for pass in &self.passes {
            // SAFETY: handed on from the caller.
            unsafe { self.add_biases(pass, images, grad, &mut sums[pass.sums..][pass.biases()]) };
        }
    }

    unsafe fn run(
        &self,
        images: usize,
        src: &[f32],
        grad: &[f32],
        weight: &mut [f32],
        mut bias: Option<&mut [f32]>,
        scratch: &mut [f32],
        par: Par,
    ) {
        let all = self.grid.tiles(images);
        let room = self.room(all);
        let (transforms, sums) = scratch.split_at_mut(room.len::<N>());
        let threads = par.threads((weight.len() * all) as u64);
        let (transforms, sums) = (Shared::new(transforms), Shared::new(&mut sums[..self.len]));
        let (parts, blocks) = (all.div_ceil(TILES), self.src.blocks() + self.grad.blocks());
        for_each_job(threads, parts * blocks, &mut [], 0, |job, _| {
            let first = job / blocks * TILES;
            let tiles = first..all.min(first + TILES);
            let maps = [src.as_ptr(), grad.as_ptr()];
            let to = transforms.part(0, room.len::<N>());
            // SAFETY: the views are inside the slices, the scratch memory has room for all tiles, and each is transformed once.
            unsafe { self.transform(maps, job % blocks, tiles, room, first, to) };
        });
        let weight = Shared::new(weight);
        let bias = bias.as_mut().map(|bias| Shared::new(bias));
        let cuts = self.cuts();
        for_each_job(threads, cuts.len(), &mut [], 0, |job, _| {
            let (index, inputs) = &cuts[job];
            let pass = &self.passes[*index];
            let range = self.sums_of(pass, inputs);
            let from = transforms.part(0, room.len::<N>());
            // SAFETY: all tiles were transformed; these sums and weights are this job's alone, and `part` checks that they are
            // inside.
            unsafe {
                let at = sums.part(pass.sums + range.start, range.len());
                std::ptr::write_bytes(at, 0, range.len());
                let base = at.wrapping_sub(range.start);
                for first in (0..all).step_by(CHUNK) {
                    let tiles = first..all.min(first + CHUNK);
                    let (inputs, sums) = (inputs.clone(), base);
                    self.tier.launch(Products::<N, K> { all: self, pass, inputs, tiles, room, from, sums });
                }
                self.write(pass, inputs, std::slice::from_raw_parts(at, range.len()), &weight);
                if let Some(bias) = bias.as_ref().filter(|_| inputs.start == 0) {
                    let mut biases = [0.0; 3 * BLOCK];
                    let biases = &mut biases[..pass.blocks * BLOCK];
                    self.add_biases(pass, images, grad.as_ptr(), biases);
                    write_biases(pass, biases, bias);
                }
            }
        });
    }

    fn finish(&self, sums: &mut [f32], weight: &mut [f32], mut bias: Option<&mut [f32]>, par: Par) {
        let threads = par.threads(8 * sums.len() as u64);
        let (first, others) = sums.split_at_mut(self.len);
        let first = Shared::new(first);
        let weight = Shared::new(weight);
        let bias = bias.as_mut().map(|bias| Shared::new(bias));
        let cuts = self.cuts();
        for_each_job(threads, cuts.len(), &mut [], 0, |job, _| {
            let (index, inputs) = &cuts[job];
            let pass = &self.passes[*index];
            let add_up = |range: Range<usize>| {
                let at = pass.sums + range.start;
                // SAFETY: these sums are this job's alone; `part` checks that they are inside.
                let sums =
                    unsafe { std::slice::from_raw_parts_mut(first.part(at, range.len()), range.len()) };
                for other in others.chunks_exact(self.len) {
                    accumulate(&other[at..at + range.len()], sums, Par::Serial);
                }
                sums
            };
            let own = add_up(self.sums_of(pass, inputs));
            // SAFETY: these weights and biases are this job's alone.
            unsafe {
                self.write(pass, inputs, own, &weight);
                if let Some(bias) = bias.as_ref().filter(|_| inputs.start == 0) {
                    write_biases(pass, add_up(pass.biases()), bias);
                }
            }
        });
    }
}

/// # Safety
/// Nothing else touches the biases of the pass.
unsafe fn write_biases(pass: &Pass, sums: &[f32], bias: &Shared<'_>) {
    for (outputs, sums) in pass.outputs.iter().zip(sums.chunks_exact(BLOCK)) {
        let dst = bias.part(outputs.start, outputs.len());
        // SAFETY: `part` checked the place; the rest is the caller's promise.
        unsafe { dst.copy_from_nonoverlapping(sums.as_ptr(), outputs.len()) };
    }
}

/// The products of some tiles, added to the sums of a pass.
struct Products<'a, const N: usize, const K: usize> {
    all: &'a Transformed<N, K>,
    pass: &'a Pass,
    /// Blocks of inputs, counted from the first of the pass.
    inputs: Range<usize>,
    tiles: Range<usize>,
    room: Room,
    from: *const f32,
    /// First number of the sums of the pass.
    sums: *mut f32,
}

impl<const N: usize, const K: usize> Kernel for Products<'_, N, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { all, pass, inputs, tiles, room, from, sums } = self;
        let line = pass.blocks * BLOCK;
        let most = (L::SUMS / pass.blocks).min(MAX_COLUMNS);
        let at = |block: usize| (block * room.tiles + tiles.start) * BLOCK;
        for position in 0..N * N {
            let grad = N * N * room.strides[0] + position * room.strides[1] + at(pass.block);
            for input in inputs.start..inputs.end {
                let block = pass.inputs.start + input;
                let lanes = usize::from(all.src.lanes[block]);
                let src = position * room.strides[0] + at(block);
                let first = pass.channels[input] * pass.channel_len::<N>() + position * lanes * line;
                let parts = lanes.div_ceil(most);
                for part in 0..parts {
                    let (k, end) = (lanes * part / parts, lanes * (part + 1) / parts);
                    let tile = Tile {
                        images: 1,
                        rows: 1,
                        width: tiles.end - tiles.start,
                        columns: end - k,
                        blocks: pass.blocks,
                        src: from.wrapping_add(src + k),
                        src_step: BLOCK,
                        src_row: 0,
                        src_image: 0,
                        grad: from.wrapping_add(grad),
                        grad_row: 0,
                        grad_image: 0,
                        grad_block: room.tiles * BLOCK,
                        sums: sums.wrapping_add(first + k * line),
                    };
                    // SAFETY: handed on from the caller: the transforms of the tiles and the sums of the pass are there.
                    unsafe { multiply::<L>(&tile) };
                }
            }
        }
    }
}

/// The gradients of the biases of a pass.
struct Biases<'a> {
    grad: &'a View,
    pass: &'a Pass,
    images: usize,
    from: *const f32,
    biases: *mut f32,
}

impl Kernel for Biases<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { grad, pass, images, from, biases } = self;
        for image in 0..images {
            let tile = Tile {
                images: 1,
                rows: grad.size[0],
                width: grad.size[1],
                columns: 0,
                blocks: pass.blocks,
                src: std::ptr::null(),
                src_step: 0,
                src_row: 0,
                src_image: 0,
                grad: from.wrapping_add(grad.at(image, pass.block, 0, 0)),
                grad_row: grad.row_stride,
                grad_image: grad.image_stride,
                grad_block: grad.block_stride,
                sums: biases,
            };
            // SAFETY: handed on from the caller: the image is inside the map.
            unsafe { add_up::<L>(&tile) };
        }
    }
}

/// Sums, transformed back to filters.
struct Write<'a, const N: usize, const K: usize> {
    all: &'a Transformed<N, K>,
    pass: &'a Pass,
    inputs: Range<usize>,
    /// Those of the inputs.
    sums: &'a [f32],
    weight: &'a Shared<'a>,
}

impl<const N: usize, const K: usize> Kernel for Write<'_, N, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { all, pass, inputs, sums, weight } = self;
        let first = all.sums_of(pass, &inputs).start;
        for input in inputs.start..inputs.end {
            let lanes = usize::from(all.src.lanes[pass.inputs.start + input]);
            let at = pass.channels[input] * pass.channel_len::<N>() - first;
            let sums = &sums[at..][..lanes * pass.channel_len::<N>()];
            for (block, outputs) in pass.outputs.iter().enumerate() {
                // Taps of all channels, outputs in the lanes; then the other way round.
                let mut taps = [[0.0; BLOCK]; BLOCK * 25];
                for k in 0..lanes {
                    // SAFETY: the positions of a channel are inside the slice, see the check above.
                    unsafe {
                        let mut half = [[L::splat(0.0); N]; K];
                        for s in 0..N {
                            let mut column = [L::splat(0.0); N];
                            for (r, value) in column.iter_mut().enumerate() {
                                let at = ((r * N + s) * lanes + k) * pass.blocks + block;
                                *value = L::load(sums.as_ptr().add(at * BLOCK));
                            }
                            let column = transform::filter_gradient::<L, N, K>(column);
                            for (row, value) in half.iter_mut().zip(column) {
                                row[s] = value;
                            }
                        }
                        for (r, row) in half.iter().enumerate() {
                            for (s, value) in transform::filter_gradient::<L, N, K>(*row).iter().enumerate() {
                                L::store(taps[(k * K + r) * K + s].as_mut_ptr(), *value);
                            }
                        }
                    }
                }
                let len = lanes * K * K;
                let mut filters = [[0.0; BLOCK * 25 + BLOCK]; BLOCK];
                let step = filters[0].len();
                all.tier.transpose(taps.as_flattened(), BLOCK, len, BLOCK, filters.as_flattened_mut(), step);
                for (filters, output) in filters.iter().zip(outputs.clone()) {
                    let first = (output * all.group_in + pass.channels[input]) * K * K;
                    // SAFETY: `part` checks the place; the rest is the caller's promise.
                    unsafe { weight.part(first, len).copy_from_nonoverlapping(filters.as_ptr(), len) };
                }
            }
        }
    }
}
