use super::{Arg, Layer, Saved};
use cofilter_kernels as kernels;

/// Mean over the batch of `-log softmax(x)[label]`, as one number `[1]`; one operand `[N, K]`.
pub(crate) struct CrossEntropy {
    pub(crate) labels: Vec<u32>,
}

impl Layer for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn dst_dims(&self, _args: &[&[usize]]) -> Vec<usize> {
        vec![1]
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], saved: &mut Saved, keep: bool) {
        let [rows, cols] = [args[0].dims[0], args[0].dims[1]];
        let mut grad = vec![0.0; if keep { rows * cols } else { 0 }];
        let place = keep.then_some(grad.as_mut_slice());
        let loss = kernels::softmax_cross_entropy(rows, cols, args[0].data, &self.labels, place);
        #[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
        dst.fill(loss as f32);
        *saved = Saved::Factors(grad);
    }

    fn backward(
        &self,
        _args: &[Arg<'_>],
        _dst: &[f32],
        saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let (Some(grad), Saved::Factors(factors)) = (&mut grads[0], saved) else { return };
        grad.iter_mut().zip(factors).for_each(|(dx, f)| *dx = f * grad_dst[0]);
    }
}
