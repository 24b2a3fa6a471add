//! Normalisations that are computed where they are read.

use super::conv::normalisation;
use super::{Done, Value, with_learnt};
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
    /// The one that this node reads, if it reads one.
    pub(super) fn of(
        (net, layout): (&Net, &'a Layout),
        reader: NodeId,
        values: &'a [Option<Value>],
        done: &'a [Option<Done>],
    ) -> Option<Self> {
        let id = layout.inlined(reader)?;
        let Some(Done::Later(Saved::Statistics(statistics))) = &done[id.index()] else { return None };
        let node = net.graph().node(id);
        let Op::BatchNorm(bn) = node.op() else { return None };
        let input = node.inputs()[0];
        let (src, relu) = (values[input.index()].as_ref()?.data(), layout.rectified(id));
        let (from, to) = (layout.view(input)?, layout.view(id)?);
        Some(Self { node: id, statistics, eps: bn.eps, relu, src, from, to })
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
