//! The decomposition toolkit on real trained networks: by weights and by outputs at equal ranks, and speedups by measurement.

mod figures;
pub(crate) mod settings;

use crate::machine::{self, Machine};
use crate::options::{Options, root};
use crate::report::{Arm, Claim, Data, Percentiles, Report};
use crate::stage::{Key, Store};
use crate::timing;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_data::{Augment, Pipeline, Split, preprocessing};
use cofilter_formats::StateDict;
use cofilter_graph::{Artifact, Model, Preprocessing, Provenance};
use cofilter_lowrank::target::{Reached, Survey, SurveySettings};
use cofilter_lowrank::{
    Calibration, Rank, RankRule, Settings as Decomposition, decompose, decompose_calibrated,
    reestimate_batch_norm,
};
use cofilter_train::{Fit, Outcome, Progress, fit};
use serde::{Deserialize, Serialize};
use settings::Settings;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Largest share of the points lost by weights alone that a decomposition by outputs may lose.
const HALF: f64 = 0.5;
/// How near a measured speedup is to be to what was asked for.
const NEAR: f64 = 0.05;

/// What all stages need.
struct Context<'a> {
    options: &'a Options,
    settings: Settings,
    split: Split,
    of: Preprocessing,
    store: Store,
    images: Vec<f32>,
}

/// A network with its accuracy.
#[derive(Clone)]
struct Named {
    name: String,
    parent: Option<String>,
    model: Model,
    top1: f64,
    ranks: BTreeMap<String, usize>,
}

/// A speedup that was asked for.
#[derive(Clone, Serialize, Deserialize)]
struct Asked {
    speedup: f64,
    batch: usize,
    /// Nothing where it is out of reach, with what there is.
    reached: Option<Reached>,
    most: f64,
    /// Measured once more on the final network.
    measured: Option<f64>,
    /// What was known after it, which the next one begins with.
    survey: Survey,
}

/// Everything that was found.
struct Results {
    arms: Vec<Named>,
    /// For each network and energy.
    equal_ranks: Vec<EqualRanks>,
    asked: Vec<(Asked, Option<Named>)>,
    /// Measured speedup and accuracy.
    front: Vec<[f64; 2]>,
    energy_rule: Vec<[f64; 2]>,
    survey: Survey,
}

/// The same ranks by two criteria, top-1 in percent.
#[derive(Clone, Debug)]
struct EqualRanks {
    network: String,
    energy: f64,
    dense: f64,
    weights_alone: f64,
    weights: f64,
    outputs: f64,
    outputs_restated: f64,
    weights_tuned: Option<f64>,
    outputs_tuned: Option<f64>,
}

impl EqualRanks {
    /// Points lost by outputs, which keep their means as it is, over those by weights with new statistics.
    fn share(&self) -> f64 {
        (self.dense - self.outputs) / (self.dense - self.weights)
    }
}

/// Runs the experiment and writes its report.
///
/// # Errors
/// Data or weights that are missing or of the wrong form, a stopped training, what the system says.
pub fn run(options: &Options) -> Result<Report> {
    let context = Context::open(options)?;
    let results = context.all()?;
    let report = context.report(&results)?;
    report.write(&options.folder())?;
    Ok(report)
}

impl<'a> Context<'a> {
    fn open(options: &'a Options) -> Result<Self> {
        let mut settings = if options.quick { Settings::quick() } else { Settings::full() };
        if let Some(epochs) = options.epochs {
            settings.epochs = epochs;
        }
        let Some(folder) = &options.data else {
            bail!("decompose: say with --data where CIFAR-10 lies (the six binary files)")
        };
        let mut split = cofilter_data::open(folder)?;
        ensure!(
            split.train.extents() == [3, 32, 32] && split.train.classes().len() == 10,
            "{}: decompose takes 3x32x32 images of 10 classes",
            folder.display()
        );
        if let Some(n) = settings.test_images {
            split.test = split.test.subset(0..n.min(split.test.len()));
        }
        let store = Store::open(&options.folder().join("stages"), options.fresh)?;
        let of = preprocessing::torchvision_cifar();
        let some = split.train.spread(settings.images);
        let images = Pipeline::new(&some, &of, &Augment::default(), 0)?.all()?;
        Ok(Self { options, settings, split, of, store, images })
    }

