//! Sparsity on top of low rank (paper, section 5): pruned by magnitude and by groups, dense and decomposed networks after the same
//! fine-tuning; what zeros are worth in time, layer by layer; and that removing them changes nothing.

mod claims;
mod compaction;
mod figures;
mod subject;

use crate::bench::sparse::{self, Row};
use crate::machine::{self, Machine};
use crate::options::{Options, root};
use crate::pipeline::{Pipeline, Trained};
use crate::report::{Arm, Data, Percentiles, Report};
use crate::stage::{Key, Store};
use crate::timing;
use anyhow::Result;
use cofilter_graph::Model;
use cofilter_lowrank as lowrank;
use cofilter_runtime::Team;
use cofilter_sparsity as sparsity;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use subject::{Small, Subject, Way};

/// Images of a run whose latency is measured.
const BATCHES: [usize; 2] = [1, 32];

/// An arm.
struct Made {
    small: Small,
    /// With its zeros, before any was removed.
    masked: Model,
    /// Without what could be removed.
    trained: Trained,
    compression: sparsity::Compression,
}

impl Made {
    /// Dense weights over those that are left.
    fn rate(&self) -> f64 {
        self.compression.total.unwrap_or(f64::INFINITY)
    }
}

/// Everything about one network.
struct Study {
    name: &'static str,
    /// Training and test images, updates.
    about: String,
    made: Vec<Made>,
    latency_us: BTreeMap<usize, Vec<Percentiles>>,
}

impl Study {
    /// Kind, accuracy and compression rate of each arm.
    fn by_rate(&self) -> Vec<(&'static str, [f64; 2])> {
        self.made.iter().map(|made| (made.small.kind(), [made.rate(), made.trained.top1])).collect()
    }

    /// The same with how many times as fast as the dense network it is with one image.
    fn by_speed(&self) -> Vec<(&'static str, [f64; 2])> {
        let times = &self.latency_us[&BATCHES[0]];
        let point = |(made, time): (&Made, &Percentiles)| {
            (made.small.kind(), [times[0].p50 / time.p50, made.trained.top1])
        };
        self.made.iter().zip(times).map(point).collect()
    }
}

/// Runs the experiment and writes its report.
///
/// # Errors
/// Data or weights that are missing or of the wrong form, a stopped training, what the system says.
pub fn run(options: &Options) -> Result<Report> {
    let store = Store::open(&options.folder().join("stages"), options.fresh)?;
    let mut subjects = vec![Subject::lenet(options, &root().join("fixtures/digits"))?];
    if let Some(folder) = &options.data {
        subjects.push(Subject::resnet20(options, folder)?);
    }
    let studies =
        subjects.iter().map(|subject| study(options, subject, &store)).collect::<Result<Vec<_>>>()?;
    let rows = layers(options, &store)?;
    let exact = compaction::all(options, &store)?;
    let last = &subjects[subjects.len() - 1];
    let mut notes = vec![
        "Accuracy is in percent of the whole test set, through the deployment runtime, after what is zero was removed. One seed. Latencies \
         are medians of one interleaved run; plans choose the form of each layer by a table that was measured right before."
            .into(),
        "Compression rates count as the paper does: weights of the original layer over weights other than zero of what stands for it. \
         The charts of the paper are of AlexNet on ImageNet, whose accuracies are unknown; ours are of other networks, and beside them for \
         their shape alone."
            .into(),
    ];
    if options.data.is_none() {
        notes.push("ResNet-20 is left out: --data says where CIFAR-10 lies.".into());
    }
    if options.quick {
        notes.push("--quick: the path is whole, the figures mean nothing.".into());
    }
    notes.extend(store.foreign());
    let report = Report {
        experiment: "sparsity".into(),
        summary: summary(&studies),
        commit: machine::commit(),
        command: options.command(),
        seeds: vec![options.seed],
        machine: Machine::here(options.thread_count(), cofilter_runtime::cpu_tier()),
        data: Some(Data::of(&last.data)),
        arms: studies.iter().flat_map(arms).collect(),
        claims: claims::all(&studies, &rows, &exact, options),
        figures: figures::all(&studies, &rows),
        tables: figures::tables(&studies, &rows, &exact)?,
        notes,
    };
    report.write(&options.folder())?;
    Ok(report)
}

fn summary(studies: &[Study]) -> String {
    let about: Vec<&str> = studies.iter().map(|study| study.about.as_str()).collect();
    format!(
        "{}. Each network is fine-tuned as it is, pruned by magnitude on the way, with a group lasso over columns and rows for half of the \
         updates (SSL), decomposed across filters, and decomposed and pruned or decomposed and with a group lasso, always for as many \
         updates; what is zero altogether is removed.",
        about.join("; ")
    )
}

