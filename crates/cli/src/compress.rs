//! `cofilter compress`: a recipe, stage by stage.

mod recipe;

use crate::bench::{Time, in_turns};
use crate::convert::Target;
use crate::decompose::{Speed, calibration, sample};
use crate::evaluate::{self, Accuracy, preprocessing, threads};
use crate::output::{Output, short, table};
use crate::source::{About, Source};
use crate::verify::{Limits, Verdict};
use crate::{decompose, finetune, prune};
use anyhow::{Context as _, Result, ensure};
use cofilter_data::Split;
use cofilter_graph::{Artifact, Model};
use cofilter_lowrank::Rank;
use recipe::{Recipe, Stage, Wish};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The recipe, in TOML (files in it are relative to it), or a network for `--target-speedup`
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
    /// Where to fine-tune: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = crate::device::device)]
    device: cofilter_train::Device,
    #[command(flatten)]
    wish: Wish,
    #[command(flatten)]
    about: About,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    before: Size,
    after: Size,
    ranks: BTreeMap<String, Rank>,
    /// Whether ranks will fall while the network is trained, which a dry run cannot tell.
    #[serde(skip)]
    clips: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy_before: Option<Accuracy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy_after: Option<Accuracy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_drop: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tries: Vec<Try>,
    times: Vec<Time>,
    written: Vec<Written>,
}

/// One speedup that was tried.
#[derive(Serialize)]
struct Try {
    #[serde(flatten)]
    speed: Speed,
    /// Points of top-1 accuracy that were lost, after training.
    drop: f64,
}

