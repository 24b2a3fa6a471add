//! (b) The host code with whole networks, against the reference of the runtime.

use crate::numbers::Numbers;
use crate::standin::Standin;
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Array, Conv2d, Graph, Init, Model, Role, Shape};
use cofilter_lowrank as lowrank;
use cofilter_runtime::cuda::{Libraries, Math, Pairs, Settings};
use cofilter_runtime::{BackendKind, Options, Plan, reference};
use cofilter_sparsity::{Grouping, Pattern, Pruning, prune_magnitude};
use cofilter_zoo::{Config, NAMES, by_name};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

/// Side of the square images that the reference does in a moment; 0: as published.
pub(crate) fn extent(name: &str) -> usize {
    match name {
        "lenet" | "convnet" | "resnet20" | "resnet20_projection" => 0,
        "bvlc_alexnet" | "bvlc_alexnet_split" => 99,
        "alexnet" => 95,
        name if name.ends_with("googlenet") => 64,
        "resnet18" | "resnet34" | "resnet50" => 64,
        _ => 16,
    }
}

/// What became of the weights of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Dense,
    LowRank,
    /// Most columns are zero.
    Columns,
}

/// A model that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Of the zoo.
    Zoo(&'static str, Form),
    /// One whose convolutions are cuDNN's, or whose layers are cuBLASLt's in half precision.
    Small,
}

impl Subject {
    pub(crate) fn model(self) -> Result<Model> {
        let (name, form) = match self {
            Self::Zoo(name, form) => (name, form),
            Self::Small => return small_model(),
        };
        let input = Some(extent(name)).filter(|n| *n > 0).map(|n| Shape::map(3, n, n));
        let graph = by_name(name, &Config { input, softmax: name == "lenet", ..Config::default() })?;
        let dense = model(graph)?;
        Ok(match form {
            Form::Dense => dense,
            Form::LowRank => decomposed(&dense)?,
            Form::Columns => without_columns(&dense)?,
        })
    }

    fn known(self) -> Result<Known> {
        let model = self.model()?;
        let expected = expected(&model)?;
        Ok(Known { model, expected })
    }
}

/// A model and what the reference gives for its first image.
pub(crate) struct Known {
    model: Model,
    expected: Vec<f64>,
}

/// A model to be run and compared.
pub(crate) struct Task {
    pub(crate) subject: Subject,
    pub(crate) name: String,
    pub(crate) math: Math,
    pub(crate) pairs: Pairs,
    pub(crate) batch: usize,
    /// Choices are measured, and these take part.
    pub(crate) libraries: Option<Libraries>,
}

impl Task {
    /// The error, and the plan. `same_alone`: see [`compare`].
    pub(crate) fn check(&self, known: &Known, cache: &Path, same_alone: bool) -> Result<(f64, Plan)> {
        let Self { math, pairs, batch, .. } = *self;
        let options = match self.libraries {
            Some(libraries) => with_libraries(libraries, batch, math, cache),
            None => options(batch, math, pairs, cache),
        };
        compare(&known.model, &known.expected, &options, same_alone)
    }
}

/// The zoo, by our kernels.
pub(crate) fn tasks() -> Vec<Task> {
    let mut tasks = Vec::new();
    for name in NAMES {
        let mut add = |form, what: &str, math, pairs, batch| {
            let subject = Subject::Zoo(name, form);
            tasks.push(Task {
                subject,
                name: format!("{name}, {what}"),
                math,
                pairs,
                batch,
                libraries: None,
            });
        };
        let in_all_ways = matches!(*name, "convnet" | "resnet20" | "bvlc_googlenet");
        add(Form::Dense, "dense", Math::F32, Pairs::Faster, 3);
        for math in [Math::Tf32, Math::F16, Math::Bf16].into_iter().filter(|_| in_all_ways) {
            add(Form::Dense, math.name(), math, Pairs::Faster, 2);
        }
        if *name == "lenet" {
            // Fully connected layers as products.
            add(Form::Dense, "a large batch", Math::F32, Pairs::Faster, 40);
        }
        add(Form::LowRank, "low rank, pairs as one call", Math::F32, Pairs::Always, 2);
        add(Form::LowRank, "low rank, pairs as two", Math::F32, Pairs::Never, 1);
        if in_all_ways {
            add(Form::Columns, "columns of zeros", Math::F32, Pairs::Faster, 2);
        }
    }
    tasks
}

