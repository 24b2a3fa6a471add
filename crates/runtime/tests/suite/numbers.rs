//! Seeded numbers, networks with statistics that are not trivial, and how results are compared.

use cofilter_graph::{Array, Graph, Init, Model, Params, Role};
use cofilter_runtime::{BackendKind, Options, Plan, reference};

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1u64 << 24) as f32)
    }
}

/// `len` numbers in `-1..1`.
pub(crate) fn images(len: usize, seed: u64) -> Vec<f32> {
    let mut draws = Draws::new(seed);
    (0..len).map(|_| draws.uniform(-1.0, 1.0)).collect()
}

/// A model whose biases and batch normalisations all matter.
pub(crate) fn model(graph: Graph, seed: u64) -> Model {
    let model = Model::init(graph, &Init::default(), seed).unwrap();
    let mut draws = Draws::new(seed ^ 0x5eed);
    let graph = model.graph();
    let params: Params<Array> = model.params().map(|id, slot, array| {
        let spec = &graph.slots(id)[slot];
        let norm = spec.dims.len() == 1;
        let (low, high) = match (spec.role, spec.name) {
            (_, "running_var") => (0.5, 2.0),
            (Role::Weight, _) if norm => (0.5, 1.5),
            (Role::Bias | Role::Statistic, _) => (-0.3, 0.3),
            (Role::Weight, _) => return array.clone(),
        };
        let numbers: Vec<f32> = array.data().iter().map(|_| draws.uniform(low, high)).collect();
        Array::new(spec.dims.clone(), numbers)
    });
    model.with_params(params).unwrap()
}

/// Largest difference, relative to the largest expected magnitude.
pub(crate) fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!(largest > 0.0 && largest.is_finite(), "the oracle gives nothing to compare with: {largest}");
    let difference = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
    difference.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m }) / largest
}

pub(crate) fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

pub(crate) fn options(batch: usize, threads: usize) -> Options {
    Options { batch, threads, backend: BackendKind::Cpu, ..Options::default() }
}

/// What a plan gives for these images.
pub(crate) fn run(model: &Model, options: &Options, images: &[f32]) -> Vec<f32> {
    let plan = Plan::compile(model, options).unwrap();
    let mut logits = vec![f32::NAN; images.len() / plan.input_len() * plan.output_len()];
    plan.session().run(images, &mut logits).unwrap();
    logits
}

/// Runs `n` images on the processor and asserts that the oracle agrees.
#[track_caller]
pub(crate) fn check(model: &Model, n: usize, tolerance: f64, what: &str) {
    let images = images(n * model.graph().input_shape().elements(), 11);
    let error =
        relative_error(&run(model, &options(n, 1), &images), &reference::run(model, &images).unwrap());
    assert!(error <= tolerance, "{what}: relative error {error:e}, at most {tolerance:e}");
}
