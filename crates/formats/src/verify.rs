//! Whether a network survived a conversion.

use cofilter_graph::{Model, Shape};
use cofilter_runtime::{Error, Options, Plan};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// Most numbers of all inputs, and of all outputs.
const MOST: usize = 1 << 30;

/// How far two networks agree on the same inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Inputs that were compared.
    pub images: usize,
    /// Largest difference of two outputs, relative to the largest output of the first network. NaN if an output is.
    pub largest_error: f64,
    /// Share of the inputs for which the largest output is the same one.
    pub top1: f64,
}

/// Runs the same `images` inputs, drawn from a normal distribution, through two networks.
///
/// # Errors
/// [`Error::Model`] for networks whose inputs or outputs have other extents, and those of the runtime.
pub fn verify(source: &Model, result: &Model, images: usize, seed: u64) -> Result<Agreement, Error> {
    let shapes =
        |model: &Model| -> [Shape; 2] { [model.graph().input_shape(), model.graph().output_shape()] };
    let ([from, to], [other_from, other_to]) = (shapes(source), shapes(result));
    // A map and a vector of as many elements are the same numbers.
    if from != other_from || to.elements() != other_to.elements() {
        let reason = format!("{from} to {to} and {other_from} to {other_to} cannot be compared");
        return Err(Error::Model(cofilter_graph::Error::Graph(reason)));
    }
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let len = from.elements();
    if images.checked_mul(len.max(to.elements())).is_none_or(|count| count > MOST) {
        let reason = format!("{images} inputs of {from}, at most {MOST} numbers are compared");
        return Err(Error::Model(cofilter_graph::Error::Graph(reason)));
    }
    let inputs: Vec<f32> = (0..images * len).map(|_| StandardNormal.sample(&mut generator)).collect();
    let outputs = |model: &Model| -> Result<Vec<f32>, Error> {
        let plan = Plan::compile(model, &Options { batch: 1, ..Options::default() })?;
        let mut session = plan.session();
        let mut all = vec![0.0; images * plan.output_len()];
        for (image, logits) in
            inputs.chunks_exact(plan.input_len()).zip(all.chunks_exact_mut(plan.output_len()))
        {
            session.run(image, logits)?;
        }
        Ok(all)
    };
    let (a, b) = (outputs(source)?, outputs(result)?);
    Ok(Agreement::of(&a, &b, to.elements()))
}

impl Agreement {
    /// Compares outputs of `classes` numbers an image.
    ///
    /// # Panics
    /// If there are not as many of the one as of the other, or not a whole number of images.
    #[must_use]
    pub fn of(source: &[f32], result: &[f32], classes: usize) -> Self {
        assert_eq!(source.len(), result.len());
        assert_eq!(source.len() % classes, 0);
        let images = source.len() / classes;
        // `f64::max` would pass over NaN.
        let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
        let largest = source.iter().map(|x| f64::from(x.abs())).fold(0.0, larger);
        let differences = source.iter().zip(result).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        let difference = differences.fold(0.0, larger);
        let best = |outputs: &[f32]| {
            outputs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class)
        };
        let same = source
            .chunks_exact(classes)
            .zip(result.chunks_exact(classes))
            .filter(|(a, b)| best(a) == best(b));
        Self {
            images,
            largest_error: if difference == 0.0 { 0.0 } else { difference / largest },
            top1: same.count() as f64 / images.max(1) as f64,
        }
    }
}
