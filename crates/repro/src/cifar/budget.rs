//! How much of the published schedules fits into the time that there is.

use super::subject::{self, Subject};
use crate::pipeline::Pipeline;
use crate::stage::Key;
use anyhow::{Result, bail, ensure};
use cofilter_train::{Fit, Outcome, Progress, Recipe, fit};
use std::time::Duration;

/// Iterations whose rate is measured, in lots of which the middle one counts.
const PROBE: u64 = 15;
/// Iterations of a lot.
const LOT: u64 = 3;
/// What decomposition, the runtime's evaluations and timing take beside the training.
const OVERHEAD: f64 = 1.1;
/// Time of an image in an evaluation over that of a training image: forward alone, of forward, backward and update.
const FORWARD: f64 = 0.4;
/// Without a budget.
const USUAL: Duration = Duration::from_secs(2 * 3600);

/// The length of the runs.
pub(super) struct Scale {
    /// Share of the published iterations, at most 1.
    pub(super) of_published: f64,
    why: Why,
    runs: Runs,
}

/// What the length comes from.
enum Why {
    /// The published schedules.
    Full,
    Quick,
    /// The iterations were given.
    Given,
    /// A time, and images a second that were measured.
    Budget {
        time: Duration,
        rate: f64,
    },
}

/// How many runs of each kind there are.
#[derive(Clone, Copy)]
struct Runs {
    baseline: usize,
    continued: usize,
    tuning: usize,
}

impl Runs {
    fn new(subject: &Subject, seeds: usize, tries: usize, only_l2: bool) -> Self {
        Self {
            baseline: if subject.has_no_weights() { seeds } else { 0 },
            // Control and repulsion; the forces of the first seed are among those tried.
            continued: if only_l2 {
                seeds + tries + seeds - 1
            } else {
                2 * seeds + 2 * tries + 2 * (seeds - 1)
            },
            tuning: super::STARTS.len() * seeds,
        }
    }

    /// Images of all runs at the published length.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn images(&self, subject: &Subject) -> f64 {
        let [baseline, continued, tuning] = subject.jobs().map(|(_, job, _)| job.iterations as f64);
        let iterations =
            self.baseline as f64 * baseline + self.continued as f64 * continued + self.tuning as f64 * tuning;
        iterations * subject.batch() as f64
    }

    /// Share of the published iterations that fits into the time, 0 or less where nothing does.
    fn share(&self, subject: &Subject, budget: Duration, rate: f64, test: usize) -> f64 {
        let images = budget.as_secs_f64() * rate / OVERHEAD - self.evaluated(test);
        (images / self.images(subject)).min(1.0)
    }

    /// Training images that take as long as the evaluations of all runs.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn evaluated(&self, test: usize) -> f64 {
        let evaluations = (self.baseline + self.continued + self.tuning) as f64 * subject::EVALUATIONS as f64;
        FORWARD * evaluations * test as f64
    }
}

/// The share of the published schedules that fits into the budget, at the rate of this machine; the rate is measured once and kept,
/// so that a run that goes on keeps its lengths.
pub(super) fn scale(pipeline: &Pipeline<'_>, subject: &Subject, tries: usize) -> Result<Scale> {
    let options = pipeline.options;
    let runs = Runs::new(subject, options.seed_list().len(), tries, options.only_l2);
    let given = |of_published: f64, why| Ok(Scale { of_published, why, runs });
    if options.full {
        return given(1.0, Why::Full);
    }
    if options.quick {
        return given(0.0, Why::Quick);
    }
    if let Some(iterations) = options.iterations {
        let share = subject.share(iterations);
        ensure!(share <= 1.0, "--iterations {iterations}: more than were published; --full runs those");
        let [.., (_, published, _)] = subject.jobs();
        if let Some(tuning) = options.tuning.filter(|tuning| *tuning > published.iterations) {
            bail!("--tuning {tuning}: more than the {} that are the most here", published.iterations);
        }
        return given(share, Why::Given);
    }
    let time = options.budget.map_or(USUAL, Into::into);
    let key = Key::new("rate", &[], &(subject.network(), subject.batch(), options.thread_count()));
    let rate = pipeline.store.value(&key, || measure(pipeline, subject))?;
    let of_published = runs.share(subject, time, rate, pipeline.data.test.len());
    ensure!(
        of_published > 0.0,
        "--budget {}: {} runs take longer to be evaluated alone, at {rate:.0} training images a second",
        humantime::format_duration(time),
        runs.baseline + runs.continued + runs.tuning
    );
    given(of_published, Why::Budget { time, rate })
}

