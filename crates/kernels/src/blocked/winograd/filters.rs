//! Filters, transformed and packed.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use super::{Pass, Source, transform};
use crate::blocked::lanes::{Kernel, Lanes};
use crate::blocked::{BLOCK, View};
use crate::tier::Tier;

/// The biases and transformed filters of a pass.
pub(super) struct Pack<'a, const N: usize, const K: usize> {
    pub(super) tier: &'static Tier,
    pub(super) pass: &'a Pass,
    pub(super) source: &'a Source<'a>,
    pub(super) dst: &'a View,
    pub(super) groups: usize,
    pub(super) lines: *mut f32,
}

/// Filters of a lane that are transformed before they are written: neighbours in memory.
const FILTERS: usize = 4;
/// Filters of a lane that are gathered at once: those of different outputs may fall on the same lines of the cache.
const COPIED: usize = 16;

impl<const N: usize, const K: usize> Kernel for Pack<'_, N, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { tier, pass, source, dst, groups, lines } = self;
        let Pass { group, dst_block, blocks, depth, .. } = *pass;
        let channels = |blocks: &[u8]| blocks.iter().map(|&lanes| usize::from(lanes)).sum::<usize>();
        let weights = lines.wrapping_add(blocks * BLOCK);
        for block in 0..blocks {
            let lanes = usize::from(dst.lanes[dst_block + block]);
            let output = channels(&dst.lanes[..dst_block + block]);
            // Of the group's outputs.
            let local = output - group * (dst.channels() / groups);
            let first = group * source.group + local * source.strides[0];
            let mut bias = [0.0; BLOCK];
            for (lane, bias) in bias[..lanes].iter_mut().enumerate() {
                *bias = source.bias.map_or(0.0, |bias| bias[output + lane]);
            }
            // SAFETY: the lines have room for the biases and all positions of all filters.
            unsafe {
                L::store(lines.wrapping_add(block * BLOCK), L::load(bias.as_ptr()));
                for first_k in (0..depth).step_by(COPIED) {
                    let copied = COPIED.min(depth - first_k);
                    let mut taps = [[0.0; BLOCK]; (COPIED + 1) * 25];
                    gather::<K>(tier, source, first + first_k * source.strides[1], lanes, copied, &mut taps);
                    for i in (0..copied).step_by(FILTERS) {
                        let count = FILTERS.min(copied - i);
                        let results = transform_filters::<L, N, K>(&taps[i * K * K..], count, source.taps);
                        for (position, results) in results[..N * N].iter().enumerate() {
                            let line = position * pass.stride() + (first_k + i) * blocks + block;
                            for (i, value) in results[..count].iter().enumerate() {
                                L::store(weights.wrapping_add((line + i * blocks) * BLOCK), *value);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Taps of filters for some channels that follow each other, outputs in the lanes; 0 in lanes without one.
fn gather<const K: usize>(
    tier: &Tier,
    source: &Source<'_>,
    first: usize,
    lanes: usize,
    count: usize,
    taps: &mut [[f32; BLOCK]],
) {
    let [lane_step, step] = source.strides;
    if step == K * K {
        let weight = &source.weight[first..];
        tier.transpose(weight, lane_step, lanes, count * K * K, taps.as_flattened_mut(), BLOCK);
    } else {
        for i in 0..count {
            let weight = &source.weight[first + i * step..];
            // Whole vectors are read where there are as many numbers; what belongs to the next filter is overwritten by that.
            let whole = weight.len() >= lanes.saturating_sub(1) * lane_step + BLOCK;
            let depth = if whole { BLOCK.max(K * K) } else { K * K };
            let taps = taps[i * K * K..].as_flattened_mut();
            tier.transpose(weight, lane_step, lanes, depth, taps, BLOCK);
        }
    }
    if lanes < BLOCK {
        taps[..count * K * K].iter_mut().for_each(|taps| taps[lanes..].fill(0.0));
    }
}

/// `G g G^T` of some filters, whose taps lie one after the other, outputs in the lanes: for every position those of all filters.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
unsafe fn transform_filters<L: Lanes, const N: usize, const K: usize>(
    taps: &[[f32; BLOCK]],
    count: usize,
    order: &[usize],
) -> [[L::Vector; FILTERS]; 36] {
    // SAFETY: promised by the caller; every pointer is to as many numbers.
    unsafe {
        let mut results = [[L::splat(0.0); FILTERS]; 36];
        for i in 0..count {
            let taps = &taps[i * K * K..][..K * K];
            let mut half = [[L::splat(0.0); K]; N];
            for s in 0..K {
                let mut column = [L::splat(0.0); K];
                for (r, value) in column.iter_mut().enumerate() {
                    *value = L::load(taps[order[r * K + s]].as_ptr());
                }
                let column = transform::filter::<L, N, K>(column);
                for (row, value) in half.iter_mut().zip(column) {
                    row[s] = value;
                }
            }
            for (r, row) in half.iter().enumerate() {
                for (s, value) in transform::filter::<L, N, K>(*row).into_iter().enumerate() {
                    results[r * N + s][i] = value;
                }
            }
        }
        results
    }
}
