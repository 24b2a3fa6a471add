//! Fully connected layers: the weights in the order in which the source lies in memory.
#![expect(unsafe_code, reason = "tiles read packed weights and write into shared memory")]

use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::micro::{self, MAX_WIDTH, Run, Start, Tile};
use super::sequence::{Stage, Step};
use super::{BLOCK, View};
use crate::tier::{self, Tier};

/// How weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Storage {
    /// As they are.
    #[default]
    F32,
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

impl Step {
    /// A fully connected layer: `dst[o] = relu?(sum over i of weight[o, i] src[i] + bias[o])` for every image. A map is read in
    /// the order `[channel, row, column]` without being copied into it: the weights are packed in the order of its memory.
    ///
    /// `dst` has size `[1, 1]`, blocked in one segment or dense.
    ///
    /// # Panics
    /// If an extent or a length does not fit.
    pub fn linear(weights: LinearWeights<'_>, src: &View, dst: &View, images: usize, threads: usize) -> Self {
        Self::from_stage(Linear::new(tier::active(), weights, src, dst, images, threads))
    }
}

/// A cache line of numbers, so that packed weights are aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; BLOCK]);

/// Steps of the depth whose weights stay in the first-level cache for all images, for two blocks of outputs.
const DEPTH: usize = 256;
/// Bytes of weights that are worth a job of their own.
const GRAIN: usize = 256 * 1024;

#[derive(Debug)]
struct Linear {
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
    lines: Vec<Line>,
    bias: Vec<Line>,
    /// Groups of a job.
    groups: usize,
    images: usize,
}

impl Linear {
    fn new(
        tier: &'static Tier,
        weights: LinearWeights<'_>,
        src: &View,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        let outputs = dst.channels();
        let [height, width] = src.size;
        let depth = src.channels() * height * width;
        assert_eq!(weights.weight.len(), outputs * depth, "linear: length of weight");
        assert!(weights.bias.is_none_or(|bias| bias.len() == outputs), "linear: length of bias");
        assert!(dst.size == [1, 1] && src.phases == 1, "linear: {src:?} to {dst:?}");
        let contiguous =
            dst.block_stride == dst.pixel_stride && dst.blocks() == outputs.div_ceil(dst.pixel_stride);
        assert!(
            contiguous && dst.border == [0, 0],
            "linear: the result is not a vector without gaps: {dst:?}"
        );
        let at_once = tier.blocks.min(2);
        let (parts, order) = parts(src, DEPTH * 2 / at_once);
        let groups = outputs.div_ceil(at_once * BLOCK);
        let mut lines = Vec::with_capacity(groups * depth * at_once);
        for group in 0..groups {
            for &feature in &order {
                for block in 0..at_once {
                    let mut line = Line([0.0; BLOCK]);
                    for (lane, weight) in line.0.iter_mut().enumerate() {
                        let output = (group * at_once + block) * BLOCK + lane;
                        if output < outputs {
                            *weight = weights.weight[output * depth + feature];
                        }
                    }
                    lines.push(line);
                }
            }
        }
        let mut bias = vec![Line([0.0; BLOCK]); groups * at_once];
        for (output, value) in weights.bias.into_iter().flatten().enumerate() {
            bias[output / BLOCK].0[output % BLOCK] = *value;
        }
        let bytes = (depth * at_once * BLOCK * size_of::<f32>()).max(1);
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
            lines,
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

/// Runs of a map in the order of its memory, cut into parts, and the feature of every step of the depth.
fn parts(src: &View, most: usize) -> (Vec<(Vec<Run>, usize)>, Vec<usize>) {
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
    (parts, order)
}

impl Stage for Linear {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn scratch_len(&self) -> usize {
        self.images * self.width()
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

impl Linear {
    /// Copies the results of a group to their place.
    ///
    /// # Safety
    /// As [`Stage::run`].
    unsafe fn deliver(&self, group: usize, images: usize, memory: &Memory, sums: *const f32) {
        let outputs = self.dst.channels();
        let first = group * self.width();
        let room = if self.dst.pixel_stride == BLOCK { outputs.next_multiple_of(BLOCK) } else { outputs };
        let len = self.width().min(room - first);
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
struct Group<'a> {
    linear: &'a Linear,
    group: usize,
    images: usize,
    memory: &'a Memory,
    sums: *mut f32,
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { linear, group, images, memory, sums } = self;
        let width = linear.width();
        let mut line = group * linear.depth * linear.at_once;
        let bias = linear.bias[group * linear.at_once..].as_ptr().cast::<f32>();
        let most = (L::SUMS / linear.at_once).min(MAX_WIDTH);
        let mut first = true;
        for (index, (runs, depth)) in linear.parts.iter().enumerate() {
            let last = index + 1 == linear.parts.len();
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
                    weight: linear.lines[line..].as_ptr().cast(),
                    next: linear.lines[line..]
                        .as_ptr()
                        .cast::<f32>()
                        .wrapping_add(depth * linear.at_once * BLOCK),
                    start: if first { Start::Bias(bias) } else { Start::Result },
                    dst: sums.wrapping_add(image * width),
                    dst_row: 0,
                    dst_block: BLOCK,
                    dst_step: width,
                    add: None,
                    relu: last && linear.relu,
                };
                // SAFETY: the source has these images, the sums have room for them.
                unsafe { micro::multiply::<L>(&tile) };
                image += count;
            }
            line += depth * linear.at_once;
            first = false;
        }
    }
}
