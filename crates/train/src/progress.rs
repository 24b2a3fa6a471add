use crate::{Score, Step};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// What a run shows while it works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    #[default]
    Silent,
    /// A bar with this label on standard error, if that is a terminal: loss, accuracy, images a second, time left.
    Bar(String),
}

/// The bars of all runs, one below the other.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5)));

/// The bar of a run.
pub(crate) struct Bar {
    bar: ProgressBar,
    loss: f64,
    top1: f64,
    test: Option<f64>,
    shown: Option<Instant>,
}

impl Bar {
    pub(crate) fn new(progress: &Progress, start: u64, iterations: u64) -> Self {
        let bar = match progress {
            Progress::Silent => ProgressBar::hidden(),
            Progress::Bar(label) => {
                let bar = BARS.add(ProgressBar::new(iterations));
                let template = "{prefix:>18.bold} {bar:24.cyan/dim} {pos:>6}/{len} {msg}  {eta} left";
                let style =
                    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                bar.set_style(style.progress_chars("━╸─"));
                bar.set_prefix(label.clone());
                bar
            }
        };
        bar.set_position(start);
        bar.reset_eta();
        Self { bar, loss: f64::NAN, top1: f64::NAN, test: None, shown: None }
    }

    pub(crate) fn advance(&mut self, step: &Step, batch: usize, images_per_s: impl FnOnce() -> f64) {
        if self.bar.is_hidden() {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "for the eye")]
        let top1 = step.correct as f64 / batch as f64;
        let blend = |old: f64, new: f64| if old.is_nan() { new } else { 0.98 * old + 0.02 * new };
        (self.loss, self.top1) = (blend(self.loss, step.loss), blend(self.top1, top1));
        self.bar.inc(1);
        if self.shown.is_none_or(|at| at.elapsed() > Duration::from_millis(200)) {
            self.shown = Some(Instant::now());
            let test = self.test.map(|t| format!("  test {:.2} %", 100.0 * t)).unwrap_or_default();
            let train = format!("loss {:.4}  top-1 {:.2} %", self.loss, 100.0 * self.top1);
            self.bar.set_message(format!("{train}{test}  {:.0} images/s", images_per_s()));
        }
    }

    pub(crate) fn evaluated(&mut self, score: &Score) {
        self.test = Some(score.top1);
        self.shown = None;
    }

    /// Goes on from an earlier iteration.
    pub(crate) fn back(&mut self, iteration: u64) {
        self.bar.set_position(iteration);
        self.shown = None;
    }

    pub(crate) fn finish(&self) {
        self.bar.finish();
    }

    pub(crate) fn abandon(&self) {
        self.bar.abandon();
    }
}
