use super::*;
use crate::blocked::testing::{check_zeros, noise, pack, run, unpack};
use crate::tier::available;

fn window(padding: [usize; 2], groups: usize) -> Window {
    Window { kernel: [3, 3], stride: [1, 1], padding, dilation: [1, 1], groups }
}

/// The formula, in double precision.
fn oracle(
    window: &Window,
    [c, o]: [usize; 2],
    size: [usize; 2],
    images: usize,
    src: &[f32],
    weight: &[f32],
) -> Vec<f64> {
    let (group_in, group_out) = (c / window.groups, o / window.groups);
    let taps = window.kernel[0];
    let out: [usize; 2] = std::array::from_fn(|d| size[d] + 2 * window.padding[d] + 1 - taps);
    let mut dst = Vec::new();
    for n in 0..images {
        for k in 0..o {
            for (y, x) in (0..out[0]).flat_map(|y| (0..out[1]).map(move |x| (y, x))) {
                let mut sum = 0.0;
                for i in 0..group_in {
                    let channel = n * c + k / group_out * group_in + i;
                    for (r, s) in (0..taps).flat_map(|r| (0..taps).map(move |s| (r, s))) {
                        let (row, column) = (
                            (y + r).wrapping_sub(window.padding[0]),
                            (x + s).wrapping_sub(window.padding[1]),
                        );
                        if row < size[0] && column < size[1] {
                            sum += f64::from(src[(channel * size[0] + row) * size[1] + column])
                                * f64::from(weight[((k * group_in + i) * taps + r) * taps + s]);
                        }
                    }
                }
                dst.push(sum);
            }
        }
    }
    dst
}

/// Largest error relative to the largest result.
fn check_case<const N: usize, const K: usize>(
    window: Window,
    inputs: &[usize],
    outputs: &[usize],
    size: [usize; 2],
    images: usize,
    rest: bool,
) -> f64 {
    let (c, o) = (inputs.iter().sum::<usize>(), outputs.iter().sum::<usize>());
    let out: [usize; 2] = std::array::from_fn(|d| size[d] + 2 * window.padding[d] + 1 - K);
    let src = View::blocked(16, inputs, size, window.padding);
    let dst = View::blocked(src.extent(images).end, outputs, out, [1, 2]);
    let add = View::blocked(dst.extent(images).end, outputs, out, [0, 1]);
    let mut arena = vec![f32::NAN; add.extent(images).end];
    let x = noise(images * c * size[0] * size[1], 1);
    let weight = noise(o * c / window.groups * K * K, 2);
    let bias = if rest { noise(o, 3) } else { vec![0.0; o] };
    let addend =
        if rest { noise(images * o * out[0] * out[1], 4) } else { vec![0.0; images * o * out[0] * out[1]] };
    pack(&src, images, &x, &mut arena);
    pack(&add, images, &addend, &mut arena);
    let mut expected = oracle(&window, [c, o], size, images, &x, &weight);
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let plane = out[0] * out[1];
    for (i, value) in expected.iter_mut().enumerate() {
        *value += f64::from(bias[i / plane % o]) + f64::from(addend[i]);
        if rest {
            *value = value.max(0.0);
        }
    }
    let mut worst = 0.0_f64;
    for tier in available() {
        let make = |threads: usize| {
            let weights = Weights { weight: &weight, bias: Some(&bias), relu: rest };
            let source =
                Source::of(&weights, &window, &src, &dst, &TAPS[..window.kernel[0] * window.kernel[1]]);
            let layer = Layer { window, source, relu: rest, src: &src, add: Some(&add), dst: &dst };
            let par = if threads == 1 { Par::Serial } else { Par::Rayon };
            vec![Step::from_stage(Winograd::<N, K>::new(
                tier,
                &layer,
                images,
                threads,
                par,
                vec![Line([f32::NAN; BLOCK]); 3],
            ))]
        };
        let memory = run(make, images, &arena);
        check_zeros(&dst, images, &memory);
        for (found, expected) in unpack(&dst, images, &memory).iter().zip(&expected) {
            let error = (f64::from(*found) - expected).abs() / largest;
            assert!(error.is_finite());
            worst = worst.max(error);
        }
    }
    worst
}

