use crate::checkpoint::{self, Checkpoint, Identity, State};
use crate::evaluate::check_data;
use crate::history::{Clock, History, Record};
use crate::progress::Bar;
use crate::rollback::Memory;
use crate::{Clip, Device, Error, Progress, Prune, Recipe, Result, Rollback, Score, Step, Trainer};
use cofilter_data::{Dataset, Pipeline, Sampler};
use cofilter_graph::{Array, Model, Params, Preprocessing};
use cofilter_lowrank::ClippedLayer;
use std::collections::BTreeMap;
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
    /// Where to compute. CPU work runs on rayon's current thread pool; results do not depend on its size. A run that was begun
    /// elsewhere goes on here, and then gives other bits than one that was always here.
    pub device: Device,
    /// Folder of `checkpoint.safetensors` and `history.jsonl`, made if missing. A checkpoint of the same run in it is
    /// resumed, bit for bit; one of another run is an error.
    pub folder: Option<&'a Path>,
    /// When it becomes true, the run ends after the iteration, with a checkpoint; one with [`Rollback`] ends at its last one.
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
        /// Iterations that it goes on after.
        iteration: u64,
        /// Where it goes on from; `None` where there is no checkpoint yet, or no folder: what was learnt is lost.
        checkpoint: Option<PathBuf>,
    },
}

/// Trains a model; equal arguments give equal bytes, also when stopped or killed and resumed.
///
/// # Errors
/// [`Error::Recipe`] and [`Error::Input`] before anything is done; [`Error::Checkpoint`] for a folder of another run;
/// [`Error::Diverged`] when a number stops being finite, [`Error::Forgotten`] when a force has to be rolled back once too often and
/// [`Error::Lowrank`] when ranks cannot be clipped, the last checkpoint is kept then; [`Error::Cuda`]; [`Error::Io`].
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
    let recipe = fit.recipe;
    let masks = recipe.freeze.map(|freeze| freeze.masks(model));
    let (given, frozen) = (fit.masks.is_some(), masks.is_some());
    let conflict = [
        (
            recipe.clip.is_some() && (given || frozen),
            "clip: masks are of the ranks that the network begins with",
        ),
        (recipe.prune.is_some() && given, "prune: it makes masks of its own, there are others already"),
        (frozen && given, "freeze: there are other masks already"),
    ];
    if let Some((_, reason)) = conflict.into_iter().find(|(found, _)| *found) {
        return Err(Error::Recipe(reason.into()));
    }
    let pipeline = Pipeline::new(fit.train, fit.preprocessing, &fit.recipe.augment, fit.recipe.seed)?;
    let mut run = Run {
        start: model,
        fit,
        identity: None,
        history: History::open(None, 0)?,
        saved: None,
        rollbacks: 0,
        memory: Memory::default(),
        anchor: None,
        masks,
        end,
    };
    let mut trainer = run.trainer(model)?;
    check_data(trainer.net(), fit.train)?;
    if let Some(test) = fit.test {
        check_data(trainer.net(), test)?;
    }
    if let Some(folder) = fit.folder {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
        trainer = run.resume(trainer, folder)?;
    }
    if run.rollback().is_some() {
        run.anchor = Some(run.snapshot(&trainer)?);
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
    /// Times that it was rolled back.
    rollbacks: u32,
    memory: Memory,
    /// Where it is rolled back to, if it may be.
    anchor: Option<Checkpoint>,
    /// What is kept at zero, beside [`Fit::masks`]: frozen, or pruned so far.
    masks: Option<Params<Array>>,
    end: Option<End>,
}

