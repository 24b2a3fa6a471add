use crate::layer::Layer;
use crate::masks::{Masks, apply};
use crate::silence::silent;
use crate::{Error, Grouping, Groups, Result};
use cofilter_graph::{Array, Model, NodeId, Op};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which weights become zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pruning {
    /// Fraction of zeros, in `[0, 1)`, over all weights of the layers that are pruned together. 0 with [`Pattern::NOfM`], which says it.
    pub sparsity: f64,
    /// What is pruned together.
    #[serde(skip_serializing_if = "is_usual")]
    pub scope: Scope,
    /// What becomes zero together.
    #[serde(skip_serializing_if = "is_usual")]
    pub pattern: Pattern,
    /// Fractions of layers of their own, by name; they are not pruned together with others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, f64>,
    /// Layers to leave as they are, by name; their weights do not count.
    pub exclude: Vec<String>,
}

/// What is pruned together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The weights of all layers, by one threshold.
    #[default]
    Network,
    /// Each layer alone.
    Layer,
}

/// What becomes zero together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Single weights.
    #[default]
    Elements,
    /// Groups, by the root of the mean of their squares.
    Groups(Grouping),
    /// Of every `m` consecutive input channels, at the same place of the kernel of the same filter, the `n` largest weights stay;
    /// of fewer at the end as many.
    NOfM {
        /// Weights that stay.
        n: usize,
        /// Weights that there are.
        m: usize,
    },
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Sets the weights of smallest magnitude to zero. Only the weights of convolutions and fully connected layers count; biases and
/// batch normalisation stay, but where filters are pruned: theirs become zero too, so that the filters can be removed
/// ([`silence`](crate::silence)).
///
/// Of single weights `round(sparsity * weights)` become zero, of groups as many as do not exceed that; zeros that are there
/// already are the first among them. Of equal magnitudes the earlier in the graph go first, and within a tensor in row-major
/// order. The masks keep every zero of the pruned layers, also where there were more than asked for.
///
/// # Errors
/// [`Error::Sparsity`] for a fraction outside `[0, 1)`, [`Error::Pattern`] for a pattern that makes no sense,
/// [`Error::UnknownLayer`] for a name that is no layer, [`Error::Graph`] for a number that is not finite.
pub fn prune_magnitude(model: &Model, pruning: &Pruning) -> Result<(Model, Masks)> {
    pruning.check()?;
    model.check_finite()?;
    let mut masks: Masks = model.params().map(|_, _, array| Array::full(array.dims().to_vec(), 1.0));
    for (layers, sparsity) in sets(model, pruning)? {
        let total: usize = layers.iter().map(|l| l.weight.len()).sum();
        let zeros = share(total, sparsity);
        let kept = match pruning.pattern {
            Pattern::Elements => by_element(&layers, zeros),
            Pattern::Groups(grouping) => by_group(&layers, zeros, grouping),
            Pattern::NOfM { n, m } => layers.iter().map(|layer| largest(layer, n, m)).collect(),
        };
        for (layer, kept) in layers.iter().zip(kept) {
            let mask =
                layer.weight.iter().zip(kept).map(|(w, kept)| if kept && *w != 0.0 { 1.0 } else { 0.0 });
            let slot = &mut masks.get_mut(layer.id)[0];
            *slot = Array::new(slot.dims().to_vec(), mask.collect::<Vec<f32>>());
        }
    }
    let mut pruned = apply(model, &masks)?;
    if pruning.pattern == Pattern::Groups(Grouping::Filters) {
        let touched: Vec<_> = sets(model, pruning)?
            .into_iter()
            .filter(|(_, sparsity)| *sparsity > 0.0)
            .flat_map(|(layers, _)| layers.into_iter().map(|layer| layer.id))
            .collect();
        let of =
            |id: NodeId| model.graph().node(id).inputs().first().is_some_and(|input| touched.contains(input));
        let found = silent(&pruned).into_iter();
        // Of the layers that were pruned, and of their batch normalisations.
        for (id, slot, channels) in
            found.filter(|(id, ..)| touched.contains(id) || norm(model, *id) && of(*id))
        {
            let mask = &mut masks.get_mut(id)[slot];
            let kept = channels.iter().map(|zero| if *zero { 0.0 } else { 1.0 });
            *mask = Array::new(mask.dims().to_vec(), kept.collect::<Vec<f32>>());
        }
        pruned = apply(model, &masks)?;
    }
    Ok((pruned, masks))
}

/// Whether a node is a batch normalisation.
fn norm(model: &Model, id: NodeId) -> bool {
    matches!(model.graph().node(id).op(), Op::BatchNorm(_))
}

