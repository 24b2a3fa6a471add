use serde::{Deserialize, Serialize};

/// How the learning rate falls (Caffe's `lr_policy`). With base rate `b`, iteration `i` counted from 0 and `n` iterations:
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// `b`.
    #[default]
    Fixed,
    /// `b * gamma^floor(i / every)`.
    Step {
        /// Iterations between two drops, above 0.
        every: u64,
        /// Factor of each drop.
        gamma: f64,
    },
    /// `b * gamma^(number of entries of `at` that are <= i)`.
    MultiStep {
        /// Iterations of the drops, rising.
        at: Vec<u64>,
        /// Factor of each drop.
        gamma: f64,
    },
    /// `b * (1 + gamma * i)^-power`.
    Inv {
        /// Slope.
        gamma: f64,
        /// Exponent.
        power: f64,
    },
    /// `b * (1 - i / n)^power`.
    Poly {
        /// Exponent.
        power: f64,
    },
    /// `b * (1 + cos(pi i / n)) / 2`.
    Cosine,
}

impl Schedule {
    /// Learning rate of an iteration, counted from 0, of a run of `iterations`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "iterations are far below 2^52")]
    pub fn rate(&self, base: f64, iteration: u64, iterations: u64) -> f64 {
        let progress = iteration as f64 / iterations.max(1) as f64;
        let drops = |n: u64, gamma: f64| gamma.powi(i32::try_from(n).unwrap_or(i32::MAX));
        base * match self {
            Self::Fixed => 1.0,
            Self::Step { every, gamma } => drops(iteration / every, *gamma),
            Self::MultiStep { at, gamma } => {
                drops(at.iter().filter(|a| **a <= iteration).count() as u64, *gamma)
            }
            Self::Inv { gamma, power } => (1.0 + gamma * iteration as f64).powf(-power),
            Self::Poly { power } => (1.0 - progress).powf(*power),
            Self::Cosine => (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0,
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let finite = |name: &str, v: f64| (!v.is_finite()).then(|| format!("schedule: {name} is {v}"));
        match self {
            Self::Fixed | Self::Cosine => None,
            Self::Step { every: 0, .. } => Some("schedule: a step every 0 iterations".into()),
            Self::Step { gamma, .. } => finite("gamma", *gamma),
            Self::MultiStep { at, gamma } => match at.windows(2).find(|w| w[0] >= w[1]) {
                Some(w) => Some(format!("schedule: steps must rise, found {} before {}", w[0], w[1])),
                None => finite("gamma", *gamma),
            },
            Self::Inv { gamma, power } => match finite("gamma", *gamma).or(finite("power", *power)) {
                None if *gamma < 0.0 => Some(format!("schedule: gamma {gamma} is below 0")),
                problem => problem,
            },
            Self::Poly { power } => finite("power", *power),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Closed forms evaluated by hand at chosen iterations.
    #[test]
    fn rates_follow_their_formula() {
        let step = Schedule::Step { every: 100, gamma: 0.1 };
        let multi = Schedule::MultiStep { at: vec![5, 7, 9], gamma: 0.5 };
        let inv = Schedule::Inv { gamma: 1e-4, power: 0.75 };
        let poly = Schedule::Poly { power: 0.5 };
        let table: [(&Schedule, u64, f64); 18] = [
            (&Schedule::Fixed, 0, 1.0),
            (&Schedule::Fixed, 999, 1.0),
            (&step, 0, 1.0),
            (&step, 99, 1.0),
            (&step, 100, 0.1),
            (&step, 250, 0.01),
            (&multi, 4, 1.0),
            (&multi, 5, 0.5),
            (&multi, 6, 0.5),
            (&multi, 8, 0.25),
            (&multi, 900, 0.125),
            (&inv, 0, 1.0),
            // 2^-0.75
            (&inv, 10_000, 0.594_603_557_501_360_5),
            (&poly, 0, 1.0),
            (&poly, 750, 0.5),
            (&Schedule::Cosine, 0, 1.0),
            (&Schedule::Cosine, 500, 0.5),
            // (1 + cos(3 pi / 4)) / 2
            (&Schedule::Cosine, 750, 0.146_446_609_406_726_24),
        ];
        for (schedule, iteration, factor) in table {
            let rate = schedule.rate(0.02, iteration, 1000);
            assert!(
                (rate - 0.02 * factor).abs() < 1e-15,
                "{schedule:?} at {iteration}: {rate}, expected {factor} x"
            );
        }
    }

    #[test]
    fn bad_schedules_are_named() {
        let bad = [
            Schedule::Step { every: 0, gamma: 0.1 },
            Schedule::Step { every: 1, gamma: f64::NAN },
            Schedule::MultiStep { at: vec![3, 3], gamma: 0.1 },
            Schedule::Inv { gamma: -1.0, power: 1.0 },
            Schedule::Inv { gamma: 1.0, power: f64::INFINITY },
            Schedule::Poly { power: f64::NAN },
        ];
        for schedule in bad {
            assert!(schedule.problem().is_some_and(|p| p.starts_with("schedule")), "{schedule:?}");
        }
        assert_eq!(Schedule::MultiStep { at: vec![1, 2], gamma: 0.1 }.problem(), None);
    }
}
