//! Convolutions on blocked maps, and the normalisations that follow them.
//!
//! Where a layer's weights are few beside its maps, it is computed a few images at a time: what one kernel writes, the next one
//! reads from the cache. Pieces depend on the extents alone.

use super::inlined::Norm;
use super::{Gradient, Gradients, LINE, Numbers, Pass, Sweep, no_map, with_learnt};
use crate::Result;
use crate::layout::{Pieces, read, window};
use crate::ops::{Arg, Statistics};
use cofilter_graph::{Conv2d, NodeId};
use cofilter_kernels::blocked::{
    BatchNorm, GradientSums, InputGradient, Step, View, WeightGradient, Weights, WinogradTile,
};
use cofilter_kernels::{Par, accumulate, relu_backward};
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

/// What a convolution reads.
#[derive(Clone, Copy)]
pub(super) enum Read<'a> {
    Stored(&'a [f32]),
    /// What a normalisation gives.
    Made(Norm<'a>),
}

impl<'a> Read<'a> {
    pub(super) fn of(stored: Option<&'a [f32]>, norm: Option<Norm<'a>>) -> Option<Self> {
        norm.map(Self::Made).or(stored.map(Self::Stored))
    }

    /// Numbers of the room that [`images`](Self::images) needs for so many.
    fn room(&self, images: usize) -> usize {
        match self {
            Self::Stored(_) => 0,
            Self::Made(Norm { to, .. }) => to.memory_len(images),
        }
    }

    /// Some images of a map.
    fn images<'b>(&self, view: &View, first: usize, count: usize, room: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::Stored(numbers) => images_of(numbers, view, first, count),
            Self::Made(Norm { norm, src, from, to, .. }) => {
                let room = &mut room[..to.memory_len(count)];
                let src = images_of(src, from, first, count);
                norm.forward(from, count, src, None, to, room, Par::Serial);
                room
            }
        }
    }
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
        src: Read<'_>,
        train: bool,
    ) -> Result<Numbers> {
        let Pass { net, layout, id, node, images } = *pass;
        let (Some(view), Some(from)) = (layout.view(id), layout.view(node.inputs()[0])) else {
            return Err(no_map(node));
        };
        let mut dst = self.pool.aligned(view.memory_len(images));
        let relu = layout.rectified(id);
        let norm = layout.normalised(id).filter(|_| train);
        let pieces = layout.pieces(id, images).filter(|_| norm.is_some() || matches!(src, Read::Made(_)));
        let window = window(conv);
        // What a network gives for an image must not depend on the others, but where it is trained on them together.
        let at_once = pieces.map_or(images, |pieces| pieces.at_once);
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
            let Some(Pieces { each, at_once }) = pieces else {
                let Read::Stored(src) = src else { return None };
                let threads = rayon::current_num_threads();
                let step = make(images, threads);
                let mut scratch = self.pool.scratch(step.scratch_len(), threads);
                step.run_in(images, src, &mut dst, &mut scratch, Par::Rayon);
                self.pool.give(scratch);
                step.into_memory(&mut self.packed);
                return Some(Vec::new());
            };
            let step = make(at_once, 1);
            let run = |(piece, dst): (usize, &mut [f32])| {
                let mut moments = Vec::new();
                for (at, dst) in dst.chunks_mut(at_once * view.image_stride).enumerate() {
                    let count = dst.len() / view.image_stride;
                    let first = piece * each + at * at_once;
                    let lens = [step.scratch_len() + Step::SCRATCH_MORE, src.room(count)];
                    with_scratch(lens, |[scratch, room]| {
                        let src = src.images(from, first, count, room);
                        step.run_in(count, src, dst, scratch, Par::Serial);
                    });
                    if norm.is_some() {
                        moments.extend(BatchNorm::moments(view, count, dst, Par::Serial));
                    }
                }
                moments
            };
            let moments: Vec<_> = dst.par_chunks_mut(each * view.image_stride).enumerate().map(run).collect();
            step.into_memory(&mut self.packed);
            Some(moments.concat())
        })?;
        let Some(moments) = moments else { return Err(no_map(node)) };
        if let (Some(norm), Some(_)) = (norm, pieces) {
            self.moments.insert(norm, moments);
        }
        Ok(dst)
    }

    /// Gradients of a convolution, given that of its result, or of the normalisation after it; `onto` as in
    /// [`map_backward`](Self::map_backward).
    #[expect(clippy::too_many_arguments, reason = "what a backward pass knows")]
    pub(super) fn conv_backward(
        &mut self,
        pass: &Pass<'_>,
        conv: &Conv2d,
        src: Read<'_>,
        dst: &[f32],
        grad: &Gradient,
        onto: &mut Option<Gradient>,
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
        let relu = layout.rectified(id);
        // Added to what other nodes gave while it is at hand.
        let given = onto.take_if(|sum| pieces.is_some() && wants(0) && sum.is_alone());
        let adds = given.is_some();
        let mut grad_src = match given {
            Some(sum) => Some(sum.own(&mut self.pool)),
            None => wants(0).then(|| self.pool.aligned(from.memory_len(images))),
        };
        let mut sums = weights.as_ref().map(|weights| match pieces {
            Some(pieces) => self.pool.take(weights.sums_len() * pieces.count(images)),
            None => self.pool.take(weights.scratch_len()),
        });
        let rooms = Rooms {
            grad: if relu || through.is_some() { view.memory_len(at_once) } else { 0 },
            src: if learns { src.room(at_once) } else { 0 },
            grad_src: if adds { from.memory_len(at_once) } else { 0 },
        };
        let mut norm_sums = Vec::new();
        let own = (pieces.is_none() && relu).then(|| {
            let mut own = self.pool.aligned(grad.len());
            relu_backward(dst, grad, &mut own, Par::Rayon);
            own
        });
        let masked: &[f32] = own.as_deref().unwrap_or(grad);
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
                    grad,
                    relu,
                    norm: norm.as_ref(),
                    input: input.as_ref(),
                    weights: weights.as_ref(),
                    at_once,
                    adds,
                    rooms,
                };
                let mut sums = sums.as_deref_mut().unwrap_or_default().chunks_mut(all.sums_len().max(1));
                let mut grad_src =
                    grad_src.as_deref_mut().unwrap_or_default().chunks_mut(from.memory_len(pieces.each));
                let work: Vec<Piece<'_>> = (0..images)
                    .step_by(pieces.each)
                    .map(|first| Piece {
                        first,
                        images: pieces.each.min(images - first),
                        sums: sums.next().unwrap_or_default(),
                        grad_src: grad_src.next().unwrap_or_default(),
                    })
                    .collect();
                let work = work.into_par_iter().with_max_len(1);
                norm_sums = work.map(|piece| all.run(piece)).collect::<Vec<_>>().concat();
            } else if let (Some(input), Some(grad_src)) = (&input, &mut grad_src) {
                let mut scratch = self.pool.scratch(input.scratch_len(), rayon::current_num_threads());
                input.run(images, masked, grad_src, &mut scratch, Par::Rayon);
                self.pool.give(scratch);
            }
            if let Some(input) = input {
                input.into_memory(&mut self.packed);
            }
            let (Some(weights), Some(sums)) = (&weights, &mut sums) else { return };
            let mut weight = self.pool.take(params[0].data.len());
            let mut bias = wants(2).then(|| self.pool.take(params[0].dims[0]));
            match src {
                Read::Stored(src) if pieces.is_none() => {
                    weights.run(images, src, masked, &mut weight, bias.as_deref_mut(), sums, Par::Rayon);
                }
                _ => weights.finish(sums, &mut weight, bias.as_deref_mut(), Par::Rayon),
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
        own.into_iter().for_each(|own| self.pool.back(own));
        if let (Read::Made(norm), Some(_)) = (src, &grad_src) {
            self.sums.insert(norm.node, norm_sums);
        }
        Ok(Gradients { inputs: vec![grad_src], learnt })
    }
}

