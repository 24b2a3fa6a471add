use crate::{Error, Result, Step};
use serde::{Deserialize, Serialize};

/// What a training does where its force was too strong: it goes back to its last checkpoint and pulls less from there on.
///
/// It was too strong where a number is not finite, and where the network forgot what it knew: the cross entropy of the main head,
/// averaged over about the last twenty iterations before a checkpoint, is not below that of guessing, the logarithm of the number
/// of classes, after it was well below; or is ten times that of guessing in a network that has not learnt yet.
///
/// The checkpoint is one in memory, every [`crate::Recipe::checkpoint_every`] iterations, and in the folder if there is one. A run that
/// is stopped in between goes on from there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rollback {
    /// What the strength is multiplied with each time, in `(0, 1)`.
    pub factor: f64,
    /// How often at most; the training fails the next time.
    pub times: u32,
}

impl Default for Rollback {
    fn default() -> Self {
        Self { factor: 0.5, times: 5 }
    }
}

impl Rollback {
    /// What is wrong with it, if anything.
    pub(crate) fn problem(self, checkpoint_every: u64) -> Option<String> {
        let Self { factor, times } = self;
        if !(factor > 0.0 && factor < 1.0) {
            return Some(format!("rollback: expected a factor in (0, 1), found {factor}"));
        }
        if times == 0 {
            return Some("rollback: expected 1 or more times, found 0".into());
        }
        (checkpoint_every == 0).then(|| "rollback: there are no checkpoints, `checkpoint_every` is 0".into())
    }
}

/// Share of the entropy of guessing below which a network has learnt something.
const LEARNT: f64 = 0.9;

/// Multiple of the entropy of guessing that is no beginning either.
const FAR: f64 = 10.0;

/// Share of the mean loss that an iteration leaves as it was.
const KEEP: f64 = 0.95;

/// What a network knows, by the losses since the last checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Whether it was well below guessing.
    pub(crate) learnt: bool,
    /// Moving mean.
    loss: Option<f64>,
}

impl Memory {
    /// As it is right after a checkpoint.
    pub(crate) fn new(learnt: bool) -> Self {
        Self { learnt, loss: None }
    }

    /// Takes a step into account. The loss of the very first one is that of the network that the training begins with.
    pub(crate) fn add(&mut self, step: &Step, classes: usize) {
        let loss = step.losses[0];
        self.loss = Some(self.loss.map_or(loss, |mean| KEEP * mean + (1.0 - KEEP) * loss));
        self.learnt |= step.iteration == 0 && loss < LEARNT * guessing(classes);
    }

    /// Ends the interval at a checkpoint.
    ///
    /// # Errors
    /// [`Error::Forgotten`].
    pub(crate) fn close(&mut self, iteration: u64, classes: usize) -> Result<()> {
        let loss = self.loss.unwrap_or(0.0);
        let limit = if self.learnt { 1.0 } else { FAR };
        if loss >= limit * guessing(classes) {
            return Err(Error::Forgotten { iteration, loss, guessing: guessing(classes) });
        }
        *self = Self::new(self.learnt || loss < LEARNT * guessing(classes));
        Ok(())
    }
}

/// Cross entropy of a network that gives every class the same probability.
#[expect(clippy::cast_precision_loss, reason = "a count of classes")]
fn guessing(classes: usize) -> f64 {
    (classes as f64).ln()
}
