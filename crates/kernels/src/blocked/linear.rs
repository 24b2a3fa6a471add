//! Fully connected layers: the weights in the order in which the source lies in memory.
#![expect(unsafe_code, reason = "tiles read packed weights and write into shared memory")]

use half::{bf16, f16};

use super::aligned::Aligned;
use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::micro::{self, MAX_WIDTH, Run, Start, Tile, Weight};
use super::sequence::{Stage, Step};
use super::{BLOCK, View};
use crate::tier::{self, Tier};

/// How weights are kept. Products and sums are those of `f32` always: only the weights are rounded, to the nearest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Storage {
    /// As they are.
    #[default]
    F32,
    /// bfloat16: half of the bytes, every weight within a part of 2^-8 of itself. Weights of 3.4e38 have no place in it.
    Bf16,
    /// Half precision: half of the bytes, every weight within a part of 2^-11 of itself, or within 2^-25 where it is below
    /// 2^-14. Weights of 65,520 or more have no place in it.
    F16,
}

impl Storage {
    /// Most that a weight may differ from itself once it is kept.
    pub fn error(self, weight: f32) -> f32 {
        match self {
            Self::F32 => 0.0,
            Self::Bf16 => weight.abs() / 256.0,
            Self::F16 => (weight.abs() / 2048.0).max(1.0 / (1 << 25) as f32),
        }
    }

    /// Word for messages: `f32`, `bf16`, `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Whether it has a place for a weight.
    pub fn holds(self, weight: f32) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => bf16::from_f32(weight).is_finite(),
            Self::F16 => f16::from_f32(weight).is_finite(),
        }
    }
}

/// Weights of a fully connected layer and what follows it: `dst = relu?(weight src + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeights<'a> {
    /// `[out_features, in_features]`.
    pub weight: &'a [f32],
    /// `[out_features]`.
    pub bias: Option<&'a [f32]>,
    /// Whether negative results become zero.
    pub relu: bool,
    /// How the weights are kept.
    pub storage: Storage,
}

impl LinearWeights<'_> {
    /// Panics unless extents and lengths fit.
    pub(super) fn check(&self, src: &View, dst: &View) {
        let outputs = dst.channels();
        let depth = src.channels() * src.size[0] * src.size[1];
        assert_eq!(self.weight.len(), outputs * depth, "linear: length of weight");
        assert!(self.bias.is_none_or(|bias| bias.len() == outputs), "linear: length of bias");
        assert!(dst.size == [1, 1] && src.phases == 1, "linear: {src:?} to {dst:?}");
        let full = |lanes: &[u8]| lanes.iter().all(|lanes| usize::from(*lanes) == dst.pixel_stride);
        let contiguous =
            dst.block_stride == dst.pixel_stride && dst.lanes.split_last().is_none_or(|l| full(l.1));
        assert!(
            contiguous && dst.border == [0, 0],
            "linear: the result is not a vector without gaps: {dst:?}"
        );
    }
}

impl Step {
    /// A fully connected layer: `dst[o] = relu?(sum over i of weight[o, i] src[i] + bias[o])` for every image. A map is read in
    /// the order `[channel, row, column]` without being copied into it: the weights are packed in the order of its memory.
    ///
    /// `dst` has size `[1, 1]`, blocked in one segment or dense.
    ///
    /// # Panics
    /// If an extent or a length does not fit, or the storage does not hold a weight.
    pub fn linear(weights: LinearWeights<'_>, src: &View, dst: &View, images: usize, threads: usize) -> Self {
        Self::linear_on(tier::active(), weights, src, dst, images, threads)
    }

    fn linear_on(
        tier: &'static Tier,
        weights: LinearWeights<'_>,
        src: &View,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        match weights.storage {
            Storage::F32 => Self::from_stage(Linear::<f32>::new(tier, weights, src, dst, images, threads)),
            Storage::Bf16 => Self::from_stage(Linear::<bf16>::new(tier, weights, src, dst, images, threads)),
            Storage::F16 => Self::from_stage(Linear::<f16>::new(tier, weights, src, dst, images, threads)),
        }
    }
}

