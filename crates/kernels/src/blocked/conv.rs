//! Convolution of blocked maps.
#![expect(unsafe_code, reason = "tiles read packed weights and write into shared memory")]

mod input_gradient;
mod pack;
mod pair;
mod schedule;
#[cfg(test)]
mod tests;
mod weight_gradient;

use std::ops::Range;
use std::sync::Arc;

use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::micro::{self, MAX_ROWS, MAX_WIDTH, Start, ThinTile, Tile};
use super::sequence::{Stage, Step};
use super::{BLOCK, View};
use crate::tier::{self, Tier};
pub use input_gradient::InputGradient;
pub use pack::PackedMemory;
use pack::{Filters, Pass, Product};
pub(super) use pack::{Line, Source, at_once};
use schedule::{Job, Schedule};
pub use weight_gradient::WeightGradient;

/// Extents of a convolution that its maps do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Height and width of a filter.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step of the filter.
    pub stride: [usize; 2],
    /// Rows of zeros above, and columns of zeros left of the map; the map's border must be as wide where they are read.
    pub padding: [usize; 2],
    /// Vertical and horizontal distance between the taps of a filter.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

/// Filters and what follows them: `dst = relu?(weight * src + bias + add)`.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// `[out_channels, in_channels / groups, kernel_h, kernel_w]`.
    pub weight: &'a [f32],
    /// `[out_channels]`.
    pub bias: Option<&'a [f32]>,
    /// Whether negative results become zero.
    pub relu: bool,
}

impl Step {
    /// A convolution: `dst = relu?(weight * src + bias + add)`, channels in the order of the blocks of each view.
    ///
    /// `threads` and `images` only guide how the work is cut; the result does not depend on them.
    ///
    /// # Panics
    /// If an extent or a length does not fit, the border of `src` is narrower than what the filters read, or `dst` or `add` is
    /// not blocked.
    pub fn conv(
        window: Window,
        weights: Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        let memory = &mut PackedMemory::default();
        Self::conv_in(window, weights, src, add, dst, images, threads, memory)
    }

    /// The same with filters packed in memory that held others before, see [`into_memory`](Self::into_memory).
    ///
    /// # Panics
    /// As [`conv`](Self::conv).
    #[expect(clippy::too_many_arguments, reason = "those of `Step::conv` and the memory")]
    pub fn conv_in(
        window: Window,
        weights: Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
        images: usize,
        threads: usize,
        memory: &mut PackedMemory,
    ) -> Self {
        let lines = memory.take();
        Self::from_stage(Conv::new(tier::active(), window, weights, src, add, dst, images, threads, lines))
    }
}

/// A convolution ready to run.
#[derive(Clone, Debug)]
struct Conv {
    tier: &'static Tier,
    window: Window,
    src: View,
    dst: View,
    add: Option<View>,
    relu: bool,
    filters: Arc<Filters>,
    schedule: Schedule,
}

impl Conv {
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
        lines: Vec<Line>,
    ) -> Self {
        check(&window, &weights, src, add, dst);
        let (src, dst, add) = flatten(&window, src, dst, add);
        Self::whole(tier, window, weights, src, add, dst, lines).scheduled(images, threads)
    }

    fn scheduled(self, images: usize, threads: usize) -> Self {
        let schedule = Schedule::new(&self.filters, &self.src, &self.dst, &self.window, images, threads);
        Self { schedule, ..self }
    }

    /// A convolution that is not cut into jobs.
    fn whole(
        tier: &'static Tier,
        window: Window,
        weights: Weights<'_>,
        src: View,
        add: Option<View>,
        dst: View,
        lines: Vec<Line>,
    ) -> Self {
        check_product(&window, &weights, &src, add.as_ref(), &dst);
        let taps: Vec<usize> = (0..window.kernel[0] * window.kernel[1]).collect();
        let source = Source::of(&weights, &window, &src, &dst, &taps);
        Self::of(tier, window, &source, weights.relu, src, add, dst, lines)
    }

    /// A convolution with filters from wherever they lie, not cut into jobs.
    #[expect(clippy::too_many_arguments, reason = "what a convolution is made of")]
    fn of(
        tier: &'static Tier,
        window: Window,
        source: &Source<'_>,
        relu: bool,
        src: View,
        add: Option<View>,
        dst: View,
        lines: Vec<Line>,
    ) -> Self {
        let filters = Filters::new(tier, &window, source, &src, &dst, lines);
        let schedule = Schedule::whole(&filters, &dst);
        Self { tier, window, src, dst, add, relu, filters: Arc::new(filters), schedule }
    }
}

