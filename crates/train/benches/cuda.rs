//! What an iteration of training takes on an NVIDIA GPU, and its kernels; then several trainings at once.
//!
//! `cargo bench -p cofilter-train --bench cuda -- [NETWORK] [BATCH] [AT_ONCE]`

use anyhow::{Context as _, Result};
use cofilter_graph::{Init, Model};
use cofilter_train::{Device, Recipe, Trainer};
use cofilter_zoo::{Config, by_name};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::Instant;

/// Iterations that are timed, and those before.
const TIMED: usize = 50;
const BEFORE: usize = 10;

/// A network in training with some images.
struct Run {
    trainer: Trainer,
    images: Vec<f32>,
    labels: Vec<u32>,
}

impl Run {
    fn new(name: &str, batch: usize) -> Result<Self> {
        let model = Model::init(by_name(name, &Config::default())?, &Init::default(), 1)?;
        let recipe = Recipe { batch, learning_rate: 1e-3, ..Recipe::default() };
        let len = batch * model.graph().input_shape().elements();
        let images = (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
        let labels = (0..batch as u32).map(|i| i % 10).collect();
        Ok(Self { trainer: Trainer::new(&model, &recipe, None, Device::Cuda(0))?, images, labels })
    }

    /// Seconds: all, forward, backward, update.
    fn step(&mut self) -> Result<[f64; 4]> {
        let mut buffer = self.trainer.buffer(self.images.len());
        buffer.copy_from_slice(&self.images);
        let start = Instant::now();
        let [forward, backward, update] = self.trainer.step(buffer, &self.labels, false)?.seconds;
        Ok([start.elapsed().as_secs_f64(), forward, backward, update])
    }
}

/// Images a second of so many trainings at the same time.
fn together(name: &str, batch: usize, count: usize) -> Result<f64> {
    let start = Barrier::new(count + 1);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            let mut run = Run::new(name, batch);
            let warm = run.as_mut().map(|run| (0..BEFORE).try_for_each(|_| run.step().map(drop)));
            start.wait();
            warm.map_err(|error| anyhow::anyhow!("{error:#}"))??;
            (0..TIMED).try_for_each(|_| run.as_mut().map_or(Ok(()), |run| run.step().map(drop)))
        };
        let runs: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        start.wait();
        let begin = Instant::now();
        for run in runs {
            run.join().map_err(|_| anyhow::anyhow!("a training panicked"))??;
        }
        Ok((count * TIMED * batch) as f64 / begin.elapsed().as_secs_f64())
    })
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("resnet20", String::as_str);
    let number = |n: usize, default: usize| args.get(n).map_or(Ok(default), |text| text.parse());
    let (batch, most) =
        (number(1, 256).context("BATCH is a number")?, number(2, 1).context("AT_ONCE is a number")?);
    if let Err(error) = cofilter_cuda::Device::open(0) {
        println!("skipped: no CUDA device here ({error})");
        return Ok(());
    }
    let mut run = Run::new(name, batch)?;
    let mut steps = Vec::new();
    for _ in 0..BEFORE + TIMED {
        steps.push(run.step()?.map(|s| 1e3 * s));
    }
    let median = |i: usize| {
        let mut all: Vec<f64> = steps[BEFORE..].iter().map(|step| step[i]).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "{name}, batch {batch}: an iteration {:.2} ms (forward {:.2}, backward {:.2}, update {:.2}), {:.0} images a second",
        median(0),
        median(1),
        median(2),
        median(3),
        1e3 * batch as f64 / median(0)
    );
    let trainer = &run.trainer;
    // The second time, when everything is loaded.
    trainer.kernel_times()?;
    let mut by_name: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for (name, us) in trainer.kernel_times()? {
        let of = by_name.entry(name).or_default();
        *of = (of.0 + 1, of.1 + us);
    }
    let mut rows: Vec<_> = by_name.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    for (name, (calls, us)) in &rows {
        println!("{name:24} {calls:5} calls {us:10.1} us");
    }
    println!("{:24} {:5}       {:10.1} us", "all", "", rows.iter().map(|(_, (_, us))| us).sum::<f64>());
    for count in (2..=most).step_by(2) {
        println!("{count} at once: {:.0} images a second", together(name, batch, count)?);
    }
    Ok(())
}
