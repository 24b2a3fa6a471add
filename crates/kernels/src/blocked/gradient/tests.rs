use super::*;
use crate::blocked::testing::{check_zeros, noise, pack, unpack};
use crate::{LrnShape, PlaneShape, PoolShape};
use std::ops::Range;

const IMAGES: usize = 3;

fn packed(view: &View, dense: &[f32]) -> Vec<f32> {
    let mut memory = vec![f32::NAN; view.memory_len(IMAGES)];
    pack(view, IMAGES, dense, &mut memory);
    memory
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * expected.abs().max(1.0), "{found} {expected}");
    }
}

/// The same bits from one thread and from many.
fn same(run: impl Fn(Par) -> Vec<Vec<f32>> + Sync) -> Vec<Vec<f32>> {
    let expected = run(Par::Serial);
    for threads in [2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| run(Par::Rayon)), expected);
    }
    expected
}

/// Against the kernels for dense maps, which are compared with the formulas in their own tests.
#[test]
fn batch_norm_is_that_of_dense_maps() {
    for (segments, size) in [(vec![16], [5, 7]), (vec![3, 20], [40, 70]), (vec![1], [1, 1])] {
        let (from, to) =
            (View::blocked(0, &segments, size, [1, 2]), View::blocked(0, &segments, size, [2, 0]));
        let channels = from.channels();
        let plane = size[0] * size[1];
        let shape = PlaneShape { batch: IMAGES, channels, plane };
        let x: Vec<f32> = noise(shape.len(), 1).iter().map(|x| 3.0 * x + 50.0).collect();
        let g = noise(shape.len(), 2);
        let (gamma, beta) = (noise(channels, 3), noise(channels, 4));
        let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
        crate::batch_norm_statistics(&shape, &x, &mut mean, &mut var, Par::Serial);
        let src = packed(&from, &x);
        let found = same(|par| {
            let (mut mean, mut var) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            // In whichever pieces.
            let stride = from.image_stride;
            let mut moments = BatchNorm::moments(&from, 1, &src[..stride], par);
            moments.extend(BatchNorm::moments(&from, IMAGES - 1, &src[stride..], par));
            BatchNorm::statistics(&from, &moments, &mut mean, &mut var);
            vec![mean, var]
        });
        close(&found[0], &mean, 1e-6);
        close(&found[1], &var, 1e-5);
        for relu in [false, true] {
            let norm = BatchNorm { mean: &mean, var: &var, eps: 1e-5, gamma: &gamma, beta: &beta, relu };
            let mut expected = vec![0.0; shape.len()];
            crate::batch_norm(&shape, &x, &mean, &var, 1e-5, &gamma, &beta, relu, &mut expected, Par::Serial);
            let found = same(|par| {
                let mut dst = vec![f32::NAN; to.memory_len(IMAGES)];
                norm.forward(&from, IMAGES, &src, None, &to, &mut dst, par);
                vec![dst]
            });
            check_zeros(&to, IMAGES, &found[0]);
            close(&unpack(&to, IMAGES, &found[0]), &expected, 0.0);
            let grad = packed(&to, &g);
            // With a summand.
            let plain = BatchNorm { relu: false, ..norm };
            let (mut sum, mut dst) = (vec![0.0; grad.len()], vec![f32::NAN; grad.len()]);
            plain.forward(&from, IMAGES, &src, None, &to, &mut dst, Par::Serial);
            crate::add(&[&dst, &grad], relu, &mut sum, Par::Serial);
            let found = same(|par| {
                let mut dst = vec![f32::NAN; to.memory_len(IMAGES)];
                norm.forward(&from, IMAGES, &src, Some(&grad), &to, &mut dst, par);
                vec![dst]
            });
            close(&found[0], &sum, 0.0);
            let mut masked = g.clone();
            if relu {
                crate::relu_backward(&expected, &g, &mut masked, Par::Serial);
            }
            let (mut dx, mut dgamma, mut dbeta) =
                (vec![0.0; shape.len()], vec![0.0; channels], vec![0.0; channels]);
            crate::batch_norm_backward(
                &shape,
                &x,
                &mean,
                &var,
                1e-5,
                &gamma,
                &masked,
                &mut dx,
                &mut dgamma,
                &mut dbeta,
                Par::Serial,
            );
            let found = same(|par| {
                let mut dx = vec![f32::NAN; from.memory_len(IMAGES)];
                let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
                let (one, other) = (from.image_stride, to.image_stride);
                let pieces = [(1, 0), (IMAGES - 1, 1)];
                let mut sums = Vec::new();
                for (images, at) in pieces {
                    let (src, grad) =
                        (&src[at * one..][..images * one], &grad[at * other..][..images * other]);
                    sums.extend(norm.gradient_sums(&from, images, src, &to, grad, par));
                }
                norm.gradients(&from, &sums, &mut dgamma, &mut dbeta);
                for (images, at) in pieces {
                    norm.backward_src(
                        IMAGES,
                        &from,
                        images,
                        &src[at * one..][..images * one],
                        &to,
                        &grad[at * other..][..images * other],
                        [&dgamma, &dbeta],
                        &mut dx[at * one..][..images * one],
                        par,
                    );
                }
                vec![dx, dgamma, dbeta]
            });
            check_zeros(&from, IMAGES, &found[0]);
            close(&unpack(&from, IMAGES, &found[0]), &dx, 1e-5);
            close(&found[1], &dgamma, 1e-4);
            close(&found[2], &dbeta, 1e-4);
        }
    }
}

