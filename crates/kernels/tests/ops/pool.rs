//! Pooling against loops over padded maps in `f64`.

use crate::check::{Random, assert_close, bits, in_both, numeric_gradient, wide};
use cofilter_kernels::{
    PoolShape, adaptive_avg_pool, adaptive_avg_pool_backward, avg_pool, avg_pool_backward, max_pool,
    max_pool_backward,
};

/// Windows along one axis as Caffe and PyTorch count them.
fn windows(len: usize, k: usize, s: usize, p: usize, ceil: bool) -> usize {
    let room = (len + 2 * p).saturating_sub(k) as f64 / s as f64;
    let mut n = 1 + if ceil { room.ceil() } else { room.floor() } as usize;
    if ceil && (n - 1) * s >= len + p {
        n -= 1;
    }
    n
}

fn shape(
    planes: usize,
    in_size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    ceil: bool,
) -> PoolShape {
    let out = |a: usize| windows(in_size[a], kernel[a], stride[a], padding[a], ceil);
    PoolShape { planes, in_size, out_size: [out(0), out(1)], kernel, stride, padding }
}

/// Every way the zoo pools, and what is odd about windows: clipped, gaps, wider than the map, one column.
fn table() -> Vec<PoolShape> {
    vec![
        shape(3, [6, 8], [2, 2], [2, 2], [0, 0], false),
        shape(3, [7, 9], [2, 2], [2, 2], [0, 0], false),
        shape(2, [7, 9], [2, 2], [2, 2], [0, 0], true),
        shape(2, [8, 11], [3, 3], [2, 2], [0, 0], true),
        shape(2, [55, 55], [3, 3], [2, 2], [0, 0], true),
        shape(2, [8, 7], [3, 3], [2, 2], [1, 1], true),
        shape(2, [112, 30], [3, 3], [2, 2], [1, 1], false),
        shape(2, [14, 14], [3, 3], [1, 1], [1, 1], false),
        shape(2, [5, 7], [2, 2], [2, 2], [1, 1], true),
        shape(2, [2, 3], [4, 5], [3, 2], [0, 0], true),
        shape(2, [9, 8], [2, 1], [3, 2], [0, 0], false),
        shape(2, [14, 14], [5, 5], [3, 3], [0, 0], true),
        shape(2, [9, 8], [4, 3], [3, 2], [1, 0], true),
        shape(4, [7, 5], [7, 5], [1, 1], [0, 0], false),
        shape(5, [1, 1], [1, 1], [1, 1], [0, 0], false),
        shape(1, [3, 300], [3, 3], [2, 2], [1, 1], true),
        shape(1, [1, 1], [3, 3], [2, 2], [2, 2], true),
    ]
}

fn random_shapes(random: &mut Random, count: usize) -> Vec<PoolShape> {
    let mut shapes = Vec::new();
    while shapes.len() < count {
        let mut axis = || {
            let kernel = random.pick(1, 5);
            (random.pick(1, 12), kernel, random.pick(1, 4), random.pick(0, kernel - 1))
        };
        let ((h, kh, sh, ph), (w, kw, sw, pw)) = (axis(), axis());
        let ceil = random.pick(0, 1) == 1;
        if ceil || (h + 2 * ph >= kh && w + 2 * pw >= kw) {
            shapes.push(shape(random.pick(1, 4), [h, w], [kh, kw], [sh, sw], [ph, pw], ceil));
        }
    }
    shapes
}

fn all_shapes(seed: u64) -> Vec<PoolShape> {
    let mut shapes = table();
    shapes.extend(random_shapes(&mut Random::new(seed), 100));
    shapes
}

/// The elements of window `(oy, ox)` of the padded map: position in the map, or `None` for padding.
fn window(shape: &PoolShape, oy: usize, ox: usize) -> Vec<Option<usize>> {
    let [h, w] = shape.in_size;
    let mut cells = Vec::new();
    for i in 0..shape.kernel[0] {
        for j in 0..shape.kernel[1] {
            let (y, x) = (oy * shape.stride[0] + i, ox * shape.stride[1] + j);
            let ([ph, pw], inside) =
                (shape.padding, |at: usize, p: usize, len: usize| at >= p && at < p + len);
            if inside(y, ph, h) && inside(x, pw, w) {
                cells.push(Some((y - ph) * w + x - pw));
            } else if y < h + 2 * ph && x < w + 2 * pw {
                cells.push(None);
            }
        }
    }
    cells
}

fn over_windows<T>(shape: &PoolShape, src: &[f64], value: impl Fn(&[f64], &[Option<usize>]) -> T) -> Vec<T> {
    let mut dst = Vec::new();
    for plane in src.chunks(shape.in_size[0] * shape.in_size[1]) {
        for oy in 0..shape.out_size[0] {
            for ox in 0..shape.out_size[1] {
                dst.push(value(plane, &window(shape, oy, ox)));
            }
        }
    }
    dst
}

