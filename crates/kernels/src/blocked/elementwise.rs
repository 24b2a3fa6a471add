//! Number by number: rectification, sums, scale and shift; and the softmax of vectors.
#![expect(unsafe_code, reason = "rows are read and written through pointers to shared memory")]

use super::lanes::Lanes;
use super::memory::Memory;
use super::rowwise::{RowOp, Rowwise};
use super::sequence::{Stage, Step};
use super::{BLOCK, View};

impl Step {
    /// `dst = max(src, 0)`; NaN stays NaN. `src` and `dst` may be the same view.
    ///
    /// # Panics
    /// If the maps are not blocked alike.
    pub fn relu(src: &View, dst: &View) -> Self {
        alike(src, dst);
        Self::from_stage(Rowwise::new(Relu { src: src.clone(), dst: dst.clone() }))
    }

    /// `dst = relu?(a + b)`.
    ///
    /// # Panics
    /// If the maps are not blocked alike.
    pub fn add(a: &View, b: &View, relu: bool, dst: &View) -> Self {
        alike(a, dst);
        alike(b, dst);
        Self::from_stage(Rowwise::new(Add { srcs: [a.clone(), b.clone()], relu, dst: dst.clone() }))
    }

    /// `dst = relu?(scale src + shift)`, `scale` and `shift` one for each channel: batch normalisation with known statistics.
    ///
    /// # Panics
    /// If the maps are not blocked alike or a slice has another length.
    pub fn affine(src: &View, scale: &[f32], shift: &[f32], relu: bool, dst: &View) -> Self {
        alike(src, dst);
        assert!(
            scale.len() == dst.channels() && shift.len() == dst.channels(),
            "affine: length of scale or shift"
        );
        let lines = |numbers: &[f32]| {
            let mut first = 0;
            let mut lines = vec![[0.0; BLOCK]; dst.blocks()];
            for (line, &lanes) in lines.iter_mut().zip(&*dst.lanes) {
                let lanes = usize::from(lanes);
                line[..lanes].copy_from_slice(&numbers[first..first + lanes]);
                first += lanes;
            }
            lines
        };
        let (scale, shift) = (lines(scale), lines(shift));
        Self::from_stage(Rowwise::new(Affine { src: src.clone(), scale, shift, relu, dst: dst.clone() }))
    }

    /// `dst[c] = exp(src[c] - m) / sum over channels of exp(src - m)` at every pixel, `m` the largest; the sum in double
    /// precision, in the order of the channels.
    ///
    /// # Panics
    /// If the channels or extents differ.
    pub fn softmax(src: &View, dst: &View) -> Self {
        assert!(src.channels() == dst.channels() && src.size == dst.size, "softmax: {src:?} to {dst:?}");
        assert!(src.phases == 1 && dst.phases == 1, "softmax: rows in phases");
        Self::from_stage(Softmax { src: src.clone(), dst: dst.clone() })
    }
}

/// Panics unless two maps are blocked and have the same channels and extents.
pub(super) fn alike(a: &View, b: &View) {
    assert!(a.pixel_stride == BLOCK && b.pixel_stride == BLOCK, "not blocked: {a:?} {b:?}");
    assert!(a.lanes == b.lanes && a.size == b.size, "maps differ: {a:?} {b:?}");
}

#[derive(Debug)]
struct Relu {
    src: View,
    dst: View,
}

