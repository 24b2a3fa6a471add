//! Convolutions on blocked maps, and the normalisations that follow them.
//!
//! Where a layer's weights are few beside its maps, it is computed a few images at a time: what one kernel writes, the next one
//! reads from the cache. Pieces depend on the extents alone.

use super::{Gradients, Numbers, Pass, Sweep, no_map, with_learnt};
use crate::Result;
use crate::layout::{Pieces, read, window};
use crate::ops::{Arg, Statistics};
use cofilter_graph::{Conv2d, NodeId};
use cofilter_kernels::blocked::{
    BatchNorm, InputGradient, Step, View, WeightGradient, Weights, WinogradTile,
};
use cofilter_kernels::{Par, relu_backward_in_place};
use rayon::prelude::*;
use std::cell::RefCell;

/// A normalisation that a gradient has still to pass on its way to the convolution before it.
#[derive(Debug)]
pub(super) struct Through {
    pub(super) node: NodeId,
    pub(super) statistics: Statistics,
    pub(super) eps: f32,
    /// Gradients of its parameters.
    pub(super) gamma: Vec<f32>,
    pub(super) beta: Vec<f32>,
}

/// Images for which the way of computing a layer is chosen outside of training, however many there are.
const EVALUATED: usize = 64;

pub(super) fn normalisation<'a>(
    s: &'a Statistics,
    eps: f32,
    params: &[Arg<'a>],
    relu: bool,
) -> BatchNorm<'a> {
    BatchNorm { mean: &s.mean, var: &s.var, eps, gamma: params[0].data, beta: params[1].data, relu }
}

impl Sweep {
    pub(super) fn conv_forward(
        &mut self,
        pass: &Pass<'_>,
        conv: &Conv2d,
        src: &[f32],
        train: bool,
    ) -> Result<Numbers> {
        let Pass { net, layout, id, node, images } = *pass;
        let (Some(view), Some(from)) = (layout.view(id), layout.view(node.inputs()[0])) else {
            return Err(no_map(node));
        };
        let mut dst = self.pool.aligned(view.memory_len(images));
        let relu = layout.rectified(id);
        let norm = layout.normalised(id).filter(|_| train);
        let pieces = norm.and_then(|norm| Some((norm, layout.pieces(id, images)?)));
        let window = window(conv);
        // What a network gives for an image must not depend on the others, but where it is trained on them together.
        let at_once = pieces.map_or(images, |(_, pieces)| pieces.at_once);
        let [all, at_once] = if train { [images, at_once] } else { [EVALUATED; 2] };
        let tile = WinogradTile::fastest(&window, from, view, all, at_once, self.tolerance);
        let moments = with_learnt(net, id, |params| {
            let weights = Weights { weight: params[0].data, bias: params.get(1).map(|b| b.data), relu };
            let (src_view, memory) = (read(from), &mut self.packed);
            let mut make = |images: usize, threads: usize| match tile {
                None => Step::conv_in(window, weights, &src_view, None, view, images, threads, memory),
                Some(tile) => {
                    let par = Par::Rayon;
                    Step::winograd(tile, window, weights, &src_view, None, view, images, threads, par, memory)
                }
            };
            let Some((norm, Pieces { each, at_once })) = pieces else {
                let threads = rayon::current_num_threads();
                let step = make(images, threads);
                let mut scratch = self.pool.scratch(step.scratch_len(), threads);
                step.run_in(images, src, &mut dst, &mut scratch, Par::Rayon);
                self.pool.give(scratch);
                step.into_memory(&mut self.packed);
                return None;
            };
            let step = make(at_once, 1);
            let run = |(piece, dst): (usize, &mut [f32])| {
                let mut moments = Vec::new();
                for (at, dst) in dst.chunks_mut(at_once * view.image_stride).enumerate() {
                    let count = dst.len() / view.image_stride;
                    let first = piece * each + at * at_once;
                    with_scratch(step.scratch_len(), |scratch| {
                        step.run_in(count, images_of(src, from, first, count), dst, scratch, Par::Serial);
                    });
                    moments.extend(BatchNorm::moments(view, count, dst, Par::Serial));
                }
                moments
            };
            let moments: Vec<_> = dst.par_chunks_mut(each * view.image_stride).enumerate().map(run).collect();
            step.into_memory(&mut self.packed);
            Some((norm, moments.concat()))
        })?;
        if let Some((norm, moments)) = moments {
            self.moments.insert(norm, moments);
        }
        Ok(dst)
    }

