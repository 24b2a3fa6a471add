use serde::{Deserialize, Serialize};

/// Squared singular values of one weight matrix `W`, falling: `sigma_m^2`, whose sum is `||W||_F^2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spectrum {
    /// `sum_m sigma_m^2`.
    pub total: f64,
    /// `sigma_m^2 / total`, falling, sums to 1; all 0 for a matrix of zeros. As many as full rank.
    pub normalised: Vec<f64>,
}

impl Spectrum {
    /// Of squared singular values in any order.
    pub(crate) fn new(mut squares: Vec<f64>) -> Self {
        squares.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = squares.iter().sum();
        if total > 0.0 {
            squares.iter_mut().for_each(|s| *s /= total);
        }
        Self { total, normalised: squares }
    }

    /// Largest rank the matrix can have: `min(rows, columns)`.
    #[must_use]
    pub fn full_rank(&self) -> usize {
        self.normalised.len()
    }

    /// `sum_{m<=rank} sigma_m^2 / sum_m sigma_m^2`: the share of the squared Frobenius norm that an approximation of
    /// this rank keeps; its relative squared error is one minus this. 1 for a matrix of zeros.
    #[must_use]
    pub fn energy(&self, rank: usize) -> f64 {
        if self.total > 0.0 { self.normalised.iter().take(rank).sum::<f64>().min(1.0) } else { 1.0 }
    }

    /// Smallest rank whose [`Spectrum::energy`] reaches `ratio`; 1 for a matrix of zeros, full rank for a ratio that
    /// rounding keeps out of reach.
    #[must_use]
    pub fn rank_at_energy(&self, ratio: f64) -> usize {
        self.first_rank(|energy| energy >= ratio)
    }

    /// Smallest rank with `sqrt(energy) >= ratio`: the authors' rule for their `svd`, which is the energy rule at
    /// `ratio^2`.
    #[must_use]
    pub fn rank_at_norm(&self, ratio: f64) -> usize {
        self.first_rank(|energy| energy.sqrt() >= ratio)
    }

    fn first_rank(&self, enough: impl Fn(f64) -> bool) -> usize {
        if self.total <= 0.0 {
            return 1;
        }
        // Shares of the rounded sum itself, so that a ratio of 1 is reached.
        let whole: f64 = self.normalised.iter().sum();
        let mut kept = 0.0;
        let reached = |value: &f64| {
            kept += value;
            enough(kept / whole)
        };
        self.normalised.iter().position(reached).map_or(self.full_rank(), |last| last + 1)
    }

    /// `||W||_F^2 / ||W||_2^2`: a lower bound of the rank that small singular values hardly move. 0 for zeros.
    #[must_use]
    pub fn stable_rank(&self) -> f64 {
        match self.normalised.first() {
            Some(&largest) if largest > 0.0 => 1.0 / largest,
            _ => 0.0,
        }
    }

    /// `exp(-sum_m p_m ln p_m)` with `p_m = sigma_m / sum sigma` (Roy and Vetterli 2007): the number of directions
    /// that an even spectrum of the same entropy has. 0 for zeros.
    #[must_use]
    pub fn effective_rank(&self) -> f64 {
        let sum: f64 = self.normalised.iter().map(|s| s.sqrt()).sum();
        if sum <= 0.0 {
            return 0.0;
        }
        let shares = self.normalised.iter().map(|s| s.sqrt() / sum).filter(|p| *p > 0.0);
        (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
    }

    /// This many times [`Spectrum::stable_rank`], as a rank.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is cut at full rank"
    )]
    pub(crate) fn stable(&self, factor: f64) -> usize {
        ((self.stable_rank() * factor).ceil() as usize).clamp(1, self.full_rank())
    }

    /// `sigma_m`, falling.
    #[must_use]
    pub fn singular_values(&self) -> Vec<f64> {
        self.normalised.iter().map(|share| (share * self.total).sqrt()).collect()
    }
}