#[test]
fn gradients_of_pooling_are_those_of_dense_maps() {
    let cases = [
        ([2, 2], [2, 2], [0, 0], [8, 10], [4, 5]),
        ([3, 3], [2, 2], [1, 1], [9, 8], [5, 4]),
        // Windows beyond the end, as Caffe rounds.
        ([3, 3], [2, 2], [0, 0], [8, 9], [4, 4]),
        ([3, 2], [1, 3], [1, 0], [7, 8], [7, 3]),
    ];
    for (kernel, stride, padding, size, out) in cases {
        for segments in [vec![16], vec![5, 18]] {
            let (from, to) =
                (View::blocked(0, &segments, size, [1, 2]), View::blocked(0, &segments, out, [0, 1]));
            let shape = PoolShape {
                planes: IMAGES * from.channels(),
                in_size: size,
                out_size: out,
                kernel,
                stride,
                padding,
            };
            let len = |size: [usize; 2]| shape.planes * size[0] * size[1];
            // Few different numbers, so that windows hold the largest one several times.
            let x: Vec<f32> = noise(len(size), 1).iter().map(|x| (4.0 * x).round()).collect();
            let g = noise(len(out), 2);
            let pooling = Pooling { kernel, stride, padding };
            let grad = packed(&to, &g);
            let mut y = vec![0.0; len(out)];
            let mut places = vec![0; len(out)];
            let mut expected = vec![0.0; len(size)];
            crate::max_pool(&shape, &x, &mut y, Some(&mut places), Par::Serial);
            crate::max_pool_backward(&shape, &places, &g, &mut expected, Par::Serial);
            let (src, dst) = (packed(&from, &x), packed(&to, &y));
            let found = same(|par| {
                let mut dx = vec![f32::NAN; from.memory_len(IMAGES)];
                pooling.max_backward(&from, IMAGES, &src, &to, &dst, &grad, &mut dx, par);
                vec![dx]
            });
            check_zeros(&from, IMAGES, &found[0]);
            close(&unpack(&from, IMAGES, &found[0]), &expected, 1e-6);
            for count_padding in [false, true] {
                crate::avg_pool_backward(&shape, count_padding, &g, &mut expected, Par::Serial);
                let found = same(|par| {
                    let mut dx = vec![f32::NAN; from.memory_len(IMAGES)];
                    pooling.avg_backward(count_padding, &from, IMAGES, &to, &grad, &mut dx, par);
                    vec![dx]
                });
                check_zeros(&from, IMAGES, &found[0]);
                close(&unpack(&from, IMAGES, &found[0]), &expected, 1e-6);
            }
        }
    }
}

/// The formulas of batch normalisation, in double precision: result, and gradients of input, gamma and beta.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
fn formulas(
    channels: usize,
    plane: usize,
    x: &[f32],
    g: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f64,
    relu: bool,
) -> [Vec<f64>; 4] {
    let mut found = [vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]];
    for c in 0..channels {
        let at: Vec<usize> =
            (0..IMAGES).flat_map(|n| (0..plane).map(move |p| (n * channels + c) * plane + p)).collect();
        let n = at.len() as f64;
        let mean = at.iter().map(|i| f64::from(x[*i])).sum::<f64>() / n;
        let var = at.iter().map(|i| (f64::from(x[*i]) - mean).powi(2)).sum::<f64>() / n;
        let (root, gamma, beta) = ((var + eps).sqrt(), f64::from(gamma[c]), f64::from(beta[c]));
        let hat = |i: usize| (f64::from(x[i]) - mean) / root;
        let open = |i: usize| if relu && gamma * hat(i) + beta <= 0.0 { 0.0 } else { f64::from(g[i]) };
        for &i in &at {
            let y = gamma * hat(i) + beta;
            found[0][i] = if relu { y.max(0.0) } else { y };
            found[2][c] += open(i) * hat(i);
            found[3][c] += open(i);
        }
        for &i in &at {
            found[1][i] = gamma / root * (open(i) - found[3][c] / n - hat(i) * found[2][c] / n);
        }
    }
    found
}

