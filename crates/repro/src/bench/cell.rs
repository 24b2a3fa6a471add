//! Cells: a network in a form at a batch size and a number of threads, timed in every engine, round by round.

use super::peers::{ENGINES, Worker, set_up};
use super::subject::{Subject, Yardstick, images, roofline_ms, subjects};
use super::table::{self, Report};
use super::{Options, folder};
use crate::machine::{Machine, commit};
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::Artifact;
use cofilter_runtime::{CostTable, Options as PlanOptions, Plan, Session, Team, reference};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Largest difference between two engines, relative to the range of the logits: what single precision and Winograd's rounding
/// leave after some fifty layers.
pub(super) const TOLERANCE: f64 = 1e-3;
/// Our own name in tables.
pub(super) const OURS: &str = "cofilter";
/// Our plan without Winograd's method, while it is timed.
const DIRECT: &str = "cofilter, direct";
/// Our plan with every step for the whole batch before the next one, while it is timed.
const WHOLE: &str = "cofilter, step by step";

/// Times of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
}

/// What was measured for one network, form, batch size and number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) net: String,
    pub(super) form: String,
    pub(super) batch: usize,
    pub(super) threads: usize,
    pub(super) engines: BTreeMap<String, Times>,
    pub(super) roofline_ms: f64,
    /// Largest difference from another engine (or from the f64 reference), relative to the range of the logits.
    pub(super) max_error: f64,
    /// Our plan without Winograd's method.
    pub(super) direct: Option<Times>,
    /// Our plan with every step for the whole batch before the next one; none for a batch of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<Times>,
    /// Why an engine has no times.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) failures: BTreeMap<String, String>,
}

/// Times all cells that the options ask for and writes tables.
pub(super) fn run(options: &Options, with_peers: bool) -> Result<()> {
    let subjects = subjects(options)?;
    let kit = if with_peers { Some(set_up(options.venv.as_deref())?) } else { None };
    let mut store = Store::open(options, with_peers)?;
    let mut yardsticks = Vec::new();
    let mut cells = Vec::new();
    for threads in options.thread_counts() {
        let mut yardstick = Yardstick::measure(threads);
        println!(
            "{threads} thread(s): peak {:.0} GFLOP/s, reading {:.1} GB/s",
            yardstick.fma_gflops, yardstick.read_gbps
        );
        let team = Arc::new(Team::new(threads)?);
        // Started when a cell needs them.
        let mut workers: Vec<Worker> = Vec::new();
        for subject in &subjects {
            for batch in options.batches() {
                if let Some(known) = store.find(subject, batch, threads) {
                    cells.push(known);
                    continue;
                }
                if let (Some(kit), true) = (&kit, workers.is_empty()) {
                    for engine in ENGINES {
                        workers.push(Worker::start(kit, engine, threads)?);
                    }
                }
                yardstick = yardstick.or_better();
                let cell = measure(subject, batch, &yardstick, &team, &mut workers, options)
                    .with_context(|| format!("{} {} batch {batch}", subject.name, subject.form))?;
                println!("{}", table::line(&cell));
                store.keep(&cell)?;
                cells.push(cell);
            }
        }
        // What the machine was able to do at any time is what it can do.
        for cell in cells.iter_mut().filter(|cell| cell.threads == threads) {
            let subject = subjects.iter().find(|s| (&*s.name, s.form) == (&*cell.net, &*cell.form));
            let subject = subject.context("a cell of a network that is not there")?;
            cell.roofline_ms = roofline_ms(&subject.model, cell.batch, &yardstick);
        }
        yardsticks.push(yardstick);
    }
    let report = Report {
        machine: Machine::here(
            yardsticks.iter().map(|y| y.threads).max().unwrap_or(1),
            cofilter_runtime::cpu_tier(),
        ),
        yardsticks,
        cells,
    };
    table::write(&report, options, with_peers)
}

