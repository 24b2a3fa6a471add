//! What is one call, and where values lie.

use crate::arena::{self, Lifetime};
use crate::{Program, Result, Step};
use cofilter_cuda::{Place, Region};
use cofilter_graph::{Conv2d, Op};

/// Steps that are one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// One step.
    Single(usize),
    /// The two convolutions of a low-rank layer.
    Pair(usize, usize),
}

impl Unit {
    /// The step that gives the result.
    pub(super) fn last(self) -> usize {
        match self {
            Self::Single(step) | Self::Pair(_, step) => step,
        }
    }

    fn first(self) -> usize {
        match self {
            Self::Single(step) | Self::Pair(step, _) => step,
        }
    }
}

/// The units of a program in order, where `fuse` says of two convolutions whether they are to be one call.
pub(super) fn units(
    program: &Program,
    mut fuse: impl FnMut(&Step, &Step) -> Result<bool>,
) -> Result<Vec<Unit>> {
    let steps = program.steps();
    let readers = readers(program);
    let mut partner = vec![None; steps.len()];
    for (second, step) in steps.iter().enumerate() {
        let Some(first) = step.operands[0].id.checked_sub(1) else { continue };
        let sole = readers[first + 1] == 1 && program.output().id != first + 1;
        if sole
            && is_pair(&steps[first], step)
            && !partner.contains(&Some(first))
            && fuse(&steps[first], step)?
        {
            partner[first] = Some(second);
        }
    }
    let single = |i: usize| partner[i].is_none();
    let unit = |i: usize| match partner.iter().position(|of| *of == Some(i)) {
        Some(first) => Unit::Pair(first, i),
        None => Unit::Single(i),
    };
    Ok((0..steps.len()).filter(|i| single(*i)).map(unit).collect())
}

/// How often each value is read.
fn readers(program: &Program) -> Vec<usize> {
    let mut readers = vec![0; program.steps().len() + 1];
    for step in program.steps() {
        step.operands.iter().chain(&step.add).for_each(|value| readers[value.id] += 1);
    }
    readers
}

/// A plain convolution and a 1x1 convolution of its result.
fn is_pair(first: &Step, second: &Step) -> bool {
    let (Op::Conv2d(basis), Op::Conv2d(combination)) = (&first.op, &second.op) else { return false };
    let Conv2d { kernel, stride, padding, groups, .. } = combination;
    let pointwise = (*kernel, *stride, *padding, *groups) == ([1; 2], [1; 2], [0; 2], 1);
    pointwise && basis.groups == 1 && !basis.bias && first.add.is_none() && !first.relu
}

/// Where every value lies.
pub(super) struct Layout {
    /// By value; none for the middle of a pair.
    places: Vec<Option<Place>>,
    /// Elements of the arena.
    pub(super) arena_len: usize,
    /// By step: operands of a concatenation that were not written into their part of it.
    pub(super) copies: Vec<Vec<usize>>,
}

impl Layout {
    /// Values of a batch; operands of a concatenation are written into their part of it where nothing speaks against it.
    pub(super) fn new(program: &Program, units: &[Unit], batch: usize) -> Self {
        let steps = program.steps();
        let values = steps.len() + 1;
        let there = |value: usize| value > 0 && units.iter().any(|unit| unit.last() + 1 == value);
        // Part of which value, from which element on.
        let mut part: Vec<Option<(usize, usize)>> = vec![None; values];
        let mut copies = vec![Vec::new(); steps.len()];
        for (i, step) in steps.iter().enumerate().filter(|(_, step)| matches!(step.op, Op::Concat)) {
            let mut at = 0;
            for (k, operand) in step.operands.iter().enumerate() {
                let free =
                    there(operand.id) && part[operand.id].is_none() && operand.id != program.output().id;
                match free && !step.relu && step.add.is_none() {
                    true => part[operand.id] = Some((i + 1, at)),
                    false => copies[i].push(k),
                }
                at += operand.shape.elements();
            }
        }
        let root = |mut value: usize| {
            let mut at = 0;
            while let Some((of, from)) = part[value] {
                (value, at) = (of, at + from);
            }
            (value, at)
        };
        let mut lives: Vec<Option<Lifetime>> = vec![None; values];
        let mut touch = |value: usize, at: usize| {
            let (value, _) = root(value);
            if value > 0 {
                let len = steps[value - 1].result.shape.elements() * batch;
                let life = lives[value].get_or_insert(Lifetime { born: at, dies: at, len });
                (life.born, life.dies) = (life.born.min(at), life.dies.max(at));
            }
        };
        for (at, unit) in units.iter().enumerate() {
            touch(unit.last() + 1, at);
            let step = &steps[unit.last()];
            steps[unit.first()].operands.iter().chain(&step.add).for_each(|value| touch(value.id, at));
        }
        touch(program.output().id, units.len());
        let roots: Vec<usize> = (0..values).filter(|value| lives[*value].is_some()).collect();
        let placed: Vec<Lifetime> = roots.iter().filter_map(|value| lives[*value]).collect();
        let (offsets, arena_len) = arena::place(&placed);
        let offset = |value: usize| roots.iter().position(|of| *of == value).map(|i| offsets[i]);
        let place = |value: usize| {
            if value == 0 {
                return Some(Place { region: Region::Images, at: 0, stride: program.input().elements() });
            }
            let (whole, at) = root(value);
            let stride = steps[whole - 1].result.shape.elements();
            Some(Place { region: Region::Arena, at: offset(whole)? + at, stride })
        };
        let places =
            (0..values).map(|value| if value == 0 || there(value) { place(value) } else { None }).collect();
        Self { places, arena_len, copies }
    }

    /// Where a value lies.
    pub(super) fn place(&self, value: usize) -> Place {
        self.places[value].expect("only the middle of a pair lies nowhere, and nothing else reads it")
    }
}
