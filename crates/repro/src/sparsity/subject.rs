//! The networks, and every way in which each is made smaller.

use crate::cifar;
use crate::decompose::settings::Settings as Decomposed;
use crate::lenet::settings::Settings as Digits;
use crate::options::Options;
use crate::pipeline::Pipeline;
use anyhow::{Result, ensure};
use cofilter_data::{Split, preprocessing};
use cofilter_graph::{Graph, Model, Op, Preprocessing};
use cofilter_sparsity::{Grouping, Pruning};
use cofilter_train::{Freeze, GroupLasso, Prune, Recipe, Schedule};
use cofilter_zoo as zoo;
use std::path::Path;

/// How weights become zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    /// They do not.
    Dense,
    /// By magnitude on the way, all layers by one threshold, down to this share of the weights.
    Pruned(f64),
    /// Structured sparsity learning (Wen et al. 2016): a group lasso of this strength, then what is zero stays.
    Structured(f64),
}

/// A network that is made smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Small {
    /// Share of the energy that its layers are decomposed at, if they are.
    pub(super) energy: Option<f64>,
    /// How its weights become zero.
    pub(super) way: Way,
}

impl Small {
    /// Name of the arm.
    pub(super) fn name(self) -> String {
        let base = self.energy.map(|energy| format!("low-rank-{:.0}", 100.0 * energy));
        let way = match self.way {
            Way::Dense => None,
            Way::Pruned(density) => Some(format!("pruned-{:.0}", 100.0 * density)),
            Way::Structured(strength) => Some(format!("ssl-{strength}")),
        };
        let parts: Vec<String> = base.into_iter().chain(way).collect();
        if parts.is_empty() { "dense".into() } else { parts.join("-") }
    }

    /// Which of the compared kinds it is.
    pub(super) fn kind(self) -> &'static str {
        match (self.energy, self.way) {
            (None, Way::Dense) => "dense",
            (None, Way::Pruned(_)) => "pruned",
            (None, Way::Structured(_)) => "SSL",
            (Some(_), Way::Dense) => "low rank",
            (Some(_), Way::Pruned(_)) => "low rank + pruned",
            (Some(_), Way::Structured(_)) => "low rank + SSL",
        }
    }
}

/// A network with its data.
pub(super) struct Subject {
    /// Name, that its arms begin with.
    pub(super) name: &'static str,
    pub(super) data: Split,
    pub(super) preprocessing: Preprocessing,
    /// Fine-tuning, the same for all.
    recipe: Recipe,
    /// What it is made into.
    pub(super) all: Vec<Small>,
}

fn ways(energies: &[f64], pruned: &[f64], structured: &[f64], both: &[(f64, Way)]) -> Vec<Small> {
    let small = |energy, way| Small { energy, way };
    let mut all = vec![small(None, Way::Dense)];
    all.extend(pruned.iter().map(|density| small(None, Way::Pruned(*density))));
    all.extend(structured.iter().map(|strength| small(None, Way::Structured(*strength))));
    all.extend(energies.iter().map(|energy| small(Some(*energy), Way::Dense)));
    all.extend(both.iter().map(|(energy, way)| small(Some(*energy), *way)));
    all
}

impl Subject {
    /// LeNet on the digits of the repository, trained here.
    pub(super) fn lenet(options: &Options, folder: &Path) -> Result<Self> {
        let mut data = cofilter_data::open(folder)?;
        let settings = if options.quick { Digits::quick() } else { Digits::bundled() };
        if let Some(n) = settings.train_images {
            data.train = data.train.subset(0..n.min(data.train.len()));
        }
        if let Some(n) = settings.test_images {
            data.test = data.test.subset(0..n.min(data.test.len()));
        }
        let both = [(0.95, 0.3), (0.95, 0.1), (0.95, 0.05), (0.8, 0.1), (0.8, 0.05)];
        let mut both: Vec<(f64, Way)> = both.map(|(energy, density)| (energy, Way::Pruned(density))).into();
        both.extend([(0.95, 0.2), (0.8, 0.2), (0.8, 0.3)].map(|(energy, s)| (energy, Way::Structured(s))));
        let all = match options.quick {
            true => ways(&[0.8], &[0.1], &[0.1], &[(0.8, Way::Pruned(0.3)), (0.8, Way::Structured(0.1))]),
            false => ways(&[0.95, 0.8, 0.6], &[0.3, 0.1, 0.05, 0.02], &[0.1, 0.2, 0.3], &both),
        };
        Ok(Self {
            name: "lenet",
            preprocessing: preprocessing::lenet(data.train.classes()),
            data,
            recipe: settings.tuning(options.seed),
            all,
        })
    }

