//! From steps of a program to steps of the kernels.

use super::layout::{Layout, Work};
use crate::backend::StepInfo;
use crate::{Options, Program, Step};
use cofilter_graph::{Array, Conv2d, LrnRegion, Op, Pool2d, PoolKind};
use cofilter_kernels::blocked::{self, LinearWeights, Storage, View, Weights, Window};

/// The kernels' steps in order, and what each is.
pub(super) fn steps(
    program: &Program,
    layout: &Layout,
    options: &Options,
) -> (Vec<blocked::Step>, Vec<StepInfo>) {
    let steps = layout.work.iter().map(|work| match work {
        Work::Copy { src, dst } => {
            let (src, dst) = (layout.view(*src), layout.view(*dst));
            let info = StepInfo {
                nodes: "layout".into(),
                algorithm: if dst.pixel_stride == 1 { "copy to planes" } else { "copy to blocks" }.into(),
                result: cofilter_graph::Shape::map(dst.channels(), dst.size[0], dst.size[1]),
                macs: 0,
                weight_bytes: 0,
            };
            (blocked::Step::relayout(&src, &dst), info)
        }
        Work::Step { step, srcs, add, dst } => {
            let step = &program.steps()[*step];
            let srcs: Vec<View> = srcs.iter().map(|src| layout.view(*src)).collect();
            let add = add.map(|add| layout.view(add));
            let (kernel, algorithm) = kernel(step, &srcs, add.as_ref(), &layout.view(*dst), options);
            let info = StepInfo {
                nodes: step.nodes.join("+"),
                algorithm,
                result: step.result.shape,
                macs: step.macs,
                weight_bytes: step.tensors.iter().map(|t| size_of_val(t.data())).sum(),
            };
            (kernel, info)
        }
    });
    steps.unzip()
}

/// One step and, for people, what it does and how.
fn kernel(
    step: &Step,
    srcs: &[View],
    add: Option<&View>,
    dst: &View,
    options: &Options,
) -> (blocked::Step, String) {
    let (src, relu) = (&srcs[0], step.relu);
    match &step.op {
        Op::Conv2d(conv) => convolution(conv, step, src, add, dst, options),
        Op::Linear(_) => {
            let (weight, bias) = weight_and_bias(&step.tensors);
            let weights = LinearWeights { weight, bias, relu, storage: Storage::F32 };
            (blocked::Step::linear(weights, src, dst, options.batch, options.threads), "linear".into())
        }
        Op::BatchNorm(bn) => {
            let [gamma, beta, mean, var]: [&[f32]; 4] = std::array::from_fn(|slot| step.tensors[slot].data());
            // In double precision: the variance may be tiny.
            let scale = |c: usize| f64::from(gamma[c]) / (f64::from(var[c]) + f64::from(bn.eps)).sqrt();
            let scales: Vec<f32> = (0..gamma.len()).map(|c| scale(c) as f32).collect();
            let shift = |c: usize| f64::from(beta[c]) - f64::from(mean[c]) * scale(c);
            let shifts: Vec<f32> = (0..gamma.len()).map(|c| shift(c) as f32).collect();
            (blocked::Step::affine(src, &scales, &shifts, relu, dst), "batch_norm".into())
        }
        Op::Relu => (blocked::Step::relu(src, dst), "relu".into()),
        Op::Pool2d(pool) => {
            let Pool2d { kernel, stride, padding, .. } = *pool;
            let (step, kind) = match pool.kind {
                PoolKind::Max => (blocked::Step::max_pool(src, dst, kernel, stride, padding), "max"),
                PoolKind::Average => {
                    let step = blocked::Step::avg_pool(src, dst, kernel, stride, padding, pool.count_padding);
                    (step, "average")
                }
            };
            (step, format!("{kind} pool {}x{}/{}", kernel[0], kernel[1], stride[0]))
        }
        Op::AdaptiveAvgPool { output } => {
            let text = match output {
                [1, 1] => "global average pool".into(),
                [h, w] => format!("average pool to {h}x{w}"),
            };
            (blocked::Step::adaptive_avg_pool(src, dst), text)
        }
        Op::Lrn(lrn) => match lrn.region {
            LrnRegion::AcrossChannels => {
                let step = blocked::Step::lrn_across(src, dst, lrn.size, lrn.alpha, lrn.beta, lrn.k);
                (step, "lrn across channels".into())
            }
            LrnRegion::WithinChannel => {
                let step = blocked::Step::lrn_within(src, dst, lrn.size, lrn.alpha, lrn.beta, lrn.k);
                (step, "lrn within channel".into())
            }
        },
        Op::Add => (blocked::Step::add(src, &srcs[1], relu, dst), "add".into()),
        Op::Softmax => (blocked::Step::softmax(src, dst), "softmax".into()),
        Op::PadChannels(pad) => (blocked::Step::pad_channels(src, pad.before, dst), "pad_channels".into()),
        Op::Input { .. } | Op::Flatten | Op::Dropout { .. } | Op::Concat => unreachable!(
            "an input is a value, flattening a view, dropout was removed, and the layout wrote operands to their place"
        ),
    }
}

fn convolution(
    conv: &Conv2d,
    step: &Step,
    src: &View,
    add: Option<&View>,
    dst: &View,
    options: &Options,
) -> (blocked::Step, String) {
    let Conv2d { kernel, stride, padding, dilation, groups, .. } = *conv;
    let window = Window { kernel, stride, padding, dilation, groups };
    let (weight, bias) = weight_and_bias(&step.tensors);
    let weights = Weights { weight, bias, relu: step.relu };
    let steps = if stride == [1, 1] { String::new() } else { format!("/{}", stride[0]) };
    let shares = if groups == 1 { String::new() } else { format!(", {groups} groups") };
    let text = |how: &str| format!("conv2d {}x{}{steps}{shares}{how}", kernel[0], kernel[1]);
    let (images, threads) = (options.batch, options.threads);
    (blocked::Step::conv(window, weights, src, add, dst, images, threads), text(""))
}

fn weight_and_bias(tensors: &[Array]) -> (&[f32], Option<&[f32]>) {
    (tensors[0].data(), tensors.get(1).map(Array::data))
}
