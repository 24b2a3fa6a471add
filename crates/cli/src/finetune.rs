//! `cofilter finetune`.

use crate::evaluate::{self, Accuracy, preprocessing, threads};
use crate::output::Output;
use crate::source::Source;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_data::Split;
use cofilter_graph::{Artifact, Model};
use cofilter_train::{Device, Fit, Freeze, Outcome, Progress, Recipe, fit};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Folder of the data set
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The file to write: .safetensors
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// How to train, in TOML: `iterations`, `batch`, `learning_rate`, `schedule`, `force`, ...
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Updates, instead of the recipe's
    #[arg(long)]
    iterations: Option<u64>,
    /// Learning rate, instead of the recipe's
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Images of an update, instead of the recipe's
    #[arg(long)]
    batch: Option<usize>,
    /// Weights that are zero stay so, as after `prune` (a recipe can say which, `freeze`)
    #[arg(long)]
    keep_zeros: bool,
    /// Network whose class scores are learnt from as well: the dense one, an artifact or ONNX (a recipe says how much,
    /// `distillation`)
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// Folder for checkpoints, from which a run that was stopped goes on [default: OUT.run]
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Threads
    #[arg(long, default_value_t = threads())]
    threads: usize,
    /// Where to train: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = crate::device::device)]
    device: Device,
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    iterations: u64,
    before: Accuracy,
    after: Accuracy,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        if self.out.extension().is_none_or(|extension| extension != "safetensors") {
            bail!("{}: expected a name that ends in .safetensors", self.out.display());
        }
        let mut recipe = match &self.recipe {
            None => Recipe::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                toml::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?
            }
        };
        recipe.iterations = self.iterations.unwrap_or(recipe.iterations);
        recipe.learning_rate = self.learning_rate.unwrap_or(recipe.learning_rate);
        recipe.batch = self.batch.unwrap_or(recipe.batch);
        if self.keep_zeros {
            recipe.freeze.get_or_insert(Freeze::Elements);
        }
        let teacher = match &self.teacher {
            None => None,
            Some(path) => {
                // Weight and temperature that are usual, unless a recipe says otherwise.
                recipe.distillation.get_or_insert_default();
                // What is said of the network's file is not said of the teacher's.
                Some(Source { model: path.clone(), ..Source::default() }.open()?.model)
            }
        };
        writable(&self.out)?;
        self.device.check()?;
        ensure!((1..=1024).contains(&self.threads), "--threads {}: expected 1 to 1024", self.threads);
        let source = self.source.open()?;
        let split = cofilter_data::open(&self.data)?;
        let of = preprocessing(&source, &self.source.model)?;
        let before = evaluate::of(&source, &split.test, &of, &evaluate::on_cpu(self.threads))?;
        let work = self.work.clone().unwrap_or_else(|| {
            let mut name = self.out.clone().into_os_string();
            name.push(".run");
            name.into()
        });
        let job = Job {
            recipe: &recipe,
            split: &split,
            teacher: teacher.as_ref(),
            threads: self.threads,
            device: self.device,
        };
        let tuned = tune(&source, &self.source.model, &job, &work)?;
        let after = evaluate::of(&tuned, &split.test, &of, &evaluate::on_cpu(self.threads))?;
        tuned.save(&self.out)?;
        let text = format!("before: {before}\nafter:  {after}\n{}", self.out.display());
        let report = Report { out: self.out.clone(), iterations: recipe.iterations, before, after };
        Output::new(text, &report)
    }
}

/// A signal asked to stop.
#[derive(Debug)]
pub(crate) struct Stopped(String);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// Ends what a signal asked to stop just when a training had ended.
pub(crate) fn go_on() -> Result<()> {
    if STOP.load(Ordering::SeqCst) {
        return Err(Stopped("stopped; the same command goes on".into()).into());
    }
    Ok(())
}

/// How a network is trained further.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) split: &'a Split,
    /// What is learnt from beside labels, where the recipe says so.
    pub(crate) teacher: Option<&'a Model>,
    pub(crate) threads: usize,
    pub(crate) device: Device,
}

/// Trains a network further; a run that was stopped goes on.
pub(crate) fn tune(source: &Artifact, path: &Path, job: &Job<'_>, work: &Path) -> Result<Artifact> {
    let Job { recipe, split, teacher, threads, device } = *job;
    let of = preprocessing(source, path)?;
    let settings = Fit {
        recipe,
        train: &split.train,
        test: (recipe.evaluate_every > 0).then_some(&split.test),
        preprocessing: &of,
        device,
        folder: Some(work),
        stop: Some(stop()?),
        masks: None,
        teacher,
        progress: Progress::Bar("training".into()),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    TRAINING.store(true, Ordering::SeqCst);
    let outcome = pool.install(|| fit(&source.model, &settings));
    TRAINING.store(false, Ordering::SeqCst);
    match outcome? {
        Outcome::Finished(trained) => {
            let mut artifact = Artifact::new(trained.model);
            artifact.provenance = source.provenance.clone();
            let classes = split.train.classes();
            if let Some(of) = artifact.provenance.preprocessing.as_mut().filter(|of| of.classes.is_empty()) {
                of.classes = classes.to_vec();
            }
            artifact.provenance.parent_sha256 = Some(source.sha256());
            artifact.provenance.data_sha256 = Some(split.train.sha256().to_owned());
            artifact.provenance.seed = Some(recipe.seed);
            artifact.provenance.recipe = Some(serde_json::to_value(recipe)?);
            Ok(artifact)
        }
        Outcome::Stopped { iteration, .. } => Err(Stopped(format!(
            "stopped after {iteration} iterations; the same command goes on from {}",
            work.display()
        ))
        .into()),
    }
}

/// Refuses a file that cannot be written before hours are spent on what it is to hold.
pub(crate) fn writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "{}: no folder {}", path.display(), folder.display());
    Ok(())
}

/// Whether a training is under way, which a signal asks to stop; anything else it ends at once.
static TRAINING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Becomes true at the first signal while a network is trained; the second one ends the process.
fn stop() -> Result<&'static AtomicBool> {
    static HANDLER: OnceLock<bool> = OnceLock::new();
    let set = HANDLER.get_or_init(|| {
        let handler = || {
            if !TRAINING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        };
        ctrlc::set_handler(handler).is_ok()
    });
    anyhow::ensure!(*set, "signals cannot be handled");
    Ok(&STOP)
}
