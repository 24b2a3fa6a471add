//! Outputs side by side.
#![expect(unsafe_code, reason = "features are read and results written through pointers to shared memory")]

use super::super::super::aligned::Aligned;
use super::super::super::lanes::{Kernel, Lanes};
use super::super::super::linear::{LinearWeights, features, room};
use super::super::super::memory::Memory;
use super::super::super::micro::Run;
use super::super::super::sequence::Stage;
use super::super::super::{BLOCK, View};
use super::ends;
use crate::tier::Tier;

/// Weights that are worth a job of their own.
const GRAIN: usize = 4096;
/// Images that are computed at once.
const AT_ONCE: usize = 4;
/// No output.
const NONE: u32 = u32::MAX;

/// Sixteen outputs with about as many weights each.
#[derive(Debug)]
struct Slice {
    /// Which ones.
    outputs: [u32; BLOCK],
    bias: [f32; BLOCK],
    /// Where their steps begin, and how many there are.
    first: usize,
    steps: usize,
}

#[derive(Debug)]
pub(super) struct Gathered {
    tier: &'static Tier,
    src: View,
    dst: View,
    relu: bool,
    /// Features in the order of memory.
    runs: Vec<Run>,
    depth: usize,
    slices: Vec<Slice>,
    /// For each step a weight of each output, and its feature: where an output has none left, the one behind the last, which is zero.
    weights: Aligned<f32>,
    places: Aligned<u16>,
    images: usize,
    jobs: usize,
}

impl Gathered {
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
        let row = |output: usize| &weights.weight[output * depth..(output + 1) * depth];
        let count = |output: usize| row(output).iter().filter(|weight| **weight != 0.0).count();
        let mut by_count: Vec<(usize, usize)> = (0..outputs).map(|output| (count(output), output)).collect();
        by_count.sort_by_key(|(count, output)| (std::cmp::Reverse(*count), *output));
        by_count.extend((outputs..room(dst)).map(|output| (0, output)));
        let steps: usize = by_count.chunks(BLOCK).map(|slice| slice[0].0).sum();
        let mut values = Aligned::new(steps * BLOCK, 0.0_f32);
        let mut places = Aligned::new(steps * BLOCK, narrow(depth));
        let mut slices = Vec::new();
        let mut first = 0;
        for of in by_count.chunks(BLOCK) {
            let mut slice = Slice { outputs: [NONE; BLOCK], bias: [0.0; BLOCK], first, steps: of[0].0 };
            for (lane, &(_, output)) in of.iter().enumerate() {
                slice.outputs[lane] = u32::try_from(output).expect("fewer than 2^32 outputs");
                if output >= outputs {
                    continue;
                }
                slice.bias[lane] = weights.bias.map_or(0.0, |bias| bias[output]);
                let there = order.iter().enumerate().filter(|(_, feature)| row(output)[**feature] != 0.0);
                for (step, (place, &feature)) in there.enumerate() {
                    let at = (first + step) * BLOCK + lane;
                    values.as_mut_slice()[at] = row(output)[feature];
                    places.as_mut_slice()[at] = narrow(place);
                }
            }
            first += slice.steps;
            slices.push(slice);
        }
        let most = if threads == 1 { 1 } else { 4 * threads };
        let jobs = (steps * BLOCK / GRAIN).clamp(1, most).min(slices.len().max(1));
        Self {
            tier,
            src: src.clone(),
            dst: dst.clone(),
            relu: weights.relu,
            runs,
            depth,
            slices,
            weights: values,
            places,
            images,
            jobs,
        }
    }

    /// Numbers of an image's features, and the zero behind them.
    fn stride(&self) -> usize {
        self.depth + 1
    }
}

fn narrow(place: usize) -> u16 {
    u16::try_from(place).expect("a layer that fits has places of sixteen bits")
}

impl Stage for Gathered {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        self.images.min(AT_ONCE) * self.stride()
    }

    fn most_images(&self) -> usize {
        self.images
    }

    fn weight_bytes(&self) -> usize {
        size_of_val(self.weights.as_slice())
            + size_of_val(self.places.as_slice())
            + size_of_val(&*self.slices)
    }

    fn jobs(&self, _images: usize) -> usize {
        self.jobs
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32) {
        // SAFETY: handed on from the caller; slices have different outputs.
        unsafe { self.tier.launch(Share { of: self, job, images, memory, scratch }) };
    }
}

/// The slices of a job.
struct Share<'a> {
    of: &'a Gathered,
    job: usize,
    images: usize,
    memory: &'a Memory,
    scratch: *mut f32,
}

impl Kernel for Share<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut first = 0;
        while first < self.images {
            // SAFETY: handed on from the caller.
            unsafe {
                match self.images - first {
                    1 => self.some::<L, 1>(first),
                    2 => self.some::<L, 2>(first),
                    3 => self.some::<L, 3>(first),
                    _ => self.some::<L, AT_ONCE>(first),
                }
            }
            first += AT_ONCE;
        }
    }
}

impl Share<'_> {
    /// All slices of the job for so many images.
    ///
    /// # Safety
    /// As [`Stage::run`]; the machine has `L` and the caller is compiled for it.
    #[inline(always)]
    unsafe fn some<L: Lanes, const N: usize>(&self, first: usize) {
        let Gathered { src, dst, relu, runs, slices, weights, places, .. } = self.of;
        let stride = self.of.stride();
        // SAFETY: handed on from the caller: scratch has room for the features of these images, places are below the stride.
        unsafe {
            for image in 0..N {
                let (from, _) = ends(self.memory, src, dst, first + image);
                let mut to = self.scratch.add(image * stride);
                for run in runs {
                    std::ptr::copy_nonoverlapping(from.offset(run.src), to, run.len);
                    to = to.add(run.len);
                }
                *to = 0.0;
            }
            for slice in slices.iter().skip(self.job).step_by(self.of.jobs) {
                let mut sums = [L::load(slice.bias.as_ptr()); N];
                let mut weight = weights.as_slice()[slice.first * BLOCK..].as_ptr();
                let mut place = places.as_slice()[slice.first * BLOCK..].as_ptr();
                for _ in 0..slice.steps {
                    let factor = L::load(weight);
                    for (image, sum) in sums.iter_mut().enumerate() {
                        let values = L::gather(self.scratch.add(image * stride), place);
                        *sum = L::mul_add(values, factor, *sum);
                    }
                    (weight, place) = (weight.add(BLOCK), place.add(BLOCK));
                }
                for (image, sum) in sums.into_iter().enumerate() {
                    let mut results = [0.0_f32; BLOCK];
                    L::store(results.as_mut_ptr(), if *relu { L::relu(sum) } else { sum });
                    let (_, to) = ends(self.memory, src, dst, first + image);
                    for (output, result) in slice.outputs.iter().zip(results) {
                        if *output != NONE {
                            *to.add(*output as usize) = result;
                        }
                    }
                }
            }
        }
    }
}