/// What the stages came to.
struct Outcome {
    artifact: Artifact,
    speed: Option<Speed>,
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

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        ensure!((1..=1024).contains(&self.threads), "--threads {}: expected 1 to 1024", self.threads);
        self.device.check()?;
        let recipe = Recipe::read(self)?;
        let work = self.work.clone().unwrap_or_else(|| {
            let mut name = self.recipe.clone().into_os_string();
            name.push(".run");
            name.into()
        });
        let path = recipe.model.clone().context("no network")?;
        let source = Source { model: path.clone(), about: recipe.about.clone() }.open()?;
        let split = recipe.data.as_deref().map(cofilter_data::open).transpose()?;
        let accuracy = |artifact: &Artifact| -> Result<Option<Accuracy>> {
            let Some(split) = split.as_ref().filter(|_| !self.dry_run) else { return Ok(None) };
            let of = preprocessing(artifact, &path)?;
            evaluate::of(artifact, &split.test, &of, &evaluate::on_cpu(self.threads)).map(Some)
        };
        let accuracy_before = accuracy(&source)?;
        let mut tries = Vec::new();
        let run = |recipe: &Recipe, tries: &mut Vec<Try>| -> Result<(Outcome, Option<Accuracy>)> {
            let outcome = self.stages(recipe, &path, &source, split.as_ref(), &work)?;
            let after = accuracy(&outcome.artifact)?;
            if let (Some(before), Some(after), Some(speed)) = (&accuracy_before, &after, &outcome.speed) {
                tries.push(Try { speed: speed.clone(), drop: before.top1 - after.top1 });
            }
            Ok((outcome, after))
        };
        let (mut outcome, mut accuracy_after) = run(&recipe, &mut tries)?;
        let too_much =
            |tries: &[Try]| self.wish.max_drop.zip(tries.last()).is_some_and(|(most, of)| of.drop > most);
        let wanted = !too_much(&tries);
        // What is reachable instead.
        for share in [0.75, 0.5, 0.25] {
            if !too_much(&tries) {
                break;
            }
            let speedup = self.wish.part(share);
            match run(&recipe.with_speedup(speedup), &mut tries) {
                Ok(other) => (outcome, accuracy_after) = other,
                // Measured anew it may be out of reach; what was tried is told all the same.
                Err(error) if error.downcast_ref::<cofilter_lowrank::Error>().is_some() => {
                    tracing::warn!("{error:#}");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let Outcome { artifact: result, .. } = outcome;
        let mut written = Vec::new();
        for file in recipe.out.iter().filter(|_| !self.dry_run && wanted) {
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
            ranks: decompose::ranks_of(&result.model),
            clips: self.dry_run && recipe.stages.iter().any(Stage::clips),
            accuracy_before,
            accuracy_after,
            max_drop: self.wish.max_drop,
            tries,
            times,
            written,
        };
        let fast_enough = report.tries.first().is_none_or(|of| of.speed.met());
        let met = wanted && fast_enough && report.written.iter().all(|file| file.verified.met);
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
    ) -> Result<Outcome> {
        let mut now = source.clone();
        // What the last stage made its network from.
        let mut before = source.clone();
        let mut speed = None;
        let images = |artifact: &Artifact, count: usize| {
            sample(artifact, path, split.context("it needs `data`")?, count)
        };
        for (at, stage) in recipe.stages.iter().enumerate() {
            let number = at + 1;
            let data = split.filter(|_| stage.needs_data()).map(|split| split.train.sha256());
            // What is learnt from is part of what is learnt.
            let teacher = stage.learns_from_teacher().then(|| source.sha256());
            let key = key(&now, stage, data, teacher.as_deref())?;
            let kept = work.join(format!("{number}-{key}.safetensors"));
            let name = stage.name();
            let fail = || format!("stage {number}, {name}");
            let next = match stage {
                Stage::Finetune(_) if self.dry_run => now.clone(),
                _ if kept.is_file() => {
                    tracing::info!("stage {number}, {name}: done before, {}", kept.display());
                    let artifact = Artifact::load(&kept)?;
                    speed = decompose::speed_of(&artifact).or(speed);
                    artifact
                }
                Stage::Decompose(settings) => {
                    let (result, report) = decompose::apply(&now, settings, None).with_context(fail)?;
                    eprintln!("stage {number}, decompose:\n{}", decompose::text(&report));
                    result
                }
                Stage::DecomposeCalibrated(of) => {
                    let images = images(&now, of.images).with_context(fail)?;
                    let calibration = calibration(&images, self.threads);
                    let (result, report) =
                        decompose::apply(&now, &of.settings, Some(&calibration)).with_context(fail)?;
                    eprintln!("stage {number}, {name}:\n{}", decompose::text(&report));
                    result
                }
                Stage::Target(of) => {
                    let images = images(&now, of.images).with_context(fail)?;
                    let calibration = calibration(&images, self.threads);
                    let plan =
                        decompose::reach(&now, &of.survey, of.speedup, &calibration).with_context(fail)?;
                    eprintln!("stage {number}, {name}:\n{}", decompose::text(&plan.report));
                    plan.reached.iter().for_each(|found| eprintln!("{found}"));
                    speed = plan.reached;
                    plan.artifact
                }
                Stage::BatchNorm(of) => {
                    let images = images(&now, of.images).with_context(fail)?;
                    decompose::restate(&now, &before.model, &calibration(&images, self.threads))
                        .with_context(fail)?
                }
                Stage::Prune(pruning) => {
                    let (result, report) = prune::apply(&now, pruning).with_context(fail)?;
                    eprintln!("stage {number}, {name}:\n{}", report.text());
                    result
                }
                Stage::Compact => {
                    let (result, report) = prune::shrink(&now).with_context(fail)?;
                    eprintln!("stage {number}, {name}:\n{}", report.text());
                    result
                }
                Stage::Staged(_) => unreachable!("a recipe that was read has its parts instead"),
                Stage::Finetune(settings) => {
                    let split = split.context("fine-tuning needs `data`")?;
                    let folder = work.join(format!("{number}-{key}"));
                    // What the recipe begins with knows best.
                    let teacher = Some(&source.model);
                    let job = finetune::Job {
                        recipe: settings,
                        split,
                        teacher,
                        threads: self.threads,
                        device: self.device,
                    };
                    finetune::tune(&now, path, &job, &folder).with_context(fail)?
                }
            };
            before = std::mem::replace(&mut now, next);
            if !self.dry_run && !kept.is_file() {
                std::fs::create_dir_all(work).with_context(|| work.display().to_string())?;
                now.save(&kept)?;
            }
            finetune::go_on()?;
        }
        Ok(Outcome { artifact: now, speed })
    }
}

/// Names a stage by all that its result depends on.
fn key(parent: &Artifact, stage: &Stage, data: Option<&str>, teacher: Option<&str>) -> Result<String> {
    let text = serde_json::to_string(&(env!("CARGO_PKG_VERSION"), parent.sha256(), stage, data, teacher))?;
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
        for of in &self.tries {
            let _ = writeln!(text, "{}; {:.2} points of top-1 lost", of.speed, of.drop);
        }
        if let (Some(most), Some(last)) = (self.max_drop, self.tries.last())
            && self.tries[0].drop > most
        {
            let _ = match last.drop <= most {
                true => writeln!(
                    text,
                    "NOT written: more than {most} points are lost; reachable are {:.2} times as fast for {:.2} points",
                    last.speed.measured, last.drop
                ),
                false => writeln!(
                    text,
                    "NOT written: more than {most} points are lost by every speedup that was tried"
                ),
            };
        }
        for file in &self.written {
            let not = if file.written { "" } else { "NOT written, " };
            let _ = writeln!(text, "{}: {not}{} bytes, {}", file.file.display(), file.bytes, file.verified);
        }
        if self.dry_run {
            text += match self.clips {
                true => {
                    "dry run: nothing was trained or written; a stage clips ranks while it trains, and all of this is from before it\n"
                }
                false => {
                    "dry run: nothing was trained or written; latency is that of the network as it will be, with other numbers\n"
                }
            };
        }
        text
    }
}
