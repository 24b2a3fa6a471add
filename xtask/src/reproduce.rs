//! `reproduce` and `data`: build the experiments' program and hand over.

use crate::run::{cargo, line, root};
use anyhow::{Context as _, Result};

/// Builds in release mode and runs an experiment; the exit code is the experiment's.
pub(crate) fn reproduce(args: &[String]) -> Result<()> {
    hand_over("run", args)
}

/// Tells what data lies in a folder.
pub(crate) fn data(args: &[String]) -> Result<()> {
    hand_over("data", args)
}

fn hand_over(command: &str, args: &[String]) -> Result<()> {
    let commit = line("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let clean = line("git", &["status", "--porcelain", "--untracked-files=no"]).is_none_or(|l| l.is_empty());
    let typed = std::iter::once("cargo xtask".to_owned())
        .chain([if command == "run" { "reproduce" } else { command }.to_owned()])
        .chain(args.iter().cloned())
        .collect::<Vec<_>>()
        .join(" ");
    // Without this variable candle asks the system for the number of cores at every product, which takes 30 us.
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let threads = args.iter().position(|a| a == "--threads").and_then(|i| args.get(i + 1)).unwrap_or(&cores);
    let status = cargo(&["run", "--quiet", "--release", "--package", "cofilter-repro", "--", command])
        .args(args)
        .env("RAYON_NUM_THREADS", threads)
        .env("COFILTER_ROOT", root())
        .env("COFILTER_COMMAND", typed)
        .env("COFILTER_COMMIT", format!("{commit}{}", if clean { "" } else { "-dirty" }))
        .env("COFILTER_RUSTC", line("rustc", &["--version"]).unwrap_or_default())
        .status()
        .context("cannot start cargo")?;
    // The program has said what is wrong; its exit code is passed on.
    std::process::exit(status.code().unwrap_or(1));
}
