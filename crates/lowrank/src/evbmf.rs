//! Empirical variational Bayesian matrix factorisation, solved analytically (Nakajima et al., "Global analytic solution of fully
//! observed variational Bayesian matrix factorization", JMLR 14, 2013).

/// `tau_bar ~ 2.5129 sqrt(alpha)`, their approximation of the root that the threshold needs.
const TAU: f64 = 2.5129;
/// Places at which the free energy is looked at, before the best bracket is narrowed.
const GRID: u32 = 200;

/// How many singular values of a `rows x columns` matrix stand out of Gaussian noise, whose variance is estimated from the
/// values themselves: those above `sqrt(M sigma^2 (1 + tau_bar)(1 + alpha / tau_bar))`, with `L <= M` the extents and
/// `alpha = L / M` (Nakajima et al. 2013). `sigma` falls; zeros at its end may be missing.
///
/// 0 for noise and for zeros. Trained weights have many weak directions that matter, so this is a hint and no bound.
#[must_use]
pub fn evbmf_rank(sigma: &[f64], rows: usize, columns: usize) -> usize {
    let (small, large) = (real(rows.min(columns)), real(rows.max(columns)));
    let sigma = &sigma[..sigma.partition_point(|s| *s > 0.0)];
    let total: f64 = sigma.iter().map(|s| s * s).sum();
    if total <= 0.0 || !total.is_finite() {
        return 0;
    }
    let alpha = small / large;
    let tau_bar = TAU * alpha.sqrt();
    let x_bar = (1.0 + tau_bar) * (1.0 + alpha / tau_bar);
    // The noise is at most all there is, and at least what leaves no more values above it than can be.
    let upper = total / (small * large);
    let most = ((small / (1.0 + alpha)).ceil() - 1.0).min(real(sigma.len()) - 1.0).max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let most = most as usize;
    let rest = &sigma[most.min(sigma.len() - 1)..];
    let mean = rest.iter().map(|s| s * s).sum::<f64>() / (small - real(most)).max(1.0);
    let lower = (rest[0].powi(2) / (large * x_bar)).max(mean / large).min(upper);
    let variance = minimum(lower, upper, |variance| free_energy(sigma, alpha, small, large, x_bar, variance));
    let threshold = (large * variance * x_bar).sqrt();
    sigma.iter().filter(|s| **s > threshold).count()
}

/// The free energy of the noise variance, up to constants and a factor.
fn free_energy(sigma: &[f64], alpha: f64, small: f64, large: f64, x_bar: f64, variance: f64) -> f64 {
    // Of values of 0 only this depends on the variance.
    let missing = small - real(sigma.len());
    let mut energy = missing * variance.ln();
    for s in sigma {
        let x = s * s / (large * variance);
        if x > x_bar {
            let b = x - (1.0 + alpha);
            let tau = 0.5 * (b + (b * b - 4.0 * alpha).max(0.0).sqrt());
            energy += x - tau + ((tau + 1.0) / x).ln() + alpha * (tau / alpha + 1.0).ln();
        } else {
            energy += x - x.ln();
        }
    }
    energy
}

/// Where a function of one positive variable is lowest: on a grid in its logarithm, then by the golden section.
fn minimum(lower: f64, upper: f64, f: impl Fn(f64) -> f64) -> f64 {
    let (from, to) = (lower.max(f64::MIN_POSITIVE).ln(), upper.max(f64::MIN_POSITIVE).ln());
    let step = (to - from) / f64::from(GRID);
    let at = |i: u32| from + step * f64::from(i);
    let best = (0..=GRID).min_by(|a, b| f(at(*a).exp()).total_cmp(&f(at(*b).exp()))).unwrap_or(0);
    let (mut a, mut b) = (at(best.saturating_sub(1)), at((best + 1).min(GRID)));
    let golden = (5.0f64.sqrt() - 1.0) / 2.0;
    for _ in 0..60 {
        let (c, d) = (b - golden * (b - a), a + golden * (b - a));
        if f(c.exp()) < f(d.exp()) { b = d } else { a = c }
    }
    f64::midpoint(a, b).exp()
}

#[expect(clippy::cast_precision_loss, reason = "extents are far below 2^53")]
fn real(count: usize) -> f64 {
    count as f64
}
