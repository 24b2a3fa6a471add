//! The largest strength of a force that a network can bear.

use anyhow::Result;

/// What a strength is multiplied with until it is too large, or divided by until it is not.
const STRIDE: f64 = 4.0;

/// Looks for the largest strength whose loss is at most `limit`: by strides from `first` until one is on the other side, then
/// by halving in between, on a logarithmic scale. `loss` is asked at most `tries` times, and is taken to rise with the strength.
///
/// The largest strength of those tried that is within the limit; `None` where there was none.
pub(super) fn largest(
    first: f64,
    limit: f64,
    tries: usize,
    mut loss: impl FnMut(f64) -> Result<f64>,
) -> Result<Option<f64>> {
    let (mut low, mut high) = (None, None);
    let mut next = first;
    for _ in 0..tries {
        if loss(next)? <= limit {
            low = Some(next)
        } else {
            high = Some(next)
        }
        next = match (low, high) {
            (Some(low), Some(high)) => f64::sqrt(low * high),
            (Some(low), None) => low * STRIDE,
            (None, Some(high)) => high / STRIDE,
            (None, None) => break,
        };
    }
    Ok(low)
}

/// The largest of some strengths, all of which are tried, whose loss is at most `limit`.
pub(super) fn largest_of(
    strengths: &[f64],
    limit: f64,
    mut loss: impl FnMut(f64) -> Result<f64>,
) -> Result<Option<f64>> {
    let mut largest: Option<f64> = None;
    for strength in strengths {
        if loss(*strength)? <= limit {
            largest = Some(largest.map_or(*strength, |most| most.max(*strength)));
        }
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss is one point where the strength is 1.
    fn found(first: f64, tries: usize) -> (Option<f64>, usize) {
        let mut asked = 0;
        let found = largest(first, 1.0, tries, |strength| {
            asked += 1;
            Ok(strength * strength)
        });
        (found.unwrap(), asked)
    }

    #[test]
    fn the_border_is_found_from_either_side() {
        for first in [1e-6, 0.03, 0.9, 1.0, 1.1, 40.0, 1e6] {
            let (found, asked) = found(first, 20);
            let found = found.unwrap();
            assert!(found <= 1.0 && found > 0.9 && asked == 20, "{first}: {found} after {asked}");
        }
    }

    #[test]
    fn few_tries_find_a_strength_within_the_limit_or_none() {
        assert_eq!(found(0.5, 1), (Some(0.5), 1));
        assert_eq!(found(0.5, 2), (Some(0.5), 2), "2 is too much");
        assert_eq!(found(0.5, 3), (Some(1.0), 3));
        assert_eq!(found(1e6, 3), (None, 3));
        assert!(largest(1.0, 1.0, 3, |_| anyhow::bail!("stopped")).is_err());
    }

    #[test]
    fn of_some_the_largest_within_the_limit_is_taken() {
        let of = |strengths: &[f64]| largest_of(strengths, 1.0, |s| Ok(s * s)).unwrap();
        assert_eq!(of(&[0.2, 2.0, 0.9, 0.5]), Some(0.9));
        assert_eq!(of(&[2.0, 3.0]), None);
    }
}
