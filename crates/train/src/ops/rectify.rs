use super::{Arg, Layer, Saved};
use cofilter_kernels as kernels;
use cofilter_kernels::Par;

/// `max(x, 0)` with gradient 0 at 0; one operand of any shape.
pub(super) struct Rectification;

impl Layer for Rectification {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        kernels::relu(args[0].data, dst, Par::Rayon);
    }

    fn backward(
        &self,
        _args: &[Arg<'_>],
        dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let Some(grad) = &mut grads[0] else { return };
        kernels::relu_backward(dst, grad_dst, grad, Par::Rayon);
    }
}
