use crate::lower;
use crate::{Density, Result};
use cofilter_graph::{Array, Model, Op, Shape};

/// A network lowered for execution, the same for every device: inference passes applied, element-wise followers merged
/// into the step before them. Where values lie is the backend's to decide.
#[derive(Clone, Debug)]
pub struct Program {
    input: Shape,
    steps: Vec<Step>,
    output: Value,
}

/// One thing to compute: `relu?(op(operands) + add?)`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step {
    /// Names of the graph's nodes computed here, in order: `["conv1", "relu1"]`.
    pub nodes: Vec<String>,
    /// The operation before `add` and `relu`.
    pub op: Op,
    /// Its tensors, in slot order. A compiled plan has packed them and keeps none.
    pub tensors: Vec<Array>,
    /// What it reads.
    pub operands: Vec<Value>,
    /// What is added to its result, of the same shape.
    pub add: Option<Value>,
    /// Whether the sum is rectified.
    pub relu: bool,
    /// What is written.
    pub result: Value,
    /// Multiply-accumulate operations for one image, those with weights of zero too.
    pub macs: usize,
    /// How much of its weights is there.
    pub density: Density,
}

/// A value that a step reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// 0 is the images, `i + 1` the result of step `i`.
    pub id: usize,
    /// Extents for one image, as this use sees them: flattening is only another view.
    pub shape: Shape,
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
        let (steps, output) = lower::steps(&lean);
        Ok(Self { input: model.graph().input_shape(), steps, output })
    }

    /// Without the tensors, which are most of its bytes.
    pub(crate) fn without_tensors(mut self) -> Self {
        for step in &mut self.steps {
            step.tensors = Vec::new();
        }
        self
    }

    /// Extents of an image.
    #[must_use]
    pub fn input(&self) -> Shape {
        self.input
    }

    /// What is computed, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The result; the images themselves if there is no step.
    #[must_use]
    pub fn output(&self) -> Value {
        self.output
    }
}
