//! From steps of a program to steps of the kernels.

use super::form::{self, Algorithm, Form, Unit};
use super::layout::{Layout, Work};
use super::parts;
use super::product::{multiplied, product};
use crate::backend::StepInfo;
use crate::{Options, Program, Step};
use cofilter_graph::{Array, Conv2d, LrnRegion, Op, Pool2d, PoolKind};
use cofilter_kernels::Par;
use cofilter_kernels::blocked::{self, LinearWeights, PackedMemory, Part, Storage, View, Weights};

/// The kernels' steps in order, in parts, and what each is.
pub(super) fn steps(
    program: &Program,
    units: &[(Unit, Form)],
    layout: &Layout,
    options: &Options,
) -> (Vec<Part>, Vec<StepInfo>) {
    let mut infos = Vec::new();
    let batch = options.batch;
    let part = |part: &parts::Part| {
        // Each is made for the images that it sees at once.
        let options = Options { batch: part.images, ..options.clone() };
        let works = layout.work[part.steps.clone()].iter();
        let (steps, of): (Vec<_>, Vec<_>) =
            works.map(|work| step(work, program, units, layout, (&options, batch))).unzip();
        infos.extend(of);
        Part { steps, images: part.images }
    };
    (layout.parts.iter().map(part).collect(), infos)
}

fn step(
    work: &Work,
    program: &Program,
    units: &[(Unit, Form)],
    layout: &Layout,
    (options, batch): (&Options, usize),
) -> (blocked::Step, StepInfo) {
    match work {
        Work::Copy { src, dst, .. } => copy(&layout.view(*src), &layout.view(*dst), options),
        Work::Unit { unit, first, srcs, add, dst } => {
            let srcs: Vec<View> = srcs.iter().map(|src| layout.view(*src)).collect();
            let add = add.map(|add| layout.view(add));
            let maps = Maps { srcs: &srcs, add: add.as_ref(), dst: &layout.view(*dst), batch };
            let step = |index: usize| &program.steps()[index];
            match units[*unit] {
                (Unit::One(index), Form::One(algorithm)) => one(step(index), algorithm, &maps, options),
                (Unit::Two(index, _), Form::Apart(algorithm, _)) if *first => {
                    one(step(index), algorithm, &maps, options)
                }
                (Unit::Two(_, index), Form::Apart(_, algorithm)) => {
                    one(step(index), algorithm, &maps, options)
                }
                (Unit::Two(a, b), Form::Multiplied(algorithm)) => {
                    let mut whole = multiplied(step(a), step(b)).expect("the form was offered for this pair");
                    whole.tensors = product(step(a), step(b), &whole);
                    let (kernel, mut info) = one(&whole, algorithm, &maps, options);
                    info.algorithm += ", factors multiplied";
                    (kernel, info)
                }
                (Unit::Two(a, b), _) => {
                    let segments = layout.segments(step(a).result.id);
                    pair([step(a), step(b)], segments, &maps, options)
                }
                (Unit::One(_), _) => unreachable!("a single step has no form of a pair"),
            }
        }
    }
}

/// What a step reads and writes.
struct Maps<'a> {
    srcs: &'a [View],
    add: Option<&'a View>,
    dst: &'a View,
    /// Images of the plan: on how it is cut into parts no result may depend.
    batch: usize,
}

fn copy(src: &View, dst: &View, options: &Options) -> (blocked::Step, StepInfo) {
    let info = StepInfo {
        nodes: "layout".into(),
        algorithm: if dst.pixel_stride == 1 { "copy to planes" } else { "copy to blocks" }.into(),
        result: cofilter_graph::Shape::map(dst.channels(), dst.size[0], dst.size[1]),
        macs: 0,
        images: options.batch,
        weight_bytes: 0,
    };
    (blocked::Step::relayout(src, dst), info)
}

fn one(step: &Step, algorithm: Algorithm, maps: &Maps<'_>, options: &Options) -> (blocked::Step, StepInfo) {
    let (kernel, text) = kernel(step, algorithm, maps, options);
    let info = info(&[step], text, &kernel, options);
    (kernel, info)
}

fn info(steps: &[&Step], algorithm: String, kernel: &blocked::Step, options: &Options) -> StepInfo {
    let nodes: Vec<&str> = steps.iter().flat_map(|step| &step.nodes).map(String::as_str).collect();
    StepInfo {
        nodes: nodes.join("+"),
        algorithm,
        result: steps[steps.len() - 1].result.shape,
        macs: steps.iter().map(|step| step.macs).sum(),
        images: options.batch,
        weight_bytes: kernel.weight_bytes(),
    }
}

