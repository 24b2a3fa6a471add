//! Steps as calls.

use super::units::{Layout, Unit, units};
use super::{Pairs, Settings};
use crate::backend::StepInfo;
use crate::{Error, Options, Program, Result, Step, Value};
use cofilter_cuda::{
    About, Builder, Choice, Elementwise, Flow, Geometry, Kernel, Made, Math, Place, Tuner, Window, choose,
};
use cofilter_graph::{Conv2d, LrnRegion, Op, PoolKind, Shape};
use cofilter_kernels::blocked::Storage;

/// A program's calls, where its output lies, and one description a call.
pub(super) struct Calls {
    pub(super) builder: Builder,
    pub(super) output: Place,
    pub(super) infos: Vec<StepInfo>,
}

/// Batches from which a fully connected layer is a product like a convolution's.
const LARGE_BATCH: usize = 32;

pub(super) fn calls(
    program: &Program,
    options: &Options,
    about: &About,
    tuner: Option<&mut Tuner>,
) -> Result<Calls> {
    check(program, options)?;
    let Options { batch, cuda: Settings { math, pairs, .. }, .. } = *options;
    let mut choice = Chooser { about: about.clone(), math, pairs, batch, tuner };
    let units = units(program, |first, second| {
        let basis = geometry(first).expect("a pair begins with a convolution");
        Ok(choice.pair(&basis, second.result.shape.channels())?.is_some())
    })?;
    let layout = Layout::new(program, &units, batch);
    let builder = Builder::new(program.input().elements(), layout.arena_len);
    let output = layout.place(program.output().id);
    let mut lowering = Lowering { program, options, choice, layout, builder, infos: Vec::new() };
    units.iter().try_for_each(|unit| lowering.unit(*unit))?;
    Ok(Calls { builder: lowering.builder, output, infos: lowering.infos })
}

/// How kernels are chosen.
struct Chooser<'a> {
    about: About,
    math: Math,
    pairs: Pairs,
    batch: usize,
    tuner: Option<&'a mut Tuner>,
}

impl Chooser<'_> {
    fn convolution(&mut self, of: &Geometry, weight: &[f32], flow: &Flow) -> Result<Choice> {
        let chosen = match &mut self.tuner {
            Some(tuner) => tuner.convolution(self.math, of, self.batch, weight, flow)?,
            None => choose::convolution(&self.about, self.math, of, self.batch)
                .map(|(kernel, splits)| Choice::Kernel(kernel, splits)),
        };
        Ok(chosen.expect("there are convolutions for every kind of arithmetic"))
    }

    /// The kernel of a pair that is to be one call.
    fn pair(&mut self, basis: &Geometry, outputs: usize) -> Result<Option<Kernel>> {
        Ok(match (self.pairs, &mut self.tuner) {
            (Pairs::Never, _) => None,
            (Pairs::Always, _) => choose::pairs_that_fit(&self.about, self.math, basis).first().copied(),
            (Pairs::Faster, Some(tuner)) => tuner.pair(self.math, basis, outputs, self.batch)?,
            (Pairs::Faster, None) => choose::pair(&self.about, self.math, basis, outputs, self.batch),
        })
    }
}

/// Refuses weights that half precision cannot hold.
fn check(program: &Program, options: &Options) -> Result<()> {
    if options.cuda.math != Math::F16 {
        return Ok(());
    }
    let convolved = program.steps().iter().filter(|step| matches!(step.op, Op::Conv2d(_) | Op::Linear(_)));
    for (step, weight) in convolved.filter_map(|step| Some((step, step.tensors.first()?))) {
        if let Some(value) = weight.data().iter().find(|value| !Storage::F16.holds(**value)) {
            return Err(Error::Option {
                option: "cuda.math",
                reason: format!(
                    "`{}` has a weight of {value:e}, which f16 cannot hold",
                    step.nodes.join("+")
                ),
            });
        }
    }
    Ok(())
}