fn max_oracle(shape: &PoolShape, src: &[f64]) -> Vec<(f64, u32)> {
    over_windows(shape, src, |plane, cells| {
        let cells: Vec<usize> = cells.iter().flatten().copied().collect();
        let best = cells.iter().map(|&i| plane[i]).fold(f64::NEG_INFINITY, f64::max);
        let won = |&&i: &&usize| plane[i].is_nan() || plane[i] == best;
        let nan = cells.iter().find(|&&i| plane[i].is_nan());
        let at = *nan.unwrap_or_else(|| cells.iter().find(won).unwrap());
        (plane[at], at as u32)
    })
}

fn avg_oracle(shape: &PoolShape, count_padding: bool, src: &[f64]) -> Vec<f64> {
    over_windows(shape, src, |plane, cells| {
        let real: Vec<usize> = cells.iter().flatten().copied().collect();
        let count = if count_padding { cells.len() } else { real.len() };
        real.iter().map(|&i| plane[i]).sum::<f64>() / count as f64
    })
}

#[test]
fn max_is_the_oracle_exactly() {
    let mut random = Random::new(1);
    for shape in all_shapes(2) {
        // Few values, so that windows tie; -inf, NaN and both zeros among them.
        let mut src = random.values(shape.src_len(), 2.0);
        if random.pick(0, 1) == 1 {
            for x in &mut src {
                *x = [x.round(), x.round(), x.round(), f32::NEG_INFINITY, f32::NAN, -0.0][random.pick(0, 5)];
            }
        }
        let wanted = max_oracle(&shape, &wide(&src));
        let mut argmax = vec![u32::MAX; shape.dst_len()];
        let mut dst = vec![0.5; shape.dst_len()];
        let plain = in_both(|par| {
            max_pool(&shape, &src, &mut dst, None, par);
            dst.clone()
        });
        let indexed = in_both(|par| {
            let mut dst = vec![0.5; shape.dst_len()];
            max_pool(&shape, &src, &mut dst, Some(&mut argmax), par);
            dst
        });
        assert_eq!(bits(&plain), bits(&indexed), "{shape:?}");
        for (i, ((value, at), (wanted, wanted_at))) in plain.iter().zip(&argmax).zip(&wanted).enumerate() {
            assert!(
                f64::from(*value) == *wanted || (value.is_nan() && wanted.is_nan()),
                "{shape:?}: {i}: {value}, {wanted}"
            );
            assert_eq!(at, wanted_at, "{shape:?}: winner of {i}");
        }
    }
}

#[test]
fn max_gradient_goes_to_the_winner() {
    let mut random = Random::new(3);
    for shape in all_shapes(4) {
        let src = random.values(shape.src_len(), 1.0);
        let grad_dst = random.values(shape.dst_len(), 1.0);
        let mut argmax = vec![0; shape.dst_len()];
        let mut dst = vec![0.0; shape.dst_len()];
        max_pool(&shape, &src, &mut dst, Some(&mut argmax), cofilter_kernels::Par::Serial);
        let found = in_both(|par| {
            let mut grad_src = vec![7.0; shape.src_len()];
            max_pool_backward(&shape, &argmax, &grad_dst, &mut grad_src, par);
            grad_src
        });
        let plane = shape.in_size[0] * shape.in_size[1];
        let mut wanted = vec![0.0; src.len()];
        let out_plane = shape.out_size[0] * shape.out_size[1];
        for (i, ((_, at), &g)) in max_oracle(&shape, &wide(&src)).iter().zip(&grad_dst).enumerate() {
            wanted[i / out_plane * plane + *at as usize] += f64::from(g);
        }
        assert_close(&format!("{shape:?}"), &found, &wanted, 1e-6);
    }
}

#[test]
fn max_gradient_is_the_slope() {
    let mut random = Random::new(5);
    for shape in table().into_iter().filter(|s| s.src_len() < 300) {
        let (src, grad_dst) = (random.values(shape.src_len(), 1.0), random.values(shape.dst_len(), 1.0));
        let mut argmax = vec![0; shape.dst_len()];
        let mut grad_src = vec![7.0; shape.src_len()];
        let mut dst = vec![0.0; shape.dst_len()];
        max_pool(&shape, &src, &mut dst, Some(&mut argmax), cofilter_kernels::Par::Serial);
        max_pool_backward(&shape, &argmax, &grad_dst, &mut grad_src, cofilter_kernels::Par::Serial);
        let wanted = numeric_gradient(&wide(&src), &wide(&grad_dst), |x| {
            max_oracle(&shape, x).into_iter().map(|(value, _)| value).collect()
        });
        assert_close(&format!("{shape:?}"), &grad_src, &wanted, 1e-5);
    }
}

