use super::{Calibration, Values};
use crate::Result;
use crate::factor::single;
use cofilter_graph::{Array, Model, NodeId, Op};

/// Gives every batch normalisation the running mean and variance that go with what it reads now, from the first to the last, so
/// that each sees what the ones before it give. Nothing else changes, and labels are not needed.
///
/// With the network as it was (`original`, which has batch normalisations of the same names) statistics move by as much as
/// those of the images move from the one network to the other: the mean by the difference, the variance by the factor. So they
/// stay those of training, whose images were augmented, and the same network stays as it is. Without it, or where it has no such
/// node, they become those of the images.
///
/// # Errors
/// [`crate::Error::Calibration`] for images that do not fit, [`crate::Error::Runtime`] where a network cannot be run.
pub fn reestimate_batch_norm(
    model: &Model,
    original: Option<&Model>,
    calibration: &Calibration<'_>,
) -> Result<Model> {
    model.check_finite()?;
    let mut now = model.clone();
    let mut values = Values::new(model, calibration)?;
    let mut before = match original {
        Some(original) => Some((original, Values::new(original, calibration)?)),
        None => None,
    };
    for (id, node) in model.graph().iter().filter(|(_, node)| matches!(node.op(), Op::BatchNorm(_))) {
        let found = Statistics::of(&now, id, &mut values)?;
        let was = match &mut before {
            None => None,
            Some((original, values)) => match original.graph().find(node.name()) {
                Ok(same) if original.graph().node(same).shape() == node.shape() => {
                    Some(Statistics::of(original, same, values)?)
                }
                _ => None,
            },
        };
        let mut params = now.params().clone();
        let tensors = params.get_mut(id);
        let (mean, variance): (Vec<f32>, Vec<f32>) = (0..found.mean.len())
            .map(|channel| {
                let old = |slot: usize| f64::from(tensors[slot].data()[channel]);
                let (mean, variance) = (found.mean[channel], found.variance[channel]);
                let (mean, variance) = match &was {
                    None => (mean, variance),
                    // A channel that never changed, up to rounding, has no factor.
                    Some(was) if was.variance[channel] > 1e-12 * (1e-12 + was.mean[channel].powi(2)) => {
                        (old(2) + mean - was.mean[channel], old(3) * variance / was.variance[channel])
                    }
                    Some(was) => (old(2) + mean - was.mean[channel], old(3)),
                };
                (single(mean), single(variance))
            })
            .unzip();
        for (slot, numbers) in [(2, mean), (3, variance)] {
            tensors[slot] = Array::new(tensors[slot].dims().to_vec(), numbers);
        }
        now = now.with_params(params)?;
    }
    Ok(now)
}

/// Mean and unbiased variance of each channel, as training keeps them.
struct Statistics {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Statistics {
    /// Of what a node reads.
    fn of(model: &Model, id: NodeId, values: &mut Values<'_>) -> Result<Self> {
        let node = model.graph().node(id);
        let places: usize = node.shape().spatial().iter().product();
        let channels = node.shape().channels();
        #[expect(clippy::cast_precision_loss, reason = "a count of numbers")]
        let n = (values.count() * places) as f64;
        // Of each channel, over all images.
        let mut sums = |of: &dyn Fn(usize, f64) -> f64| -> Result<Vec<f64>> {
            let mut sums = vec![0.0; channels];
            values.each(model, node.inputs()[0], |_, maps| {
                for (i, map) in maps.chunks_exact(places).enumerate() {
                    let channel = i % channels;
                    map.iter().for_each(|v| sums[channel] += of(channel, f64::from(*v)));
                }
            })?;
            Ok(sums)
        };
        let mean = sums(&|_, value| value)?;
        let mean: Vec<f64> = mean.into_iter().map(|sum| sum / n).collect();
        let squares = sums(&|channel, value| (value - mean[channel]).powi(2))?;
        let variance = squares.into_iter().map(|sum| sum / (n - 1.0).max(1.0)).collect();
        Ok(Self { mean, variance })
    }
}