fn geometry(step: &Step) -> Option<Geometry> {
    let Op::Conv2d(Conv2d { kernel, stride, padding, dilation, groups, .. }) = &step.op else { return None };
    let (src, dst) = (step.operands[0].shape, step.result.shape);
    Some(Geometry {
        channels: src.channels(),
        filters: dst.channels(),
        groups: *groups,
        extents: src.spatial(),
        results: dst.spatial(),
        kernel: *kernel,
        stride: *stride,
        padding: *padding,
        dilation: *dilation,
    })
}

fn extents(shape: Shape) -> [usize; 3] {
    let [height, width] = shape.spatial();
    [shape.channels(), height, width]
}

struct Lowering<'a> {
    program: &'a Program,
    options: &'a Options,
    choice: Chooser<'a>,
    layout: Layout,
    builder: Builder,
    infos: Vec<StepInfo>,
}

impl Lowering<'_> {
    fn flow(&self, src: Value, step: &Step) -> Flow {
        Flow {
            src: self.layout.place(src.id),
            add: step.add.map(|add| self.layout.place(add.id)),
            dst: self.layout.place(step.result.id),
            relu: step.relu,
        }
    }

    fn unit(&mut self, unit: Unit) -> Result<()> {
        let steps = self.program.steps();
        match unit {
            Unit::Pair(first, second) => self.pair(&steps[first], &steps[second]),
            Unit::Single(i) => self.step(i, &steps[i]),
        }
    }

    fn told(&mut self, steps: &[&Step], what: String, made: &Made) {
        let nodes: Vec<&str> = steps.iter().flat_map(|step| &step.nodes).map(String::as_str).collect();
        let parts = if made.splits > 1 { format!(", {} parts", made.splits) } else { String::new() };
        let dense = made.density < 1.0;
        let left =
            if dense { format!(", {:.0} % of the columns", 100.0 * made.density) } else { String::new() };
        self.infos.push(StepInfo {
            nodes: nodes.join("+"),
            algorithm: format!("{what}, {}{parts}{left}", made.algorithm),
            result: steps[steps.len() - 1].result.shape,
            macs: steps.iter().map(|step| step.macs).sum(),
            images: self.options.batch,
            weight_bytes: made.bytes,
        });
    }

    fn pair(&mut self, first: &Step, second: &Step) -> Result<()> {
        let basis = geometry(first).expect("a pair begins with a convolution");
        let outputs = second.result.shape.channels();
        let kernel = self.choice.pair(&basis, outputs)?.expect("`units` asked the same");
        let flow = self.flow(first.operands[0], second);
        let bias = second.tensors.get(1).map_or(&[][..], |bias| bias.data());
        let tensors = [first.tensors[0].data(), second.tensors[0].data(), bias];
        let made = self.builder.pair(kernel, &basis, tensors, &flow)?;
        self.told(&[first, second], "low-rank pair".into(), &made);
        Ok(())
    }

    fn step(&mut self, i: usize, step: &Step) -> Result<()> {
        let src = step.operands[0];
        let shape = extents(src.shape);
        let made = match &step.op {
            Op::Conv2d(_) => {
                let geometry = geometry(step).expect("a convolution has one");
                self.convolution(&geometry, step)?
            }
            Op::Linear(_) => self.linear(step)?,
            Op::BatchNorm(bn) => {
                let tensor = |slot: usize, c: usize| f64::from(step.tensors[slot].data()[c]);
                let of = |c: usize| {
                    let factor = tensor(0, c) / (tensor(3, c) + f64::from(bn.eps)).sqrt();
                    [step.tensors[2].data()[c], round(factor), step.tensors[1].data()[c]]
                };
                let scale: Vec<f32> = (0..shape[0]).flat_map(of).collect();
                let flow = self.flow(src, step);
                self.builder.normalise(shape, &scale, &flow)?
            }
            Op::Concat => return self.concatenation(i, step),
            Op::Add => {
                let flow = Flow { add: Some(self.layout.place(step.operands[1].id)), ..self.flow(src, step) };
                self.builder.map(shape, Elementwise::Copy { before: 0, channels: shape[0] }, &flow)?
            }
            op => {
                let flow = self.flow(src, step);
                let flow = Flow { relu: flow.relu || matches!(op, Op::Relu), ..flow };
                self.builder.map(shape, elementwise(op, shape, step.result.shape), &flow)?
            }
        };
        self.told(&[step], step.op.kind().into(), &made);
        Ok(())
    }

    fn convolution(&mut self, geometry: &Geometry, step: &Step) -> Result<Made> {
        let weight = step.tensors[0].data();
        let bias = step.tensors.get(1).map_or(&[][..], |bias| bias.data());
        let flow = self.flow(step.operands[0], step);
        Ok(match self.choice.convolution(geometry, weight, &flow)? {
            Choice::Kernel(kernel, splits) => {
                self.builder.conv((kernel, splits), geometry, [weight, bias], &flow)?
            }
            Choice::Routine(routine) => self.builder.routine(routine, geometry, [weight, bias], &flow)?,
        })
    }

    fn linear(&mut self, step: &Step) -> Result<Made> {
        let [inputs, outputs] = [step.operands[0].shape.elements(), step.result.shape.elements()];
        let storage = self.options.linear_weights;
        if storage == Storage::F32 && self.options.batch >= LARGE_BATCH {
            return self.convolution(&Geometry::linear(inputs, outputs), step);
        }
        let kept = match storage {
            Storage::F16 => Math::F16,
            Storage::Bf16 => Math::Bf16,
            _ => Math::F32,
        };
        let bias = step.tensors.get(1).map_or(&[][..], |bias| bias.data());
        let flow = self.flow(step.operands[0], step);
        Ok(self.builder.linear(kept, inputs, [step.tensors[0].data(), bias], &flow)?)
    }

    /// Most operands were written into their place; the others are copied.
    fn concatenation(&mut self, i: usize, step: &Step) -> Result<()> {
        let whole = self.layout.place(step.result.id);
        let before = |k: usize| step.operands[..k].iter().map(|of| of.shape.elements()).sum::<usize>();
        for k in self.layout.copies[i].clone() {
            let operand = step.operands[k];
            let shape = extents(operand.shape);
            let dst = Place { at: whole.at + before(k), ..whole };
            let flow = Flow { dst, ..self.flow(operand, step) };
            let made = self.builder.map(shape, Elementwise::Copy { before: 0, channels: shape[0] }, &flow)?;
            self.told(&[step], "copy of a part".into(), &made);
        }
        Ok(())
    }
}

