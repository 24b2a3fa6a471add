//! Every tier of this machine against f64 loops.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;

fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A random matrix: row-major, column-major, or with gaps in both directions.
fn matrix(rng: &mut ChaCha8Rng, rows: usize, cols: usize, layout: usize) -> (Vec<f32>, usize, usize) {
    let (row_stride, col_stride) = match layout % 3 {
        0 => (cols + layout, 1),
        1 => (1, rows + layout),
        _ => (2 * cols + 1, 2),
    };
    (
        random(rng, rows.max(1) * cols.max(1) * 2 + rows * (layout + 2) + cols * (layout + 2)),
        row_stride,
        col_stride,
    )
}

fn oracle(a: &MatRef<'_>, b: &MatRef<'_>, c: &[f32], accumulate: bool) -> Vec<f64> {
    let mut sum: Vec<f64> = c.iter().map(|&c| if accumulate { c.into() } else { 0.0 }).collect();
    for i in 0..a.rows {
        for j in 0..b.cols {
            for k in 0..a.cols {
                let left = a.data[i * a.row_stride + k * a.col_stride];
                let right = b.data[k * b.row_stride + j * b.col_stride];
                sum[i * b.cols + j] += f64::from(left) * f64::from(right);
            }
        }
    }
    sum
}

#[test]
fn every_tier_multiplies_as_the_loops() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut extents = vec![
        [1, 1, 1],
        [1, 1, 500],
        [8, 48, 192],
        [9, 49, 193],
        [16, 96, 385],
        [7, 15, 3],
        [130, 800, 5],
        [128, 2, 400],
        [0, 3, 4],
        [3, 0, 4],
        [3, 4, 0],
    ];
    extents.extend((0..40).map(|_| [1, 2, 3].map(|_| rng.random_range(1..70))));
    for tier in tier::available() {
        for (case, &[rows, cols, depth]) in extents.iter().enumerate() {
            let (a, a_row, a_col) = matrix(&mut rng, rows, depth, case);
            let (b, b_row, b_col) = matrix(&mut rng, depth, cols, case / 3);
            let a = MatRef { data: &a, rows, cols: depth, row_stride: a_row, col_stride: a_col };
            let b = MatRef { data: &b, rows: depth, cols, row_stride: b_row, col_stride: b_col };
            let before = random(&mut rng, rows * cols);
            for accumulate in [false, true] {
                let expected = oracle(&a, &b, &before, accumulate);
                let mut serial = before.clone();
                multiply(tier, a, b, accumulate, &mut serial, 1);
                for (i, (got, expected)) in serial.iter().zip(&expected).enumerate() {
                    let tolerance = 1e-6 * (depth as f64 + 1.0);
                    assert!(
                        (f64::from(*got) - expected).abs() <= tolerance,
                        "{} {rows}x{depth}x{cols} accumulate {accumulate} at {i}: {got}, expected {expected}",
                        tier.name
                    );
                }
                let mut threaded = before.clone();
                multiply(tier, a, b, accumulate, &mut threaded, 3);
                assert_eq!(serial, threaded, "{} {rows}x{depth}x{cols}", tier.name);
            }
        }
    }
}

