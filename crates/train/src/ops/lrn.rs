use super::{Arg, Layer, Saved};
use cofilter_graph::Lrn;
use cofilter_kernels as kernels;
use cofilter_kernels::{LrnShape, Par};

/// Normalisation over neighbouring channels; one operand `[N, C, H, W]`.
pub(super) struct AcrossChannels(pub(super) Lrn);

/// Normalisation over a window of the channel; one operand `[N, C, H, W]`.
pub(super) struct WithinChannel(pub(super) Lrn);

fn shape(lrn: &Lrn, dims: &[usize]) -> LrnShape {
    LrnShape {
        batch: dims[0],
        channels: dims[1],
        size: [dims[2], dims[3]],
        local_size: lrn.size,
        alpha: lrn.alpha,
        beta: lrn.beta,
        k: lrn.k,
    }
}

impl Layer for AcrossChannels {
    fn name(&self) -> &'static str {
        "lrn_across"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        kernels::lrn_across(&shape(&self.0, args[0].dims), args[0].data, dst, Par::Rayon);
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let Some(grad) = &mut grads[0] else { return };
        kernels::lrn_across_backward(&shape(&self.0, args[0].dims), args[0].data, grad_dst, grad, Par::Rayon);
    }
}

impl Layer for WithinChannel {
    fn name(&self) -> &'static str {
        "lrn_within"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        kernels::lrn_within(&shape(&self.0, args[0].dims), args[0].data, dst, Par::Rayon);
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let Some(grad) = &mut grads[0] else { return };
        kernels::lrn_within_backward(&shape(&self.0, args[0].dims), args[0].data, grad_dst, grad, Par::Rayon);
    }
}