    fn calibration(&self) -> Calibration<'_> {
        Calibration { threads: self.options.thread_count(), ..Calibration::new(&self.images) }
    }

    fn network(&self, name: &str, file: &str) -> Result<Named> {
        let folder = self.options.weights.clone().unwrap_or_else(|| root().join("../shared/data/weights"));
        let path: PathBuf = folder.join(file);
        ensure!(
            path.is_file(),
            "{}: no such file; say with --weights where the trained networks lie",
            path.display()
        );
        let graph = cofilter_zoo::by_name(name, &cofilter_zoo::Config::default())?;
        let model = StateDict::read(&path)?.into_model(name, graph)?;
        self.named(name.into(), None, model, BTreeMap::new())
    }

    fn named(
        &self,
        name: String,
        parent: Option<&str>,
        model: Model,
        ranks: BTreeMap<String, usize>,
    ) -> Result<Named> {
        self.options.check_stop()?;
        let hash = Artifact::new(model.clone()).sha256();
        let key = Key::new("accuracy", &[&hash, self.split.test.sha256()], &(&self.of, machine::commit()));
        let top1 = self
            .store
            .value(&key, || timing::top1(&model, &self.split.test, &self.of, self.options.thread_count()))?;
        eprintln!("{name}: {top1:.2} %");
        Ok(Named { name, parent: parent.map(str::to_owned), model, top1, ranks })
    }

    fn all(&self) -> Result<Results> {
        let mut arms = Vec::new();
        let mut equal_ranks = Vec::new();
        let mut timed = None;
        for (name, file) in &self.settings.networks {
            let dense = self.network(name, file)?;
            arms.push(dense.clone());
            for energy in &self.settings.energies {
                let (pair, found) = self.equal_ranks(&dense, *energy)?;
                eprintln!("{found:?}");
                equal_ranks.push(found);
                arms.extend(pair);
            }
            if *name == self.settings.timed {
                timed = Some(dense);
            }
        }
        let dense = timed.context("no network to time")?;
        let mut surveys: BTreeMap<usize, Survey> = BTreeMap::new();
        let mut asked = Vec::new();
        for (speedup, batch) in &self.settings.targets {
            let survey = self.survey(&mut surveys, &dense.model, *batch)?;
            let (of, model) = self.ask(&dense, survey, *speedup, *batch)?;
            let tuned = match model {
                Some(model) => {
                    let name = format!("{}-{speedup}x-batch{batch}", dense.name);
                    let small = self.named(name, Some(&dense.name), model, BTreeMap::new())?;
                    let tuned = self.tune(&small)?;
                    arms.push(small);
                    arms.extend(tuned.clone());
                    tuned
                }
                None => None,
            };
            asked.push((of, tuned));
        }
        let (front, energy_rule) = self.front(&dense, &mut surveys)?;
        let survey = self.survey(&mut surveys, &dense.model, 1)?.clone();
        Ok(Results { arms, equal_ranks, asked, front, energy_rule, survey })
    }

    /// A network at the ranks of an energy, by weights and by outputs.
    fn equal_ranks(&self, dense: &Named, energy: f64) -> Result<(Vec<Named>, EqualRanks)> {
        let calibration = self.calibration();
        let settings = Decomposition { rule: RankRule::Energy(energy), ..Decomposition::default() };
        let (blind, report) = decompose(&dense.model, &settings)?;
        let by_rank = Decomposition { rule: RankRule::Ranks(report.ranks()), ..Decomposition::default() };
        let (seeing, _) = decompose_calibrated(&dense.model, &by_rank, &calibration)?;
        let ranks: BTreeMap<String, usize> =
            report.layers.iter().map(|layer| (layer.name.clone(), layer.rank)).collect();
        let name = |kind: &str| format!("{}-{kind}-{:.0}", dense.name, 100.0 * energy);
        let parent = Some(dense.name.as_str());
        let alone = self.named(name("weights-alone"), parent, blind.clone(), ranks.clone())?;
        let restated = |small: &Model| reestimate_batch_norm(small, Some(&dense.model), &calibration);
        let weights = self.named(name("weights"), parent, restated(&blind)?, ranks.clone())?;
        let outputs_restated =
            self.named(name("outputs-restated"), parent, restated(&seeing)?, ranks.clone())?;
        let outputs = self.named(name("outputs"), parent, seeing, ranks)?;
        let (weights_tuned, outputs_tuned) = (self.tune(&weights)?, self.tune(&outputs)?);
        let found = EqualRanks {
            network: dense.name.clone(),
            energy,
            dense: dense.top1,
            weights_alone: alone.top1,
            weights: weights.top1,
            outputs: outputs.top1,
            outputs_restated: outputs_restated.top1,
            weights_tuned: weights_tuned.as_ref().map(|of| of.top1),
            outputs_tuned: outputs_tuned.as_ref().map(|of| of.top1),
        };
        let arms =
            [Some(alone), Some(weights), weights_tuned, Some(outputs), Some(outputs_restated), outputs_tuned];
        Ok((arms.into_iter().flatten().collect(), found))
    }

    /// Trained further, if any training was asked for.
    fn tune(&self, parent: &Named) -> Result<Option<Named>> {
        if self.settings.epochs <= 0.0 {
            return Ok(None);
        }
        let recipe = self.settings.tuning(self.options.seed, self.split.train.len());
        let hash = Artifact::new(parent.model.clone()).sha256();
        let name = format!("{}-tuned", parent.name);
        let key = Key::new(&name, &[&hash], &(&recipe, self.split.train.sha256(), &self.of));
        let provenance = Provenance {
            network: Some(parent.name.clone()),
            recipe: Some(serde_json::to_value(&recipe)?),
            seed: Some(recipe.seed),
            commit: None,
            data_sha256: Some(self.split.train.sha256().to_owned()),
            parent_sha256: Some(hash),
            preprocessing: Some(self.of.clone()),
        };
        let (artifact, ()) = self.store.artifact(&key, |work| {
            let job = Fit {
                recipe: &recipe,
                train: &self.split.train,
                test: None,
                preprocessing: &self.of,
                device: self.options.training_device(),
                folder: Some(work),
                stop: Some(&self.options.stop),
                masks: None,
                teacher: None,
                progress: Progress::Bar(name.clone()),
            };
            match fit(&parent.model, &job)? {
                Outcome::Finished(trained) => Ok((Artifact { model: trained.model, provenance }, ())),
                Outcome::Stopped { iteration, .. } => {
                    bail!("stopped in {name} at iteration {iteration}; the same command goes on from there")
                }
            }
        })?;
        self.named(name, Some(&parent.name), artifact.model, parent.ranks.clone()).map(Some)
    }

    /// Measured once for each batch, and kept: times are those of the machine at that time.
    fn survey<'s>(
        &self,
        surveys: &'s mut BTreeMap<usize, Survey>,
        model: &Model,
        batch: usize,
    ) -> Result<&'s mut Survey> {
        if let std::collections::btree_map::Entry::Vacant(entry) = surveys.entry(batch) {
            let threads = self.options.thread_count();
            let settings = SurveySettings { batch, threads, ..SurveySettings::default() };
            let hash = Artifact::new(model.clone()).sha256();
            let key = Key::new("survey", &[&hash], &(&settings, self.settings.images, machine::commit()));
            entry.insert(
                self.store.value(&key, || Ok(Survey::measure(model, &settings, &self.calibration())?))?,
            );
        }
        Ok(surveys.get_mut(&batch).expect("it was just put there"))
    }

    /// The network with a speedup, if it is in reach.
    fn ask(
        &self,
        dense: &Named,
        survey: &mut Survey,
        speedup: f64,
        batch: usize,
    ) -> Result<(Asked, Option<Model>)> {
        self.options.check_stop()?;
        let hash = Artifact::new(dense.model.clone()).sha256();
        let key = Key::new(
            &format!("speedup-{speedup}-batch{batch}"),
            &[&hash],
            &(&survey.settings, self.settings.images, machine::commit()),
        );
        let (artifact, asked) = self.store.artifact(&key, |_| {
            let reached = match survey.reach(&dense.model, speedup, self.settings.seconds) {
                Ok(reached) => Some(reached),
                Err(cofilter_lowrank::Error::Unreachable { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let (most, known) = (survey.fastest(), survey.clone());
            let mut asked = Asked { speedup, batch, reached, most, measured: None, survey: known };
            let Some(reached) = &asked.reached else {
                return Ok((Artifact::new(dense.model.clone()), asked));
            };
            let calibration = self.calibration();
            let (small, _) = decompose_calibrated(&dense.model, &reached.selection.settings, &calibration)?;
            asked.measured = Some(survey.speedup_of(&dense.model, &small, self.settings.seconds)?);
            Ok((Artifact::new(small), asked))
        })?;
        survey.clone_from(&asked.survey);
        let model = asked.reached.is_some().then_some(artifact.model);
        Ok((asked, model))
    }

    /// Measured speedup and accuracy before any training: by measured choice, and by one energy for all layers.
    #[expect(clippy::type_complexity, reason = "two lists of points")]
    fn front(
        &self,
        dense: &Named,
        surveys: &mut BTreeMap<usize, Survey>,
    ) -> Result<(Vec<[f64; 2]>, Vec<[f64; 2]>)> {
        let mut front = vec![[1.0, dense.top1]];
        for speedup in &self.settings.front {
            let survey = self.survey(surveys, &dense.model, 1)?;
            let (asked, model) = self.ask(dense, survey, *speedup, 1)?;
            if let (Some(model), Some(measured)) = (model, asked.measured) {
                let name = format!("{}-front-{speedup}", dense.name);
                front.push([measured, self.named(name, None, model, BTreeMap::new())?.top1]);
            }
        }
        let survey = self.survey(surveys, &dense.model, 1)?;
        let mut energy_rule = Vec::new();
        for energy in [0.95, 0.9, 0.85, 0.8, 0.7, 0.6] {
            let settings = Decomposition { rule: RankRule::Energy(energy), ..Decomposition::default() };
            let (small, _) = decompose(&dense.model, &settings)?;
            let small = reestimate_batch_norm(&small, Some(&dense.model), &self.calibration())?;
            let hash = Artifact::new(small.clone()).sha256();
            let threads = self.options.thread_count();
            let key =
                Key::new("energy-speedup", &[&hash], &(threads, self.settings.seconds, machine::commit()));
            let measured = self.store.value(&key, || {
                survey.speedup_of(&dense.model, &small, self.settings.seconds).map_err(Into::into)
            })?;
            let name = format!("{}-energy-{:.0}", dense.name, 100.0 * energy);
            energy_rule.push([measured, self.named(name, None, small, BTreeMap::new())?.top1]);
        }
        Ok((front, energy_rule))
    }

    fn report(&self, results: &Results) -> Result<Report> {
        let threads = self.options.thread_count();
        let arms = results.arms.iter().map(|named| self.arm(named)).collect::<Result<_>>()?;
        Ok(Report {
            experiment: "decompose".into(),
            summary: format!(
                "Trained CIFAR ResNets taken apart without training: by weights (principal components across filters at an energy) \
                 and, at the same ranks, by outputs ({} training images, labels not looked at), with and without new statistics of \
                 batch normalisations; then {} epochs of fine-tuning. Speedups of {} by measured times and effects on the outputs of \
                 every way of having a layer. Accuracy and time are those of the deployment runtime.",
                self.settings.images, self.settings.epochs, self.settings.timed
            ),
            commit: machine::commit(),
            command: self.options.command(),
            seeds: vec![self.options.seed],
            machine: Machine::here(threads, cofilter_runtime::cpu_tier()),
            data: Some(Data::of(&self.split)),
            arms,
            claims: self.claims(results),
            figures: figures::all(results, self.settings.timed)?,
            tables: figures::tables(results, self.settings.timed),
            notes: self.notes(),
        })
    }

    fn arm(&self, named: &Named) -> Result<Arm> {
        let cost = named.model.cost();
        let hash = Artifact::new(named.model.clone()).sha256();
        let threads = self.options.thread_count();
        let time = Duration::from_secs_f64(self.settings.seconds / 3.0);
        let key = Key::new("latency", &[&hash], &(threads, time, machine::commit()));
        let latency_us: BTreeMap<usize, Percentiles> = self.store.value(&key, || {
            let of = |batch: usize| {
                let times = timing::latencies(&[(&named.name, &named.model)], batch, threads, time)?;
                Ok((batch, times[0]))
            };
            [1, 32].into_iter().map(of).collect()
        })?;
        Ok(Arm {
            name: named.name.clone(),
            parent: named.parent.clone(),
            top1: Some(named.top1),
            top1_by_seed: vec![named.top1],
            ranks: named.ranks.clone(),
            params: cost.params(),
            macs: cost.macs(),
            density: 1.0,
            latency_us,
            ..Arm::default()
        })
    }

    fn claims(&self, results: &Results) -> Vec<Claim> {
        let claim = |id: &str, statement: String, ours: f64, tolerance: Option<f64>, holds: bool| Claim {
            id: id.into(),
            statement,
            paper: None,
            ours,
            interval: None,
            tolerance,
            holds,
            command: self.options.command(),
        };
        let mut claims = Vec::new();
        let least = self.settings.energies.iter().copied().fold(f64::INFINITY, f64::min);
        for of in results.equal_ranks.iter().filter(|of| of.energy <= least) {
            let statement = format!(
                "{}: at the ranks of {:.0} % energy a decomposition by outputs loses at most half of the points that one by weights \
                 with new statistics of batch normalisations loses, without training",
                of.network,
                100.0 * of.energy
            );
            claims.push(claim("activation-aware", statement, of.share(), Some(HALF), of.share() <= HALF));
        }
        for (asked, _) in &results.asked {
            let id = format!("target-{:.1}", asked.speedup);
            let statement = format!(
                "{}, batch {}: asked for {} times as fast, the final network is measured within 5 % of it{}",
                self.settings.timed,
                asked.batch,
                asked.speedup,
                match asked.reached {
                    Some(_) => String::new(),
                    None => format!(" (out of reach: {:.2} is the most by what was measured)", asked.most),
                }
            );
            let near = asked.measured.is_some_and(|measured| (measured / asked.speedup - 1.0).abs() <= NEAR);
            let ours = asked.measured.unwrap_or(asked.most);
            claims.push(claim(&id, statement, ours, Some(NEAR), near));
            if let (Some(reached), Some(measured)) = (&asked.reached, asked.measured) {
                let off = measured / reached.selection.predicted_speedup - 1.0;
                let statement = format!(
                    "{}, batch {}, {} times: what was expected by the times of layers and what was measured agree within 5 % (ours: \
                     measured over expected, less 1)",
                    self.settings.timed, asked.batch, asked.speedup
                );
                claims.push(claim(&format!("{id}-expected"), statement, off, Some(NEAR), off.abs() <= NEAR));
            }
        }
        let dominated = figures::dominated(&results.energy_rule, &results.front);
        let statement = format!(
            "{}: each of the {} points of the energy rule is beaten in speed and accuracy by one of the {} of the measured choice, or \
             by the network as it is; ours is how many are",
            self.settings.timed,
            results.energy_rule.len(),
            results.front.len()
        );
        #[expect(clippy::cast_precision_loss, reason = "a few points")]
        let ours = dominated as f64;
        claims.push(claim("pareto", statement, ours, None, dominated == results.energy_rule.len()));
        claims
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "Weights: https://github.com/akamaster/pytorch_resnet_cifar10, as they are.".to_owned(),
            format!(
                "Fine-tuning: {:?}, one seed.",
                self.settings.tuning(self.options.seed, self.split.train.len())
            ),
            "Layers that would become larger and slower at an energy stay dense, in both kinds.".to_owned(),
        ];
        notes.extend(self.store.foreign());
        if self.options.quick {
            notes.push("--quick: the figures mean nothing.".into());
        }
        notes
    }
}

/// Ranks for people.
fn ranks_text(ranks: &BTreeMap<String, Rank>) -> String {
    ranks.iter().map(|(layer, rank)| format!("{layer} {rank}")).collect::<Vec<_>>().join(", ")
}
