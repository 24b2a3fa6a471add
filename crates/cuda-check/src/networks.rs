//! (b) The host code with whole networks on the stand-in for the driver, against the reference of the runtime.

use crate::numbers::Numbers;
use crate::standin::Standin;
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Array, Conv2d, Graph, Init, Model, Role, Shape};
use cofilter_lowrank as lowrank;
use cofilter_runtime::cuda::{Libraries, Math, Pairs, Settings};
use cofilter_runtime::{BackendKind, Options, Plan, reference};
use cofilter_sparsity::{Grouping, Pattern, Pruning, prune_magnitude};
use cofilter_zoo::{Config, NAMES, by_name};
use std::path::Path;

/// Side of the square images that the reference does in a moment; 0: as published.
fn extent(name: &str) -> usize {
    match name {
        "lenet" | "convnet" | "resnet20" | "resnet20_projection" => 0,
        "bvlc_alexnet" | "bvlc_alexnet_split" => 99,
        "alexnet" => 95,
        name if name.ends_with("googlenet") => 64,
        "resnet18" | "resnet34" | "resnet50" => 64,
        _ => 16,
    }
}

/// Number of networks that were compared.
pub(crate) fn check(standin: &Standin, cache: &Path, about: &mut dyn FnMut(String)) -> Result<usize> {
    let mut compared = 0;
    for name in NAMES {
        let input = Some(extent(name)).filter(|n| *n > 0).map(|n| Shape::map(3, n, n));
        let graph = by_name(name, &Config { input, softmax: *name == "lenet", ..Config::default() })?;
        let dense = model(graph)?;
        let mut variants = vec![("dense", dense.clone(), Math::F32, Pairs::Faster, 3)];
        let rule = lowrank::RankRule::Ratio(0.4);
        let (small, _) =
            lowrank::decompose(&dense, &lowrank::Settings { rule, ..lowrank::Settings::default() })?;
        variants.push(("low rank, pairs as one call", small.clone(), Math::F32, Pairs::Always, 2));
        variants.push(("low rank, pairs as two", small, Math::F32, Pairs::Never, 1));
        if matches!(*name, "convnet" | "resnet20" | "bvlc_googlenet") {
            let pattern = Pattern::Groups(Grouping::Columns);
            let pruning = Pruning { sparsity: 0.6, pattern, ..Pruning::default() };
            variants.push((
                "columns of zeros",
                prune_magnitude(&dense, &pruning)?.0,
                Math::F32,
                Pairs::Faster,
                2,
            ));
            for math in [Math::Tf32, Math::F16, Math::Bf16] {
                variants.push((math.name(), dense.clone(), math, Pairs::Faster, 2));
            }
        }
        if *name == "lenet" {
            // Fully connected layers as products.
            variants.push(("a large batch", dense, Math::F32, Pairs::Faster, 40));
        }
        // What the reference gives for the first image, by model: it takes longer than all else.
        let mut known: Vec<(Model, Vec<f64>)> = Vec::new();
        for (what, model, math, pairs, batch) in variants {
            let context = || format!("{name}, {what}");
            let of = known.iter().position(|(of, _)| of.params() == model.params());
            let of = match of {
                Some(of) => of,
                None => {
                    known.push((model.clone(), expected(&model)?));
                    known.len() - 1
                }
            };
            let options = options(batch, math, pairs, cache);
            let (error, _) = compare(&model, &known[of].1, &options).with_context(context)?;
            about(format!("{name}, {what}: relative error {error:.1e}"));
            compared += 1;
        }
    }
    measured(standin, cache).context("kernels chosen by their times")?;
    chain(cache).context("convolutions one after the other")?;
    concurrent(cache).context("concurrent sessions")?;
    ensure!(standin.get("races")? == 0, "memory of the host was given back while a copy was under way");
    ensure!(standin.get("live")? == 0, "{} things of the driver are left", standin.get("live")?);
    Ok(compared)
}

pub(crate) fn options(batch: usize, math: Math, pairs: Pairs, cache: &Path) -> Options {
    let cuda = Settings { math, pairs, cache: Some(cache.to_owned()), ..Settings::default() };
    Options { batch, backend: BackendKind::Cuda, cuda, ..Options::default() }
}

/// A model whose biases and batch normalisations all matter.
pub(crate) fn model(graph: Graph) -> Result<Model> {
    let model = Model::init(graph, &Init::default(), 17)?;
    let mut numbers = Numbers::new(11);
    let graph = model.graph();
    let params = model.params().map(|id, slot, array| {
        let spec = &graph.slots(id)[slot];
        let (scale, shift) = match (spec.role, spec.name) {
            (_, "running_var") => (0.7, 1.2),
            (Role::Bias | Role::Statistic, _) => (0.3, 0.0),
            (Role::Weight, _) if spec.dims.len() == 1 => (0.5, 1.0),
            (Role::Weight, _) => return array.clone(),
        };
        let values: Vec<f32> = numbers.list(array.data().len()).iter().map(|x| scale * x + shift).collect();
        Array::new(spec.dims.clone(), values)
    });
    Ok(model.with_params(params)?)
}

