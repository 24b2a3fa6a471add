//! The memory of one run, shared by the threads that take part.
#![expect(unsafe_code, reason = "threads write disjoint parts of one memory")]

use std::ops::Range;

use super::{Place, View};

/// Pointers to what the steps of a run read and write.
///
/// Steps of a [`Sequence`](super::Sequence) were checked to stay inside, and never to write what they read, so each kernel
/// only has to promise that its jobs write disjoint numbers.
pub(crate) struct Memory {
    pub(crate) images: *const f32,
    pub(crate) arena: *mut f32,
    pub(crate) logits: *mut f32,
    /// Of the worker, or of the first one if all compute the same images.
    pub(crate) worker: *mut f32,
    /// The image of the batch that the steps see as the first one.
    pub(crate) first: usize,
}

impl Default for Memory {
    /// None.
    fn default() -> Self {
        let none = std::ptr::null_mut();
        Self { images: none, arena: none, logits: none, worker: none, first: 0 }
    }
}

// SAFETY: see above: jobs that run at once write disjoint numbers, and none that another one reads.
unsafe impl Sync for Memory {}

impl Memory {
    /// Pointer to a pixel of a block, see [`View::at`].
    #[inline(always)]
    pub(crate) fn at(&self, view: &View, image: usize, block: usize, y: isize, x: isize) -> *const f32 {
        match view.place {
            Place::Images => self.images.wrapping_add(view.at(self.first + image, block, y, x)),
            _ => self.at_mut(view, image, block, y, x),
        }
    }

    /// Pointer to a pixel of a block that is written, see [`View::at`].
    #[inline(always)]
    pub(crate) fn at_mut(&self, view: &View, image: usize, block: usize, y: isize, x: isize) -> *mut f32 {
        let base = match view.place {
            Place::Worker => return self.worker.wrapping_add(view.at(image, block, y, x)),
            Place::Arena => self.arena,
            Place::Logits => self.logits,
            Place::Images => unreachable!("images are never written"),
        };
        base.wrapping_add(view.at(self.first + image, block, y, x))
    }

    /// Zeroes the border beside `rows` of some blocks of an image, and above and below them where they are the first and last.
    ///
    /// # Safety
    /// The view is blocked and inside the memory, and nothing else touches these rows of these blocks.
    pub(crate) unsafe fn clear_border(
        &self,
        view: &View,
        image: usize,
        blocks: Range<usize>,
        rows: Range<usize>,
    ) {
        let [above, beside] = view.border;
        if view.border == [0, 0] {
            return;
        }
        let [height, width] = view.size;
        let (above, side) = (above as isize, beside as isize);
        let zero = |block: usize, y: isize, x: isize, pixels: usize| {
            // SAFETY: promised by the caller.
            unsafe {
                std::ptr::write_bytes(self.at_mut(view, image, block, y, x), 0, pixels * view.pixel_stride)
            };
        };
        for block in blocks {
            if rows.start == 0 {
                (-above..0).for_each(|y| zero(block, y, -side, width + 2 * beside));
            }
            if beside > 0 {
                for y in rows.clone() {
                    zero(block, y as isize, -side, beside);
                    zero(block, y as isize, width as isize, beside);
                }
            }
            if rows.end == height {
                (0..above).for_each(|y| zero(block, height as isize + y, -side, width + 2 * beside));
            }
        }
    }
}
