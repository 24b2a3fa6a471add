use crate::{LayerKind, Settings, Spectrum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a decomposition did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub settings: Settings,
    /// Every decomposed layer, in graph order.
    pub layers: Vec<LayerReport>,
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
    pub fn ranks(&self) -> BTreeMap<String, usize> {
        self.layers.iter().map(|l| (l.name.clone(), l.rank)).collect()
    }
}

/// One decomposed layer. Ranks are summed over the groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name before; the two new layers are `<name>_lowrank` and `<name>_linear`.
    pub name: String,
    /// What it was.
    pub kind: LayerKind,
    /// Number of filters `N`, over all groups.
    pub filters: usize,
    /// Weights of one filter.
    pub filter_len: usize,
    /// Number of groups.
    pub groups: usize,
    /// Largest rank: `groups * min(N / groups, filter_len)`.
    pub full_rank: usize,
    /// The rank asked for by name, where it was; `rank` is this rounded down to a multiple of the groups.
    pub requested_rank: Option<usize>,
    /// The rank now.
    pub rank: usize,
    /// Share of the squared Frobenius norm that the rank keeps, from the spectrum, over all groups.
    pub energy: f64,
    /// `||W - W'||_F / ||W||_F` measured on the new weights as stored; 0 for a layer of zeros. Its square is
    /// `1 - energy` to rounding.
    pub relative_error: f64,
    /// Spectrum of the layer as one linear map (block diagonal where there are groups: all groups' values together).
    pub spectrum: Spectrum,
    /// Learnt numbers before, with the bias.
    pub params_before: usize,
    /// Learnt numbers after, with the bias.
    pub params_after: usize,
    /// Multiply-accumulates for one image, before.
    pub macs_before: usize,
    /// Multiply-accumulates for one image, after.
    pub macs_after: usize,
    /// [`crate::theoretical_speedup`] at this rank: below 1 the pair costs more than the layer did.
    pub theoretical_speedup: f64,
    /// [`crate::break_even_rank`].
    pub break_even_rank: f64,
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
    /// Spectrum of the group.
    pub spectrum: Spectrum,
}