fn pair(
    steps: [&Step; 2],
    segments: &[usize],
    maps: &Maps<'_>,
    options: &Options,
) -> (blocked::Step, StepInfo) {
    let [first, second] = steps.map(|step| {
        let Op::Conv2d(conv) = &step.op else { unreachable!("a pair is two convolutions") };
        let (weight, bias) = weight_and_bias(&step.tensors);
        (conv, (form::window(conv), Weights { weight, bias, relu: step.relu }))
    });
    let text = format!("{} and {} together", title(first.0), title(second.0));
    let Maps { srcs, add, dst, .. } = *maps;
    let (images, threads) = (options.batch, options.threads);
    let kernel = blocked::Step::conv_pair(first.1, segments, second.1, &srcs[0], add, dst, images, threads);
    let info = info(&steps, text, &kernel, options);
    (kernel, info)
}

/// Kind of convolution, for people.
fn title(conv: &Conv2d) -> String {
    let stride = if conv.stride == [1, 1] { String::new() } else { format!("/{}", conv.stride[0]) };
    let groups = if conv.groups == 1 { String::new() } else { format!(", {} groups", conv.groups) };
    format!("conv2d {}x{}{stride}{groups}", conv.kernel[0], conv.kernel[1])
}

/// One step and, for people, what it does and how.
fn kernel(step: &Step, algorithm: Algorithm, maps: &Maps<'_>, options: &Options) -> (blocked::Step, String) {
    let Maps { srcs, dst, .. } = *maps;
    let (src, relu) = (&srcs[0], step.relu);
    match &step.op {
        Op::Conv2d(conv) => convolution(conv, step, algorithm, maps, options),
        Op::Linear(_) => {
            let (weight, bias) = weight_and_bias(&step.tensors);
            let weights = LinearWeights { weight, bias, relu, storage: options.linear_weights };
            if algorithm == Algorithm::Sparse {
                let kernel = blocked::Step::sparse_linear(weights, src, dst, maps.batch, options.threads);
                let left = share(step.density.weights, "weights");
                return (kernel, "linear".to_owned() + &algorithm.suffix() + &left);
            }
            let text = match options.linear_weights {
                Storage::F32 => "linear".into(),
                other => format!("linear, {}", other.name()),
            };
            (blocked::Step::linear(weights, src, dst, options.batch, options.threads), text)
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
    algorithm: Algorithm,
    maps: &Maps<'_>,
    options: &Options,
) -> (blocked::Step, String) {
    let window = form::window(conv);
    let (weight, bias) = weight_and_bias(&step.tensors);
    let weights = Weights { weight, bias, relu: step.relu };
    let (src, add, dst) = (&maps.srcs[0], maps.add, maps.dst);
    let (images, threads) = (options.batch, options.threads);
    let algorithm = match algorithm {
        // Groups of another number may share blocks of a map with these.
        Algorithm::Winograd(tile) if !tile.fits(&window, src, dst) => Algorithm::Direct,
        // The same holds for the blocks of maps that were put together.
        Algorithm::Depthwise if src.lanes != dst.lanes => Algorithm::Direct,
        other => other,
    };
    let kernel = match algorithm {
        Algorithm::Direct => blocked::Step::conv(window, weights, src, add, dst, images, threads),
        Algorithm::Winograd(tile) => blocked::Step::winograd(
            tile,
            window,
            weights,
            src,
            add,
            dst,
            images,
            threads,
            Par::Serial,
            &mut PackedMemory::default(),
        ),
        Algorithm::Depthwise => blocked::Step::depthwise(window, weights, src, add, dst),
        Algorithm::Sparse => blocked::Step::sparse_conv(window, weights, src, add, dst),
    };
    let left = match algorithm {
        Algorithm::Sparse => share(step.density.weights, "weights"),
        Algorithm::Direct => share(step.density.columns, "columns"),
        _ => String::new(),
    };
    (kernel, title(conv) + &algorithm.suffix() + &left)
}

/// What is left of something, for people, if that is not all.
fn share(left: f64, of: &str) -> String {
    match (left * 100.0).round() {
        100.0 => String::new(),
        percent => format!(", {percent} % of {of}"),
    }
}

fn weight_and_bias(tensors: &[Array]) -> (&[f32], Option<&[f32]>) {
    (tensors[0].data(), tensors.get(1).map(Array::data))
}
