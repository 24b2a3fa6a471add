//! Costs of a pair against its dense layer; the formulas reproduce Table 4 of Wen et al. 2017.
//!
//! `filters` is `N`, `filter_len` is `C / groups * kernel_h * kernel_w`, ranks are summed over the groups.

/// Multiply-accumulates of the dense layer over those of the pair:
/// `N_g L / (M_g (L + N_g))` with `N_g` filters and rank `M_g` per group and `L` weights a filter. Biases do not count.
///
/// ```
/// // conv3 of AlexNet at rank 184: 1.79 in Table 4 of Wen et al. 2017.
/// let speedup = cofilter_lowrank::theoretical_speedup(384, 256 * 9, 1, 184);
/// assert_eq!(format!("{speedup:.2}"), "1.79");
/// ```
#[must_use]
pub fn theoretical_speedup(filters: usize, filter_len: usize, groups: usize, rank: usize) -> f64 {
    break_even_rank(filters, filter_len, groups) / real(rank)
}

/// The rank, summed over the groups, at which the pair costs as much as the dense layer:
/// `g N_g L / (L + N_g)`; below it the pair is cheaper.
#[must_use]
pub fn break_even_rank(filters: usize, filter_len: usize, groups: usize) -> f64 {
    let (group_filters, len) = (real(filters) / real(groups), real(filter_len));
    real(filters) * len / (len + group_filters)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn real(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_4_to_two_decimals() {
        for (filters, len, groups, rank, paper) in [
            (384, 256 * 9, 1, 184, "1.79"),
            (384, 256 * 9, 1, 124, "2.65"),
            (384, 192 * 9, 2, 201, "1.72"),
            (384, 192 * 9, 2, 106, "3.26"),
            (256, 192 * 9, 2, 146, "1.63"),
            (256, 192 * 9, 2, 129, "1.85"),
        ] {
            assert_eq!(
                format!("{:.2}", theoretical_speedup(filters, len, groups, rank)),
                paper,
                "rank {rank}"
            );
        }
    }

    #[test]
    fn break_even_is_where_the_speedup_is_one() {
        for (filters, len, groups, whole) in
            [(384, 256 * 9, 1, 329), (384, 192 * 9, 2, 345), (256, 192 * 9, 2, 238), (8, 2, 1, 1)]
        {
            let rank = break_even_rank(filters, len, groups);
            assert_eq!(rank.floor(), f64::from(whole));
            assert!(theoretical_speedup(filters, len, groups, whole as usize) >= 1.0);
            assert!(theoretical_speedup(filters, len, groups, whole as usize + 1) < 1.0);
        }
    }
}