#[test]
fn average_is_the_oracle() {
    let mut random = Random::new(6);
    for shape in all_shapes(7) {
        let src = random.values(shape.src_len(), 1.0);
        for count_padding in [false, true] {
            let found = in_both(|par| {
                let mut dst = vec![7.0; shape.dst_len()];
                avg_pool(&shape, count_padding, &src, &mut dst, par);
                dst
            });
            let what = format!("{shape:?}, count_padding {count_padding}");
            assert_close(&what, &found, &avg_oracle(&shape, count_padding, &wide(&src)), 1e-6);
        }
    }
}

#[test]
fn average_gradient_is_the_slope() {
    let mut random = Random::new(8);
    for shape in all_shapes(9).into_iter().filter(|s| s.src_len() < 300) {
        let (src, grad_dst) = (random.values(shape.src_len(), 1.0), random.values(shape.dst_len(), 1.0));
        for count_padding in [false, true] {
            let found = in_both(|par| {
                let mut grad_src = vec![7.0; shape.src_len()];
                avg_pool_backward(&shape, count_padding, &grad_dst, &mut grad_src, par);
                grad_src
            });
            let wanted =
                numeric_gradient(&wide(&src), &wide(&grad_dst), |x| avg_oracle(&shape, count_padding, x));
            assert_close(&format!("{shape:?}, count_padding {count_padding}"), &found, &wanted, 1e-6);
        }
    }
}

/// The gradient has the same sum as it had before, wide rows included.
#[test]
fn average_gradient_of_wide_rows_is_the_transpose() {
    let mut random = Random::new(10);
    for shape in
        [shape(2, [5, 300], [3, 3], [2, 2], [1, 1], true), shape(2, [4, 301], [2, 4], [1, 1], [1, 2], false)]
    {
        let (src, grad_dst) = (random.values(shape.src_len(), 1.0), random.values(shape.dst_len(), 1.0));
        let mut grad_src = vec![7.0; shape.src_len()];
        avg_pool_backward(&shape, true, &grad_dst, &mut grad_src, cofilter_kernels::Par::Serial);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let forward = dot(&avg_oracle(&shape, true, &wide(&src)), &wide(&grad_dst));
        let backward = dot(&wide(&src), &wide(&grad_src));
        assert!(
            (forward - backward).abs() < 1e-5 * forward.abs().max(1.0),
            "{shape:?}: {forward}, {backward}"
        );
    }
}

const ADAPTIVE: [([usize; 2], [usize; 2]); 8] = [
    ([14, 14], [4, 4]),
    ([7, 6], [1, 1]),
    ([7, 5], [3, 2]),
    ([3, 4], [5, 4]),
    ([6, 6], [6, 6]),
    ([1, 9], [1, 2]),
    ([56, 57], [1, 1]),
    ([13, 13], [6, 6]),
];

fn adaptive_oracle(in_size: [usize; 2], out_size: [usize; 2], src: &[f64]) -> Vec<f64> {
    let range = |i: usize, len: usize, n: usize| {
        let (start, end) = ((i * len) as f64 / n as f64, ((i + 1) * len) as f64 / n as f64);
        start.floor() as usize..end.ceil() as usize
    };
    let mut dst = Vec::new();
    for plane in src.chunks(in_size[0] * in_size[1]) {
        for i in 0..out_size[0] {
            for j in 0..out_size[1] {
                let mut values = Vec::new();
                for y in range(i, in_size[0], out_size[0]) {
                    for x in range(j, in_size[1], out_size[1]) {
                        values.push(plane[y * in_size[1] + x]);
                    }
                }
                dst.push(values.iter().sum::<f64>() / values.len() as f64);
            }
        }
    }
    dst
}

#[test]
fn adaptive_average_is_the_oracle_and_its_gradient_the_slope() {
    let (planes, mut random) = (3, Random::new(11));
    for (in_size, out_size) in ADAPTIVE {
        let src = random.values(planes * in_size[0] * in_size[1], 1.0);
        let grad_dst = random.values(planes * out_size[0] * out_size[1], 1.0);
        let what = format!("{in_size:?} to {out_size:?}");
        let found = in_both(|par| {
            let mut dst = vec![7.0; grad_dst.len()];
            adaptive_avg_pool(planes, in_size, out_size, &src, &mut dst, par);
            dst
        });
        assert_close(&what, &found, &adaptive_oracle(in_size, out_size, &wide(&src)), 1e-6);
        if src.len() > 1000 {
            continue;
        }
        let found = in_both(|par| {
            let mut grad_src = vec![7.0; src.len()];
            adaptive_avg_pool_backward(planes, in_size, out_size, &grad_dst, &mut grad_src, par);
            grad_src
        });
        let wanted =
            numeric_gradient(&wide(&src), &wide(&grad_dst), |x| adaptive_oracle(in_size, out_size, x));
        assert_close(&what, &found, &wanted, 1e-6);
    }
}
