//! The workspace's commands: `cargo xtask COMMAND`. Parses, spawns and checks; links none of the other crates.

mod ci;
mod cuda;
mod fixtures;
mod interop;
mod reproduce;
mod run;
mod tidy;

use anyhow::{Result, bail};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  reproduce [EXPERIMENT] [OPTIONS]  run an experiment and write its report under target/reproduce
                                    (`cargo xtask reproduce --help` lists experiments and options)
  bench WHAT [OPTIONS]              speed: layers, nets, peers (other engines), tune (`cargo xtask bench --help`)
  test [ARGS]                       all tests; ARGS go to `cargo test`
  ci [--without-tests]              what CI runs: fmt, tidy, clippy, docs, tests, the quick reproduction
  tiers                             the tests of kernels and runtime on every tier of this machine
  arm                               type-check kernels and runtime for 64-bit ARM; run their tests under qemu if it is there
  cuda-check [--json FILE] [--write] the CUDA backend without a GPU: kernels and host code on a processor, machine code by NVRTC
                                    (--write: write the table of registers anew), and all of it on a GPU where there is one
  interop [--python FILE]           networks to and from PyTorch, torchvision, ONNX Runtime and OpenVINO, which are set up in
                                    target/interop (or those of another Python)
  tidy                              line budgets, fixture hashes, and what no compiler checks
  fixtures [--write]                check (or rewrite) fixtures/SHA256SUMS
  results                           write docs/results.md from the reports under docs/runs
  data [FOLDER]                     tell what data sets lie in FOLDER (../shared/data if left out), and check them
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((command, rest)) = args.split_first() else {
        bail!("no command\n\n{HELP}");
    };
    let flags: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (command.as_str(), flags.as_slice()) {
        ("reproduce", _) => reproduce::reproduce(rest),
        ("bench", _) => reproduce::bench(rest),
        ("data", _) => reproduce::data(rest),
        ("results", []) => reproduce::results(),
        ("test", _) => ci::test(rest),
        ("ci", []) => ci::ci(true),
        ("ci", ["--without-tests"]) => ci::ci(false),
        ("tiers", []) => ci::tiers(),
        ("arm", []) => ci::arm(),
        ("cuda-check", rest) => match rest {
            [] => cuda::check(None, false),
            ["--write"] => cuda::check(None, true),
            ["--json", file] => cuda::check(Some(file), false),
            _ => bail!("cuda-check: expected --json FILE or --write, found `{}`", rest.join(" ")),
        },
        ("interop", []) => interop::interop(None),
        ("interop", ["--python", python]) => interop::interop(Some(python)),
        ("tidy", []) => tidy::tidy(),
        ("fixtures", []) => fixtures::check(),
        ("fixtures", ["--write"]) => fixtures::write(),
        ("help" | "--help" | "-h", _) => {
            print!("{HELP}");
            Ok(())
        }
        _ => bail!("cannot do `{}`\n\n{HELP}", args.join(" ")),
    }
}