/// What looks at single elements or a few around them.
fn elementwise(op: &Op, [channels, ..]: [usize; 3], result: Shape) -> Elementwise {
    match op {
        Op::Pool2d(pool) => {
            let window = Window {
                kernel: pool.kernel,
                stride: pool.stride,
                padding: pool.padding,
                results: result.spatial(),
            };
            match pool.kind {
                PoolKind::Max => Elementwise::MaxPool(window),
                PoolKind::Average => Elementwise::MeanPool { window, count_padding: pool.count_padding },
            }
        }
        Op::AdaptiveAvgPool { output } => Elementwise::Adaptive { results: *output },
        Op::Lrn(norm) => {
            let within = norm.region == LrnRegion::WithinChannel;
            let count = if within { norm.size * norm.size } else { norm.size };
            let weight = round(f64::from(norm.alpha) / count as f64);
            Elementwise::Lrn { within, size: norm.size, weight, beta: norm.beta, k: norm.k }
        }
        Op::Softmax => Elementwise::Softmax,
        Op::PadChannels(pad) => {
            Elementwise::Copy { before: pad.before, channels: pad.before + channels + pad.after }
        }
        // Input, dropout and flattening are no steps; the rest has kernels of its own.
        _ => Elementwise::Copy { before: 0, channels },
    }
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, used in f32")]
fn round(x: f64) -> f32 {
    x as f32
}
