//! The stages that experiments are made of: training, decomposition, evaluation, each found finished or done.

use crate::machine;
use crate::options::Options;
use crate::stage::{Key, Store};
use crate::timing;
use anyhow::{Result, bail, ensure};
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
pub(crate) struct Pipeline<'a> {
    /// Command line.
    pub(crate) options: &'a Options,
    /// Name of the network, for the artifacts.
    pub(crate) network: &'a str,
    /// Images.
    pub(crate) data: &'a Split,
    /// How images become inputs.
    pub(crate) preprocessing: &'a Preprocessing,
    /// Finished stages.
    pub(crate) store: &'a Store,
}

/// Share of the test images that rounding may move across a decision border between training and the runtime; two images at least.
const DISAGREEING: f64 = 5e-4;

/// One evaluation during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Iterations done.
    pub(crate) iteration: u64,
    /// Top-1 accuracy on the test set, in percent.
    pub(crate) top1: f64,
    /// Spectra of the layers that the recipe names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) spectra: BTreeMap<String, lowrank::Spectrum>,
    /// Strength of the force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) force_strength: Option<f64>,
}

/// A network with how it came about.
#[derive(Clone, Debug)]
pub(crate) struct Trained {
    /// The network.
    pub(crate) model: Model,
    /// Hash of graph and numbers.
    pub(crate) hash: String,
    /// Evaluations on the way; empty for networks that were not trained.
    pub(crate) curve: Vec<Point>,
    /// Top-1 accuracy through the runtime, in percent.
    pub(crate) top1: f64,
}

impl Pipeline<'_> {
    /// Trains a network, or finds it trained.
    pub(crate) fn fit(
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
        let provenance = self.provenance(recipe, recipe.seed, &parent_hash)?;
        let (artifact, curve) = self.store.artifact(&key, |work| {
            let (model, curve) = self.train(name, parent, recipe, masks, work)?;
            Ok((Artifact { model, provenance }, curve))
        })?;
        self.finish(name, artifact.model, curve)
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
            device: self.options.training_device(),
            folder: Some(work),
            stop: Some(&self.options.stop),
            masks,
            teacher: None,
            progress: Progress::Bar(format!("{name} seed {}", recipe.seed)),
        };
        match fit(parent, &job)? {
            Outcome::Finished(trained) => {
                let point = |r: Record| {
                    let Record { iteration, force_strength, spectra, test, .. } = r;
                    Some(Point { iteration, top1: 100.0 * test?.top1, spectra, force_strength })
                };
                let curve = trained.history.into_iter().filter_map(point).collect();
                Ok((trained.model, curve))
            }
            Outcome::Stopped { iteration, .. } => {
                bail!("stopped in {name} at iteration {iteration}; the same command goes on from there")
            }
        }
    }

    /// Decomposes a trained network.
    pub(crate) fn decompose(
        &self,
        name: &str,
        parent: &Trained,
        seed: u64,
        settings: &lowrank::Settings,
    ) -> Result<(Trained, lowrank::Report)> {
        let key = Key::new(&format!("{name}-seed{seed}"), &[&parent.hash], settings);
        let (artifact, report) = self.store.artifact(&key, |_| {
            let (model, report) = lowrank::decompose(&parent.model, settings)?;
            Ok((Artifact { model, provenance: self.provenance(settings, seed, &parent.hash)? }, report))
        })?;
        Ok((self.finish(name, artifact.model, Vec::new())?, report))
    }

    /// Evaluates through the runtime and checks that training saw the same accuracy.
    pub(crate) fn finish(&self, name: &str, model: Model, curve: Vec<Point>) -> Result<Trained> {
        self.options.check_stop()?;
        let hash = hash(&model);
        // Measured anew by every other build of the program.
        let settings = (self.preprocessing, machine::commit());
        let key = Key::new("accuracy", &[&hash, self.data.test.sha256()], &settings);
        let top1 = self.store.value(&key, || {
            timing::top1(&model, &self.data.test, self.preprocessing, self.options.thread_count())
        })?;
        if let Some(last) = curve.last() {
            #[expect(clippy::cast_precision_loss, reason = "data sets are far smaller than 2^53")]
            let count = self.data.test.len() as f64;
            let images = (last.top1 - top1).abs() / 100.0 * count;
            ensure!(
                images <= (DISAGREEING * count).max(2.0),
                "{name}: training saw {:.2} % on the test set, the runtime {top1:.2} %: they differ by {images:.0} images",
                last.top1
            );
        }
        Ok(Trained { model, hash, curve, top1 })
    }

    pub(crate) fn provenance(
        &self,
        settings: &impl Serialize,
        seed: u64,
        parent: &str,
    ) -> Result<Provenance> {
        Ok(Provenance {
            network: Some(self.network.to_owned()),
            recipe: Some(serde_json::to_value(settings)?),
            seed: Some(seed),
            commit: None,
            data_sha256: Some(self.data.train.sha256().to_owned()),
            parent_sha256: Some(parent.to_owned()),
            preprocessing: Some(self.preprocessing.clone()),
        })
    }
}

/// SHA-256 of graph and numbers, whatever their origin.
#[must_use]
pub(crate) fn hash(model: &Model) -> String {
    Artifact::new(model.clone()).sha256()
}
