use crate::{Error, Result};
use cofilter_graph::{Graph, Params, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Factors of one tensor (Caffe's `lr_mult` and `decay_mult`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multiplier {
    /// Of the learning rate; 0 freezes the tensor.
    pub learning_rate: f64,
    /// Of the weight decay.
    pub decay: f64,
}

impl Multiplier {
    /// Both factors.
    #[must_use]
    pub const fn new(learning_rate: f64, decay: f64) -> Self {
        Self { learning_rate, decay }
    }
}

/// Factors of every learnt tensor: by role, with exceptions by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Multipliers {
    /// Weights, batch normalisation's included.
    pub weights: Multiplier,
    /// Biases.
    pub biases: Multiplier,
    /// Exceptions, keyed by `node.slot`.
    pub tensors: BTreeMap<String, Multiplier>,
}

impl Default for Multipliers {
    /// 1 everywhere.
    fn default() -> Self {
        Self {
            weights: Multiplier::new(1.0, 1.0),
            biases: Multiplier::new(1.0, 1.0),
            tensors: BTreeMap::new(),
        }
    }
}

impl Multipliers {
    /// What Caffe's model files usually say: biases learn twice as fast; `bias_decay` is 1 (LeNet) or 0 (ImageNet models).
    #[must_use]
    pub fn caffe(bias_decay: f64) -> Self {
        Self { biases: Multiplier::new(2.0, bias_decay), ..Self::default() }
    }

    /// The factors of each tensor; `None` for statistics.
    ///
    /// # Errors
    /// [`Error::Recipe`] for a name that is no learnt tensor, or a factor that is not a finite number from 0 up.
    pub fn resolve(&self, graph: &Graph) -> Result<Params<Option<Multiplier>>> {
        let all = [("weights", self.weights), ("biases", self.biases)].into_iter();
        for (name, m) in all.chain(self.tensors.iter().map(|(n, m)| (n.as_str(), *m))) {
            if [m.learning_rate, m.decay].iter().any(|v| !v.is_finite() || *v < 0.0) {
                return Err(Error::Recipe(format!(
                    "multipliers of `{name}`: expected numbers from 0 up, found {m:?}"
                )));
            }
        }
        let mut known = Vec::new();
        let of_node = |(id, _)| {
            let slots = graph.slots(id).into_iter().enumerate();
            slots
                .map(|(slot, spec)| {
                    let usual = match spec.role {
                        Role::Weight => self.weights,
                        Role::Bias => self.biases,
                        Role::Statistic => return None,
                    };
                    known.push(graph.tensor_name(id, slot));
                    Some(known.last().and_then(|name| self.tensors.get(name)).copied().unwrap_or(usual))
                })
                .collect()
        };
        let resolved = Params::new(graph.iter().map(of_node).collect());
        match self.tensors.keys().find(|name| !known.contains(*name)) {
            Some(name) => Err(Error::Recipe(format!(
                "multipliers name `{name}`, which is no learnt tensor; there are: {}",
                known.join(", ")
            ))),
            None => Ok(resolved),
        }
    }
}
