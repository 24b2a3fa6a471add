//! Random operands, comparison with oracles in `f64`, and gradients by finite differences.

use cofilter_kernels::Par;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Both ways to run a kernel. The pool has more threads than the machine may have, so that work is really split.
pub(crate) fn in_both(mut run: impl FnMut(Par) -> Vec<f32> + Send) -> Vec<f32> {
    let serial = run(Par::Serial);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let parallel = pool.install(|| run(Par::Rayon));
    assert_eq!(bits(&serial), bits(&parallel), "another result on 3 threads");
    serial
}

/// The bits, so that NaN equals itself and -0 does not equal 0.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `-scale..scale`.
    pub(crate) fn values(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.0.random_range(-scale..scale)).collect()
    }

    /// One of `low..=high`.
    pub(crate) fn pick(&mut self, low: usize, high: usize) -> usize {
        self.0.random_range(low..=high)
    }
}

/// Widened to `f64`.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Panics unless every element is within `tolerance * max(1, largest magnitude wanted)`.
pub(crate) fn assert_close(what: &str, found: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    let scale = wanted.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (&found, &wanted)) in found.iter().zip(wanted).enumerate() {
        let error = (f64::from(found) - wanted).abs();
        assert!(error <= tolerance * scale, "{what}: element {i} is {found}, wanted {wanted}");
    }
}

/// Gradient of `sum(grad_dst * f(x))` by central differences.
pub(crate) fn numeric_gradient(x: &[f64], grad_dst: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            let mut side = |h: f64| {
                x[i] = here + h;
                let y = f(&x);
                assert_eq!(y.len(), grad_dst.len());
                y.iter().zip(grad_dst).map(|(y, g)| y * g).sum::<f64>()
            };
            let gradient = (side(step) - side(-step)) / (2.0 * step);
            x[i] = here;
            gradient
        })
        .collect()
}
