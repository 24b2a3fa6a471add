//! Two convolutions as one step: a basis and its combination, or a column and a row filter.
#![expect(unsafe_code, reason = "the value in between lies in the scratch memory of a job")]

use super::schedule::{Job, Schedule};
use super::{Conv, Weights, Window};
use crate::blocked::memory::Memory;
use crate::blocked::sequence::{Stage, Step};
use crate::blocked::{BLOCK, View};
use crate::tier::{self, Tier};

impl Step {
    /// A convolution into a thin map and a convolution of that: `dst = relu?(second * relu?(first * src) + add)`, each with its
    /// bias. The map in between, of `segments` channels, is never written as a whole: a job computes as many rows of it as the
    /// caches hold and goes on with them.
    ///
    /// # Panics
    /// As [`Step::conv`], and unless [`Step::conv_pair_fits`].
    #[expect(clippy::too_many_arguments, reason = "two convolutions")]
    pub fn conv_pair(
        first: (Window, Weights<'_>),
        segments: &[usize],
        second: (Window, Weights<'_>),
        src: &View,
        add: Option<&View>,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        Self::from_stage(Pair::new(tier::active(), first, segments, second, src, add, dst, images, threads))
    }

    /// Whether two convolutions can be one step: the second one must not look at neighbouring rows.
    pub fn conv_pair_fits(second: &Window) -> bool {
        second.kernel[0] == 1 && second.stride[0] == 1 && second.padding[0] == 0
    }
}

#[derive(Debug)]
pub(super) struct Pair {
    first: Conv,
    second: Conv,
    schedule: Schedule,
    middle_len: usize,
}

impl Pair {
    #[expect(clippy::too_many_arguments, reason = "those of `Step::conv_pair` and the tier")]
    pub(super) fn new(
        tier: &'static Tier,
        first: (Window, Weights<'_>),
        segments: &[usize],
        second: (Window, Weights<'_>),
        src: &View,
        add: Option<&View>,
        dst: &View,
        images: usize,
        threads: usize,
    ) -> Self {
        assert!(
            Step::conv_pair_fits(&second.0),
            "pair: the second convolution reads other rows: {:?}",
            second.0
        );
        let (kernel, stride, padding) = (second.0.kernel[1], second.0.stride[1], second.0.padding[1]);
        // As many columns as the second one reads, and as the first one gives.
        let reach = second.0.dilation[1] * (kernel - 1) + 1;
        let width = out_width(&first.0, src);
        assert!(
            width + 2 * padding >= reach && (width + 2 * padding - reach) / stride + 1 == dst.size[1],
            "pair: {width} columns in between, {} in the result",
            dst.size[1]
        );
        let middle = |rows: usize| View::blocked(0, segments, [rows, width], [0, padding]);
        let row = middle(1);
        let row_len = row.memory_len(1) + src.blocks() * src.row_stride * first.0.stride[0];
        let macs = first.1.weight.len() + second.1.weight.len();
        let schedule = Schedule::pair(macs, row_len, dst, images, threads);
        let [tile_images, tile_rows] = schedule.tile();
        let tile = middle(tile_rows);
        let middle_len = tile.memory_len(tile_images);
        // As high as the whole map, with the strides of a tile.
        let map = View { size: [dst.size[0], width], ..tile };
        let first = Conv::whole(tier, first.0, first.1, src.clone(), None, map.clone(), Vec::new());
        let second = Conv::whole(tier, second.0, second.1, map, add.cloned(), dst.clone(), Vec::new());
        Self { first, second, schedule, middle_len }
    }
}

/// Columns that a convolution gives.
fn out_width(window: &Window, src: &View) -> usize {
    let reach = window.dilation[1] * (window.kernel[1] - 1) + 1;
    (src.size[1] + 2 * window.padding[1]).checked_sub(reach).map_or(0, |free| free / window.stride[1] + 1)
}

impl Stage for Pair {
    fn reads(&self) -> Vec<&View> {
        [&self.first.src].into_iter().chain(&self.second.add).collect()
    }

    fn write(&self) -> &View {
        &self.second.dst
    }

    fn scratch_len(&self) -> usize {
        self.middle_len.next_multiple_of(BLOCK)
    }

    fn weight_bytes(&self) -> usize {
        self.first.filters.bytes() + self.second.filters.bytes()
    }

    fn jobs(&self, images: usize) -> usize {
        self.schedule.jobs(images)
    }

    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32) {
        let Job { images, rows, .. } = self.schedule.job(job, images);
        let middle = &self.first.dst;
        // The scratch memory holds these images and rows only: the map would begin this far before it.
        let before = images.start * middle.image_stride + rows.start * middle.row_stride;
        let inside = Memory { arena: scratch.wrapping_sub(before), first: 0, ..*memory };
        let job = |conv: &Conv| Job {
            images: images.clone(),
            rows: rows.clone(),
            passes: 0..conv.filters.passes.len(),
        };
        // SAFETY: handed on from the caller; the scratch memory has room for the images and rows of a job.
        unsafe {
            self.first.run_part(&job(&self.first), memory, &inside);
            self.second.run_part(&job(&self.second), &inside, memory);
        }
    }
}
