use crate::layer::Layer;
use crate::masks::{Masks, apply};
use crate::{Error, Result};
use cofilter_graph::{Array, Model};
use serde::{Deserialize, Serialize};

/// Which weights become zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pruning {
    /// Fraction of zeros, in `[0, 1)`, over all weights of the layers that are pruned together.
    pub sparsity: f64,
    /// Layers to leave as they are, by name; their weights do not count.
    pub exclude: Vec<String>,
}

/// Sets the weights of smallest magnitude to zero, with one threshold for the whole network. Only the weights of
/// convolutions and fully connected layers count; biases and batch normalisation stay.
///
/// `round(sparsity * weights)` of them become zero; zeros that are there already are the first among them. Of equal
/// magnitudes the earlier in the graph go first, and within a tensor in row-major order. The masks keep every zero of
/// the pruned layers, also where there were more than asked for.
///
/// # Errors
/// [`Error::Sparsity`] for a fraction outside `[0, 1)`, [`Error::UnknownLayer`] for a name in the exclude list,
/// [`Error::Graph`] for a number that is not finite.
pub fn prune_magnitude(model: &Model, pruning: &Pruning) -> Result<(Model, Masks)> {
    if !(0.0..1.0).contains(&pruning.sparsity) {
        return Err(Error::Sparsity(pruning.sparsity));
    }
    model.check_finite()?;
    let layers = selected(model, &pruning.exclude)?;
    let total: usize = layers.iter().map(|l| l.weight.len()).sum();
    let zeros = share(total, pruning.sparsity);

    let mut masks: Masks = model.params().map(|_, _, array| Array::full(array.dims().to_vec(), 1.0));
    let (threshold, mut ties) = threshold(&layers, zeros);
    for layer in &layers {
        let mut prune = |w: &f32| {
            let magnitude = w.abs();
            let tie = magnitude == threshold && ties > 0;
            ties -= usize::from(tie);
            magnitude < threshold || tie || magnitude == 0.0
        };
        let mask: Vec<f32> = layer.weight.iter().map(|w| if prune(w) { 0.0 } else { 1.0 }).collect();
        let slot = &mut masks.get_mut(layer.id)[0];
        *slot = Array::new(slot.dims().to_vec(), mask);
    }
    Ok((apply(model, &masks)?, masks))
}

fn selected<'a>(model: &'a Model, exclude: &[String]) -> Result<Vec<Layer<'a>>> {
    let layers = Layer::all(model);
    if let Some(name) = exclude.iter().find(|name| !layers.iter().any(|l| l.name == name.as_str())) {
        let known = layers.iter().map(|l| l.name).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownLayer { name: name.clone(), known });
    }
    Ok(layers.into_iter().filter(|l| !exclude.iter().any(|name| name == l.name)).collect())
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
