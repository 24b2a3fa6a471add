//! Local response normalisation of blocked maps.
#![expect(unsafe_code, reason = "rows are read and written through pointers to shared memory")]

use super::elementwise::alike;
use super::lanes::Lanes;
use super::memory::Memory;
use super::rowwise::{RowOp, Rowwise};
use super::sequence::Step;
use super::{BLOCK, View};

/// `(k + alpha / n sum)^-beta`, without `powf` for the exponents that are in use.
#[derive(Clone, Copy, Debug)]
struct Power {
    scale: f32,
    k: f32,
    exponent: Exponent,
}

#[derive(Clone, Copy, Debug)]
enum Exponent {
    Half,
    ThreeQuarters,
    One,
    Other(f32),
}

impl Power {
    fn new(alpha: f32, count: usize, beta: f32, k: f32) -> Self {
        let exponent = match beta {
            0.5 => Exponent::Half,
            0.75 => Exponent::ThreeQuarters,
            1.0 => Exponent::One,
            _ => Exponent::Other(beta),
        };
        Self { scale: (f64::from(alpha) / count as f64) as f32, k, exponent }
    }

    /// `x (k + scale sum)^-beta`.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn apply<L: Lanes>(&self, x: L::Vector, sum: L::Vector) -> L::Vector {
        // SAFETY: promised by the caller.
        unsafe {
            let base = L::mul_add(sum, L::splat(self.scale), L::splat(self.k));
            match self.exponent {
                Exponent::Half => L::div(x, L::sqrt(base)),
                Exponent::ThreeQuarters => {
                    let root = L::sqrt(base);
                    L::div(x, L::mul(root, L::sqrt(root)))
                }
                Exponent::One => L::div(x, base),
                Exponent::Other(beta) => {
                    let mut numbers = [0.0; BLOCK];
                    L::store(numbers.as_mut_ptr(), base);
                    for number in &mut numbers {
                        *number = number.powf(-beta);
                    }
                    L::mul(x, L::load(numbers.as_ptr()))
                }
            }
        }
    }
}

impl Step {
    /// `dst[c] = src[c] (k + alpha / local_size sum of src^2 over the local_size channels around c)^-beta`; channels that do not
    /// exist count as zero.
    ///
    /// # Panics
    /// If the maps are not blocked alike, or `local_size` is even.
    pub fn lrn_across(src: &View, dst: &View, local_size: usize, alpha: f32, beta: f32, k: f32) -> Self {
        alike(src, dst);
        assert!(local_size % 2 == 1, "lrn: a neighbourhood of {local_size}");
        let power = Power::new(alpha, local_size, beta, k);
        Self::from_stage(Rowwise::new(Across {
            src: src.clone(),
            dst: dst.clone(),
            half: local_size / 2,
            power,
        }))
    }

    /// `dst[y, x] = src[y, x] (k + alpha / local_size^2 sum of src^2 over the local_size^2 pixels around)^-beta`; pixels outside
    /// the map count as zero.
    ///
    /// # Panics
    /// As [`lrn_across`](Self::lrn_across).
    pub fn lrn_within(src: &View, dst: &View, local_size: usize, alpha: f32, beta: f32, k: f32) -> Self {
        alike(src, dst);
        assert!(local_size % 2 == 1, "lrn: a neighbourhood of {local_size}");
        let power = Power::new(alpha, local_size * local_size, beta, k);
        Self::from_stage(Rowwise::new(Within {
            src: src.clone(),
            dst: dst.clone(),
            half: local_size / 2,
            power,
        }))
    }
}

#[derive(Debug)]
struct Across {
    src: View,
    dst: View,
    /// Channels on each side.
    half: usize,
    power: Power,
}

impl Across {
    /// Numbers of squares that a pixel has in the scratch memory: `half` channels before, one block, `half` after, and what the
    /// last vectors write beyond.
    fn stride(&self) -> usize {
        (2 * self.half + 3 * BLOCK).next_multiple_of(BLOCK)
    }

    /// Blocks around one that hold its neighbours, each with the position of its first square; those that come later overwrite
    /// what earlier ones write beyond their channels.
    fn neighbours(&self, block: usize) -> impl Iterator<Item = (usize, usize)> {
        let lanes = &self.src.lanes;
        let (mut first, mut before) = (block, 0);
        while first > 0 && before < self.half {
            first -= 1;
            before += usize::from(lanes[first]);
        }
        // The first of them may begin before the neighbourhood: room for a block is left there.
        let mut at = self.half + BLOCK - before.min(self.half + BLOCK - 1);
        let end = self.half + BLOCK + usize::from(lanes[block]) + self.half;
        (first..lanes.len()).map_while(move |block| {
            let here = at;
            at += usize::from(lanes[block]);
            (here < end).then_some((block, here))
        })
    }
}

impl RowOp for Across {
    fn srcs(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        self.dst.size[1] * self.stride() + BLOCK
    }

    fn cost(&self) -> usize {
        2 * self.half + 8
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, scratch: *mut f32, image: usize, block: usize, y: usize) {
        let (width, stride) = (self.dst.size[1], self.stride());
        // SAFETY: the row is inside the maps; a pixel's part of the scratch memory has room for the squares of all neighbours.
        unsafe {
            for at in 0..(width * stride + BLOCK) / BLOCK {
                L::store(scratch.add(at * BLOCK), L::splat(0.0));
            }
            for (neighbour, at) in self.neighbours(block) {
                let src = memory.at(&self.src, image, neighbour, y as isize, 0);
                for x in 0..width {
                    let value = L::load(src.add(x * BLOCK));
                    L::store(scratch.add(x * stride + at), L::mul(value, value));
                }
            }
            let src = memory.at(&self.src, image, block, y as isize, 0);
            let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
            for x in 0..width {
                // The neighbourhood of the first lane begins one block after the start.
                let squares = scratch.add(x * stride + BLOCK);
                let mut sum = L::load(squares);
                for i in 1..=2 * self.half {
                    sum = L::add(sum, L::load(squares.add(i)));
                }
                L::store(dst.add(x * BLOCK), self.power.apply::<L>(L::load(src.add(x * BLOCK)), sum));
            }
        }
    }
}

#[derive(Debug)]
struct Within {
    src: View,
    dst: View,
    /// Pixels on each side.
    half: usize,
    power: Power,
}

impl RowOp for Within {
    fn srcs(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        self.dst.size[1] * BLOCK
    }

    fn cost(&self) -> usize {
        4 * self.half + 8
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, scratch: *mut f32, image: usize, block: usize, y: usize) {
        let [height, width] = self.dst.size;
        let rows = y.saturating_sub(self.half)..height.min(y + self.half + 1);
        // SAFETY: the row is inside the maps, the scratch memory has room for one.
        unsafe {
            // Columns first: sums over the rows of the window.
            for x in 0..width {
                let mut sum = L::splat(0.0);
                for r in rows.start..rows.end {
                    let value = L::load(memory.at(&self.src, image, block, r as isize, x as isize));
                    sum = L::mul_add(value, value, sum);
                }
                L::store(scratch.add(x * BLOCK), sum);
            }
            let src = memory.at(&self.src, image, block, y as isize, 0);
            let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
            for x in 0..width {
                let mut sum = L::splat(0.0);
                let end = if x + self.half < width { x + self.half + 1 } else { width };
                let mut s = x.saturating_sub(self.half);
                while s < end {
                    sum = L::add(sum, L::load(scratch.add(s * BLOCK)));
                    s += 1;
                }
                L::store(dst.add(x * BLOCK), self.power.apply::<L>(L::load(src.add(x * BLOCK)), sum));
            }
        }
    }
}
