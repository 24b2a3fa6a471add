use super::{Arg, Layer, Saved};
use cofilter_graph::{Pool2d, PoolKind};
use cofilter_kernels as kernels;
use cofilter_kernels::{Par, PoolShape};

/// Maximum or average over windows; one operand `[N, C, H, W]`.
pub(super) struct Pooling {
    pub(super) pool: Pool2d,
    pub(super) out_size: [usize; 2],
}

impl Pooling {
    fn shape(&self, dims: &[usize]) -> PoolShape {
        PoolShape {
            planes: dims[0] * dims[1],
            in_size: [dims[2], dims[3]],
            out_size: self.out_size,
            kernel: self.pool.kernel,
            stride: self.pool.stride,
            padding: self.pool.padding,
        }
    }
}

impl Layer for Pooling {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        vec![args[0][0], args[0][1], self.out_size[0], self.out_size[1]]
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], saved: &mut Saved, keep: bool) {
        let shape = self.shape(args[0].dims);
        match self.pool.kind {
            PoolKind::Average => {
                kernels::avg_pool(&shape, self.pool.count_padding, args[0].data, dst, Par::Rayon);
            }
            PoolKind::Max => {
                let mut argmax = match std::mem::take(saved) {
                    Saved::Argmax(used) => used,
                    _ => Vec::new(),
                };
                argmax.resize(if keep { dst.len() } else { 0 }, 0);
                let places = keep.then_some(argmax.as_mut_slice());
                kernels::max_pool(&shape, args[0].data, dst, places, Par::Rayon);
                *saved = Saved::Argmax(argmax);
            }
        }
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let shape = self.shape(args[0].dims);
        let Some(grad) = &mut grads[0] else { return };
        match saved {
            Saved::Argmax(argmax) => kernels::max_pool_backward(&shape, argmax, grad_dst, grad, Par::Rayon),
            _ => kernels::avg_pool_backward(&shape, self.pool.count_padding, grad_dst, grad, Par::Rayon),
        }
    }
}
