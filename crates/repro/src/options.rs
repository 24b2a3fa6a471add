//! What an experiment can be told on the command line.

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// Digits: train, force, decompose, fine-tune, prune, measure.
    Lenet,
    /// ConvNet on CIFAR-10: force, low rank and fine-tuning as published; needs CIFAR-10.
    Convnet,
    /// CIFAR ResNets taken apart by weights, by outputs and by measured speed; needs CIFAR-10 and trained weights.
    Decompose,
    /// ResNet-20 on CIFAR-10: force, low rank and fine-tuning as published; needs CIFAR-10.
    Resnet20,
    /// Zeros on top of low rank: LeNet on the bundled digits and, with CIFAR-10, ResNet-20; what zeros are worth in time.
    Sparsity,
    /// Theoretical and measured gain of low rank on AlexNet, GoogLeNet and ResNets; no data, no training.
    Speed,
}

impl Experiment {
    /// Name in paths and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Convnet => "convnet",
            Self::Decompose => "decompose",
            Self::Lenet => "lenet",
            Self::Resnet20 => "resnet20",
            Self::Sparsity => "sparsity",
            Self::Speed => "speed",
        }
    }
}

/// Where values and gradients are computed while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU, by kernels of our own.
    Cuda,
}

/// Options of `reproduce`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// What to run
    #[arg(value_enum, default_value = "lenet")]
    pub experiment: Experiment,
    /// Few iterations on little data: the same path, in seconds; its figures mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Folder for stages and report [default: target/reproduce/EXPERIMENT]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Folder of the data set. lenet: MNIST or Fashion-MNIST, for the published 10,000 iterations [default: fixtures/digits];
    /// convnet, decompose, resnet20, sparsity: CIFAR-10
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder with trained networks, for convnet, decompose, resnet20 and sparsity [default: ../shared/data/weights]
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Times that decompose (after a decomposition) and sparsity (for each ResNet-20) show the training images again [default: 5, 2; with
    /// decompose 0: no training]
    #[arg(long)]
    pub epochs: Option<f64>,
    /// First seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of seeds [default: 3, with --quick 1]
    #[arg(long)]
    pub seeds: Option<u64>,
    /// Threads [default: all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Where to train
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceKind,
    /// Forget finished stages first
    #[arg(long)]
    pub fresh: bool,
    /// Also train with other strengths of the force: rank against accuracy (lenet)
    #[arg(long)]
    pub sweep: bool,
    /// Time for all runs of convnet or resnet20, as in `90m`: the published schedules are shortened to it [default: 2h]
    #[arg(long, value_name = "TIME", conflicts_with_all = ["full", "quick"])]
    pub budget: Option<humantime::Duration>,
    /// Iterations of a run of convnet or resnet20 with or without force, instead of a budget; everything else is shortened alike, but
    /// for --tuning
    #[arg(long, value_name = "N", conflicts_with_all = ["budget", "full", "quick"])]
    pub iterations: Option<u64>,
    /// Iterations of a fine-tuning of convnet or resnet20, where that is shortened further
    #[arg(long, value_name = "N", requires = "iterations")]
    pub tuning: Option<u64>,
    /// Images of an update of convnet or resnet20, where not as published
    #[arg(long, value_name = "N", conflicts_with_all = ["full", "quick"])]
    pub batch: Option<usize>,
    /// Learning rate that convnet or resnet20 begin with, with and without force [default: 0.001, 0.1]
    #[arg(long, value_name = "RATE", conflicts_with = "full")]
    pub rate: Option<f64>,
    /// The published schedules of convnet or resnet20, which take days
    #[arg(long, conflicts_with = "quick")]
    pub full: bool,
    /// Train the baseline of convnet or resnet20 too, instead of taking trained weights
    #[arg(long)]
    pub from_scratch: bool,
    /// Most points of top-1 accuracy that the force may cost convnet or resnet20 where its strength is chosen [default: 0, 0.75]
    #[arg(long, value_name = "POINTS")]
    pub max_drop: Option<f64>,
    /// Strengths of each force that are tried for it [default: 6, with --quick 2, with --strengths 1]
    #[arg(long)]
    pub tries: Option<usize>,
    /// Strengths of the L1-norm and the L2-norm force of convnet or resnet20: where the search begins, or with one try what is taken
    #[arg(long, value_name = "L1,L2", value_delimiter = ',')]
    pub strengths: Option<Vec<f64>>,
    /// The L2-norm force of convnet or resnet20 alone, neither L1 nor repulsion, for longer runs: each of --strengths is tried
    #[arg(long, requires = "strengths", conflicts_with = "tries")]
    pub only_l2: bool,
    /// Forces of convnet or resnet20 in proportion to the gradient of each layer: strengths are shares of its norm
    #[arg(long)]
    pub adaptive: bool,
    /// Spread at which the filters of a layer feel no force any more, in convnet or resnet20: the share of their energy outside their
    /// mean direction, at least what rank 1 loses; more strength then costs no more ranks, so there is none to search for
    #[arg(long, value_name = "SHARE", requires = "strengths", conflicts_with_all = ["tries", "full"])]
    pub target_spread: Option<f64>,
    /// Factors of the force by depth: on conv1, conv2 and conv3 of convnet, on 16, 32 and 64 filters of resnet20 [default: 1,1,1]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', conflicts_with = "full")]
    pub factors: Option<Vec<f64>>,
    /// Keep the report under docs/runs too, by the name of the folder of --out, and write docs/results.md anew
    #[arg(long, conflicts_with = "quick")]
    pub keep: bool,
    /// Set by SIGINT and SIGTERM.
    #[arg(skip)]
    pub stop: Arc<AtomicBool>,
}

