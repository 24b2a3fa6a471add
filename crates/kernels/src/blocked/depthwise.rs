//! Convolution channel by channel.
#![expect(unsafe_code, reason = "rows are read and written through pointers to shared memory")]

use super::conv::check;
use super::elementwise::alike;
use super::lanes::Lanes;
use super::memory::Memory;
use super::rowwise::{RowOp, Rowwise};
use super::sequence::Step;
use super::{BLOCK, View, Weights, Window};

impl Step {
    /// A convolution with as many groups as channels in and out; otherwise as [`Step::conv`].
    ///
    /// # Panics
    /// As [`Step::conv`], if the groups are others, or the blocks of `src` and `dst` differ.
    pub fn depthwise(
        window: Window,
        weights: Weights<'_>,
        src: &View,
        add: Option<&View>,
        dst: &View,
    ) -> Self {
        check(&window, &weights, src, add, dst);
        assert!(window.groups == dst.channels() && src.lanes == dst.lanes, "depthwise: {src:?} to {dst:?}");
        assert!(src.pixel_stride == BLOCK, "depthwise: the source is not blocked");
        if let Some(add) = add {
            alike(add, dst);
        }
        let taps = window.kernel[0] * window.kernel[1];
        let mut lines = vec![[0.0; BLOCK]; dst.blocks() * (taps + 1)];
        let mut channel = 0;
        for (block, &lanes) in dst.lanes.iter().enumerate() {
            for lane in 0..usize::from(lanes) {
                let lines = &mut lines[block * (taps + 1)..];
                lines[0][lane] = weights.bias.map_or(0.0, |bias| bias[channel]);
                for tap in 0..taps {
                    lines[1 + tap][lane] = weights.weight[channel * taps + tap];
                }
                channel += 1;
            }
        }
        let op = Depthwise {
            window,
            src: src.clone(),
            add: add.cloned(),
            relu: weights.relu,
            lines,
            dst: dst.clone(),
        };
        Self::from_stage(Rowwise::new(op))
    }
}

#[derive(Debug)]
struct Depthwise {
    window: Window,
    src: View,
    add: Option<View>,
    relu: bool,
    /// For each block the bias and the weights of every tap.
    lines: Vec<[f32; BLOCK]>,
    dst: View,
}

/// Pixels computed at once, so that sums do not wait for each other.
const PIXELS: usize = 4;

impl RowOp for Depthwise {
    fn srcs(&self) -> Vec<&View> {
        [&self.src].into_iter().chain(&self.add).collect()
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    fn weight_bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    fn cost(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, _: *mut f32, image: usize, block: usize, y: usize) {
        let Window { kernel, stride, padding, dilation, .. } = self.window;
        let top = (y * stride[0]) as isize - padding[0] as isize;
        let src = memory.at(&self.src, image, block, top, -(padding[1] as isize));
        let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
        let lines = &self.lines[block * (kernel[0] * kernel[1] + 1)..];
        let (width, step) = (self.dst.size[1], stride[1] * BLOCK);
        let mut x = 0;
        while x < width {
            let left = if width - x < PIXELS { width - x } else { PIXELS };
            // SAFETY: the row is inside the maps; pixels beyond its end are the last one again.
            unsafe {
                let mut sum = [L::load(lines[0].as_ptr()); PIXELS];
                for r in 0..kernel[0] {
                    for s in 0..kernel[1] {
                        let weight = L::load(lines[1 + r * kernel[1] + s].as_ptr());
                        let tap = src.add(r * dilation[0] * self.src.row_stride + s * dilation[1] * BLOCK);
                        for (i, sum) in sum.iter_mut().enumerate() {
                            let pixel = if i < left { x + i } else { x };
                            *sum = L::mul_add(L::load(tap.add(pixel * step)), weight, *sum);
                        }
                    }
                }
                for (i, sum) in sum.iter().enumerate() {
                    if i < left {
                        let mut value = *sum;
                        if let Some(add) = &self.add {
                            let add = memory.at(add, image, block, y as isize, (x + i) as isize);
                            value = L::add(value, L::load(add));
                        }
                        L::store(dst.add((x + i) * BLOCK), if self.relu { L::relu(value) } else { value });
                    }
                }
            }
            x += left;
        }
    }
}
