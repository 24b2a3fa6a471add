//! Where a run took place.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What of a machine decides times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Logical cores.
    pub cores: usize,
    /// Threads that the run used.
    pub threads: usize,
    /// Instruction set the kernels run with.
    pub tier: String,
    /// Operating system and architecture.
    pub os: String,
    /// Version of the compiler that built the program (`COFILTER_RUSTC`, set by `cargo xtask`).
    pub rustc: String,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here(threads: usize, tier: &str) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(": "));
        Self {
            cpu: model.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            tier: tier.to_owned(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            rustc: std::env::var("COFILTER_RUSTC").unwrap_or_else(|_| "unknown compiler".to_owned()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, threads, tier, os, rustc } = self;
        write!(f, "{cpu}, {cores} cores, {threads} threads used, {tier} kernels, {os}, {rustc}")
    }
}

/// Commit of the sources, with `-dirty` where they differ from it, as `cargo xtask reproduce` found it just before it
/// built and started this program (`COFILTER_COMMIT`); `unknown` if started in another way.
#[must_use]
pub fn commit() -> String {
    std::env::var("COFILTER_COMMIT").unwrap_or_else(|_| "unknown".to_owned())
}
