use crate::factor::Factors;
use crate::layer::Layer;
use crate::{LayerKind, RankRule, Result, Spectrum, break_even_rank};
use cofilter_graph::Model;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Spectra and ranks of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// The layer.
    pub name: String,
    /// What it is.
    pub kind: LayerKind,
    /// Number of filters `N`, over all groups.
    pub filters: usize,
    /// Weights of one filter.
    pub filter_len: usize,
    /// Number of groups.
    pub groups: usize,
    /// Largest rank, `groups * min(N / groups, filter_len)`.
    pub full_rank: usize,
    /// The energy ratio the ranks below are for.
    pub energy: f64,
    /// Sum of the groups' own ranks at that energy. [`crate::decompose`] keeps groups equal and so gives
    /// `groups` times the largest.
    pub rank: usize,
    /// Rank of each group at that energy.
    pub group_ranks: Vec<usize>,
    /// Rank at that energy of all filters as one matrix `[N, filter_len]`, as if there were no groups.
    pub whole_rank: usize,
    /// Stable rank of the whole matrix ([`Spectrum::stable_rank`]).
    pub stable_rank: f64,
    /// Effective rank of the whole matrix ([`Spectrum::effective_rank`]).
    pub effective_rank: f64,
    /// Rank at which the pair costs as much as the layer ([`break_even_rank`]).
    pub break_even_rank: f64,
    /// Spectrum of each group.
    pub group_spectra: Vec<Spectrum>,
    /// Spectrum of all filters as one matrix; that of the only group where there is one.
    pub whole: Spectrum,
}

impl Analysis {
    /// Sum of the groups' own ranks at another energy.
    #[must_use]
    pub fn rank_at_energy(&self, ratio: f64) -> usize {
        self.group_spectra.iter().map(|s| s.rank_at_energy(ratio)).sum()
    }
}

/// Spectra of every convolution and fully connected layer, in graph order, and their ranks at this energy ratio; the
/// network stays as it is. A fully connected layer of 4096 x 9216 takes half a minute.
///
/// # Errors
/// [`crate::Error::Ratio`] for an energy outside `(0, 1]`, [`crate::Error::Graph`] for a weight that is not finite,
/// [`crate::Error::NoConvergence`].
pub fn analyse(model: &Model, energy: f64) -> Result<Vec<Analysis>> {
    RankRule::Energy(energy).check()?;
    let layers = Layer::all(model);
    layers.iter().try_for_each(Layer::check_finite)?;
    // Collected first, so that the first error in graph order is the one reported.
    let results: Vec<Result<Analysis>> = layers.par_iter().map(|layer| of_layer(layer, energy)).collect();
    results.into_iter().collect()
}

/// Spectrum of all filters of one layer as one matrix `[N, filter_len]`, as if there were no groups.
///
/// # Errors
/// [`crate::Error::UnknownLayer`], [`crate::Error::NotALayer`], [`crate::Error::Graph`] for a weight that is not finite,
/// [`crate::Error::NoConvergence`].
pub fn spectrum(model: &Model, layer: &str) -> Result<Spectrum> {
    let layer = Layer::find(model, "spectrum", layer)?;
    layer.check_finite()?;
    of_rows(&layer, layer.weight.data())
}

fn of_rows(layer: &Layer<'_>, weight: &[f32]) -> Result<Spectrum> {
    Ok(Spectrum::new(Factors::of_rows(layer.name, weight, layer.len, false)?.squares))
}

fn of_layer(layer: &Layer<'_>, energy: f64) -> Result<Analysis> {
    let group_spectra: Vec<Spectrum> =
        (0..layer.groups).map(|g| of_rows(layer, layer.group(g))).collect::<Result<_>>()?;
    let whole = match group_spectra.as_slice() {
        [only] => only.clone(),
        _ => of_rows(layer, layer.weight.data())?,
    };
    let group_ranks: Vec<usize> = group_spectra.iter().map(|s| s.rank_at_energy(energy)).collect();
    Ok(Analysis {
        name: layer.name.into(),
        kind: layer.kind(),
        filters: layer.filters,
        filter_len: layer.len,
        groups: layer.groups,
        full_rank: layer.full_rank(),
        energy,
        rank: group_ranks.iter().sum(),
        group_ranks,
        whole_rank: whole.rank_at_energy(energy),
        stable_rank: whole.stable_rank(),
        effective_rank: whole.effective_rank(),
        break_even_rank: break_even_rank(layer.filters, layer.len, layer.groups),
        group_spectra,
        whole,
    })
}