impl Stage for Conv {
    fn reads(&self) -> Vec<&View> {
        [&self.src].into_iter().chain(&self.add).collect()
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn weight_bytes(&self) -> usize {
        self.filters.bytes()
    }

    fn alone(&self, images: usize) -> Option<Box<dyn Stage>> {
        Some(Box::new(self.clone().scheduled(images, 1)))
    }

    fn into_lines(self: Box<Self>) -> Vec<Line> {
        Arc::try_unwrap(self.filters).map(Filters::into_lines).unwrap_or_default()
    }

    fn jobs(&self, images: usize) -> usize {
        self.schedule.jobs(images)
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, _scratch: *mut f32) {
        let job = self.schedule.job(job, images);
        // SAFETY: handed on from the caller; jobs differ in images, rows or passes, and so in what they write.
        unsafe {
            self.run_part(&job, memory, memory);
        }
    }
}

impl Conv {
    /// # Safety
    /// As [`Stage::run`], for the part that the job names, reading from one memory and writing to another one.
    unsafe fn run_part(&self, job: &Job, from: &Memory, to: &Memory) {
        // SAFETY: handed on from the caller.
        unsafe {
            self.tier.launch(Part { conv: self, job, from, to });
            if self.dst.border == [0, 0] {
                return;
            }
            for image in job.images.clone() {
                for pass in &self.filters.passes[job.passes.clone()] {
                    to.clear_border(&self.dst, image, pass.dst_blocks(), job.rows.clone());
                }
            }
        }
    }
}

/// One job of a convolution.
struct Part<'a> {
    conv: &'a Conv,
    job: &'a Job,
    from: &'a Memory,
    to: &'a Memory,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for pass in &self.conv.filters.passes[self.job.passes.clone()] {
            match pass.product {
                // SAFETY: handed on from the caller.
                Product::Wide { blocks } => unsafe { self.wide::<L>(pass, blocks) },
                // SAFETY: as above.
                Product::Thin { count } => unsafe { self.thin::<L>(pass, count) },
            }
        }
    }
}

