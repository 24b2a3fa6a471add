//! The ways in which a convolution, or a pair of them, can be computed, and which is taken.

use super::product::{multiplied, product_holds};
use crate::{Options, Program, Step};
use cofilter_graph::{Conv2d, Op};
use cofilter_kernels::blocked::{self, BLOCK, View, Window, WinogradTile};

/// Largest share of weights for which leaving out the others is tried.
const MOST_SPARSE: f64 = 0.7;

/// What is chosen for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A step.
    One(usize),
    /// A convolution whose only reader is a convolution that looks at no other row: a basis and its combination, or a vertical
    /// and a horizontal filter. Or a fully connected layer whose only reader is another one.
    Two(usize, usize),
}

/// How one convolution or fully connected layer is computed; other steps have one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Direct,
    Winograd(WinogradTile),
    Depthwise,
    /// Without the weights that are zero; a convolution from a copy of the map in planes.
    Sparse,
}

/// How a unit is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    One(Algorithm),
    /// Two steps with a map in between.
    Apart(Algorithm, Algorithm),
    /// One step; the map in between is never written as a whole.
    Together,
    /// One convolution with the product of the filters.
    Multiplied(Algorithm),
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Winograd(WinogradTile::Two) => "winograd 2x2",
            Self::Winograd(WinogradTile::Four) => "winograd 4x4",
            Self::Depthwise => "depthwise",
            Self::Sparse => "sparse",
        }
    }

    /// What people read behind the kind of step; nothing for the usual way.
    pub(super) fn suffix(self) -> String {
        match self {
            Self::Direct => String::new(),
            other => format!(", {}", other.name()),
        }
    }
}

impl Form {
    /// Name in tables of costs.
    pub(super) fn name(self) -> String {
        match self {
            Self::One(algorithm) => algorithm.name().into(),
            Self::Apart(first, second) => format!("{} + {}", first.name(), second.name()),
            Self::Together => "together".into(),
            Self::Multiplied(algorithm) => format!("multiplied, {}", algorithm.name()),
        }
    }
}

/// The units of a program, in the order in which their results are there.
pub(super) fn units(program: &Program) -> Vec<Unit> {
    let steps = program.steps();
    let mut first_of: Vec<Option<usize>> = vec![None; steps.len()];
    let mut taken = vec![false; steps.len()];
    for (index, step) in steps.iter().enumerate() {
        if step.add.is_some() || step.relu || taken[index] || program.output().id == step.result.id {
            continue;
        }
        let mut readers = (steps.iter().enumerate())
            .filter(|(_, s)| s.operands.iter().chain(&s.add).any(|operand| operand.id == step.result.id));
        let (Some((reader, second)), None) = (readers.next(), readers.next()) else { continue };
        let fits = match (&step.op, &second.op) {
            (Op::Conv2d(_), Op::Conv2d(conv)) => blocked::Step::conv_pair_fits(&window(conv)),
            (Op::Linear(_), Op::Linear(_)) => true,
            _ => false,
        };
        let reads = second.operands.first().is_some_and(|operand| operand.id == step.result.id)
            && second.add.is_none_or(|a| a.id != step.result.id);
        if fits && reads && first_of[index].is_none() {
            first_of[reader] = Some(index);
            taken[index] = true;
        }
    }
    let unit = |index: usize| match first_of[index] {
        Some(first) => Some(Unit::Two(first, index)),
        None => (!taken[index]).then_some(Unit::One(index)),
    };
    (0..steps.len()).filter_map(unit).collect()
}

/// The window of a convolution.
pub(super) fn window(conv: &Conv2d) -> Window {
    let Conv2d { kernel, stride, padding, dilation, groups, .. } = *conv;
    Window { kernel, stride, padding, dilation, groups }
}

