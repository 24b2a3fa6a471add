use crate::{Clip, Distillation, Error, Freeze, GroupLasso, Multipliers, Prune, Result, Rollback, Schedule};
use cofilter_data::Augment;
use cofilter_force::{Direction, Force, Rule, Scaling};
use cofilter_graph::{Graph, Op};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a network is trained, as plain data.
///
/// Each iteration does, as Caffe's solver (paper, section 1.4): gradient of the weighted sum of the heads' cross
/// entropies, clipping by the global norm, weight decay, force, `V = momentum V + rate * gradient`, `W = W - V`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Updates.
    pub iterations: u64,
    /// Images an update sees.
    pub batch: usize,
    /// Seed of order, augmentation and dropout.
    pub seed: u64,
    /// Base learning rate.
    pub learning_rate: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Share of the last step in the next one, in `[0, 1)`.
    pub momentum: f64,
    /// Weight decay, multiplied by each tensor's own factor.
    pub weight_decay: f64,
    /// What decays.
    pub decay: Decay,
    /// Force regularisation, if any.
    pub force: Option<ForceRule>,
    /// Group lassos, each of its own layers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lasso: Vec<GroupLasso>,
    /// Weights of convolutions and fully connected layers that are smaller than this after an update become 0, the authors' 1e-4 for
    /// sparse training (paper, section 5); momentum stays. 0: none.
    #[serde(skip_serializing_if = "is_none")]
    pub threshold: f64,
    /// Pruning by magnitude on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<Prune>,
    /// Which zeros of the network that the training begins with stay zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// Factors of learning rate and decay.
    pub multipliers: Multipliers,
    /// Largest Euclidean norm of all gradients together.
    pub clip_gradients: Option<f64>,
    /// Weight of each output's loss, main first; empty: 1 for the main one, 0.3 for the auxiliary ones.
    pub output_weights: Vec<f64>,
    /// Learning from a teacher, [`crate::Fit::teacher`], as well as from labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation: Option<Distillation>,
    /// Rank clipping of a decomposed network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// Random crops and mirroring.
    pub augment: Augment,
    /// Iterations between two evaluations on the test set, which also happens at the end; 0: never.
    pub evaluate_every: u64,
    /// Iterations between two checkpoints, one is also written at the end; 0: only then.
    pub checkpoint_every: u64,
    /// Iterations between two lines of history; 0: only at evaluations.
    pub record_every: u64,
    /// Convolutions and fully connected layers whose spectrum each evaluation records.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spectra: Vec<String>,
    /// Largest error of a convolution's result, relative to its largest one, that a faster algorithm may add to the rounding of a plain
    /// sum, forward and backward, on CPU: Winograd's is used where the error that is to be expected of it is below, and 0 rules it
    /// out.
    pub tolerance: f32,
}

/// [`Recipe::tolerance`], unless a recipe says otherwise.
pub(crate) const TOLERANCE: f32 = 1e-4;

impl Default for Recipe {
    fn default() -> Self {
        Self {
            iterations: 1000,
            batch: 64,
            seed: 0,
            learning_rate: 0.01,
            schedule: Schedule::Fixed,
            momentum: 0.9,
            weight_decay: 5e-4,
            decay: Decay::L2,
            force: None,
            lasso: Vec::new(),
            threshold: 0.0,
            prune: None,
            freeze: None,
            multipliers: Multipliers::default(),
            clip_gradients: None,
            output_weights: Vec::new(),
            distillation: None,
            clip: None,
            augment: Augment::default(),
            evaluate_every: 0,
            checkpoint_every: 0,
            record_every: 100,
            spectra: Vec::new(),
            tolerance: TOLERANCE,
        }
    }
}

/// What is added to the gradient for the size of a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// `decay * w`.
    #[default]
    L2,
    /// `decay * sign(w)`.
    L1,
}

