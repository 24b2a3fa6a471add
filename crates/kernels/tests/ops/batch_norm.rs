//! Batch normalisation against the formula in `f64`.

use crate::check::{Random, assert_close, in_both, numeric_gradient, wide};
use cofilter_kernels::{Par, PlaneShape, batch_norm, batch_norm_backward, batch_norm_statistics};

const EPS: f32 = 1e-5;

fn shapes() -> Vec<PlaneShape> {
    [(3, 4, 30), (1, 1, 2), (8, 3, 1), (2, 5, 49), (4, 16, 1024), (3, 7, 17), (1, 3, 12544)]
        .into_iter()
        .map(|(batch, channels, plane)| PlaneShape { batch, channels, plane })
        .collect()
}

fn channel_of(shape: &PlaneShape, i: usize) -> usize {
    i / shape.plane % shape.channels
}

fn statistics_oracle(shape: &PlaneShape, src: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let count = (shape.batch * shape.plane) as f64;
    let of =
        |c: usize| src.iter().enumerate().filter(move |(i, _)| channel_of(shape, *i) == c).map(|(_, x)| *x);
    let mean: Vec<f64> = (0..shape.channels).map(|c| of(c).sum::<f64>() / count).collect();
    let var =
        (0..shape.channels).map(|c| of(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>() / count).collect();
    (mean, var)
}

fn oracle(
    shape: &PlaneShape,
    src: &[f64],
    mean: &[f64],
    var: &[f64],
    gamma: &[f64],
    beta: &[f64],
) -> Vec<f64> {
    (src.iter().enumerate())
        .map(|(i, x)| {
            let c = channel_of(shape, i);
            gamma[c] * (x - mean[c]) / (var[c] + f64::from(EPS)).sqrt() + beta[c]
        })
        .collect()
}

struct Case {
    shape: PlaneShape,
    src: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    grad_dst: Vec<f32>,
}

fn case(random: &mut Random, shape: PlaneShape) -> Case {
    let mut src = random.values(shape.len(), 2.0);
    for (i, x) in src.iter_mut().enumerate() {
        *x += 3.0 * channel_of(&shape, i) as f32;
    }
    let (gamma, beta) = (random.values(shape.channels, 2.0), random.values(shape.channels, 2.0));
    Case { shape, src, gamma, beta, grad_dst: random.values(shape.len(), 1.0) }
}

fn measured(c: &Case) -> (Vec<f32>, Vec<f32>) {
    let n = c.shape.channels;
    let both = in_both(|par| {
        let (mut mean, mut var) = (vec![7.0; n], vec![7.0; n]);
        batch_norm_statistics(&c.shape, &c.src, &mut mean, &mut var, par);
        [mean, var].concat()
    });
    (both[..n].to_vec(), both[n..].to_vec())
}

#[test]
fn statistics_are_the_oracle() {
    let mut random = Random::new(1);
    for shape in shapes() {
        let c = case(&mut random, shape);
        let (mean, var) = measured(&c);
        let (wanted_mean, wanted_var) = statistics_oracle(&shape, &wide(&c.src));
        assert_close(&format!("mean of {shape:?}"), &mean, &wanted_mean, 1e-6);
        assert_close(&format!("variance of {shape:?}"), &var, &wanted_var, 2e-6);
    }
}

/// The mean of the squares less the square of the mean would lose every digit here.
#[test]
fn variance_far_from_zero_is_accurate() {
    let shape = PlaneShape { batch: 4, channels: 2, plane: 1000 };
    let src: Vec<f32> = Random::new(2).values(shape.len(), 0.125).iter().map(|x| 1000.0 + x).collect();
    let (mut mean, mut var) = (vec![0.0; 2], vec![0.0; 2]);
    batch_norm_statistics(&shape, &src, &mut mean, &mut var, Par::Serial);
    let (_, wanted) = statistics_oracle(&shape, &wide(&src));
    for (found, wanted) in var.iter().zip(wanted) {
        assert!((f64::from(*found) / wanted - 1.0).abs() < 1e-4, "{found}, wanted {wanted}");
    }
}

#[test]
fn result_is_the_oracle() {
    let mut random = Random::new(3);
    for shape in shapes() {
        let c = case(&mut random, shape);
        let (mean, var) = (random.values(shape.channels, 1.0), vec![0.3; shape.channels]);
        let wanted =
            oracle(&shape, &wide(&c.src), &wide(&mean), &wide(&var), &wide(&c.gamma), &wide(&c.beta));
        for relu in [false, true] {
            let found = in_both(|par| {
                let mut dst = vec![7.0; shape.len()];
                batch_norm(&shape, &c.src, &mean, &var, EPS, &c.gamma, &c.beta, relu, &mut dst, par);
                dst
            });
            let wanted: Vec<f64> = wanted.iter().map(|y| if relu { y.max(0.0) } else { *y }).collect();
            assert_close(&format!("{shape:?}, relu {relu}"), &found, &wanted, 1e-6);
        }
    }
}

/// By the input (through mean and variance), the scale and the shift.
#[test]
fn gradients_are_the_slopes() {
    let mut random = Random::new(4);
    for shape in shapes().into_iter().filter(|s| s.len() < 600) {
        let c = case(&mut random, shape);
        let (mean, var) = measured(&c);
        let n = shape.channels;
        let found = in_both(|par| {
            let mut all = vec![7.0; shape.len() + 2 * n];
            let (src, params) = all.split_at_mut(shape.len());
            let (gamma, beta) = params.split_at_mut(n);
            batch_norm_backward(
                &shape,
                &c.src,
                &mean,
                &var,
                EPS,
                &c.gamma,
                &c.grad_dst,
                src,
                gamma,
                beta,
                par,
            );
            all
        });
        let wanted = |src: &[f64], gamma: &[f64], beta: &[f64]| {
            let (mean, var) = statistics_oracle(&shape, src);
            oracle(&shape, src, &mean, &var, gamma, beta)
        };
        let (src, gamma, beta, grad) = (wide(&c.src), wide(&c.gamma), wide(&c.beta), wide(&c.grad_dst));
        // With two elements a channel the result hardly depends on the input: what is left of the gradient is noise.
        let by_src = numeric_gradient(&src, &grad, |x| wanted(x, &gamma, &beta));
        assert_close(&format!("src of {shape:?}"), &found[..shape.len()], &by_src, 1e-5);
        let by_gamma = numeric_gradient(&gamma, &grad, |x| wanted(&src, x, &beta));
        assert_close(&format!("gamma of {shape:?}"), &found[shape.len()..][..n], &by_gamma, 1e-5);
        let by_beta = numeric_gradient(&beta, &grad, |x| wanted(&src, &gamma, x));
        assert_close(&format!("beta of {shape:?}"), &found[shape.len() + n..], &by_beta, 1e-5);
    }
}

/// Sums over many elements, where single precision alone would drift.
#[test]
fn gradients_of_large_maps_are_accurate() {
    let shape = PlaneShape { batch: 8, channels: 2, plane: 10_000 };
    let c = case(&mut Random::new(5), shape);
    let (mean, var) = measured(&c);
    let (mut grad_src, mut gamma, mut beta) = (vec![0.0; shape.len()], vec![0.0; 2], vec![0.0; 2]);
    batch_norm_backward(
        &shape,
        &c.src,
        &mean,
        &var,
        EPS,
        &c.gamma,
        &c.grad_dst,
        &mut grad_src,
        &mut gamma,
        &mut beta,
        Par::Rayon,
    );
    for channel in 0..2 {
        let of = |x: &[f32]| -> Vec<f64> {
            x.iter()
                .enumerate()
                .filter(|(i, _)| channel_of(&shape, *i) == channel)
                .map(|(_, &x)| f64::from(x))
                .collect()
        };
        let (src, grad) = (of(&c.src), of(&c.grad_dst));
        let deviation = f64::from(var[channel] + EPS).sqrt();
        let wanted: f64 =
            src.iter().zip(&grad).map(|(x, g)| g * (x - f64::from(mean[channel])) / deviation).sum();
        assert!((f64::from(gamma[channel]) - wanted).abs() < 1e-3, "{}, wanted {wanted}", gamma[channel]);
        assert!((f64::from(beta[channel]) - grad.iter().sum::<f64>()).abs() < 1e-3);
    }
}
