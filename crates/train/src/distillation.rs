//! Learning from another network's class scores (Hinton, Vinyals and Dean 2015).

use crate::device::{Device, Scorer};
use crate::net::Net;
use crate::{Error, Result};
use cofilter_graph::Model;
use serde::{Deserialize, Serialize};

/// How much of the main head's loss is the difference from a teacher's class scores `t`, rather than from the labels:
/// `(1 - weight) CE(z, label) + weight T^2 KL(softmax(t / T) || softmax(z / T))` for scores `z`, mean over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// `T`, above 0: the higher, the more classes count that the teacher finds unlikely.
    pub temperature: f64,
    /// In `[0, 1]`.
    pub weight: f64,
}

impl Default for Distillation {
    fn default() -> Self {
        Self { temperature: 4.0, weight: 0.9 }
    }
}

impl Distillation {
    /// What makes no sense in it.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { temperature, weight } = self;
        if !(temperature.is_finite() && *temperature > 0.0) {
            return Some(format!("distillation: temperature {temperature}, expected above 0"));
        }
        (!(0.0..=1.0).contains(weight))
            .then(|| format!("distillation: weight {weight}, expected a number in [0, 1]"))
    }

    /// Mixes the loss of a head, which counts `head` times, and its gradient with that of the teacher's scores.
    pub(crate) fn mix(
        &self,
        classes: usize,
        [scores, teacher]: [&[f32]; 2],
        head: f64,
        (loss, gradient): (&mut f64, &mut [f32]),
    ) {
        let (t, w) = (self.temperature, self.weight);
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52")]
        let images = (scores.len() / classes) as f64;
        let mut divergence = 0.0;
        let rows = scores.chunks_exact(classes).zip(teacher.chunks_exact(classes));
        for ((z, wanted), gradient) in rows.zip(gradient.chunks_exact_mut(classes)) {
            let (q, p) = (log_softmax(z, t), log_softmax(wanted, t));
            for ((q, p), g) in q.iter().zip(&p).zip(gradient) {
                divergence += p.exp() * (p - q);
                // d/dz of T^2 KL is T (softmax(z / T) - softmax(t / T)).
                #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
                {
                    *g = ((1.0 - w) * f64::from(*g) + head * w * t * (q.exp() - p.exp()) / images) as f32;
                }
            }
        }
        *loss = (1.0 - w) * *loss + w * t * t * divergence / images;
    }
}

/// `ln softmax(scores / t)`.
fn log_softmax(scores: &[f32], t: f64) -> Vec<f64> {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let shifted: Vec<f64> = scores.iter().map(|v| f64::from(v - largest) / t).collect();
    let log_sum = shifted.iter().map(|v| v.exp()).sum::<f64>().ln();
    shifted.into_iter().map(|v| v - log_sum).collect()
}

/// A network that is learnt from, and stays as it is.
pub(crate) struct Teacher {
    net: Net,
    scorer: Scorer,
}

impl Teacher {
    /// For a student with this many classes.
    pub(crate) fn new(model: &Model, student: &Net, device: Device, tolerance: f32) -> Result<Self> {
        let (own, other) = (model.graph(), student.graph());
        if own.input_shape() != other.input_shape() || own.output_shape() != other.output_shape() {
            return Err(Error::Input(format!(
                "teacher: takes {} and gives {}, the network {} and {}",
                own.input_shape(),
                own.output_shape(),
                other.input_shape(),
                other.output_shape()
            )));
        }
        model.check_finite()?;
        Ok(Self { net: Net::new(model)?, scorer: Scorer::new(device, tolerance) })
    }

    /// Class scores of a batch, row by row.
    pub(crate) fn scores(&mut self, images: Vec<f32>, count: usize) -> Result<Vec<f32>> {
        self.scorer.scores(&self.net, images, count).map(|(scores, _)| scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 6] = [0.3, -1.2, 2.0, 0.0, 0.5, -0.4];
    const TEACHER: [f32; 6] = [1.0, 0.2, 0.4, -2.0, 1.5, 0.1];

    /// From the formula.
    fn loss(scores: &[f64], of: &Distillation) -> f64 {
        let softmax = |row: &[f64], t: f64| -> Vec<f64> {
            let sum: f64 = row.iter().map(|v| (v / t).exp()).sum();
            row.iter().map(|v| (v / t).exp() / sum).collect()
        };
        let t = of.temperature;
        let mut total = 0.0;
        for (row, label) in [(0, 2), (1, 1)] {
            let z = &scores[row * 3..row * 3 + 3];
            let teacher: Vec<f64> = TEACHER[row * 3..row * 3 + 3].iter().map(|v| f64::from(*v)).collect();
            let (p, q) = (softmax(&teacher, t), softmax(z, t));
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            total += (1.0 - of.weight) * -softmax(z, 1.0)[label].ln() + of.weight * t * t * divergence;
        }
        total / 2.0
    }

    #[test]
    fn loss_and_gradient_are_those_of_the_formula() {
        for of in [(1.0, 1.0), (4.0, 0.9), (2.5, 0.3), (3.0, 0.0)] {
            let of = Distillation { temperature: of.0, weight: of.1 };
            let mut gradient = [0.0; 6];
            let mut found =
                cofilter_kernels::softmax_cross_entropy(2, 3, &SCORES, &[2, 1], Some(&mut gradient));
            gradient.iter_mut().for_each(|g| *g *= 0.5);
            of.mix(3, [&SCORES, &TEACHER], 0.5, (&mut found, &mut gradient));
            let scores: Vec<f64> = SCORES.iter().map(|v| f64::from(*v)).collect();
            assert!((found - loss(&scores, &of)).abs() < 1e-6, "{of:?}: {found}");
            for (i, gradient) in gradient.into_iter().enumerate() {
                let at = |change: f64| {
                    let mut scores = scores.clone();
                    scores[i] += change;
                    loss(&scores, &of)
                };
                let expected = 0.5 * (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((f64::from(gradient) - expected).abs() < 1e-6, "{of:?}, {i}: {gradient}, {expected}");
            }
        }
    }

    #[test]
    fn numbers_that_make_no_sense() {
        for (temperature, weight) in
            [(0.0, 0.5), (-1.0, 0.5), (f64::NAN, 0.5), (1.0, -0.1), (1.0, 1.1), (1.0, f64::NAN)]
        {
            assert!(Distillation { temperature, weight }.problem().is_some(), "{temperature}, {weight}");
        }
        assert_eq!(Distillation::default().problem(), None);
    }
}