thread_local! {
    /// Scratch memory of a thread that computes a piece alone.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f`, which must not wait for other threads, with some rooms of scratch memory.
fn with_scratch<T, const N: usize>(lens: [usize; N], f: impl FnOnce([&mut [f32]; N]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        // Each begins at a cache line.
        let lens = lens.map(|len| len.next_multiple_of(LINE));
        let len = LINE + lens.iter().sum::<usize>();
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let mut rest = &mut scratch[skip..];
        f(lens.map(|len| {
            let (room, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            room
        }))
    })
}

/// The numbers of some images.
fn images_of<'a>(numbers: &'a [f32], view: &View, first: usize, count: usize) -> &'a [f32] {
    &numbers[first * view.image_stride..][..count * view.image_stride]
}

/// Numbers of a piece's rooms.
#[derive(Clone, Copy)]
struct Rooms {
    /// For the gradient of the convolution's result, where that is not given as it is.
    grad: usize,
    /// For the input, where that is not stored.
    src: usize,
    /// For the gradient of the input, where that is added to others.
    grad_src: usize,
}

/// What all pieces of a backward pass share.
struct Whole<'a> {
    images: usize,
    view: &'a View,
    from: &'a View,
    src: Read<'a>,
    dst: &'a [f32],
    grad: &'a [f32],
    relu: bool,
    /// The normalisation after it, how its result lies, and the gradients of its parameters.
    norm: Option<&'a (BatchNorm<'a>, &'a View, &'a Through)>,
    input: Option<&'a InputGradient>,
    weights: Option<&'a WeightGradient>,
    at_once: usize,
    /// Whether the gradient of the input is added to what is there.
    adds: bool,
    rooms: Rooms,
}

