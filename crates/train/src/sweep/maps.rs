//! Ops on maps in blocks of channels.

use super::conv::{Read, Through, normalisation};
use super::inlined::{Inlined, Norm, with_norm};
use super::{Gradient, Gradients, Made, Pass, Sweep, Value, no_map, with_learnt};
use crate::layout::{Layout, read};
use crate::net::Mode;
use crate::ops::{Saved, Statistics};
use crate::{Error, Result};
use cofilter_graph::{Lrn, LrnRegion, Node, NodeId, Op, Pool2d, PoolKind};
use cofilter_kernels::blocked::{
    BLOCK, BatchNorm, Channels, LocalNorm, Pooling, Step, adaptive_avg_pool_backward, gather_channels,
};
use cofilter_kernels::{self as kernels, Par};
use std::sync::Arc;

impl Sweep {
    /// The op of a node on blocked maps, if there is one; `inlined` is what it reads that was not stored.
    pub(super) fn map_forward(
        &mut self,
        pass: &Pass<'_>,
        inputs: &[&Value],
        inlined: Option<Inlined<'_>>,
        mode: Mode,
        keep: bool,
        saved: &mut Saved,
    ) -> Result<Made> {
        let Pass { net, layout, id, node, images } = *pass;
        let (Some(view), Some(from)) = (layout.view(id), node.inputs().first().and_then(|i| layout.view(*i)))
        else {
            return Ok(Made::Nothing);
        };
        let train = matches!(mode, Mode::Train { .. });
        let relu = layout.rectified(id);
        let numbers: Vec<&[f32]> = inputs.iter().map(|input| input.data()).collect();
        let dst = match node.op() {
            Op::Conv2d(conv) if !layout.crowded(id) => {
                let src = numbers.first().copied();
                with_norm(net, inlined, |norm| match Read::of(src, norm) {
                    Some(src) => self.conv_forward(pass, conv, src, train),
                    None => Err(no_map(node)),
                })??
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
                if train && keep && layout.inlines(id, images) {
                    *saved = Saved::Statistics(statistics);
                    return Ok(Made::Later);
                }
                let mut dst = self.pool.aligned(view.memory_len(images));
                with_learnt(net, id, |params| {
                    let norm = normalisation(&statistics, bn.eps, params, relu);
                    norm.forward(from, images, numbers[0], None, view, &mut dst, Par::Rayon);
                })?;
                *saved = if train { Saved::Statistics(statistics) } else { Saved::Nothing };
                dst
            }
            Op::Relu if !layout.done(id) => {
                let mut dst = self.pool.aligned(view.memory_len(images));
                kernels::relu(numbers[0], &mut dst, Par::Rayon);
                dst
            }
            Op::Add => {
                if numbers.len() + usize::from(inlined.is_some()) != node.inputs().len() {
                    return Err(no_map(node));
                }
                let mut dst = self.pool.aligned(view.memory_len(images));
                with_norm(net, inlined, |norm| match norm {
                    None => kernels::add(&numbers, relu, &mut dst, Par::Rayon),
                    Some(Norm { norm, src, from, .. }) => {
                        let norm = BatchNorm { relu, ..norm };
                        let add = numbers.first().copied();
                        norm.forward(from, images, src, add, view, &mut dst, Par::Rayon);
                    }
                })?;
                dst
            }
            Op::Concat | Op::PadChannels(_) => {
                let Some(sources) = sources(layout, node, &numbers) else { return Ok(Made::Nothing) };
                let before = if let Op::PadChannels(pad) = node.op() { pad.before } else { 0 };
                let mut dst = self.pool.aligned(view.memory_len(images));
                gather_channels(&sources, before, view, images, &mut dst, Par::Rayon);
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
            _ => return Ok(Made::Nothing),
        };
        let dims = std::iter::once(images).chain(node.shape().dims()).collect();
        Ok(Made::Map(Value { dims, data: Arc::new(dst) }))
    }

    /// The gradients of the inputs of an op on blocked maps, then those of its learnt tensors. `onto` is the sum of the gradients
    /// that have reached its input; where it is taken, that of the input includes it.
    #[expect(clippy::too_many_arguments, reason = "what a backward pass knows")]
    pub(super) fn map_backward(
        &mut self,
        pass: &Pass<'_>,
        saved: &Saved,
        values: &[Option<Value>],
        inlined: Option<Inlined<'_>>,
        grad: &Gradient,
        onto: &mut Option<Gradient>,
        wanted: &[bool],
    ) -> Result<Gradients> {
        let Pass { net, layout, id, node, images } = *pass;
        let input = node.inputs()[0];
        let (Some(view), Some(from)) = (layout.view(id), layout.view(input)) else {
            return Err(no_map(node));
        };
        let stored = |id: NodeId| values[id.index()].as_ref().map(Value::data);
        let (src, dst) = (stored(input), stored(id));
        if let Op::Conv2d(conv) = node.op() {
            let through = self.through.remove(&id);
            return with_norm(net, inlined, |norm| match (Read::of(src, norm), dst) {
                (Some(src), Some(dst)) => {
                    self.conv_backward(pass, conv, src, dst, grad, onto, through.as_ref(), wanted)
                }
                _ => Err(no_map(node)),
            })?;
        }
        if let Op::Concat | Op::PadChannels(_) = node.op() {
            return self.take_apart(pass, grad, wanted);
        }
        let Some(src) = src else { return Err(no_map(node)) };
        let mut grads = Gradients { inputs: vec![None; 1], learnt: vec![None; wanted.len() - 1] };
        match node.op() {
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
                    let sums = self
                        .sums
                        .remove(&id)
                        .unwrap_or_else(|| norm.gradient_sums(from, images, src, view, grad, Par::Rayon));
                    norm.gradients(from, &sums, &mut gamma, &mut beta);
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
                let Some(dst) = dst else { return Err(no_map(node)) };
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
                        let Some(dst) = dst else { return Err(no_map(node)) };
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

    /// The gradients of what was put together.
    fn take_apart(&mut self, pass: &Pass<'_>, grad: &[f32], wanted: &[bool]) -> Result<Gradients> {
        let Pass { layout, id, node, images, .. } = *pass;
        let Some(view) = layout.view(id) else { return Err(no_map(node)) };
        let mut first = if let Op::PadChannels(pad) = node.op() { pad.before } else { 0 };
        let mut inputs = Vec::new();
        for (input, wanted) in node.inputs().iter().zip(wanted) {
            let Some(to) = layout.view(*input) else { return Err(no_map(node)) };
            let range = first..first + to.channels();
            first = range.end;
            inputs.push(wanted.then(|| {
                let mut grad_src = self.pool.aligned(to.memory_len(images));
                let of = Channels { view, src: grad, range };
                gather_channels(&[of], 0, to, images, &mut grad_src, Par::Rayon);
                grad_src
            }));
        }
        Ok(Gradients { inputs, learnt: Vec::new() })
    }
}

/// What is put together, if all of it lies in blocks.
fn sources<'a>(layout: &'a Layout, node: &Node, numbers: &[&'a [f32]]) -> Option<Vec<Channels<'a>>> {
    let blocked = |(id, src): (&NodeId, &&'a [f32])| {
        let view = layout.view(*id).filter(|view| view.pixel_stride == BLOCK)?;
        Some(Channels { view, src, range: 0..view.channels() })
    };
    node.inputs().iter().zip(numbers).map(blocked).collect()
}