fn study(options: &Options, subject: &Subject, store: &Store) -> Result<Study> {
    let pipeline = Pipeline {
        options,
        network: subject.name,
        data: &subject.data,
        preprocessing: &subject.preprocessing,
        store,
    };
    let parent = subject.parent(&pipeline)?;
    let dense = pipeline.finish(subject.name, parent, Vec::new())?;
    let mut bases: BTreeMap<String, Trained> = BTreeMap::new();
    let mut made = Vec::new();
    for &small in &subject.all {
        let base = match small.energy {
            None => dense.clone(),
            Some(energy) => {
                let name = Small { way: Way::Dense, ..small }.name();
                let rule = lowrank::RankRule::Energy(energy);
                let settings = lowrank::Settings { rule, ..lowrank::Settings::default() };
                let (base, _) = pipeline.decompose(
                    &format!("{}-{name}", subject.name),
                    &dense,
                    options.seed,
                    &settings,
                )?;
                bases.entry(name).or_insert(base).clone()
            }
        };
        let one = make(&pipeline, subject, &dense, &base, small)?;
        eprintln!(
            "{} {}: {:.2} %, {:.2} times fewer weights",
            subject.name,
            small.name(),
            one.trained.top1,
            one.rate()
        );
        made.push(one);
    }
    let mut latency_us = BTreeMap::new();
    for batch in BATCHES {
        latency_us.insert(batch, latencies(&pipeline, &made, batch)?);
    }
    let about = format!(
        "{} on {} ({} training, {} test images; {:.2} % before), {} updates",
        subject.name,
        subject.data.train.name(),
        subject.data.train.len(),
        subject.data.test.len(),
        dense.top1,
        subject.iterations()
    );
    Ok(Study { name: subject.name, about, made, latency_us })
}

/// Fine-tunes in one of the ways, and removes what is zero altogether.
fn make(
    pipeline: &Pipeline<'_>,
    subject: &Subject,
    dense: &Trained,
    base: &Trained,
    small: Small,
) -> Result<Made> {
    let name = format!("{}-{}", subject.name, small.name());
    let masked;
    let tuned = match small.way {
        Way::Structured(strength) => {
            let [learn, keep] = subject.structured(strength, &base.model);
            let learned = pipeline.fit(&format!("{name}-lasso"), &base.model, &learn, None)?;
            masked = sparsity::silence(&learned.model)?;
            let (small, _) = sparsity::compact(&masked)?;
            pipeline.fit(&name, &small, &keep, None)?
        }
        way => {
            let tuned = pipeline.fit(&name, &base.model, &subject.tuning(way), None)?;
            masked = tuned.model.clone();
            tuned
        }
    };
    let (model, _) = sparsity::compact(&tuned.model)?;
    let trained = pipeline.finish(&name, model, tuned.curve.clone())?;
    let compression = sparsity::compression(&dense.model, &tuned.model)?;
    Ok(Made { small, masked, trained, compression })
}

fn latencies(pipeline: &Pipeline<'_>, made: &[Made], batch: usize) -> Result<Vec<Percentiles>> {
    let options = pipeline.options;
    let time = Duration::from_secs_f64(if options.quick { 0.2 } else { 20.0 });
    let names: Vec<String> = made.iter().map(|made| made.small.name()).collect();
    let models: Vec<(&str, &Model)> =
        names.iter().map(String::as_str).zip(made.iter().map(|made| &made.trained.model)).collect();
    let hashes: Vec<&str> = made.iter().map(|made| made.trained.hash.as_str()).collect();
    let threads = options.thread_count();
    let here = Machine::here(threads, cofilter_runtime::cpu_tier());
    // Measured anew by every other build of the program.
    let key = Key::new("latency", &hashes, &(batch, here, time.as_millis(), machine::commit()));
    pipeline.store.value(&key, || timing::tuned_latencies(&models, batch, threads, time))
}

fn arms(study: &Study) -> Vec<Arm> {
    let arm = |(i, made): (usize, &Made)| {
        let cost = made.trained.model.cost();
        let name = |small: Small| format!("{}-{}", study.name, small.name());
        let base = Small { way: Way::Dense, ..made.small };
        let parent = match (made.small.way, made.small.energy) {
            (Way::Dense, None) => None,
            (Way::Dense, Some(_)) => Some(name(Small { energy: None, ..base })),
            _ => Some(name(base)),
        };
        Arm {
            name: name(made.small),
            parent,
            top1: Some(made.trained.top1),
            top1_interval: None,
            top1_by_seed: vec![made.trained.top1],
            ranks: BTreeMap::new(),
            full_ranks: BTreeMap::new(),
            params: cost.params(),
            macs: cost.macs(),
            density: sparsity::total_density(&sparsity::density(&made.trained.model)).density,
            latency_us: study.latency_us.iter().map(|(batch, times)| (*batch, times[i])).collect(),
        }
    };
    study.made.iter().enumerate().map(arm).collect()
}

/// Layers of ResNet-50 by density and pattern, in the runtime.
fn layers(options: &Options, store: &Store) -> Result<Vec<Row>> {
    let threads = options.thread_count();
    let (densities, seconds): (&[f64], f64) = match options.quick {
        true => (&[0.35], 0.01),
        false => (&sparse::DENSITIES, 0.3),
    };
    let layers: &[sparse::Layer] = if options.quick { &sparse::FEW } else { &sparse::LAYERS };
    let here = Machine::here(threads, cofilter_runtime::cpu_tier());
    let key = Key::new("layers", &[], &(densities, seconds, layers, here, machine::commit()));
    store.value(&key, || {
        let team = Arc::new(Team::new(threads)?);
        let mut rows = Vec::new();
        for layer in layers {
            for pattern in layer.patterns() {
                options.check_stop()?;
                rows.extend(sparse::measure(*layer, *pattern, densities, 1, &team, seconds)?);
            }
        }
        Ok(rows)
    })
}
