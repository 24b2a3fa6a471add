//! Images side by side.
#![expect(unsafe_code, reason = "features are read and results written through pointers to shared memory")]

use super::super::super::lanes::{Kernel, Lanes};
use super::super::super::linear::{LinearWeights, features, parts, room};
use super::super::super::memory::Memory;
use super::super::super::micro::Run;
use super::super::super::sequence::Stage;
use super::super::super::{BLOCK, View};
use super::super::pack::{Matrix, Shape, Weighted};
use super::super::{FILTERS, MostVectors, VECTORS};
use super::ends;
use crate::tier::Tier;
use std::ops::Range;

/// Most numbers of the features that are turned at a time: 128 KiB, which stay in the second-level cache.
const TURNED: usize = 32 * 1024;
/// Blocks of outputs that are worth turning the features for once more.
const GRAIN: usize = 4;

#[derive(Debug)]
pub(super) struct Turned {
    tier: &'static Tier,
    src: View,
    dst: View,
    relu: bool,
    /// Parts of the features: their runs, and how many they are.
    parts: Vec<(Vec<Run>, usize)>,
    weighted: Weighted,
    /// One for each output of the blocks.
    bias: Vec<f32>,
    /// Vectors of images that are computed at once.
    vectors: usize,
    /// Blocks of outputs of a job.
    blocks: usize,
    images: usize,
}

impl Turned {
    pub(super) fn new(
        tier: &'static Tier,
        weights: &LinearWeights<'_>,
        src: &View,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        let (runs, order) = features(src);
        let depth = order.len();
        let outputs = dst.channels();
        // SAFETY: the kernel reads and writes nothing.
        let most = unsafe { tier.launch(MostVectors) };
        let all = images.div_ceil(BLOCK);
        let vectors = all.div_ceil(all.div_ceil(most));
        let len = vectors * BLOCK;
        let ordered: Vec<f32> = (0..outputs)
            .flat_map(|output| order.iter().map(move |feature| weights.weight[output * depth + feature]))
            .collect();
        let matrix = Matrix { weights: &ordered, filters: outputs, columns: depth };
        let shape = Shape { vectors, taps: 1, len, most: TURNED / len };
        // Blocks as they are counted here, whatever the form of the result.
        let blocked = View::blocked(0, &[outputs], [1, 1], [0, 0]);
        let weighted = Weighted::new(&matrix, &blocked, &shape, |column| column * len);
        let mut bias = vec![0.0; outputs.next_multiple_of(BLOCK)];
        bias.iter_mut().zip(weights.bias.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        let all = bias.len() / BLOCK;
        Self {
            tier,
            src: src.clone(),
            dst: dst.clone(),
            relu: weights.relu,
            parts: parts(runs, weighted.part.max(1)),
            weighted,
            bias,
            vectors,
            blocks: all.div_ceil(threads).max(GRAIN).min(all.max(1)),
            images,
        }
    }

    fn all_blocks(&self) -> usize {
        self.bias.len() / BLOCK
    }
}

impl Stage for Turned {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        (self.weighted.part + self.blocks * BLOCK) * self.vectors * BLOCK
    }

    fn most_images(&self) -> usize {
        self.images
    }

    fn weight_bytes(&self) -> usize {
        self.weighted.bytes() + size_of_val(&*self.bias)
    }

    fn jobs(&self, _images: usize) -> usize {
        self.all_blocks().div_ceil(self.blocks)
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32) {
        let first = job * self.blocks;
        let blocks = first..self.all_blocks().min(first + self.blocks);
        // SAFETY: handed on from the caller; jobs have different outputs.
        unsafe { self.tier.launch(Share { of: self, blocks, images, memory, scratch }) };
    }
}

/// The blocks of a job.
struct Share<'a> {
    of: &'a Turned,
    blocks: Range<usize>,
    images: usize,
    memory: &'a Memory,
    scratch: *mut f32,
}

