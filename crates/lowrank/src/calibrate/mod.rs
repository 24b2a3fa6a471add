//! What a network does with images: statistics that make a decomposition lose less of the outputs.

mod batch_norm;
mod moments;
mod refit;
mod values;

pub use batch_norm::reestimate_batch_norm;
pub(crate) use moments::Moments;
pub(crate) use refit::{bias, output_error, refit, regression, ridged};
pub(crate) use values::{Stream, Values};

use crate::{Error, Result};
use cofilter_graph::Model;
use std::time::{Duration, Instant};

/// Images that stand for those that the network will see. Labels are not needed.
#[derive(Clone, Copy, Debug)]
pub struct Calibration<'a> {
    /// The network's input for each image, one after the other: `[n, C, H, W]`. The network is run on some of them at a time; values
    /// inside it that take no more than 1 GiB for all images are kept for the layers that follow, larger ones are computed again
    /// for each layer.
    pub images: &'a [f32],
    /// Threads that the network runs with, and the statistics are summed with. Results do not depend on them.
    pub threads: usize,
    /// Most windows of each layer and image that are looked at, drawn with a fixed seed. A layer with `L` weights a filter needs
    /// several times `L` windows over all images.
    pub windows: usize,
    /// Whether each layer is fitted to the outputs of the *original* network from what the layers before it give *now*, so that
    /// it makes up for their errors (Zhang et al. 2016, asymmetric reconstruction); otherwise it is fitted as if the layers
    /// before it were the original ones.
    pub asymmetric: bool,
    /// How much a layer is drawn to its original weights: this share of the mean variance of its inputs is added to the
    /// variance of each of them.
    pub ridge: f64,
}

impl<'a> Calibration<'a> {
    /// Of these images, with one thread.
    #[must_use]
    pub fn new(images: &'a [f32]) -> Self {
        Self { images, threads: 1, windows: 64, asymmetric: true, ridge: 1e-3 }
    }

    /// The number of images.
    pub(crate) fn check(&self, model: &Model) -> Result<usize> {
        let len = model.graph().input_shape().elements();
        let fail = |reason: String| Err(Error::Calibration { reason });
        if self.images.is_empty() || !self.images.len().is_multiple_of(len) {
            return fail(format!("{} numbers are no images of {len}", self.images.len()));
        }
        if let Some(at) = self.images.iter().position(|value| !value.is_finite()) {
            return fail(format!("image {} has the value {}", at / len, self.images[at]));
        }
        if !(1..=1024).contains(&self.threads) {
            return fail(format!("expected 1..=1024 threads, found {}", self.threads));
        }
        if self.windows == 0 {
            return fail("expected at least 1 window of an image, found 0".into());
        }
        if !(self.ridge.is_finite() && self.ridge > 0.0) {
            return fail(format!("expected a ridge above 0, found {}", self.ridge));
        }
        Ok(self.images.len() / len)
    }
}

/// Tells now and then how far long work is.
pub(crate) struct Told {
    what: &'static str,
    of: usize,
    last: Instant,
}

impl Told {
    pub(crate) fn new(what: &'static str, of: usize) -> Self {
        Self { what, of, last: Instant::now() }
    }

    /// So many are done.
    pub(crate) fn done(&mut self, count: usize) {
        if self.last.elapsed() > EVERY {
            self.last = Instant::now();
            tracing::info!("{}: {count} of {} layers", self.what, self.of);
        }
    }
}

/// Between two words of [`Told`].
const EVERY: Duration = Duration::from_secs(5);