/// What the reference gives for the first image.
pub(crate) fn expected(model: &Model) -> Result<Vec<f64>> {
    let len = model.graph().input_shape().elements();
    Ok(reference::run(model, &Numbers::new(5).list(len))?)
}

/// Error of the first image relative to the largest result, and the plan. Images alone, and a second run, give the same bits: so do the
/// stand-ins of libraries, though libraries promise less.
pub(crate) fn compare(model: &Model, expected: &[f64], options: &Options) -> Result<(f64, Plan)> {
    let plan = Plan::compile(model, options)?;
    let batch = options.batch;
    let images = Numbers::new(5).list(batch * plan.input_len());
    let mut session = plan.session();
    let mut run = |images: &[f32]| -> Result<Vec<f32>> {
        let mut logits = vec![f32::NAN; images.len() / plan.input_len() * plan.output_len()];
        session.run(images, &mut logits)?;
        Ok(logits)
    };
    let (len, out) = (plan.input_len(), plan.output_len());
    let together = run(&images)?;
    for image in [0, batch - 1] {
        let alone = run(&images[image * len..][..len])?;
        let same = same_bits(&alone, &together[image * out..][..out]);
        ensure!(same, "image {image} gives other bits alone than among {batch}");
    }
    ensure!(same_bits(&run(&images)?, &together), "a second run gives other bits");
    let times = session.profile(&images)?;
    ensure!(times.steps.iter().all(|step| step.time_us >= 0.0), "a step without a time");
    let allowed = match options.cuda.math {
        Math::F32 => 1e-4,
        // Sums over layers of what each product loses.
        math => 20.0 * math.error(),
    };
    let worst = relative_error(&together[..out], expected);
    ensure!(worst <= allowed, "relative error {worst:.1e}, allowed {allowed:.1e}\n{}", plan.describe());
    drop(session);
    Ok((worst, plan))
}

/// Largest difference over the largest number that is expected; infinite where a result is no number.
fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let error = |(found, expected): (&f32, &f64)| {
        let error = (f64::from(*found) - expected).abs() / largest;
        if error.is_nan() { f64::INFINITY } else { error }
    };
    found.iter().zip(expected).map(error).fold(0.0, f64::max)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

/// Times are measured once and kept: the second plan orders none. What is chosen by them computes the same.
fn measured(standin: &Standin, cache: &Path) -> Result<()> {
    let dense = model(by_name("convnet", &Config::default())?)?;
    let rule = lowrank::RankRule::Ratio(0.4);
    let (small, _) = lowrank::decompose(&dense, &lowrank::Settings { rule, ..lowrank::Settings::default() })?;
    let mut options = options(2, Math::F32, Pairs::Faster, cache);
    options.cuda.measure = true;
    options.cuda.libraries = Libraries::Never;
    let compile = || -> Result<(Plan, i64)> {
        let before = standin.get("cuLaunchKernel")?;
        let plan = Plan::compile(&small, &options)?;
        Ok((plan, standin.get("cuLaunchKernel")? - before))
    };
    let (first, launches) = compile()?;
    let (second, again) = compile()?;
    ensure!(launches > 0 && again == 0, "{launches} kernels for the first plan, {again} for the second");
    ensure!(first.describe() == second.describe(), "two choices:\n{}{}", first.describe(), second.describe());
    let images = Numbers::new(5).list(first.input_len());
    let mut logits = vec![f32::NAN; first.output_len()];
    first.session().run(&images, &mut logits)?;
    let error = relative_error(&logits, &expected(&small)?);
    ensure!(error <= 1e-4, "relative error {error:.1e}");
    Ok(())
}

/// Of three convolutions without bias two can be one call, in one way alone.
fn chain(cache: &Path) -> Result<()> {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 9, 7))?;
    let x = b.conv2d("a", x, Conv2d { bias: false, ..Conv2d::new(12, 3) })?;
    let y = b.conv2d("b", x, Conv2d { bias: false, ..Conv2d::new(20, 1) })?;
    let z = b.conv2d("c", y, Conv2d::new(5, 1))?;
    let model = model(b.finish(&[z])?)?;
    compare(&model, &expected(&model)?, &options(2, Math::F32, Pairs::Always, cache)).map(|_| ())
}

/// Sessions of one plan in several threads give what one gives.
fn concurrent(cache: &Path) -> Result<()> {
    let model = model(by_name("convnet", &Config::default())?)?;
    let plan = Plan::compile(&model, &options(2, Math::F32, Pairs::Faster, cache))?;
    let run = |seed: u64| -> Result<Vec<Vec<f32>>> {
        let mut session = plan.session();
        let one = |round: u64| {
            let images = Numbers::new(seed + round).list(2 * plan.input_len());
            let mut logits = vec![f32::NAN; 2 * plan.output_len()];
            session.run(&images, &mut logits)?;
            Ok(logits)
        };
        (0..4).map(one).collect()
    };
    let alone: Vec<_> = (0..3).map(|thread| run(100 * thread)).collect::<Result<_>>()?;
    let together: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..3).map(|thread| scope.spawn(move || run(100 * thread))).collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("the thread does not panic"))
            .collect::<Result<_>>()
    })?;
    ensure!(alone == together, "other results side by side");
    Ok(())
}
