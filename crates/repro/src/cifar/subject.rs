//! The two networks: where they begin, and how the authors train them (paper, sections 6.0 and 7).

use crate::options::{Experiment, Options, root};
use anyhow::{Result, bail, ensure};
use cofilter_data::{Augment, Dataset, mean_image, preprocessing};
use cofilter_force::{Force, Scaling};
use cofilter_formats::{StateDict, caffe};
use cofilter_graph::{Model, Preprocessing};
use cofilter_train::{ForceRule, Multiplier, Multipliers, Recipe, Rollback, Schedule};
use cofilter_zoo::{Config, Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// A network with its published recipes.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Of the experiment.
    pub(super) name: &'static str,
    /// For people.
    pub(super) title: &'static str,
    /// Where it begins: a file of trained weights, or nothing.
    start: Option<Start>,
    network: Network,
    /// The convolutions whose ranks are looked at, and which are decomposed.
    pub(super) layers: Vec<String>,
    /// Groups of `layers` by depth, by index: which come early and which late.
    pub(super) depths: Vec<Range<usize>>,
    solver: Solver,
    /// The authors' ranks at 95 % energy, without and with force, where they are known.
    pub(super) published: Option<[Vec<usize>; 2]>,
    /// Where the search for a strength begins at the published length, L1 and L2.
    strengths: [f64; 2],
    /// Whether strengths are fixed, or shares of the gradient's norm.
    scaling: Scaling,
    /// Where a layer's filters feel no force any more, if anywhere.
    target_spread: Option<f64>,
    /// Factors of the force at the last three of `depths`.
    factors: [f64; 3],
    /// Points of accuracy that the force may cost in that search.
    pub(super) max_drop: f64,
    /// Times that the published schedules were shortened to.
    pub(super) scale: f64,
    /// Iterations of a fine-tuning, if not by the same times.
    pub(super) tuning: Option<u64>,
    /// Images of an update of the authors, if there are others here.
    published_batch: Option<usize>,
}

#[derive(Clone, Debug)]
enum Start {
    /// A state dict of PyTorch.
    Torch(&'static str),
    /// A description and its snapshot.
    Caffe(&'static str, &'static str),
}

/// What all recipes of a network share.
#[derive(Clone, Debug, Serialize)]
struct Solver {
    batch: usize,
    weight_decay: f64,
    multipliers: Multipliers,
    augment: Augment,
    baseline: Job,
    continued: Job,
    tuning: Job,
}

/// A published schedule: `multistep` with factor 0.1.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Job {
    /// Rate of the first iteration.
    pub(super) rate: f64,
    /// Iterations.
    pub(super) iterations: u64,
    /// Iterations of the drops.
    pub(super) steps: [u64; 2],
}

impl Job {
    /// Share of it that so many iterations are.
    #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^52")]
    fn share(&self, iterations: u64) -> f64 {
        iterations as f64 / self.iterations as f64
    }

    /// This share of it, all steps included.
    fn shortened(&self, share: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "iterations are far below 2^52"
        )]
        let shortened = |n: u64| (n as f64 * share).round() as u64;
        let iterations = shortened(self.iterations).max(FEWEST);
        let [first, second] = self.steps.map(|step| shortened(step).max(1));
        Self { iterations, steps: [first, second.max(first + 1)], ..self.clone() }
    }
}

/// Evaluations of a run.
pub(super) const EVALUATIONS: u64 = 10;
/// Part of the iterations over which a force rises.
const WARM_UP: u64 = 20;
/// Share of the gradient's norm that the search for a strength begins with.
const SHARE: f64 = 0.1;
/// Fewest iterations of a run, however short the time.
const FEWEST: u64 = 10;