/// One cell: all engines give the same, then each has its turn round after round.
fn measure(
    subject: &Subject,
    batch: usize,
    yardstick: &Yardstick,
    team: &Arc<Team>,
    workers: &mut [Worker],
    options: &Options,
) -> Result<Cell> {
    let threads = yardstick.threads;
    let plan_options = PlanOptions { batch, threads, team: Some(Arc::clone(team)), ..PlanOptions::default() };
    let session = tuned(subject, &plan_options)?;
    let plan = session.plan().clone();
    let mut ours = vec![(OURS, session)];
    ours.push((DIRECT, tuned(subject, &PlanOptions { tolerance: 0.0, ..plan_options })?));
    if batch > 1 {
        let whole = PlanOptions { cache: 0, ..plan.options().clone() };
        ours.push((WHOLE, Plan::compile(&subject.model, &whole)?.session()));
    }
    let images = images(batch * plan.input_len());
    let mut logits = vec![f32::NAN; batch * plan.output_len()];
    ours[0].1.run(&images, &mut logits)?;
    for (name, session) in &mut ours[1..] {
        let mut others = vec![f32::NAN; logits.len()];
        session.run(&images, &mut others)?;
        let error = difference(&others, &logits)?;
        // The same steps give the same bits, whatever the order of images.
        let tolerance = if *name == WHOLE { 0.0 } else { TOLERANCE };
        ensure!(error <= tolerance, "{name}: the result differs by {error:e}");
    }
    let mut cell = Cell {
        net: subject.name.clone(),
        form: subject.form.into(),
        batch,
        threads,
        engines: BTreeMap::new(),
        roofline_ms: roofline_ms(&subject.model, batch, yardstick),
        max_error: 0.0,
        direct: None,
        whole: None,
        failures: BTreeMap::new(),
    };
    if workers.is_empty() {
        for image in [0, batch - 1] {
            let part = |len: usize| image * len..(image + 1) * len;
            let expected = reference::run(&subject.model, &images[part(plan.input_len())])?;
            let expected: Vec<f32> = expected.iter().map(|v| *v as f32).collect();
            let error = difference(&logits[part(plan.output_len())], &expected)?;
            cell.max_error = if error > cell.max_error || error.is_nan() { error } else { cell.max_error };
        }
        ensure!(cell.max_error <= TOLERANCE, "differs from the reference by {:e}", cell.max_error);
    }
    let ready = load(subject, &images, &logits, workers, &mut cell.failures, batch, |_| TOLERANCE)?;
    for (_, error) in &ready {
        cell.max_error = cell.max_error.max(*error);
    }
    // One engine that differs is its problem; if all do, it is ours.
    ensure!(workers.is_empty() || !ready.is_empty(), "no engine gives what we give: {:?}", cell.failures);
    let ready: Vec<usize> = ready.into_iter().map(|(worker, _)| worker).collect();
    let mut times = rounds(&mut ours, workers, &ready, &images, &mut logits, options.seconds())?;
    cell.direct = times.remove(DIRECT).map(summary);
    cell.whole = times.remove(WHOLE).map(summary);
    cell.engines = times.into_iter().map(|(name, ms)| (name, summary(ms))).collect();
    Ok(cell)
}

/// Times our sessions and the workers that are ready, each in its turn, round by round.
pub(super) fn rounds(
    ours: &mut [(&str, Session)],
    workers: &mut [Worker],
    ready: &[usize],
    images: &[f32],
    logits: &mut [f32],
    seconds: f64,
) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    // A turn of each is as long, so that each is disturbed alike; the first round tells how many runs that is.
    let turn_ms = seconds * 1e3 / ROUNDS as f64;
    let mut turns: BTreeMap<String, Turn> = BTreeMap::new();
    let start = Instant::now();
    for round in 0..=ROUNDS {
        if round > FEWEST_ROUNDS && start.elapsed().as_secs_f64() > LONG {
            break;
        }
        let all = ready.len() + ours.len();
        for turn in 0..all {
            let who = (round + turn) % all;
            let turn = |name: &str| turns.get(name).copied().unwrap_or(Turn { runs: 1, settle: true });
            let (name, ms) = if let Some(which) = who.checked_sub(ready.len()) {
                let (name, session) = &mut ours[which];
                ((*name).to_owned(), time(session, images, logits, turn(name))?)
            } else {
                let worker = &mut workers[ready[who]];
                let Turn { runs, settle } = turn(&worker.name);
                (worker.name.clone(), worker.time(runs, settle)?)
            };
            if round == 0 {
                let once = ms.first().copied().unwrap_or(1.0).max(1e-3);
                let runs = ((turn_ms / once) as usize).clamp(1, 500);
                turns.insert(name, Turn { runs, settle: once < UNSETTLED_MS });
            } else {
                times.entry(name).or_default().extend(ms);
            }
        }
    }
    Ok(times)
}

/// Rounds of a cell.
const ROUNDS: usize = 8;
/// Rounds of a cell that takes longer than [`LONG`] seconds.
const FEWEST_ROUNDS: usize = 5;
const LONG: f64 = 20.0;
/// A run as long as this does not depend on what the caches held before it.
const UNSETTLED_MS: f64 = 250.0;

/// What an engine does when it is its turn.
#[derive(Clone, Copy)]
struct Turn {
    runs: usize,
    /// Whether a run that does not count comes first.
    settle: bool,
}

