//! Speed of layers and networks, against the machine's peak and against other engines. No figure is given whose output was not
//! checked.

mod cell;
mod cuda;
mod decompose;
mod embed;
mod gain;
mod layers;
mod peers;
pub(crate) mod sparse;
mod subject;
mod table;
mod train;
mod tune;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Every distinct convolution and fully connected layer of the networks: GFLOP/s and share of the measured peak
    Layers(Options),
    /// All convolutions of AlexNet, GoogLeNet and ResNet-50, and fc6 of AlexNet, into two factors, beside PyTorch's and NumPy's
    /// fastest exact way
    Decompose(Options),
    /// A stripped binary with the runtime alone, beside ONNX Runtime: size, start-up, first and second run, memory
    Embed(Options),
    /// Layers in low-rank form over the same layers dense: what is gained of what the arithmetic promises
    Gain(Options),
    /// Networks in our runtime alone, with their distance to the roofline
    Nets(Options),
    /// Networks in our runtime, ONNX Runtime, OpenVINO and PyTorch (f32 all), interleaved in one run
    Peers(Options),
    /// Pruned convolutions over the same ones dense, by density and pattern of zeros
    Sparse(Options),
    /// Training beside PyTorch's, interleaved in one run: images a second, losses (curves in the JSON), shares of an iteration
    Train(Options),
    /// Measure what every way of computing the layers costs here, and keep it for plans
    Tune(Options),
}

/// Which cells, and for how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Batch 1 and 8 and a short time for each cell; for `train`, 20 iterations instead of 200
    #[arg(long)]
    quick: bool,
    /// Only networks (for `gain`: sets of layers, for `sparse`: layers) whose name contains this
    #[arg(long, default_value = "")]
    net: String,
    /// Only `dense` or `low-rank`
    #[arg(long, value_parser = ["dense", "low-rank"])]
    form: Option<String>,
    /// Batch sizes [default: 1,8,32, quick: 1,8]
    #[arg(long, value_delimiter = ',')]
    batch: Vec<usize>,
    /// Numbers of threads [default: 1 and the number of cores]
    #[arg(long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Seconds of timing for each cell and engine [default: 1.2, quick: 0.25]
    #[arg(long)]
    budget: Option<f64>,
    /// A network of your own, an artifact (`.safetensors`) or `.onnx`, instead of the built-in ones
    #[arg(long)]
    model: Option<PathBuf>,
    /// Write the cells to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the tables under `docs` (`runs/speed`) instead of `target/bench`
    #[arg(long)]
    write: bool,
    /// Forget the cells of earlier runs of this commit
    #[arg(long)]
    fresh: bool,
    /// Python environment with the engines, instead of one that is set up in `target/peers`
    #[arg(long)]
    venv: Option<PathBuf>,
    /// Where networks run; for `peers`
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
}

/// Where networks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Device {
    /// The processor.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

impl Options {
    fn batches(&self) -> Vec<usize> {
        match (self.batch.is_empty(), self.quick) {
            (false, _) => self.batch.clone(),
            (true, false) => vec![1, 8, 32],
            (true, true) => vec![1, 8],
        }
    }

    fn thread_counts(&self) -> Vec<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self.threads.is_empty() {
            false => self.threads.clone(),
            true if cores == 1 => vec![1],
            true => vec![1, cores],
        }
    }

    fn seconds(&self) -> f64 {
        self.budget.unwrap_or(if self.quick { 0.25 } else { 1.2 })
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.batch.contains(&0), "--batch: expected sizes above 0");
        ensure!(self.threads.iter().all(|t| (1..=1024).contains(t)), "--threads: expected 1..=1024");
        ensure!(self.budget.is_none_or(|s| s > 0.0 && s.is_finite()), "--budget: expected seconds above 0");
        if let Some(model) = &self.model {
            ensure!(
                model.extension().is_some_and(|e| e == "safetensors" || e == "onnx"),
                "{}: expected an artifact (.safetensors) or .onnx",
                model.display()
            );
        }
        Ok(())
    }
}

