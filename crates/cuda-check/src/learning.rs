//! (f) Training: an iteration of every network of the zoo, and of two that have everything, against the same one on the processor, whose
//! gradients have been checked by finite differences; deleted barriers; what fails on the way.

use crate::faults::FAILURES;
use crate::kernels::barriers;
use crate::networks::{extent, model};
use crate::numbers::Numbers;
use crate::standin::Standin;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_cuda::{Set, compile};
use cofilter_data::{Dataset, preprocessing};
use cofilter_graph::{Array, BatchNorm, Conv2d, Graph, Lrn, LrnRegion, Model, Op, Pool2d, PoolKind, Shape};
use cofilter_lowrank as lowrank;
use cofilter_train::{Device, Error, Recipe, Trainer, evaluate};
use cofilter_zoo::{Config, by_name};

/// One of each kind, that a stand-in trains in a moment.
const SHALLOW: [&str; 6] =
    ["lenet", "convnet", "resnet20", "resnet20_projection", "bvlc_alexnet", "bvlc_googlenet"];

/// A capability without tensor cores for words of 32 bits; those with slow ones get the same kernels.
const OLDER: i64 = 75;

/// A network to be trained for an iteration.
pub(crate) struct Task {
    pub(crate) name: String,
    model: Model,
    /// Largest error of a gradient.
    allowed: f64,
}

/// Two networks of our own, and networks of the zoo, dense and low-rank.
pub(crate) fn tasks(names: &[&str]) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = ours()?.into();
    for name in names {
        let input = Some(extent(name)).filter(|n| *n > 0).map(|n| Shape::map(3, n, n));
        let dense = model(by_name(name, &Config { input, ..Config::default() })?)?;
        let rule = lowrank::RankRule::Ratio(0.4);
        let (small, _) =
            lowrank::decompose(&dense, &lowrank::Settings { rule, ..lowrank::Settings::default() })?;
        // Rounding grows from layer to layer in deep ones, and a sum that is left out is off by half.
        let allowed = if SHALLOW.contains(name) { 2e-2 } else { 0.1 };
        for (what, model) in [("dense", dense), ("low rank", small)] {
            tasks.push(Task { name: format!("training {name}, {what}"), model, allowed });
        }
    }
    Ok(tasks)
}

/// Number of networks that were compared.
pub(crate) fn check(standin: &Standin, about: &mut dyn FnMut(String)) -> Result<usize> {
    let tasks = tasks(&SHALLOW)?;
    for task in &tasks {
        let error = task.check()?;
        about(format!("{}: error of the gradients {error:.1e}", task.name));
    }
    standin.set("backwards", 1)?;
    let ours = ours()?;
    ours.iter().try_for_each(|task| task.check().map(|_| ()).context("backwards"))?;
    standin.set("backwards", 0)?;
    standin.set("capability", OLDER)?;
    ours.iter().try_for_each(|task| task.check().map(|_| ()).context("an older device"))?;
    standin.set("capability", 80)?;
    evaluation().context("evaluation")?;
    ensure!(standin.get("live")? == 0, "{} things of the driver are left", standin.get("live")?);
    Ok(tasks.len() + 2 * ours.len() + 1)
}

/// A network's score with running statistics, the last batch smaller than the others.
pub(crate) fn evaluation() -> Result<()> {
    const IMAGES: usize = 9;
    let model = model(by_name("resnet20", &Config::default())?)?;
    let pixels = Numbers::new(3).list(IMAGES * model.graph().input_shape().elements());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
    let pixels = pixels.iter().map(|x| (127.0 * (x + 1.0)) as u8).collect();
    let labels = (0..IMAGES as u32).collect();
    let of = preprocessing::torchvision_cifar();
    let images = Dataset::new("images", [3, 32, 32], of.classes.clone(), pixels, labels)?;
    let score = |device| evaluate(&model, &images, &of, 4, device);
    let (found, expected) = (score(Device::Cuda(0))?, score(Device::Cpu)?);
    let close = (found.loss - expected.loss).abs() <= 1e-4 * expected.loss;
    ensure!(
        close && found.top1 == expected.top1 && found.top5 == expected.top5,
        "{found:?}, expected {expected:?}"
    );
    Ok(())
}

