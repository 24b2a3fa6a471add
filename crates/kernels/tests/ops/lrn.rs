//! Local response normalisation against the formula in `f64`.

use crate::check::{Random, assert_close, in_both, numeric_gradient, wide};
use cofilter_kernels::{LrnShape, Par, lrn_across, lrn_across_backward, lrn_within, lrn_within_backward};

type Forward = fn(&LrnShape, &[f32], &mut [f32], Par);
type Backward = fn(&LrnShape, &[f32], &[f32], &mut [f32], Par);

fn across_oracle(s: &LrnShape, src: &[f64]) -> Vec<f64> {
    let (plane, half) = (s.size[0] * s.size[1], s.local_size / 2);
    let mut dst = Vec::new();
    for image in src.chunks(s.channels * plane) {
        for c in 0..s.channels {
            for p in 0..plane {
                let mut sum = 0.0;
                for other in 0..s.channels {
                    if other.abs_diff(c) <= half {
                        sum += image[other * plane + p].powi(2);
                    }
                }
                let scale = f64::from(s.k) + f64::from(s.alpha) / s.local_size as f64 * sum;
                dst.push(image[c * plane + p] / scale.powf(f64::from(s.beta)));
            }
        }
    }
    dst
}

fn within_oracle(s: &LrnShape, src: &[f64]) -> Vec<f64> {
    let ([h, w], half) = (s.size, s.local_size / 2);
    let mut dst = Vec::new();
    for map in src.chunks(h * w) {
        for y in 0..h {
            for x in 0..w {
                let mut sum = 0.0;
                for v in 0..h {
                    for u in 0..w {
                        if v.abs_diff(y) <= half && u.abs_diff(x) <= half {
                            sum += map[v * w + u].powi(2);
                        }
                    }
                }
                let scale = f64::from(s.k) + f64::from(s.alpha) / (s.local_size * s.local_size) as f64 * sum;
                dst.push(map[y * w + x] / scale.powf(f64::from(s.beta)));
            }
        }
    }
    dst
}

/// Extents that fall on, below and above every tile, exponents of every form, neighbourhoods wider than the map.
fn table() -> Vec<(LrnShape, f32)> {
    let mut shapes = Vec::new();
    let extents =
        [(2, 9, [3, 4]), (1, 3, [8, 8]), (1, 1, [1, 1]), (3, 7, [1, 5]), (1, 2, [9, 7]), (1, 6, [5, 13])];
    let constants = [
        (5, 1e-4, 0.75, 1.0, 100.0),
        (3, 0.5, 0.5, 2.0, 1.0),
        (1, 1.0, 0.75, 1.0, 1.0),
        (9, 1.5, 0.65, 1.0, 1.0),
        (3, 0.75, 1.0, 0.5, 1.0),
        (131, 30.0, 0.75, 1.0, 1.0),
    ];
    for (batch, channels, size) in extents {
        for (local_size, alpha, beta, k, magnitude) in constants {
            shapes.push((LrnShape { batch, channels, size, local_size, alpha, beta, k }, magnitude));
        }
    }
    shapes
}

fn check_forward(forward: Forward, oracle: fn(&LrnShape, &[f64]) -> Vec<f64>, seed: u64) {
    let mut random = Random::new(seed);
    let large =
        LrnShape { batch: 2, channels: 40, size: [27, 27], local_size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 };
    for (shape, magnitude) in table().into_iter().chain([(large, 100.0)]) {
        let src = random.values(shape.len(), magnitude);
        let found = in_both(|par| {
            let mut dst = vec![7.0; shape.len()];
            forward(&shape, &src, &mut dst, par);
            dst
        });
        assert_close(&format!("{shape:?}"), &found, &oracle(&shape, &wide(&src)), 1e-6);
    }
}

fn check_backward(backward: Backward, oracle: fn(&LrnShape, &[f64]) -> Vec<f64>, seed: u64) {
    let mut random = Random::new(seed);
    for (shape, magnitude) in table() {
        let (src, grad_dst) = (random.values(shape.len(), magnitude), random.values(shape.len(), 1.0));
        let found = in_both(|par| {
            let mut grad_src = vec![7.0; shape.len()];
            backward(&shape, &src, &grad_dst, &mut grad_src, par);
            grad_src
        });
        let wanted = numeric_gradient(&wide(&src), &wide(&grad_dst), |x| oracle(&shape, x));
        assert_close(&format!("{shape:?}"), &found, &wanted, 1e-6);
    }
}

#[test]
fn across_is_the_oracle() {
    check_forward(lrn_across, across_oracle, 1);
}

#[test]
fn within_is_the_oracle() {
    check_forward(lrn_within, within_oracle, 2);
}

#[test]
fn across_gradient_is_the_slope() {
    check_backward(lrn_across_backward, across_oracle, 3);
}

#[test]
fn within_gradient_is_the_slope() {
    check_backward(lrn_within_backward, within_oracle, 4);
}

/// A sum that slides by adding and subtracting would remember the large value that has left the window.
#[test]
fn a_large_value_leaves_no_trace() {
    let across =
        LrnShape { batch: 1, channels: 64, size: [1, 3], local_size: 5, alpha: 1.0, beta: 0.75, k: 1.0 };
    let within = LrnShape { batch: 1, channels: 1, size: [3, 64], ..across };
    for (shape, run, oracle) in [
        (across, lrn_across as Forward, across_oracle as fn(&LrnShape, &[f64]) -> Vec<f64>),
        (within, lrn_within, within_oracle),
    ] {
        let mut src = Random::new(5).values(shape.len(), 0.5);
        src[1] = 1e6;
        let mut dst = vec![0.0; shape.len()];
        run(&shape, &src, &mut dst, Par::Serial);
        for (i, (&found, wanted)) in dst.iter().zip(oracle(&shape, &wide(&src))).enumerate() {
            assert!(
                (f64::from(found) - wanted).abs() <= 1e-6 * wanted.abs(),
                "{shape:?}: {i}: {found}, {wanted}"
            );
        }
    }
}
