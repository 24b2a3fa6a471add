use crate::backend::{Memory, State, StepInfo};
use crate::{Error, Plan, Result};
use std::time::Instant;

/// A plan with memory to run in.
pub struct Session {
    plan: Plan,
    state: Box<dyn State>,
}

/// Where the time of one run went.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Each step, in order.
    pub steps: Vec<StepTime>,
    /// The whole run, with everything between the steps.
    pub total_us: f64,
    /// What the weights and the session hold.
    pub memory: Memory,
}

/// The time of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// What was computed.
    pub step: StepInfo,
    /// For the whole batch.
    pub time_us: f64,
}

impl Profile {
    /// The steps in the JSON of Chrome's trace viewer (`chrome://tracing`, Perfetto), one event each, end to end.
    ///
    /// A step that ran for a few images at a time is one event as long as all of those together.
    #[must_use]
    pub fn chrome_trace(&self) -> String {
        let mut start = 0.0;
        let event = |time: &StepTime| {
            let ts = start;
            start += time.time_us;
            let StepInfo { nodes, algorithm, result, macs, images, weight_bytes } = &time.step;
            serde_json::json!({
                "name": nodes,
                "cat": algorithm,
                "ph": "X",
                "ts": ts,
                "dur": time.time_us,
                "pid": 1,
                "tid": 1,
                "args": {
                    "algorithm": algorithm,
                    "result": result.to_string(),
                    "macs": macs,
                    "images_at_once": images,
                    "weight_bytes": weight_bytes,
                },
            })
        };
        let events: Vec<_> = self.steps.iter().map(event).collect();
        serde_json::json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(plan: Plan, state: Box<dyn State>) -> Self {
        Self { plan, state }
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Computes the main output of `n` images, `1 <= n <= batch`: `images` `[n, C, H, W]` to `logits` `[n, K]`. NaN
    /// goes through to the logits of its own image.
    ///
    /// # Errors
    /// [`Error::Images`] or [`Error::Logits`] for slices of another length, what a device says if it fails; nothing was written then.
    pub fn run(&mut self, images: &[f32], logits: &mut [f32]) -> Result<()> {
        let n = self.check(images, logits)?;
        self.state.run(n, images, logits, None)
    }

    /// Runs once to warm up and once with a clock around each step.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn profile(&mut self, images: &[f32]) -> Result<Profile> {
        let steps = self.plan.steps();
        let mut logits = vec![0.0; images.len() / self.plan.input_len() * self.plan.output_len()];
        let mut times_us = vec![0.0; steps.len()];
        self.run(images, &mut logits)?;
        let n = self.check(images, &logits)?;
        let start = Instant::now();
        self.state.run(n, images, &mut logits, Some(&mut times_us))?;
        let total_us = start.elapsed().as_secs_f64() * 1e6;
        let steps = steps.into_iter().zip(times_us);
        Ok(Profile {
            steps: steps.map(|(step, time_us)| StepTime { step, time_us }).collect(),
            total_us,
            memory: self.plan.memory(),
        })
    }

    /// Number of images, if the lengths fit.
    fn check(&self, images: &[f32], logits: &[f32]) -> Result<usize> {
        let (image_len, batch) = (self.plan.input_len(), self.plan.options().batch);
        let n = images.len() / image_len;
        if !images.len().is_multiple_of(image_len) || n == 0 || n > batch {
            return Err(Error::Images { image_len, batch, found: images.len() });
        }
        let expected = n * self.plan.output_len();
        if logits.len() != expected {
            return Err(Error::Logits { expected, images: n, found: logits.len() });
        }
        Ok(n)
    }
}
