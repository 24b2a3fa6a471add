//! About how long a unit takes, where nothing was measured.

use super::form::{Algorithm, Form, Unit};
use super::product::multiplied;
use crate::{Options, Program, Step};
use cofilter_graph::Op;
use cofilter_kernels::blocked::{self, BLOCK};

/// Threads that are assumed: results must not depend on how many there are, and ways of computing differ in rounding.
const THREADS: f64 = 2.0;
/// Cycles of one thread for a thread to notice that a step has begun or ended.
const STEP: f64 = 2_000.0;
/// Bytes of weights that arrive from memory in a cycle, where they do not stay in a cache.
const ARRIVING: f64 = 8.0;
/// Bytes of weights that are read from the caches in a cycle.
const NEAR: f64 = 40.0;
/// Bytes of weights that stay in a cache from one run to the next.
const STAYING: f64 = 2e6;

/// Cycles of a machine that does two operations on [`BLOCK`] numbers in one. Only comparisons mean something.
pub(super) fn cycles(program: &Program, unit: Unit, form: Form, options: &Options) -> f64 {
    let steps = program.steps();
    match (unit, form) {
        (Unit::One(index), Form::One(algorithm)) => step(&steps[index], algorithm, options),
        (Unit::Two(first, second), Form::Apart(a, b)) => {
            step(&steps[first], a, options) + step(&steps[second], b, options)
        }
        (Unit::Two(first, second), Form::Together) => {
            let direct = |index: usize| step(&steps[index], Algorithm::Direct, options);
            direct(first) + direct(second) - STEP
        }
        (Unit::Two(first, second), Form::Multiplied(algorithm)) => multiplied(&steps[first], &steps[second])
            .map_or(f64::INFINITY, |product| step(&product, algorithm, options)),
        _ => f64::INFINITY,
    }
}

/// Bytes of the weights of a unit (or of the first of its two steps, or of the second one where they are apart), about, and the
/// pixels of its result for which they are read; none if there are no weights.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
pub(super) fn weights(program: &Program, (unit, form): (Unit, Form), first: bool) -> (usize, Option<usize>) {
    let of = |step: &Step, algorithm: Algorithm| {
        let pixels = step.result.shape.spatial().iter().product::<usize>().max(1);
        let more = match (algorithm, &step.op) {
            (Algorithm::Winograd(tile), Op::Conv2d(conv)) => {
                tile.positions(conv.kernel[0]) as f64 / (conv.kernel[0] * conv.kernel[1]) as f64
            }
            // A weight and, for some of them, a place.
            (Algorithm::Sparse, _) => 1.6 * step.density.weights,
            (Algorithm::Direct, Op::Conv2d(_)) => step.density.columns,
            _ => 1.0,
        };
        ((step.macs / pixels * size_of::<f32>()) as f64 * more) as usize
    };
    let steps = program.steps();
    let (bytes, result) = match (unit, form) {
        (Unit::Two(a, b), Form::Apart(algorithm, other)) => {
            let (index, algorithm) = if first { (a, algorithm) } else { (b, other) };
            (of(&steps[index], algorithm), &steps[index])
        }
        (Unit::Two(a, b), Form::Multiplied(algorithm)) => {
            let product = multiplied(&steps[a], &steps[b]);
            (product.map_or(0, |product| of(&product, algorithm)), &steps[b])
        }
        (Unit::Two(a, b), _) => {
            (of(&steps[a], Algorithm::Direct) + of(&steps[b], Algorithm::Direct), &steps[b])
        }
        (Unit::One(index), Form::One(algorithm)) => (of(&steps[index], algorithm), &steps[index]),
        (Unit::One(index), _) => (0, &steps[index]),
    };
    let pixels = result.result.shape.spatial().iter().product();
    (bytes, (bytes > 0).then_some(pixels))
}

