use crate::Step;
use cofilter_graph::{Array, Conv2d, LrnRegion, Op, Pool2d, PoolKind, Shape};
use cofilter_kernels::{
    ConvShape, Epilogue, LrnShape, PackedConv, PackedLinear, Par, PlaneShape, PoolShape, adaptive_avg_pool,
    add, avg_pool, batch_norm, lrn_across, lrn_within, max_pool, relu, softmax,
};
use rayon::prelude::*;

/// An operation with everything that does not depend on the images.
pub(super) enum Kernel {
    Conv {
        conv: Box<PackedConv>,
        shape: ConvShape,
        relu: bool,
    },
    Linear {
        linear: Box<PackedLinear>,
        relu: bool,
    },
    BatchNorm {
        shape: PlaneShape,
        eps: f32,
        tensors: [Array; 4],
        relu: bool,
    },
    Relu,
    Pool {
        kind: PoolKind,
        shape: PoolShape,
        count_padding: bool,
    },
    AdaptiveAvgPool {
        channels: usize,
        in_size: [usize; 2],
        out_size: [usize; 2],
    },
    Lrn {
        region: LrnRegion,
        shape: LrnShape,
    },
    Add {
        relu: bool,
    },
    Concat,
    Softmax {
        cols: usize,
    },
    /// Elements of zeros before and after each image.
    PadChannels {
        before: usize,
        after: usize,
    },
}

impl Kernel {
    pub(super) fn new(step: &Step) -> Self {
        let from = step.operands[0].shape;
        let to = step.result.shape;
        let [channels, plane] = [from.channels(), from.spatial().iter().product()];
        let relu = step.relu;
        match &step.op {
            Op::Conv2d(conv) => {
                let shape = conv_shape(conv, from);
                let (weight, bias) = weight_and_bias(&step.tensors);
                Self::Conv { conv: Box::new(PackedConv::new(&shape, weight, bias)), shape, relu }
            }
            Op::Linear(op) => {
                let (weight, bias) = weight_and_bias(&step.tensors);
                let linear = PackedLinear::new(op.out_features, from.elements(), weight, bias);
                Self::Linear { linear: Box::new(linear), relu }
            }
            Op::BatchNorm(bn) => Self::BatchNorm {
                shape: PlaneShape { batch: 1, channels, plane },
                eps: bn.eps,
                tensors: std::array::from_fn(|slot| step.tensors[slot].clone()),
                relu,
            },
            Op::Relu => Self::Relu,
            Op::Pool2d(pool) => Self::Pool {
                kind: pool.kind,
                shape: pool_shape(pool, from, to),
                count_padding: pool.count_padding,
            },
            Op::AdaptiveAvgPool { output } => {
                Self::AdaptiveAvgPool { channels, in_size: from.spatial(), out_size: *output }
            }
            Op::Lrn(op) => Self::Lrn {
                region: op.region,
                shape: LrnShape {
                    batch: 1,
                    channels,
                    size: from.spatial(),
                    local_size: op.size,
                    alpha: op.alpha,
                    beta: op.beta,
                    k: op.k,
                },
            },
            Op::Add => Self::Add { relu },
            Op::Concat => Self::Concat,
            Op::Softmax => Self::Softmax { cols: from.elements() },
            Op::PadChannels(pad) => {
                Self::PadChannels { before: pad.before * plane, after: pad.after * plane }
            }
            Op::Input { .. } | Op::Flatten | Op::Dropout { .. } => {
                unreachable!(
                    "an input is a value, flattening a view, and dropout was removed: none of them is a step"
                )
            }
        }
    }