/// Force regularisation of chosen nodes (paper, sections 1.4 and 2.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForceRule {
    /// Dependence on distance.
    pub force: Force,
    /// lambda_s; negative repels.
    pub strength: f64,
    /// Which elements take part.
    #[serde(default)]
    pub direction: Direction,
    /// Whether the strength is fixed or relative to the gradient.
    #[serde(default)]
    pub scaling: Scaling,
    /// Iterations over which the strength rises linearly from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warm_up: u64,
    /// Iteration from which on there is no force.
    #[serde(default)]
    pub stop_iteration: Option<u64>,
    /// [`cofilter_force::spread`] of a layer at which its filters feel no force any more. From twice as much down they feel only
    /// [`cofilter_force::remaining`] of it, so a layer comes to rest where that much and the data are even, somewhat above the target.
    /// Rank 1 at 95 % energy needs a rest at 0.05 or less. Without it the force goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_spread: Option<f64>,
    /// What is done where the force was too strong; without it the training fails if a number is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// Factor of each regularised node (convolutions and fully connected layers), by name; others feel none.
    pub multipliers: BTreeMap<String, f64>,
    /// Forces inside each group of a grouped convolution only; the authors' code mixes all filters.
    #[serde(default)]
    pub grouped: bool,
}

impl ForceRule {
    /// A fixed force on these nodes, in all directions, to the end.
    pub fn new<S: Into<String>>(force: Force, strength: f64, nodes: impl IntoIterator<Item = S>) -> Self {
        Self {
            force,
            strength,
            direction: Direction::All,
            scaling: Scaling::Fixed,
            warm_up: 0,
            stop_iteration: None,
            target_spread: None,
            rollback: None,
            multipliers: nodes.into_iter().map(|n| (n.into(), 1.0)).collect(),
            grouped: false,
        }
    }

    /// Strength in an iteration, counted from 0: `strength * min(1, (iteration + 1) / warm_up)`, 0 from `stop_iteration` on. Rolling
    /// back lowers it further, and in a layer near its target so does `target_spread`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^52")]
    pub fn strength_at(&self, iteration: u64) -> f64 {
        if cofilter_force::stopped(iteration, self.stop_iteration) {
            return 0.0;
        }
        let rising = iteration < self.warm_up;
        if rising { self.strength * (iteration + 1) as f64 / self.warm_up as f64 } else { self.strength }
    }

    pub(crate) fn rule(&self, strength: f64) -> Rule {
        Rule { force: self.force, strength, direction: self.direction, scaling: self.scaling }
    }

    fn check(&self, graph: &Graph, checkpoint_every: u64) -> Result<()> {
        if !self.strength.is_finite() {
            return Err(Error::Recipe(format!("force: strength is {}", self.strength)));
        }
        if let Some(target) = self.target_spread {
            if !(target > 0.0 && target < 1.0) {
                return Err(Error::Recipe(format!(
                    "force: expected a target_spread above 0 and below 1, found {target}"
                )));
            }
            let repels = |(_, multiplier): &(&String, &f64)| self.strength * **multiplier < 0.0;
            if let Some((name, multiplier)) = self.multipliers.iter().find(repels) {
                return Err(Error::Recipe(format!(
                    "force: a target_spread is of a force that attracts, `{name}` has a strength of {} and a multiplier of {multiplier}",
                    self.strength
                )));
            }
        }
        if let Some(problem) = self.rollback.and_then(|of| of.problem(checkpoint_every)) {
            return Err(Error::Recipe(format!("force: {problem}")));
        }
        for (name, multiplier) in &self.multipliers {
            has_filters(graph, "force", name)?;
            if !multiplier.is_finite() {
                return Err(Error::Recipe(format!("force: multiplier of `{name}` is {multiplier}")));
            }
        }
        Ok(())
    }
}

