use super::normalised;
use crate::Result;
use crate::algebra::{TASKS, columns_of};
use crate::layer::Layer;
use cofilter_graph::Model;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Cosines between the filters of one layer. Filters of different groups read different channels, so each is compared with those
/// of its own group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// The layer.
    pub name: String,
    /// Number of filters `N`, over all groups.
    pub filters: usize,
    /// Number of groups.
    pub groups: usize,
    /// For each group `[N / groups, N / groups]` row-major, symmetric: `w_i . w_j / (||w_i|| ||w_j||)` of its filters in their order
    /// (Wen et al. 2017 coordinate filters by the same angle). A filter of zeros has no direction: 0 to every filter, itself included.
    pub cosines: Vec<Vec<f64>>,
    /// Mean of `|cosine|` over all pairs of different filters of a group; 0 where there are none.
    pub mean: f64,
    /// Mean over the filters of the largest `|cosine|` to another of the group; 0 for a filter without another.
    pub mean_nearest: f64,
    /// All filters, group after group, in an order that puts similar ones side by side: the first of the group, then always the
    /// one left with the largest cosine to the one before (the first of equals).
    pub order: Vec<usize>,
}

impl Similarity {
    /// The cosine of two filters, counted over all groups; `None` for filters of different groups.
    ///
    /// # Panics
    /// If one is no filter of the layer.
    #[must_use]
    pub fn cosine(&self, a: usize, b: usize) -> Option<f64> {
        assert!(a < self.filters && b < self.filters, "filters {a} and {b} of {}", self.filters);
        let size = self.filters / self.groups;
        (a / size == b / size).then(|| self.cosines[a / size][a % size * size + b % size])
    }
}

/// Cosines between the filters of this layer, with their means and an order to draw them in; the network stays as it is.
///
/// # Errors
/// [`crate::Error::UnknownLayer`], [`crate::Error::NotALayer`], [`crate::Error::Graph`] for a weight that is not finite.
pub fn similarity(model: &Model, layer: &str) -> Result<Similarity> {
    let layer = Layer::find(model, "similarity", layer)?;
    layer.check_finite()?;
    let size = layer.group_filters();
    let groups: Vec<Group> =
        (0..layer.groups).into_par_iter().map(|g| Group::new(layer.group(g), layer.len)).collect();
    let sum = |of: fn(&Group) -> f64| groups.iter().map(of).sum::<f64>();
    let pairs = layer.filters * (size - 1);
    #[expect(clippy::cast_precision_loss, reason = "filters and pairs of filters")]
    let (mean, mean_nearest) =
        (sum(|g| g.sum) / pairs.max(1) as f64, sum(|g| g.nearest) / layer.filters as f64);
    Ok(Similarity {
        name: layer.name.into(),
        filters: layer.filters,
        groups: layer.groups,
        mean,
        mean_nearest,
        order: groups
            .iter()
            .enumerate()
            .flat_map(|(g, of)| of.order.iter().map(move |i| g * size + i))
            .collect(),
        cosines: groups.into_iter().map(|group| group.cosines).collect(),
    })
}

struct Group {
    cosines: Vec<f64>,
    /// Of `|cosine|` of filters and others.
    sum: f64,
    /// Sum over the filters of the largest `|cosine|` to another.
    nearest: f64,
    order: Vec<usize>,
}

impl Group {
    fn new(weight: &[f32], len: usize) -> Self {
        let filters = columns_of(&normalised(weight, len), len);
        let size = filters.ncols();
        let mut product = Mat::zeros(size, size);
        matmul(
            product.as_mut(),
            Accum::Replace,
            filters.transpose(),
            filters.as_ref(),
            1.0,
            Par::rayon(TASKS),
        );
        // The lower half is both; a filter is as long as the unit, but for rounding.
        let cosine = |i: usize, j: usize| {
            let value = product[(i.max(j), i.min(j))];
            if i == j { value.round() } else { value.clamp(-1.0, 1.0) }
        };
        let cosines: Vec<f64> = (0..size * size).map(|at| cosine(at / size, at % size)).collect();
        let (mut sum, mut nearest) = (0.0, 0.0);
        for (i, row) in cosines.chunks_exact(size).enumerate() {
            let others = || row.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, value)| value.abs());
            sum += others().sum::<f64>();
            nearest += others().fold(0.0, f64::max);
        }
        let order = chain(&cosines, size);
        Self { cosines, sum, nearest, order }
    }
}

/// The first, then always the one left that is most like the one before.
fn chain(cosines: &[f64], size: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (1..size).collect();
    let mut order = vec![0];
    while !left.is_empty() {
        let row = &cosines[order[order.len() - 1] * size..][..size];
        // Of equals `max_by` takes the last, which is the first from behind.
        let next = (0..left.len()).rev().max_by(|a, b| row[left[*a]].total_cmp(&row[left[*b]])).unwrap_or(0);
        order.push(left.remove(next));
    }
    order
}