    /// Gradients of a convolution, given that of its result, or of the normalisation after it.
    #[expect(clippy::too_many_arguments, reason = "what a backward pass knows")]
    pub(super) fn conv_backward(
        &mut self,
        pass: &Pass<'_>,
        conv: &Conv2d,
        src: &[f32],
        dst: &[f32],
        grad: &mut [f32],
        through: Option<&Through>,
        wanted: &[bool],
    ) -> Result<Gradients> {
        let Pass { net, layout, id, node, images } = *pass;
        let (Some(view), Some(from)) = (layout.view(id), layout.view(node.inputs()[0])) else {
            return Err(no_map(node));
        };
        let wants = |slot: usize| wanted.get(slot).copied().unwrap_or(false);
        let learns = wants(1) || wants(2);
        let window = window(conv);
        let pieces = layout.pieces(id, images);
        // What is computed at once, and where.
        let (at_once, par) = pieces.map_or((images, Par::Rayon), |pieces| (pieces.at_once, Par::Serial));
        let fits = WinogradTile::Two.fits_gradient(&window, from, view);
        let tile =
            WinogradTile::fastest(&window, view, from, images, at_once, self.tolerance).filter(|_| fits);
        let filters_tile = WinogradTile::fastest_gradient(
            &window,
            from,
            view,
            images,
            pieces.map(|p| p.each),
            at_once,
            self.tolerance,
        );
        let weights = learns.then(|| WeightGradient::new(window, from, view, filters_tile, at_once));
        let mut grad_src = wants(0).then(|| self.pool.aligned(from.memory_len(images)));
        let mut sums = weights.as_ref().map(|weights| match pieces {
            Some(pieces) => self.pool.take(weights.sums_len() * pieces.count(images)),
            None => self.pool.take(weights.scratch_len()),
        });
        let mut room = match (pieces, through) {
            (Some(pieces), Some(_)) => {
                Some(self.pool.aligned(pieces.count(images) * view.memory_len(at_once)))
            }
            _ => None,
        };
        let mut learnt: Vec<Option<Vec<f32>>> = vec![None; wanted.len() - 1];
        let mut run = |params: &[Arg<'_>], norm: Option<(BatchNorm<'_>, &View, &Through)>| {
            let input = wants(0).then(|| {
                InputGradient::new(window, params[0].data, view, from, tile, at_once, par, &mut self.packed)
            });
            if let Some(pieces) = pieces {
                let all = Whole {
                    images,
                    view,
                    from,
                    src,
                    dst,
                    relu: layout.rectified(id),
                    norm: norm.as_ref(),
                    input: input.as_ref(),
                    weights: weights.as_ref(),
                    at_once,
                };
                let stride = norm.as_ref().map_or(view, |(_, to, _)| to).image_stride;
                let mut sums = sums.as_deref_mut().unwrap_or_default().chunks_mut(all.sums_len().max(1));
                let mut room = room.as_deref_mut().unwrap_or_default().chunks_mut(view.memory_len(at_once));
                let mut grad_src =
                    grad_src.as_deref_mut().unwrap_or_default().chunks_mut(from.memory_len(pieces.each));
                let work: Vec<Piece<'_>> = (grad.chunks_mut(pieces.each * stride).enumerate())
                    .map(|(piece, grad)| Piece {
                        first: piece * pieces.each,
                        images: grad.len() / stride,
                        grad,
                        sums: sums.next().unwrap_or_default(),
                        room: room.next().unwrap_or_default(),
                        grad_src: grad_src.next().unwrap_or_default(),
                    })
                    .collect();
                work.into_par_iter().with_max_len(1).for_each(|piece| all.run(piece));
            } else {
                if layout.rectified(id) {
                    relu_backward_in_place(dst, grad, Par::Rayon);
                }
                if let (Some(input), Some(grad_src)) = (&input, &mut grad_src) {
                    let mut scratch = self.pool.scratch(input.scratch_len(), rayon::current_num_threads());
                    input.run(images, grad, grad_src, &mut scratch, Par::Rayon);
                    self.pool.give(scratch);
                }
            }
            if let Some(input) = input {
                input.into_memory(&mut self.packed);
            }
            let (Some(weights), Some(sums)) = (&weights, &mut sums) else { return };
            let mut weight = self.pool.take(params[0].data.len());
            let mut bias = wants(2).then(|| self.pool.take(params[0].dims[0]));
            if pieces.is_some() {
                weights.finish(sums, &mut weight, bias.as_deref_mut(), Par::Rayon);
            } else {
                weights.run(images, src, grad, &mut weight, bias.as_deref_mut(), sums, Par::Rayon);
            }
            match wants(1) {
                true => learnt[0] = Some(weight),
                false => self.pool.give(weight),
            }
            if let (Some(place), Some(bias)) = (learnt.get_mut(1), bias) {
                *place = Some(bias);
            }
        };
        match through.and_then(|through| Some((through, layout.view(through.node)?))) {
            None => with_learnt(net, id, |params| run(params, None))?,
            Some((through, to)) => with_learnt(net, through.node, |norm_params| {
                let relu = layout.rectified(through.node);
                let norm = normalisation(&through.statistics, through.eps, norm_params, relu);
                with_learnt(net, id, |params| run(params, Some((norm, to, through))))
            })??,
        }
        sums.into_iter().for_each(|sums| self.pool.give(sums));
        room.into_iter().for_each(|room| self.pool.back(room));
        Ok(Gradients { inputs: vec![grad_src], learnt })
    }
}