/// Gives each task, in order, with its model to `run`, until that fails. The references take longer than all else, so all processors
/// compute them ahead.
pub(crate) fn each(tasks: &[Task], run: impl FnMut(&Task, &Known) -> Result<()>) -> Result<()> {
    let mut subjects: Vec<Subject> = tasks.iter().map(|task| task.subject).collect();
    subjects.dedup();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (next, (sender, receiver)) = (AtomicUsize::new(0), sync_channel(threads));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(subjects.len()) {
            let (sender, subjects, next) = (sender.clone(), &subjects, &next);
            scope.spawn(move || {
                while let Some(subject) = subjects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Nobody waits once something failed.
                    if sender.send((*subject, subject.known())).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        in_order(tasks, receiver, run)
    })
}

fn in_order(
    tasks: &[Task],
    receiver: Receiver<(Subject, Result<Known>)>,
    mut run: impl FnMut(&Task, &Known) -> Result<()>,
) -> Result<()> {
    let mut there: Vec<(Subject, Result<Known>)> = Vec::new();
    for group in tasks.chunk_by(|a, b| a.subject == b.subject) {
        let is_this = |(subject, _): &(Subject, Result<Known>)| *subject == group[0].subject;
        let known = loop {
            match there.iter().position(is_this) {
                Some(i) => break there.swap_remove(i).1,
                None => there.push(receiver.recv().context("a thread that computes references ended")?),
            }
        };
        let known = known.with_context(|| format!("reference of {}", group[0].name))?;
        for task in group {
            run(task, &known).with_context(|| task.name.clone())?;
        }
    }
    Ok(())
}

/// Number of networks that were compared.
pub(crate) fn check(standin: &Standin, cache: &Path, about: &mut dyn FnMut(String)) -> Result<usize> {
    let tasks = tasks();
    each(&tasks, |task, known| {
        let (error, _) = task.check(known, cache, true)?;
        about(format!("{}: relative error {error:.1e}", task.name));
        Ok(())
    })?;
    measured(Some(standin), cache).context("kernels chosen by their times")?;
    chain(cache).context("convolutions one after the other")?;
    concurrent(cache).context("concurrent sessions")?;
    ensure!(standin.get("races")? == 0, "memory of the host was given back while a copy was under way");
    ensure!(standin.get("live")? == 0, "{} things of the driver are left", standin.get("live")?);
    Ok(tasks.len())
}

fn decomposed(dense: &Model) -> Result<Model> {
    let rule = lowrank::RankRule::Ratio(0.4);
    Ok(lowrank::decompose(dense, &lowrank::Settings { rule, ..lowrank::Settings::default() })?.0)
}

pub(crate) fn without_columns(dense: &Model) -> Result<Model> {
    let pattern = Pattern::Groups(Grouping::Columns);
    Ok(prune_magnitude(dense, &Pruning { sparsity: 0.6, pattern, ..Pruning::default() })?.0)
}

/// See [`Subject::Small`].
pub(crate) fn small_model() -> Result<Model> {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 5, 4))?;
    let x = b.conv2d("a", x, Conv2d { padding: [1; 2], ..Conv2d::new(6, 3) })?;
    let x = b.conv2d("b", x, Conv2d::new(8, 1))?;
    let x = b.flatten("flat", x)?;
    let y = b.linear("c", x, 5)?;
    model(b.finish(&[y])?)
}

