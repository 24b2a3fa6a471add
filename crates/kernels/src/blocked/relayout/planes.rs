//! From blocks of channels to planes, sixteen pixels of sixteen channels at a time.
#![expect(unsafe_code, reason = "pixels are read and written through pointers to shared memory")]

use super::{GRAIN, clear_planes};
use crate::blocked::lanes::{Kernel, Lanes};
use crate::blocked::memory::Memory;
use crate::blocked::sequence::Stage;
use crate::blocked::{BLOCK, View};
use crate::tier::Tier;
use std::ops::Range;

/// A copy of a blocked map to planes.
#[derive(Debug)]
pub(super) struct Planes {
    tier: &'static Tier,
    src: View,
    dst: View,
    /// First channel of each block of the source.
    firsts: Vec<usize>,
    /// Rows of a job.
    rows: usize,
}

impl Planes {
    /// The copy, if the views are of such maps.
    pub(super) fn new(tier: &'static Tier, src: &View, dst: &View) -> Option<Self> {
        let blocked = src.pixel_stride == BLOCK && src.phases == 1;
        let planar = dst.pixel_stride == 1 && dst.phases == 1;
        if !blocked || !planar || src.size != dst.size || src.size == [1, 1] {
            return None;
        }
        let mut first = 0;
        let firsts = src.lanes.iter().map(|&lanes| {
            first += usize::from(lanes);
            first - usize::from(lanes)
        });
        let [height, width] = dst.size;
        let rows = (GRAIN / (BLOCK * width.max(1))).clamp(1, height.max(1));
        Some(Self { tier, src: src.clone(), dst: dst.clone(), firsts: firsts.collect(), rows })
    }

    fn chunks(&self) -> usize {
        self.dst.size[0].div_ceil(self.rows)
    }
}

impl Stage for Planes {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn jobs(&self, images: usize) -> usize {
        images * self.src.blocks() * self.chunks()
    }

    unsafe fn run(&self, job: usize, _images: usize, memory: &Memory, _scratch: *mut f32) {
        let (chunk, block) = (job % self.chunks(), job / self.chunks() % self.src.blocks());
        let image = job / self.chunks() / self.src.blocks();
        let height = self.dst.size[0];
        let rows = chunk * self.rows..height.min((chunk + 1) * self.rows);
        let channels = self.firsts[block]..self.firsts[block] + usize::from(self.src.lanes[block]);
        let above = self.dst.border[0] as isize;
        let from = if rows.start == 0 { -above } else { rows.start as isize };
        let to = if rows.end == height { height as isize + above } else { rows.end as isize };
        // SAFETY: handed on from the caller; jobs differ in image, channels or rows.
        unsafe {
            if self.dst.border != [0, 0] {
                channels
                    .clone()
                    .for_each(|channel| clear_planes(&self.dst, memory, image, channel, from, to));
            }
            self.tier.launch(Part { planes: self, memory, image, block, channels, rows });
        }
    }
}

/// Some rows of a block.
struct Part<'a> {
    planes: &'a Planes,
    memory: &'a Memory,
    image: usize,
    block: usize,
    channels: Range<usize>,
    rows: Range<usize>,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Planes { src, dst, .. } = self.planes;
        let width = dst.size[1];
        for y in self.rows.clone() {
            let from = self.memory.at(src, self.image, self.block, y as isize, 0);
            let to = self.memory.at_mut(dst, self.image, self.channels.start, y as isize, 0);
            let mut x = 0;
            while x < width {
                // The last pixels of a row are copied with those before them, if there are as many.
                let at = if width >= BLOCK { x.min(width - BLOCK) } else { x };
                let count = BLOCK.min(width - at);
                // SAFETY: handed on from the caller; pixels `at..at + count` of the row are inside both maps.
                unsafe {
                    let mut pixels: [L::Vector; BLOCK] = std::array::from_fn(|i| {
                        if i < count { L::load(from.add((at + i) * BLOCK)) } else { L::splat(0.0) }
                    });
                    L::transpose(&mut pixels);
                    for (channel, pixels) in pixels.iter().enumerate().take(self.channels.len()) {
                        let to = to.add(channel * dst.block_stride + at);
                        if count == BLOCK {
                            L::store(to, *pixels);
                        } else {
                            let mut numbers = [0.0; BLOCK];
                            L::store(numbers.as_mut_ptr(), *pixels);
                            std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, count);
                        }
                    }
                }
                x = at + count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocked::testing::{check_zeros, noise, pack, run, unpack};
    use crate::blocked::{Place, Step};
    use crate::tier::available;

    #[test]
    fn planes_hold_the_numbers_of_the_blocks() {
        // Channels of the segments; height and width; borders of the source and of the result.
        type Case = (&'static [usize], [usize; 2], [usize; 2], [usize; 2]);
        let cases: [Case; 8] = [
            (&[16], [8, 8], [1, 1], [0, 0]),
            (&[20, 5], [3, 4], [0, 2], [1, 1]),
            (&[64], [7, 7], [1, 1], [1, 1]),
            (&[3], [40, 33], [2, 0], [3, 1]),
            (&[33], [16, 16], [0, 0], [0, 0]),
            (&[1], [1, 17], [0, 0], [2, 5]),
            (&[17], [300, 31], [1, 1], [1, 0]),
            (&[40], [56, 56], [1, 1], [1, 1]),
        ];
        for (segments, size, inner, outer) in cases {
            let (images, channels) = (3, segments.iter().sum::<usize>());
            let src = View::blocked(16, segments, size, inner);
            let dst = View::planar(src.extent(images).end, channels, size, outer, 1);
            let start = src.extent(images).end;
            let mut arena = vec![f32::NAN; start + dst.memory_len(images)];
            let numbers = noise(images * channels * size[0] * size[1], 5);
            pack(&src, images, &numbers, &mut arena);
            // Channels of planes may lie some numbers apart.
            let plane = dst.row_stride * (size[0] + 2 * outer[0]);
            for channel in (start..arena.len()).step_by(dst.block_stride) {
                arena[channel + plane..channel + dst.block_stride].fill(0.0);
            }
            for tier in available() {
                let make =
                    |_| vec![Step::from_stage(Planes::new(tier, &src, &dst).expect("planes from blocks"))];
                let memory = run(make, images, &arena);
                check_zeros(&dst, images, &memory);
                assert_eq!(unpack(&dst, images, &memory), numbers, "{tier:?} {segments:?} {size:?}");
            }
        }
    }

    #[test]
    fn other_copies_are_left_to_others() {
        let blocked = View::blocked(0, &[16], [4, 4], [0, 0]);
        let tier = available().next().unwrap();
        let planes = |src: &View, dst: &View| Planes::new(tier, src, dst).is_some();
        assert!(planes(&blocked, &View::dense(Place::Logits, 16, [4, 4])));
        assert!(!planes(&blocked, &View::planar(0, 16, [4, 4], [0, 0], 2)));
        assert!(!planes(&blocked, &View::blocked(0, &[8, 8], [4, 4], [0, 0])));
        assert!(!planes(&View::dense(Place::Images, 16, [4, 4]), &blocked));
    }
}
