//! `cofilter bench`.

use crate::device::On;
use crate::evaluate::threads;
use crate::output::{Output, table};
use crate::source::{About, Source};
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::Model;
use cofilter_runtime::latency::{Budget, measure};
use cofilter_runtime::{Choice, CostTable, Options, Plan, Team};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Networks to time in turns; times are compared with those of the first
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    #[command(flatten)]
    about: About,
    /// Images of a run
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Threads
    #[arg(long, default_value_t = threads())]
    threads: usize,
    #[command(flatten)]
    on: On,
    /// How long to measure
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
    /// Choose the form of every layer by measured times, and show them
    #[arg(long)]
    layers: bool,
    /// The same with a table in this file: what it lacks is measured and added
    #[arg(long, value_name = "FILE")]
    costs: Option<PathBuf>,
}

/// Rounds in which every form of a layer is timed.
const ROUNDS: usize = 9;

/// Times in milliseconds for a run of the whole batch.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Time {
    pub(crate) name: String,
    pub(crate) p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    images_per_s: f64,
    runs: usize,
    /// How many times faster than the first one, by the medians.
    pub(crate) speedup: f64,
}

#[derive(Serialize)]
struct Report {
    batch: usize,
    threads: usize,
    kernels: String,
    times: Vec<Time>,
    /// By network, where they were measured.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    layers: BTreeMap<String, Vec<Choice>>,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        ensure!(
            self.seconds.is_finite() && self.seconds > 0.0,
            "--seconds {}: expected above 0",
            self.seconds
        );
        let open = |path: &PathBuf| -> Result<(String, Model)> {
            let source = Source { model: path.clone(), about: self.about.of(path)? };
            Ok((path.display().to_string(), source.open()?.model))
        };
        let models: Vec<(String, Model)> = self.models.iter().map(open).collect::<Result<_>>()?;
        let models: Vec<(&str, &Model)> = models.iter().map(|(name, model)| (name.as_str(), model)).collect();
        let measured = self.layers || self.costs.is_some();
        ensure!(self.on.is_cpu() || !measured, "--layers and --costs are for --device cpu alone");
        let mut options = self.on.options(options(self.batch, self.threads)?)?;
        let mut layers = BTreeMap::new();
        if measured {
            options.costs = Some(Arc::new(self.measured(&models, &options)?));
            for (name, model) in &models {
                layers.insert((*name).to_owned(), CostTable::choices(model, &options)?);
            }
        }
        let times = with_options(&models, &options, self.seconds)?;
        let header = ["network", "p50 ms", "p90 ms", "p99 ms", "images/s", "speedup"];
        let text = table(&header, times.iter().map(Time::row));
        let report =
            Report { batch: self.batch, threads: self.threads, kernels: self.on.name(), times, layers };
        let mut text =
            format!("batch {}, {} thread(s), {} kernels\n\n{text}", self.batch, self.threads, report.kernels);
        for (name, layers) in &report.layers {
            let rows = layers.iter().map(|choice| {
                let others = choice.times_us.iter().filter(|(form, _)| **form != choice.form);
                let others: Vec<String> = others.map(|(form, us)| format!("{form} {us:.1}")).collect();
                vec![
                    choice.nodes.clone(),
                    choice.form.clone(),
                    choice.times_us.get(&choice.form).map_or("-".into(), |us| format!("{us:.1}")),
                    others.join(", "),
                ]
            });
            text += &format!("\n{name}\n{}", table(&["layer", "taken", "us", "others, us"], rows));
        }
        Output::new(text, &report)
    }

    /// The table of costs with all forms of the layers of these networks.
    fn measured(&self, models: &[(&str, &Model)], options: &Options) -> Result<CostTable> {
        let known = self.costs.as_ref().filter(|path| path.exists());
        let mut costs = known.map_or_else(|| Ok(CostTable::new()), |path| CostTable::load(path))?;
        for (name, model) in models {
            costs.measure(model, options, ROUNDS).with_context(|| (*name).to_owned())?;
        }
        if let Some(path) = &self.costs {
            costs.save(path)?;
        }
        Ok(costs)
    }
}

impl Time {
    fn row(&self) -> Vec<String> {
        let times = [self.p50_ms, self.p90_ms, self.p99_ms].map(|ms| format!("{ms:.3}"));
        let mut row = vec![self.name.clone()];
        row.extend(times);
        row.extend([format!("{:.1}", self.images_per_s), format!("{:.2}", self.speedup)]);
        row
    }
}

/// Times networks round after round, each in turn.
pub(crate) fn in_turns(
    models: &[(&str, &Model)],
    batch: usize,
    threads: usize,
    seconds: f64,
) -> Result<Vec<Time>> {
    with_options(models, &options(batch, threads)?, seconds)
}

/// One team for all: the system may place the threads of one better than those of another.
fn options(batch: usize, threads: usize) -> Result<Options> {
    ensure!((1..=1024).contains(&threads), "--threads {threads}: expected 1 to 1024");
    Ok(Options { batch, threads, team: Some(Arc::new(Team::new(threads)?)), ..Options::default() })
}

fn with_options(models: &[(&str, &Model)], options: &Options, seconds: f64) -> Result<Vec<Time>> {
    let batch = options.batch;
    let mut runs = Vec::with_capacity(models.len());
    for (name, model) in models {
        let plan = Plan::compile(model, options).with_context(|| (*name).to_owned())?;
        // Inputs without meaning in [-1, 1).
        #[expect(clippy::cast_precision_loss, reason = "small integers")]
        let images: Vec<f32> =
            (0..batch * plan.input_len()).map(|i| ((i * 7919) % 2048) as f32 / 1024.0 - 1.0).collect();
        runs.push((*name, plan.session(), images));
    }
    let mut subjects: Vec<_> =
        runs.iter_mut().map(|(name, session, images)| (*name, session, images.as_slice())).collect();
    let measured = measure(&mut subjects, &Budget { rounds: 100_000, seconds, ..Budget::default() })?;
    let first = measured.first().map_or(f64::NAN, |latency| latency.p50_us);
    #[expect(clippy::cast_precision_loss, reason = "batches are small")]
    let time = |latency: cofilter_runtime::latency::Latency| Time {
        p50_ms: latency.p50_us / 1e3,
        p90_ms: latency.p90_us / 1e3,
        p99_ms: latency.p99_us / 1e3,
        images_per_s: batch as f64 / latency.p50_us * 1e6,
        runs: latency.runs,
        speedup: first / latency.p50_us,
        name: latency.name,
    };
    Ok(measured.into_iter().map(time).collect())
}
