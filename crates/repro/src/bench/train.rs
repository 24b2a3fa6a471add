//! Training, ours and PyTorch's, in turns in one run, from the same weights with the same images and recipe: what an iteration
//! takes, and whether both learn the same.

mod report;

use super::peers::{Kit, Training, Worker, set_up};
use super::{Options, folder, median};
use anyhow::{Context as _, Result, ensure};
use cofilter_data::{Augment, Dataset, Pipeline, preprocessing};
use cofilter_force::Force;
use cofilter_graph::{Artifact, Error as GraphError, Init, Model, Op, Preprocessing, Shape};
use cofilter_train::{Device, ForceRule, Recipe, Trainer};
use cofilter_zoo::{Config, Network};
use report::{Cell, Engine, Report};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A network, how it is trained, and on which images.
#[derive(Clone, Copy, Debug)]
struct Subject {
    network: &'static str,
    name: &'static str,
    batch: usize,
    extents: [usize; 3],
    rate: f64,
    /// Different batches.
    batches: usize,
}

const SUBJECTS: [Subject; 5] = [
    Subject { network: "lenet", name: "LeNet", batch: 64, extents: [1, 28, 28], rate: 0.01, batches: 16 },
    Subject {
        network: "convnet",
        name: "ConvNet",
        batch: 100,
        extents: [3, 32, 32],
        rate: 0.001,
        batches: 16,
    },
    Subject {
        network: "resnet20",
        name: "CIFAR ResNet-20",
        batch: 128,
        extents: [3, 32, 32],
        rate: 0.002,
        batches: 16,
    },
    Subject {
        network: "resnet18",
        name: "ResNet-18",
        batch: 32,
        extents: [3, 64, 64],
        rate: 0.0005,
        batches: 16,
    },
    Subject {
        network: "alexnet",
        name: "torchvision AlexNet",
        batch: 32,
        extents: [3, 224, 224],
        rate: 0.001,
        batches: 4,
    },
];

/// Layouts of PyTorch, each an engine.
const PEERS: [&str; 2] = ["torch", "torch-channels-last"];
/// Classes of the images.
const CLASSES: usize = 10;
/// Largest difference between two engines' losses in an iteration, relative to the first loss. Rounding grows from iteration to
/// iteration, the more the larger the rate: at 0.005 AlexNet's losses jump, and PyTorch's two layouts then differ by 3e-2. Rates here are
/// such that losses fall and do not jump; a wrong gradient is off by more within a few iterations.
const TOLERANCE: f64 = 1e-2;
/// Iterations of each engine at a turn.
const TURN: usize = 5;

/// Times all cells that the options ask for and writes a table.
pub(super) fn run(options: &Options) -> Result<()> {
    let kit = set_up(options.venv.as_deref())?;
    let chosen: Vec<&Subject> = SUBJECTS.iter().filter(|s| s.network.contains(&options.net)).collect();
    ensure!(
        !chosen.is_empty(),
        "--net {}: expected part of one of {:?}",
        options.net,
        SUBJECTS.map(|s| s.network)
    );
    let mut cells = Vec::new();
    for threads in options.thread_counts() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        for subject in &chosen {
            let cell = pool
                .install(|| measure(subject, threads, &kit, options.quick))
                .with_context(|| format!("{}, {threads} thread(s)", subject.name))?;
            println!("{}", report::line(&cell));
            cells.push(cell);
        }
    }
    Report::new(cells).write(options)
}

