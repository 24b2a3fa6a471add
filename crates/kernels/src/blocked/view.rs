//! Where the numbers of a map lie.

use std::ops::Range;
use std::sync::Arc;

/// Channels in a block, and numbers in a vector of every tier.
pub const BLOCK: usize = 16;

/// The memory that a map lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The caller's images, which are never written.
    Images,
    /// The memory of a session.
    Arena,
    /// The memory that each worker has for itself while it computes some images of a batch.
    Worker,
    /// The caller's result.
    Logits,
}

/// A map, or one map of a batch of vectors, in memory.
///
/// The number of channel lane `l` of block `b` at pixel `(y, x)` of image `i` is at
/// `offset + i image_stride + b block_stride + y row_stride + x pixel_stride + l`.
/// Block `b` holds the next `lanes[b]` channels; its further lanes, if `pixel_stride` leaves room for them, are zero.
///
/// Two forms are in use: *blocked* (`pixel_stride` is [`BLOCK`]) and *planar* (`pixel_stride` is 1 and every block holds one
/// channel). A planar map may be split into `phases`: the pixels `x = phases q + p` of a row are contiguous in `q`, phase by
/// phase `phase_stride` apart, so that a filter of that horizontal stride reads neighbours.
///
/// Around the map lie `border[0]` rows above and below and `border[1]` columns left and right, all zero; who writes a map
/// writes them too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The memory.
    pub place: Place,
    /// First number of pixel (0, 0) of the first image.
    pub offset: usize,
    /// From one image to the next.
    pub image_stride: usize,
    /// From one block to the next.
    pub block_stride: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// From one pixel to the next (of the same phase).
    pub pixel_stride: usize,
    /// Phases of a row; 1 unless the map is planar.
    pub phases: usize,
    /// From one phase of a row to the next.
    pub phase_stride: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// Rows of zeros above and below, columns of zeros left and right.
    pub border: [usize; 2],
    /// Channels in each block.
    pub lanes: Arc<[u8]>,
}

impl View {
    /// A blocked map in the arena whose memory begins at `start`.
    ///
    /// `segments` are counts of channels; each begins a new block. Images follow each other, see
    /// [`memory_len`](Self::memory_len).
    pub fn blocked(start: usize, segments: &[usize], size: [usize; 2], border: [usize; 2]) -> Self {
        let lanes = segments
            .iter()
            .flat_map(|&channels| (0..channels).step_by(BLOCK).map(move |c| (channels - c).min(BLOCK) as u8));
        let lanes: Arc<[u8]> = lanes.collect();
        let row_stride = (size[1] + 2 * border[1]) * BLOCK;
        let block_stride = (size[0] + 2 * border[0]) * row_stride;
        Self {
            place: Place::Arena,
            offset: start + border[0] * row_stride + border[1] * BLOCK,
            image_stride: lanes.len() * block_stride,
            block_stride,
            row_stride,
            pixel_stride: BLOCK,
            phases: 1,
            phase_stride: 0,
            size,
            border,
            lanes,
        }
    }

    /// A planar map in the arena whose memory begins at `start`, its rows split into `phases`.
    ///
    /// The border is made wide enough that every phase has as many columns.
    pub fn planar(
        start: usize,
        channels: usize,
        size: [usize; 2],
        border: [usize; 2],
        phases: usize,
    ) -> Self {
        // Column -border[1] is the first of its phase: the border is rounded up to whole steps.
        let left = border[1].next_multiple_of(phases);
        let phase_stride = (left + size[1] + border[1]).div_ceil(phases);
        let row_stride = phase_stride * phases;
        // Channels begin at whole vectors.
        let block_stride = ((size[0] + 2 * border[0]) * row_stride).next_multiple_of(BLOCK);
        let image_stride = channels * block_stride;
        Self {
            place: Place::Arena,
            offset: start + border[0] * row_stride + left / phases,
            image_stride,
            block_stride,
            row_stride,
            pixel_stride: 1,
            phases,
            phase_stride,
            size,
            border,
            lanes: vec![1; channels].into(),
        }
    }

    /// The caller's images or result: `[images, channels, height, width]` without gaps.
    pub fn dense(place: Place, channels: usize, size: [usize; 2]) -> Self {
        let plane = size[0] * size[1];
        Self {
            place,
            offset: 0,
            image_stride: channels * plane,
            block_stride: plane,
            row_stride: size[1],
            pixel_stride: 1,
            phases: 1,
            phase_stride: 0,
            size,
            border: [0, 0],
            lanes: vec![1; channels].into(),
        }
    }

    /// The same view of memory that begins `by` numbers later.
    pub fn moved(self, by: usize) -> Self {
        Self { offset: self.offset + by, ..self }
    }

    /// Images that its memory has room for, of a batch of `whole` that is computed `part` by `part`.
    pub(crate) fn held(&self, whole: usize, part: usize) -> usize {
        if self.place == Place::Worker { part } else { whole }
    }

    /// Channels in all.
    pub fn channels(&self) -> usize {
        self.lanes.iter().map(|&lanes| usize::from(lanes)).sum()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.lanes.len()
    }

    /// The view of some of the blocks.
    pub fn slice(&self, blocks: Range<usize>) -> Self {
        let offset = self.offset + blocks.start * self.block_stride;
        Self { offset, lanes: self.lanes[blocks].into(), ..self.clone() }
    }

    /// Position of pixel `(y, x)` of a block of an image; negative coordinates are in the border.
    #[inline]
    pub fn at(&self, image: usize, block: usize, y: isize, x: isize) -> usize {
        let base = (self.offset + image * self.image_stride + block * self.block_stride) as isize;
        let column = if self.phases == 1 {
            x * self.pixel_stride as isize
        } else {
            let phases = self.phases as isize;
            x.rem_euclid(phases) * self.phase_stride as isize + x.div_euclid(phases)
        };
        (base + y * self.row_stride as isize + column) as usize
    }

