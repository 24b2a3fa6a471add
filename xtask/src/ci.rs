//! `test` and `ci`.

use crate::cuda;
use crate::run::{cargo, run, starts};
use crate::tidy;
use anyhow::{Context as _, Result};
use std::process::Command;
use std::time::Instant;

/// All tests of the workspace; extra arguments go to `cargo test`.
pub(crate) fn test(args: &[String]) -> Result<()> {
    run(cargo(&["test", "--workspace", "--no-fail-fast"]).args(args))
}

/// Everything that has to hold before a change lands.
pub(crate) fn ci(with_tests: bool) -> Result<()> {
    step("fmt", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("tidy", tidy::tidy)?;
    step("clippy", || {
        run(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("docs", || {
        run(cargo(&["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if with_tests {
        step("test", || test(&[]))?;
    }
    step("tiers", tiers)?;
    step("arm", arm)?;
    step("cuda-check", || cuda::check(None, false))?;
    for experiment in ["lenet", "sparsity", "speed"] {
        step(&format!("reproduce {experiment} --quick"), || {
            let out = format!("target/ci/{experiment}");
            run(&mut cargo(&["xtask", "reproduce", experiment, "--quick", "--fresh", "--out", &out]))
        })?;
    }
    Ok(())
}

/// The tests of what computes on the processor, on every tier but the best one, on which `test` runs them.
pub(crate) fn tiers() -> Result<()> {
    for tier in ["avx2", "portable"] {
        println!("COFILTER_CPU={tier}");
        let mut suite = cargo(&["test", "--quiet", "--package", "cofilter-runtime", "--test", "suite"]);
        run(suite.env("COFILTER_CPU", tier))?;
    }
    Ok(())
}

const ARM: &str = "aarch64-unknown-linux-gnu";
const ARM_LINKER: &str = "aarch64-linux-gnu-gcc";
const ARM_EMULATOR: &str = "qemu-aarch64";

/// Checks the code for ARM; a part for which this machine lacks the tools is named.
pub(crate) fn arm() -> Result<()> {
    if !starts("rustup") {
        println!("skipped: no rustup to add the target {ARM} with");
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", ARM]))?;
    let packages = ["--target", ARM, "--package", "cofilter-kernels", "--package", "cofilter-runtime"];
    run(cargo(&["clippy", "--quiet", "--all-targets"]).args(packages).args(["--", "-D", "warnings"]))?;
    if let Some(missing) = [ARM_LINKER, ARM_EMULATOR].iter().find(|tool| !starts(tool)) {
        println!("skipped: no {missing} to run the tests for {ARM} with");
        return Ok(());
    }
    let emulated = |args: &[&str]| {
        let mut command = cargo(&["test", "--quiet", "--target", ARM]);
        command.args(args).env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", ARM_LINKER);
        let runner = format!("{ARM_EMULATOR} -L /usr/aarch64-linux-gnu");
        run(command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner))
    };
    emulated(&["--package", "cofilter-kernels", "--lib"])?;
    // The whole suite would take an emulator an hour.
    emulated(&["--package", "cofilter-runtime", "--test", "suite", "--", "fixtures", "forms"])
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    work().with_context(|| format!("step `{name}`"))?;
    println!("==> {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
