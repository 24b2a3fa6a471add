//! `cofilter verify`, and what other commands verify with.

use crate::output::Output;
use crate::source::{About, Source};
use anyhow::Result;
use cofilter_formats::Agreement;
use cofilter_graph::Model;
use serde::Serialize;
use std::path::PathBuf;

/// Limits of a comparison.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Limits {
    /// Largest difference of an output, relative to the largest output
    #[arg(long, default_value_t = 1e-4, value_name = "ERROR")]
    tolerance: f64,
    /// Random inputs that are compared
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    images: usize,
    /// Seed of the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tolerance: 1e-4, images: 4, seed: 1 }
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The network that is right
    model: PathBuf,
    /// The network to compare with it
    other: PathBuf,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    limits: Limits,
}

/// What a comparison found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    images: usize,
    largest_error: f64,
    tolerance: f64,
    top1_agreement: f64,
    pub(crate) met: bool,
}

impl Limits {
    /// Compares two networks.
    ///
    /// # Errors
    /// For networks that cannot be compared.
    pub(crate) fn verify(&self, source: &Model, result: &Model) -> Result<Verdict> {
        anyhow::ensure!(self.images > 0, "--images 0: nothing to compare");
        let Agreement { images, largest_error, top1 } =
            cofilter_formats::verify(source, result, self.images, self.seed)?;
        // NaN is within no tolerance.
        let met = largest_error <= self.tolerance;
        Ok(Verdict { images, largest_error, tolerance: self.tolerance, top1_agreement: top1, met })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: outputs differ by {:.1e} of the largest, at most {:.0e} is allowed; same first class for {:.0} % of {} inputs",
            if self.met { "verified" } else { "NOT the same" },
            self.largest_error,
            self.tolerance,
            100.0 * self.top1_agreement,
            self.images
        )
    }
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let open = |path: &PathBuf| Source { model: path.clone(), about: self.about.of(path)? }.open();
        let verdict = self.limits.verify(&open(&self.model)?.model, &open(&self.other)?.model)?;
        Ok(Output::new(verdict.to_string(), &verdict)?.with_met(verdict.met))
    }
}