    /// ResNet-20 on CIFAR-10, from trained weights.
    pub(super) fn resnet20(options: &Options, folder: &Path) -> Result<Self> {
        let mut data = cofilter_data::open(folder)?;
        ensure!(
            data.train.extents() == [3, 32, 32] && data.train.classes().len() == 10,
            "{}: sparsity takes 3x32x32 images of 10 classes",
            folder.display()
        );
        if options.quick {
            data.test = data.test.subset(0..500.min(data.test.len()));
        }
        let epochs = options.epochs.unwrap_or(if options.quick { 0.02 } else { 2.0 });
        // As the decompositions of that experiment.
        let settings = Decomposed { epochs, ..Decomposed::full() };
        let recipe = settings.tuning(options.seed, data.train.len());
        let both = [(0.95, 0.5), (0.95, 0.35), (0.9, 0.4)];
        let mut both: Vec<(f64, Way)> = both.map(|(energy, density)| (energy, Way::Pruned(density))).into();
        both.extend([(0.95, 0.2), (0.9, 0.2)].map(|(energy, s)| (energy, Way::Structured(s))));
        let all = match options.quick {
            true => ways(&[0.8], &[0.3], &[0.1], &[(0.8, Way::Pruned(0.6))]),
            false => ways(&[0.95, 0.9, 0.8], &[0.3, 0.2, 0.1], &[0.15, 0.2, 0.3], &both),
        };
        let preprocessing = preprocessing::torchvision_cifar();
        Ok(Self { name: "resnet20", data, preprocessing, recipe, all })
    }

    /// The trained network.
    pub(super) fn parent(&self, pipeline: &Pipeline<'_>) -> Result<Model> {
        let options = pipeline.options;
        if self.name == "resnet20" {
            return cifar::trained_resnet20(options);
        }
        let settings = if options.quick { Digits::quick() } else { Digits::bundled() };
        let start = Model::init(zoo::lenet(&zoo::Config::default())?, &zoo::lenet::init(), options.seed)?;
        Ok(pipeline.fit("baseline", &start, &settings.baseline(options.seed), None)?.model)
    }

    /// Updates of each fine-tuning.
    pub(super) fn iterations(&self) -> u64 {
        self.recipe.iterations
    }

    /// Fine-tuning, and pruning on the way: gradually over the first half of the updates.
    pub(super) fn tuning(&self, way: Way) -> Recipe {
        let end = (self.recipe.iterations / 2).max(1);
        let prune = |density: f64| Prune {
            pruning: Pruning { sparsity: 1.0 - density, ..Pruning::default() },
            begin: 0,
            end,
            every: (end / 20).max(1),
        };
        let prune = if let Way::Pruned(density) = way { Some(prune(density)) } else { None };
        Recipe { prune, ..self.recipe.clone() }
    }

    /// The two halves of structured sparsity learning: with the lasso, and with what became zero.
    pub(super) fn structured(&self, strength: f64, model: &Model) -> [Recipe; 2] {
        let iterations = (self.recipe.iterations / 2).max(1);
        // A schedule of steps is cut at the same shares of a run.
        let schedule = match &self.recipe.schedule {
            Schedule::MultiStep { at, gamma } => {
                Schedule::MultiStep { at: at.iter().map(|at| at / 2).collect(), gamma: *gamma }
            }
            other => other.clone(),
        };
        let half = Recipe { iterations, schedule, ..self.recipe.clone() };
        let lasso = |(grouping, nodes): (Grouping, Vec<String>)| GroupLasso::new(grouping, strength, nodes);
        let lassos = groups(model.graph()).map(lasso).into_iter().filter(|l| !l.multipliers.is_empty());
        let learn = Recipe { lasso: lassos.collect(), ..half.clone() };
        [learn, Recipe { freeze: Some(Freeze::Elements), ..half }]
    }
}

/// Which layers are regularised by columns and by rows: of a decomposed layer the basis by columns and the combination by rows (paper,
/// section 5), of another one both, but for what everything else is made of: the first and the last one.
fn groups(graph: &Graph) -> [(Grouping, Vec<String>); 2] {
    let layers = graph.nodes().iter().filter(|node| matches!(node.op(), Op::Conv2d(_) | Op::Linear(_)));
    let names: Vec<&str> = layers.map(cofilter_graph::Node::name).collect();
    let inner = &names[1..names.len().saturating_sub(1).max(1)];
    let columns = inner.iter().filter(|name| !name.ends_with("_linear"));
    let rows = inner.iter().filter(|name| !name.ends_with("_lowrank"));
    [
        (Grouping::Columns, columns.map(|name| (*name).to_owned()).collect()),
        (Grouping::Filters, rows.map(|name| (*name).to_owned()).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use cofilter_lowrank as lowrank;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn arms_have_names_of_their_own_and_recipes_that_fit() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/digits");
        let subject = Subject::lenet(&Line::parse_from(["reproduce", "sparsity"]).options, &folder).unwrap();
        let mut names: Vec<String> = subject.all.iter().map(|small| small.name()).collect();
        assert!(names[0] == "dense" && names.contains(&"low-rank-95-pruned-5".to_owned()), "{names:?}");
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        let model =
            Model::init(zoo::lenet(&zoo::Config::default()).unwrap(), &zoo::lenet::init(), 1).unwrap();
        let rule = lowrank::RankRule::by_name([("conv2", 5)]);
        let (small, _) =
            lowrank::decompose(&model, &lowrank::Settings { rule, ..lowrank::Settings::default() }).unwrap();
        for model in [&model, &small] {
            for recipe in subject.structured(0.1, model) {
                recipe.check(model.graph()).unwrap();
                assert_eq!(recipe.iterations, subject.iterations() / 2);
            }
            subject.tuning(Way::Pruned(0.1)).check(model.graph()).unwrap();
        }
        let [columns, rows] = groups(small.graph());
        assert_eq!(columns.1, ["conv2_lowrank", "ip1"]);
        assert_eq!(rows.1, ["conv2_linear", "ip1"]);
    }
}
