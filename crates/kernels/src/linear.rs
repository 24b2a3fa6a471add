//! Fully connected layer for inference: weights packed once, what follows fused, nothing allocated.
#![expect(unsafe_code, reason = "tiles read packed weights and write into the shared result")]

use crate::Par;
use crate::gemm::depth_blocks;
use crate::gemm::tile::{Finish, Run, Tile};
use crate::par::{LINE, Shared, for_each_job};
use crate::tier::{self, MAX_ROWS, Tier};

/// A cache line of numbers, so that packed weights are aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A fully connected layer whose weights are packed once, for inference.
///
/// The weights are read once, in order, for up to eight images (`avx512`), so a small batch runs at the speed
/// of memory; a larger one reads them again from the first-level cache.
///
/// ```
/// use cofilter_kernels::{PackedLinear, Par};
///
/// let linear = PackedLinear::new(2, 3, &[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], Some(&[0.5, -3.0]));
/// let mut dst = [0.0; 2];
/// linear.run(1, &[1.0, 1.0, 2.0], true, &mut dst, &mut [], Par::Serial);
/// assert_eq!(dst, [9.5, 0.0]);
/// ```
#[derive(Clone, Debug)]
pub struct PackedLinear {
    tier: &'static Tier,
    out_features: usize,
    in_features: usize,
    /// For each panel of `tier.cols` outputs, `[in_features][output]`.
    weight: Vec<Line>,
    bias: Option<Vec<f32>>,
}

impl PackedLinear {
    /// Packs `weight`, row-major `[out_features, in_features]`, and `bias`, `[out_features]`.
    ///
    /// # Panics
    /// If a slice has the wrong length.
    pub fn new(out_features: usize, in_features: usize, weight: &[f32], bias: Option<&[f32]>) -> Self {
        assert_eq!(weight.len(), out_features * in_features, "linear: length of weight");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), out_features, "linear: length of bias");
        }
        let tier = tier::active();
        let len = out_features.next_multiple_of(tier.cols) * in_features;
        let mut packed = vec![Line([0.0; LINE]); len.div_ceil(LINE)];
        let mut at = 0;
        for panel in weight.chunks(tier.cols * in_features.max(1)) {
            for k in 0..in_features {
                for (j, row) in panel.chunks_exact(in_features).enumerate() {
                    packed[(at + j) / LINE].0[(at + j) % LINE] = row[k];
                }
                at += tier.cols;
            }
        }
        Self { tier, out_features, in_features, weight: packed, bias: bias.map(<[f32]>::to_vec) }
    }

    /// Numbers of scratch that [`run`](Self::run) needs for `batch` images on `threads` threads: none.
    pub fn scratch_len(&self, _batch: usize, _threads: usize) -> usize {
        0
    }

    /// `dst = relu?(src weight^T + bias)`; `src` is `[batch, in_features]`, `dst` is `[batch, out_features]`.
    ///
    /// # Panics
    /// If a slice has the wrong length.
    pub fn run(
        &self,
        batch: usize,
        src: &[f32],
        relu: bool,
        dst: &mut [f32],
        _scratch: &mut [f32],
        par: Par,
    ) {
        assert_eq!(src.len(), batch * self.in_features, "linear: length of src");
        assert_eq!(dst.len(), batch * self.out_features, "linear: length of dst");
        if self.in_features == 0 {
            for dst in dst.chunks_exact_mut(self.out_features.max(1)) {
                for (i, dst) in dst.iter_mut().enumerate() {
                    let bias = self.bias.as_ref().map_or(0.0, |bias| bias[i]);
                    *dst = if relu && bias < 0.0 { 0.0 } else { bias };
                }
            }
            return;
        }
        let threads = par.threads((batch * self.in_features) as u64 * self.out_features as u64);
        let panels = self.out_features.div_ceil(self.tier.cols);
        // Images are split where there are too few panels for the threads.
        let parts = if threads > 1 { (2 * threads).div_ceil(panels.max(1)) } else { 1 };
        let part = batch.div_ceil(parts).next_multiple_of(self.tier.rows);
        let parts = batch.div_ceil(part.max(1));
        let dst = Shared::new(dst);
        for_each_job(threads, panels * parts, &mut [], 0, |job, _| {
            let first = job % parts * part;
            self.run_panel(job / parts, first..batch.min(first + part), src, relu, dst);
        });
    }

    /// Computes a panel of outputs for some images.
    fn run_panel(
        &self,
        panel: usize,
        images: std::ops::Range<usize>,
        src: &[f32],
        relu: bool,
        dst: Shared<'_>,
    ) {
        let (tier, depth) = (self.tier, self.in_features);
        let rows: [usize; MAX_ROWS] = std::array::from_fn(|i| i * depth);
        let first = panel * tier.cols;
        let width = tier.cols.min(self.out_features - first);
        for block in depth_blocks(depth) {
            let weight = (panel * depth + block.start) * tier.cols;
            for image in images.clone().step_by(tier.rows) {
                let height = tier.rows.min(images.end - image);
                let mut finish = Finish { accumulate: block.start > 0, ..Finish::default() };
                if block.end == depth {
                    // The same numbers are added to every image.
                    finish.add = self.bias.as_ref().map(|bias| (bias[first..first + width].as_ptr(), 0));
                    finish.relu = relu;
                }
                let tile = Tile {
                    a: src[image * depth + block.start..].as_ptr(),
                    rows: &rows[..height],
                    step: 1,
                    runs: &[Run { start: 0, len: block.len() }],
                    b: self.weight.as_ptr().cast::<f32>().wrapping_add(weight),
                    b_step: tier.cols,
                    c: dst.part(image * self.out_features + first, (height - 1) * self.out_features + width),
                    c_step: self.out_features,
                    width,
                    finish,
                };
                // SAFETY: `weight` holds whole panels of `in_features` rows, `src` the images, and the
                // outputs of this panel and these images belong to this job alone.
                unsafe { tier.multiply(&tile) };
            }
        }
    }
}