fn time(session: &mut Session, images: &[f32], logits: &mut [f32], turn: Turn) -> Result<Vec<f64>> {
    if turn.settle {
        session.run(images, logits)?;
    }
    let mut times = Vec::with_capacity(turn.runs);
    for _ in 0..turn.runs {
        let start = Instant::now();
        session.run(images, logits)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// A session of a plan whose forms are chosen by what was measured here.
fn tuned(subject: &Subject, options: &PlanOptions) -> Result<Session> {
    let mut costs = CostTable::new();
    costs.measure(&subject.model, options, 5)?;
    let options = PlanOptions { costs: Some(Arc::new(costs)), ..options.clone() };
    Ok(Plan::compile(&subject.model, &options)?.session())
}

pub(super) fn summary(mut ms: Vec<f64>) -> Times {
    ms.sort_by(f64::total_cmp);
    let rank = |percent: usize| ms[(ms.len() * percent).div_ceil(100).max(1) - 1];
    Times { p50_ms: rank(50), p90_ms: rank(90) }
}

/// Lets every engine compile the network and compares its result with ours; the indices of those that agree, and by how much they differ.
pub(super) fn load(
    subject: &Subject,
    images: &[f32],
    logits: &[f32],
    workers: &mut [Worker],
    failures: &mut BTreeMap<String, String>,
    batch: usize,
    tolerance: impl Fn(&str) -> f64,
) -> Result<Vec<(usize, f64)>> {
    let mut ready = Vec::new();
    if workers.is_empty() {
        return Ok(ready);
    }
    let folder = crate::options::root().join("target/peers");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let model = folder.join("model.safetensors");
    Artifact::new(subject.model.clone()).save(&model)?;
    let input = folder.join("images.f32");
    std::fs::write(&input, images.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    for (index, worker) in workers.iter_mut().enumerate() {
        let loaded = worker.load(&model, &input, batch, &folder.join("logits.f32"));
        match loaded.and_then(|found| difference(&found, logits)) {
            Ok(error) if error <= tolerance(&worker.name) => ready.push((index, error)),
            Ok(error) => {
                failures.insert(worker.name.clone(), format!("its result differs by {error:.1e}"));
            }
            Err(error) => {
                failures.insert(worker.name.clone(), format!("{error:#}"));
            }
        }
    }
    Ok(ready)
}

/// Largest difference, relative to the distance from the smallest to the largest expected number, which must be a good part of
/// the largest one: equal logits would agree whatever an engine does.
pub(super) fn difference(found: &[f32], expected: &[f32]) -> Result<f64> {
    ensure!(found.len() == expected.len(), "{} numbers, expected {}", found.len(), expected.len());
    let over = |f: fn(f32, f32) -> f32, start| f64::from(expected.iter().copied().fold(start, f));
    let (smallest, largest) = (over(f32::min, f32::INFINITY), over(f32::max, f32::NEG_INFINITY));
    let range = largest - smallest;
    ensure!(
        range.is_finite() && range > 1e-2 * largest.abs().max(smallest.abs()),
        "logits from {smallest:e} to {largest:e} tell nothing"
    );
    let worst = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    Ok(worst.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m }) / range)
}

/// Cells of finished runs of this commit, so that a run that was stopped goes on.
struct Store {
    path: PathBuf,
    cells: Vec<Cell>,
}

impl Store {
    fn open(options: &Options, with_peers: bool) -> Result<Self> {
        let what = if with_peers { "peers" } else { "nets" };
        let (commit, tier) = (commit(), cofilter_runtime::cpu_tier());
        let path = folder()?.join(format!("{what}-{commit}-{tier}-{}s.jsonl", options.seconds()));
        // Without a commit nobody knows what measured an earlier cell.
        if (options.fresh || commit == "unknown" || options.venv.is_some()) && path.exists() {
            std::fs::remove_file(&path)?;
        }
        let text = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
        // A line that was cut off by a kill is measured again. A network of the user may change behind its name.
        let own = options.model.is_some();
        let cells =
            text.lines().filter(|_| !own).filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { path, cells })
    }

    fn find(&self, subject: &Subject, batch: usize, threads: usize) -> Option<Cell> {
        let same = |cell: &&Cell| {
            cell.net == subject.name
                && cell.form == subject.form
                && cell.batch == batch
                && cell.threads == threads
        };
        self.cells.iter().find(same).cloned()
    }

    fn keep(&mut self, cell: &Cell) -> Result<()> {
        append(&self.path, &serde_json::to_string(cell)?)
    }
}

fn append(path: &Path, line: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}").with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_and_nan_is_one() {
        assert_eq!(difference(&[1.0, -3.0], &[1.0, -4.0]).unwrap(), 0.2);
        assert!(difference(&[f32::NAN, 1.0], &[1.0, 2.0]).unwrap().is_nan());
        assert!(difference(&[1.0; 2], &[1.0; 2]).is_err() && difference(&[1.0; 2], &[1.0, 1.001]).is_err());
        assert!(difference(&[1.0], &[0.0]).is_err() && difference(&[1.0], &[1.0, 2.0]).is_err());
    }

    #[test]
    fn summaries_are_nearest_ranks() {
        let times = summary((1..=10).rev().map(f64::from).collect());
        assert_eq!((times.p50_ms, times.p90_ms), (5.0, 9.0));
        assert_eq!(summary(vec![3.0]), Times { p50_ms: 3.0, p90_ms: 3.0 });
    }
}