    /// Computes `n` images. `srcs` are the operands, then what is added to the result of a convolution.
    pub(super) fn run(&self, n: usize, srcs: &[&[f32]], dst: &mut [f32], scratch: &mut [f32], par: Par) {
        let src = srcs[0];
        match self {
            Self::Conv { conv, relu, .. } => {
                let epilogue = Epilogue { add: srcs.get(1).copied(), relu: *relu };
                conv.run(n, src, epilogue, dst, scratch, par);
            }
            Self::Linear { linear, relu } => linear.run(n, src, *relu, dst, scratch, par),
            Self::BatchNorm { shape, eps, tensors, relu } => {
                let [gamma, beta, mean, var] = tensors.each_ref().map(Array::data);
                let shape = PlaneShape { batch: n, ..*shape };
                batch_norm(&shape, src, mean, var, *eps, gamma, beta, *relu, dst, par);
            }
            Self::Relu => relu(src, dst, par),
            Self::Pool { kind, shape, count_padding } => {
                let shape = PoolShape { planes: n * shape.planes, ..*shape };
                match kind {
                    PoolKind::Max => max_pool(&shape, src, dst, None, par),
                    PoolKind::Average => avg_pool(&shape, *count_padding, src, dst, par),
                }
            }
            Self::AdaptiveAvgPool { channels, in_size, out_size } => {
                adaptive_avg_pool(n * channels, *in_size, *out_size, src, dst, par);
            }
            Self::Lrn { region, shape } => {
                let shape = LrnShape { batch: n, ..*shape };
                match region {
                    LrnRegion::AcrossChannels => lrn_across(&shape, src, dst, par),
                    LrnRegion::WithinChannel => lrn_within(&shape, src, dst, par),
                }
            }
            Self::Add { relu } => add(srcs, *relu, dst, par),
            Self::Softmax { cols } => softmax(n, *cols, src, dst),
            Self::PadChannels { before, after } => {
                let len = src.len() / n;
                for (src, dst) in src.chunks_exact(len).zip(dst.chunks_exact_mut(before + len + after)) {
                    dst[..*before].fill(0.0);
                    dst[*before..before + len].copy_from_slice(src);
                    dst[before + len..].fill(0.0);
                }
            }
            Self::Concat => unreachable!("operands are copied one by one"),
        }
    }

    pub(super) fn scratch_len(&self, n: usize, threads: usize) -> usize {
        match self {
            Self::Conv { conv, .. } => conv.scratch_len(n, threads),
            Self::Linear { linear, .. } => linear.scratch_len(n, threads),
            _ => 0,
        }
    }

    /// What is computed and how, for people.
    pub(super) fn algorithm(&self) -> String {
        match self {
            Self::Conv { shape: ConvShape { kernel: [h, w], stride, groups, .. }, .. } => {
                let stride = if *stride == [1, 1] { String::new() } else { format!("/{}", stride[0]) };
                let groups = if *groups == 1 { String::new() } else { format!(", {groups} groups") };
                format!("conv2d {h}x{w}{stride}{groups}")
            }
            Self::Linear { .. } => "linear".into(),
            Self::BatchNorm { .. } => "batch_norm".into(),
            Self::Relu => "relu".into(),
            Self::Pool { kind, shape: PoolShape { kernel: [h, w], stride, .. }, .. } => {
                let kind = if *kind == PoolKind::Max { "max" } else { "average" };
                format!("{kind} pool {h}x{w}/{}", stride[0])
            }
            Self::AdaptiveAvgPool { out_size: [1, 1], .. } => "global average pool".into(),
            Self::AdaptiveAvgPool { out_size: [h, w], .. } => format!("average pool to {h}x{w}"),
            Self::Lrn { region: LrnRegion::AcrossChannels, .. } => "lrn across channels".into(),
            Self::Lrn { region: LrnRegion::WithinChannel, .. } => "lrn within channel".into(),
            Self::Add { .. } => "add".into(),
            Self::Concat => "concat".into(),
            Self::Softmax { .. } => "softmax".into(),
            Self::PadChannels { .. } => "pad_channels".into(),
        }
    }
}

/// Copies rows of `len` elements into the first columns of rows of `row`.
pub(super) fn copy_columns(src: &[f32], len: usize, dst: &mut [f32], row: usize) {
    for (src, dst) in src.chunks_exact(len).zip(dst.chunks_mut(row)) {
        dst[..len].copy_from_slice(src);
    }
}

/// `max(x, 0)` in place; NaN stays.
pub(super) fn rectify(values: &mut [f32], par: Par) {
    const CHUNK: usize = 1 << 14;
    let chunk = |values: &mut [f32]| {
        for v in values {
            *v = if *v <= 0.0 { 0.0 } else { *v };
        }
    };
    match par {
        Par::Serial => chunk(values),
        Par::Rayon => values.par_chunks_mut(CHUNK).for_each(chunk),
    }
}

fn weight_and_bias(tensors: &[Array]) -> (&[f32], Option<&[f32]>) {
    (tensors[0].data(), tensors.get(1).map(Array::data))
}

fn conv_shape(conv: &Conv2d, from: Shape) -> ConvShape {
    ConvShape {
        batch: 1,
        in_channels: from.channels(),
        in_size: from.spatial(),
        out_channels: conv.out_channels,
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
        dilation: conv.dilation,
        groups: conv.groups,
    }
}

fn pool_shape(pool: &Pool2d, from: Shape, to: Shape) -> PoolShape {
    PoolShape {
        planes: from.channels(),
        in_size: from.spatial(),
        out_size: to.spatial(),
        kernel: pool.kernel,
        stride: pool.stride,
        padding: pool.padding,
    }
}