impl Subject {
    /// The network of an experiment.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let mut subject = match options.experiment {
            Experiment::Convnet => Self::convnet(options.from_scratch)?,
            Experiment::Resnet20 => Self::resnet20(options.from_scratch)?,
            other => bail!("{}: no experiment of this kind", other.name()),
        };
        if let Some(batch) = options.batch {
            (subject.published_batch, subject.solver.batch) = (Some(subject.solver.batch), batch);
        }
        if let Some(rate) = options.rate {
            subject.solver.continued.rate = rate;
        }
        if let Some(&[a, b, c]) = options.factors.as_deref() {
            subject.factors = [a, b, c];
        }
        let scaling = if options.adaptive { Scaling::Adaptive } else { Scaling::Fixed };
        Ok(Self { scaling, target_spread: options.target_spread, ..subject })
    }

    fn convnet(from_scratch: bool) -> Result<Self> {
        let network = Network::by_name("convnet", &Config::default())?;
        let multipliers = Multipliers {
            biases: Multiplier::new(2.0, 1.0),
            tensors: [
                ("conv3.bias".to_owned(), Multiplier::new(1.0, 1.0)),
                ("ip1.weight".to_owned(), Multiplier::new(1.0, 250.0)),
                ("ip1.bias".to_owned(), Multiplier::new(2.0, 0.0)),
            ]
            .into(),
            ..Multipliers::default()
        };
        Ok(Self {
            name: "convnet",
            title: "ConvNet",
            start: (!from_scratch)
                .then_some(Start::Caffe("cifar10_full.prototxt", "cifar10_full_iter_70000.v1.caffemodel")),
            layers: network.force_layers.clone(),
            depths: (0..network.force_layers.len()).map(|i| i..i + 1).collect(),
            network,
            solver: Solver {
                batch: 100,
                weight_decay: 0.004,
                multipliers,
                augment: Augment::default(),
                baseline: Job { rate: 0.001, iterations: 240_000, steps: [120_000, 200_000] },
                continued: Job { rate: 0.001, iterations: 240_000, steps: [200_000, 220_000] },
                tuning: Job { rate: 0.001, iterations: 80_000, steps: [30_000, 60_000] },
            },
            published: None,
            // The example in the authors' readme is 5e-5, L2.
            strengths: [5e-5, 5e-5],
            scaling: Scaling::Fixed,
            target_spread: None,
            factors: [1.0; 3],
            max_drop: 0.0,
            scale: 1.0,
            tuning: None,
            published_batch: None,
        })
    }

    pub(super) fn resnet20(from_scratch: bool) -> Result<Self> {
        let name = if from_scratch { "resnet20_projection" } else { "resnet20" };
        let network = Network::by_name(name, &Config::default())?;
        let layers: Vec<String> =
            std::iter::once("conv1".to_owned()).chain(network.force_layers.iter().cloned()).collect();
        let multipliers = if from_scratch { projection_multipliers() } else { Multipliers::default() };
        let job = Job { rate: 0.1, iterations: 64_000, steps: [32_000, 48_000] };
        Ok(Self {
            name: "resnet20",
            title: "ResNet-20",
            start: (!from_scratch).then_some(Start::Torch("resnet20-12fca82f.th")),
            depths: vec![0..1, 1..7, 7..13, 13..19],
            layers,
            network,
            solver: Solver {
                batch: 256,
                weight_decay: 1e-4,
                multipliers,
                augment: Augment { padding: 4, mirror: true },
                baseline: job.clone(),
                continued: job.clone(),
                tuning: Job { rate: 0.01, ..job },
            },
            published: Some(figure_5()?),
            // A filter of the last layers, pulled by 64 that point anywhere, turns by about a radian at the first rate.
            strengths: [6e-6, 6e-6],
            scaling: Scaling::Fixed,
            target_spread: None,
            factors: [1.0; 3],
            max_drop: 0.75,
            scale: 1.0,
            tuning: None,
            published_batch: None,
        })
    }

    /// Whether the baseline is trained here.
    pub(super) fn has_no_weights(&self) -> bool {
        self.start.is_none()
    }

    /// Whether a pair of this rank has fewer weights, and so operations, than the layer.
    pub(super) fn is_cheaper(&self, layer: &str, rank: usize) -> Result<bool> {
        let id = self.network.graph.find(layer)?;
        let slots = self.network.graph.slots(id);
        let [filters, len] = [slots[0].dims[0], slots[0].dims[1..].iter().product()];
        Ok(rank * (filters + len) < filters * len)
    }

    /// What the runs of two seeds do not share.
    pub(super) fn what_seeds_vary(&self) -> String {
        let augmentation = if self.solver.augment == Augment::default() { "" } else { " and augmentation" };
        let baseline = if self.has_no_weights() {
            ", and in the baseline"
        } else {
            "; the baseline is the same network"
        };
        format!("the order of images{augmentation}{baseline}")
    }

    fn has_factors(&self) -> bool {
        self.factors.iter().any(|factor| factor.total_cmp(&1.0).is_ne())
    }

    /// How the force differs from the authors', for behind its name.
    pub(super) fn manner(&self) -> String {
        let mut manner = Vec::new();
        if self.has_factors() {
            let [a, b, c] = self.factors;
            let layers = if self.name == "convnet" { "conv1, conv2, conv3" } else { "16, 32, 64 filters" };
            manner.push(format!("{a}, {b}, {c} times its strength on {layers}"));
        }
        if let Some(target) = self.target_spread {
            manner.push(format!("none from a spread of {target} on"));
        }
        if manner.is_empty() { String::new() } else { format!(" ({})", manner.join("; ")) }
    }

    /// Where this is not what the authors did, or what they did is not known.
    pub(super) fn deviations(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.scaling == Scaling::Adaptive {
            notes.push(
                "The strength of a force is its share of the gradient's norm, layer by layer and update by update, as the authors' solver \
                 offers; which of their results were made so is not known."
                    .into(),
            );
        }
        if let Some(target) = self.target_spread {
            notes.push(format!(
                "The spread of a layer is the share of its filters' energy outside their mean direction, at least what rank 1 loses. From \
                 twice {target} down the filters feel less of the force, at {target} none (target_spread). The authors' force goes on."
            ));
        }
        if self.has_factors() {
            notes.push("The authors' force is equally strong on all layers.".into());
        }
        if let Some(batch) = self.published_batch {
            notes.push(format!("An update is of {} images, the authors' of {batch}.", self.solver.batch));
        }
        let Solver { baseline, continued, tuning, .. } = &self.solver;
        if self.name == "convnet" && continued.rate.total_cmp(&baseline.rate).is_ne() {
            notes.push(format!(
                "The learning rate with and without force is {}, the authors' {}.",
                continued.rate, baseline.rate
            ));
        }
        if self.name == "resnet20" {
            notes.push(format!(
                "The authors' learning rates with force and for fine-tuning are not known: here {} and {}; their baseline has {}.",
                continued.rate, tuning.rate, baseline.rate
            ));
        }
        match &self.start {
            None => {}
            Some(Start::Torch(_)) => notes.push(
                "The trained weights are those of https://github.com/akamaster/pytorch_resnet_cifar10: shortcuts without weights, no \
                 bias in the first convolution, inputs scaled by mean and deviation of each colour, the same factors for all parameters. \
                 The authors' network has 1x1 convolutions as shortcuts and subtracts a mean image; --from-scratch trains that one."
                    .into(),
            ),
            Some(Start::Caffe(..)) => notes.push(
                "The trained weights are a snapshot of Caffe's cifar10_full after 70,000 iterations, not the authors' own after 240,000."
                    .into(),
            ),
        }
        notes
    }

    /// Name of the network in artifacts.
    pub(super) fn network(&self) -> &'static str {
        match (self.name, self.has_no_weights()) {
            ("resnet20", true) => "resnet20_projection",
            (name, _) => name,
        }
    }

    /// Images of an update.
    pub(super) fn batch(&self) -> usize {
        self.solver.batch
    }

    /// How images become inputs, with the mean image of these.
    pub(super) fn preprocessing(&self, train: &Dataset) -> Preprocessing {
        let of = match &self.start {
            Some(Start::Torch(_)) => preprocessing::torchvision_cifar(),
            Some(Start::Caffe(..)) | None => preprocessing::caffe_cifar(mean_image(train)),
        };
        Preprocessing { classes: train.classes().to_vec(), ..of }
    }

    /// The network that everything begins with: trained weights, or drawn ones.
    pub(super) fn model(&self, options: &Options, seed: u64) -> Result<Model> {
        let folder = options.weights.clone().unwrap_or_else(|| root().join("../shared/data/weights"));
        let found = |path: std::path::PathBuf| {
            ensure!(
                path.is_file(),
                "{}: no such file; say with --weights where the trained networks lie, or train one with --from-scratch",
                path.display()
            );
            Ok(path)
        };
        match &self.start {
            None => Ok(self.network.model(seed)?),
            Some(Start::Torch(file)) => {
                let graph = self.network.graph.clone();
                Ok(StateDict::read(found(folder.join(file))?)?.into_model(self.name, graph)?)
            }
            Some(Start::Caffe(description, weights)) => {
                let [description, weights] =
                    [description, weights].map(|file| folder.join("caffe").join(file));
                let imported = caffe::import(&found(description)?, &found(weights)?, None)?;
                Ok(imported.model)
            }
        }
    }

    /// From nothing.
    pub(super) fn baseline(&self, seed: u64) -> Recipe {
        self.recipe(self.solver.baseline.shortened(self.scale), seed)
    }

    /// Trained further, with or without a force; a negative strength repels.
    pub(super) fn continued(&self, seed: u64, force: Option<(Force, f64)>) -> Recipe {
        let recipe = self.recipe(self.solver.continued.shortened(self.scale), seed);
        let rule = |(force, strength)| ForceRule {
            warm_up: recipe.iterations / WARM_UP,
            rollback: Some(Rollback::default()),
            scaling: self.scaling,
            // Repulsion has no end.
            target_spread: self.target_spread.filter(|_| strength > 0.0),
            multipliers: self.factors_of_layers(),
            ..ForceRule::new(force, strength, [""; 0])
        };
        let force = force.map(rule);
        Recipe { force, spectra: self.layers.clone(), ..recipe }
    }

    /// By layer; a layer without force is none of those that feel it.
    fn factors_of_layers(&self) -> BTreeMap<String, f64> {
        let depths = self.depths.iter().rev().zip(self.factors.iter().rev());
        let forced = depths.filter(|(_, factor)| **factor != 0.0);
        let of_depth = |(depth, factor): (&Range<usize>, &f64)| {
            let factor = *factor;
            self.layers[depth.clone()].iter().map(move |layer| (layer.clone(), factor))
        };
        forced.flat_map(of_depth).collect()
    }

    /// Fine-tuning of a decomposed network: what was said of a bias holds for the same bias behind the basis.
    pub(super) fn tuning(&self, seed: u64, small: &Model) -> Recipe {
        let mut recipe = self.recipe(self.tuning_job(), seed);
        let rename = |(name, multiplier): (String, Multiplier)| match name.strip_suffix(".bias") {
            Some(layer) if small.graph().find(layer).is_err() => (format!("{layer}_linear.bias"), multiplier),
            _ => (name, multiplier),
        };
        let tensors = std::mem::take(&mut recipe.multipliers.tensors);
        recipe.multipliers.tensors = tensors.into_iter().map(rename).collect();
        recipe
    }

    /// Iterations of fine-tuning.
    pub(super) fn tuning_iterations(&self) -> u64 {
        self.tuning_job().iterations
    }

    fn tuning_job(&self) -> Job {
        let job = &self.solver.tuning;
        job.shortened(self.tuning.map_or(self.scale, |iterations| job.share(iterations)))
    }

    fn recipe(&self, job: Job, seed: u64) -> Recipe {
        let Solver { batch, weight_decay, ref multipliers, augment, .. } = self.solver;
        let Job { rate, iterations, steps } = job;
        Recipe {
            iterations,
            batch,
            seed,
            learning_rate: rate,
            schedule: Schedule::MultiStep { at: steps.into(), gamma: 0.1 },
            momentum: 0.9,
            weight_decay,
            multipliers: multipliers.clone(),
            augment,
            evaluate_every: (iterations / EVALUATIONS).max(1),
            checkpoint_every: (iterations / 40).clamp(5, 500),
            ..Recipe::default()
        }
    }

    /// Share of the published iterations with force that so many are.
    pub(super) fn share(&self, iterations: u64) -> f64 {
        self.solver.continued.share(iterations)
    }

    /// Where the search for a strength begins, L1 and L2: filters turn by strength times rate and iterations, so a shorter run takes
    /// more, and a slower one too.
    pub(super) fn first_strengths(&self) -> [f64; 2] {
        if self.scaling == Scaling::Adaptive {
            return [SHARE; 2];
        }
        let continued = &self.solver.continued;
        let share = continued.share(continued.shortened(self.scale).iterations);
        // The published rate with force is that of the baseline.
        let slower = self.solver.baseline.rate / continued.rate;
        self.strengths.map(|strength| strength / share * slower)
    }

    /// Name of each kind of run, its schedule as published and as it is here.
    pub(super) fn jobs(&self) -> [(&'static str, &Job, Job); 3] {
        let Solver { baseline, continued, tuning, .. } = &self.solver;
        [
            ("baseline", baseline, baseline.shortened(self.scale)),
            ("continued", continued, continued.shortened(self.scale)),
            ("fine-tuning", tuning, self.tuning_job()),
        ]
    }
}

/// The ranks of the paper's Fig. 5, without and with force.
fn figure_5() -> Result<[Vec<usize>; 2]> {
    #[derive(Deserialize)]
    struct Figure {
        rows: [Row; 2],
    }
    #[derive(Deserialize)]
    struct Row {
        ranks: Vec<usize>,
    }
    let figure: Figure = serde_json::from_str(include_str!("../../../../fixtures/paper/figure5.json"))?;
    Ok(figure.rows.map(|row| row.ranks))
}

/// Biases and the shifts of batch normalisations learn twice as fast, and of these only the first convolution's decays.
fn projection_multipliers() -> Multipliers {
    let tensors = [("conv1.bias".to_owned(), Multiplier::new(2.0, 1.0))].into();
    Multipliers { biases: Multiplier::new(2.0, 0.0), tensors, ..Multipliers::default() }
}

#[cfg(test)]
mod tests;
