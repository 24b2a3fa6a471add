use crate::device::{Device, Scorer};
use crate::net::{Mode, Net};
use crate::recipe::TOLERANCE;
use crate::sweep::Sweep;
use crate::{Error, Result};
use cofilter_data::{Augment, Dataset, Pipeline, Tally};
use cofilter_graph::{Model, NodeId, Preprocessing};
use serde::{Deserialize, Serialize};

/// How well a network classifies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Share of images whose label is ranked first.
    pub top1: f64,
    /// Share of images whose label is among the first five.
    pub top5: f64,
    /// Mean cross entropy.
    pub loss: f64,
    /// Number of images.
    pub images: usize,
}

/// Classifies a whole data set, images as they are (no augmentation), `batch` at a time.
///
/// Equal scores are ranked by class number. `batch` changes speed and memory, not the score.
///
/// # Errors
/// [`Error::Input`] where data set and network do not fit, [`Error::NotFinite`] for a score that is NaN or infinite,
/// [`Error::Cuda`].
pub fn evaluate(
    model: &Model,
    dataset: &Dataset,
    preprocessing: &Preprocessing,
    batch: usize,
    device: Device,
) -> Result<Score> {
    let mut scorer = Scorer::new(device, TOLERANCE);
    evaluate_net(&Net::new(model)?, &mut scorer, dataset, preprocessing, batch)
}

/// As [`evaluate`], for a network that is being trained.
pub(crate) fn evaluate_net(
    net: &Net,
    scorer: &mut Scorer,
    dataset: &Dataset,
    preprocessing: &Preprocessing,
    batch: usize,
) -> Result<Score> {
    check_data(net, dataset)?;
    if batch == 0 {
        return Err(Error::Input("evaluation: a batch of 0 images".into()));
    }
    let pipeline = Pipeline::new(dataset, preprocessing, &Augment::default(), 0)?;
    let (mut tally, mut loss) = (Tally::default(), 0.0);
    let image_len = net.graph().input_shape().elements();
    for start in (0..dataset.len()).step_by(batch) {
        let indices: Vec<u32> =
            (start..(start + batch).min(dataset.len())).map(index).collect::<Result<_>>()?;
        let mut images = scorer.buffer(indices.len() * image_len);
        let mut labels = vec![0; indices.len()];
        pipeline.fill(None, &indices, &mut images, &mut labels)?;
        let (scores, classes) = scorer.scores(net, images, indices.len())?;
        if let Some(bad) = scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::NotFinite { image: start + bad / classes });
        }
        for (row, label) in scores.chunks_exact(classes).zip(&labels) {
            tally.add(row, *label as usize);
            loss += cofilter_kernels::softmax_cross_entropy(1, classes, row, &[*label], None);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "numbers of images are far below 2^52")]
    let images = dataset.len() as f64;
    Ok(Score { top1: tally.top1(), top5: tally.top5(), loss: loss / images, images: dataset.len() })
}

fn index(i: usize) -> Result<u32> {
    u32::try_from(i).map_err(|_| Error::Input(format!("data set: image {i}, at most 2^32 are supported")))
}

/// Values of a head, row by row.
pub(crate) fn on_cpu(net: &Net, sweep: &mut Sweep, images: Vec<f32>, head: NodeId) -> Result<Vec<f32>> {
    let trace = sweep.forward(net, images, Mode::Eval, &[head], false)?;
    sweep.dense(net, &trace, head).ok_or_else(|| Error::Input("the network has no output".into()))
}

/// Refuses a data set that the network cannot classify.
pub(crate) fn check_data(net: &Net, dataset: &Dataset) -> Result<()> {
    if dataset.is_empty() {
        return Err(Error::Input(format!("data set `{}` has no images", dataset.name())));
    }
    for output in net.graph().outputs() {
        let node = net.graph().node(*output);
        let classes = node.shape().elements();
        let labels = (0..dataset.len()).map(|i| dataset.label(i));
        if let Some(label) = labels.max().filter(|l| *l as usize >= classes) {
            return Err(Error::Input(format!(
                "data set `{}` has label {label}, but output `{}` has {classes} classes",
                dataset.name(),
                node.name()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofilter_graph::{Conv2d, Graph, Init, Shape};

    /// Wide enough for Winograd's method to be worth its while for many images, and not for one.
    #[test]
    fn scores_of_an_image_do_not_depend_on_the_others() {
        let mut b = Graph::builder();
        let conv = Conv2d { padding: [1, 1], ..Conv2d::new(64, 3) };
        let x = b.input("data", Shape::map(3, 8, 8)).unwrap();
        let x = b.conv2d("a", x, conv.clone()).unwrap();
        let x = b.conv2d("b", x, conv).unwrap();
        let x = b.global_avg_pool("pool", x).unwrap();
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("fc", x, 5).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
        let net = Net::new(&model).unwrap();
        let len = 3 * 8 * 8;
        let images: Vec<f32> = (0..80 * len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let run = |range: std::ops::Range<usize>| {
            let part = images[range.start * len..range.end * len].to_vec();
            Scorer::new(Device::Cpu, TOLERANCE).scores(&net, part, range.len()).unwrap().0
        };
        let all = run(0..80);
        assert!(all.chunks(5).any(|row| row != &all[..5]), "all images have the same scores");
        for range in [0..1, 3..4, 70..80, 1..40] {
            assert_eq!(run(range.clone()), all[range.start * 5..range.end * 5], "{range:?}");
        }
    }
    /// Maps that in training are computed where they are read are not there to be read by anything else.
    #[test]
    fn scores_of_a_residual_network_are_those_of_the_tape() {
        let config = cofilter_zoo::Config { input: Some(Shape::map(3, 16, 16)), ..Default::default() };
        let model = cofilter_zoo::Network::by_name("resnet20", &config).unwrap().model(1).unwrap();
        let net = Net::new(&model).unwrap();
        let images: Vec<f32> = (0..25 * 768).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let tensor =
            candle_core::Tensor::from_slice(&images, (25, 3, 16, 16), &candle_core::Device::Cpu).unwrap();
        let expected = net.forward(&tensor, Mode::Eval).unwrap().remove(0);
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let scores = Scorer::new(Device::Cpu, 0.0).scores(&net, images, 25).unwrap().0;
        assert_eq!(scores.len(), expected.len());
        assert!(expected.iter().any(|score| score.abs() > 0.1), "{expected:?}");
        for (found, expected) in scores.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found}, not {expected}");
        }
    }
}
