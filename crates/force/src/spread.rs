//! How far the filters of a layer still are from being one.

use crate::Result;
use crate::single::Filters;

/// Share of the energy of `filters` rows of `weight` that lies outside their mean direction, of the worst of `groups` equal groups:
///
/// ```text
/// spread = 1 - sum_i (W_i m^T)^2 / sum_i ||W_i||^2,  m = sum_j w_j / ||sum_j w_j||
/// ```
///
/// In `[0, 1]`. In one group it is 0 for filters that are all parallel, `1 - 1/N` for `N` orthogonal ones of equal length, 0 where all
/// vanish and 1 where the directions cancel exactly. What the best approximation of rank 1 loses is at most the spread, so a layer with
/// a spread of 0.05 has rank 1, in each group, at 95 % energy. Norms up to [`crate::VANISHING`] count as 0. NaN in a weight makes NaN.
///
/// The result has the same bits for any number of threads.
///
/// # Errors
/// [`crate::Error::Groups`]; [`crate::Error::Shape`] where the weight has no elements or is no whole number of filters.
pub fn spread(weight: &[f32], filters: usize, groups: usize) -> Result<f64> {
    let of_group = |group: Filters<'_>| {
        let [inside, all] = group.energies();
        if all == 0.0 { 0.0 } else { (1.0 - inside / all).clamp(0.0, 1.0) }
    };
    let worst = |a: f64, b: f64| if a.is_nan() || a >= b { a } else { b };
    Ok(Filters::of_groups(weight, filters, groups)?.map(of_group).fold(0.0, worst))
}

/// Part of its strength that a force has in a layer of this spread which is to come near `target`, above 0: `spread / target - 1`, at
/// least 0 and at most 1. It is whole from twice the target on, and nothing at the target.
///
/// NaN where the spread is.
#[must_use]
pub fn remaining(spread: f64, target: f64) -> f64 {
    (spread / target - 1.0).clamp(0.0, 1.0)
}
