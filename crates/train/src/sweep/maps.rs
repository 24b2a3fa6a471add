//! Ops on maps in blocks of channels.

use super::conv::{Through, normalisation};
use super::{Gradients, Pass, Sweep, Value, no_map, with_learnt};
use crate::layout::read;
use crate::net::Mode;
use crate::ops::{Saved, Statistics};
use crate::{Error, Result};
use cofilter_graph::{Lrn, LrnRegion, Op, Pool2d, PoolKind};
use cofilter_kernels::blocked::{BatchNorm, LocalNorm, Pooling, Step, adaptive_avg_pool_backward};
use cofilter_kernels::{self as kernels, Par};
use std::sync::Arc;

impl Sweep {
    /// The op of a node on blocked maps, if there is one.
    pub(super) fn map_forward(
        &mut self,
        pass: &Pass<'_>,
        inputs: &[&Value],
        mode: Mode,
        saved: &mut Saved,
    ) -> Result<Option<Value>> {
        let Pass { net, layout, id, node, images } = *pass;
        let (Some(view), Some(from)) = (layout.view(id), node.inputs().first().and_then(|i| layout.view(*i)))
        else {
            return Ok(None);
        };
        let relu = layout.rectified(id);
        let numbers: Vec<&[f32]> = inputs.iter().map(|input| input.data()).collect();
        let dst = match node.op() {
            Op::Conv2d(conv) if !layout.crowded(id) => {
                self.conv_forward(pass, conv, numbers[0], matches!(mode, Mode::Train { .. }))?
            }
            Op::BatchNorm(bn) => {
                let channels = node.shape().channels();
                let statistics = match (net.running(id, mode)?, std::mem::take(saved)) {
                    (Some(running), _) => running,
                    (None, used) => {
                        let mut s = match used {
                            Saved::Statistics(s) if s.mean.len() == channels => s,
                            _ => Statistics { mean: vec![0.0; channels], var: vec![0.0; channels] },
                        };
                        let moments = self.moments.remove(&id);
                        let moments = moments
                            .unwrap_or_else(|| BatchNorm::moments(from, images, numbers[0], Par::Rayon));
                        BatchNorm::statistics(from, &moments, &mut s.mean, &mut s.var);
                        s
                    }
                };
                let mut dst = self.pool.aligned(view.memory_len(images));
                with_learnt(net, id, |params| {
                    let norm = normalisation(&statistics, bn.eps, params, relu);
                    norm.forward(from, images, numbers[0], view, &mut dst, Par::Rayon);
                })?;
                *saved = if matches!(mode, Mode::Train { .. }) {
                    Saved::Statistics(statistics)
                } else {
                    Saved::Nothing
                };
                dst
            }
            Op::Relu if !layout.done(id) => {
                let mut dst = self.pool.aligned(view.memory_len(images));
                kernels::relu(numbers[0], &mut dst, Par::Rayon);
                dst
            }
            Op::Add => {
                let mut dst = self.pool.aligned(view.memory_len(images));
                kernels::add(&numbers, relu, &mut dst, Par::Rayon);
                dst
            }
            Op::Pool2d(pool) => {
                let mut dst = self.pool.aligned(view.memory_len(images));
                let Pool2d { kernel, stride, padding, count_padding, .. } = *pool;
                let step = match pool.kind {
                    PoolKind::Max => Step::max_pool(&read(from), view, kernel, stride, padding),
                    PoolKind::Average => {
                        Step::avg_pool(&read(from), view, kernel, stride, padding, count_padding)
                    }
                };
                step.run(images, numbers[0], &mut dst, Par::Rayon);
                dst
            }
            Op::AdaptiveAvgPool { .. } => {
                let mut dst = self.pool.aligned(view.memory_len(images));
                Step::adaptive_avg_pool(&read(from), view).run(images, numbers[0], &mut dst, Par::Rayon);
                dst
            }
            Op::Lrn(Lrn { region, size, alpha, beta, k }) => {
                let mut dst = self.pool.aligned(view.memory_len(images));
                let from = read(from);
                let step = match region {
                    LrnRegion::AcrossChannels => Step::lrn_across(&from, view, *size, *alpha, *beta, *k),
                    LrnRegion::WithinChannel => Step::lrn_within(&from, view, *size, *alpha, *beta, *k),
                };
                let mut scratch = self.pool.scratch(step.scratch_len(), rayon::current_num_threads());
                step.run_in(images, numbers[0], &mut dst, &mut scratch, Par::Rayon);
                self.pool.give(scratch);
                dst
            }
            _ => return Ok(None),
        };
        let dims = std::iter::once(images).chain(node.shape().dims()).collect();
        Ok(Some(Value { dims, data: Arc::new(dst) }))
    }