impl Kernel for Share<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: handed on from the caller.
        unsafe {
            match self.of.vectors {
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

impl Share<'_> {
    /// All images, so many vectors of them at a time.
    ///
    /// # Safety
    /// As [`Stage::run`]; the machine has `L` and the caller is compiled for it.
    #[inline(always)]
    unsafe fn vectors<L: Lanes, const N: usize>(&self) {
        let Turned { weighted, parts, bias, .. } = self.of;
        let each = BLOCK / FILTERS;
        let last = ((N - 1) * BLOCK) as isize;
        let features = self.scratch;
        // SAFETY: handed on from the caller; scratch has room for the features of a part and for the sums of all blocks of a job.
        unsafe {
            let sums = features.add(weighted.part * N * BLOCK);
            let mut image = 0;
            while image < self.images {
                let mut before = 0;
                for (part, (runs, depth)) in parts.iter().enumerate() {
                    self.turn::<L, N>(runs, image, features);
                    let pixels = features.wrapping_sub(before * N * BLOCK);
                    for block in self.blocks.clone() {
                        let packed = &weighted.filters[(block * weighted.parts + part) * each..][..each];
                        for (four, packed) in packed.iter().enumerate() {
                            let output = block * BLOCK + four * FILTERS;
                            let at = |f: usize, n: usize| {
                                sums.add(((output - self.blocks.start * BLOCK + f) * N + n) * BLOCK)
                            };
                            let start: [[L::Vector; N]; FILTERS] = std::array::from_fn(|f| match part {
                                0 => [L::splat(bias[output + f]); N],
                                _ => std::array::from_fn(|n| L::load(at(f, n))),
                            });
                            let found = weighted.add_to::<L, N>(packed, pixels, last, start);
                            for (f, found) in found.iter().enumerate() {
                                for (n, found) in found.iter().enumerate() {
                                    L::store(at(f, n), *found);
                                }
                            }
                        }
                    }
                    before += depth;
                }
                self.write::<L, N>(sums, image);
                image += N * BLOCK;
            }
        }
    }

    /// Turns some features of some images: a vector of images for each.
    ///
    /// # Safety
    /// As [`Share::vectors`].
    #[inline(always)]
    unsafe fn turn<L: Lanes, const N: usize>(&self, runs: &[Run], first: usize, mut to: *mut f32) {
        // SAFETY: handed on from the caller; nothing behind a run is read.
        unsafe {
            for run in runs {
                let mut done = 0;
                while done < run.len {
                    let count = (run.len - done).min(BLOCK);
                    for n in 0..N {
                        let mut rows: [L::Vector; BLOCK] = std::array::from_fn(|i| {
                            let image = first + n * BLOCK + i;
                            if image >= self.images {
                                return L::splat(0.0);
                            }
                            let (from, _) = ends(self.memory, &self.of.src, &self.of.dst, image);
                            let from = from.offset(run.src).add(done);
                            if count == BLOCK {
                                return L::load(from);
                            }
                            let mut some = [0.0_f32; BLOCK];
                            std::ptr::copy_nonoverlapping(from, some.as_mut_ptr(), count);
                            L::load(some.as_ptr())
                        });
                        L::transpose(&mut rows);
                        for (lane, row) in rows.iter().enumerate().take(count) {
                            L::store(to.add((lane * N + n) * BLOCK), *row);
                        }
                    }
                    to = to.add(count * N * BLOCK);
                    done += count;
                }
            }
        }
    }

    /// Turns sums back into the results of images.
    ///
    /// # Safety
    /// As [`Share::vectors`].
    #[inline(always)]
    unsafe fn write<L: Lanes, const N: usize>(&self, sums: *const f32, first: usize) {
        let Turned { src, dst, relu, .. } = self.of;
        let room = room(dst);
        // SAFETY: handed on from the caller; results behind the last output of a vector without gaps are left out.
        unsafe {
            for block in self.blocks.clone() {
                let count = (room - block * BLOCK).min(BLOCK);
                for n in 0..N {
                    let mut rows: [L::Vector; BLOCK] = std::array::from_fn(|output| {
                        L::load(sums.add((((block - self.blocks.start) * BLOCK + output) * N + n) * BLOCK))
                    });
                    L::transpose(&mut rows);
                    for (i, row) in rows.into_iter().enumerate() {
                        let image = first + n * BLOCK + i;
                        if image >= self.images {
                            break;
                        }
                        let row = if *relu { L::relu(row) } else { row };
                        let to = ends(self.memory, src, dst, image).1.add(block * BLOCK);
                        if count == BLOCK {
                            L::store(to, row);
                        } else {
                            let mut some = [0.0_f32; BLOCK];
                            L::store(some.as_mut_ptr(), row);
                            std::ptr::copy_nonoverlapping(some.as_ptr(), to, count);
                        }
                    }
                }
            }
        }
    }
}
