//! Every op as a layer over slices, and the two ways to run one: on candle's tape ([`tape`]) and in the sweep.
//! [`compose`] holds the same ops as compositions of candle's own, which tests compare them with.

mod adaptive;
mod batch_norm;
#[cfg(test)]
pub(crate) mod compose;
mod conv;
mod dropout;
mod linear;
mod lrn;
mod merge;
mod pool;
mod rectify;
mod softmax;
pub(crate) mod tape;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use crate::{Mode, Result};
use cofilter_graph::{LrnRegion, Node, Op};

pub(crate) use batch_norm::Statistics;
pub(crate) use dropout::RandomZeros;

/// One operand: numbers and extents, the batch first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arg<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) dims: &'a [usize],
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(crate) enum Saved {
    #[default]
    Nothing,
    /// Index within the plane of each maximum.
    Argmax(Vec<u32>),
    /// Mean and biased variance of the batch by channel.
    Statistics(Statistics),
    /// Factor of each element.
    Factors(Vec<f32>),
}

/// A node's computation on `f32` slices. Operands are the inputs of the node, then its learnt tensors.
///
/// Shapes were checked when the model was made, so nothing here can fail.
pub(crate) trait Layer: Send + Sync {
    fn name(&self) -> &'static str;

    /// Extents of the result, batch first.
    fn dst_dims(&self, args: &[&[usize]]) -> Vec<usize>;

    /// Overwrites `dst`, and `saved` with what the backward pass needs, if one follows (`keep`). `saved` holds what an
    /// earlier pass left, whose buffers may be used again.
    fn forward(&self, args: &[Arg<'_>], dst: &mut [f32], saved: &mut Saved, keep: bool);

    /// Overwrites each gradient that is asked for, given the gradient of the result.
    fn backward(
        &self,
        args: &[Arg<'_>],
        dst: &[f32],
        saved: &Saved,
        grad_dst: &[f32],
        grads: &mut [Option<&mut [f32]>],
    );
}

/// The layer of a node; `None` for the input and where the value passes unchanged (flatten, idle dropout).
pub(crate) fn layer(node: &Node, mode: Mode, running: Option<Statistics>) -> Result<Option<Box<dyn Layer>>> {
    Ok(Some(match node.op() {
        Op::Input { .. } | Op::Flatten => return Ok(None),
        Op::Conv2d(conv) => Box::new(conv::Convolution(conv.clone())),
        Op::Linear(_) => Box::new(linear::FullyConnected),
        Op::BatchNorm(bn) => Box::new(batch_norm::Normalisation { eps: bn.eps, running }),
        Op::Relu => Box::new(rectify::Rectification),
        Op::Pool2d(p) => Box::new(pool::Pooling { pool: p.clone(), out_size: node.shape().spatial() }),
        Op::AdaptiveAvgPool { output } => Box::new(adaptive::AdaptiveAverage { output: *output }),
        Op::Lrn(l) => match l.region {
            LrnRegion::AcrossChannels => Box::new(lrn::AcrossChannels(l.clone())),
            LrnRegion::WithinChannel => Box::new(lrn::WithinChannel(l.clone())),
        },
        Op::Dropout { p } => match mode {
            Mode::Train { seed, iteration } if *p > 0.0 => {
                Box::new(dropout::RandomZeros { p: *p, seed, iteration, node: node.name().to_owned() })
            }
            _ => return Ok(None),
        },
        Op::Add => Box::new(merge::Sum),
        Op::Concat => Box::new(merge::Concatenation),
        Op::Softmax => Box::new(softmax::Probabilities),
        Op::PadChannels(pad) => Box::new(merge::ZeroChannels(pad.clone())),
    }))
}

/// Batch and channels, and elements of a plane, of `[N, C, H, W]` or `[N, C]`.
fn planes(dims: &[usize]) -> (usize, usize, usize) {
    (dims[0], dims[1], dims[2..].iter().product())
}