#[test]
fn tiles_apply_what_follows_the_sum_in_order() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for tier in tier::available() {
        for height in 1..=tier.rows {
            for width in 1..=tier.cols {
                let runs = [Run { start: 5, len: 3 }, Run { start: 0, len: 4 }];
                let (rows, step) = ([90, 3, 40, 57, 71, 20, 110, 13], 2);
                let (a, b) = (random(&mut rng, 200), random(&mut rng, 7 * tier.cols));
                let (bias, add) = (random(&mut rng, height), random(&mut rng, height * 50));
                let before = random(&mut rng, height * 60);
                let mut c = before.clone();
                let finish = Finish {
                    accumulate: true,
                    bias: Some(bias.as_ptr()),
                    add: Some((add.as_ptr(), 50)),
                    relu: true,
                };
                let tile = Tile {
                    a: a.as_ptr(),
                    rows: &rows[..height],
                    step,
                    runs: &runs,
                    b: b.as_ptr(),
                    b_step: tier.cols,
                    c: c.as_mut_ptr(),
                    c_step: 60,
                    width,
                    finish,
                };
                // SAFETY: the pointers reach every row, run and column named above.
                unsafe { tier.multiply(&tile) };
                let positions: Vec<usize> = (5..8).chain(0..4).collect();
                for i in 0..height {
                    for j in 0..60 {
                        let got = c[i * 60 + j];
                        if j >= width {
                            assert_eq!(
                                got,
                                before[i * 60 + j],
                                "{}: column {j} is not the tile's",
                                tier.name
                            );
                            continue;
                        }
                        let product: f64 = positions
                            .iter()
                            .enumerate()
                            .map(|(k, p)| f64::from(a[rows[i] + p * step]) * f64::from(b[k * tier.cols + j]))
                            .sum();
                        let sum = product + f64::from(before[i * 60 + j] + bias[i] + add[i * 50 + j]);
                        assert!(
                            (f64::from(got) - sum.max(0.0)).abs() < 1e-5,
                            "{} {height}x{width}",
                            tier.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn relu_keeps_nan() {
    for tier in tier::available() {
        let (a, b, mut c) = ([1.0], [f32::NAN; MAX_COLS], [0.0; MAX_COLS]);
        let tile = Tile {
            a: a.as_ptr(),
            rows: &[0],
            step: 1,
            runs: &[Run { start: 0, len: 1 }],
            b: b.as_ptr(),
            b_step: tier.cols,
            c: c.as_mut_ptr(),
            c_step: tier.cols,
            width: tier.cols,
            finish: Finish { relu: true, ..Finish::default() },
        };
        // SAFETY: the pointers reach the one row and the `tier.cols` columns named above.
        unsafe { tier.multiply(&tile) };
        assert!(c[..tier.cols].iter().all(|c| c.is_nan()), "{}", tier.name);
    }
}

#[test]
fn panels_hold_the_columns_asked_for() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for tier in tier::available() {
        let src = random(&mut rng, 400);
        let offsets = [0, 17, 300, 7, 352];
        for _ in 0..50 {
            let mut columns = Vec::new();
            let mut start = 0;
            while start < tier.cols {
                let len = rng.random_range(1..=tier.cols - start);
                columns.push(Columns { start, len, src: rng.random_range(0..=48 - len) });
                start += len;
            }
            let mut dst = vec![f32::NAN; offsets.len() * tier.cols];
            tier.gather(&src, &offsets, &columns, &mut dst);
            for (k, offset) in offsets.iter().enumerate() {
                for group in &columns {
                    let at = k * tier.cols + group.start;
                    let from = offset + group.src;
                    assert_eq!(dst[at..at + group.len], src[from..from + group.len], "{}", tier.name);
                }
            }
        }
        for columns in 1..=tier.cols {
            for depth in [1, 3, 8, 16, 17, 31, 40] {
                let src = random(&mut rng, columns * 41);
                let mut dst = vec![f32::NAN; depth * tier.cols];
                tier.transpose(&src, 41, columns, depth, &mut dst, tier.cols);
                for k in 0..depth {
                    for column in 0..columns {
                        assert_eq!(dst[k * tier.cols + column], src[column * 41 + k], "{}", tier.name);
                    }
                }
            }
        }
    }
}

#[test]
fn every_so_many_numbers_are_taken() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for tier in tier::available() {
        for step in 1..=4 {
            for len in 0..70 {
                for spare in [0, 1, 2, 40] {
                    let src = random(&mut rng, (len.max(1) - 1) * step + 1 + spare);
                    let mut dst = vec![f32::NAN; len];
                    tier.take(&src, step, &mut dst);
                    let expected: Vec<f32> = src.iter().step_by(step).take(len).copied().collect();
                    assert_eq!(dst, expected, "{} every {step}th of {}", tier.name, src.len());
                }
            }
        }
    }
}

#[test]
fn products_are_added_to_their_places() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for tier in tier::available() {
        for dst_col in 1..=3 {
            for len in 1..=tier.cols {
                let columns =
                    [Columns { start: 0, len, src: 7 }, Columns { start: 1, len: len.min(3), src: 2 }];
                let spread = panel::Spread { rows: 3, src_row: 60, dst_row: 200, dst_col, columns: &columns };
                let (src, before) = (random(&mut rng, 180), random(&mut rng, 600));
                let mut dst = before.clone();
                tier.spread(&spread, &src, &mut dst);
                let mut expected = before;
                for group in columns {
                    for row in 0..3 {
                        for i in 0..group.len {
                            expected[row * 200 + group.src + i * dst_col] += src[row * 60 + group.start + i];
                        }
                    }
                }
                assert_eq!(dst, expected, "{} {len} columns, {dst_col} apart", tier.name);
            }
        }
    }
}