fn both(window: Window, inputs: &[usize], outputs: &[usize], size: [usize; 2], images: usize, rest: bool) {
    let two = check_case::<4, 3>(window, inputs, outputs, size, images, rest);
    let four = check_case::<6, 3>(window, inputs, outputs, size, images, rest);
    let (two_bound, four_bound) = (WinogradTile::Two.error_bound(3), WinogradTile::Four.error_bound(3));
    assert!(two <= f64::from(two_bound), "2x2: {two:e} for {window:?} {inputs:?} {size:?}");
    assert!(four <= f64::from(four_bound), "4x4: {four:e} for {window:?} {inputs:?} {size:?}");
}

#[test]
fn every_size_of_map_equals_the_formula_within_the_bound() {
    for size in 1..=18 {
        both(window([1, 1], 1), &[5], &[20], [size, 19 - size], 2, true);
    }
}

#[test]
fn filters_of_25_taps_equal_the_formula_within_the_bound() {
    let bound = f64::from(WinogradTile::Two.error_bound(5));
    let five = |padding: [usize; 2], groups| Window { kernel: [5, 5], ..window(padding, groups) };
    for (window, inputs, outputs, size, images) in [
        (five([2, 2], 1), vec![5], vec![20], [1, 12], 2),
        (five([2, 2], 1), vec![96], vec![48], [13, 14], 1),
        (five([2, 2], 2), vec![48, 48], vec![53, 53], [7, 9], 2),
        (five([0, 0], 1), vec![20], vec![50], [12, 12], 3),
        (five([4, 1], 1), vec![64], vec![16], [8, 8], 2),
    ] {
        for rest in [false, true] {
            let error = check_case::<6, 5>(window, &inputs, &outputs, size, images, rest);
            assert!(error <= bound, "{error:e} for {window:?} {inputs:?} {size:?}");
        }
    }
}

#[test]
fn segments_groups_and_deep_layers_equal_the_formula_within_the_bound() {
    both(window([1, 1], 2), &[16, 16], &[48, 48], [9, 9], 3, true);
    both(window([1, 1], 2), &[20, 20], &[5, 5], [6, 13], 1, true);
    both(window([0, 0], 1), &[16, 7], &[33], [12, 8], 2, false);
    both(window([1, 0], 1), &[3], &[16], [5, 40], 1, false);
    both(window([1, 1], 1), &[320], &[48], [8, 8], 2, true);
    both(window([1, 1], 1), &[64], &[112], [28, 28], 1, false);
}

#[test]
fn groups_that_share_a_block_do_not_fit() {
    let src = View::blocked(0, &[24], [8, 8], [1, 1]);
    let dst = View::blocked(src.memory_len(1), &[32], [8, 8], [0, 0]);
    for tile in WinogradTile::ALL {
        assert!(!tile.fits(&window([1, 1], 2), &src, &dst));
        assert!(tile.fits(&window([1, 1], 1), &src, &dst));
        assert!(!tile.fits(&Window { stride: [2, 2], ..window([1, 1], 1) }, &src, &dst));
        let five = Window { kernel: [5, 5], ..window([2, 2], 1) };
        assert_eq!(tile.fits(&five, &src, &dst), tile == WinogradTile::Two);
    }
}

#[test]
fn few_passes_are_cut_into_jobs_for_any_number_of_threads() {
    let (src, images) = (View::blocked(0, &[64], [56, 56], [1, 1]), 8);
    let dst = View::blocked(src.memory_len(images), &[48], [56, 56], [0, 0]);
    let weight = vec![0.0; 48 * 64 * 9];
    for threads in [2, 3, 5, 7, 16] {
        for tier in available() {
            let weights = Weights { weight: &weight, bias: None, relu: false };
            let window = window([1, 1], 1);
            let source =
                Source::of(&weights, &window, &src, &dst, &TAPS[..window.kernel[0] * window.kernel[1]]);
            let layer = Layer { window, source, relu: false, src: &src, add: None, dst: &dst };
            let step = Winograd::<6, 3>::new(tier, &layer, images, threads, Par::Serial, Vec::new());
            assert!(step.jobs(images) >= threads, "{tier:?}, {threads} threads: {} jobs", step.jobs(images));
        }
    }
}