impl Part<'_> {
    /// Channels of the result in the lanes.
    #[inline(always)]
    unsafe fn wide<L: Lanes>(&self, pass: &Pass, blocks: usize) {
        let Self { conv, job, from, to } = *self;
        let filters = &conv.filters;
        let depth_blocks = filters.depth_blocks(pass);
        for (k, depth) in depth_blocks.iter().enumerate() {
            let (first, last) = (k == 0, k + 1 == depth_blocks.len());
            let tile = Tile {
                rows: 0,
                width: 0,
                blocks,
                step: conv.window.stride[1] * conv.src.pixel_stride / conv.src.phases,
                row_step: conv.window.stride[0] * conv.src.row_stride,
                src: std::ptr::null(),
                runs: filters.runs(pass, depth),
                weight: filters.weight(pass, depth, blocks * BLOCK),
                next: std::ptr::null(),
                start: if first { Start::Bias(filters.bias(pass)) } else { Start::Result },
                dst: std::ptr::null_mut(),
                dst_row: conv.dst.row_stride,
                dst_block: conv.dst.block_stride,
                dst_step: conv.dst.pixel_stride,
                add: None,
                relu: last && conv.relu,
            };
            // The weights of the next part of the depth (or, after the last one, what follows in memory) arrive meanwhile.
            let (len, lines) = (depth.len(), depth.len() * blocks);
            let after = tile.weight.wrapping_add(lines * BLOCK);
            let mut next = Next { at: after, step: len * BLOCK, left: blocks };
            for image in job.images.clone() {
                let src = from.at(&conv.src, image, 0, 0, 0);
                let dst = to.at_mut(&conv.dst, image, pass.dst_block, 0, 0);
                let add = conv.add.as_ref().filter(|_| last);
                let add = add
                    .map(|add| (to.at(add, image, pass.dst_block, 0, 0), add.row_stride, add.block_stride));
                // SAFETY: handed on from the caller; the rows are inside the maps.
                unsafe { self.sweep::<L>(tile, src, dst, add, &mut next) };
            }
        }
    }

    /// All tiles of the job's rows of one image.
    #[inline(always)]
    unsafe fn sweep<L: Lanes>(
        &self,
        mut tile: Tile<'_>,
        src: *const f32,
        dst: *mut f32,
        add: Option<(*const f32, usize, usize)>,
        next: &mut Next,
    ) {
        let Self { conv, job, .. } = *self;
        let width = conv.dst.size[1];
        let most = (L::SUMS / tile.blocks).min(MAX_WIDTH);
        let tall = tile.step == BLOCK || tile.step == 2 * BLOCK;
        // Narrow maps fill the registers with several rows.
        let rows = if tall && width <= 7 { (most / width).clamp(1, MAX_ROWS) } else { 1 };
        let columns = width.div_ceil(most);
        let mut y = job.rows.start;
        while y < job.rows.end {
            tile.rows = rows.min(job.rows.end - y);
            let (mut x, mut left) = (0, columns);
            while x < width {
                tile.width = (width - x).div_ceil(left);
                tile.src = src.wrapping_add(y * tile.row_step + x * tile.step);
                let at = y * tile.dst_row + x * tile.dst_step;
                tile.dst = dst.wrapping_add(at);
                tile.next = next.take(tile.weight);
                tile.add = add.map(|(add, row, block)| (add.wrapping_add(y * row + x * BLOCK), row, block));
                // SAFETY: handed on from the caller; `rows width blocks` fits the registers.
                unsafe { micro::multiply::<L>(&tile) };
                x += tile.width;
                left -= 1;
            }
            y += tile.rows;
        }
    }

    /// Depth in the lanes.
    #[inline(always)]
    unsafe fn thin<L: Lanes>(&self, pass: &Pass, count: usize) {
        let Self { conv, job, from, to } = *self;
        let filters = &conv.filters;
        let runs = filters.thin_runs(pass);
        for image in job.images.clone() {
            for y in job.rows.clone() {
                let row = y as isize;
                let src = from
                    .at(&conv.src, image, 0, 0, 0)
                    .wrapping_add(y * conv.window.stride[0] * conv.src.row_stride);
                let tile = ThinTile {
                    width: conv.dst.size[1],
                    count,
                    step: conv.window.stride[1] * BLOCK,
                    src,
                    runs,
                    weight: filters.thin_weight(pass),
                    bias: filters.bias(pass),
                    dst: to.at_mut(&conv.dst, image, pass.dst_block, row, 0),
                    add: conv.add.as_ref().map(|add| to.at(add, image, pass.dst_block, row, 0)),
                    relu: conv.relu,
                };
                // SAFETY: handed on from the caller; the row is inside the maps.
                unsafe { micro::multiply_thin::<L>(&tile) };
            }
        }
    }
}

/// Weights that tile after tile asks for ahead of time, as many lines each as it is deep.
struct Next {
    at: *const f32,
    step: usize,
    /// Tiles that still ask for something new.
    left: usize,
}

impl Next {
    /// What the next tile asks for; `known` if there is nothing more.
    #[inline(always)]
    fn take(&mut self, known: *const f32) -> *const f32 {
        if self.left == 0 {
            return known;
        }
        self.left -= 1;
        let at = self.at;
        self.at = at.wrapping_add(self.step);
        at
    }
}

/// Panics unless the extents describe a convolution of these maps.
pub(super) fn check(window: &Window, weights: &Weights<'_>, src: &View, add: Option<&View>, dst: &View) {
    assert!(dst.pixel_stride == BLOCK, "convolution: the result is not blocked");
    check_product(window, weights, src, add, dst);
}