/// Refuses a node that is neither a convolution nor fully connected.
pub(crate) fn has_filters(graph: &Graph, what: &str, name: &str) -> Result<()> {
    let id = graph.find(name).map_err(|e| Error::Recipe(format!("{what}: {e}")))?;
    match graph.node(id).op() {
        Op::Conv2d(_) | Op::Linear(_) => Ok(()),
        op => Err(Error::Recipe(format!("{what}: node `{name}` is {}, which has no filters", op.kind()))),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_none(threshold: &f64) -> bool {
    *threshold == 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Recipe {
    /// Refuses values that make no sense for this network.
    ///
    /// # Errors
    /// [`Error::Recipe`] for the first one.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let bad = |reason: String| Err(Error::Recipe(reason));
        if self.iterations == 0 || self.batch == 0 {
            return bad(format!("iterations {} and batch {} must be above 0", self.iterations, self.batch));
        }
        let numbers = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("threshold", self.threshold),
        ];
        for (name, value) in numbers {
            if !value.is_finite() || value < 0.0 {
                return bad(format!("{name}: expected a number from 0 up, found {value}"));
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return bad(format!("momentum: expected a number in [0, 1), found {}", self.momentum));
        }
        if self.tolerance.is_nan() || self.tolerance < 0.0 {
            return bad(format!("tolerance: expected a number from 0 up, found {}", self.tolerance));
        }
        if let Some(clip) = self.clip_gradients.filter(|c| !c.is_finite() || *c <= 0.0) {
            return bad(format!("clip_gradients: expected a number above 0, found {clip}"));
        }
        if let Some(problem) = self.schedule.problem() {
            return bad(problem);
        }
        if let Some(problem) = self.distillation.and_then(|of| of.problem()) {
            return bad(problem);
        }
        if let Some(clip) = &self.clip {
            clip.check(graph, self.iterations)?;
        }
        let heads = graph.outputs().len();
        if !self.output_weights.is_empty() && self.output_weights.len() != heads {
            return bad(format!("output_weights: expected {heads}, found {}", self.output_weights.len()));
        }
        if let Some(weight) = self.output_weights.iter().find(|w| !w.is_finite()) {
            return bad(format!("output_weights: found {weight}"));
        }
        self.multipliers.resolve(graph)?;
        self.spectra.iter().try_for_each(|name| has_filters(graph, "spectra", name))?;
        if self.clip.is_some() && !self.spectra.is_empty() {
            return bad("spectra: clipped layers change, they have no spectra to follow".into());
        }
        self.lasso.iter().try_for_each(|lasso| lasso.check(graph))?;
        if let Some(prune) = &self.prune {
            prune.check(graph, self.iterations)?;
            if self.freeze.is_some() {
                return bad("prune: it keeps its zeros anyway, `freeze` beside it makes no sense".into());
            }
            if self.clip.is_some() {
                return bad("prune: zeros are of the ranks that the network has, which `clip` changes".into());
            }
        }
        let Some(force) = &self.force else { return Ok(()) };
        if force.rollback.is_some() && self.distillation.is_some() {
            return bad(
                "force: rollback looks at the loss of the labels alone, it does not go with distillation"
                    .into(),
            );
        }
        force.check(graph, self.checkpoint_every)
    }

    /// Whether it makes weights 0.
    pub(crate) fn is_sparse(&self) -> bool {
        self.prune.is_some() || !self.lasso.is_empty() || self.threshold > 0.0
    }

    /// Learning rate of an iteration, counted from 0.
    #[must_use]
    pub fn rate(&self, iteration: u64) -> f64 {
        self.schedule.rate(self.learning_rate, iteration, self.iterations)
    }

    /// Weight of each head's loss.
    pub(crate) fn head_weights(&self, heads: usize) -> Vec<f64> {
        if self.output_weights.is_empty() {
            (0..heads).map(|h| if h == 0 { 1.0 } else { 0.3 }).collect()
        } else {
            self.output_weights.clone()
        }
    }
}
