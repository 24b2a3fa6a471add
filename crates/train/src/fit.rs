use crate::checkpoint::{self, Identity};
use crate::evaluate::{check_data, evaluate_net};
use crate::history::{Clock, History, Record};
use crate::progress::Bar;
use crate::{Clip, Error, Progress, Recipe, Result, Score, Step, Trainer};
use candle_core::Device;
use cofilter_data::{Dataset, Pipeline, Sampler};
use cofilter_graph::{Array, Model, Params, Preprocessing};
use cofilter_lowrank::ClippedLayer;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What [`fit`] works with beside the model.
#[derive(Debug)]
pub struct Fit<'a> {
    /// How to train.
    pub recipe: &'a Recipe,
    /// Images to learn from.
    pub train: &'a Dataset,
    /// Images to evaluate on every `recipe.evaluate_every` iterations.
    pub test: Option<&'a Dataset>,
    /// How bytes become the network's input.
    pub preprocessing: &'a Preprocessing,
    /// Where to compute. CPU work runs on rayon's current thread pool; results do not depend on its size.
    pub device: Device,
    /// Folder of `checkpoint.safetensors` and `history.jsonl`, made if missing. A checkpoint of the same run in it is
    /// resumed, bit for bit; one of another run is an error.
    pub folder: Option<&'a Path>,
    /// When it becomes true, the run ends after the iteration, with a checkpoint.
    pub stop: Option<&'a AtomicBool>,
    /// 0 or 1 for each number: where 0, weight and momentum stay exactly 0.
    pub masks: Option<&'a Params<Array>>,
    /// Network that the recipe's distillation learns from; not looked at without one.
    pub teacher: Option<&'a Model>,
    /// What is shown.
    pub progress: Progress,
}

/// A finished training.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The network.
    pub model: Model,
    /// Recorded iterations.
    pub history: Vec<Record>,
}

impl Trained {
    /// The last evaluation on the test set.
    #[must_use]
    pub fn score(&self) -> Option<Score> {
        self.history.iter().rev().find_map(|r| r.test)
    }
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All iterations were done.
    Finished(Trained),
    /// It was asked to stop.
    Stopped {
        /// Iterations done.
        iteration: u64,
        /// Where it goes on from; `None` without a folder: what was learnt is lost.
        checkpoint: Option<PathBuf>,
    },
}

/// Trains a model; equal arguments give equal bytes, also when stopped or killed and resumed.
///
/// # Errors
/// [`Error::Recipe`] and [`Error::Input`] before anything is done; [`Error::Checkpoint`] for a folder of another run;
/// [`Error::Diverged`] when a number stops being finite, and [`Error::Lowrank`] when ranks cannot be clipped, the last checkpoint is
/// kept then; [`Error::Io`].
pub fn fit(model: &Model, fit: &Fit<'_>) -> Result<Outcome> {
    fit_until(model, fit, None)
}

/// How a test ends a run before an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As `Fit::stop` does.
    Stop(u64),
    /// As a power cut does.
    Kill(u64),
}

fn fit_until(model: &Model, fit: &Fit<'_>, end: Option<End>) -> Result<Outcome> {
    model.check_finite()?;
    if fit.recipe.clip.is_some() && fit.masks.is_some() {
        return Err(Error::Recipe("clip: masks are of the ranks that the network begins with".into()));
    }
    let pipeline = Pipeline::new(fit.train, fit.preprocessing, &fit.recipe.augment, fit.recipe.seed)?;
    let mut run =
        Run { start: model, fit, identity: None, history: History::open(None, 0)?, saved: None, end };
    let mut trainer = run.trainer(model)?;
    check_data(trainer.net(), fit.train)?;
    if let Some(test) = fit.test {
        check_data(trainer.net(), test)?;
    }
    if let Some(folder) = fit.folder {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
        trainer = run.resume(trainer, folder)?;
    }
    let mut bar = Bar::new(&fit.progress, trainer.iteration(), fit.recipe.iterations);
    let result = run.iterate(&mut trainer, &pipeline, &mut bar);
    match &result {
        Ok(Some(_)) | Err(_) => bar.abandon(),
        Ok(None) => bar.finish(),
    }
    match result? {
        Some(stopped) => Ok(stopped),
        None => {
            let history = run.history.into_records();
            Ok(Outcome::Finished(Trained { model: trainer.net().to_model()?, history }))
        }
    }
}

/// Names iteration and layer where a network whose training still looked finite is not so on the test set.
fn diverged(error: Error, iteration: u64, trainer: &Trainer, loss: f64) -> Error {
    match error {
        Error::NotFinite { image } => {
            let graph = trainer.net().graph();
            let node = graph.node(graph.outputs()[0]).name().to_owned();
            Error::Diverged { iteration, what: format!("output for test image {image}"), node, loss }
        }
        other => other,
    }
}

/// A run and what it wrote so far.
struct Run<'a> {
    start: &'a Model,
    fit: &'a Fit<'a>,
    identity: Option<Identity>,
    history: History,
    /// Iteration of the checkpoint in the folder.
    saved: Option<u64>,
    end: Option<End>,
}