/// The same, where pixels of the result may be some blocks apart unless something is added.
fn check_product(window: &Window, weights: &Weights<'_>, src: &View, add: Option<&View>, dst: &View) {
    check_extents(window, src, dst);
    let (inputs, outputs) = (src.channels(), dst.channels());
    let [height, width] = window.kernel;
    assert_eq!(
        weights.weight.len(),
        outputs * (inputs / window.groups) * height * width,
        "convolution: length of weight"
    );
    assert!(weights.bias.is_none_or(|bias| bias.len() == outputs), "convolution: length of bias");
    if let Some(add) = add {
        assert!(
            add.lanes == dst.lanes
                && add.size == dst.size
                && add.pixel_stride == BLOCK
                && dst.pixel_stride == BLOCK
                && add.phases == 1,
            "convolution: add {add:?} to {dst:?}"
        );
    }
}

/// Panics unless a window fits the maps.
pub(super) fn check_extents(window: &Window, src: &View, dst: &View) {
    let (inputs, outputs) = (src.channels(), dst.channels());
    let Window { kernel, stride, padding, dilation, groups } = *window;
    assert!(
        groups > 0 && inputs.is_multiple_of(groups) && outputs.is_multiple_of(groups),
        "convolution: {groups} groups of {inputs} and {outputs} channels"
    );
    assert!(
        dst.pixel_stride.is_multiple_of(BLOCK) && dst.pixel_stride > 0 && dst.phases == 1,
        "convolution: the result is not blocked"
    );
    for d in 0..2 {
        assert!(kernel[d] > 0 && stride[d] > 0 && dilation[d] > 0, "convolution: extents {window:?}");
        assert!(src.border[d] >= padding[d], "convolution: padding {padding:?}, border {:?}", src.border);
        let farthest = dst.size[d].saturating_sub(1) * stride[d] + (kernel[d] - 1) * dilation[d];
        assert!(
            farthest < src.size[d] + src.border[d] + padding[d],
            "convolution: reads beyond the border: {window:?} {src:?} {dst:?}"
        );
    }
    assert!(
        src.phases == 1 || src.phases == stride[1],
        "convolution: {} phases, stride {stride:?}",
        src.phases
    );
    assert!(
        src.pixel_stride == BLOCK || src.lanes.iter().all(|&lanes| lanes == 1),
        "convolution: planar blocks hold one channel"
    );
}

/// Fewest pixels of a row that is worth having instead of a longer one: some tiles.
const LONG: usize = 96;

/// A 1x1 convolution of maps without gaps sees a few long rows.
fn flatten(window: &Window, src: &View, dst: &View, add: Option<&View>) -> (View, View, Option<View>) {
    let whole = |view: &View| view.phases == 1 && view.row_stride == view.size[1] * view.pixel_stride;
    let flat = |view: &View| {
        let [height, width] = view.size;
        let rows = (1..=height).rev().find(|rows| height % rows == 0 && height / rows * width >= LONG);
        let rows = rows.unwrap_or(1);
        let pixels = height / rows * width;
        View { row_stride: pixels * view.pixel_stride, size: [rows, pixels], border: [0, 0], ..view.clone() }
    };
    let point = window.kernel == [1, 1] && window.stride == [1, 1] && window.padding == [0, 0];
    // Rows are cut alike only if there are as many.
    let point = point && src.size == dst.size;
    // A border above and below would not be cleared.
    if point && dst.border == [0, 0] && whole(src) && whole(dst) && add.is_none_or(whole) {
        (flat(src), flat(dst), add.map(flat))
    } else {
        (src.clone(), dst.clone(), add.cloned())
    }
}

/// The blocks that a range of channels touches.
fn blocks_of(lanes: &[u8], channels: Range<usize>) -> Vec<(usize, Range<usize>)> {
    let mut first = 0;
    let mut found = Vec::new();
    for (block, &count) in lanes.iter().enumerate() {
        let next = first + usize::from(count);
        let (from, to) = (channels.start.max(first), channels.end.min(next));
        if from < to {
            found.push((block, from - first..to - first));
        }
        first = next;
    }
    found
}