/// A cache line of numbers, so that they are aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; BLOCK]);

/// Steps of the depth whose weights stay in the first-level cache for all images, for two blocks of outputs.
const DEPTH: usize = 256;
/// Bytes of weights that are worth a job of their own.
const GRAIN: usize = 256 * 1024;

#[derive(Debug)]
struct Linear<W> {
    tier: &'static Tier,
    src: View,
    dst: View,
    relu: bool,
    /// Blocks of outputs that are computed together.
    at_once: usize,
    depth: usize,
    /// Parts of the depth: their runs, and how deep they are.
    parts: Vec<(Vec<Run>, usize)>,
    /// For each group of `at_once` blocks `[depth, at_once, BLOCK]`.
    weights: Aligned<W>,
    bias: Vec<Line>,
    /// Groups of a job.
    groups: usize,
    images: usize,
}

impl<W: Weight> Linear<W> {
    fn new(
        tier: &'static Tier,
        weights: LinearWeights<'_>,
        src: &View,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        weights.check(src, dst);
        let outputs = dst.channels();
        let depth = src.channels() * src.size[0] * src.size[1];
        let at_once = tier.blocks.min(2);
        let (runs, order) = features(src);
        let parts = parts(runs, DEPTH * 2 / at_once);
        let groups = outputs.div_ceil(at_once * BLOCK);
        let width = at_once * BLOCK;
        let mut packed = Aligned::new(groups * depth * width, W::nearest(0.0));
        for output in 0..outputs {
            let row = &weights.weight[output * depth..(output + 1) * depth];
            assert!(row.iter().all(|weight| weights.storage.holds(*weight)), "linear: too large to be kept");
            let to = &mut packed.as_mut_slice()[output / width * depth * width + output % width..];
            for (to, &feature) in to.iter_mut().step_by(width).zip(&order) {
                *to = W::nearest(row[feature]);
            }
        }
        let mut bias = vec![Line([0.0; BLOCK]); groups * at_once];
        for (output, value) in weights.bias.into_iter().flatten().enumerate() {
            bias[output / BLOCK].0[output % BLOCK] = *value;
        }
        let bytes = (depth * width * size_of::<W>()).max(1);
        let most = if threads == 1 { groups } else { groups.div_ceil(4 * threads) };
        let per_job = GRAIN.div_ceil(bytes).max(most).clamp(1, groups.max(1));
        Self {
            tier,
            src: src.clone(),
            dst: dst.clone(),
            relu: weights.relu,
            at_once,
            depth,
            parts,
            weights: packed,
            bias,
            groups: per_job,
            images,
        }
    }

    fn all_groups(&self) -> usize {
        self.bias.len() / self.at_once
    }

    /// Numbers of one image's results of a group.
    fn width(&self) -> usize {
        self.at_once * BLOCK
    }
}

/// Places of a result: its outputs and, in blocks, the rest of the last one, which is zero.
pub(super) fn room(dst: &View) -> usize {
    let outputs = dst.channels();
    if dst.pixel_stride == BLOCK { outputs.next_multiple_of(BLOCK) } else { outputs }
}

/// Runs of a map in the order of its memory, and the feature of every step of the depth.
pub(super) fn features(src: &View) -> (Vec<Run>, Vec<usize>) {
    let [height, width] = src.size;
    let origin = src.at(0, 0, 0, 0) as isize;
    let (mut runs, mut order): (Vec<Run>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut first = 0;
    for (block, &lanes) in src.lanes.iter().enumerate() {
        let lanes = usize::from(lanes);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let at = src.at(0, block, y as isize, x as isize) as isize - origin;
            match runs.last_mut() {
                Some(run) if run.src + run.len as isize == at => run.len += lanes,
                _ => runs.push(Run { src: at, len: lanes }),
            }
            order.extend((first..first + lanes).map(|channel| (channel * height + y) * width + x));
        }
        first += lanes;
    }
    (runs, order)
}