/// Deletes one barrier of training after the other, and counts those whose absence shows. Those of the kernels that run networks too come
/// first in the text, and have been deleted elsewhere.
pub(crate) fn mutants(standin: &Standin, about: &mut dyn FnMut(String)) -> Result<[usize; 2]> {
    let text = compile::text(Set::Learn);
    let own =
        text.lines().position(|line| line.starts_with("struct Pack")).context("where training begins")?;
    let own = i64::try_from(own)?;
    let ours = ours()?;
    let mut caught = 0;
    let lines: Vec<i64> = barriers(&text)?.into_iter().filter(|line| *line > own).collect();
    for line in &lines {
        standin.set("deleted", *line)?;
        let mut found = None;
        let ways = [
            (80, 0, "forwards"),
            (80, 1, "backwards"),
            (OLDER, 0, "forwards on an older device"),
            (OLDER, 1, "backwards on an older device"),
        ];
        for (capability, order, name) in ways {
            standin.set("capability", capability)?;
            standin.set("backwards", order)?;
            found = ours.iter().find(|task| task.check().is_err()).map(|task| (&task.name, name));
            if found.is_some() {
                break;
            }
        }
        standin.set("repair", 0)?;
        standin.set("backwards", 0)?;
        standin.set("capability", 80)?;
        match found {
            Some((task, order)) => {
                caught += 1;
                about(format!("barrier in line {line} of training: caught by {task} {order}"));
            }
            None => about(format!("barrier in line {line} of training: NOT caught")),
        }
    }
    standin.set("deleted", 0)?;
    Ok([lines.len(), caught])
}

/// Number of failures that were tried: each is an error that names the call, and leaves nothing behind.
pub(crate) fn faults(standin: &Standin) -> Result<usize> {
    let [Task { model, .. }, _] = ours()?;
    let mut tried = 0;
    for (call, code, named) in FAILURES.iter().filter(|(call, ..)| *call != "cuFuncSetAttribute") {
        for after in 0..400 {
            standin.fail(call, after, *code)?;
            let outcome = iterations(&model, Device::Cuda(0), 3);
            standin.set("repair", 0)?;
            let left = standin.get("live")?;
            ensure!(left == 0, "{call} number {after}: {left} things are left");
            let error = match outcome {
                Ok(_) if after > 0 => break,
                Ok(_) => bail!("{call} failed and nobody noticed"),
                Err(error) => error,
            };
            let text = error.to_string();
            ensure!(matches!(error, Error::Cuda(_)), "{call} number {after}: {text}");
            ensure!(text.contains(named), "{call} number {after}: `{text}` does not say {named}");
            tried += 1;
        }
    }
    Ok(tried)
}

/// Images of a batch.
const BATCH: usize = 5;
/// Batches.
const BATCHES: u64 = 3;

/// Iterations whose updates are gradients; the first loss, and the network.
fn iterations(model: &Model, device: Device, count: u64) -> Result<(f64, Model), Error> {
    step(model, device, (0, count))
}

fn step(model: &Model, device: Device, (seed, count): (u64, u64)) -> Result<(f64, Model), Error> {
    let recipe = Recipe {
        batch: BATCH,
        iterations: count,
        learning_rate: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        ..Recipe::default()
    };
    let mut trainer = Trainer::new(model, &recipe, None, device)?;
    let labels: Vec<u32> = (0..BATCH as u32).map(|i| i * 3 % 7).collect();
    let mut first = None;
    for _ in 0..count {
        let images = Numbers::new(seed).list(BATCH * model.graph().input_shape().elements());
        let loss = trainer.step(images, &labels, false)?.loss;
        first.get_or_insert(loss);
    }
    Ok((first.unwrap_or(f64::NAN), trainer.net().to_model()?))
}

impl Task {
    /// Largest error of a tensor's gradient, relative to it, by their norms. An activation near zero may have another sign after another
    /// order of a sum, and what comes back through it is there or not: each tensor has to agree in one batch, and nearly in all.
    pub(crate) fn check(&self) -> Result<f64> {
        let model = &self.model;
        let mut least = vec![f64::INFINITY; model.params().iter().count()];
        for seed in 0..BATCHES {
            let context = || format!("{}, batch {seed}", self.name);
            let (loss, ours) = step(model, Device::Cuda(0), (seed, 1)).with_context(context)?;
            let (expected_loss, expected) = step(model, Device::Cpu, (seed, 1))?;
            let off = (loss - expected_loss).abs();
            ensure!(
                off <= 1e-4 * expected_loss.abs(),
                "{}: loss {loss}, expected {expected_loss}",
                context()
            );
            for ((least, error), (node, slot, _)) in
                least.iter_mut().zip(differences(model, &ours, &expected)).zip(model.params().iter())
            {
                let name = model.graph().tensor_name(node, slot);
                ensure!(error <= 0.5, "{}: `{name}`: relative error of the gradient {error:.1e}", context());
                *least = least.min(error);
            }
            let worst = least.iter().fold(0.0_f64, |a, b| a.max(*b));
            if worst <= self.allowed {
                return Ok(worst);
            }
        }
        bail!("{}: relative errors of the gradients {least:?}, allowed {:.0e}", self.name, self.allowed)
    }
}