impl Options {
    /// Refuses flags that a bench would not look at.
    fn refuse(&self, flags: &[&str]) -> Result<()> {
        let given = [
            ("--batch", !self.batch.is_empty()),
            ("--budget", self.budget.is_some()),
            ("--device", self.device == Device::Cuda),
            ("--form", self.form.is_some()),
            ("--fresh", self.fresh),
            ("--json", self.json.is_some()),
            ("--model", self.model.is_some()),
            ("--quick", self.quick),
            ("--threads", !self.threads.is_empty()),
            ("--venv", self.venv.is_some()),
            ("--write", self.write),
        ];
        let vain = given.iter().find(|(flag, given)| *given && flags.contains(flag));
        ensure!(vain.is_none(), "{}: this bench has no use for it", vain.map_or("", |(flag, _)| flag));
        Ok(())
    }
}

/// The middle one of some figures; not a number if there is none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Who wrote a report: the command as it was typed, and the commit.
fn written_by() -> String {
    let command = std::env::var("COFILTER_COMMAND").unwrap_or_else(|_| "cofilter-repro".into());
    format!("Written by `{command}` at commit {}, not by hand.", crate::machine::commit())
}

/// Writes a report as a file under `docs` (with `--write`) or in the folder of benches, and as JSON where asked for.
fn publish(options: &Options, docs: &str, text: &str, report: &impl serde::Serialize) -> Result<()> {
    let path = Path::new(docs);
    let path = match (options.write, path.file_name()) {
        (false, Some(name)) => folder()?.join(name),
        _ => crate::options::root().join("docs").join(path),
    };
    cofilter_graph::write_atomically(&path, text.as_bytes())?;
    if let Some(json) = &options.json {
        let mut text = serde_json::to_string_pretty(report)?;
        text.push('\n');
        cofilter_graph::write_atomically(json, text.as_bytes())?;
    }
    println!("{}", path.display());
    Ok(())
}

/// Folder for what benches keep between runs.
fn folder() -> Result<PathBuf> {
    let folder = crate::options::root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Runs a bench.
///
/// # Errors
/// For options that make no sense, a network that cannot be compiled, or an engine that gives another result.
pub fn run(bench: &Bench) -> Result<()> {
    let (options, vain): (&Options, &[&str]) = match bench {
        Bench::Layers(options) => (options, &["--device", "--fresh", "--json", "--venv", "--write"]),
        Bench::Decompose(options) => {
            (options, &["--device", "--batch", "--budget", "--form", "--fresh", "--model", "--threads"])
        }
        Bench::Embed(options) => {
            (options, &["--device", "--batch", "--budget", "--fresh", "--json", "--quick"])
        }
        Bench::Gain(options) => (options, &["--device", "--form", "--fresh", "--model", "--venv"]),
        Bench::Nets(options) => (options, &["--device", "--venv", "--write"]),
        Bench::Peers(options) if options.device == Device::Cuda => (options, &["--threads", "--fresh"]),
        Bench::Peers(options) => (options, &[]),
        Bench::Sparse(options) => (options, &["--device", "--form", "--fresh", "--model", "--venv"]),
        Bench::Train(options) => {
            (options, &["--device", "--batch", "--budget", "--form", "--fresh", "--model"])
        }
        Bench::Tune(options) => (options, &["--device", "--budget", "--json", "--venv", "--write"]),
    };
    options.check()?;
    options.refuse(vain)?;
    match bench {
        Bench::Layers(options) => layers::run(options),
        Bench::Decompose(options) => decompose::run(options),
        Bench::Embed(options) => embed::run(options),
        Bench::Gain(options) => gain::run(options),
        Bench::Nets(options) => cell::run(options, false),
        Bench::Peers(options) if options.device == Device::Cuda => cuda::run(options),
        Bench::Peers(options) => cell::run(options, true),
        Bench::Sparse(options) => sparse::run(options),
        Bench::Train(options) => train::run(options),
        Bench::Tune(options) => tune::run(options),
    }
}
