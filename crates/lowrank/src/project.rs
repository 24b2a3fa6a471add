use crate::factor::single;
use crate::layer::Layer;
use crate::method::{GroupRank, Ready};
use crate::{Method, Rank, Result};
use cofilter_graph::{Array, Model};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Projects the weights of these layers to the nearest of exactly this rank (up to the rounding of `f32`; near the nearest for a
/// large layer at a small rank, see [`crate::Method::Pca`]); graph and
/// all other numbers stay. With drawn weights this makes a network whose decomposition at these ranks is exact, for
/// measuring speed without training.
///
/// Ranks are summed over groups and rounded down to a multiple of their number, as in [`crate::RankRule::Ranks`].
///
/// # Errors
/// [`crate::Error::UnknownLayer`] and [`crate::Error::NotALayer`] for names, [`crate::Error::Rank`] and
/// [`crate::Error::RankBelowGroups`] for ranks, [`crate::Error::Graph`] for weights that are not finite,
/// [`crate::Error::NoConvergence`].
pub fn low_rank_random(model: &Model, ranks: &BTreeMap<String, usize>) -> Result<Model> {
    let mut layers = Vec::with_capacity(ranks.len());
    for (name, rank) in ranks {
        let layer = Layer::find(model, "the list of ranks", name)?;
        let rank = Rank::One(*rank).of_group(&layer, Method::Pca)?;
        layer.check_finite()?;
        layers.push((layer, rank));
    }
    let projected: Vec<Result<Array>> =
        layers.par_iter().map(|(layer, rank)| project(layer, *rank)).collect();
    let mut params = model.params().clone();
    for ((layer, _), weight) in layers.iter().zip(projected) {
        params.get_mut(layer.id)[0] = weight?;
    }
    Ok(model.with_params(params)?)
}

fn project(layer: &Layer<'_>, rank: GroupRank) -> Result<Array> {
    let product = Ready::new(layer, Method::Pca, true, None, Some(rank))?.take_apart(rank)?.chain.product();
    Ok(Array::new(layer.weight.dims().to_vec(), product.weight.into_iter().map(single).collect::<Vec<_>>()))
}