/// One cell: every engine's iterations in turns, then those with a force beside those without.
fn measure(subject: &Subject, threads: usize, kit: &Kit, quick: bool) -> Result<Cell> {
    let iterations = if quick { 20 } else { 200 };
    let (model, force_layers) = network(subject)?;
    let data = images(subject)?;
    let preprocessing = preprocessing_of(subject);
    let pipeline = Pipeline::new(&data, &preprocessing, &Augment::default(), 1)?;
    let recipe = Recipe { batch: subject.batch, learning_rate: subject.rate, ..Recipe::default() };
    let mut feed = Feed { pipeline: &pipeline, batch: subject.batch, batches: subject.batches };
    let files = Files::write(&model, &mut feed)?;
    let mut workers: Vec<Worker> =
        PEERS.iter().map(|engine| Worker::start(kit, engine, threads)).collect::<Result<_>>()?;
    let training = Training {
        model: &files.model,
        images: &files.images,
        labels: &files.labels,
        batch: subject.batch,
        recipe: &recipe,
    };
    for worker in &mut workers {
        worker.train(&training)?;
    }
    let forgotten = reset_peak();
    let mut ours = Ours::new(&model, &recipe)?;
    let mut others: Vec<Engine> = PEERS.iter().map(|_| Engine::default()).collect();
    let mut done = 0;
    while done < iterations {
        let count = TURN.min(iterations - done);
        for _ in 0..count {
            ours.step(&mut feed)?;
        }
        for (worker, engine) in workers.iter_mut().zip(&mut others) {
            let (ms, losses, peak) = worker.steps(count)?;
            engine.ms.extend(ms);
            engine.losses.extend(losses);
            engine.peak_bytes = peak;
        }
        done += count;
    }
    let peak_bytes = if forgotten { peak() } else { None };
    drop(workers);
    let engines: BTreeMap<String, Engine> = PEERS.iter().map(|p| (*p).to_owned()).zip(others).collect();
    let max_loss_difference = difference(&ours.losses, engines.values().map(|engine| &engine.losses[..]));
    let [first, others @ ..] = &engines.values().map(|engine| &engine.losses[..]).collect::<Vec<_>>()[..]
    else {
        unreachable!("`PEERS` is not empty")
    };
    let pytorch_loss_difference = difference(first, others.iter().copied());
    ensure!(
        max_loss_difference <= TOLERANCE,
        "losses differ by {max_loss_difference:.1e} of the first one within {iterations} iterations (PyTorch's two layouts by \
         {pytorch_loss_difference:.1e}), at most {TOLERANCE:.0e} is expected: ours {:?}, theirs {first:?}",
        ours.losses
    );
    let mut cell = Cell::new(subject.name, subject.batch, threads, &ours.ms, &ours.parts, &engines);
    cell.iterations = iterations;
    cell.max_loss_difference = max_loss_difference;
    cell.pytorch_loss_difference = pytorch_loss_difference;
    cell.peak_bytes = peak_bytes;
    let ours_losses = std::mem::take(&mut ours.losses);
    drop(ours);
    cell.force = forces(&model, &recipe, &force_layers, &mut feed, if quick { 6 } else { 20 })?;
    cell.force_share = cell.force.values().copied().fold(f64::NEG_INFINITY, f64::max);
    cell.losses = engines.into_iter().map(|(name, engine)| (name, engine.losses)).collect();
    cell.losses.insert("cofilter".into(), ours_losses);
    Ok(cell)
}

/// The network to train, without dropout, whose draws no two engines share; and the layers that a force acts on.
fn network(subject: &Subject) -> Result<(Model, Vec<String>)> {
    let [channels, height, width] = subject.extents;
    let config = Config { input: Some(Shape::map(channels, height, width)), ..Config::default() };
    let mut network = Network::by_name(subject.network, &config)?;
    if subject.network == "convnet" {
        // From the published start losses hardly fall in 200 iterations, and would agree whatever the gradients.
        network.init = Init::default();
    }
    let model = network.model(1)?;
    let model = model.rewrite(|b, id, inputs| match model.graph().node(id).op() {
        Op::Dropout { .. } => Ok::<_, GraphError>(inputs[0]),
        _ => b.keep(id, inputs),
    })?;
    Ok((model, network.force_layers))
}

/// Images of classes that can be told apart: a pattern of the class under noise.
fn images(subject: &Subject) -> Result<Dataset> {
    let len: usize = subject.extents.iter().product();
    let mut state = 1_u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let patterns: Vec<u8> = (0..CLASSES * len).map(|_| byte()).collect();
    let count = subject.batch * subject.batches;
    let labels: Vec<u32> = (0..count).map(|_| u32::from(byte()) % CLASSES as u32).collect();
    let mut pixels = Vec::with_capacity(count * len);
    for label in &labels {
        let pattern = &patterns[*label as usize * len..][..len];
        pixels.extend(pattern.iter().map(|p| p / 4 + byte() / 4 * 3));
    }
    let classes = (0..CLASSES).map(|class| class.to_string()).collect();
    Ok(Dataset::new("patterns", subject.extents, classes, pixels, labels)?)
}

fn preprocessing_of(subject: &Subject) -> Preprocessing {
    let [channels, height, width] = subject.extents;
    let of = if channels == 1 { preprocessing::lenet(&[]) } else { preprocessing::torchvision_cifar() };
    Preprocessing { crop: [height, width], classes: Vec::new(), ..of }
}

/// The batches, one after the other and again.
struct Feed<'a> {
    pipeline: &'a Pipeline,
    batch: usize,
    batches: usize,
}

impl Feed<'_> {
    fn fill(&mut self, iteration: u64, images: &mut [f32], labels: &mut [u32]) -> Result<()> {
        let first = (iteration as usize % self.batches) * self.batch;
        let indices: Vec<u32> = (first..first + self.batch).map(|index| index as u32).collect();
        Ok(self.pipeline.fill(None, &indices, images, labels)?)
    }
}

/// What the other engines read.
struct Files {
    model: PathBuf,
    images: PathBuf,
    labels: PathBuf,
}