    /// The gradients of the inputs of an op on blocked maps, then those of its learnt tensors.
    pub(super) fn map_backward(
        &mut self,
        pass: &Pass<'_>,
        saved: &Saved,
        values: &[Option<Value>],
        grad: &mut [f32],
        wanted: &[bool],
    ) -> Result<Gradients> {
        let Pass { net, layout, id, node, images } = *pass;
        let input = node.inputs()[0];
        let (Some(view), Some(from), Some(src), Some(dst)) =
            (layout.view(id), layout.view(input), &values[input.index()], &values[id.index()])
        else {
            return Err(no_map(node));
        };
        let (src, dst) = (src.data(), dst.data());
        let mut grads = Gradients { inputs: vec![None; 1], learnt: vec![None; wanted.len() - 1] };
        match node.op() {
            Op::Conv2d(conv) => {
                let through = self.through.remove(&id);
                grads = self.conv_backward(pass, conv, src, dst, grad, through.as_ref(), wanted)?;
            }
            Op::BatchNorm(bn) => {
                let Saved::Statistics(statistics) = saved else {
                    let reason = format!("`{}`: gradients with running statistics", node.name());
                    return Err(Error::Input(reason));
                };
                let channels = statistics.mean.len();
                let (mut gamma, mut beta) = (self.pool.take(channels), self.pool.take(channels));
                let deferred = layout.defers(id, images);
                let mut grad_src =
                    (wanted[0] && !deferred).then(|| self.pool.aligned(from.memory_len(images)));
                with_learnt(net, id, |params| {
                    let norm = normalisation(statistics, bn.eps, params, layout.rectified(id));
                    norm.backward(from, images, src, view, grad, &mut gamma, &mut beta, Par::Rayon);
                    if let Some(grad_src) = &mut grad_src {
                        let sums = [&*gamma, &*beta];
                        norm.backward_src(images, from, images, src, view, grad, sums, grad_src, Par::Rayon);
                    }
                })?;
                if wanted[0] && deferred {
                    let (statistics, eps) = (statistics.clone(), bn.eps);
                    let (gamma, beta) = (gamma.clone(), beta.clone());
                    self.through.insert(input, Through { node: id, statistics, eps, gamma, beta });
                }
                grads.inputs[0] = grad_src;
                for ((place, wanted), grad) in grads.learnt.iter_mut().zip(&wanted[1..]).zip([gamma, beta]) {
                    *place = Some(grad).filter(|_| *wanted);
                }
            }
            Op::Relu if wanted[0] => {
                let mut grad_src = self.pool.aligned(grad.len());
                kernels::relu_backward(dst, grad, &mut grad_src, Par::Rayon);
                grads.inputs[0] = Some(grad_src);
            }
            Op::Pool2d(pool) if wanted[0] => {
                let mut grad_src = self.pool.aligned(from.memory_len(images));
                let Pool2d { kernel, stride, padding, count_padding, .. } = *pool;
                let pooling = Pooling { kernel, stride, padding };
                match pool.kind {
                    PoolKind::Max => {
                        pooling.max_backward(from, images, src, view, dst, grad, &mut grad_src, Par::Rayon);
                    }
                    PoolKind::Average => {
                        pooling.avg_backward(
                            count_padding,
                            from,
                            images,
                            view,
                            grad,
                            &mut grad_src,
                            Par::Rayon,
                        );
                    }
                }
                grads.inputs[0] = Some(grad_src);
            }
            Op::AdaptiveAvgPool { .. } if wanted[0] => {
                let mut grad_src = self.pool.aligned(from.memory_len(images));
                adaptive_avg_pool_backward(from, images, view, grad, &mut grad_src, Par::Rayon);
                grads.inputs[0] = Some(grad_src);
            }
            Op::Lrn(Lrn { region, size, alpha, beta, k }) if wanted[0] => {
                let mut grad_src = self.pool.aligned(from.memory_len(images));
                let norm = LocalNorm { local_size: *size, alpha: *alpha, beta: *beta, k: *k };
                match region {
                    LrnRegion::AcrossChannels => {
                        norm.across_backward(from, images, src, view, grad, &mut grad_src, Par::Rayon);
                    }
                    LrnRegion::WithinChannel => {
                        norm.within_backward(from, images, src, view, grad, &mut grad_src, Par::Rayon);
                    }
                }
                grads.inputs[0] = Some(grad_src);
            }
            _ => {}
        }
        Ok(grads)
    }
}
