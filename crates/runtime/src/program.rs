use crate::Result;
use crate::arena::{self, Lifetime};
use crate::lower::{self, Draft};
use cofilter_graph::{Array, Model, Op, Shape};

/// A network lowered for execution, the same for every device: inference passes applied, element-wise followers merged
/// into the step before them, every intermediate value at a place in one arena.
#[derive(Clone, Debug)]
pub struct Program {
    source: Model,
    steps: Vec<Step>,
    output: Value,
    arena_len: usize,
}

/// One thing to compute: `relu?(op(operands) + add?)`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step {
    /// Names of the graph's nodes computed here, in order: `["conv1", "relu1"]`.
    pub nodes: Vec<String>,
    /// The operation before `add` and `relu`.
    pub op: Op,
    /// Its tensors, in slot order.
    pub tensors: Vec<Array>,
    /// What it reads.
    pub operands: Vec<Value>,
    /// What is added to its result, of the same shape.
    pub add: Option<Value>,
    /// Whether the sum is rectified.
    pub relu: bool,
    /// What is written.
    pub result: Value,
    /// Multiply-accumulate operations for one image.
    pub macs: usize,
}

/// A value that a step reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Extents for one image.
    pub shape: Shape,
    /// Where it lies.
    pub place: Place,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the caller's images, which are never written.
    Images,
    /// In the arena, from this element on for one image; for `n` images from `n` times this element on.
    Arena(usize),
    /// In the caller's logits: the result of the last step, which nothing reads.
    Logits,
}

impl Program {
    /// Lowers a network.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if a tensor is not finite, before or after batch normalisation is folded.
    pub fn lower(model: &Model) -> Result<Self> {
        model.check_finite()?;
        let lean = cofilter_graph::for_inference(model)?;
        lean.check_finite()?;
        let (drafts, output) = lower::drafts(&lean);
        let (places, arena_len) = places(&drafts, output.0);
        let value = |(id, shape): (usize, Shape)| Value { shape, place: places[id] };
        let step = |(i, draft): (usize, Draft)| Step {
            operands: draft.operands.into_iter().map(value).collect(),
            add: draft.add.map(value),
            result: value((i + 1, draft.shape)),
            nodes: draft.nodes,
            op: draft.op,
            tensors: draft.tensors,
            relu: draft.relu,
            macs: draft.macs,
        };
        let output = value(output);
        let steps = drafts.into_iter().enumerate().map(step).collect();
        Ok(Self { source: model.clone(), steps, output, arena_len })
    }

    /// The network as it was given.
    #[must_use]
    pub fn source(&self) -> &Model {
        &self.source
    }

    /// What is computed, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The result: in the logits, or in the images if there is no step.
    #[must_use]
    pub fn output(&self) -> Value {
        self.output
    }

    /// Elements of the arena for one image.
    #[must_use]
    pub fn arena_len(&self) -> usize {
        self.arena_len
    }
}

impl Step {
    /// Whether the result replaces the operand.
    #[must_use]
    pub fn in_place(&self) -> bool {
        self.operands.iter().any(|o| o.place == self.result.place)
    }
}

/// Place of every value (0 is the images, `i + 1` the result of step `i`) and the length of the arena.
fn places(drafts: &[Draft], output: usize) -> (Vec<Place>, usize) {
    let mut last_use: Vec<usize> = (0..=drafts.len()).map(|value| value.saturating_sub(1)).collect();
    for (i, draft) in drafts.iter().enumerate() {
        for (value, _) in draft.operands.iter().chain(&draft.add) {
            last_use[*value] = i;
        }
    }
    let mut lifetimes: Vec<Lifetime> = Vec::with_capacity(drafts.len());
    // The buffer of each value; none for the images and the output.
    let mut buffers: Vec<Option<usize>> = vec![None];
    for (i, draft) in drafts.iter().enumerate() {
        let (operand, result) = (draft.operands[0].0, i + 1);
        let dies = last_use[result];
        let reused = buffers[operand].filter(|_| matches!(draft.op, Op::Relu) && last_use[operand] == i);
        buffers.push(match reused {
            _ if result == output => None,
            Some(buffer) => {
                lifetimes[buffer].dies = dies;
                Some(buffer)
            }
            None => {
                lifetimes.push(Lifetime { born: i, dies, len: draft.shape.elements() });
                Some(lifetimes.len() - 1)
            }
        });
    }
    let (offsets, arena_len) = arena::place(&lifetimes);
    let place = |(value, buffer): (usize, Option<usize>)| match buffer {
        Some(buffer) => Place::Arena(offsets[buffer]),
        None if value == 0 => Place::Images,
        None => Place::Logits,
    };
    (buffers.into_iter().enumerate().map(place).collect(), arena_len)
}
