use super::settings::Settings;
use crate::options::Options;
use crate::stage::{Key, Store};
use crate::timing;
use anyhow::{Result, bail};
use cofilter_data::Split;
use cofilter_graph::{Artifact, Model, Preprocessing, Provenance};
use cofilter_lowrank as lowrank;
use cofilter_sparsity as sparsity;
use cofilter_train::{Fit, Outcome, Progress, Recipe, Record, fit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The stages of one run over one data set.
#[derive(Debug)]
pub(super) struct Pipeline<'a> {
    /// Command line.
    pub(super) options: &'a Options,
    /// Choices.
    pub(super) settings: &'a Settings,
    /// Digits.
    pub(super) data: &'a Split,
    /// How digits become inputs.
    pub(super) preprocessing: &'a Preprocessing,
    /// Finished stages.
    pub(super) store: &'a Store,
}

/// One evaluation during training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    /// Iterations done.
    pub(super) iteration: u64,
    /// Top-1 accuracy on the test set, in percent.
    pub(super) top1: f64,
}

/// A network with how it came about.
#[derive(Clone, Debug)]
pub(super) struct Trained {
    /// The network.
    pub(super) model: Model,
    /// Hash of graph and numbers.
    pub(super) hash: String,
    /// Evaluations on the way; empty for networks that were not trained.
    pub(super) curve: Vec<Point>,
    /// Top-1 accuracy through the runtime, in percent.
    pub(super) top1: f64,
}

impl Pipeline<'_> {
    /// Trains a network, or finds it trained.
    pub(super) fn fit(
        &self,
        name: &str,
        parent: &Model,
        recipe: &Recipe,
        masks: Option<&sparsity::Masks>,
    ) -> Result<Trained> {
        let parent_hash = hash(parent);
        let data = (self.data.train.sha256(), self.data.test.sha256(), self.preprocessing);
        // Masks follow from the zeros of the parent.
        let key = Key::new(
            &format!("{name}-seed{}", recipe.seed),
            &[&parent_hash],
            &(recipe, data, masks.is_some()),
        );
        let provenance = Provenance {
            network: Some("lenet".into()),
            recipe: Some(serde_json::to_value(recipe)?),
            seed: Some(recipe.seed),
            commit: None,
            data_sha256: Some(self.data.train.sha256().to_owned()),
            parent_sha256: Some(parent_hash),
            preprocessing: Some(self.preprocessing.clone()),
        };
        let (artifact, curve) = self.store.artifact(&key, |work| {
            let (model, curve) = self.train(name, parent, recipe, masks, work)?;
            Ok((Artifact { model, provenance }, curve))
        })?;
        self.finish(artifact.model, curve)
    }

    fn train(
        &self,
        name: &str,
        parent: &Model,
        recipe: &Recipe,
        masks: Option<&sparsity::Masks>,
        work: &Path,
    ) -> Result<(Model, Vec<Point>)> {
        let job = Fit {
            recipe,
            train: &self.data.train,
            test: Some(&self.data.test),
            preprocessing: self.preprocessing,
            device: candle_core::Device::Cpu,
            folder: Some(work),
            stop: Some(&self.options.stop),
            masks,
            progress: Progress::Bar(format!("{name} seed {}", recipe.seed)),
        };
        match fit(parent, &job)? {
            Outcome::Finished(trained) => {
                let point = |r: &Record| Some(Point { iteration: r.iteration, top1: 100.0 * r.test?.top1 });
                let curve = trained.history.iter().filter_map(point).collect();
                Ok((trained.model, curve))
            }
            Outcome::Stopped { iteration, .. } => {
                bail!("stopped in {name} at iteration {iteration}; the same command goes on from there")
            }
        }
    }

    /// Decomposes the convolutions to these ranks.
    pub(super) fn decompose(&self, parent: &Model, ranks: &BTreeMap<String, usize>) -> Result<Trained> {
        let settings =
            lowrank::Settings { rule: lowrank::RankRule::Ranks(ranks.clone()), ..Default::default() };
        let (model, _) = lowrank::decompose(parent, &settings)?;
        self.finish(model, Vec::new())
    }

    /// Prunes by magnitude, fine-tunes with the zeros kept, and removes what is zero altogether.
    pub(super) fn sparsify(&self, name: &str, parent: &Model, seed: u64) -> Result<Trained> {
        let settings = sparsity::Pruning { sparsity: self.settings.sparsity, ..Default::default() };
        let (pruned, masks) = sparsity::prune_magnitude(parent, &settings)?;
        let tuned = self.fit(name, &pruned, &self.settings.tuning(seed), Some(&masks))?;
        let (compacted, _) = sparsity::compact(&tuned.model)?;
        self.finish(compacted, tuned.curve)
    }

    /// Evaluates through the runtime and checks that training saw the same accuracy.
    pub(super) fn finish(&self, model: Model, curve: Vec<Point>) -> Result<Trained> {
        let hash = hash(&model);
        let key = Key::new("accuracy", &[&hash, self.data.test.sha256()], self.preprocessing);
        let top1 = self.store.value(&key, || {
            timing::top1(&model, &self.data.test, self.preprocessing, self.options.thread_count())
        })?;
        Ok(Trained { model, hash, curve, top1 })
    }
}

/// SHA-256 of graph and numbers, whatever their origin.
#[must_use]
pub(super) fn hash(model: &Model) -> String {
    Artifact::new(model.clone()).sha256()
}
