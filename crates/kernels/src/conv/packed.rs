//! Convolution for inference: prepared once, what follows fused, nothing allocated.

use super::correlation::{Correlation, Ending, Inputs};
use super::{ConvShape, check_len, forward_correlation};
use crate::Par;
use crate::tier::{self, Tier};

/// What happens to a result before it is stored: `dst = relu?(conv + bias + add)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the result, of the length of `dst`.
    pub add: Option<&'a [f32]>,
    /// Whether negative results become zero.
    pub relu: bool,
}

/// A convolution prepared once for inference: it owns its weights and all that follows from the shape.
///
/// Filters stay row-major, because reading them in place measured no slower than from a reordered copy.
///
/// ```
/// use cofilter_kernels::{ConvShape, Epilogue, PackedConv, Par};
///
/// let shape = ConvShape {
///     batch: 1,
///     in_channels: 1,
///     in_size: [3, 3],
///     out_channels: 1,
///     kernel: [2, 2],
///     stride: [1, 1],
///     padding: [0, 0],
///     dilation: [1, 1],
///     groups: 1,
/// };
/// let conv = PackedConv::new(&shape, &[1.0, 0.0, 0.0, -1.0], Some(&[4.0]));
/// let mut scratch = vec![0.0; conv.scratch_len(1, 1)];
/// let (src, mut dst) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [9.0; 4]);
/// conv.run(1, &src, Epilogue { add: None, relu: true }, &mut dst, &mut scratch, Par::Serial);
/// assert_eq!(dst, [0.0, 0.0, 0.0, 0.0]);
/// ```
#[derive(Clone, Debug)]
pub struct PackedConv {
    tier: &'static Tier,
    shape: ConvShape,
    correlation: Correlation,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl PackedConv {
    /// Packs `weight` (and `bias`) for `shape`, whose `batch` is ignored. Extents as in [`ConvShape`].
    ///
    /// # Panics
    /// If the shape is no convolution or a slice has the wrong length.
    pub fn new(shape: &ConvShape, weight: &[f32], bias: Option<&[f32]>) -> Self {
        shape.check();
        check_len("weight", weight.len(), shape.weight_len());
        if let Some(bias) = bias {
            check_len("bias", bias.len(), shape.out_channels);
        }
        let tier = tier::active();
        let correlation = forward_correlation(shape);
        Self { tier, shape: *shape, correlation, weight: weight.to_vec(), bias: bias.map(<[f32]>::to_vec) }
    }

    /// Numbers of scratch that [`run`](Self::run) needs for `batch` images on `threads` threads.
    pub fn scratch_len(&self, batch: usize, threads: usize) -> usize {
        self.correlation.scratch_len(self.tier, batch) * threads
    }

    /// `dst = relu?(conv(src) + bias + add)` for `batch` images; `scratch` may hold anything.
    ///
    /// With [`Par::Rayon`] as many threads take part as `scratch` has room for.
    ///
    /// # Panics
    /// If a slice has the wrong length, or `scratch` is shorter than `scratch_len(batch, 1)`.
    pub fn run(
        &self,
        batch: usize,
        src: &[f32],
        epilogue: Epilogue<'_>,
        dst: &mut [f32],
        scratch: &mut [f32],
        par: Par,
    ) {
        let shape = ConvShape { batch, ..self.shape };
        check_len("src", src.len(), shape.src_len());
        check_len("dst", dst.len(), shape.dst_len());
        if let Some(add) = epilogue.add {
            check_len("add", add.len(), shape.dst_len());
        }
        let inputs = Inputs {
            tier: self.tier,
            batch,
            threads: par.threads(shape.macs()),
            src,
            weight: &self.weight,
            ending: Ending { bias: self.bias.as_deref(), add: epilogue.add, relu: epilogue.relu },
        };
        self.correlation.run(&inputs, dst, scratch);
    }
}