thread_local! {
    /// Scratch memory of a thread that computes a piece alone.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f`, which must not wait for other threads, with scratch memory for one thread.
fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let len = len + Step::SCRATCH_MORE;
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len])
    })
}

/// The numbers of some images.
fn images_of<'a>(numbers: &'a [f32], view: &View, first: usize, count: usize) -> &'a [f32] {
    &numbers[first * view.image_stride..][..count * view.image_stride]
}

/// What all pieces of a backward pass share.
struct Whole<'a> {
    images: usize,
    view: &'a View,
    from: &'a View,
    src: &'a [f32],
    dst: &'a [f32],
    relu: bool,
    norm: Option<&'a (BatchNorm<'a>, &'a View, &'a Through)>,
    input: Option<&'a InputGradient>,
    weights: Option<&'a WeightGradient>,
    at_once: usize,
}

/// Some images, and where what is computed for them goes.
struct Piece<'a> {
    first: usize,
    images: usize,
    grad: &'a mut [f32],
    sums: &'a mut [f32],
    /// For the gradient of the convolution's result, where that is not given.
    room: &'a mut [f32],
    grad_src: &'a mut [f32],
}

impl Whole<'_> {
    fn sums_len(&self) -> usize {
        self.weights.map_or(0, WeightGradient::sums_len)
    }

    fn run(&self, piece: Piece<'_>) {
        let Self { images, view, from, src, dst, relu, norm, input, weights, at_once } = *self;
        let Piece { first, images: count, grad, sums, room, grad_src } = piece;
        sums.fill(0.0);
        let stride = grad.len() / count;
        for (chunk, grad) in grad.chunks_mut(at_once * stride).enumerate() {
            let (at, count) = (chunk * at_once, grad.len() / stride);
            let dst = images_of(dst, view, first + at, count);
            let grad = match norm {
                Some((norm, to, Through { gamma, beta, .. })) => {
                    let room = &mut room[..count * view.image_stride];
                    norm.backward_src(images, view, count, dst, to, grad, [gamma, beta], room, Par::Serial);
                    room
                }
                None => {
                    if relu {
                        relu_backward_in_place(dst, grad, Par::Serial);
                    }
                    grad
                }
            };
            if let Some(input) = input {
                let at = at * from.image_stride;
                let grad_src = &mut grad_src[at..at + count * from.image_stride];
                with_scratch(input.scratch_len(), |scratch| {
                    input.run(count, grad, grad_src, scratch, Par::Serial);
                });
            }
            if let Some(weights) = weights {
                let src = images_of(src, from, first + at, count);
                with_scratch(weights.add_scratch_len(), |scratch| {
                    weights.add(count, src, grad, sums, scratch);
                });
            }
        }
    }
}