/// Cycles in which so many bytes of weights are read once, by all threads.
fn read(bytes: f64) -> f64 {
    bytes / if bytes > STAYING { ARRIVING } else { NEAR }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn step(step: &Step, algorithm: Algorithm, options: &Options) -> f64 {
    let images = options.batch as f64;
    let conv = match &step.op {
        Op::Conv2d(conv) => conv,
        Op::Linear(linear) if algorithm == Algorithm::Sparse => {
            let inputs = step.operands[0].shape.elements();
            let weights = (inputs * linear.out_features) as f64 * step.density.weights;
            let compute = if blocked::Step::sparse_linear_gathers(options.batch) {
                weights * images * 0.75 / THREADS
            } else {
                // Every thread turns all features.
                let vectors = (images / BLOCK as f64).ceil();
                vectors * (weights * 3.0 / THREADS + inputs as f64 * 10.0)
            };
            return compute.max(read(weights * 6.4)) + STEP;
        }
        Op::Linear(linear) => {
            let inputs = step.operands[0].shape.elements();
            let compute = images * (inputs * linear.out_features.div_ceil(BLOCK)) as f64 / 2.0 / 0.9;
            let bytes = options.linear_weights.bytes() * inputs * linear.out_features;
            return (compute / THREADS).max(read(bytes as f64)) + STEP;
        }
        _ => return STEP,
    };
    let [height, width] = step.result.shape.spatial();
    let groups = conv.groups as f64;
    let inputs = step.operands[0].shape.channels() / conv.groups;
    let outputs = conv.out_channels / conv.groups;
    let taps = (conv.kernel[0] * conv.kernel[1]) as f64;
    let blocks = |channels: usize| channels.div_ceil(BLOCK) as f64;
    let (compute, bytes) = match algorithm {
        Algorithm::Direct | Algorithm::Depthwise => {
            // The last block of outputs costs what it holds, and a sum over lanes.
            let rest = outputs % BLOCK;
            let thin = (rest as f64 * 1.2 / BLOCK as f64 + 0.1).min(1.0);
            let full = (outputs / BLOCK) as f64 + if rest == 0 { 0.0 } else { thin };
            let pixels = images * (height * width) as f64;
            (
                pixels * groups * taps * inputs as f64 * full / 2.0 / 0.93 * step.density.columns,
                groups * taps * (inputs * outputs * 4) as f64 * step.density.columns,
            )
        }
        Algorithm::Sparse => {
            let row = width + 2 * conv.padding[1];
            let vectors = images * ((height - 1) * row + width).div_ceil(BLOCK) as f64;
            let weights = groups * taps * (inputs * outputs) as f64 * step.density.weights;
            // A vector is read for one filter and some of the three beside it; where windows are wider than a pixel most lie across two
            // lines of the cache.
            let reads = groups * taps * (inputs * outputs) as f64 / 4.0
                * (1.0 - (1.0 - step.density.weights).powi(4));
            let read = if conv.kernel[1] == 1 { 0.2 } else { 0.55 };
            let copy = images * (height * width).div_ceil(BLOCK) as f64 * (conv.groups * inputs) as f64 * 6.0;
            (vectors * (weights / 2.0 + reads * read) / 0.93 + copy, weights * 6.4)
        }
        Algorithm::Winograd(tile) => {
            let (size, positions) = (tile.size(), tile.positions(conv.kernel[0]) as f64);
            let tiles = images * (height.div_ceil(size) * width.div_ceil(size)) as f64;
            let transforms = 2.2 * positions * (blocks(inputs) + blocks(outputs));
            let products = positions * inputs as f64 * blocks(outputs) / 2.0 / 0.85;
            (tiles * groups * (transforms + products), groups * positions * (inputs * outputs * 4) as f64)
        }
    };
    let arriving = if bytes > STAYING { bytes / ARRIVING } else { 0.0 };
    // Weights arrive while others are multiplied, as far as they may.
    (compute / THREADS).max(arriving) + 0.2 * arriving + STEP
}
