//! What makes a network sparse while it is trained.

use crate::{Error, Result};
use cofilter_graph::{Graph, Model};
use cofilter_sparsity::{Grouping, Masks, Pattern, Pruning, masks_of_zero_groups, masks_of_zeros};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which zeros of the weights of convolutions and fully connected layers stay zero (the authors' `connectivity_mode`; paper, section
/// 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// Each of them (`DISCONNECTED_ELTWISE`).
    Elements,
    /// Those of groups that are all zero (`DISCONNECTED_GRPWISE`); others learn again.
    Groups(Grouping),
}

impl Freeze {
    /// The masks for a network.
    pub(crate) fn masks(self, model: &Model) -> Masks {
        match self {
            Self::Elements => masks_of_zeros(model),
            Self::Groups(grouping) => masks_of_zero_groups(model, grouping),
        }
    }
}

/// Group lasso of chosen nodes, `strength * sum_g ||w_g||` over groups of weights (structured sparsity learning, Wen et al. 2016; paper,
/// section 5). No factor for the size of a group, as in the authors' code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupLasso {
    /// Which weights form a group.
    pub grouping: Grouping,
    /// Factor of the sum of norms.
    pub strength: f64,
    /// Factor of each regularised node (convolutions and fully connected layers), by name; others feel none.
    pub multipliers: BTreeMap<String, f64>,
    /// How it enters the update.
    #[serde(default)]
    pub update: LassoUpdate,
}

/// How a group lasso enters the update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LassoUpdate {
    /// After each update every group shrinks by rate times strength in norm, to exactly 0 where it is shorter: its proximal operator.
    #[default]
    Proximal,
    /// `strength * w / ||w_g||` joins the gradient, as in the authors' code. Groups become small, not 0: [`crate::Recipe::threshold`] ends
    /// them.
    Subgradient,
}

impl GroupLasso {
    /// A proximal lasso of these nodes.
    pub fn new<S: Into<String>>(
        grouping: Grouping,
        strength: f64,
        nodes: impl IntoIterator<Item = S>,
    ) -> Self {
        let multipliers = nodes.into_iter().map(|n| (n.into(), 1.0)).collect();
        Self { grouping, strength, multipliers, update: LassoUpdate::default() }
    }

    pub(crate) fn check(&self, graph: &Graph) -> Result<()> {
        let values = std::iter::once(("strength", self.strength))
            .chain(self.multipliers.iter().map(|(name, m)| (name.as_str(), *m)));
        for (name, value) in values {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::Recipe(format!(
                    "lasso: {name}: expected a number from 0 up, found {value}"
                )));
            }
        }
        if let Grouping::Blocks { rows, columns } = self.grouping
            && (rows == 0 || columns == 0)
        {
            return Err(Error::Recipe(format!("lasso: blocks of {rows} x {columns} weights")));
        }
        self.multipliers.keys().try_for_each(|name| crate::recipe::has_filters(graph, "lasso", name))
    }
}

/// Pruning by magnitude while training, along the schedule of Zhu and Gupta 2017, equation 1: after iteration `t` from `begin` to
/// `end` the fractions of zeros are those of `pruning` times `1 - (1 - (t - begin) / (end - begin))^3`. What became zero stays so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// What is pruned, and the fractions in the end.
    #[serde(flatten)]
    pub pruning: Pruning,
    /// Iterations before the schedule begins.
    #[serde(default)]
    pub begin: u64,
    /// Iterations when the final fractions are reached.
    pub end: u64,
    /// Iterations between two prunings.
    pub every: u64,
}

impl Prune {
    /// Whether weights are pruned after so many iterations.
    pub(crate) fn is_due(&self, done: u64) -> bool {
        let inside = self.begin < done && done < self.end;
        done == self.end || (inside && (done - self.begin).is_multiple_of(self.every))
    }

    /// What is pruned after so many iterations.
    #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^52")]
    pub(crate) fn at(&self, done: u64) -> Pruning {
        let progress = done.saturating_sub(self.begin) as f64 / (self.end - self.begin) as f64;
        let share = 1.0 - (1.0 - progress.min(1.0)).powi(3);
        let mut pruning = self.pruning.clone();
        pruning.sparsity *= share;
        pruning.layers.values_mut().for_each(|fraction| *fraction *= share);
        pruning
    }

    pub(crate) fn check(&self, graph: &Graph, iterations: u64) -> Result<()> {
        self.pruning.check().map_err(|error| Error::Recipe(format!("prune: {error}")))?;
        let named = self.pruning.exclude.iter().chain(self.pruning.layers.keys());
        named.into_iter().try_for_each(|name| crate::recipe::has_filters(graph, "prune", name))?;
        let bad = |reason: String| Err(Error::Recipe(format!("prune: {reason}")));
        let Self { begin, end, every, .. } = *self;
        if every == 0 {
            return bad("expected 1 or more iterations between two, found 0".into());
        }
        if begin >= end || end > iterations {
            return bad(format!("from {begin} to {end} of {iterations} iterations"));
        }
        let none = self.pruning.sparsity == 0.0 && self.pruning.layers.values().all(|f| *f == 0.0);
        if none && !matches!(self.pruning.pattern, Pattern::NOfM { .. }) {
            return bad("a sparsity of 0 prunes nothing".into());
        }
        Ok(())
    }
}
