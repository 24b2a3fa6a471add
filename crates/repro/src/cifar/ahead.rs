//! Networks that are trained at the same time on one GPU, which a small one alone does not fill.

use super::{Forced, REPULSION, Results, Study, diverged};
use crate::options::DeviceKind;
use anyhow::Result;
use cofilter_force::Force;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most trainings at a time.
const AT_ONCE: usize = 8;

impl Study<'_> {
    /// Does all jobs, on a GPU several at a time: the stages that they leave are found finished afterwards. On a processor, which is busy
    /// with one, nothing is done ahead. What diverges, or finds no room beside the others, is left to who looks for its stage.
    pub(super) fn ahead<J: Sync>(&self, jobs: &[J], run: impl Fn(&J) -> Result<()> + Sync) -> Result<()> {
        if self.pipeline.options.device == DeviceKind::Cpu {
            return Ok(());
        }
        all_of(jobs, |job| match run(job) {
            Err(error) if diverged(&error) => Ok(()),
            Err(error) if is_crowded(&error) => {
                eprintln!("{error:#}: later, alone");
                Ok(())
            }
            result => result,
        })
    }

    /// Trains with and without force.
    pub(super) fn train_ahead(&self, runs: &[Forced]) -> Result<()> {
        self.ahead(runs, |(arm, seed, force)| {
            self.continued(arm, *seed, &self.baseline(*seed)?.model, *force).map(drop)
        })
    }

    /// The runs with force of all seeds, once the strengths are known.
    pub(super) fn chosen(&self, results: &Results) -> Vec<Forced> {
        let strength = |arm: &str| results.chosen[arm].0;
        let mut runs: Vec<_> =
            self.forces().iter().map(|(arm, force)| (*arm, *force, strength(arm))).collect();
        if self.dense().contains(&"repulsion") {
            runs.push(("repulsion", Force::L2, REPULSION * strength("force-l2")));
        }
        let of =
            |seed| runs.iter().map(move |(arm, force, strength)| (*arm, seed, Some((*force, *strength))));
        results.seeds.iter().flat_map(|seed| of(*seed)).collect()
    }

    /// The runs with and without force that are made whatever comes of the others.
    pub(super) fn certain(&self, seeds: &[u64]) -> Vec<Forced> {
        let mut runs: Vec<Forced> = seeds.iter().map(|seed| ("control", *seed, None)).collect();
        for (i, (arm, force)) in self.forces().iter().enumerate() {
            let strengths = self.strengths(i);
            // Of several, one is chosen for the other seeds.
            let sure = if self.tries == 1 { seeds } else { &seeds[..1] };
            for seed in sure {
                runs.extend(strengths.iter().map(|strength| (*arm, *seed, Some((*force, *strength)))));
            }
            if self.tries == 1 && *force == Force::L2 && self.dense().contains(&"repulsion") {
                let strength = REPULSION * strengths[0];
                runs.extend(sure.iter().map(|seed| ("repulsion", *seed, Some((*force, strength)))));
            }
        }
        runs
    }
}

/// Whether there was not enough memory for so many.
fn is_crowded(error: &anyhow::Error) -> bool {
    use cofilter_train::Error;
    matches!(error.downcast_ref(), Some(Error::Cuda(error)) if error.is_out_of_memory())
}

/// Does all jobs, several at a time, those with the lower numbers first.
///
/// # Errors
/// The first of any; jobs that have begun are ended.
fn all_of<J: Sync>(jobs: &[J], run: impl Fn(&J) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = run(job) {
                        next.store(jobs.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| {
                            // Those that have begun go on for a while.
                            eprintln!("{error:#}");
                            error
                        });
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_job_is_done_once() {
        for count in [0, 1, AT_ONCE, 3 * AT_ONCE + 1] {
            let jobs: Vec<usize> = (0..count).collect();
            let done = Mutex::new(Vec::new());
            all_of(&jobs, |job| {
                done.lock().unwrap().push(*job);
                Ok(())
            })
            .unwrap();
            let done = done.into_inner().unwrap();
            assert_eq!((done.len(), BTreeSet::from_iter(done)), (count, jobs.into_iter().collect()));
        }
    }

    #[test]
    fn an_error_is_told_and_no_further_job_begins() {
        let begun = AtomicUsize::new(0);
        let error = all_of(&[0; 100], |_| {
            begun.fetch_add(1, Ordering::Relaxed);
            anyhow::bail!("stopped")
        });
        assert_eq!(error.unwrap_err().to_string(), "stopped");
        assert!(begun.into_inner() <= AT_ONCE);
    }
}
