use super::{Arg, Layer, Saved, planes};
use cofilter_kernels as kernels;
use cofilter_kernels::{Par, PlaneShape};

/// Mean and variance by channel.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f32>,
    pub(crate) var: Vec<f32>,
}

/// Operands `x [N, C, H, W]`, weight and bias `[C]`. With `running` statistics they are constants, otherwise those of
/// the batch are taken and differentiated.
pub(super) struct Normalisation {
    pub(super) eps: f32,
    pub(super) running: Option<Statistics>,
}

fn shape(dims: &[usize]) -> PlaneShape {
    let (batch, channels, plane) = planes(dims);
    PlaneShape { batch, channels, plane }
}

impl Layer for Normalisation {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize> {
        args[0].to_vec()
    }

    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], saved: &mut Saved, _keep: bool) {
        let shape = shape(args[0].dims);
        let apply = |s: &Statistics, dst: &mut [f32]| {
            let (gamma, beta) = (args[1].data, args[2].data);
            kernels::batch_norm(
                &shape,
                args[0].data,
                &s.mean,
                &s.var,
                self.eps,
                gamma,
                beta,
                false,
                dst,
                Par::Rayon,
            );
        };
        if let Some(running) = &self.running {
            apply(running, dst);
            *saved = Saved::Nothing;
            return;
        }
        let mut s = Statistics { mean: vec![0.0; shape.channels], var: vec![0.0; shape.channels] };
        kernels::batch_norm_statistics(&shape, args[0].data, &mut s.mean, &mut s.var, Par::Rayon);
        apply(&s, dst);
        *saved = Saved::Statistics(s);
    }

    fn backward(
        &self,
        args: &[Arg<'_>],
        _dst: &[f32],
        saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let shape = shape(args[0].dims);
        if let (Some(running), Saved::Nothing) = (&self.running, saved) {
            return self.backward_constant(&shape, running, args, grad_dst, grads);
        }
        let Saved::Statistics(s) = saved else { return };
        // The kernel computes all three; what nobody wants goes to scratch.
        let mut scratch: Vec<Vec<f32>> = Vec::new();
        scratch.extend(
            grads.iter().zip(args).map(|(g, a)| vec![0.0; if g.is_some() { 0 } else { a.data.len() }]),
        );
        let mut places = grads.iter_mut().zip(&mut scratch).map(|(g, s)| match g {
            Some(g) => &mut **g,
            None => s.as_mut_slice(),
        });
        let (Some(src), Some(gamma), Some(beta)) = (places.next(), places.next(), places.next()) else {
            return;
        };
        kernels::batch_norm_backward(
            &shape,
            args[0].data,
            &s.mean,
            &s.var,
            self.eps,
            args[1].data,
            grad_dst,
            src,
            gamma,
            beta,
            Par::Rayon,
        );
    }
}

impl Normalisation {
    /// With constant statistics the op is affine in each channel. Sums over a plane in `f64`, images in order.
    fn backward_constant(
        &self,
        shape: &PlaneShape,
        s: &Statistics,
        args: &[Arg<'_>],
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    ) {
        let mut sums = vec![[0.0f64; 2]; shape.channels];
        for (p, (x, g)) in
            args[0].data.chunks_exact(shape.plane).zip(grad_dst.chunks_exact(shape.plane)).enumerate()
        {
            let c = p % shape.channels;
            let scale = 1.0 / (s.var[c] + self.eps).sqrt();
            for (x, g) in x.iter().zip(g) {
                sums[c][0] += f64::from(*g) * f64::from((x - s.mean[c]) * scale);
                sums[c][1] += f64::from(*g);
            }
            if let Some(grad) = &mut grads[0] {
                let factor = args[1].data[c] * scale;
                let plane = &mut grad[p * shape.plane..(p + 1) * shape.plane];
                plane.iter_mut().zip(g).for_each(|(dx, g)| *dx = factor * g);
            }
        }
        for slot in 0..2 {
            if let Some(grad) = &mut grads[1 + slot] {
                #[expect(clippy::cast_possible_truncation, reason = "summed in f64, stored in f32")]
                grad.iter_mut().zip(&sums).for_each(|(g, sum)| *g = sum[slot] as f32);
            }
        }
    }
}
