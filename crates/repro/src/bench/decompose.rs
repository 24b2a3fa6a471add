//! Decomposition of real layers, ours beside PyTorch's and NumPy's.

use super::peers::{Worker, set_up};
use super::{Options, median, publish, written_by};
use crate::machine::Machine;
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Artifact, Conv2d, Graph, Init, Model, Op, Shape};
use cofilter_lowrank::{RankRule, Settings, decompose};
use cofilter_zoo::{Config, by_name};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

/// Share of the energy that ranks keep.
const ENERGY: f64 = 0.95;
/// Rank of fc6.
const FC6_RANK: usize = 512;
/// Most that a rank may differ: theirs are of eigenvalues in single precision.
const RANKS_APART: usize = 1;

#[derive(Serialize)]
struct Report {
    machine: Machine,
    threads: usize,
    rounds: usize,
    cases: Vec<Case>,
}

/// One network, or one layer: medians.
#[derive(Serialize)]
struct Case {
    what: String,
    layers: usize,
    cofilter_s: f64,
    /// In single precision.
    pytorch_s: f64,
    /// In double precision, as ours.
    pytorch_f64_s: f64,
    /// In single precision.
    numpy_s: f64,
    /// Sum of the ranks of all layers, a group of each.
    rank_sum: usize,
    /// Largest difference of a rank from PyTorch's.
    ranks_apart: usize,
}

/// A network and what is decomposed of it.
struct Subject {
    what: &'static str,
    model: Model,
    /// Names and groups.
    layers: Vec<(String, usize)>,
    settings: Settings,
    rule: Result<usize, f64>,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let kit = set_up(options.venv.as_deref())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = if options.quick { 1 } else { 5 };
    let folder = tempfile::tempdir()?;
    let subjects: Vec<Subject> =
        subjects()?.into_iter().filter(|of| of.what.to_lowercase().contains(&options.net)).collect();
    ensure!(
        !subjects.is_empty(),
        "--net {}: expected part of alexnet, googlenet, resnet-50, fc6",
        options.net
    );
    let mut cases = Vec::new();
    for subject in &subjects {
        let mut workers = ["torch", "numpy"].map(|engine| Worker::start(&kit, engine, threads));
        let path = folder.path().join("network.safetensors");
        Artifact::new(subject.model.clone()).save(&path)?;
        let case = measure(subject, &path, &mut workers, rounds).with_context(|| subject.what.to_owned())?;
        println!(
            "{}: {:.3} s, PyTorch {:.3} s, in f64 {:.3} s, NumPy {:.3} s",
            case.what, case.cofilter_s, case.pytorch_s, case.pytorch_f64_s, case.numpy_s
        );
        cases.push(case);
    }
    let machine = Machine::here(threads, cofilter_runtime::cpu_tier());
    let report = Report { machine, threads, rounds, cases };
    publish(options, "runs/speed/decompose.md", &report.text(), &report)
}

fn subjects() -> Result<Vec<Subject>> {
    let config = Config::default();
    let mut subjects = Vec::new();
    for (what, name) in
        [("AlexNet", "bvlc_alexnet"), ("GoogLeNet", "bvlc_googlenet"), ("ResNet-50", "resnet50")]
    {
        let model = Model::init(by_name(name, &config)?, &Init::default(), 1)?;
        let conv = |op: &Op| match op {
            Op::Conv2d(Conv2d { groups, .. }) => Some(*groups),
            _ => None,
        };
        let nodes = model.graph().nodes().iter();
        let layers = nodes.filter_map(|node| Some((node.name().to_owned(), conv(node.op())?))).collect();
        let settings =
            Settings { rule: RankRule::Energy(ENERGY), pointwise: true, grow: true, ..Settings::default() };
        subjects.push(Subject { what, model, layers, settings, rule: Err(ENERGY) });
    }
    let mut b = Graph::builder();
    let x = b.input("data", Shape::Vector(9216))?;
    let x = b.linear("fc6", x, 4096)?;
    let model = Model::init(b.finish(&[x])?, &Init::default(), 1)?;
    let settings =
        Settings { rule: RankRule::by_name([("fc6", FC6_RANK)]), linear: true, ..Settings::default() };
    let layers = vec![("fc6".to_owned(), 1)];
    subjects.push(Subject { what: "fc6 of AlexNet", model, layers, settings, rule: Ok(FC6_RANK) });
    Ok(subjects)
}

fn measure(subject: &Subject, path: &Path, workers: &mut [Result<Worker>; 2], rounds: usize) -> Result<Case> {
    let mut seconds: [Vec<f64>; 4] = Default::default();
    let (mut rank_sum, mut ranks_apart) = (0, 0);
    // The first round warms up.
    for round in 0..=rounds {
        let start = Instant::now();
        let (_, report) = decompose(&subject.model, &subject.settings)?;
        let mut times = vec![start.elapsed().as_secs_f64()];
        let ranks: Vec<usize> = report.layers.iter().map(|layer| layer.rank / layer.groups).collect();
        rank_sum = ranks.iter().sum();
        for (worker, double) in [(0, false), (0, true), (1, false)] {
            let worker = workers[worker].as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let (time, theirs) = worker.decompose(path, &subject.layers, subject.rule, double)?;
            times.push(time);
            ensure!(
                theirs.len() == ranks.len(),
                "{}: {} layers, ours {}",
                worker.name,
                theirs.len(),
                ranks.len()
            );
            let apart = ranks.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
            ensure!(apart <= RANKS_APART, "{}: ranks {theirs:?}, ours {ranks:?}", worker.name);
            ranks_apart = ranks_apart.max(apart);
        }
        if round > 0 {
            seconds.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        }
    }
    let [cofilter_s, pytorch_s, pytorch_f64_s, numpy_s] = seconds.map(|all| median(&all));
    let layers = subject.layers.len();
    let what = subject.what.into();
    Ok(Case { what, layers, cofilter_s, pytorch_s, pytorch_f64_s, numpy_s, rank_sum, ranks_apart })
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!(
            "# Decomposition\n\n{}\n\n{}\n\nSeconds for two factors of every layer, {} thread(s), medians of {} rounds in turns. \
             Ours: `lowrank::decompose` as it is called, in double precision, with spectra, the choice of ranks at {:.0} % of the \
             energy (fc6: rank {FC6_RANK}), the measured error of every layer, and the new network. Theirs: eigenvectors of the \
             smaller Gram matrix in single precision (PyTorch in double precision too), the same ranks, and the factors. Ranks agree \
             within {RANKS_APART} in every round.\n\n| | layers | cofilter, f64 | PyTorch, f32 | PyTorch, f64 | NumPy, f32 | PyTorch f32 \
             over cofilter | PyTorch f64 over cofilter |\n|---|---|---|---|---|---|---|---|\n",
            written_by(),
            self.machine,
            self.threads,
            self.rounds,
            100.0 * ENERGY,
        );
        for case in &self.cases {
            let _ = writeln!(
                text,
                "| {} | {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} | {:.2} |",
                case.what,
                case.layers,
                case.cofilter_s,
                case.pytorch_s,
                case.pytorch_f64_s,
                case.numpy_s,
                case.pytorch_s / case.cofilter_s,
                case.pytorch_f64_s / case.cofilter_s
            );
        }
        text
    }
}