impl Files {
    fn write(model: &Model, feed: &mut Feed<'_>) -> Result<Self> {
        let at = |name: &str| -> Result<PathBuf> { Ok(folder()?.join(name)) };
        let files = Self {
            model: at("train.safetensors")?,
            images: at("train-images.f32")?,
            labels: at("train-labels.u32")?,
        };
        Artifact::new(model.clone()).save(&files.model)?;
        let (mut all, mut names) = (Vec::new(), Vec::new());
        let mut images = vec![0.0; feed.batch * feed.pipeline.input_len()];
        let mut labels = vec![0; feed.batch];
        for iteration in 0..feed.batches {
            feed.fill(iteration as u64, &mut images, &mut labels)?;
            all.extend(images.iter().flat_map(|value| value.to_le_bytes()));
            names.extend(labels.iter().flat_map(|label| label.to_le_bytes()));
        }
        write(&files.images, &all)?;
        write(&files.labels, &names)?;
        Ok(files)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Our own engine.
struct Ours {
    trainer: Trainer,
    labels: Vec<u32>,
    ms: Vec<f64>,
    losses: Vec<f64>,
    /// Milliseconds of data, forward, backward, update.
    parts: [Vec<f64>; 4],
}

impl Ours {
    fn new(model: &Model, recipe: &Recipe) -> Result<Self> {
        let trainer = Trainer::new(model, recipe, None, Device::Cpu)?;
        let labels = vec![0; recipe.batch];
        Ok(Self { trainer, labels, ms: Vec::new(), losses: Vec::new(), parts: Default::default() })
    }

    fn step(&mut self, feed: &mut Feed<'_>) -> Result<()> {
        let start = Instant::now();
        let mut images = self.trainer.buffer(self.labels.len() * feed.pipeline.input_len());
        feed.fill(self.trainer.iteration(), &mut images, &mut self.labels)?;
        let data = start.elapsed().as_secs_f64();
        let step = self.trainer.step(images, &self.labels, false)?;
        self.ms.push(start.elapsed().as_secs_f64() * 1e3);
        self.losses.push(step.loss);
        let [forward, backward, update] = step.seconds;
        for (all, seconds) in self.parts.iter_mut().zip([data, forward, backward, update]) {
            all.push(seconds * 1e3);
        }
        Ok(())
    }
}

/// Largest difference of a loss from that of the same iteration in another run, relative to the first one.
fn difference<'a>(losses: &[f64], others: impl Iterator<Item = &'a [f64]>) -> f64 {
    let pairs = others.flat_map(|other| losses.iter().zip(other));
    let worst =
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    worst / losses.first().copied().unwrap_or(f64::NAN)
}

/// Share of an iteration that each force takes: how much longer updates are than without, in turns, over an iteration.
fn forces(
    model: &Model,
    recipe: &Recipe,
    layers: &[String],
    feed: &mut Feed<'_>,
    iterations: usize,
) -> Result<BTreeMap<String, f64>> {
    let mut plain = Ours::new(model, recipe)?;
    let mut pulled = Vec::new();
    for (name, force) in [("l1", Force::L1), ("l2", Force::L2)] {
        let rule = ForceRule::new(force, 1e-6, layers.iter().cloned());
        pulled.push((name, Ours::new(model, &Recipe { force: Some(rule), ..recipe.clone() })?));
    }
    // The first one touches fresh memory.
    for _ in 0..=iterations {
        plain.step(feed)?;
        for (_, ours) in &mut pulled {
            ours.step(feed)?;
        }
    }
    let update = |ours: &Ours| median(&ours.parts[3][1..]);
    let share = |ours: &Ours| (update(ours) - update(&plain)) / median(&ours.ms[1..]);
    Ok(pulled.iter().map(|(name, ours)| ((*name).to_owned(), share(ours))).collect())
}

/// Forgets the most memory that this process has held; whether the system can.
fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The most memory that this process has held.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_that_differ_or_are_no_number_are_seen() {
        let from = |others: [&[f64]; 2]| difference(&[2.0, 1.0], others.into_iter());
        assert_eq!(from([&[2.0, 1.0], &[2.0, 1.5]]), 0.25);
        assert!(from([&[2.0, f64::NAN], &[2.0, 1.0]]).is_nan());
    }

    #[test]
    fn small_subjects_can_be_trained() {
        assert!(SUBJECTS.iter().all(|subject| network(subject).is_ok()));
        for subject in &SUBJECTS[..3] {
            let subject = Subject { batch: 2, batches: 1, ..*subject };
            let (model, layers) = network(&subject).unwrap();
            let data = images(&subject).unwrap();
            let preprocessing = preprocessing_of(&subject);
            let pipeline = Pipeline::new(&data, &preprocessing, &Augment::default(), 1).unwrap();
            let recipe = Recipe { batch: 2, learning_rate: subject.rate, ..Recipe::default() };
            let mut feed = Feed { pipeline: &pipeline, batch: 2, batches: 1 };
            let shares = forces(&model, &recipe, &layers, &mut feed, 1).unwrap();
            assert_eq!(shares.keys().collect::<Vec<_>>(), ["l1", "l2"]);
        }
    }
}
