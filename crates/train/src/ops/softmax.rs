use super::{Arg, Layer, Saved};
use cofilter_kernels as kernels;

/// `exp(x_i) / sum_j exp(x_j)` by row; one operand `[N, K]`.
pub(super) struct Probabilities;

impl Layer for Probabilities {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        kernels::softmax(args[0].dims[0], args[0].dims[1], args[0].data, dst);
    }

    /// `dx_i = y_i (g_i - sum_j g_j y_j)`.
    fn backward(
        &self,
        args: &[Arg<'_>],
        dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let classes = args[0].dims[1];
        let Some(grad) = &mut grads[0] else { return };
        let rows = dst.chunks_exact(classes).zip(grad_dst.chunks_exact(classes));
        for ((y, g), dx) in rows.zip(grad.chunks_exact_mut(classes)) {
            let dot: f32 = y.iter().zip(g).map(|(y, g)| y * g).sum();
            for ((dx, y), g) in dx.iter_mut().zip(y).zip(g) {
                *dx = y * (g - dot);
            }
        }
    }
}
