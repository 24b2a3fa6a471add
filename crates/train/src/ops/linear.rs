use super::{Arg, Layer, Saved};
use cofilter_kernels::{MatRef, Par, gemm};

/// `y = x W^T + b`; operands `x [N, I]`, `W [O, I]`, and `b [O]` if there is one.
pub(super) struct FullyConnected;

/// A row-major matrix.
fn matrix(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef { data, rows, cols, row_stride: cols, col_stride: 1 }
}

/// The transpose of a row-major matrix `[rows, cols]`.
fn transposed(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef { data, rows: cols, cols: rows, row_stride: 1, col_stride: cols }
}

impl Layer for FullyConnected {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        vec![args[0][0], args[1][0]]
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], _saved: &mut Saved, _keep: bool) {
        let (batch, inputs, outputs) = (args[0].dims[0], args[1].dims[1], args[1].dims[0]);
        if let Some(bias) = args.get(2) {
            dst.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias.data));
        }
        let x = matrix(args[0].data, batch, inputs);
        gemm(x, transposed(args[1].data, outputs, inputs), args.len() > 2, dst, Par::Rayon);
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        _saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let (batch, inputs, outputs) = (args[0].dims[0], args[1].dims[1], args[1].dims[0]);
        if let Some(grad) = &mut grads[0] {
            let weight = matrix(args[1].data, outputs, inputs);
            gemm(matrix(grad_dst, batch, outputs), weight, false, grad, Par::Rayon);
        }
        if let Some(grad) = &mut grads[1] {
            let x = matrix(args[0].data, batch, inputs);
            gemm(transposed(grad_dst, batch, outputs), x, false, grad, Par::Rayon);
        }
        if let Some(Some(grad)) = grads.get_mut(2) {
            grad.fill(0.0);
            for row in grad_dst.chunks_exact(outputs) {
                grad.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
            }
        }
    }
}