/// Choices are measured, and these take part.
pub(crate) fn with_libraries(libraries: Libraries, batch: usize, math: Math, cache: &Path) -> Options {
    let mut options = options(batch, math, Pairs::Faster, cache);
    options.cuda.measure = true;
    options.cuda.libraries = libraries;
    options
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

/// Error of the first image relative to the largest result, and the plan. A second run gives the same bits, and so do images alone where
/// `same_alone`: the stand-ins of libraries do, libraries do not promise it.
pub(crate) fn compare(
    model: &Model,
    expected: &[f64],
    options: &Options,
    same_alone: bool,
) -> Result<(f64, Plan)> {
    let plan = Plan::compile(model, options)?;
    let batch = options.batch;
    let images = Numbers::new(5).list(batch * plan.input_len());
    let mut session = plan.session();
    let mut run = |images: &[f32]| -> Result<Vec<f32>> {
        let mut logits = vec![f32::NAN; images.len() / plan.input_len() * plan.output_len()];
        session.run(images, &mut logits)?;
        Ok(logits)
    };
    let allowed = match options.cuda.math {
        Math::F32 => 1e-4,
        // Sums over layers of what each product loses.
        math => 20.0 * math.error(),
    };
    let (len, out) = (plan.input_len(), plan.output_len());
    let together = run(&images)?;
    for image in [0, batch - 1] {
        let alone = run(&images[image * len..][..len])?;
        let among = &together[image * out..][..out];
        ensure!(
            !same_alone || same_bits(&alone, among),
            "image {image} gives other bits alone than among {batch}"
        );
        let among: Vec<f64> = among.iter().map(|x| f64::from(*x)).collect();
        let error = relative_error(&alone, &among);
        ensure!(error <= 2.0 * allowed, "image {image} alone: {error:.1e} from what it gives among {batch}");
    }
    ensure!(same_bits(&run(&images)?, &together), "a second run gives other bits");
    let times = session.profile(&images)?;
    ensure!(times.steps.iter().all(|step| step.time_us >= 0.0), "a step without a time");
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

/// Times are measured once and kept: the second plan orders none, as a stand-in counts. What is chosen by them computes the same.
pub(crate) fn measured(standin: Option<&Standin>, cache: &Path) -> Result<()> {
    let small = Subject::Zoo("convnet", Form::LowRank).model()?;
    let options = with_libraries(Libraries::Never, 2, Math::F32, cache);
    let launched = || standin.map_or(Ok(0), |standin| standin.get("cuLaunchKernel"));
    let compile = || -> Result<(Plan, i64)> {
        let before = launched()?;
        let plan = Plan::compile(&small, &options)?;
        Ok((plan, launched()? - before))
    };
    let (first, launches) = compile()?;
    let (second, again) = compile()?;
    ensure!(
        standin.is_none() || launches > 0 && again == 0,
        "{launches} kernels for the first plan, {again} for the second"
    );
    ensure!(first.describe() == second.describe(), "two choices:\n{}{}", first.describe(), second.describe());
    let images = Numbers::new(5).list(first.input_len());
    let mut logits = vec![f32::NAN; first.output_len()];
    first.session().run(&images, &mut logits)?;
    let error = relative_error(&logits, &expected(&small)?);
    ensure!(error <= 1e-4, "relative error {error:.1e}");
    Ok(())
}

/// Of three convolutions without bias two can be one call, in one way alone.
pub(crate) fn chain(cache: &Path) -> Result<()> {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 9, 7))?;
    let x = b.conv2d("a", x, Conv2d { bias: false, ..Conv2d::new(12, 3) })?;
    let y = b.conv2d("b", x, Conv2d { bias: false, ..Conv2d::new(20, 1) })?;
    let z = b.conv2d("c", y, Conv2d::new(5, 1))?;
    let model = model(b.finish(&[z])?)?;
    compare(&model, &expected(&model)?, &options(2, Math::F32, Pairs::Always, cache), true).map(|_| ())
}

/// Sessions of one plan in several threads give what one gives.
pub(crate) fn concurrent(cache: &Path) -> Result<()> {
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
