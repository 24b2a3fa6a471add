use cofilter_data::Augment;
use cofilter_force::Force;
use cofilter_train::{ForceRule, Multipliers, Recipe, Schedule};
use cofilter_zoo as zoo;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything of the experiment that is a choice.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    /// Images in a batch (the authors' solver).
    pub(crate) batch: usize,
    /// Iterations of the baseline, and again of each continued arm.
    pub(crate) train_iterations: u64,
    /// Iterations of fine-tuning after decomposition, and again after pruning.
    pub(crate) tune_iterations: u64,
    /// Iterations between two evaluations while fine-tuning.
    pub(crate) evaluate_every: u64,
    /// Iterations between two checkpoints.
    pub(crate) checkpoint_every: u64,
    /// Training images used; `None` is all.
    pub(crate) train_images: Option<usize>,
    /// Test images used; `None` is all.
    pub(crate) test_images: Option<usize>,
    /// Share of the squared singular values that a rank has to keep.
    pub(crate) energy: f64,
    /// Strength of the L1-norm force.
    pub(crate) strength_l1: f64,
    /// Strength of the L2-norm force.
    pub(crate) strength_l2: f64,
    /// Share of the weights that pruning sets to zero.
    pub(crate) sparsity: f64,
}

/// The published learning rate of every LeNet solver.
const LEARNING_RATE: f64 = 0.01;

impl Settings {
    /// The published length, for all of MNIST or Fashion-MNIST.
    #[must_use]
    pub(crate) fn published() -> Self {
        Self {
            batch: 64,
            train_iterations: 10_000,
            tune_iterations: 5_000,
            evaluate_every: 500,
            checkpoint_every: 1_000,
            train_images: None,
            test_images: None,
            energy: 0.95,
            strength_l1: 7e-5,
            strength_l2: 8e-5,
            sparsity: 0.8,
        }
    }

    /// A fifth of the published length, for the bundled digits.
    #[must_use]
    pub(crate) fn bundled() -> Self {
        Self {
            train_iterations: 2_000,
            tune_iterations: 1_000,
            evaluate_every: 100,
            strength_l1: 3.2e-4,
            strength_l2: 3e-4,
            ..Self::published()
        }
    }

    /// Long enough to walk the whole path, too short to mean anything.
    #[must_use]
    pub(crate) fn quick() -> Self {
        Self {
            train_iterations: 60,
            tune_iterations: 30,
            evaluate_every: 15,
            checkpoint_every: 10,
            train_images: Some(1_000),
            test_images: Some(300),
            ..Self::published()
        }
    }

    /// The baseline: `inv` with gamma 1e-4 and power 0.75 at 10,000 iterations (`lenet_solver`); shorter runs raise gamma
    /// so that the last rate is the same.
    #[must_use]
    pub(crate) fn baseline(&self, seed: u64) -> Recipe {
        #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^53")]
        let gamma = 1e-4 * 10_000.0 / self.train_iterations as f64;
        let schedule = Schedule::Inv { gamma, power: 0.75 };
        self.recipe(seed, self.train_iterations, schedule, None)
    }

    /// A continued arm: `multistep` with factor 0.9 at 50, 70, 80, 90 and 95 % (`lenet_multistep_solver`), with or
    /// without force on both convolutions.
    #[must_use]
    pub(crate) fn continued(&self, seed: u64, force: Option<(Force, f64)>) -> Recipe {
        let rule = force.map(|(force, strength)| ForceRule::new(force, strength, zoo::lenet::force_layers()));
        self.recipe(seed, self.train_iterations, multistep(self.train_iterations), rule)
    }

    /// Fine-tuning without force, the same schedule over fewer iterations.
    #[must_use]
    pub(crate) fn tuning(&self, seed: u64) -> Recipe {
        self.recipe(seed, self.tune_iterations, multistep(self.tune_iterations), None)
    }

    fn recipe(&self, seed: u64, iterations: u64, schedule: Schedule, force: Option<ForceRule>) -> Recipe {
        Recipe {
            iterations,
            batch: self.batch,
            seed,
            learning_rate: LEARNING_RATE,
            schedule,
            momentum: 0.9,
            weight_decay: 5e-4,
            force,
            multipliers: Multipliers::caffe(1.0),
            augment: Augment::default(),
            evaluate_every: self.evaluate_every,
            checkpoint_every: self.checkpoint_every,
            ..Recipe::default()
        }
    }
}

fn multistep(iterations: u64) -> Schedule {
    let at = [50, 70, 80, 90, 95].map(|percent| iterations * percent / 100).into();
    Schedule::MultiStep { at, gamma: 0.9 }
}

/// What the sweep multiplies the default strengths with.
pub(crate) const SWEEP: [f64; 5] = [0.2, 0.5, 1.0, 2.0, 5.0];

/// The continued arms: name and force.
#[must_use]
pub(crate) fn forces(settings: &Settings) -> BTreeMap<&'static str, Option<(Force, f64)>> {
    BTreeMap::from([
        ("control", None),
        ("force-l1", Some((Force::L1, settings.strength_l1))),
        ("force-l2", Some((Force::L2, settings.strength_l2))),
    ])
}
