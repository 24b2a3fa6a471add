//! What an iteration of training takes on an NVIDIA GPU, and its kernels. `cargo bench -p cofilter-train --bench cuda -- [NETWORK] [BATCH]`

use anyhow::{Context as _, Result};
use cofilter_graph::{Init, Model};
use cofilter_train::{Device, Recipe, Trainer};
use cofilter_zoo::{Config, by_name};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("resnet20", String::as_str);
    let batch = args.get(1).map_or(Ok(256), |text| text.parse()).context("BATCH is a number")?;
    if let Err(error) = cofilter_cuda::Device::open(0) {
        println!("skipped: no CUDA device here ({error})");
        return Ok(());
    }
    let model = Model::init(by_name(name, &Config::default())?, &Init::default(), 1)?;
    let recipe = Recipe { batch, learning_rate: 1e-3, ..Recipe::default() };
    let mut trainer = Trainer::new(&model, &recipe, None, Device::Cuda(0))?;
    let len = batch * model.graph().input_shape().elements();
    let images: Vec<f32> = (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let labels: Vec<u32> = (0..batch as u32).map(|i| i % 10).collect();
    let mut steps = Vec::new();
    for _ in 0..60 {
        let mut buffer = trainer.buffer(len);
        buffer.copy_from_slice(&images);
        let start = Instant::now();
        let step = trainer.step(buffer, &labels, false)?;
        let [forward, backward, update] = step.seconds;
        steps.push([start.elapsed().as_secs_f64(), forward, backward, update].map(|s| 1e3 * s));
    }
    let median = |i: usize| {
        let mut all: Vec<f64> = steps[10..].iter().map(|step| step[i]).collect();
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
    Ok(())
}
