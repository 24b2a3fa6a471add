//! Convolution, forward and backward.
#![expect(unsafe_code, reason = "jobs write into the shared bias gradient")]

mod correlation;
mod input_gradient;
mod packed;
mod schedule;
mod shape;
mod weight_gradient;
mod window;

pub use packed::{Epilogue, PackedConv};
pub use shape::ConvShape;

use crate::Par;
use crate::par::{Shared, for_each_job};
use crate::tier;
use correlation::{Correlation, Ending, Inputs};
use weight_gradient::WeightGradient;
use window::Window;

/// Convolution: `dst = weight * src + bias`.
///
/// `dst[n, o, y, x] = bias[o] + sum over c, r, s of weight[o, c, r, s] src[n, g + c, y stride_h + r
/// dilation_h - padding_h, x stride_w + s dilation_w - padding_w]`, where `g` is the first channel of the
/// group of `o`, and pixels outside the image are 0. Extents as in [`ConvShape`]; `bias` is `[out_channels]`.
///
/// # Panics
/// If the shape is no convolution (see [`ConvShape`]) or a slice has the wrong length.
pub fn conv2d(
    shape: &ConvShape,
    src: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    dst: &mut [f32],
    par: Par,
) {
    shape.check();
    check_len("src", src.len(), shape.src_len());
    check_len("weight", weight.len(), shape.weight_len());
    check_len("dst", dst.len(), shape.dst_len());
    if let Some(bias) = bias {
        check_len("bias", bias.len(), shape.out_channels);
    }
    let (tier, threads) = (tier::active(), par.threads(shape.macs()));
    let correlation = forward_correlation(shape);
    let mut scratch = vec![0.0; correlation.scratch_len(tier, shape.batch) * threads];
    let ending = Ending { bias, ..Ending::default() };
    let inputs = Inputs { tier, batch: shape.batch, threads, src, weight, ending };
    correlation.run(&inputs, dst, &mut scratch);
}

/// The product that is the forward pass.
fn forward_correlation(shape: &ConvShape) -> Correlation {
    Correlation {
        window: forward_window(shape),
        groups: shape.groups,
        channels: shape.in_channels / shape.groups,
        src_plane: shape.in_size[0] * shape.in_size[1],
        filters: shape.out_channels / shape.groups,
    }
}

/// The window through which the forward pass reads the input.
fn forward_window(shape: &ConvShape) -> Window {
    let before = shape.padding.map(|padding| padding as isize);
    let taps = (0..shape.kernel[0])
        .flat_map(|r| (0..shape.kernel[1]).map(move |s| [r * shape.dilation[0], s * shape.dilation[1]]));
    Window::new(shape.in_size, shape.out_size(), before, shape.stride, taps)
}

/// Gradient of a convolution with respect to its input: `grad_src[n, c, i, j]` is the sum of `grad_dst[n, o,
/// y, x] weight[o, c, r, s]` over all outputs and taps that read the pixel.
///
/// `grad_dst` has the extents of `dst`, `grad_src` those of `src`.
///
/// # Panics
/// If the shape is no convolution (see [`ConvShape`]) or a slice has the wrong length.
pub fn conv2d_backward_src(
    shape: &ConvShape,
    grad_dst: &[f32],
    weight: &[f32],
    grad_src: &mut [f32],
    par: Par,
) {
    shape.check();
    check_len("grad_dst", grad_dst.len(), shape.dst_len());
    check_len("weight", weight.len(), shape.weight_len());
    check_len("grad_src", grad_src.len(), shape.src_len());
    input_gradient::run(tier::active(), shape, grad_dst, weight, grad_src, par.threads(shape.macs()));
}

/// Gradient of a convolution with respect to its filters: `grad_weight[o, c, r, s]` is the sum of
/// `grad_dst[n, o, y, x]` times the input pixel that this tap reads, over images and output pixels.
///
/// # Panics
/// If the shape is no convolution (see [`ConvShape`]) or a slice has the wrong length.
pub fn conv2d_backward_weight(
    shape: &ConvShape,
    src: &[f32],
    grad_dst: &[f32],
    grad_weight: &mut [f32],
    par: Par,
) {
    shape.check();
    check_len("src", src.len(), shape.src_len());
    check_len("grad_dst", grad_dst.len(), shape.dst_len());
    check_len("grad_weight", grad_weight.len(), shape.weight_len());
    if grad_dst.is_empty() {
        grad_weight.fill(0.0);
        return;
    }
    let window = forward_window(shape);
    WeightGradient::new(tier::active(), shape, &window).run(
        src,
        grad_dst,
        grad_weight,
        par.threads(shape.macs()),
    );
}

/// Gradient of a convolution with respect to its bias: the sum of `grad_dst` over images and pixels,
/// `[out_channels]`.
///
/// # Panics
/// If the shape is no convolution (see [`ConvShape`]) or a slice has the wrong length.
pub fn conv2d_backward_bias(shape: &ConvShape, grad_dst: &[f32], grad_bias: &mut [f32], par: Par) {
    shape.check();
    check_len("grad_dst", grad_dst.len(), shape.dst_len());
    check_len("grad_bias", grad_bias.len(), shape.out_channels);
    let plane = shape.out_plane();
    // Reading a number costs about as much as a few multiplications.
    let threads = par.threads(4 * grad_dst.len() as u64);
    let grad_bias = Shared::new(grad_bias);
    for_each_job(threads, shape.out_channels, &mut [], 0, |channel, _| {
        let planes = (0..shape.batch).map(|image| {
            let start = (image * shape.out_channels + channel) * plane;
            f64::from(sum(&grad_dst[start..start + plane]))
        });
        let total = planes.sum::<f64>() as f32;
        // SAFETY: this element belongs to this job alone; `part` checked that there is one.
        unsafe { *grad_bias.part(channel, 1) = total };
    });
}

/// Sum in a fixed order, in lanes that the compiler turns into vectors.
fn sum(numbers: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0_f32; LANES];
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    for block in blocks {
        for (lane, number) in lanes.iter_mut().zip(block) {
            *lane += number;
        }
    }
    lanes.iter().chain(rest).sum()
}

/// Panics unless a slice has the length that the shape asks for.
fn check_len(name: &str, found: usize, expected: usize) {
    assert_eq!(found, expected, "convolution: length of {name}");
}