impl Run<'_> {
    /// Picks up what the folder holds.
    fn resume(&mut self, mut trainer: Trainer, folder: &Path) -> Result<Trainer> {
        let identity = Identity::of(self.start, self.fit);
        let mut records = 0;
        if let Some(checkpoint) = checkpoint::read(folder, self.start, &identity)? {
            records = checkpoint.records;
            self.saved = Some(checkpoint.iteration);
            self.rollbacks = checkpoint.state.rollbacks;
            self.memory = Memory::new(checkpoint.state.learnt);
            if checkpoint.masks.is_some() {
                self.masks = checkpoint.masks;
            }
            trainer = self.trainer(&checkpoint.model)?;
            trainer.resume(checkpoint.iteration, checkpoint.momentum);
        }
        self.history = History::open(Some(folder), records)?;
        self.identity = Some(identity);
        Ok(trainer)
    }

    fn trainer(&self, model: &Model) -> Result<Trainer> {
        let trainer =
            Trainer::new(model, self.fit.recipe, self.masks.as_ref().or(self.fit.masks), self.fit.device)?;
        let mut trainer = trainer.with_teacher(self.fit.teacher)?;
        if let Some(rollback) = self.rollback() {
            trainer.relieve((0..self.rollbacks).fold(1.0, |relief, _| relief * rollback.factor));
        }
        Ok(trainer)
    }

    fn rollback(&self) -> Option<Rollback> {
        self.fit.recipe.force.as_ref().and_then(|force| force.rollback)
    }

    fn state(&self) -> State {
        State { rollbacks: self.rollbacks, learnt: self.memory.learnt }
    }

    fn snapshot(&self, trainer: &Trainer) -> Result<Checkpoint> {
        Ok(Checkpoint {
            model: trainer.net().to_model()?,
            momentum: trainer.momentum().clone(),
            iteration: trainer.iteration(),
            records: self.history.records().len(),
            state: self.state(),
            // Others follow from the network that the run begins with.
            masks: self.masks.clone().filter(|_| self.fit.recipe.prune.is_some()),
        })
    }

    /// Goes back to the last checkpoint with less force, or passes the error on where that is not to be.
    fn roll_back(&mut self, trainer: &mut Trainer, error: Error) -> Result<()> {
        let may = self.rollback().is_some_and(|rule| self.rollbacks < rule.times);
        let Some(anchor) = self.anchor.take_if(|_| may) else { return Err(error) };
        self.rollbacks += 1;
        self.memory = Memory::new(anchor.state.learnt);
        if self.fit.recipe.prune.is_some() {
            self.masks.clone_from(&anchor.masks);
        }
        self.history.truncate(anchor.records)?;
        *trainer = self.trainer(&anchor.model)?;
        trainer.resume(anchor.iteration, anchor.momentum.clone());
        tracing::warn!("{error}: back to iteration {} with less force", anchor.iteration);
        self.anchor = Some(anchor);
        Ok(())
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

    /// Prunes as the schedule has it after so many iterations; momentum goes where weights go.
    fn prune(&mut self, trainer: &mut Trainer, prune: &Prune) -> Result<()> {
        let iteration = trainer.iteration();
        let (model, masks) =
            cofilter_sparsity::prune_magnitude(&trainer.net().to_model()?, &prune.at(iteration))?;
        let masked = |id, slot: usize, momentum: &Vec<f32>| {
            let mask: &Array = &masks.get(id)[slot];
            momentum.iter().zip(mask.data()).map(|(v, m)| if *m == 0.0 { 0.0 } else { *v }).collect()
        };
        let momentum = trainer.momentum().map(masked);
        self.masks = Some(masks);
        *trainer = self.trainer(&model)?;
        trainer.resume(iteration, momentum);
        Ok(())
    }

    /// To the end (`None`) or until asked to stop.
    fn iterate(
        &mut self,
        trainer: &mut Trainer,
        pipeline: &Pipeline,
        bar: &mut Bar,
    ) -> Result<Option<Outcome>> {
        let mut feed = Feed::new(self.fit, pipeline);
        while trainer.iteration() < self.fit.recipe.iterations {
            if self.end == Some(End::Kill(trainer.iteration())) {
                return Ok(Some(Outcome::Stopped { iteration: trainer.iteration(), checkpoint: None }));
            }
            let asked = self.fit.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            if asked || self.end == Some(End::Stop(trainer.iteration())) {
                return self.stop(trainer).map(Some);
            }
            match self.advance(trainer, &mut feed, bar) {
                Err(error @ (Error::Diverged { .. } | Error::Forgotten { .. })) => {
                    self.roll_back(trainer, error)?;
                    bar.back(trainer.iteration());
                }
                result => result?,
            }
        }
        Ok(None)
    }

    /// What is kept of a run that is stopped. One that may be rolled back goes on from where it would be rolled back to.
    fn stop(&mut self, trainer: &Trainer) -> Result<Outcome> {
        match &self.anchor {
            Some(anchor) => {
                let checkpoint = self.fit.folder.filter(|_| self.saved.is_some()).map(checkpoint::path);
                Ok(Outcome::Stopped { iteration: anchor.iteration, checkpoint })
            }
            None => Ok(Outcome::Stopped { iteration: trainer.iteration(), checkpoint: self.save(trainer)? }),
        }
    }

    /// One iteration and all that is due after it.
    fn advance(&mut self, trainer: &mut Trainer, feed: &mut Feed<'_>, bar: &mut Bar) -> Result<()> {
        let recipe = self.fit.recipe;
        let begin = Instant::now();
        let iteration = trainer.iteration();
        let batch = match feed.ready.take().filter(|ready| ready.iteration == iteration) {
            Some(ready) => ready,
            None => feed.fill(iteration, trainer.buffer(recipe.batch * feed.image_len))?,
        };
        let done = iteration + 1;
        let last = done == recipe.iterations;
        let clip = recipe.clip.as_ref().filter(|clip| !last && clip.is_due(done));
        let evaluate = recipe.evaluate_every > 0
            && (last || done.is_multiple_of(recipe.evaluate_every))
            && self.fit.test.is_some();
        let record = evaluate
            || clip.is_some()
            || (recipe.record_every > 0 && (last || done.is_multiple_of(recipe.record_every)));
        let save = last || (recipe.checkpoint_every > 0 && done.is_multiple_of(recipe.checkpoint_every));
        let step = match self.fit.device {
            // The processor makes the next batch while the device computes.
            Device::Cuda(_) if !last => {
                let spare = trainer.buffer(recipe.batch * feed.image_len);
                let (step, ready) = std::thread::scope(|scope| {
                    let feed = &*feed;
                    let next = scope.spawn(move || feed.fill(done, spare));
                    (trainer.step(batch.images, &batch.labels, record), next.join())
                });
                // What goes wrong there comes again when its turn has come.
                feed.ready = ready.ok().and_then(Result::ok);
                step?
            }
            _ => trainer.step(batch.images, &batch.labels, record)?,
        };
        feed.watch.lap(begin.elapsed());
        bar.advance(&step, recipe.batch, || feed.watch.images_per_s());
        if self.anchor.is_some() {
            self.memory.add(&step, trainer.classes());
            if save {
                self.memory.close(done, trainer.classes())?;
            }
        }
        let clipped = match clip {
            Some(clip) => self.clip(trainer, clip)?,
            None => Vec::new(),
        };
        if let Some(prune) = recipe.prune.as_ref().filter(|prune| prune.is_due(done)) {
            self.prune(trainer, prune)?;
        }
        if record {
            let mut record = new_record(&step, recipe.batch, feed.watch.read());
            record.clipped = clipped;
            if recipe.is_sparse() {
                let layers = cofilter_sparsity::density(&trainer.net().to_model()?);
                record.density = Some(cofilter_sparsity::total_density(&layers).density);
            }
            if let Some(test) = self.fit.test.filter(|_| evaluate) {
                let of = self.fit.preprocessing;
                let score = trainer
                    .evaluate(test, of)
                    .map_err(|error| diverged(error, iteration, trainer, step.loss))?;
                bar.evaluated(&score);
                record.test = Some(score);
            }
            if evaluate && !recipe.spectra.is_empty() {
                let model = trainer.net().to_model()?;
                let of = |layer: &String| Ok((layer.clone(), cofilter_lowrank::spectrum(&model, layer)?));
                record.spectra = recipe.spectra.iter().map(of).collect::<Result<_>>()?;
            }
            self.history.push(record)?;
        }
        if save {
            self.save(trainer)?;
        }
        Ok(())
    }

    /// Writes a checkpoint, unless this one is there, and keeps it in memory where the run may be rolled back to it.
    fn save(&mut self, trainer: &Trainer) -> Result<Option<PathBuf>> {
        let snapshot = self.snapshot(trainer)?;
        let path = match (self.fit.folder, &self.identity) {
            (Some(folder), Some(_)) if self.saved == Some(snapshot.iteration) => {
                Some(checkpoint::path(folder))
            }
            (Some(folder), Some(identity)) => {
                self.history.sync()?;
                let path = checkpoint::write(folder, self.start, &snapshot, identity)?;
                self.saved = Some(snapshot.iteration);
                Some(path)
            }
            _ => None,
        };
        if self.rollback().is_some() {
            self.anchor = Some(snapshot);
        }
        Ok(path)
    }
}

