//! `test` and `ci`.

use crate::run::{cargo, run};
use crate::tidy;
use anyhow::{Context as _, Result};
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
    for experiment in ["lenet", "speed"] {
        step(&format!("reproduce {experiment} --quick"), || {
            let out = format!("target/ci/{experiment}");
            run(&mut cargo(&["xtask", "reproduce", experiment, "--quick", "--fresh", "--out", &out]))
        })?;
    }
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    work().with_context(|| format!("step `{name}`"))?;
    println!("==> {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
