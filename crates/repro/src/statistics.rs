//! Means with their uncertainty.

/// Mean of some values.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a handful of values")]
    let n = values.len() as f64;
    values.iter().sum::<f64>() / n
}

/// 95 % confidence interval of the mean by Student's t; `None` for fewer than two values.
#[must_use]
pub fn interval(values: &[f64]) -> Option<[f64; 2]> {
    // Two-sided 97.5 % quantiles of Student's t for 1..=15 degrees of freedom.
    const T: [f64; 15] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131,
    ];
    let freedom = values.len().checked_sub(1).filter(|n| *n > 0)?;
    let m = mean(values);
    #[expect(clippy::cast_precision_loss, reason = "a handful of values")]
    let error =
        (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / freedom as f64 / values.len() as f64).sqrt();
    let reach = T.get(freedom - 1).copied().unwrap_or_else(|| far_quantile(freedom)) * error;
    Some([m - reach, m + reach])
}

/// The 97.5 % quantile for many degrees of freedom, by the first terms of its expansion around the normal's.
fn far_quantile(freedom: usize) -> f64 {
    const Z: f64 = 1.959_964;
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let n = freedom as f64;
    Z + (Z.powi(3) + Z) / (4.0 * n) + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * n * n)
}

/// The middle value; of an even number of values the lower of the two.
#[must_use]
pub fn median<T: Ord + Copy>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_of_a_textbook_example() {
        // Student's t with two degrees of freedom: 10 +- 4.303 * 1 / sqrt(3).
        let [low, high] = interval(&[9.0, 10.0, 11.0]).unwrap();
        assert!((low - 7.5157).abs() < 1e-3 && (high - 12.4843).abs() < 1e-3, "{low} {high}");
        assert_eq!(interval(&[1.0]), None);
        // Tables: 2.131 for 15, 2.042 for 30 degrees of freedom.
        assert!((far_quantile(15) - 2.131).abs() < 2e-3 && (far_quantile(30) - 2.042).abs() < 1e-3);
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3, 1, 2]), median(&[4, 1, 2, 3]), median::<u8>(&[])), (Some(2), Some(2), None));
    }
}
