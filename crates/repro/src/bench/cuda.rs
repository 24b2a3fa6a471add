//! Networks on a CUDA device, beside other engines there, in one run. Images and logits are on the host: copies count for all.

use super::cell::{TOLERANCE, Times, difference, load, rounds, summary};
use super::peers::{CUDA_ENGINES, Worker, set_up_cuda};
use super::subject::{Subject, images, subjects};
use super::{Options, publish, written_by};
use anyhow::{Context as _, Result, ensure};
use cofilter_runtime::cuda::{Device, Math, Settings};
use cofilter_runtime::{BackendKind, Options as PlanOptions, Plan, Session, reference};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Our sessions by arithmetic.
const OURS: [(&str, Math); 4] = [
    ("cofilter f32", Math::F32),
    ("cofilter tf32", Math::Tf32),
    ("cofilter f16", Math::F16),
    ("cofilter bf16", Math::Bf16),
];

#[derive(Serialize)]
struct Report {
    device: String,
    compute_capability: u32,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    net: String,
    form: &'static str,
    batch: usize,
    engines: BTreeMap<String, Times>,
    /// Of ours, from the reference in `f64`, relative to the range of the logits.
    errors: BTreeMap<String, f64>,
    failures: BTreeMap<String, String>,
}

/// Times all cells that the options ask for and writes a table.
pub(super) fn run(options: &Options) -> Result<()> {
    // Before anything is installed.
    let device = Device::open(0).context("--device cuda")?;
    let subjects = subjects(options)?;
    let kit = set_up_cuda(options.venv.as_deref())?;
    let mut workers =
        CUDA_ENGINES.iter().map(|engine| Worker::start(&kit, engine, 1)).collect::<Result<Vec<_>>>()?;
    let mut cells = Vec::new();
    for subject in &subjects {
        for batch in options.batches() {
            let cell = measure(subject, batch, &mut workers, options.seconds())
                .with_context(|| format!("{} {} batch {batch}", subject.name, subject.form))?;
            println!("{}", line(&cell));
            cells.push(cell);
        }
    }
    let about = device.about();
    let report = Report { device: about.name.clone(), compute_capability: about.capability, cells };
    publish(options, "runs/cuda/peers.md", &text(&report), &report)
}

fn measure(subject: &Subject, batch: usize, workers: &mut [Worker], seconds: f64) -> Result<Cell> {
    let mut cell = Cell {
        net: subject.name.clone(),
        form: subject.form,
        batch,
        engines: BTreeMap::new(),
        errors: BTreeMap::new(),
        failures: BTreeMap::new(),
    };
    let mut ours: Vec<(&str, Session)> = Vec::new();
    for (name, math) in OURS {
        let cuda = Settings { math, measure: true, ..Settings::default() };
        let options = PlanOptions { batch, backend: BackendKind::Cuda, cuda, ..PlanOptions::default() };
        ours.push((name, Plan::compile(&subject.model, &options)?.session()));
    }
    let plan = ours[0].1.plan().clone();
    let images = images(batch * plan.input_len());
    let expected = reference::run(&subject.model, &images[..plan.input_len()])?;
    let expected: Vec<f32> = expected.iter().map(|v| *v as f32).collect();
    let mut logits = vec![f32::NAN; batch * plan.output_len()];
    // Ours in single precision is the last to be run here, and what the others are held against.
    for ((name, session), (_, math)) in ours.iter_mut().zip(OURS).rev() {
        session.run(&images, &mut logits)?;
        let error = difference(&logits[..plan.output_len()], &expected)?;
        ensure!(error <= allowed(math), "{name} differs from the reference by {error:e}");
        cell.errors.insert((*name).to_owned(), error);
    }
    let ready = load(subject, &images, &logits, workers, &mut cell.failures, batch, |engine| {
        allowed(if engine.ends_with("tf32") { Math::Tf32 } else { Math::F32 })
    })?;
    let ready: Vec<usize> = ready.into_iter().map(|(worker, _)| worker).collect();
    let times = rounds(&mut ours, workers, &ready, &images, &mut logits, seconds)?;
    cell.engines = times.into_iter().map(|(name, ms)| (name, summary(ms))).collect();
    Ok(cell)
}

/// Largest difference of logits relative to their range: what single precision leaves, or what is left of a product's error after
/// some fifty layers.
fn allowed(math: Math) -> f64 {
    if math == Math::F32 { TOLERANCE } else { 100.0 * math.error() }
}

fn names() -> impl Iterator<Item = &'static str> {
    OURS.iter().map(|(name, _)| *name).chain(CUDA_ENGINES)
}

fn line(cell: &Cell) -> String {
    let mut text = format!("| {} | {} | {} |", cell.net, cell.form, cell.batch);
    for name in names() {
        let _ = match cell.engines.get(name) {
            Some(times) => write!(text, " {:.3} |", times.p50_ms),
            None => write!(text, " - |"),
        };
    }
    // The fastest other engine in single precision over ours: above 1 where ours is faster.
    let others = CUDA_ENGINES.iter().filter(|name| !name.ends_with("tf32"));
    let best = others.filter_map(|name| Some(cell.engines.get(*name)?.p50_ms)).min_by(f64::total_cmp);
    let _ = match (best, cell.engines.get(OURS[0].0)) {
        (Some(best), Some(ours)) => write!(text, " {:.2} |", best / ours.p50_ms),
        _ => write!(text, " - |"),
    };
    text
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "# Networks on a CUDA device\n\n{}\n\n{}, compute capability {}.{}. Medians in milliseconds, from images on the host to logits \
         on the host, all engines in turns in one run. The last column is the faster of ONNX Runtime and PyTorch in f32 over ours in \
         f32.\n\n\
         | network | form | batch |",
        written_by(),
        report.device,
        report.compute_capability / 10,
        report.compute_capability % 10
    );
    names().for_each(|name| {
        let _ = write!(text, " {name} |");
    });
    text += " others over ours |\n|---|---|---|";
    text += &"---|".repeat(names().count() + 1);
    text.push('\n');
    for cell in &report.cells {
        text += &line(cell);
        text.push('\n');
    }
    let failures: Vec<String> = report
        .cells
        .iter()
        .flat_map(|cell| {
            cell.failures.iter().map(move |(name, why)| {
                format!("* {} {} batch {}: {name}: {why}\n", cell.net, cell.form, cell.batch)
            })
        })
        .collect();
    if !failures.is_empty() {
        text += "\nWithout a time:\n\n";
        text += &failures.concat();
    }
    text
}
