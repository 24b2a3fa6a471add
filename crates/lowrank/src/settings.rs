use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the truncated singular value decomposition `W ~ V_M S_M U_M^T` is shared between the two layers; `V` has a row a
/// filter, `U` a row a weight position. The product is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Principal component analysis without centring: basis `S_M U_M^T = V_M^T W`, combination `V_M` (orthonormal
    /// columns). The authors' default (paper, section 3; their `pca`).
    #[default]
    Pca,
    /// Balanced: basis `S_M^(1/2) U_M^T`, combination `V_M S_M^(1/2)` (their `svd`).
    Svd,
}

/// How the rank of each layer is chosen. `sigma` are the singular values of the weight matrix, per group where a
/// convolution has groups; the groups of a layer then all get the largest of their ranks, so that they stay equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankRule {
    /// Smallest `M` with `sum_{m<=M} sigma_m^2 / sum_m sigma_m^2 >= ratio` (the authors' rule for `pca`;
    /// 0.95 is "at most 5 % PCA error").
    Energy(f64),
    /// Smallest `M` with `sqrt(sum_{m<=M} sigma_m^2 / sum_m sigma_m^2) >= ratio` (the authors' rule for `svd`:
    /// 0.95 keeps only 90.25 % of the energy).
    Norm(f64),
    /// This share of full rank, rounded to the nearest rank and at least 1.
    Ratio(f64),
    /// Ranks by layer name; layers not named stay as they are. For a convolution with groups this is the rank summed
    /// over the groups, rounded down to a multiple of their number as the authors do.
    Ranks(BTreeMap<String, usize>),
    /// Full rank: an equivalent network, the start of rank pruning.
    Full,
}

impl RankRule {
    pub(crate) fn check(&self) -> Result<()> {
        let (what, value) = match self {
            Self::Energy(value) => ("energy", *value),
            Self::Norm(value) => ("norm", *value),
            Self::Ratio(value) => ("rank", *value),
            Self::Ranks(_) | Self::Full => return Ok(()),
        };
        // NaN fails both comparisons.
        if value > 0.0 && value <= 1.0 { Ok(()) } else { Err(Error::Ratio { what, value }) }
    }
}

/// What to decompose, and how.
///
/// Halves of an earlier decomposition (`<name>_lowrank` read by `<name>_linear` alone) are left alone unless
/// [`RankRule::Ranks`] names them; [`crate::recompose`] first gives the usual meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Scaling of the two factors.
    pub method: Method,
    /// Choice of the ranks.
    pub rule: RankRule,
    /// Whether fully connected layers are decomposed too.
    pub linear: bool,
    /// Whether convolutions with a 1x1 kernel are decomposed too (the authors do so in GoogLeNet). The pair is
    /// cheaper only below [`crate::break_even_rank`].
    pub pointwise: bool,
    /// Layers to leave alone, by name.
    pub exclude: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            method: Method::Pca,
            rule: RankRule::Energy(0.95),
            linear: false,
            pointwise: false,
            exclude: Vec::new(),
        }
    }
}