impl Run<'_> {
    /// Picks up what the folder holds.
    fn resume(&mut self, mut trainer: Trainer, folder: &Path) -> Result<Trainer> {
        let identity = Identity::of(self.start, self.fit);
        let mut records = 0;
        if let Some(checkpoint) = checkpoint::read(folder, self.start, &identity)? {
            trainer = self.trainer(&checkpoint.model)?;
            trainer.resume(checkpoint.iteration, checkpoint.momentum);
            records = checkpoint.records;
            self.saved = Some(checkpoint.iteration);
        }
        self.history = History::open(Some(folder), records)?;
        self.identity = Some(identity);
        Ok(trainer)
    }

    fn trainer(&self, model: &Model) -> Result<Trainer> {
        Trainer::new(model, self.fit.recipe, self.fit.masks, &self.fit.device)?.with_teacher(self.fit.teacher)
    }

    /// Cuts pairs to the rank that they need by now, and goes on with what is left of the momentum.
    fn clip(&self, trainer: &mut Trainer, clip: &Clip) -> Result<Vec<ClippedLayer>> {
        let clipped =
            cofilter_lowrank::clip(&trainer.net().to_model()?, Some(trainer.momentum()), &clip.rule)?;
        if let Some(momentum) = clipped.momentum.filter(|_| !clipped.layers.is_empty()) {
            let iteration = trainer.iteration();
            *trainer = self.trainer(&clipped.model)?;
            trainer.resume(iteration, momentum);
        }
        Ok(clipped.layers)
    }

    /// To the end (`None`) or until asked to stop.
    fn iterate(
        &mut self,
        trainer: &mut Trainer,
        pipeline: &Pipeline,
        bar: &mut Bar,
    ) -> Result<Option<Outcome>> {
        let recipe = self.fit.recipe;
        let sampler = Sampler::new(self.fit.train.len(), recipe.batch, recipe.seed);
        let image_len = trainer.net().graph().input_shape().elements();
        let mut labels = vec![0; recipe.batch];
        let mut watch = Watch::start(recipe.batch);
        while trainer.iteration() < recipe.iterations {
            if self.end == Some(End::Kill(trainer.iteration())) {
                return Ok(Some(Outcome::Stopped { iteration: trainer.iteration(), checkpoint: None }));
            }
            let asked = self.fit.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            if asked || self.end == Some(End::Stop(trainer.iteration())) {
                let checkpoint = self.save(trainer)?;
                return Ok(Some(Outcome::Stopped { iteration: trainer.iteration(), checkpoint }));
            }
            let begin = Instant::now();
            let iteration = trainer.iteration();
            let mut images = trainer.buffer(recipe.batch * image_len);
            pipeline.fill(Some(iteration), &sampler.indices(iteration), &mut images, &mut labels)?;
            let done = iteration + 1;
            let last = done == recipe.iterations;
            let clip = recipe.clip.as_ref().filter(|clip| !last && clip.is_due(done));
            let evaluate = recipe.evaluate_every > 0
                && (last || done.is_multiple_of(recipe.evaluate_every))
                && self.fit.test.is_some();
            let record = evaluate
                || clip.is_some()
                || (recipe.record_every > 0 && (last || done.is_multiple_of(recipe.record_every)));
            let step = trainer.step(images, &labels, record)?;
            watch.lap(begin.elapsed());
            bar.advance(&step, recipe.batch, || watch.images_per_s());
            let clipped = match clip {
                Some(clip) => self.clip(trainer, clip)?,
                None => Vec::new(),
            };
            if record {
                let test = match self.fit.test.filter(|_| evaluate) {
                    Some(test) => {
                        let score = evaluate_net(
                            trainer.net(),
                            test,
                            self.fit.preprocessing,
                            recipe.batch,
                            recipe.tolerance,
                        );
                        Some(score.map_err(|error| diverged(error, iteration, trainer, step.loss))?)
                    }
                    None => None,
                };
                if let Some(score) = &test {
                    bar.evaluated(score);
                }
                let record = new_record(&step, recipe.batch, test, watch.read());
                self.history.push(Record { clipped, ..record })?;
            }
            if last || (recipe.checkpoint_every > 0 && done.is_multiple_of(recipe.checkpoint_every)) {
                self.save(trainer)?;
            }
        }
        Ok(None)
    }

    /// Writes a checkpoint, unless this one is there.
    fn save(&mut self, trainer: &Trainer) -> Result<Option<PathBuf>> {
        let (Some(folder), Some(identity)) = (self.fit.folder, &self.identity) else { return Ok(None) };
        if self.saved == Some(trainer.iteration()) {
            return Ok(Some(checkpoint::path(folder)));
        }
        self.history.sync()?;
        let path = checkpoint::write(folder, self.start, trainer, self.history.records().len(), identity)?;
        self.saved = Some(trainer.iteration());
        Ok(Some(path))
    }
}

fn new_record(step: &Step, batch: usize, test: Option<Score>, clock: Clock) -> Record {
    Record {
        iteration: step.iteration + 1,
        learning_rate: step.learning_rate,
        loss: step.loss,
        losses: if step.losses.len() > 1 { step.losses.clone() } else { Vec::new() },
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52")]
        top1: step.correct as f64 / batch as f64,
        force_share: step.force_share,
        test,
        clipped: Vec::new(),
        clock: Some(clock),
    }
}

/// Time spent in iterations.
struct Watch {
    start: Instant,
    batch: usize,
    laps: usize,
    spent: Duration,
}

impl Watch {
    fn start(batch: usize) -> Self {
        Self { start: Instant::now(), batch, laps: 0, spent: Duration::ZERO }
    }

    fn lap(&mut self, time: Duration) {
        self.laps += 1;
        self.spent += time;
    }

    #[expect(clippy::cast_precision_loss, reason = "for the eye")]
    fn images_per_s(&self) -> f64 {
        (self.batch * self.laps) as f64 / self.spent.as_secs_f64().max(1e-9)
    }

    /// Rate since the last reading.
    fn read(&mut self) -> Clock {
        let clock = Clock { images_per_s: self.images_per_s(), seconds: self.start.elapsed().as_secs_f64() };
        (self.laps, self.spent) = (0, Duration::ZERO);
        clock
    }
}

#[cfg(test)]
mod tests;
