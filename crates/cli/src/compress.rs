//! `cofilter compress`: a recipe, stage by stage.

use crate::bench::{Time, in_turns};
use crate::convert::Target;
use crate::evaluate::{self, Accuracy, preprocessing, threads};
use crate::output::{Output, short, table};
use crate::source::{About, Source};
use crate::verify::{Limits, Verdict};
use crate::{decompose, finetune};
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_data::Split;
use cofilter_graph::{Artifact, Model};
use cofilter_lowrank::Settings;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The recipe, in TOML; files in it are relative to it
    recipe: PathBuf,
    /// Tell size, operations and latency that the recipe will come to, without training and writing
    #[arg(long)]
    dry_run: bool,
    /// The network to begin with, instead of the recipe's
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Folder of the data set, instead of the recipe's
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Files to write, instead of the recipe's
    #[arg(short, long, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// Folder in which finished stages are kept [default: RECIPE.run]
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Threads
    #[arg(long, default_value_t = threads())]
    threads: usize,
}

/// What a recipe says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The network to begin with.
    model: Option<PathBuf>,
    /// What its file does not say.
    #[serde(default)]
    about: About,
    /// Folder of the data set.
    data: Option<PathBuf>,
    /// Files to write: `.safetensors`, `.onnx`.
    #[serde(default)]
    out: Vec<PathBuf>,
    stages: Vec<Stage>,
    #[serde(default)]
    bench: Bench,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
enum Stage {
    Decompose(Settings),
    Finetune(Box<cofilter_train::Recipe>),
}

/// How latency is measured.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Bench {
    batch: usize,
    seconds: f64,
}

impl Default for Bench {
    fn default() -> Self {
        Self { batch: 1, seconds: 3.0 }
    }
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    before: Size,
    after: Size,
    ranks: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy_before: Option<Accuracy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy_after: Option<Accuracy>,
    times: Vec<Time>,
    written: Vec<Written>,
}

#[derive(Serialize)]
struct Size {
    params: usize,
    macs: usize,
    bytes: usize,
}

#[derive(Serialize)]
struct Written {
    file: PathBuf,
    bytes: usize,
    /// Not if it is not verified.
    written: bool,
    verified: Verdict,
}

impl Recipe {
    fn read(args: &Args) -> Result<Self> {
        let path = &args.recipe;
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut recipe: Self =
            toml::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let of = |file: &mut PathBuf| *file = folder.join(&*file);
        let About { weights, mean, .. } = &mut recipe.about;
        let files = weights.iter_mut().chain(mean).chain(&mut recipe.model).chain(&mut recipe.data);
        files.chain(&mut recipe.out).for_each(of);
        // What the command says comes before what the recipe says.
        recipe.model = args.model.clone().or(recipe.model);
        recipe.data = args.data.clone().or(recipe.data);
        if !args.out.is_empty() {
            recipe.out.clone_from(&args.out);
        }
        recipe.check().with_context(|| path.display().to_string())?;
        Ok(recipe)
    }

