use cofilter_data::Augment;
use cofilter_train::{Recipe, Schedule};
use serde::Serialize;

/// Everything of the experiment that is a choice.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    /// Networks, and the files of their weights.
    pub(crate) networks: Vec<(&'static str, &'static str)>,
    /// Of these the speed is studied.
    pub(crate) timed: &'static str,
    /// Training images that a decomposition looks at.
    pub(crate) images: usize,
    /// Shares of the energy that ranks keep, falling.
    pub(crate) energies: Vec<f64>,
    /// Times that the training images are seen again after decomposition.
    pub(crate) epochs: f64,
    /// Images of an update.
    pub(crate) batch: usize,
    /// Speedups that are asked for, and images of a run.
    pub(crate) targets: Vec<(f64, usize)>,
    /// Speedups of the Pareto front, with one image a run.
    pub(crate) front: Vec<f64>,
    /// Seconds of each measurement of two networks.
    pub(crate) seconds: f64,
    /// Test images; `None` is all.
    pub(crate) test_images: Option<usize>,
}

impl Settings {
    pub(crate) fn full() -> Self {
        Self {
            networks: vec![("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")],
            timed: "resnet56",
            images: 512,
            energies: vec![0.95, 0.9, 0.8],
            epochs: 5.0,
            batch: 128,
            targets: vec![(1.5, 1), (2.0, 1), (1.5, 32), (2.0, 32)],
            front: vec![1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
            seconds: 3.0,
            test_images: None,
        }
    }

    /// Long enough to walk the whole path, too short to mean anything.
    pub(crate) fn quick() -> Self {
        Self {
            networks: vec![("resnet20", "resnet20-12fca82f.th")],
            timed: "resnet20",
            images: 32,
            energies: vec![0.8],
            epochs: 0.02,
            targets: vec![(1.05, 1)],
            front: vec![1.02, 1.05],
            seconds: 0.2,
            test_images: Some(500),
            ..Self::full()
        }
    }

    /// Fine-tuning of a decomposed network: a tenth of the first rate of its training, falling to zero.
    pub(crate) fn tuning(&self, seed: u64, train_images: usize) -> Recipe {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count of updates"
        )]
        let iterations = (self.epochs * train_images as f64 / self.batch as f64).round() as u64;
        Recipe {
            iterations: iterations.max(1),
            batch: self.batch,
            seed,
            learning_rate: 0.01,
            schedule: Schedule::Cosine,
            weight_decay: 1e-4,
            augment: Augment { padding: 4, mirror: true },
            checkpoint_every: 200,
            ..Recipe::default()
        }
    }
}
