//! Products and fully connected layers against f64 loops.

use cofilter_kernels::{MatRef, PackedLinear, Par, cpu_tier, gemm};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn row_major(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef { data, rows, cols, row_stride: cols, col_stride: 1 }
}

fn transposed(matrix: MatRef<'_>) -> MatRef<'_> {
    MatRef {
        rows: matrix.cols,
        cols: matrix.rows,
        row_stride: matrix.col_stride,
        col_stride: matrix.row_stride,
        ..matrix
    }
}

fn oracle(a: MatRef<'_>, b: MatRef<'_>) -> Vec<f64> {
    let at = |m: MatRef<'_>, i: usize, j: usize| f64::from(m.data[i * m.row_stride + j * m.col_stride]);
    let mut c = Vec::new();
    for i in 0..a.rows {
        c.extend((0..b.cols).map(|j| (0..a.cols).map(|k| at(a, i, k) * at(b, k, j)).sum::<f64>()));
    }
    c
}

fn assert_close(got: &[f32], expected: &[f64], depth: usize, what: &str) {
    assert_eq!(got.len(), expected.len());
    let tolerance = 2e-6 * ((depth + 1) as f64).sqrt() + 1e-7 * depth as f64;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let difference = (f64::from(got) - expected).abs();
        assert!(difference <= tolerance, "{what}[{i}] is {got}, expected {expected} ({})", cpu_tier());
    }
}

#[test]
fn products_match_the_definition_in_every_layout() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (rows, depth, cols) in
        [(1, 1, 1), (5, 7, 3), (64, 100, 130), (200, 40, 900), (33, 300, 49), (2, 2000, 2)]
    {
        let (a, b) = (random(&mut rng, rows * depth), random(&mut rng, depth * cols));
        for (a, b) in [
            (row_major(&a, rows, depth), row_major(&b, depth, cols)),
            (transposed(row_major(&a, depth, rows)), row_major(&b, depth, cols)),
            (row_major(&a, rows, depth), transposed(row_major(&b, cols, depth))),
            (transposed(row_major(&a, depth, rows)), transposed(row_major(&b, cols, depth))),
        ] {
            let expected = oracle(a, b);
            let mut c = vec![f32::NAN; rows * cols];
            gemm(a, b, false, &mut c, Par::Serial);
            assert_close(&c, &expected, depth, "c");
            let mut sum = c.clone();
            gemm(a, b, true, &mut sum, Par::Serial);
            assert_close(&sum, &expected.iter().map(|c| 2.0 * c).collect::<Vec<_>>(), 2 * depth, "c + c");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (rows, depth, cols) in [(384, 700, 169), (4, 3000, 1000), (1000, 3000, 4), (120, 130, 800)] {
        assert!(rows * depth * cols >= 1 << 20, "too small to be shared out");
        let (a, b) = (random(&mut rng, rows * depth), random(&mut rng, depth * cols));
        let bias = random(&mut rng, cols);
        let linear = PackedLinear::new(cols, depth, &b, Some(&bias));
        let run = |par: Par| {
            let (mut product, mut layer) = (vec![f32::NAN; rows * cols], vec![f32::NAN; rows * cols]);
            gemm(row_major(&a, rows, depth), row_major(&b, depth, cols), false, &mut product, par);
            linear.run(rows, &a, false, &mut layer, &mut [], par);
            [product, layer].map(|numbers| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>())
        };
        let serial = run(Par::Serial);
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| run(Par::Rayon)), serial, "{threads} threads, {rows}x{depth}x{cols}");
        }
    }
}

#[test]
fn packed_linear_matches_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut extents =
        vec![(1, 1, 1), (64, 800, 500), (64, 500, 10), (1, 800, 500), (3, 193, 49), (4, 9, 1000), (0, 3, 2)];
    extents.extend(
        (0..60).map(|_| (rng.random_range(1..20), rng.random_range(1..400), rng.random_range(1..120))),
    );
    for (batch, depth, outputs) in extents {
        let (src, weight) = (random(&mut rng, batch * depth), random(&mut rng, outputs * depth));
        let bias = random(&mut rng, outputs);
        let product = oracle(row_major(&src, batch, depth), transposed(row_major(&weight, outputs, depth)));
        for (with_bias, relu) in [(false, false), (true, false), (true, true)] {
            let linear = PackedLinear::new(outputs, depth, &weight, with_bias.then_some(&bias[..]));
            let expected: Vec<f64> = product
                .iter()
                .enumerate()
                .map(|(i, &sum)| {
                    let sum = if with_bias { sum + f64::from(bias[i % outputs]) } else { sum };
                    if relu { sum.max(0.0) } else { sum }
                })
                .collect();
            for par in [Par::Serial, Par::Rayon] {
                let mut dst = vec![f32::NAN; batch * outputs];
                linear.run(batch, &src, relu, &mut dst, &mut [], par);
                assert_close(&dst, &expected, depth, "linear");
            }
        }
    }
}

#[test]
fn a_linear_image_does_not_depend_on_its_batch() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (depth, outputs) = (430, 70);
    let (src, weight) = (random(&mut rng, 21 * depth), random(&mut rng, outputs * depth));
    let linear = PackedLinear::new(outputs, depth, &weight, None);
    let mut together = vec![f32::NAN; 21 * outputs];
    linear.run(21, &src, false, &mut together, &mut [], Par::Serial);
    for (src, together) in src.chunks(depth).zip(together.chunks(outputs)) {
        let mut alone = vec![f32::NAN; outputs];
        linear.run(1, src, false, &mut alone, &mut [], Par::Serial);
        assert_eq!(alone, together);
    }
}

#[test]
fn without_inputs_a_layer_is_its_bias() {
    let linear = PackedLinear::new(2, 0, &[], Some(&[1.5, -2.0]));
    let mut dst = [f32::NAN; 4];
    linear.run(2, &[], true, &mut dst, &mut [], Par::Serial);
    assert_eq!(dst, [1.5, 0.0, 1.5, 0.0]);
    let mut c = [3.0];
    gemm(row_major(&[], 1, 0), row_major(&[], 0, 1), true, &mut c, Par::Serial);
    assert_eq!(c, [3.0]);
    gemm(row_major(&[], 1, 0), row_major(&[], 0, 1), false, &mut c, Par::Serial);
    assert_eq!(c, [0.0]);
}

#[test]
#[should_panic(expected = "gemm: b needs 6 numbers, has 5")]
fn a_short_matrix_is_refused() {
    gemm(row_major(&[0.0; 4], 2, 2), row_major(&[0.0; 5], 2, 3), false, &mut [0.0; 6], Par::Serial);
}