/// The ways in which a unit can be computed; the first one always works.
pub(super) fn forms(program: &Program, unit: Unit, options: &Options) -> Vec<Form> {
    match unit {
        Unit::One(index) => algorithms(&program.steps()[index], options).into_iter().map(Form::One).collect(),
        Unit::Two(first, second) => {
            let (first, second) = (&program.steps()[first], &program.steps()[second]);
            let firsts = algorithms(first, options);
            let mut forms: Vec<Form> = firsts.iter().map(|a| Form::Apart(*a, Algorithm::Direct)).collect();
            if algorithms(second, options).contains(&Algorithm::Sparse) {
                forms.extend(firsts.iter().map(|a| Form::Apart(*a, Algorithm::Sparse)));
            }
            // What goes channel by channel stays so: other forms would compute all pairs of channels.
            let depthwise = [Algorithm::Depthwise];
            let by_channel = firsts == depthwise;
            // Fully connected factors have nothing to gain from one step: all of the first one's sums must be there before the
            // second one begins.
            if matches!(first.op, Op::Conv2d(_)) && !by_channel {
                forms.push(Form::Together);
            }
            if let Some(product) = multiplied(first, second).filter(|_| product_holds(first, second, options))
            {
                let ways = algorithms(&product, options);
                if !by_channel || ways == depthwise {
                    forms.extend(ways.into_iter().map(Form::Multiplied));
                }
            }
            forms
        }
    }
}

fn algorithms(step: &Step, options: &Options) -> Vec<Algorithm> {
    let few = step.density.weights <= MOST_SPARSE;
    let conv = match &step.op {
        Op::Conv2d(conv) => conv,
        Op::Linear(linear) => {
            let fits =
                blocked::Step::sparse_linear_fits(step.operands[0].shape.elements(), linear.out_features);
            let sparse = (few && fits).then_some(Algorithm::Sparse);
            return [Algorithm::Direct].into_iter().chain(sparse).collect();
        }
        _ => return vec![Algorithm::Direct],
    };
    let from = step.operands[0];
    let (inputs, outputs) = (from.shape.channels(), conv.out_channels);
    if from.id != 0 && conv.groups == inputs && conv.groups == outputs && conv.groups > 1 {
        return vec![Algorithm::Depthwise];
    }
    let mut found = vec![Algorithm::Direct];
    // Groups are whole blocks by way of the layout, unless they are so small that it leaves them together.
    let whole = |channels: usize| {
        conv.groups == 1
            || (channels / conv.groups).is_multiple_of(BLOCK)
            || channels / conv.groups > BLOCK / 2
    };
    if from.id != 0 && whole(inputs) && whole(outputs) {
        let fits = |tile: &WinogradTile| {
            tile.suits(conv.kernel, conv.stride, conv.dilation)
                && tile.error_bound(conv.kernel[0]) <= options.tolerance
        };
        found.extend(WinogradTile::ALL.into_iter().filter(fits).map(Algorithm::Winograd));
    }
    if few {
        let src = View::planar(0, inputs, from.shape.spatial(), conv.padding, 1);
        found.extend(blocked::Step::sparse_conv_fits(&window(conv), &src).then_some(Algorithm::Sparse));
    }
    found
}

/// What a unit is, without its weights but for how many there are: equal units cost the same.
pub(super) fn signature(program: &Program, unit: Unit, options: &Options) -> Option<String> {
    let part = |index: usize| {
        let step = &program.steps()[index];
        let (from, to) = (step.operands.first()?.shape, step.result.shape);
        match &step.op {
            Op::Conv2d(c) => {
                let [h, w] = c.kernel;
                let add = if step.add.is_some() { " add" } else { "" };
                let density = step.density.text();
                Some(format!(
                    "conv {h}x{w} stride {:?} padding {:?} dilation {:?} groups {} {from} -> {to}{add}{density}",
                    c.stride, c.padding, c.dilation, c.groups
                ))
            }
            Op::Linear(_) => {
                Some(format!("linear {:?} {from} -> {to}{}", options.linear_weights, step.density.text()))
            }
            _ => None,
        }
    };
    let what = match unit {
        Unit::One(index) => part(index)?,
        Unit::Two(first, second) => format!("{}, {}", part(first)?, part(second)?),
    };
    Some(format!("{what}, batch {}, threads {}", options.batch, options.threads))
}
