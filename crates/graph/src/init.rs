use crate::{Array, Graph, NodeId, Params, Role};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// How a tensor starts. `fan_in` is the number of elements divided by the first extent, as in Caffe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filler {
    /// Every element the same.
    Constant(f32),
    /// Normal with this standard deviation.
    Gaussian(f32),
    /// Uniform in `+- sqrt(3 / fan_in)` (Caffe's `xavier`).
    Xavier,
    /// Normal with variance `2 / fan_in` (He et al. 2015, Caffe's `msra`).
    Msra,
}

/// Fillers of a network: one for weights, one for biases, and exceptions by tensor name (`node.slot`).
///
/// The weight of a batch normalisation is 1, its bias 0, running mean 0 and variance 1, unless there is an exception.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// Weights of convolutions and fully connected layers.
    pub weight: Filler,
    /// Their biases.
    pub bias: Filler,
    /// Exceptions, keyed by `node.slot`.
    pub tensors: BTreeMap<String, Filler>,
}

impl Default for Init {
    fn default() -> Self {
        Self { weight: Filler::Msra, bias: Filler::Constant(0.0), tensors: BTreeMap::new() }
    }
}

impl Init {
    /// Fills every tensor of the graph. Each draws from a stream of its own, seeded with `seed` and its name, so that
    /// adding a node leaves the others as they were.
    pub(crate) fn fill(&self, graph: &Graph, seed: u64) -> Params<Array> {
        let of_node = |id: NodeId| {
            let batch_norm = matches!(graph.node(id).op(), crate::Op::BatchNorm(_));
            let slots = graph.slots(id).into_iter().enumerate();
            slots
                .map(|(slot, spec)| {
                    let name = graph.tensor_name(id, slot);
                    let usual = match (batch_norm, spec.role, spec.name) {
                        (true, Role::Weight, _) | (_, Role::Statistic, "running_var") => {
                            Filler::Constant(1.0)
                        }
                        (true, Role::Bias, _) | (_, Role::Statistic, _) => Filler::Constant(0.0),
                        (false, Role::Weight, _) => self.weight,
                        (false, Role::Bias, _) => self.bias,
                    };
                    let filler = self.tensors.get(&name).copied().unwrap_or(usual);
                    filler.draw(spec.dims, &mut generator(seed, &name))
                })
                .collect()
        };
        Params::new(graph.iter().map(|(id, _)| of_node(id)).collect())
    }
}

/// ChaCha8 keyed by the SHA-256 of seed and name.
fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    ChaCha8Rng::from_seed(digest.into())
}

impl Filler {
    fn draw(self, dims: Vec<usize>, rng: &mut ChaCha8Rng) -> Array {
        let len: usize = dims.iter().product();
        #[expect(clippy::cast_precision_loss, reason = "a fan-in is far below 2^24")]
        let fan_in = (len / dims.first().copied().unwrap_or(1).max(1)).max(1) as f32;
        let normal = |std: f32, rng: &mut ChaCha8Rng| -> Vec<f32> {
            (0..len).map(|_| std * rng.sample::<f32, _>(StandardNormal)).collect()
        };
        let data = match self {
            Self::Constant(value) => vec![value; len],
            Self::Gaussian(std) => normal(std, rng),
            Self::Msra => normal((2.0 / fan_in).sqrt(), rng),
            Self::Xavier => {
                let bound = (3.0 / fan_in).sqrt();
                (0..len).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect()
            }
        };
        Array::new(dims, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        (mean, values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn fillers_have_the_variance_of_their_formula() {
        let dims = vec![200, 10, 5, 5];
        for (filler, variance) in
            [(Filler::Xavier, 1.0 / 250.0), (Filler::Msra, 2.0 / 250.0), (Filler::Gaussian(0.01), 1e-4)]
        {
            let a = filler.draw(dims.clone(), &mut generator(3, "w"));
            let (mean, var) = moments(a.data());
            assert!(mean.abs() < 4.0 * (variance / 50_000.0f64).sqrt(), "{filler:?} mean {mean}");
            assert!((var / variance - 1.0).abs() < 0.03, "{filler:?} variance {var}, expected {variance}");
        }
    }

    #[test]
    fn streams_depend_on_seed_and_name_only() {
        let draw = |seed, name: &str| Filler::Msra.draw(vec![4, 4], &mut generator(seed, name));
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }
}