/// Some images, and where what is computed for them goes.
struct Piece<'a> {
    first: usize,
    images: usize,
    sums: &'a mut [f32],
    grad_src: &'a mut [f32],
}

impl Whole<'_> {
    fn sums_len(&self) -> usize {
        self.weights.map_or(0, WeightGradient::sums_len)
    }

    /// Scratch memory of a kernel.
    fn scratch_len(&self) -> usize {
        let input = self.input.map_or(0, InputGradient::scratch_len);
        Step::SCRATCH_MORE + self.weights.map_or(0, WeightGradient::add_scratch_len).max(input)
    }

    /// The sums of the gradients of the normalisation that is read, if one is.
    fn run(&self, piece: Piece<'_>) -> Vec<GradientSums> {
        let Self { at_once, from, rooms: Rooms { grad, src, grad_src }, .. } = *self;
        piece.sums.fill(0.0);
        with_scratch([self.scratch_len(), grad, src, grad_src], |mut rooms| {
            let mut sums = Vec::new();
            for at in (0..piece.images).step_by(at_once) {
                let count = at_once.min(piece.images - at);
                // None if that of the input is not asked for.
                let range = at * from.image_stride..(at + count) * from.image_stride;
                let grad_src = piece.grad_src.get_mut(range).unwrap_or_default();
                sums.extend(self.images(piece.first + at, count, piece.sums, grad_src, &mut rooms));
            }
            sums
        })
    }

    /// The same of some images that go from kernel to kernel at once.
    fn images(
        &self,
        first: usize,
        count: usize,
        sums: &mut [f32],
        grad_src: &mut [f32],
        [scratch, grad_room, src_room, grad_src_room]: &mut [&mut [f32]; 4],
    ) -> Vec<GradientSums> {
        let Self { images, view, from, src, dst, grad, relu, norm, input, weights, adds, .. } = *self;
        let dst = images_of(dst, view, first, count);
        let grad = match norm {
            Some((norm, to, Through { gamma, beta, .. })) => {
                let room = &mut grad_room[..count * view.image_stride];
                let (grad, sums) = (images_of(grad, to, first, count), [&gamma[..], beta]);
                norm.backward_src(images, view, count, dst, to, grad, sums, room, Par::Serial);
                room
            }
            None if relu => {
                let room = &mut grad_room[..count * view.image_stride];
                relu_backward(dst, images_of(grad, view, first, count), room, Par::Serial);
                room
            }
            None => images_of(grad, view, first, count),
        };
        if let Some(weights) = weights {
            weights.add(count, src.images(from, first, count, src_room), grad, sums, scratch);
        }
        let Some(input) = input else { return Vec::new() };
        if adds {
            let room = &mut grad_src_room[..grad_src.len()];
            input.run(count, grad, room, scratch, Par::Serial);
            accumulate(room, grad_src, Par::Serial);
        } else {
            input.run(count, grad, grad_src, scratch, Par::Serial);
        }
        match src {
            Read::Stored(_) => Vec::new(),
            Read::Made(Norm { norm, src, from, to, .. }) => {
                norm.gradient_sums(from, count, images_of(src, from, first, count), to, grad_src, Par::Serial)
            }
        }
    }
}
