use super::*;
use crate::blocked::testing::{check_zeros, noise, pack, unpack};
use crate::{PlaneShape, PoolShape};

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
                norm.forward(&from, IMAGES, &src, &to, &mut dst, par);
                vec![dst]
            });
            check_zeros(&to, IMAGES, &found[0]);
            close(&unpack(&to, IMAGES, &found[0]), &expected, 0.0);
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
            let grad = packed(&to, &g);
            let found = same(|par| {
                let mut dx = vec![f32::NAN; from.memory_len(IMAGES)];
                let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
                norm.backward(&from, IMAGES, &src, &to, &grad, &mut dgamma, &mut dbeta, par);
                let (one, other) = (from.image_stride, to.image_stride);
                for (images, at) in [(1, 0), (IMAGES - 1, 1)] {
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
