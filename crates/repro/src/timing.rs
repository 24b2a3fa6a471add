//! Measurements through the deployment runtime.

use crate::report::Percentiles;
use anyhow::{Context as _, Result, ensure};
use cofilter_data::{Augment, Dataset, Pipeline, Tally};
use cofilter_graph::{Model, Preprocessing};
use cofilter_runtime::latency::{Budget, measure};
use cofilter_runtime::{CostTable, Options, Plan, Team};
use std::sync::Arc;
use std::time::Duration;

const BATCH: usize = 100;

/// Top-1 accuracy in percent on a whole data set.
///
/// # Errors
/// If data and network do not fit.
pub fn top1(model: &Model, data: &Dataset, preprocessing: &Preprocessing, threads: usize) -> Result<f64> {
    let options = Options { batch: BATCH.min(data.len()), threads, ..Options::default() };
    let plan = Plan::compile(model, &options)?;
    let mut session = plan.session();
    let pipeline = Pipeline::new(data, preprocessing, &Augment::default(), 0)?;
    let mut images = vec![0.0; options.batch * plan.input_len()];
    let mut scores = vec![0.0; options.batch * plan.output_len()];
    let indices: Vec<u32> = (0..u32::try_from(data.len()).context("too many images")?).collect();
    let mut tally = Tally::default();
    for chunk in indices.chunks(options.batch) {
        let (images, scores) =
            (&mut images[..chunk.len() * plan.input_len()], &mut scores[..chunk.len() * plan.output_len()]);
        let mut labels = vec![0; chunk.len()];
        pipeline.fill(None, chunk, images, &mut labels)?;
        session.run(images, scores)?;
        let rows = scores.chunks_exact(plan.output_len()).zip(&labels);
        rows.for_each(|(row, label)| tally.add(row, *label as usize));
    }
    Ok(100.0 * tally.top1())
}

/// Median, 90th and 99th percentile of each network at one batch size, all interleaved in one run.
///
/// # Errors
/// If a network cannot be compiled.
pub fn latencies(
    models: &[(&str, &Model)],
    batch: usize,
    threads: usize,
    time: Duration,
) -> Result<Vec<Percentiles>> {
    interleaved(models, batch, threads, time, false)
}

/// The same, where the form of every layer is chosen by a table of costs that is measured before.
///
/// # Errors
/// If a network cannot be compiled.
pub fn tuned_latencies(
    models: &[(&str, &Model)],
    batch: usize,
    threads: usize,
    time: Duration,
) -> Result<Vec<Percentiles>> {
    interleaved(models, batch, threads, time, true)
}

/// Rounds in which every form of a layer is timed.
const ROUNDS: usize = 15;

fn interleaved(
    models: &[(&str, &Model)],
    batch: usize,
    threads: usize,
    time: Duration,
    tuned: bool,
) -> Result<Vec<Percentiles>> {
    ensure!(!models.is_empty(), "nothing to time");
    // One team for all: the system may place the threads of one better than those of another.
    let team = Some(Arc::new(Team::new(threads)?));
    let mut options = Options { batch, threads, team, ..Options::default() };
    if tuned {
        let mut costs = CostTable::new();
        for (name, model) in models {
            costs.measure(model, &options, ROUNDS).with_context(|| (*name).to_owned())?;
        }
        options.costs = Some(Arc::new(costs));
    }
    let mut runs = Vec::with_capacity(models.len());
    for (name, model) in models {
        let plan = Plan::compile(model, &options).with_context(|| (*name).to_owned())?;
        let images = ramp(batch * plan.input_len());
        runs.push((*name, plan.session(), images));
    }
    let mut subjects: Vec<_> =
        runs.iter_mut().map(|(name, session, images)| (*name, session, images.as_slice())).collect();
    let budget = Budget { rounds: 1_000, seconds: time.as_secs_f64(), ..Budget::default() };
    let measured = measure(&mut subjects, &budget)?;
    Ok(measured.iter().map(|l| Percentiles { p50: l.p50_us, p90: l.p90_us, p99: l.p99_us }).collect())
}

/// Inputs without meaning in `[-1, 1)`, the same each time.
#[must_use]
pub fn ramp(len: usize) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "small integers")]
    (0..len).map(|i| ((i * 7919) % 2048) as f32 / 1024.0 - 1.0).collect()
}