/// Images a second of training, the middle of some measurements.
fn measure(pipeline: &Pipeline<'_>, subject: &Subject) -> Result<f64> {
    let recipe = Recipe {
        iterations: PROBE,
        evaluate_every: 0,
        checkpoint_every: 0,
        record_every: LOT,
        spectra: Vec::new(),
        ..subject.continued(0, None)
    };
    let start = subject.model(pipeline.options, 0)?;
    let job = Fit {
        recipe: &recipe,
        train: &pipeline.data.train,
        test: None,
        preprocessing: pipeline.preprocessing,
        device: pipeline.options.training_device(),
        folder: None,
        stop: Some(&pipeline.options.stop),
        masks: None,
        teacher: None,
        progress: Progress::Silent,
    };
    match fit(&start, &job)? {
        Outcome::Finished(trained) => {
            let mut rates: Vec<f64> =
                trained.history.iter().filter_map(|r| Some(r.clock?.images_per_s)).collect();
            rates.sort_by(f64::total_cmp);
            Ok(rates[rates.len() / 2])
        }
        Outcome::Stopped { .. } => bail!("stopped; the same command goes on from here"),
    }
}

impl Scale {
    /// How long the runs are, for the report.
    pub(super) fn note(&self, subject: &Subject) -> String {
        let Runs { baseline, continued, tuning } = self.runs;
        let counts = [baseline, continued, tuning];
        let jobs: Vec<String> = subject
            .jobs()
            .iter()
            .zip(counts)
            .filter(|(_, runs)| *runs > 0)
            .map(|((name, published, job), runs)| {
                format!(
                    "{name}: {} of {} iterations of batch {}, rate {}, a tenth of it from {} and a hundredth from {} on ({} run(s))",
                    job.iterations, published.iterations, subject.batch(), job.rate, job.steps[0], job.steps[1], runs
                )
            })
            .collect();
        let why = match self.why {
            Why::Budget { time, rate } => {
                format!(
                    "A budget of {} at {rate:.0} training images a second",
                    humantime::format_duration(time)
                )
            }
            Why::Given if subject.tuning.is_some() => "--iterations, --tuning".into(),
            Why::Given => "--iterations".into(),
            Why::Quick => "--quick".into(),
            Why::Full => return format!("--full: the published schedules. {}.", jobs.join("; ")),
        };
        let alike =
            if subject.tuning.is_some() { "iterations and steps of a run" } else { "iterations and steps" };
        format!("{why}: {alike} are shortened alike. {}.", jobs.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runs_at_the_share_take_the_budget() {
        let subject = Subject::resnet20(false).unwrap();
        // Per seed control, repulsion and two fine-tunings; twelve strengths for the first seed, two for each other one.
        let runs = Runs::new(&subject, 3, 6, false);
        assert_eq!((runs.baseline, runs.continued, runs.tuning), (0, 22, 6));
        let (rate, budget) = (600.0, Duration::from_secs(8 * 3600));
        let share = runs.share(&subject, budget, rate, 10_000);
        assert!(share > 0.01 && share < 0.1, "{share}");
        // 28 runs of 64,000 iterations of 256 images; 10 evaluations each.
        let trained = share * 28.0 * 64_000.0 * 256.0;
        let seconds = OVERHEAD * (trained + 28.0 * 10.0 * 10_000.0 * FORWARD) / rate;
        assert!((seconds - 8.0 * 3600.0).abs() < 1e-6, "{seconds}");
        assert!(
            runs.share(&subject, Duration::from_secs(60), rate, 10_000) < 0.0,
            "evaluations alone take longer"
        );
        assert_eq!(runs.share(&subject, Duration::from_secs(u64::MAX), rate, 10_000), 1.0);
        let scratch = Runs::new(&Subject::resnet20(true).unwrap(), 1, 1, false);
        assert_eq!((scratch.baseline, scratch.continued, scratch.tuning), (1, 4, 2));
    }
}