    /// Refuses before anything is done what would fail or make no sense later.
    fn check(&self) -> Result<()> {
        ensure!(
            !self.stages.is_empty(),
            "no stages: expected [[stages]] with `stage = \"decompose\"` or \"finetune\""
        );
        ensure!(self.model.is_some(), "no network: expected `model`, or `--model`");
        let seconds = self.bench.seconds;
        ensure!(seconds.is_finite() && seconds > 0.0, "bench: seconds {seconds}, expected above 0");
        ensure!(self.bench.batch > 0, "bench: a batch of 0 images");
        ensure!(!self.out.is_empty(), "no file to write: expected `out`, or `--out`");
        for file in &self.out {
            Target::of(file, false)?;
            finetune::writable(file)?;
        }
        if let Some(at) = self.stages.iter().position(|stage| matches!(stage, Stage::Finetune(_))) {
            ensure!(self.data.is_some(), "stage {}: fine-tuning needs `data`", at + 1);
        }
        let two = self
            .stages
            .windows(2)
            .position(|pair| matches!(pair, [Stage::Decompose(_), Stage::Decompose(_)]));
        if let Some(at) = two {
            bail!(
                "stage {}: decomposes again what stage {} has just decomposed, which has no effect",
                at + 2,
                at + 1
            );
        }
        if let Some(Stage::Decompose(_)) = self.stages.last() {
            tracing::warn!("the last stage decomposes: fine-tuning after it would recover accuracy");
        }
        Ok(())
    }
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        ensure!((1..=1024).contains(&self.threads), "--threads {}: expected 1 to 1024", self.threads);
        let recipe = Recipe::read(self)?;
        let work = self.work.clone().unwrap_or_else(|| {
            let mut name = self.recipe.clone().into_os_string();
            name.push(".run");
            name.into()
        });
        let path = recipe.model.clone().context("no network")?;
        let source = Source { model: path.clone(), about: recipe.about.clone() }.open()?;
        let split = recipe.data.as_deref().map(cofilter_data::open).transpose()?;
        let (result, ranks) = self.stages(&recipe, &path, &source, split.as_ref(), &work)?;
        let accuracy = |artifact: &Artifact| -> Result<Option<Accuracy>> {
            let Some(split) = split.as_ref().filter(|_| !self.dry_run) else { return Ok(None) };
            let of = preprocessing(artifact, &path)?;
            evaluate::of(artifact, &split.test, &of, self.threads).map(Some)
        };
        let (accuracy_before, accuracy_after) = (accuracy(&source)?, accuracy(&result)?);
        let mut written = Vec::new();
        for file in recipe.out.iter().filter(|_| !self.dry_run) {
            let (bytes, verified) =
                Target::of(file, false)?.write(&result, &result.model, file, Some(&Limits::default()))?;
            let verified = verified.context("nothing was verified")?;
            written.push(Written { file: file.clone(), bytes, written: verified.met, verified });
        }
        let models = [("before", &source.model), ("after", &result.model)];
        let times = in_turns(&models, recipe.bench.batch, self.threads, recipe.bench.seconds)?;
        let report = Report {
            dry_run: self.dry_run,
            before: Size::of(&source.model),
            after: Size::of(&result.model),
            ranks,
            accuracy_before,
            accuracy_after,
            times,
            written,
        };
        let met = report.written.iter().all(|file| file.verified.met);
        let text = report.text(recipe.bench.batch, self.threads);
        Ok(Output::new(text, &report)?.with_met(met))
    }

    /// Runs all stages, those before that are kept aside; a dry run trains nothing.
    fn stages(
        &self,
        recipe: &Recipe,
        path: &Path,
        source: &Artifact,
        split: Option<&Split>,
        work: &Path,
    ) -> Result<(Artifact, BTreeMap<String, usize>)> {
        let mut now = source.clone();
        let mut ranks = decompose::ranks_of(source);
        for (at, stage) in recipe.stages.iter().enumerate() {
            let number = at + 1;
            let data =
                split.filter(|_| matches!(stage, Stage::Finetune(_))).map(|split| split.train.sha256());
            let key = key(&now, stage, data)?;
            let kept = work.join(format!("{number}-{key}.safetensors"));
            let name = match stage {
                Stage::Decompose(_) => "decompose",
                Stage::Finetune(_) => "finetune",
            };
            let fail = || format!("stage {number}, {name}");
            now = match stage {
                Stage::Finetune(_) if self.dry_run => now,
                _ if kept.is_file() => {
                    tracing::info!("stage {number}, {name}: done before, {}", kept.display());
                    Artifact::load(&kept)?
                }
                Stage::Decompose(settings) => {
                    let (result, report) = decompose::apply(&now, settings).with_context(fail)?;
                    eprintln!("stage {number}, decompose:\n{}", decompose::text(&report));
                    result
                }
                Stage::Finetune(settings) => {
                    let split = split.context("fine-tuning needs `data`")?;
                    let folder = work.join(format!("{number}-{key}"));
                    finetune::tune(&now, path, settings, split, &folder, self.threads).with_context(fail)?
                }
            };
            if !self.dry_run && !kept.is_file() {
                std::fs::create_dir_all(work).with_context(|| work.display().to_string())?;
                now.save(&kept)?;
            }
            finetune::go_on()?;
            if matches!(stage, Stage::Decompose(_)) {
                ranks = decompose::ranks_of(&now);
            }
        }
        Ok((now, ranks))
    }
}

/// Names a stage by all that its result depends on.
fn key(parent: &Artifact, stage: &Stage, data: Option<&str>) -> Result<String> {
    let text = serde_json::to_string(&(env!("CARGO_PKG_VERSION"), parent.sha256(), stage, data))?;
    Ok(Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

impl Size {
    fn of(model: &Model) -> Self {
        let cost = model.cost();
        let numbers: usize = model.params().iter().map(|(_, _, array)| array.data().len()).sum();
        Self { params: cost.params(), macs: cost.macs(), bytes: 4 * numbers }
    }
}

impl Report {
    fn text(&self, batch: usize, threads: usize) -> String {
        let ms = |at: usize| self.times.get(at).map_or(String::new(), |time| format!("{:.3}", time.p50_ms));
        let accuracy =
            |of: &Option<Accuracy>| of.as_ref().map_or("–".into(), |of| format!("{:.2} %", of.top1));
        let latency = format!("ms, batch {batch}, {threads} thread(s)");
        let header = ["network", "weights", "bytes", "MACs", &latency, "top-1"];
        let row = |name: &str, size: &Size, ms: String, top1: String| {
            vec![name.to_owned(), short(size.params), short(size.bytes), short(size.macs), ms, top1]
        };
        let rows = [
            row("before", &self.before, ms(0), accuracy(&self.accuracy_before)),
            row("after", &self.after, ms(1), accuracy(&self.accuracy_after)),
        ];
        let mut text = table(&header, rows);
        let speedup = self.times.get(1).map_or(f64::NAN, |time| time.speedup);
        #[expect(clippy::cast_precision_loss, reason = "ratios with two digits")]
        let [size, macs] = [(self.before.params, self.after.params), (self.before.macs, self.after.macs)]
            .map(|(before, after)| before as f64 / after as f64);
        let _ = writeln!(
            text,
            "\n\n{size:.2} times fewer weights, {macs:.2} times fewer MACs, measured {speedup:.2} times faster"
        );
        let ranks: Vec<String> = self.ranks.iter().map(|(layer, rank)| format!("{layer} {rank}")).collect();
        let _ = writeln!(text, "ranks: {}", ranks.join(", "));
        for file in &self.written {
            let not = if file.written { "" } else { "NOT written, " };
            let _ = writeln!(text, "{}: {not}{} bytes, {}", file.file.display(), file.bytes, file.verified);
        }
        if self.dry_run {
            text += "dry run: nothing was trained or written; latency is that of the network as it will be, with other numbers\n";
        }
        text
    }
}