/// Error of each tensor's update.
fn differences(before: &Model, found: &Model, expected: &Model) -> Vec<f64> {
    let triples = || found.params().iter().zip(expected.params().iter()).zip(before.params().iter());
    let norm = |numbers: &mut dyn Iterator<Item = f32>| {
        let sum: f64 = numbers.map(|x| f64::from(x).powi(2)).sum();
        if sum.is_nan() { f64::INFINITY } else { sum.sqrt() }
    };
    let apart = |a: &Array, b: &Array| norm(&mut a.data().iter().zip(b.data()).map(|(a, b)| a - b));
    let whole = triples().map(|((_, (_, _, e)), (_, _, b))| apart(e, b)).fold(0.0, f64::max);
    let error = |((found, expected), before): ((&Array, &Array), &Array)| {
        // An update is the difference of two numbers; and where sums cancel, as in front of a normalisation, what is left is rounding.
        let rounding = 1e-7 * norm(&mut expected.data().iter().copied()) + 1e-6 * whole;
        (apart(found, expected) - rounding).max(0.0) / apart(expected, before).max(f64::MIN_POSITIVE)
    };
    triples().map(|(((_, _, f), (_, _, e)), (_, _, b))| error(((f, e), b))).collect()
}

/// Everything that is computed, with maps whose elements are, and are not, a multiple of four; all widths of tiles.
fn ours() -> Result<[Task; 2]> {
    let around = |filters| Conv2d { padding: [1; 2], bias: false, ..Conv2d::new(filters, 3) };
    let strided = |filters| Conv2d { stride: [2; 2], padding: [1; 2], ..Conv2d::new(filters, 3) };

    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 33, 18))?;
    let x = b.conv2d("first", x, Conv2d { padding: [2, 1], ..Conv2d::new(10, 3) })?;
    let x = b.relu("first_relu", x)?;
    let x = b.lrn(
        "across",
        x,
        Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 0.3, beta: 0.75, k: 1.2 },
    )?;
    let wide = b.conv2d("wide", x, Conv2d { bias: true, ..around(20) })?;
    let x = b.relu("wide_relu", wide)?;
    let x = b.conv2d("halved", x, strided(40))?;
    let x = b.batch_norm("norm", x, BatchNorm::default())?;
    let x = b.relu("norm_relu", x)?;
    let most = b.pool2d("most", x, Pool2d { padding: [1; 2], ..Pool2d::torch(PoolKind::Max, 3, 1) })?;
    let of = Pool2d { padding: [1; 2], count_padding: false, ..Pool2d::torch(PoolKind::Average, 3, 1) };
    let mean = b.pool2d("mean", x, of)?;
    let x = b.concat("both", &[most, x, mean])?;
    let grouped =
        Conv2d { groups: 2, stride: [1, 2], dilation: [2, 1], padding: [2, 0], ..Conv2d::new(36, 3) };
    let x = b.conv2d("grouped", x, grouped)?;
    let x = b.dropout("some", x, 0.3)?;
    let x =
        b.lrn("within", x, Lrn { region: LrnRegion::WithinChannel, size: 3, alpha: 0.2, beta: 0.5, k: 2.0 })?;
    let x = b.add("windows", Op::AdaptiveAvgPool { output: [4, 3] }, &[x])?;
    let x = b.pad_channels("more", x, 1, 2)?;
    let x = b.flatten("flat", x)?;
    let x = b.linear("hidden", x, 21)?;
    let x = b.relu("hidden_relu", x)?;
    let y = b.linear("scores", x, 9)?;
    let side = b.linear("side", x, 8)?;
    // Outputs that are one value, and that others read.
    let same = b.softmax("softmax", y)?;
    let both = b.concat("mixed", &[side, y])?;
    let main = b.linear("main", both, 7)?;
    let model_of = model(b.finish(&[main, y, same])?)?;
    let odd = Task { name: "training one with everything".into(), model: model_of, allowed: 1e-4 };

    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(5, 64, 32))?;
    let x = b.conv2d("a", x, around(20))?;
    let x = b.batch_norm("a_norm", x, BatchNorm::default())?;
    let x = b.relu("a_relu", x)?;
    let y = b.conv2d("b", x, around(20))?;
    let y = b.batch_norm("b_norm", y, BatchNorm::default())?;
    let x = b.sum("sum", &[x, y, x])?;
    let x = b.relu("sum_relu", x)?;
    let x = b.conv2d("c", x, strided(33))?;
    let x = b.batch_norm("c_norm", x, BatchNorm::default())?;
    let x = b.conv2d("d", x, around(20))?;
    let x = b.pool2d("pool", x, Pool2d::torch(PoolKind::Max, 2, 2))?;
    let x = b.conv2d("e", x, around(40))?;
    let x = b.relu("e_relu", x)?;
    let x = b.global_avg_pool("mean", x)?;
    let x = b.flatten("flat", x)?;
    let y = b.linear("scores", x, 8)?;
    let even = Task { name: "training a residual one".into(), model: model(b.finish(&[y])?)?, allowed: 1e-4 };
    Ok([odd, even])
}
