//! The pixels that a convolution reads, laid out so that every tap of a filter is a shift.

use std::ops::Range;

use crate::tier::Tier;

/// Displacement of one tap of a filter, in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tap {
    phase: usize,
    row: usize,
    col: usize,
}

/// How the pixels around a grid of output pixels are found in an image.
///
/// The image is thought surrounded by zeros and split by the stride into `stride[0] * stride[1]` phases, so
/// that output pixel `(y, x)` reads, at each tap, position `(y + row, x + col)` of the tap's phase:
/// neighbouring outputs read neighbouring numbers. Where neither padding nor stride asks for it, no copy is
/// made and the window is the image.
#[derive(Clone, Debug)]
pub(super) struct Window {
    in_size: [usize; 2],
    /// Height and width of the output grid.
    pub(super) grid: [usize; 2],
    /// Rows and columns of zeros before the image; negative where leading pixels are never read.
    before: [isize; 2],
    stride: [usize; 2],
    /// Vertical and horizontal remainders of the phases that some tap reads.
    phases: Vec<[usize; 2]>,
    taps: Vec<Tap>,
    /// Rows and columns that the taps reach beyond an output pixel.
    reach: [usize; 2],
    in_place: bool,
}

/// Strides of a window that covers some rows of the output grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Between images.
    pub(super) image: usize,
    /// Between channels.
    pub(super) channel: usize,
    phase: usize,
    /// Between rows.
    pub(super) row: usize,
    /// Output row that row 0 belongs to.
    pub(super) first_row: usize,
}

impl Window {
    /// A window for a grid of `grid` output pixels, of which `(y, x)` reads the pixels
    /// `(y, x) * stride + displacement - before` of an image of `in_size`.
    pub(super) fn new(
        in_size: [usize; 2],
        grid: [usize; 2],
        before: [isize; 2],
        stride: [usize; 2],
        displacements: impl IntoIterator<Item = [usize; 2]>,
    ) -> Self {
        let (mut phases, mut taps, mut reach) = (Vec::new(), Vec::new(), [0, 0]);
        for [y, x] in displacements {
            let remainder = [y % stride[0], x % stride[1]];
            let phase = phases.iter().position(|&known| known == remainder).unwrap_or_else(|| {
                phases.push(remainder);
                phases.len() - 1
            });
            let tap = Tap { phase, row: y / stride[0], col: x / stride[1] };
            reach = [reach[0].max(tap.row), reach[1].max(tap.col)];
            taps.push(tap);
        }
        let in_place =
            stride == [1, 1] && before == [0, 0] && (0..2).all(|d| grid[d] + reach[d] <= in_size[d]);
        Self { in_size, grid, before, stride, phases, taps, reach, in_place }
    }

    /// Taps of a filter.
    pub(super) fn taps(&self) -> usize {
        self.taps.len()
    }

    /// Whether the window is the image itself.
    pub(super) fn in_place(&self) -> bool {
        self.in_place
    }

    /// Strides of a window of `channels` channels that covers up to `rows` output rows from `first_row` on.
    /// `image_len` is the length of a whole image.
    pub(super) fn layout(&self, channels: usize, image_len: usize, rows: usize, first_row: usize) -> Layout {
        if self.in_place {
            let channel = self.in_size[0] * self.in_size[1];
            return Layout { image: image_len, channel, phase: 0, row: self.in_size[1], first_row: 0 };
        }
        let row = self.grid[1] + self.reach[1];
        let phase = (rows + self.reach[0]) * row;
        let channel = phase * self.phases.len();
        Layout { image: channel * channels, channel, phase, row, first_row }
    }

    /// Numbers that a copied window of `channels` channels and `rows` output rows takes for each image.
    pub(super) fn copy_len(&self, channels: usize, rows: usize) -> usize {
        if self.in_place { 0 } else { self.layout(channels, 0, rows, 0).image }
    }

    /// Offset of tap `tap` in a channel.
    pub(super) fn offset(&self, layout: &Layout, tap: usize) -> usize {
        let tap = self.taps[tap];
        tap.phase * layout.phase + tap.row * layout.row + tap.col
    }

    /// Copies what the output rows `rows` read of one image: `src` starts at the first of `channels`
    /// channels, `dst` is laid out by `layout`.
    pub(super) fn copy(
        &self,
        tier: &Tier,
        layout: &Layout,
        src: &[f32],
        rows: Range<usize>,
        dst: &mut [f32],
    ) {
        let plane = self.in_size[0] * self.in_size[1];
        for (src, dst) in src.chunks_exact(plane).zip(dst.chunks_exact_mut(layout.channel)) {
            for (remainder, dst) in self.phases.iter().zip(dst.chunks_exact_mut(layout.phase)) {
                let (first, step) = (remainder[1] as isize - self.before[1], self.stride[1]);
                // Columns of the phase that fall on the image.
                let left = ((-first).max(0) as usize).div_ceil(step).min(layout.row);
                let right = ((self.in_size[1] as isize - first).max(0) as usize)
                    .div_ceil(step)
                    .clamp(left, layout.row);
                for (row, dst) in (rows.start..rows.end + self.reach[0]).zip(dst.chunks_exact_mut(layout.row))
                {
                    let y = (row * self.stride[0] + remainder[0]) as isize - self.before[0];
                    if y < 0 || y >= self.in_size[0] as isize || left == right {
                        dst.fill(0.0);
                        continue;
                    }
                    dst[..left].fill(0.0);
                    dst[right..].fill(0.0);
                    let start = y as usize * self.in_size[1] + (first + (left * step) as isize) as usize;
                    let (src, dst) = (&src[start..(y as usize + 1) * self.in_size[1]], &mut dst[left..right]);
                    tier.take(src, step, dst);
                }
            }
        }
    }
}
