//! Copies between views of one map.
#![expect(unsafe_code, reason = "rows are read and written through pointers to shared memory")]

mod planes;

use super::memory::Memory;
use super::sequence::{Stage, Step};
use super::{BLOCK, View};
use crate::tier;

impl Step {
    /// Copies a map from one view to another one, channels in order, and zeroes border and padding of `dst`. A vector (size `[1,
    /// 1]`) takes the numbers of a map in the order `[channel, row, column]`.
    ///
    /// # Panics
    /// If the numbers of channels or pixels do not fit.
    pub fn relayout(src: &View, dst: &View) -> Self {
        let flat = src.size != dst.size;
        let numbers = |view: &View| view.channels() * view.size[0] * view.size[1];
        assert!(
            numbers(src) == numbers(dst) && (!flat || dst.size == [1, 1]),
            "relayout: {src:?} to {dst:?}"
        );
        match planes::Planes::new(tier::active(), src, dst) {
            Some(planes) => Self::from_stage(planes),
            None => Self::from_stage(Relayout::new(src, dst, 0)),
        }
    }

    /// Copies a map between channels of zeros: channel `c` of `src` becomes channel `before + c` of `dst`, all others are zero.
    ///
    /// # Panics
    /// If the channels or pixels do not fit, or `dst` is not blocked.
    pub fn pad_channels(src: &View, before: usize, dst: &View) -> Self {
        assert!(
            before + src.channels() <= dst.channels() && src.size == dst.size,
            "pad_channels: {src:?} to {dst:?}"
        );
        assert!(dst.pixel_stride == BLOCK, "pad_channels: the result is not blocked");
        Self::from_stage(Relayout::new(src, dst, before))
    }
}

#[derive(Debug)]
struct Relayout {
    src: View,
    dst: View,
    /// Block and lane of every channel of the source.
    channels: Vec<(usize, usize)>,
    /// First channel of each block of the result.
    firsts: Vec<usize>,
    /// Channels of zeros before those of the source.
    before: usize,
    /// Blocks of the result in a job.
    blocks: usize,
}

/// Numbers that are worth a job of their own.
const GRAIN: usize = 32 * 1024;

impl Relayout {
    fn new(src: &View, dst: &View, before: usize) -> Self {
        let lanes = src.lanes.iter().enumerate();
        let channels =
            lanes.flat_map(|(block, &lanes)| (0..usize::from(lanes)).map(move |lane| (block, lane)));
        let mut first = 0;
        let firsts = dst.lanes.iter().map(|&lanes| {
            first += usize::from(lanes);
            first - usize::from(lanes)
        });
        let (channels, firsts) = (channels.collect(), firsts.collect());
        let block = dst.size[0] * dst.size[1] * dst.pixel_stride;
        let blocks = (GRAIN / block.max(1)).clamp(1, dst.blocks().max(1));
        Self { src: src.clone(), dst: dst.clone(), channels, firsts, before, blocks }
    }

    /// A number of an image of the source, by its channel and pixel in the result.
    ///
    /// # Safety
    /// The views are inside the memory.
    unsafe fn number(&self, memory: &Memory, image: usize, channel: usize, y: usize, x: usize) -> f32 {
        let [height, width] = self.src.size;
        // A vector takes a map channel by channel, row by row.
        let index = (channel * self.dst.size[0] + y) * self.dst.size[1] + x;
        let (channel, y, x) = (index / (height * width), index / width % height, index % width);
        let (block, lane) = self.channels[channel];
        // SAFETY: promised by the caller.
        unsafe { *memory.at(&self.src, image, block, y as isize, x as isize).add(lane) }
    }

    /// A block of a vector, from a map.
    ///
    /// # Safety
    /// As [`Stage::run`].
    unsafe fn vector(&self, memory: &Memory, image: usize, block: usize) {
        let [height, width] = self.src.size;
        let lanes = usize::from(self.dst.lanes[block]);
        let first = self.firsts[block];
        let (mut channel, mut y, mut x) = (first / (height * width), first / width % height, first % width);
        let dst = memory.at_mut(&self.dst, image, block, 0, 0);
        // SAFETY: handed on from the caller.
        unsafe {
            for lane in 0..lanes {
                let (from, of) = self.channels[channel];
                *dst.add(lane) = *memory.at(&self.src, image, from, y as isize, x as isize).add(of);
                x += 1;
                if x == width {
                    (x, y) = (0, y + 1);
                }
                if y == height {
                    (y, channel) = (0, channel + 1);
                }
            }
            if self.dst.pixel_stride == BLOCK {
                std::ptr::write_bytes(dst.add(lanes), 0, BLOCK - lanes);
            }
        }
    }

