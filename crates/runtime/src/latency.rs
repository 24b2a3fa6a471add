//! Times of several plans under the same conditions: round after round, each in turn.
//!
//! What disturbs a machine (other processes, heat, clock frequency) lasts longer than a run, so it meets all subjects
//! alike, and ratios of their times hold where the times themselves do not. The order rotates from round to round.

use crate::{Result, Session};
use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Rounds before the first one that counts.
    pub warm_up: usize,
    /// Runs of a subject that do not count, directly before each one that does: they bring its weights and values back
    /// into the caches that the other subjects took.
    pub settle: usize,
    /// Most rounds that count; at least one is run.
    pub rounds: usize,
    /// No round begins after this many seconds.
    pub seconds: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { warm_up: 2, settle: 1, rounds: 200, seconds: 10.0 }
    }
}

/// Latency of one run of the whole batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// As given to [`measure`].
    pub name: String,
    /// Half of the runs took at most this long.
    pub p50_us: f64,
    /// Nine of ten.
    pub p90_us: f64,
    /// Ninety-nine of a hundred; the slowest of fewer than a hundred runs.
    pub p99_us: f64,
    /// Runs that counted.
    pub runs: usize,
}

/// Runs each subject (name, session, images `[n, C, H, W]`) once a round.
///
/// # Errors
/// As [`Session::run`], before anything is timed.
pub fn measure(subjects: &mut [(&str, &mut Session, &[f32])], budget: &Budget) -> Result<Vec<Latency>> {
    let mut logits: Vec<Vec<f32>> = Vec::with_capacity(subjects.len());
    for (_, session, images) in subjects.iter_mut() {
        let plan = session.plan();
        let mut row = vec![0.0; images.len() / plan.input_len() * plan.output_len()];
        session.run(images, &mut row)?;
        logits.push(row);
    }
    for _ in 0..budget.warm_up {
        for ((_, session, images), logits) in subjects.iter_mut().zip(&mut logits) {
            session.run(images, logits)?;
        }
    }
    let mut times_us = vec![Vec::with_capacity(budget.rounds.min(1 << 16)); subjects.len()];
    let start = Instant::now();
    let seconds = Duration::try_from_secs_f64(budget.seconds).unwrap_or(Duration::MAX);
    for round in 0..budget.rounds.max(1) {
        if round > 0 && start.elapsed() >= seconds {
            break;
        }
        for turn in 0..subjects.len() {
            let i = (round + turn) % subjects.len();
            let (_, session, images) = &mut subjects[i];
            for _ in 0..budget.settle {
                session.run(images, &mut logits[i])?;
            }
            let begin = Instant::now();
            session.run(images, &mut logits[i])?;
            times_us[i].push(begin.elapsed().as_secs_f64() * 1e6);
        }
    }
    let latency = |((name, ..), times): (&(&str, &mut Session, &[f32]), Vec<f64>)| summarise(name, times);
    Ok(subjects.iter().zip(times_us).map(latency).collect())
}

fn summarise(name: &str, mut times_us: Vec<f64>) -> Latency {
    times_us.sort_by(f64::total_cmp);
    let runs = times_us.len();
    // Nearest rank: the smallest time that at least this share of the runs did not exceed.
    let percentile = |percent: usize| times_us[(runs * percent).div_ceil(100).max(1) - 1];
    Latency {
        name: name.into(),
        p50_us: percentile(50),
        p90_us: percentile(90),
        p99_us: percentile(99),
        runs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let shuffled: Vec<f64> = (0..200).map(|i| f64::from(i * 77 % 200 + 1)).collect();
        let latency = summarise("a", shuffled);
        assert_eq!([latency.p50_us, latency.p90_us, latency.p99_us], [100.0, 180.0, 198.0]);
        assert_eq!(latency.runs, 200);
        let one = summarise("b", vec![7.0]);
        assert_eq!([one.p50_us, one.p90_us, one.p99_us], [7.0; 3]);
        let three = summarise("c", vec![3.0, 1.0, 2.0]);
        assert_eq!([three.p50_us, three.p90_us, three.p99_us], [2.0, 3.0, 3.0]);
    }
}
