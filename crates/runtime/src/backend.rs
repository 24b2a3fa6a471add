use crate::Result;
use std::sync::Arc;

/// A program made ready for one device: immutable, shared by its sessions. The seam between the plan and a backend.
pub(crate) trait Executable: Send + Sync {
    /// One entry for each thing that is timed apart.
    fn steps(&self) -> Vec<StepInfo>;

    /// What a session needs.
    fn memory(&self) -> Memory;

    /// Memory to run in.
    fn session(self: Arc<Self>) -> Box<dyn State>;
}

/// The memory of one session.
pub(crate) trait State: Send {
    /// Computes the logits of `n` images; the session has checked every length. `times_us` has one element a step. After an error the
    /// logits are as they were.
    fn run(
        &mut self,
        n: usize,
        images: &[f32],
        logits: &mut [f32],
        times_us: Option<&mut [f64]>,
    ) -> Result<()>;
}

/// One step as a backend executes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// Names of the graph's nodes computed here, joined by `+`: `conv1+relu1`.
    pub nodes: String,
    /// What is computed and how: `conv2d 3x3`, `relu in place`.
    pub algorithm: String,
    /// Extents of the result for one image.
    pub result: cofilter_graph::Shape,
    /// Multiply-accumulate operations for one image.
    pub macs: usize,
    /// Images of a batch for which it runs before the steps after it do: the batch, unless several steps run for some images at a
    /// time.
    pub images: usize,
    /// Bytes of weights and biases as the backend keeps them: padded, transformed or rounded.
    pub weight_bytes: usize,
}

/// Bytes that a plan and one session of it hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights and biases as they are kept, shared by all sessions.
    pub weight_bytes: usize,
    /// Intermediate values of one session.
    pub arena_bytes: usize,
    /// Workspace of the kernels of one session.
    pub scratch_bytes: usize,
}

impl Memory {
    /// All of it: the most that a plan with one session holds at any time.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.weight_bytes + self.arena_bytes + self.scratch_bytes
    }
}