/// Runs, cut into parts of at most so many features, and how many each has.
pub(super) fn parts(runs: Vec<Run>, most: usize) -> Vec<(Vec<Run>, usize)> {
    let mut parts: Vec<(Vec<Run>, usize)> = vec![(Vec::new(), 0)];
    for mut run in runs {
        while run.len > 0 {
            let (part, depth) = parts.last_mut().expect("there is a first part");
            let len = run.len.min(most - *depth);
            if len > 0 {
                part.push(Run { src: run.src, len });
                *depth += len;
            }
            run = Run { src: run.src + len as isize, len: run.len - len };
            if *depth == most && run.len > 0 {
                parts.push((Vec::new(), 0));
            }
        }
        if parts.last().is_some_and(|(_, depth)| *depth == most) {
            parts.push((Vec::new(), 0));
        }
    }
    parts.retain(|(runs, _)| !runs.is_empty());
    parts
}

impl<W: Weight> Stage for Linear<W> {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        self.images * self.width()
    }

    fn most_images(&self) -> usize {
        self.images
    }

    fn weight_bytes(&self) -> usize {
        size_of_val(self.weights.as_slice()) + size_of_val(&*self.bias)
    }

    fn jobs(&self, _images: usize) -> usize {
        self.all_groups().div_ceil(self.groups)
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32) {
        let groups = job * self.groups..self.all_groups().min((job + 1) * self.groups);
        for group in groups {
            // SAFETY: handed on from the caller; groups of outputs are disjoint.
            unsafe {
                self.tier.launch(Group { linear: self, group, images, memory, sums: scratch });
                self.deliver(group, images, memory, scratch);
            }
        }
    }
}

impl<W: Weight> Linear<W> {
    /// Copies the results of a group to their place.
    ///
    /// # Safety
    /// As [`Stage::run`].
    unsafe fn deliver(&self, group: usize, images: usize, memory: &Memory, sums: *const f32) {
        let first = group * self.width();
        let len = self.width().min(room(&self.dst) - first);
        for image in 0..images {
            // SAFETY: handed on from the caller; `len` numbers from `first` on belong to the result.
            unsafe {
                let dst = memory.at_mut(&self.dst, image, 0, 0, 0).add(first);
                std::ptr::copy_nonoverlapping(sums.add(image * self.width()), dst, len);
            }
        }
    }
}

/// A group of outputs of all images.
struct Group<'a, W> {
    linear: &'a Linear<W>,
    group: usize,
    images: usize,
    memory: &'a Memory,
    sums: *mut f32,
}