    /// Numbers from the first to the last that belong to `images` images, border included: where the memory of the view is.
    /// A slice of a larger map has gaps in it.
    pub fn extent(&self, images: usize) -> Range<usize> {
        if images == 0 || self.blocks() == 0 || self.size.contains(&0) {
            return self.offset..self.offset;
        }
        let [height, width] = self.size.map(|size| size as isize);
        let [above, beside] = self.border.map(|border| border as isize);
        let first = if self.phases == 1 {
            self.at(0, 0, -above, -beside)
        } else {
            self.at(0, 0, -above, 0) - beside.unsigned_abs().div_ceil(self.phases)
        };
        let last = if self.phases == 1 {
            self.at(images - 1, self.blocks() - 1, height - 1 + above, width - 1 + beside) + self.pixel_stride
        } else {
            let row = self.at(images - 1, self.blocks() - 1, height - 1 + above, 0)
                - beside.unsigned_abs().div_ceil(self.phases);
            row + self.row_stride
        };
        first..last
    }

    /// Whether pixels, rows, blocks and images follow each other without sharing a number, border included.
    fn ordered(&self) -> bool {
        let wide = |number: usize| number as u128;
        let [above, beside] = self.border.map(wide);
        let [height, width] = self.size.map(wide);
        let pixels = match self.phases {
            0 => return false,
            1 => (width + 2 * beside) * wide(self.pixel_stride),
            phases => {
                let phases = wide(phases);
                let held = (beside.next_multiple_of(phases) + width + beside).div_ceil(phases);
                if wide(self.phase_stride) < held {
                    return false;
                }
                phases * wide(self.phase_stride)
            }
        };
        let rows = (height + 2 * above) * wide(self.row_stride);
        let blocks = wide(self.blocks()) * wide(self.block_stride);
        let empty = self.size.contains(&0) || self.blocks() == 0;
        self.pixel_stride > 0
            && (!empty || self.border == [0, 0])
            && pixels <= wide(self.row_stride)
            && rows <= wide(self.block_stride)
            && blocks <= wide(self.image_stride)
    }

    /// Whether `images` images lie inside memory of `len` numbers, no two numbers in the same place, and blocks hold no more
    /// channels than they have room for.
    pub fn inside(&self, images: usize, len: usize) -> bool {
        if !self.ordered() || self.image_stride.checked_mul(images).is_none() {
            return false;
        }
        let extent = self.extent(images);
        let most = if self.pixel_stride >= BLOCK { BLOCK } else { 1 };
        let lanes = self.lanes.iter().all(|&lanes| usize::from(lanes) <= most);
        let phases = self.phases == 1 || self.phases > 1 && self.pixel_stride == 1;
        extent.start <= extent.end && extent.end <= len && lanes && phases
    }

    /// Whether two views, of so many images, may share a number. Views of different blocks of one map do not.
    pub fn overlaps(&self, images: usize, other: &Self, others: usize) -> bool {
        if self.place != other.place {
            return false;
        }
        let (a, b) = (self.extent(images), other.extent(others));
        if a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start {
            return false;
        }
        let stride = self.image_stride;
        if stride == 0 || stride != other.image_stride {
            return true;
        }
        // Both repeat after as many numbers: what counts is where they lie in a period.
        let (a, b) = (self.extent(1), other.extent(1));
        let (a_start, b_start) = (a.start % stride, b.start % stride);
        let apart = |first: usize, len: usize, second: usize, other: usize| {
            first + len <= second && second + other <= stride + first
        };
        !(apart(a_start, a.len(), b_start, b.len()) || apart(b_start, b.len(), a_start, a.len()))
    }

    /// Whether no image of one of two views shares a number with another image of the other one, of so many each: those who
    /// compute different images do not meet.
    pub(crate) fn images_apart(&self, other: &Self, images: usize) -> bool {
        let stride = self.image_stride;
        let (a, b) = (self.extent(1), other.extent(1));
        let within = a.end.max(b.end) - a.start.min(b.start) <= stride && stride == other.image_stride;
        within || !self.overlaps(images, other, images)
    }

    /// Numbers of memory that `images` images need, for a view that owns its memory.
    pub fn memory_len(&self, images: usize) -> usize {
        images * self.image_stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_maps_pad_every_segment() {
        let view = View::blocked(32, &[20, 5], [3, 4], [1, 2]);
        assert_eq!(&*view.lanes, [16, 4, 5]);
        assert_eq!(
            (view.row_stride, view.block_stride, view.image_stride),
            (8 * 16, 5 * 8 * 16, 3 * 5 * 8 * 16)
        );
        assert_eq!(view.at(0, 0, -1, -2), 32);
        assert_eq!(view.extent(2), 32..32 + 2 * view.image_stride);
        assert_eq!(view.slice(1..3).extent(1), 32 + view.block_stride..32 + view.image_stride);
    }

    #[test]
    fn phases_make_strided_columns_neighbours() {
        let view = View::planar(16, 3, [5, 11], [2, 3], 4);
        for channel in 0..3 {
            for y in -2..7 {
                let mut seen = std::collections::BTreeSet::new();
                for x in -3..14 {
                    let at = view.at(0, channel, y, x);
                    assert!(view.extent(1).contains(&at) && seen.insert(at));
                    if x + 4 < 14 {
                        assert_eq!(view.at(0, channel, y, x + 4), at + 1);
                    }
                }
            }
        }
        assert!(view.extent(1).start >= 16 && view.extent(1).end <= 16 + view.memory_len(1));
    }
}
