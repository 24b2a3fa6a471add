//! What a network, or a layer, takes on a card at least, from its operations and bytes.

use crate::networks::model;
use anyhow::{Context as _, Result, ensure};
use cofilter_cuda::{Geometry, Math};
use cofilter_graph::{Model, Op};
use cofilter_lowrank as lowrank;
use cofilter_runtime::Program;
use cofilter_zoo::{Config, by_name};
use std::fmt::Write as _;
use std::path::Path;

/// A card: operations a second in f32, in TF32 and in half precision with sums in f32 (dense), and bytes a second.
struct Card {
    name: &'static str,
    /// What the driver calls it.
    device: &'static str,
    f32: f64,
    tf32: f64,
    f16: f64,
    bytes: f64,
}

/// Figures of the maker: "NVIDIA H100 Tensor Core GPU" data sheet (SXM5; tensor cores there with sparsity, half of it without) and "NVIDIA
/// Ada GPU architecture" white paper (appendix A).
const CARDS: [Card; 2] = [
    Card {
        name: "H100 SXM",
        device: "H100 80GB HBM3",
        f32: 67e12,
        tf32: 494.5e12,
        f16: 989.5e12,
        bytes: 3.35e12,
    },
    Card {
        name: "RTX 4090",
        device: "RTX 4090",
        f32: 82.6e12,
        tf32: 82.6e12,
        f16: 165.2e12,
        bytes: 1.008e12,
    },
];

impl Card {
    /// Operations a second, and the part of the bytes of weights in f32 that is kept.
    fn rate(&self, math: Math) -> (f64, f64) {
        match math {
            Math::F32 => (self.f32, 1.0),
            Math::Tf32 => (self.tf32, 1.0),
            Math::F16 | Math::Bf16 => (self.f16, 0.5),
        }
    }
}

const NETWORKS: [&str; 8] =
    ["lenet", "convnet", "resnet20", "resnet56", "bvlc_alexnet", "bvlc_googlenet", "resnet18", "resnet50"];
const BATCHES: [usize; 2] = [1, 32];

/// Operations of a step for a batch, and bytes of weights in f32 and of values.
struct Cost {
    operations: f64,
    weights: f64,
    values: f64,
}

impl Cost {
    /// Least time on a card in microseconds.
    fn us(&self, card: &Card, math: Math) -> f64 {
        let (rate, kept) = card.rate(math);
        1e6 * (self.operations / rate).max((kept * self.weights + self.values) / card.bytes)
    }
}

/// Least time of a convolution in microseconds on a device, if it is one of the cards.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn layer_us(device: &str, math: Math, of: &Geometry, batch: usize) -> Option<f64> {
    let card = CARDS.iter().find(|card| device.contains(card.device))?;
    let [image, result] = of.lens();
    let cost = Cost {
        operations: 2.0 * (batch * result * of.columns()) as f64,
        weights: 4.0 * (of.filters * of.columns()) as f64,
        values: 4.0 * (batch * (image + result)) as f64,
    };
    Some(cost.us(card, math))
}

/// Writes the table, or holds it against the one that is there.
pub(crate) fn check(file: &Path, write: bool) -> Result<()> {
    let text = table()?;
    if write {
        return std::fs::write(file, text).with_context(|| file.display().to_string());
    }
    let there = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    ensure!(
        there == text,
        "{}: not what the networks give now; `cargo xtask cuda-check --write` writes it",
        file.display()
    );
    Ok(())
}

fn table() -> Result<String> {
    let mut text = "# Floors on CUDA devices\n\n\
        Written by `cargo xtask cuda-check --write`, not by hand. Nothing here was measured: it is the time in microseconds \
        that a card takes, by the figures of its maker, if every call is as fast as its operations (two for each \
        multiply-accumulate) or its bytes from device memory (weights, what is read and what is written, each once; a concatenation is \
        written in place) allow, whichever takes longer, one call after the other. Launches are not counted. Networks whose \
        weights and values stay in the caches of the card (50 MB on the H100, 72 MB on the RTX 4090) can be faster. f16 halves \
        the weights, values are f32. Low rank: every layer at 0.4 of full rank, the middle of a pair in shared memory. MB are \
        those of f32.\n\n\
        | network | form | batch | GMAC | MB |"
        .to_owned();
    for card in &CARDS {
        let _ = write!(text, " {0}, f32 | {0}, TF32 | {0}, f16 |", card.name);
    }
    text += "\n|---|---|---|---|---|";
    text += &"---|".repeat(3 * CARDS.len());
    text.push('\n');
    for name in NETWORKS {
        let dense = model(by_name(name, &Config { auxiliary: false, ..Config::default() })?)?;
        let rule = lowrank::RankRule::Ratio(0.4);
        let (small, _) =
            lowrank::decompose(&dense, &lowrank::Settings { rule, ..lowrank::Settings::default() })?;
        for (form, model) in [("dense", &dense), ("low rank", &small)] {
            for batch in BATCHES {
                let costs = costs(model, batch)?;
                let operations: f64 = costs.iter().map(|cost| cost.operations).sum();
                let bytes: f64 = costs.iter().map(|cost| cost.weights + cost.values).sum();
                let _ = write!(
                    text,
                    "| {name} | {form} | {batch} | {:.3} | {:.2} |",
                    operations / 2e9,
                    bytes / 1e6
                );
                for card in &CARDS {
                    for math in [Math::F32, Math::Tf32, Math::F16] {
                        let us = costs.iter().map(|cost| cost.us(card, math)).sum::<f64>();
                        let _ = write!(text, " {us:.1} |");
                    }
                }
                text.push('\n');
            }
        }
    }
    Ok(text)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn costs(model: &Model, batch: usize) -> Result<Vec<Cost>> {
    let program = Program::lower(model)?;
    let steps = program.steps();
    let pointwise = |op: &Op| matches!(op, Op::Conv2d(conv) if conv.kernel == [1; 2]);
    let mut costs: Vec<Option<Cost>> = Vec::new();
    for step in steps {
        let elements = |value: &cofilter_runtime::Value| value.shape.elements() as f64;
        let weights: f64 = step.tensors.iter().map(|tensor| tensor.data().len() as f64).sum();
        let values: f64 =
            step.operands.iter().chain(&step.add).map(elements).sum::<f64>() + elements(&step.result);
        let mut cost = Cost {
            operations: 2.0 * (step.macs * batch) as f64,
            weights: 4.0 * weights,
            values: 4.0 * values * batch as f64,
        };
        let basis =
            step.operands[0].id.checked_sub(1).filter(|i| pointwise(&step.op) && is_basis(&steps[*i]));
        if let Some(basis) = basis.and_then(|i| costs[i].take()) {
            // The middle of a pair is neither written nor read.
            let middle = 2.0 * 4.0 * elements(&step.operands[0]) * batch as f64;
            cost.operations += basis.operations;
            cost.weights += basis.weights;
            cost.values += basis.values - middle;
        }
        costs.push((!matches!(step.op, Op::Concat)).then_some(cost));
    }
    Ok(costs.into_iter().flatten().collect())
}

/// A convolution of which decomposition made the first of two.
fn is_basis(step: &cofilter_runtime::Step) -> bool {
    step.nodes.last().is_some_and(|name| name.ends_with("_lowrank"))
}