#[test]
fn batch_norm_is_that_of_the_formulas() {
    for (segments, size) in [(vec![16], [5, 7]), (vec![3, 20], [12, 70])] {
        let view = View::blocked(0, &segments, size, [1, 0]);
        let (channels, plane) = (view.channels(), size[0] * size[1]);
        let x = noise(IMAGES * channels * plane, 1);
        let g = noise(x.len(), 2);
        let (gamma, beta) = (noise(channels, 3), noise(channels, 4));
        let (src, grad) = (packed(&view, &x), packed(&view, &g));
        for relu in [false, true] {
            let expected = formulas(channels, plane, &x, &g, &gamma, &beta, f64::from(1e-5_f32), relu);
            let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
            let moments = BatchNorm::moments(&view, IMAGES, &src, Par::Serial);
            BatchNorm::statistics(&view, &moments, &mut mean, &mut var);
            let norm = BatchNorm { mean: &mean, var: &var, eps: 1e-5, gamma: &gamma, beta: &beta, relu };
            let (mut y, mut dx) = (vec![f32::NAN; src.len()], vec![f32::NAN; src.len()]);
            let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            norm.forward(&view, IMAGES, &src, None, &view, &mut y, Par::Serial);
            let sums = norm.gradient_sums(&view, IMAGES, &src, &view, &grad, Par::Serial);
            norm.gradients(&view, &sums, &mut dgamma, &mut dbeta);
            let sums = [&*dgamma, &*dbeta];
            norm.backward_src(IMAGES, &view, IMAGES, &src, &view, &grad, sums, &mut dx, Par::Serial);
            let found = [unpack(&view, IMAGES, &y), unpack(&view, IMAGES, &dx), dgamma, dbeta];
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= 1e-5 * expected.abs().max(1.0), "{found}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn a_window_with_a_nan_loses_its_gradient_and_no_other_does() {
    let (from, to) = (View::blocked(0, &[2], [2, 4], [0, 0]), View::blocked(0, &[2], [1, 2], [0, 0]));
    let mut x = noise(IMAGES * 16, 1);
    x[1] = f32::NAN;
    let src = packed(&from, &x);
    let mut dst = vec![0.0; to.memory_len(IMAGES)];
    let read = View { place: crate::blocked::Place::Images, ..from.clone() };
    crate::blocked::Step::max_pool(&read, &to, [2, 2], [2, 2], [0, 0]).run(
        IMAGES,
        &src,
        &mut dst,
        Par::Serial,
    );
    let grad = packed(&to, &[1.0; IMAGES * 4]);
    let mut dx = vec![f32::NAN; from.memory_len(IMAGES)];
    let pooling = Pooling { kernel: [2, 2], stride: [2, 2], padding: [0, 0] };
    pooling.max_backward(&from, IMAGES, &src, &to, &dst, &grad, &mut dx, Par::Serial);
    let dx = unpack(&from, IMAGES, &dx);
    assert_eq!(dx.iter().sum::<f32>(), (IMAGES * 4 - 1) as f32);
    assert_eq!([dx[0], dx[1], dx[4], dx[5]], [0.0; 4]);
}

/// The formulas of local response normalisation, in double precision: the result, and the gradient by the sum of the products of
/// the gradients of all results with what they change.
fn lrn_formulas(shape: &LrnShape, within: bool, x: &[f32], g: &[f32]) -> [Vec<f64>; 2] {
    let [height, width] = shape.size;
    let half = shape.local_size / 2;
    let count = if within { shape.local_size.pow(2) } else { shape.local_size };
    let weight = f64::from(shape.alpha) / count as f64;
    let beta = f64::from(shape.beta);
    let places = |i: usize| (i / width / height, i / width % height, i % width);
    let image = shape.channels * height * width;
    let near = |i: usize, j: usize| {
        let ((c, y, x), (d, z, w)) = (places(i), places(j));
        if within {
            c == d && y.abs_diff(z) <= half && x.abs_diff(w) <= half
        } else {
            (y, x) == (z, w) && c.abs_diff(d) <= half
        }
    };
    let mut found = [Vec::new(), vec![0.0; x.len()]];
    for (n, x) in x.chunks_exact(image).enumerate() {
        for i in 0..image {
            let around: Vec<usize> = (0..image).filter(|j| near(i, *j)).collect();
            let squares: f64 = around.iter().map(|j| f64::from(x[*j]).powi(2)).sum();
            let base = f64::from(shape.k) + weight * squares;
            found[0].push(f64::from(x[i]) * base.powf(-beta));
            let g = f64::from(g[n * image + i]);
            found[1][n * image + i] += g * base.powf(-beta);
            for j in around {
                let slope = f64::from(x[i]) * base.powf(-beta - 1.0) * 2.0 * weight * f64::from(x[j]);
                found[1][n * image + j] -= g * beta * slope;
            }
        }
    }
    found
}

#[test]
fn local_response_normalisation_is_that_of_the_formulas() {
    let cases = [
        (vec![16], [5, 7], 3, 0.75, 1.0),
        (vec![40], [3, 4], 5, 0.75, 2.0),
        (vec![3, 20], [4, 3], 5, 0.5, 1.0),
        (vec![5], [2, 2], 9, 0.6, 1.0),
        (vec![33], [1, 1], 1, 1.0, 0.5),
    ];
    for (segments, size, local_size, beta, k) in cases {
        let (from, to) =
            (View::blocked(0, &segments, size, [1, 2]), View::blocked(0, &segments, size, [0, 1]));
        let shape =
            LrnShape { batch: IMAGES, channels: from.channels(), size, local_size, alpha: 0.8, beta, k };
        let norm = LocalNorm { local_size, alpha: 0.8, beta, k };
        let (x, g) = (noise(shape.len(), 1), noise(shape.len(), 2));
        let (src, grad) = (packed(&from, &x), packed(&to, &g));
        let read = View { place: crate::blocked::Place::Images, ..from.clone() };
        for within in [false, true] {
            let expected = lrn_formulas(&shape, within, &x, &g);
            let found = same(|par| {
                let step = match within {
                    true => crate::blocked::Step::lrn_within(&read, &to, local_size, 0.8, beta, k),
                    false => crate::blocked::Step::lrn_across(&read, &to, local_size, 0.8, beta, k),
                };
                let mut scratch = vec![f32::NAN; 7 * step.scratch_len() + crate::blocked::Step::SCRATCH_MORE];
                let mut dst = vec![f32::NAN; to.memory_len(IMAGES)];
                step.run_in(IMAGES, &src, &mut dst, &mut scratch, par);
                let mut dx = vec![f32::NAN; from.memory_len(IMAGES)];
                match within {
                    true => norm.within_backward(&from, IMAGES, &src, &to, &grad, &mut dx, par),
                    false => norm.across_backward(&from, IMAGES, &src, &to, &grad, &mut dx, par),
                }
                vec![dst, dx]
            });
            check_zeros(&to, IMAGES, &found[0]);
            check_zeros(&from, IMAGES, &found[1]);
            for (found, expected) in
                [unpack(&to, IMAGES, &found[0]), unpack(&from, IMAGES, &found[1])].iter().zip(&expected)
            {
                for (found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= 3e-6, "{norm:?} within {within}: {found}, expected {expected}");
                }
            }
        }
    }
}

/// Against loops over channels; ranges that cut blocks, blocks that are whole, zeros before and behind.
#[test]
fn channels_are_put_together_and_taken_apart() {
    let size = [3, 5];
    let plane = size[0] * size[1];
    type Case<'a> = (&'a [(usize, Range<usize>)], usize, usize);
    let cases: [Case<'_>; 6] = [
        (&[(16, 0..16)], 8, 32),
        (&[(32, 8..24)], 0, 16),
        (&[(16, 0..16), (20, 0..20), (3, 0..3), (32, 0..32)], 0, 71),
        (&[(71, 16..36)], 0, 20),
        (&[(71, 36..39)], 0, 3),
        (&[(5, 1..4), (40, 7..31)], 3, 40),
    ];
    for (sources, before, channels) in cases {
        let to = View::blocked(0, &[channels], size, [1, 2]);
        let parts: Vec<_> = (sources.iter().enumerate())
            .map(|(i, (channels, range))| {
                let view = View::blocked(0, &[*channels], size, [0, i % 2]);
                (view, noise(IMAGES * channels * plane, i as u32 + 1), range.clone())
            })
            .collect();
        let memory: Vec<Vec<f32>> = parts.iter().map(|(view, x, _)| packed(view, x)).collect();
        let found = same(|par| {
            let mut dst = vec![f32::NAN; to.memory_len(IMAGES)];
            let sources: Vec<Channels<'_>> = (parts.iter().zip(&memory))
                .map(|((view, _, range), src)| Channels { view, src, range: range.clone() })
                .collect();
            gather_channels(&sources, before, &to, IMAGES, &mut dst, par);
            vec![dst]
        });
        check_zeros(&to, IMAGES, &found[0]);
        let mut expected = vec![0.0; IMAGES * channels * plane];
        for image in 0..IMAGES {
            let mut at = before;
            for (view, x, range) in &parts {
                for channel in range.clone() {
                    let of = (image * view.channels() + channel) * plane;
                    let to = (image * channels + at) * plane;
                    expected[to..to + plane].copy_from_slice(&x[of..of + plane]);
                    at += 1;
                }
            }
        }
        close(&unpack(&to, IMAGES, &found[0]), &expected, 0.0);
    }
}