impl<W: Weight> Kernel for Group<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { linear, group, images, memory, sums } = self;
        let width = linear.width();
        let mut weights = linear.weights.as_slice()[group * linear.depth * width..].as_ptr();
        let bias = linear.bias[group * linear.at_once..].as_ptr().cast::<f32>();
        let most = (L::SUMS / linear.at_once).min(MAX_WIDTH);
        let mut first = true;
        for (index, (runs, depth)) in linear.parts.iter().enumerate() {
            let last = index + 1 == linear.parts.len();
            let after = weights.wrapping_add(depth * width);
            let mut image = 0;
            while image < images {
                let count = if images - image < most { images - image } else { most };
                let tile = Tile {
                    rows: 1,
                    width: count,
                    blocks: linear.at_once,
                    step: linear.src.image_stride,
                    row_step: 0,
                    src: memory.at(&linear.src, image, 0, 0, 0),
                    runs,
                    weight: weights,
                    next: after.cast(),
                    start: if first { Start::Bias(bias) } else { Start::Result },
                    dst: sums.wrapping_add(image * width),
                    dst_row: 0,
                    dst_block: BLOCK,
                    dst_step: width,
                    add: None,
                    relu: last && linear.relu,
                };
                // SAFETY: the source has these images, the sums have room for them.
                unsafe { micro::multiply_row::<L, W>(&tile) };
                image += count;
            }
            weights = after;
            first = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocked::testing::{noise, pack, run, unpack};
    use crate::tier::available;

    /// Maps of odd extents with and without a border, planes, few and many outputs, more images than fit the registers.
    #[test]
    fn every_storage_equals_the_formula_with_its_rounded_weights() {
        let sources = [
            View::blocked(16, &[37], [1, 1], [0, 0]),
            View::blocked(16, &[20, 5], [3, 2], [1, 1]),
            View::planar(16, 3, [4, 5], [0, 0], 1),
            View::blocked(16, &[96], [6, 6], [0, 0]),
        ];
        for (src, outputs, images) in
            sources.iter().flat_map(|src| [(1, 1), (16, 3), (45, 17), (70, 32)].map(|(o, n)| (src, o, n)))
        {
            let depth = src.channels() * src.size[0] * src.size[1];
            let dst = View::blocked(src.extent(images).end.next_multiple_of(16), &[outputs], [1, 1], [0, 0]);
            let mut arena = vec![f32::NAN; dst.extent(images).end + 16];
            let (x, weight, bias) = (noise(images * depth, 1), noise(outputs * depth, 2), noise(outputs, 3));
            pack(src, images, &x, &mut arena);
            for (storage, tier) in [Storage::F32, Storage::Bf16, Storage::F16]
                .iter()
                .flat_map(|storage| available().map(move |tier| (*storage, tier)))
            {
                let weights =
                    LinearWeights { weight: &weight, bias: Some(&bias), relu: outputs == 16, storage };
                let make = |threads| vec![Step::linear_on(tier, weights, src, &dst, images, threads)];
                let memory = run(make, images, &arena);
                for (i, found) in unpack(&dst, images, &memory).iter().enumerate() {
                    let (image, output) = (i / outputs, i % outputs);
                    let mut sum = f64::from(bias[output]);
                    let mut bound = 1e-6 * depth as f64;
                    for k in 0..depth {
                        let (w, x) = (weight[output * depth + k], x[image * depth + k]);
                        sum += f64::from(w) * f64::from(x);
                        bound += f64::from(storage.error(w)) * f64::from(x.abs());
                    }
                    let expected = if outputs == 16 { sum.max(0.0) } else { sum };
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= bound, "{tier:?} {storage:?} {src:?}: {found} at {i}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn storages_are_as_exact_as_they_say_and_no_more() {
        let rounded = |storage, w: f32| match storage {
            Storage::F32 => w,
            Storage::Bf16 => bf16::nearest(w).to_f32(),
            Storage::F16 => f16::nearest(w).to_f32(),
        };
        for storage in [Storage::F32, Storage::Bf16, Storage::F16] {
            let mut worst = 0.0_f32;
            for (scale, w) in (-30..15).flat_map(|e| noise(200, 7).into_iter().map(move |w| (e, w))) {
                let w = w * 2.0_f32.powi(scale);
                let (error, bound) = ((rounded(storage, w) - w).abs(), storage.error(w));
                assert!(
                    error <= bound && storage.holds(w),
                    "{storage:?}: {w} becomes {}",
                    rounded(storage, w)
                );
                worst = worst.max(error / bound.max(f32::MIN_POSITIVE));
            }
            assert!(storage == Storage::F32 || worst > 0.9, "{storage:?}: the bound is not sharp: {worst}");
        }
        assert!(!Storage::F16.holds(65_520.0) && f16::nearest(65_520.0).is_infinite());
        assert!(
            !Storage::Bf16.holds(f32::MAX) && Storage::Bf16.holds(3.38e38) && Storage::F32.holds(f32::MAX)
        );
        assert!(Storage::F16.holds(65_519.0) && f16::nearest(65_519.0).is_finite());
    }
}
