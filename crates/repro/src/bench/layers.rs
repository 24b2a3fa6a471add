//! Every distinct layer of the networks alone.

use super::gain::layer_us;
use super::subject::{images, subjects};
use super::{Options, median};
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Graph, Model, Op, Shape};
use cofilter_runtime::{Options as PlanOptions, Plan, Team, reference};
use comfy_table::{Table, presets};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Largest error of a layer relative to its largest result: Winograd's bound.
const TOLERANCE: f64 = 1e-4;

/// Times the layers and prints GFLOP/s and the share of the measured peak.
pub(super) fn run(options: &Options) -> Result<()> {
    let subjects = subjects(options)?;
    for threads in options.thread_counts() {
        let peak = cofilter_runtime::yardstick::fma_gflops(threads);
        let team = Arc::new(Team::new(threads)?);
        println!("\n{threads} thread(s), measured peak {peak:.0} GFLOP/s");
        let mut seen = BTreeSet::new();
        for batch in options.batches() {
            let mut table = Table::new();
            table.load_style(presets::UTF8_HORIZONTAL_ONLY);
            table.set_header(["layer", "batch", "us", "GFLOP/s", "of the peak", "error", "how"]);
            for subject in &subjects {
                for layer in layers(&subject.model)? {
                    if !seen.insert(format!("{} batch {batch}", layer.title)) {
                        continue;
                    }
                    let row = measure(&layer, batch, threads, &team, options.seconds() / 4.0)
                        .with_context(|| format!("{} {}", subject.name, layer.title))?;
                    table.add_row(row.cells(&layer, batch, peak));
                }
            }
            println!("{table}");
        }
    }
    Ok(())
}

/// A network of one layer.
struct Layer {
    title: String,
    model: Model,
}

/// The convolutions and fully connected layers of a network, each as a network.
fn layers(model: &Model) -> Result<Vec<Layer>> {
    let graph = model.graph();
    let mut found = Vec::new();
    for (id, node) in graph.iter() {
        let Some(from) = node.inputs().first().map(|input| graph.node(*input).shape()) else { continue };
        let mut b = Graph::builder();
        let mut x = b.input("data", from)?;
        if from.spatial() != [1, 1] && from.channels() > 3 {
            // Maps other than images come from a step before, as in a network.
            x = b.relu("before", x)?;
        }
        let (y, what) = match node.op() {
            Op::Conv2d(c) => {
                let groups = if c.groups == 1 { String::new() } else { format!(" groups {}", c.groups) };
                let what = format!("{}x{}/{}{groups}", c.kernel[0], c.kernel[1], c.stride[0]);
                (b.conv2d("layer", x, c.clone())?, what)
            }
            Op::Linear(l) => (b.linear("layer", x, l.out_features)?, "fc".into()),
            _ => continue,
        };
        let one = Model::init(b.finish(&[y])?, &Default::default(), 1)?;
        ensure!(model.tensors(id).len() <= 2, "{}: more than weight and bias", node.name());
        let shape = |shape: Shape| shape.to_string();
        found.push(Layer { title: format!("{what} {} > {}", shape(from), shape(node.shape())), model: one });
    }
    Ok(found)
}

/// Largest difference of the first and the last image's result from the reference, relative to its largest number.
pub(super) fn first_and_last(model: &Model, images: &[f32], batch: usize, found: &[f32]) -> Result<f64> {
    Expected::of(model, images, batch)?.error(found)
}

/// Results of the first and the last image by the reference.
pub(super) struct Expected {
    batch: usize,
    images: Vec<(usize, Vec<f64>)>,
}

impl Expected {
    pub(super) fn of(model: &Model, images: &[f32], batch: usize) -> Result<Self> {
        let len = images.len() / batch;
        let mut both = vec![0, batch - 1];
        both.dedup();
        let run = |i: usize| Ok((i, reference::run(model, &images[i * len..(i + 1) * len])?));
        Ok(Self { batch, images: both.into_iter().map(run).collect::<Result<_>>()? })
    }

    /// Largest difference from them, relative to the largest number.
    pub(super) fn error(&self, found: &[f32]) -> Result<f64> {
        let len = found.len() / self.batch;
        let mut error = 0.0_f64;
        for (image, expected) in &self.images {
            ensure!(expected.len() == len, "{len} numbers, expected {}", expected.len());
            let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            ensure!(largest > 0.0, "the reference gives nothing but zeros");
            let found = &found[image * len..(image + 1) * len];
            let differences = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs() / largest);
            error = differences.fold(error, |m, d| if d > m || d.is_nan() { d } else { m });
        }
        Ok(error)
    }
}

struct Row {
    us: f64,
    gflops: f64,
    error: f64,
    how: String,
}

impl Row {
    fn cells(&self, layer: &Layer, batch: usize, peak: f64) -> [String; 7] {
        [
            layer.title.clone(),
            batch.to_string(),
            format!("{:.1}", self.us),
            format!("{:.0}", self.gflops),
            format!("{:.0} %", 100.0 * self.gflops / peak),
            format!("{:.0e}", self.error),
            self.how.clone(),
        ]
    }
}

fn measure(layer: &Layer, batch: usize, threads: usize, team: &Arc<Team>, seconds: f64) -> Result<Row> {
    let options = PlanOptions { batch, threads, team: Some(Arc::clone(team)), ..PlanOptions::default() };
    let plan = Plan::compile(&layer.model, &options)?;
    let mut session = plan.session();
    let images = images(batch * plan.input_len());
    let mut logits = vec![f32::NAN; batch * plan.output_len()];
    session.run(&images, &mut logits)?;
    let error = first_and_last(&layer.model, &images, batch, &logits)?;
    ensure!(error <= TOLERANCE, "differs from the reference by {error:e}");
    // Copies of images and result count for nothing here: the step alone.
    let mut times = Vec::new();
    let steps = plan.steps();
    let (info, start) = (steps.iter().find(|s| s.macs > 0).context("no layer")?, Instant::now());
    while times.len() < 5 || start.elapsed().as_secs_f64() < seconds {
        times.push(layer_us(&mut session, &images)?);
    }
    let us = median(&times);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let gflops = 2e-3 * (info.macs * batch) as f64 / us;
    Ok(Row { us, gflops, error, how: info.algorithm.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_number_of_the_first_or_last_image_counts() {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(1, 1, 2)).unwrap();
        let x = b.relu("relu", x).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Default::default(), 1).unwrap();
        let pixels = [1.0, 2.0, 3.0, 4.0, 5.0, 8.0];
        let error = |found: &[f32]| first_and_last(&model, &pixels, 3, found).unwrap();
        assert_eq!(error(&pixels), 0.0);
        assert_eq!(error(&[1.0, 2.0, 3.0, 4.0, 5.0, 4.0]), 0.5);
        assert_eq!(error(&[0.0, 2.0, 3.0, 4.0, 5.0, 8.0]), 0.5);
        assert!(error(&[f32::NAN, 2.0, 3.0, 4.0, 5.0, 8.0]).is_nan());
        assert!(first_and_last(&model, &[0.0; 6], 3, &[0.0; 6]).is_err());
    }
}