impl RowOp for Relu {
    fn srcs(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    fn in_place(&self) -> bool {
        self.src == self.dst
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, _: *mut f32, image: usize, block: usize, y: usize) {
        let src = memory.at(&self.src, image, block, y as isize, 0);
        let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
        for x in 0..self.dst.size[1] {
            // SAFETY: the row is inside the maps.
            unsafe { L::store(dst.add(x * BLOCK), L::relu(L::load(src.add(x * BLOCK)))) };
        }
    }
}

#[derive(Debug)]
struct Add {
    srcs: [View; 2],
    relu: bool,
    dst: View,
}

impl RowOp for Add {
    fn srcs(&self) -> Vec<&View> {
        self.srcs.iter().collect()
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, _: *mut f32, image: usize, block: usize, y: usize) {
        let a = memory.at(&self.srcs[0], image, block, y as isize, 0);
        let b = memory.at(&self.srcs[1], image, block, y as isize, 0);
        let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
        for x in 0..self.dst.size[1] {
            // SAFETY: the row is inside the maps.
            unsafe {
                let sum = L::add(L::load(a.add(x * BLOCK)), L::load(b.add(x * BLOCK)));
                L::store(dst.add(x * BLOCK), if self.relu { L::relu(sum) } else { sum });
            }
        }
    }
}

#[derive(Debug)]
struct Affine {
    src: View,
    scale: Vec<[f32; BLOCK]>,
    shift: Vec<[f32; BLOCK]>,
    relu: bool,
    dst: View,
}

impl RowOp for Affine {
    fn srcs(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn dst(&self) -> &View {
        &self.dst
    }

    fn weight_bytes(&self) -> usize {
        size_of_val(&*self.scale) + size_of_val(&*self.shift)
    }

    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, memory: &Memory, _: *mut f32, image: usize, block: usize, y: usize) {
        let src = memory.at(&self.src, image, block, y as isize, 0);
        let dst = memory.at_mut(&self.dst, image, block, y as isize, 0);
        // SAFETY: the row is inside the maps, and there is a line for each block.
        unsafe {
            let scale = L::load(self.scale[block].as_ptr());
            let shift = L::load(self.shift[block].as_ptr());
            for x in 0..self.dst.size[1] {
                let value = L::mul_add(L::load(src.add(x * BLOCK)), scale, shift);
                L::store(dst.add(x * BLOCK), if self.relu { L::relu(value) } else { value });
            }
        }
    }
}

#[derive(Debug)]
struct Softmax {
    src: View,
    dst: View,
}

impl Stage for Softmax {
    fn reads(&self) -> Vec<&View> {
        vec![&self.src]
    }

    fn write(&self) -> &View {
        &self.dst
    }

    fn jobs(&self, images: usize) -> usize {
        images
    }

    unsafe fn run(&self, image: usize, _images: usize, memory: &Memory, _scratch: *mut f32) {
        let [height, width] = self.dst.size;
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y as isize, x as isize))) {
            let src = |(block, lane): (usize, usize)| {
                // SAFETY: the pixel is inside the map.
                unsafe { *memory.at(&self.src, image, block, y, x).add(lane) }
            };
            // NaN wins, and so reaches every result.
            let largest = channels(&self.src)
                .map(src)
                .fold(f32::NEG_INFINITY, |m, v| if v > m || v.is_nan() { v } else { m });
            let sum: f64 = channels(&self.src).map(|at| f64::from((src(at) - largest).exp())).sum();
            for (from, (block, lane)) in channels(&self.src).zip(channels(&self.dst)) {
                let share = f64::from((src(from) - largest).exp()) / sum;
                // SAFETY: the pixel is inside the map, and this job's alone.
                unsafe { *memory.at_mut(&self.dst, image, block, y, x).add(lane) = share as f32 };
            }
            for (block, &lanes) in
                self.dst.lanes.iter().enumerate().filter(|_| self.dst.pixel_stride == BLOCK)
            {
                for lane in usize::from(lanes)..BLOCK {
                    // SAFETY: as above.
                    unsafe { *memory.at_mut(&self.dst, image, block, y, x).add(lane) = 0.0 };
                }
            }
        }
        if self.dst.pixel_stride == BLOCK {
            // SAFETY: this image is this job's alone.
            unsafe { memory.clear_border(&self.dst, image, 0..self.dst.blocks(), 0..height) };
        }
    }
}

/// Block and lane of every channel.
fn channels(view: &View) -> impl Iterator<Item = (usize, usize)> {
    let lanes = view.lanes.iter().enumerate();
    lanes.flat_map(|(block, &lanes)| (0..usize::from(lanes)).map(move |lane| (block, lane)))
}
