//! `reproduce` and `data`: build the experiments' program and hand over.

use crate::cuda;
use crate::run::{line, output, root};
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::process::Command;

/// Builds in release mode and runs an experiment; the exit code is the experiment's.
pub(crate) fn reproduce(args: &[String]) -> Result<()> {
    hand_over("reproduce", args)
}

/// Builds in release mode and runs a bench.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    hand_over("bench", args)
}

/// Tells what data lies in a folder.
pub(crate) fn data(args: &[String]) -> Result<()> {
    hand_over("data", args)
}

/// Gathers what the kept reports claim.
pub(crate) fn results() -> Result<()> {
    hand_over("results", &[])
}

fn hand_over(command: &str, args: &[String]) -> Result<()> {
    let typed = std::iter::once("cargo xtask".to_owned())
        .chain([command.to_owned()])
        .chain(args.iter().cloned())
        .collect::<Vec<_>>()
        .join(" ");
    let manifest = root().join("Cargo.toml");
    let mut program = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    // In the folder of the caller, so that paths mean what they say there.
    program
        .args(["run", "--quiet", "--release", "--package", "cofilter-repro", "--manifest-path"])
        .arg(manifest);
    let on_cuda = args.join(" ").replace('=', " ").contains("--device cuda");
    if on_cuda {
        // A compiler for our kernels, where the system has none.
        cuda::add_compiler(&mut program)?;
    }
    program
        .args(["--", command])
        .args(args)
        .env("COFILTER_ROOT", root())
        .env("COFILTER_COMMAND", typed)
        .env("COFILTER_COMMIT", commit())
        .env("COFILTER_RUSTC", line("rustc", &["--version"]).unwrap_or_default());
    // Without this variable candle asks the system for the number of cores at every product, which takes 30 us.
    if let Some(threads) = threads(args) {
        program.env("RAYON_NUM_THREADS", threads);
    }
    become_program(program)
}

/// The commit of the checkout; where files differ from it, followed by `-dirty-` and the start of the difference's digest.
fn commit() -> String {
    let commit = line("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    match output("git", &["diff", "HEAD"]) {
        Some(difference) if !difference.is_empty() => {
            let digest: String =
                Sha256::digest(&difference).iter().take(4).map(|b| format!("{b:02x}")).collect();
            format!("{commit}-dirty-{digest}")
        }
        _ => commit,
    }
}

/// The value of `--threads`, or the number of cores.
fn threads(args: &[String]) -> Option<String> {
    let given = args.iter().enumerate().find_map(|(i, arg)| match arg.strip_prefix("--threads") {
        Some("") => args.get(i + 1).cloned(),
        Some(value) => value.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    // A bench takes a list of numbers and makes its own threads.
    let given = given.filter(|value| !value.contains(','));
    given.or_else(|| std::thread::available_parallelism().ok().map(|n| n.to_string()))
}

/// Takes the program's place, so that signals reach it alone and the prompt waits for it.
#[cfg(unix)]
fn become_program(mut program: Command) -> Result<()> {
    let error = std::os::unix::process::CommandExt::exec(&mut program);
    Err(error).context("cannot start cargo")
}

/// Runs the program and passes its exit code on; it has said itself what is wrong.
#[cfg(not(unix))]
fn become_program(mut program: Command) -> Result<()> {
    let status = program.status().context("cannot start cargo")?;
    std::process::exit(status.code().unwrap_or(1));
}
