use super::{Arg, Layer, Saved};
use cofilter_kernels as kernels;
use cofilter_kernels::Par;

/// Average over windows that tile the map; one operand `[N, C, H, W]`.
pub(super) struct AdaptiveAverage {
    pub(super) output: [usize; 2],
}

impl Layer for AdaptiveAverage {
    fn name(&self) -> &'static str {
        "adaptive_avg_pool"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        vec![args[0][0], args[0][1], self.output[0], self.output[1]]
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        let d = args[0].dims;
        kernels::adaptive_avg_pool(d[0] * d[1], [d[2], d[3]], self.output, args[0].data, dst, Par::Rayon);
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let d = args[0].dims;
        let Some(grad) = &mut grads[0] else { return };
        kernels::adaptive_avg_pool_backward(
            d[0] * d[1],
            [d[2], d[3]],
            self.output,
            grad_dst,
            grad,
            Par::Rayon,
        );
    }
}