impl Options {
    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// Names the option, or says what a device for training lacks.
    pub fn check(&self) -> Result<()> {
        ensure!(self.seeds != Some(0), "--seeds 0: at least one seed is needed");
        ensure!(self.seeds.is_none_or(|n| n <= 100), "--seeds: at most 100");
        ensure!(self.threads != Some(0), "--threads 0: at least one thread is needed");
        ensure!(self.threads.is_none_or(|n| n <= 1024), "--threads: at most 1024");
        ensure!(self.epochs.is_none_or(|n| n.is_finite() && n >= 0.0), "--epochs: expected 0 or more");
        let on_cifar = matches!(self.experiment, Experiment::Convnet | Experiment::Resnet20);
        let given = [
            ("--budget", self.budget.is_some()),
            ("--iterations", self.iterations.is_some()),
            ("--tuning", self.tuning.is_some()),
            ("--batch", self.batch.is_some()),
            ("--rate", self.rate.is_some()),
            ("--full", self.full),
            ("--from-scratch", self.from_scratch),
            ("--max-drop", self.max_drop.is_some()),
            ("--tries", self.tries.is_some()),
            ("--strengths", self.strengths.is_some()),
            ("--only-l2", self.only_l2),
            ("--adaptive", self.adaptive),
            ("--target-spread", self.target_spread.is_some()),
            ("--factors", self.factors.is_some()),
        ];
        if let Some((option, _)) = given.iter().find(|(_, given)| *given && !on_cifar) {
            bail!("{option}: an option of convnet and resnet20, not of {}", self.experiment.name());
        }
        ensure!(!self.sweep || self.experiment == Experiment::Lenet, "--sweep: an option of lenet alone");
        if let Some(tries) = self.tries {
            ensure!((1..=50).contains(&tries), "--tries {tries}: expected 1 to 50");
        }
        ensure!(self.max_drop.is_none_or(f64::is_finite), "--max-drop: expected a number");
        if let Some(strengths) = &self.strengths {
            let good =
                (self.only_l2 || strengths.len() == 2) && strengths.iter().all(|s| s.is_finite() && *s > 0.0);
            let count = if self.only_l2 { "numbers" } else { "two numbers" };
            ensure!(good, "--strengths: expected {count} above 0, as in 1e-4,8e-5, found {strengths:?}");
        }
        if let Some(target) = self.target_spread {
            ensure!(
                target > 0.0 && target < 1.0,
                "--target-spread {target}: expected a share above 0 and below 1"
            );
        }
        if let Some(factors) = &self.factors {
            let good = factors.len() == 3
                && factors.iter().all(|f| f.is_finite() && *f >= 0.0)
                && factors.iter().any(|f| *f > 0.0);
            ensure!(
                good,
                "--factors: expected three from 0 up and one above, as in 1,1,2, found {factors:?}"
            );
        }
        ensure!(self.iterations != Some(0), "--iterations 0: at least one is needed");
        ensure!(self.tuning != Some(0), "--tuning 0: at least one is needed");
        if let Some(rate) = self.rate {
            ensure!(rate.is_finite() && rate > 0.0, "--rate {rate}: expected a number above 0");
        }
        if let Some(batch) = self.batch {
            ensure!((1..=10_000).contains(&batch), "--batch {batch}: expected 1 to 10000 images");
        }
        if let Some(budget) = self.budget {
            ensure!(budget.as_secs() >= 60, "--budget {budget}: at least a minute is needed");
        }
        if let Some(folder) = &self.data
            && !folder.is_dir()
        {
            bail!("--data {}: no such folder", folder.display());
        }
        self.training_device().check()?;
        Ok(())
    }

    /// Refuses to go on after SIGINT or SIGTERM.
    ///
    /// # Errors
    /// If one came.
    pub fn check_stop(&self) -> Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "stopped; the same command goes on from here");
        Ok(())
    }

    /// Seeds of the run.
    #[must_use]
    pub fn seed_list(&self) -> Vec<u64> {
        let n = self.seeds.unwrap_or(if self.quick { 1 } else { 3 });
        (0..n).map(|i| self.seed.wrapping_add(i)).collect()
    }

    /// Threads to use.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Folder of stages and report. What was trained on a CUDA device has one of its own.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let name = match self.device {
            DeviceKind::Cpu => self.experiment.name().to_owned(),
            DeviceKind::Cuda => format!("{}-cuda", self.experiment.name()),
        };
        self.out.clone().unwrap_or_else(|| root().join("target/reproduce").join(name))
    }

    /// Where values and gradients are computed while training.
    #[must_use]
    pub fn training_device(&self) -> cofilter_train::Device {
        match self.device {
            DeviceKind::Cpu => cofilter_train::Device::Cpu,
            DeviceKind::Cuda => cofilter_train::Device::Cuda(0),
        }
    }

    /// The command as typed, for the report.
    #[must_use]
    pub fn command(&self) -> String {
        std::env::var("COFILTER_COMMAND").unwrap_or_else(|_| std::env::args().collect::<Vec<_>>().join(" "))
    }
}

/// Folder of the workspace: `COFILTER_ROOT`, set by `cargo xtask`, else the current folder.
#[must_use]
pub fn root() -> PathBuf {
    std::env::var_os("COFILTER_ROOT").map_or_else(|| PathBuf::from("."), PathBuf::from)
}
