//! Softmax and cross entropy against the formula in `f64`.

use crate::check::{Random, assert_close, numeric_gradient, wide};
use cofilter_kernels::{softmax, softmax_cross_entropy};

fn oracle(cols: usize, src: &[f64]) -> Vec<f64> {
    let mut dst = Vec::new();
    for row in src.chunks(cols) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        dst.extend(row.iter().map(|x| (x - largest).exp() / sum));
    }
    dst
}

fn loss_oracle(cols: usize, src: &[f64], labels: &[u32]) -> f64 {
    let probabilities = oracle(cols, src);
    let of = |(r, &label): (usize, &u32)| -probabilities[r * cols + label as usize].ln();
    labels.iter().enumerate().map(of).sum::<f64>() / labels.len() as f64
}

const SHAPES: [(usize, usize); 5] = [(1, 1), (4, 10), (3, 1000), (64, 7), (2, 2)];

#[test]
fn softmax_is_the_oracle() {
    for (rows, cols) in SHAPES {
        for scale in [1.0, 50.0, 1e4] {
            let src = Random::new(1).values(rows * cols, scale);
            let mut dst = vec![7.0; src.len()];
            softmax(rows, cols, &src, &mut dst);
            assert_close(&format!("{rows}x{cols}"), &dst, &oracle(cols, &wide(&src)), 1e-6);
        }
    }
}

#[test]
fn a_nan_spoils_its_row_only() {
    let mut dst = [7.0; 6];
    softmax(2, 3, &[0.0, f32::NAN, 1.0, 0.0, 0.0, 0.0], &mut dst);
    assert!(dst[..3].iter().all(|x| x.is_nan()), "{dst:?}");
    assert!(dst[3..].iter().all(|x| (x - 1.0 / 3.0).abs() < 1e-7), "{dst:?}");
    assert!(softmax_cross_entropy(2, 2, &[0.0, f32::NAN, 1.0, 0.0], &[0, 1], None).is_nan());
}

#[test]
fn loss_and_gradient_are_the_oracle() {
    let mut random = Random::new(2);
    for (rows, cols) in SHAPES {
        let logits = random.values(rows * cols, 5.0);
        let labels: Vec<u32> = (0..rows).map(|_| random.pick(0, cols - 1) as u32).collect();
        let mut grad = vec![7.0; logits.len()];
        let loss = softmax_cross_entropy(rows, cols, &logits, &labels, Some(&mut grad));
        let wanted = loss_oracle(cols, &wide(&logits), &labels);
        assert!((loss - wanted).abs() < 1e-6 * wanted.max(1.0), "{rows}x{cols}: {loss}, wanted {wanted}");
        assert_eq!(loss.to_bits(), softmax_cross_entropy(rows, cols, &logits, &labels, None).to_bits());
        if cols < 100 {
            let slope = numeric_gradient(&wide(&logits), &[1.0], |x| vec![loss_oracle(cols, x, &labels)]);
            assert_close(&format!("{rows}x{cols}"), &grad, &slope, 1e-6);
        }
    }
}

/// Far apart logits: the loss is their distance, where a logarithm of the probability would be infinite.
#[test]
fn a_confident_mistake_has_a_finite_loss() {
    let loss = softmax_cross_entropy(1, 2, &[500.0, -500.0], &[1], None);
    assert!((loss - 1000.0).abs() < 1e-9, "{loss}");
}
