//! Rectification and addition, element by element.

use crate::check::{Random, bits, in_both};
use cofilter_kernels::{add, relu, relu_backward};

/// Below, at and above the length that one thread takes at a time.
const LENGTHS: [usize; 6] = [0, 1, 7, 8192, 8193, 100_003];

#[test]
fn relu_is_exact() {
    for len in LENGTHS {
        let src = Random::new(1).values(len, 1.0);
        let found = in_both(|par| {
            let mut dst = vec![7.0; len];
            relu(&src, &mut dst, par);
            dst
        });
        let wanted: Vec<f32> = src.iter().map(|x| x.max(0.0)).collect();
        assert_eq!(bits(&found), bits(&wanted), "{len} elements");
    }
}

#[test]
fn relu_at_the_edges() {
    let src = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, f32::NAN];
    let mut dst = [7.0; 7];
    relu(&src, &mut dst, cofilter_kernels::Par::Serial);
    assert_eq!(bits(&dst[..6]), bits(&[0.0, 0.0, f32::INFINITY, 0.0, f32::MIN_POSITIVE, 0.0]));
    assert!(dst[6].is_nan());
}

#[test]
fn relu_gradient_is_zero_at_zero() {
    let mut grad_src = [7.0; 5];
    relu_backward(
        &[0.0, -0.0, 2.0, -1.0, 1e-30],
        &[3.0, 4.0, 5.0, 6.0, -8.0],
        &mut grad_src,
        cofilter_kernels::Par::Serial,
    );
    assert_eq!(grad_src, [0.0, 0.0, 5.0, 0.0, -8.0]);
}

#[test]
fn relu_gradient_is_exact() {
    for len in LENGTHS {
        let mut random = Random::new(2);
        let (dst, grad_dst) = (random.values(len, 1.0), random.values(len, 1.0));
        let found = in_both(|par| {
            let mut grad_src = vec![7.0; len];
            relu_backward(&dst, &grad_dst, &mut grad_src, par);
            grad_src
        });
        let wanted: Vec<f32> =
            dst.iter().zip(&grad_dst).map(|(y, g)| if *y > 0.0 { *g } else { 0.0 }).collect();
        assert_eq!(bits(&found), bits(&wanted), "{len} elements");
    }
}

#[test]
fn add_is_exact() {
    for len in LENGTHS {
        for count in 1..=4 {
            let mut random = Random::new(count as u64);
            let inputs: Vec<Vec<f32>> = (0..count).map(|_| random.values(len, 1.0)).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            for rectified in [false, true] {
                let found = in_both(|par| {
                    let mut dst = vec![7.0; len];
                    add(&inputs, rectified, &mut dst, par);
                    dst
                });
                let wanted: Vec<f32> = (0..len)
                    .map(|i| {
                        let sum = inputs[1..].iter().fold(inputs[0][i], |sum, x| sum + x[i]);
                        if rectified { sum.max(0.0) } else { sum }
                    })
                    .collect();
                assert_eq!(bits(&found), bits(&wanted), "{count} inputs of {len}, relu {rectified}");
            }
        }
    }
}
