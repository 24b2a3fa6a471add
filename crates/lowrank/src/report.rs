use crate::{LayerKind, Method, Rank, Settings, Spectrum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a decomposition did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub settings: Settings,
    /// Every decomposed layer, in graph order.
    pub layers: Vec<LayerReport>,
    /// Selected layers that stay as they are, in graph order, each with what it would have become: at the rank that the rule
    /// chose the new layers would have both more multiply-accumulates and more numbers; under a budget, there was room for them.
    pub kept: Vec<LayerReport>,
    /// Learnt numbers of the whole network before.
    pub params_before: usize,
    /// Learnt numbers of the whole network after.
    pub params_after: usize,
    /// Multiply-accumulates of the whole network for one image, before.
    pub macs_before: usize,
    /// Multiply-accumulates of the whole network for one image, after.
    pub macs_after: usize,
}

impl Report {
    /// Ranks by layer name: with [`crate::RankRule::Ranks`] they decompose another network of the same graph alike.
    #[must_use]
    pub fn ranks(&self) -> BTreeMap<String, Rank> {
        let rank = |l: &LayerReport| match l.input_rank {
            Some(input) => Rank::Two([input, l.rank]),
            None => Rank::One(l.rank),
        };
        self.layers.iter().map(|l| (l.name.clone(), rank(l))).collect()
    }
}

/// One decomposed layer. Ranks are summed over the groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name before; the names of the new layers begin with it, see [`Method`].
    pub name: String,
    /// What it was taken apart into.
    pub method: Method,
    /// What it was.
    pub kind: LayerKind,
    /// Number of filters `N`, over all groups.
    pub filters: usize,
    /// Weights of one filter.
    pub filter_len: usize,
    /// Number of groups.
    pub groups: usize,
    /// Largest rank that the method has for it; across filters `groups * min(N / groups, filter_len)`.
    pub full_rank: usize,
    /// The rank asked for by name, where it was; `rank` is this rounded down to a multiple of the groups.
    pub requested_rank: Option<Rank>,
    /// The rank now.
    pub rank: usize,
    /// Rank of the input side, for [`Method::Tucker`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_rank: Option<usize>,
    /// Share of the squared Frobenius norm that the rank keeps, over all groups: from the spectrum where the method cuts one
    /// matrix, else `1 - relative_error^2`.
    pub energy: f64,
    /// `||W - W'||_F / ||W||_F` measured on the new weights as stored; 0 for a layer of zeros. Its square is
    /// `1 - energy` to rounding, unless the decomposition minimises the error of outputs.
    pub relative_error: f64,
    /// Where the decomposition saw images, and for these: the root of the mean squared error of the outputs for them, relative to their
    /// standard deviation, `sqrt(sum_n E (y_n - y'_n)^2 / sum_n Var y_n)`, from what the layers before it give now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Spectrum of the matrix that the method cuts, all groups' values together; of [`Method::Tucker`] that of its output
    /// side. `None` where the method has none.
    pub spectrum: Option<Spectrum>,
    /// Learnt numbers before, with the bias.
    pub params_before: usize,
    /// Learnt numbers after, with the bias.
    pub params_after: usize,
    /// Multiply-accumulates for one image, before.
    pub macs_before: usize,
    /// Multiply-accumulates for one image, after.
    pub macs_after: usize,
    /// `macs_before / macs_after`, across filters [`crate::theoretical_speedup`]: below 1 the new layers cost more than the
    /// layer did.
    pub theoretical_speedup: f64,
    /// The rank at which the new layers cost as much as the layer, across filters [`crate::break_even_rank`]; none for
    /// [`Method::Tucker`], which has two.
    pub break_even_rank: Option<f64>,
    /// What is to be known of it, for example that a decomposition is unstable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Each group; one for most layers.
    pub group_reports: Vec<GroupReport>,
}

/// One group of a decomposed layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// The rank the rule chose for this group alone, where it looks at the spectrum; every group gets the largest.
    pub chosen_rank: Option<usize>,
    /// Share of the group's squared Frobenius norm that is kept.
    pub energy: f64,
    /// `||W_g - W'_g||_F / ||W_g||_F` measured on the new weights; 0 for a group of zeros.
    pub relative_error: f64,
    /// As `chosen_rank`, of the input side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_input_rank: Option<usize>,
    /// Spectrum of the group's matrix, if the method cuts one.
    pub spectrum: Option<Spectrum>,
}
