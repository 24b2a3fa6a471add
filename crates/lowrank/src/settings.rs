use crate::{Method, RankRule};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What to decompose, and how.
///
/// Layers of an earlier decomposition (`<name>_lowrank` read by `<name>_linear` alone, and so on) are left alone unless
/// [`RankRule::Ranks`] names them; [`crate::recompose`] first gives the usual meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What layers are taken apart into. Where it has no meaning (across space for a 1x1 convolution or a fully connected
    /// layer) it is [`Method::Pca`].
    pub method: Method,
    /// Other methods for single layers, by name: the paper's mixed scheme has [`Method::Spatial`] for conv1 and conv2.
    pub methods: BTreeMap<String, Method>,
    /// Choice of the ranks.
    pub rule: RankRule,
    /// Whether fully connected layers are decomposed too.
    pub linear: bool,
    /// Whether convolutions with a 1x1 kernel are decomposed too (the authors do so in GoogLeNet). The pair is
    /// cheaper only below [`crate::break_even_rank`].
    pub pointwise: bool,
    /// Whether a layer is replaced even where a rule chooses a rank at which the new layers have both more
    /// multiply-accumulates and more numbers than it.
    pub grow: bool,
    /// Layers to leave alone, by name.
    pub exclude: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            method: Method::Pca,
            methods: BTreeMap::new(),
            rule: RankRule::Energy(0.95),
            linear: false,
            pointwise: false,
            grow: false,
            exclude: Vec::new(),
        }
    }
}