impl Pruning {
    /// Refuses what makes no sense for any network.
    ///
    /// # Errors
    /// [`Error::Sparsity`] and [`Error::Pattern`].
    pub fn check(&self) -> Result<()> {
        let all = self.layers.values().chain([&self.sparsity]);
        if let Some(bad) = all.into_iter().find(|sparsity| !(0.0..1.0).contains(*sparsity)) {
            return Err(Error::Sparsity(*bad));
        }
        let bad = |reason: String| Err(Error::Pattern(reason));
        match self.pattern {
            Pattern::NOfM { n, m } if n == 0 || n > m => {
                bad(format!("expected 1 to {m} of {m} weights, found {n}"))
            }
            Pattern::NOfM { n, m } if self.sparsity != 0.0 || !self.layers.is_empty() => bad(format!(
                "{n} of {m} weights say how many zeros there are, a sparsity beside them makes no sense"
            )),
            Pattern::Groups(Grouping::Blocks { rows, columns }) if rows == 0 || columns == 0 => {
                bad(format!("blocks of {rows} x {columns} weights"))
            }
            _ => Ok(()),
        }
    }
}

/// Layers that are pruned together, with their fraction.
fn sets<'a>(model: &'a Model, pruning: &Pruning) -> Result<Vec<(Vec<Layer<'a>>, f64)>> {
    let layers = Layer::all(model);
    let named = pruning.exclude.iter().chain(pruning.layers.keys());
    if let Some(name) = named.into_iter().find(|name| !layers.iter().any(|l| l.name == name.as_str())) {
        let known = layers.iter().map(|l| l.name).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownLayer { name: name.clone(), known });
    }
    let mut together = Vec::new();
    let mut sets = Vec::new();
    for layer in layers.into_iter().filter(|l| !pruning.exclude.iter().any(|name| name == l.name)) {
        match (pruning.layers.get(layer.name), pruning.scope) {
            (Some(own), _) => sets.push((vec![layer], *own)),
            (None, Scope::Layer) => sets.push((vec![layer], pruning.sparsity)),
            (None, Scope::Network) => together.push(layer),
        }
    }
    if !together.is_empty() {
        sets.push((together, pruning.sparsity));
    }
    Ok(sets)
}

/// For each layer which weights stay, where so many smallest ones go.
fn by_element(layers: &[Layer<'_>], zeros: usize) -> Vec<Vec<bool>> {
    let (threshold, mut ties) = threshold(layers, zeros);
    let mut stays = |w: &f32| {
        let magnitude = w.abs();
        let tie = magnitude == threshold && ties > 0;
        ties -= usize::from(tie);
        !(magnitude < threshold || tie)
    };
    layers.iter().map(|layer| layer.weight.iter().map(&mut stays).collect()).collect()
}

/// For each layer which weights stay, where the smallest groups go, of so many weights at most.
fn by_group(layers: &[Layer<'_>], zeros: usize, grouping: Grouping) -> Vec<Vec<bool>> {
    let groups: Vec<Groups> = layers.iter().map(|layer| Groups::of_layer(layer, grouping)).collect();
    let mut all = Vec::new();
    for (at, (layer, groups)) in layers.iter().zip(&groups).enumerate() {
        for (group, (norm, size)) in groups.norms(layer.weight).into_iter().zip(groups.sizes()).enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "a size far below 2^53")]
            all.push((norm / (size as f64).sqrt(), size, at, group));
        }
    }
    // Stable: of equal ones the earlier goes first.
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut stays: Vec<Vec<bool>> = groups.iter().map(|groups| vec![true; groups.count()]).collect();
    let mut left = zeros;
    for (_, size, at, group) in all {
        let Some(rest) = left.checked_sub(size) else { break };
        left = rest;
        stays[at][group] = false;
    }
    let weights = |((layer, groups), stays): ((&Layer<'_>, &Groups), &Vec<bool>)| {
        let mut kept = vec![true; layer.weight.len()];
        groups.apply(stays, &mut kept, |kept, stays| *kept = stays);
        kept
    };
    layers.iter().zip(&groups).zip(&stays).map(weights).collect()
}

/// Which weights of a layer are among the largest `n` of `m` consecutive input channels.
fn largest(layer: &Layer<'_>, n: usize, m: usize) -> Vec<bool> {
    let mut kept = vec![true; layer.weight.len()];
    for filter in 0..layer.filters {
        for place in 0..layer.area {
            let at = |channel: usize| filter * layer.columns + channel * layer.area + place;
            for first in (0..layer.group_inputs()).step_by(m) {
                let mut run: Vec<usize> = (first..layer.group_inputs().min(first + m)).map(at).collect();
                run.sort_by(|a, b| layer.weight[*b].abs().total_cmp(&layer.weight[*a].abs()));
                run.iter().skip(n).for_each(|i| kept[*i] = false);
            }
        }
    }
    kept
}

/// The magnitude below which every weight goes, and how many of exactly that magnitude go too.
fn threshold(layers: &[Layer<'_>], zeros: usize) -> (f32, usize) {
    if zeros == 0 {
        return (0.0, 0);
    }
    let mut magnitudes: Vec<f32> = layers.iter().flat_map(|l| l.weight.iter().map(|w| w.abs())).collect();
    let (below, &mut threshold, _) = magnitudes.select_nth_unstable_by(zeros - 1, f32::total_cmp);
    let smaller = below.iter().filter(|m| **m < threshold).count();
    (threshold, zeros - smaller)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count far below 2^53 times a fraction"
)]
fn share(total: usize, fraction: f64) -> usize {
    (total as f64 * fraction).round() as usize
}