fn new_record(step: &Step, batch: usize, clock: Clock) -> Record {
    Record {
        iteration: step.iteration + 1,
        learning_rate: step.learning_rate,
        loss: step.loss,
        losses: if step.losses.len() > 1 { step.losses.clone() } else { Vec::new() },
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52")]
        top1: step.correct as f64 / batch as f64,
        force_share: step.force_share,
        force_strength: step.force_strength,
        test: None,
        clipped: Vec::new(),
        density: None,
        spectra: BTreeMap::new(),
        clock: Some(clock),
    }
}

/// Where iterations get their images from.
struct Feed<'a> {
    pipeline: &'a Pipeline,
    sampler: Sampler,
    batch: usize,
    /// What was made beforehand.
    ready: Option<Batch>,
    image_len: usize,
    watch: Watch,
}

impl<'a> Feed<'a> {
    fn new(fit: &Fit<'_>, pipeline: &'a Pipeline) -> Self {
        let Recipe { batch, seed, .. } = *fit.recipe;
        Self {
            pipeline,
            sampler: Sampler::new(fit.train.len(), batch, seed),
            batch,
            ready: None,
            image_len: pipeline.input_len(),
            watch: Watch::start(batch),
        }
    }

    /// The images of an iteration, in a buffer.
    fn fill(&self, iteration: u64, mut images: Vec<f32>) -> Result<Batch> {
        let mut labels = vec![0; self.batch];
        self.pipeline.fill(Some(iteration), &self.sampler.indices(iteration), &mut images, &mut labels)?;
        Ok(Batch { iteration, images, labels })
    }
}

/// What an iteration learns from.
struct Batch {
    iteration: u64,
    images: Vec<f32>,
    labels: Vec<u32>,
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
