//! The CUDA backend without a GPU. Three parts, as each needs other libraries where the loader looks for CUDA's: `standin` (kernels and
//! host code on a processor), `alone` (the same where cuDNN and cuBLASLt are missing) and `cubins` (machine code), which add to the
//! file that the first one wrote. A fourth one, `device`, is for a machine that has a GPU, and needs nothing of the others. `cargo xtask
//! cuda-check` builds the stand-ins, finds the real compiler and starts all.

mod cubins;
mod device;
mod faults;
mod floors;
mod kernels;
mod learning;
mod libraries;
mod networks;
mod numbers;
mod reference;
mod stages;
mod standin;
mod times;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Found {
    /// Kernels that were run.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<usize>,
    /// Cases of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    cases: Option<usize>,
    /// Barriers that were deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    mutants: Option<usize>,
    /// Of these, those that a case showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    mutants_caught: Option<usize>,
    /// Networks that were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    networks: Option<usize>,
    /// Networks of which an iteration of training was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    trained: Option<usize>,
    /// Cases of routines of libraries.
    #[serde(skip_serializing_if = "Option::is_none")]
    routines: Option<usize>,
    /// Failures that were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    faults: Option<usize>,
    /// Kernels by architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    cubins: Option<BTreeMap<String, usize>>,
    /// What ran on a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<device::OnDevice>,
    /// What failed.
    failed: Vec<String>,
}

impl Found {
    /// What earlier parts found.
    fn read(json: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(json).with_context(|| json.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    fn write(&self, json: &Path) -> Result<()> {
        std::fs::write(json, serde_json::to_string(self)?).with_context(|| json.display().to_string())
    }

    /// The result of a part, or nothing and a line in `failed`.
    fn part<T>(&mut self, name: &str, part: impl FnOnce() -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let result = part();
        println!("{name}: {:.0} s", start.elapsed().as_secs_f64());
        match result {
            Ok(result) => Some(result),
            Err(error) => {
                println!("{name}: FAILED: {error:#}");
                self.failed.push(format!("{name}: {error:#}"));
                None
            }
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (json, found) = match args.as_slice() {
        ["standin", json] => (json, on_standin()?),
        ["alone", json] => {
            let mut found = Found::read(Path::new(json))?;
            found.part("without libraries", || libraries::alone(&standin::Standin::open()?));
            (json, found)
        }
        ["device", json, table, seconds, stages @ ..] => {
            let limit = Duration::from_secs(seconds.parse().context("seconds")?);
            return device::check(Path::new(json), Path::new(table), limit, stages);
        }
        ["device-stage", stage, folder, table] => {
            return stages::run(stage, Path::new(folder), Path::new(table));
        }
        ["floors", file, rest @ ..] if matches!(rest, [] | ["--write"]) => {
            return floors::check(Path::new(file), !rest.is_empty());
        }
        ["cubins", json, table, rest @ ..] if matches!(rest, [] | ["--write"]) => {
            (json, machine_code(Found::read(Path::new(json))?, Path::new(table), !rest.is_empty()))
        }
        _ => bail!(
            "expected `standin JSON`, `alone JSON`, `cubins JSON TABLE [--write]`, `floors FILE [--write]` or \
             `device JSON TABLE SECONDS [STAGE..]`; `cargo xtask cuda-check` starts this"
        ),
    };
    found.write(Path::new(json))
}

fn on_standin() -> Result<Found> {
    let standin = standin::Standin::open()?;
    let cache = tempfile::tempdir()?;
    let mut found = Found::default();
    let mut say = |line: String| println!("  {line}");
    if let Some(counts) = found.part("kernels", || kernels::check(&standin)) {
        // And the sums of parts, which run with the cases that have parts.
        found.kernels = Some(counts.len() + 1);
        found.cases = Some(counts.values().sum());
    }
    let of_running = found.part("mutants", || kernels::mutants(&standin, &mut say));
    let of_training = found.part("mutants of training", || learning::mutants(&standin, &mut say));
    if let (Some([a, caught_a]), Some([b, caught_b])) = (of_running, of_training) {
        let (mutants, caught) = (a + b, caught_a + caught_b);
        (found.mutants, found.mutants_caught) = (Some(mutants), Some(caught));
        if caught < mutants {
            found.failed.push(format!("mutants: {} of {mutants} were not caught", mutants - caught));
        }
    }
    found.trained = found.part("training", || learning::check(&standin, &mut say));
    found.networks = found.part("networks", || networks::check(&standin, cache.path(), &mut say));
    found.routines = found.part("libraries", || libraries::cases(&standin));
    let networks =
        found.part("networks with libraries", || libraries::networks(&standin, cache.path(), &mut say));
    found.networks = found.networks.zip(networks).map(|(a, b)| a + b);
    found.faults = found.part("faults", || faults::check(&standin, cache.path()));
    let faults = found.part("faults of libraries", || libraries::faults(&standin, cache.path()));
    let of_training = found.part("faults of training", || learning::faults(&standin));
    found.faults = found.faults.zip(faults).zip(of_training).map(|((a, b), c)| a + b + c);
    Ok(found)
}

/// Adds the machine code to what was found before.
fn machine_code(mut found: Found, table: &Path, write: bool) -> Found {
    found.cubins =
        found.part("machine code", || cubins::check(table, write, &mut |line| println!("  {line}")));
    found
}
