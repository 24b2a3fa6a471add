use super::{Arg, Layer, Saved};
use cofilter_graph::Conv2d;
use cofilter_kernels as kernels;
use cofilter_kernels::{ConvShape, Par};

/// Operands `x [N, C, H, W]`, weight, and bias if there is one.
pub(super) struct Convolution(pub(super) Conv2d);

impl Convolution {
    fn shape(&self, dims: &[usize]) -> ConvShape {
        let c = &self.0;
        ConvShape {
            batch: dims[0],
            in_channels: dims[1],
            in_size: [dims[2], dims[3]],
            out_channels: c.out_channels,
            kernel: c.kernel,
            stride: c.stride,
            padding: c.padding,
            dilation: c.dilation,
            groups: c.groups,
        }
    }
}

impl Layer for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        let shape = self.shape(args[0]);
        let [h, w] = shape.out_size();
        vec![shape.batch, shape.out_channels, h, w]
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        let bias = args.get(2).map(|b| b.data);
        kernels::conv2d(&self.shape(args[0].dims), args[0].data, args[1].data, bias, dst, Par::Rayon);
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let shape = self.shape(args[0].dims);
        if let Some(grad) = &mut grads[0] {
            kernels::conv2d_backward_src(&shape, grad_dst, args[1].data, grad, Par::Rayon);
        }
        if let Some(grad) = &mut grads[1] {
            kernels::conv2d_backward_weight(&shape, args[0].data, grad_dst, grad, Par::Rayon);
        }
        if let Some(Some(grad)) = grads.get_mut(2) {
            kernels::conv2d_backward_bias(&shape, grad_dst, grad, Par::Rayon);
        }
    }
}