    /// A row of one channel.
    ///
    /// # Safety
    /// As [`Stage::run`].
    unsafe fn row(&self, memory: &Memory, image: usize, channel: usize, y: usize, dst: *mut f32) {
        let width = self.dst.size[1];
        // SAFETY: handed on from the caller.
        unsafe {
            if self.src.size != self.dst.size || self.src.phases != 1 {
                for x in 0..width {
                    *dst.add(x * self.dst.pixel_stride) = self.number(memory, image, channel, y, x);
                }
                return;
            }
            let (block, lane) = self.channels[channel];
            let src = memory.at(&self.src, image, block, y as isize, 0).add(lane);
            let step = self.src.pixel_stride;
            match (self.dst.pixel_stride, self.dst.phases) {
                (1, 1) if step == 1 => std::ptr::copy_nonoverlapping(src, dst, width),
                (1, phases) => {
                    for phase in 0..phases.min(width) {
                        let dst = dst.add(phase * self.dst.phase_stride);
                        for (q, x) in (phase..width).step_by(phases).enumerate() {
                            *dst.add(q) = *src.add(x * step);
                        }
                    }
                }
                (to, _) => {
                    for x in 0..width {
                        *dst.add(x * to) = *src.add(x * step);
                    }
                }
            }
        }
    }
}

/// Zeroes the rows of a planar block from `from` to `to`, border included.
///
/// # Safety
/// As [`Stage::run`]; the view is not dense.
unsafe fn clear_planes(dst: &View, memory: &Memory, image: usize, block: usize, from: isize, to: isize) {
    let View { border: [_, beside], size: [_, width], phases, row_stride, .. } = *dst;
    let left = beside.next_multiple_of(phases) as isize;
    // Behind the pixels of a row without phases may lie what is not its own.
    let len = if phases == 1 { width + 2 * beside } else { row_stride };
    for y in from..to {
        // SAFETY: handed on from the caller: the row begins with its left border and has so many numbers.
        unsafe { std::ptr::write_bytes(memory.at_mut(dst, image, block, y, -left), 0, len) };
    }
}

impl Stage for Relayout {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn jobs(&self, images: usize) -> usize {
        images * self.dst.blocks().div_ceil(self.blocks)
    }

    unsafe fn run(&self, job: usize, _images: usize, memory: &Memory, _scratch: *mut f32) {
        let groups = self.dst.blocks().div_ceil(self.blocks);
        let (image, first) = (job / groups, job % groups * self.blocks);
        let blocks = first..self.dst.blocks().min(first + self.blocks);
        let (height, above) = (self.dst.size[0], self.dst.border[0] as isize);
        let bordered = self.dst.border != [0, 0] || self.dst.phases > 1;
        for block in blocks.clone() {
            let blocked = self.dst.pixel_stride == BLOCK;
            // SAFETY: handed on from the caller; jobs differ in image or blocks.
            unsafe {
                if !blocked && bordered {
                    clear_planes(&self.dst, memory, image, block, -above, height as isize + above);
                }
                if self.src.size != self.dst.size && self.src.phases == 1 && self.before == 0 {
                    self.vector(memory, image, block);
                    continue;
                }
                for y in 0..height {
                    let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
                    let lanes = usize::from(self.dst.lanes[block]);
                    if blocked && self.whole_block(block) {
                        let (from, _) = self.channels[self.firsts[block] - self.before];
                        let src = memory.at(&self.src, image, from, y as isize, 0);
                        std::ptr::copy_nonoverlapping(src, dst, self.dst.size[1] * BLOCK);
                        continue;
                    }
                    if blocked {
                        std::ptr::write_bytes(dst, 0, self.dst.size[1] * BLOCK);
                    }
                    for lane in 0..lanes {
                        let channel = (self.firsts[block] + lane).checked_sub(self.before);
                        if let Some(channel) = channel.filter(|_| self.inside(block, lane)) {
                            self.row(memory, image, channel, y, dst.add(lane));
                        }
                    }
                }
            }
        }
        if self.dst.pixel_stride == BLOCK {
            // SAFETY: as above.
            unsafe { memory.clear_border(&self.dst, image, blocks, 0..height) };
        }
    }
}

impl Relayout {
    /// Whether a channel of the result comes from the source.
    fn inside(&self, block: usize, lane: usize) -> bool {
        let numbers = self.src.channels() * self.src.size[0] * self.src.size[1];
        let channel = self.firsts[block] + lane;
        channel >= self.before
            && channel - self.before < numbers / (self.dst.size[0] * self.dst.size[1]).max(1)
    }

    /// Whether a block of the result is a block of the source.
    fn whole_block(&self, block: usize) -> bool {
        let lanes = usize::from(self.dst.lanes[block]);
        let Some(first) = self.firsts[block].checked_sub(self.before) else { return false };
        let same = self.src.pixel_stride == BLOCK && self.src.size == self.dst.size;
        same && self
            .channels
            .get(first)
            .is_some_and(|&(from, lane)| lane == 0 && usize::from(self.src.lanes[from]) == lanes)
    }
}
