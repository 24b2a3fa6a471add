//! Normalisations that are computed where they are read.

use super::conv::normalisation;
use super::{Done, Pass, Value, no_map, with_learnt};
use crate::Result;
use crate::layout::Layout;
use crate::net::Net;
use crate::ops::{Saved, Statistics};
use cofilter_graph::{NodeId, Op};
use cofilter_kernels::blocked::{BatchNorm, View};

/// A normalisation whose result was not stored.
#[derive(Clone, Copy)]
pub(super) struct Inlined<'a> {
    node: NodeId,
    statistics: &'a Statistics,
    eps: f32,
    relu: bool,
    /// Its input.
    src: &'a [f32],
    from: &'a View,
    /// How its result would lie in memory.
    to: &'a View,
}

/// The same with its parameters at hand.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) node: NodeId,
    pub(super) norm: BatchNorm<'a>,
    pub(super) src: &'a [f32],
    pub(super) from: &'a View,
    pub(super) to: &'a View,
}

impl<'a> Inlined<'a> {
    /// The one that a node reads, if it reads one.
    pub(super) fn of(
        pass: &Pass<'a>,
        values: &'a [Option<Value>],
        done: &'a [Option<Done>],
    ) -> Result<Option<Self>> {
        let layout: &'a Layout = pass.layout;
        let unstored = |id: &NodeId| values[id.index()].is_none();
        let Some(id) = layout.inlined(pass.id).filter(unstored) else { return Ok(None) };
        let node = pass.net.graph().node(id);
        let input = node.inputs()[0];
        let (
            Op::BatchNorm(bn),
            Some(Done::Mapped(Saved::Statistics(statistics))),
            Some(src),
            Some(from),
            Some(to),
        ) = (node.op(), &done[id.index()], &values[input.index()], layout.view(input), layout.view(id))
        else {
            return Err(no_map(node));
        };
        let relu = layout.rectified(id);
        Ok(Some(Self { node: id, statistics, eps: bn.eps, relu, src: src.data(), from, to }))
    }
}

/// Runs `f` with the parameters of a normalisation, if there is one.
pub(super) fn with_norm<T>(
    net: &Net,
    inlined: Option<Inlined<'_>>,
    f: impl FnOnce(Option<Norm<'_>>) -> T,
) -> Result<T> {
    let Some(Inlined { node, statistics, eps, relu, src, from, to }) = inlined else { return Ok(f(None)) };
    with_learnt(net, node, |params| {
        let norm = normalisation(statistics, eps, params, relu);
        f(Some(Norm { node, norm, src, from, to }))
    })
}
