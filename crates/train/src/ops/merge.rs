use super::{Arg, Layer, Saved, planes};
use cofilter_graph::PadChannels;
use cofilter_kernels as kernels;
use cofilter_kernels::Par;

/// Elementwise sum of operands of one shape.
pub(super) struct Sum;

/// Operands one after the other along axis 1.
pub(super) struct Concatenation;

/// Channels of zeros around `[N, C, H, W]`.
pub(super) struct ZeroChannels(pub(super) PadChannels);

impl Layer for Sum {
    fn name(&self) -> &'static str {
        "add"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        let inputs: Vec<&[f32]> = args.iter().map(|a| a.data).collect();
        kernels::add(&inputs, false, dst, Par::Rayon);
    }

    fn backward(
        &self,
        _args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        grads.iter_mut().flatten().for_each(|grad| grad.copy_from_slice(grad_dst));
    }
}

impl Layer for Concatenation {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        let mut dims = args[0].to_vec();
        dims[1] = args.iter().map(|d| d[1]).sum();
        dims
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        let mut rest = dst;
        for image in 0..args[0].dims[0] {
            for arg in args {
                let len = arg.dims[1..].iter().product::<usize>();
                let (head, tail) = rest.split_at_mut(len);
                head.copy_from_slice(&arg.data[image * len..(image + 1) * len]);
                rest = tail;
            }
        }
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let mut rest = grad_dst;
        for image in 0..args[0].dims[0] {
            for (arg, grad) in args.iter().zip(grads.iter_mut()) {
                let len = arg.dims[1..].iter().product::<usize>();
                let (head, tail) = rest.split_at(len);
                if let Some(grad) = grad {
                    grad[image * len..(image + 1) * len].copy_from_slice(head);
                }
                rest = tail;
            }
        }
    }
}

impl Layer for ZeroChannels {
    fn name(&self) -> &'static str {
        "pad_channels"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        let mut dims = args[0].to_vec();
        dims[1] += self.0.before + self.0.after;
        dims
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        let (_, channels, plane) = planes(args[0].dims);
        let (before, len) = (self.0.before * plane, channels * plane);
        let width = len + before + self.0.after * plane;
        for (image, padded) in args[0].data.chunks_exact(len).zip(dst.chunks_exact_mut(width)) {
            padded[..before].fill(0.0);
            padded[before..before + len].copy_from_slice(image);
            padded[before + len..].fill(0.0);
        }
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let (_, channels, plane) = planes(args[0].dims);
        let (before, len) = (self.0.before * plane, channels * plane);
        let width = len + before + self.0.after * plane;
        let Some(grad) = &mut grads[0] else { return };
        for (image, padded) in grad.chunks_exact_mut(len).zip(grad_dst.chunks_exact(width)) {
            image.copy_from_slice(&padded[before..before + len]);
        }
    }
}
