//! Steps that compute a map row by row: pooling, normalisation, sums.
#![expect(unsafe_code, reason = "rows are read and written through pointers to shared memory")]

use super::View;
use super::lanes::{Kernel, Lanes};
use super::memory::Memory;
use super::sequence::Stage;
use crate::tier::{self, Tier};

/// What is computed for a row of a block.
pub(crate) trait RowOp: Send + Sync + std::fmt::Debug {
    /// What it reads.
    fn srcs(&self) -> Vec<&View>;
    /// What it writes; blocked.
    fn dst(&self) -> &View;
    /// Whether it may read what it writes.
    fn in_place(&self) -> bool {
        false
    }
    /// Numbers of scratch memory.
    fn scratch_len(&self) -> usize {
        0
    }
    /// Bytes of weights that it holds.
    fn weight_bytes(&self) -> usize {
        0
    }
    /// Vectors that are read for one that is written, about.
    fn cost(&self) -> usize {
        1
    }
    /// Computes a row; `#[inline(always)]`.
    ///
    /// # Safety
    /// The machine has `L` and the caller is compiled for it; the views are inside the memory, and nothing else writes what is
    /// read or touches the row.
    unsafe fn row<L: Lanes>(&self, memory: &Memory, scratch: *mut f32, image: usize, block: usize, y: usize);
}

/// Vectors that are worth a job of their own (some 5 us).
const GRAIN: usize = 8 * 1024;

/// A step made of rows. Blocks and rows are cut so that a job is worth its while.
#[derive(Debug)]
pub(crate) struct Rowwise<O> {
    pub(crate) tier: &'static Tier,
    pub(crate) op: O,
    blocks: usize,
    rows: usize,
}

impl<O: RowOp> Rowwise<O> {
    pub(crate) fn new(op: O) -> Self {
        let dst = op.dst();
        assert!(dst.pixel_stride == super::BLOCK && dst.phases == 1, "the result is not blocked: {dst:?}");
        let row = (dst.size[1] * op.cost()).max(1);
        let rows = (GRAIN / row).clamp(1, dst.size[0].max(1));
        let blocks = (GRAIN / (row * dst.size[0]).max(1)).clamp(1, dst.blocks().max(1));
        Self { tier: tier::active(), rows: if blocks > 1 { dst.size[0] } else { rows }, op, blocks }
    }
}

impl<O: RowOp> Stage for Rowwise<O> {
    fn reads(&self) -> Vec<&View> {
        self.op.srcs()
    }

    fn write(&self) -> &View {
        self.op.dst()
    }

    fn in_place(&self) -> bool {
        self.op.in_place()
    }

    fn weight_bytes(&self) -> usize {
        self.op.weight_bytes()
    }

    fn scratch_len(&self) -> usize {
        self.op.scratch_len()
    }

    fn jobs(&self, images: usize) -> usize {
        let dst = self.op.dst();
        images * dst.blocks().div_ceil(self.blocks) * dst.size[0].div_ceil(self.rows)
    }

    unsafe fn run(&self, job: usize, _images: usize, memory: &Memory, scratch: *mut f32) {
        let dst = self.op.dst();
        let (groups, parts) = (dst.blocks().div_ceil(self.blocks), dst.size[0].div_ceil(self.rows));
        let image = job / parts / groups;
        let first = job / parts % groups * self.blocks;
        let top = job % parts * self.rows;
        let (blocks, rows) =
            (first..dst.blocks().min(first + self.blocks), top..dst.size[0].min(top + self.rows));
        // SAFETY: handed on from the caller; jobs differ in image, blocks or rows.
        unsafe {
            for block in blocks.clone() {
                self.tier.launch(Rows { op: &self.op, memory, scratch, image, block, rows: rows.clone() });
            }
            memory.clear_border(dst, image, blocks, rows);
        }
    }
}

struct Rows<'a, O> {
    op: &'a O,
    memory: &'a Memory,
    scratch: *mut f32,
    image: usize,
    block: usize,
    rows: std::ops::Range<usize>,
}

impl<O: RowOp> Kernel for Rows<'_, O> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for y in self.rows {
            // SAFETY: handed on from the caller.
            unsafe { self.op.row::<L>(self.memory, self.scratch, self.image, self.block, y) };
        }
    }
}
