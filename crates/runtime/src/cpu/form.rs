//! The ways in which a convolution, or a pair of them, can be computed, and which is taken.

use crate::{Options, Program, Step};
use cofilter_graph::{Array, Conv2d, Linear, Op};
use cofilter_kernels::blocked::{self, BLOCK, Storage, Window, WinogradTile};

/// What is chosen for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A step.
    One(usize),
    /// A convolution whose only reader is a convolution that looks at no other row: a basis and its combination, or a vertical
    /// and a horizontal filter. Or a fully connected layer whose only reader is another one.
    Two(usize, usize),
}

/// How one convolution is computed; other steps have one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Direct,
    Winograd(WinogradTile),
    Depthwise,
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
            let mut forms: Vec<Form> =
                algorithms(first, options).into_iter().map(|a| Form::Apart(a, Algorithm::Direct)).collect();
            // A step for both computes the first one without regard to its many groups. Fully connected factors have
            // nothing to gain: all of the first one's sums must be there before the second one begins.
            if matches!(first.op, Op::Conv2d(_)) && algorithms(first, options) != [Algorithm::Depthwise] {
                forms.push(Form::Together);
            }
            if let Some(product) = multiplied(first, second).filter(|_| product_holds(first, second, options))
            {
                forms.extend(algorithms(&product, options).into_iter().map(Form::Multiplied));
            }
            forms
        }
    }
}

fn algorithms(step: &Step, options: &Options) -> Vec<Algorithm> {
    let Op::Conv2d(conv) = &step.op else { return vec![Algorithm::Direct] };
    let from = step.operands[0];
    let (inputs, outputs) = (from.shape.channels(), conv.out_channels);
    if from.id != 0 && conv.groups == inputs && conv.groups == outputs && conv.groups > 1 {
        return vec![Algorithm::Depthwise];
    }
    let mut found = vec![Algorithm::Direct];
    let plain = conv.kernel == [3, 3] && conv.stride == [1, 1] && conv.dilation == [1, 1];
    // Groups are whole blocks by way of the layout, unless they are so small that it leaves them together.
    let whole = |channels: usize| {
        conv.groups == 1
            || (channels / conv.groups).is_multiple_of(BLOCK)
            || channels / conv.groups > BLOCK / 2
    };
    if plain && from.id != 0 && whole(inputs) && whole(outputs) {
        for tile in [WinogradTile::Two, WinogradTile::Four] {
            if tile.error_bound() <= options.tolerance {
                found.push(Algorithm::Winograd(tile));
            }
        }
    }
    found
}

/// The one layer that a basis and its combination are, without its tensors.
pub(super) fn multiplied(first: &Step, second: &Step) -> Option<Step> {
    let filter = first.tensors[0].data().len() / first.tensors[0].dims()[0];
    let (op, macs) = match (&first.op, &second.op) {
        (Op::Conv2d(a), Op::Conv2d(b)) => {
            let point = b.kernel == [1, 1] && b.stride == [1, 1] && b.padding == [0, 0];
            // A basis for all groups of the combination, or one for each.
            if !point || (a.groups != b.groups && a.groups != 1) {
                return None;
            }
            let whole = Conv2d { out_channels: b.out_channels, bias: true, ..a.clone() };
            (Op::Conv2d(whole), second.result.shape.elements() * filter)
        }
        (Op::Linear(_), Op::Linear(b)) => {
            let macs = b.out_features * filter;
            // Far more of them than the factors have: not worth trying, nor multiplying.
            if macs > (first.macs + second.macs) * 5 / 4 {
                return None;
            }
            (Op::Linear(Linear { out_features: b.out_features, bias: true }), macs)
        }
        _ => return None,
    };
    Some(Step {
        nodes: first.nodes.iter().chain(&second.nodes).cloned().collect(),
        op,
        tensors: Vec::new(),
        operands: first.operands.clone(),
        add: second.add,
        relu: second.relu,
        result: second.result,
        macs,
    })
}

/// Whether no weight of that layer can be more than is kept.
fn product_holds(first: &Step, second: &Step, options: &Options) -> bool {
    let largest = |step: &Step| {
        let values = step.tensors.iter().flat_map(|tensor| tensor.data());
        values.fold(0.0_f64, |most, value| most.max(f64::from(value.abs())))
    };
    #[expect(clippy::cast_precision_loss, reason = "a bound")]
    let terms = (first.tensors[0].dims()[0] + 1) as f64;
    let bound = largest(first) * largest(second) * terms;
    let storage = if matches!(first.op, Op::Linear(_)) { options.linear_weights } else { Storage::F32 };
    bound < f64::from(f32::MAX) && storage.holds(rounded(bound))
}

/// Weights and biases of that layer: the combination times the basis, in double precision.
pub(super) fn product(first: &Step, second: &Step) -> Vec<Array> {
    let (basis, combination) = (&first.tensors[0], &second.tensors[0]);
    let (middle, outputs) = (basis.dims()[0], combination.dims()[0]);
    let groups = if let Op::Conv2d(conv) = &second.op { conv.groups } else { 1 };
    let filter = basis.data().len() / middle;
    let (group_middle, group_out) = (middle / groups, outputs / groups);
    let mut weight = Vec::with_capacity(outputs * filter);
    let mut bias = Vec::with_capacity(outputs);
    for output in 0..outputs {
        let shares = &combination.data()[output * group_middle..(output + 1) * group_middle];
        let start = output / group_out * group_middle;
        let mut sums = vec![0.0_f64; filter];
        let mut shift = second.tensors.get(1).map_or(0.0, |bias| f64::from(bias.data()[output]));
        for (m, share) in shares.iter().enumerate().map(|(m, share)| (start + m, f64::from(*share))) {
            for (sum, value) in sums.iter_mut().zip(&basis.data()[m * filter..(m + 1) * filter]) {
                *sum += share * f64::from(*value);
            }
            shift += first.tensors.get(1).map_or(0.0, |bias| share * f64::from(bias.data()[m]));
        }
        weight.extend(sums.into_iter().map(rounded));
        bias.push(rounded(shift));
    }
    let mut dims = basis.dims().to_vec();
    dims[0] = outputs;
    vec![Array::new(dims, weight), Array::new(vec![outputs], bias)]
}

#[expect(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
fn rounded(value: f64) -> f32 {
    value as f32
}

/// What a unit is, without its weights: equal units cost the same.
pub(super) fn signature(program: &Program, unit: Unit, options: &Options) -> Option<String> {
    let part = |index: usize| {
        let step = &program.steps()[index];
        let (from, to) = (step.operands.first()?.shape, step.result.shape);
        match &step.op {
            Op::Conv2d(c) => {
                let [h, w] = c.kernel;
                let add = if step.add.is_some() { " add" } else { "" };
                Some(format!(
                    "conv {h}x{w} stride {:?} padding {:?} dilation {:?} groups {} {from} -> {to}{add}",
                    c.stride, c.padding, c.dilation, c.groups
                ))
            }
            Op::Linear(_) => Some(format!("linear {:?} {from} -> {to}", options.linear_weights)),
            _ => None,
        }
    };
    let what = match unit {
        Unit::One(index) => part(index)?,
        Unit::Two(first, second) => format!("{}, {}", part(first)?, part(second)?),
    };
    Some(format!("{what}, batch {}, threads {}", options.batch, options.threads))
}
