//! What the tests of the steps share: numbers, dense maps in and out of views, runs on several teams.

use super::{Lengths, Part, Sequence, Step, Team, View, Weights, Window};

/// Numbers in (-1, 1) from a fixed sequence.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / (1_u64 << 31) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Writes a dense map `[images, channels, height, width]` to the memory of a view, zeros into its border and padding.
pub(crate) fn pack(view: &View, images: usize, dense: &[f32], memory: &mut [f32]) {
    memory[view.extent(images)].fill(0.0);
    each(view, images, |at, i| memory[at] = dense[i]);
}

/// Reads a dense map from the memory of a view.
pub(crate) fn unpack(view: &View, images: usize, memory: &[f32]) -> Vec<f32> {
    let mut dense = vec![0.0; images * view.channels() * view.size[0] * view.size[1]];
    each(view, images, |at, i| dense[i] = memory[at]);
    dense
}

/// Position in memory and in the dense map of every number of the map.
fn each(view: &View, images: usize, mut f: impl FnMut(usize, usize)) {
    let mut dense = 0;
    for image in 0..images {
        for (block, &lanes) in view.lanes.iter().enumerate() {
            for lane in 0..usize::from(lanes) {
                for y in 0..view.size[0] {
                    for x in 0..view.size[1] {
                        f(view.at(image, block, y as isize, x as isize) + lane, dense);
                        dense += 1;
                    }
                }
            }
        }
    }
}

/// Panics unless everything in the extent of a view that owns its memory, but for the map itself, is zero.
pub(crate) fn check_zeros(view: &View, images: usize, memory: &[f32]) {
    let mut rest = memory.to_vec();
    each(view, images, |at, _| rest[at] = 0.0);
    for (at, number) in rest[view.extent(images)].iter().enumerate() {
        assert!(*number == 0.0, "{number} at {at} of the border or padding of {view:?}");
    }
}

/// Runs steps in an arena on 1, 2, 3 and 7 threads and returns what the arena holds then; all must leave the same bits.
pub(crate) fn run(make: impl Fn(usize) -> Vec<Step>, images: usize, arena: &[f32]) -> Vec<f32> {
    let mut results = [1, 2, 3, 7].map(|threads| {
        let team = Team::new(threads).unwrap();
        let lengths = Lengths { arena: arena.len(), ..Lengths::default() };
        let sequence = Sequence::new(vec![Part { steps: make(threads), images }], images, lengths);
        let mut scratch = vec![f32::NAN; sequence.scratch_len(threads)];
        let mut memory = arena.to_vec();
        sequence.run(images, &[], &mut memory, &mut [], &mut scratch, &team, None);
        memory
    });
    for other in &results[1..] {
        let same = results[0].iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "the result depends on the number of threads");
    }
    std::mem::take(&mut results[0])
}

/// A convolution by its formula, in double precision, with zeros beyond the map; dense maps in and out.
pub(crate) fn convolution(
    window: Window,
    [inputs, height, width]: [usize; 3],
    images: usize,
    src: &[f32],
    weights: &Weights<'_>,
    add: Option<&[f32]>,
) -> Vec<f64> {
    let Window { kernel, stride, padding, dilation, groups } = window;
    let size = [height, width];
    let out: [usize; 2] = std::array::from_fn(|d| {
        (size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1
    });
    let group_in = inputs / groups;
    let outputs = weights.weight.len() / (group_in * kernel[0] * kernel[1]);
    let group_out = outputs / groups;
    let mut dst = Vec::new();
    for n in 0..images {
        for o in 0..outputs {
            for y in 0..out[0] {
                for x in 0..out[1] {
                    let mut sum = weights.bias.map_or(0.0, |bias| f64::from(bias[o]));
                    for c in 0..group_in {
                        for r in 0..kernel[0] {
                            for s in 0..kernel[1] {
                                let i = (y * stride[0] + r * dilation[0]) as isize - padding[0] as isize;
                                let j = (x * stride[1] + s * dilation[1]) as isize - padding[1] as isize;
                                if (0..height as isize).contains(&i) && (0..width as isize).contains(&j) {
                                    let channel = n * inputs + o / group_out * group_in + c;
                                    let at = (channel * height + i as usize) * width + j as usize;
                                    let w = ((o * group_in + c) * kernel[0] + r) * kernel[1] + s;
                                    sum += f64::from(src[at]) * f64::from(weights.weight[w]);
                                }
                            }
                        }
                    }
                    sum += add.map_or(0.0, |add| f64::from(add[dst.len()]));
                    dst.push(if weights.relu { sum.max(0.0) } else { sum });
                }
            }
        }
    }
    dst
}
