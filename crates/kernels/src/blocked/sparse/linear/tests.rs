use super::*;
use crate::blocked::Storage;
use crate::blocked::testing::{check_zeros, noise, pack, run, unpack};
use crate::tier::available;

/// Weights of which about so many are left, in some rows none.
fn pruned(outputs: usize, depth: usize, density: f32, seed: u32) -> Vec<f32> {
    let keep = noise(outputs * depth, seed);
    let mut weights = noise(outputs * depth, seed + 1);
    for (at, (weight, keep)) in weights.iter_mut().zip(keep).enumerate() {
        // Rows differ in length.
        let share = density * (1.0 - (at / depth % 5) as f32 / 5.0);
        if (keep + 1.0) / 2.0 >= share || at / depth == 3 {
            *weight = 0.0;
        }
    }
    weights
}

fn check_case(src: &View, outputs: usize, images: usize, density: f32, seed: u32) {
    let depth = src.channels() * src.size[0] * src.size[1];
    let dst = View::blocked(src.extent(images).end.next_multiple_of(16), &[outputs], [1, 1], [0, 0]);
    let mut arena = vec![f32::NAN; dst.extent(images).end];
    let x = noise(images * depth, seed);
    let (weight, bias) = (pruned(outputs, depth, density, seed + 1), noise(outputs, seed + 3));
    pack(src, images, &x, &mut arena);
    let relu = outputs == 16;
    let weights = LinearWeights {
        weight: &weight,
        bias: (outputs != 45).then_some(&bias[..]),
        relu,
        storage: Storage::F32,
    };
    for tier in available() {
        let make = |threads| vec![sparse_linear_on(tier, &weights, src, &dst, images, threads)];
        let memory = run(make, images, &arena);
        check_zeros(&dst, images, &memory);
        for (i, found) in unpack(&dst, images, &memory).iter().enumerate() {
            let (image, output) = (i / outputs, i % outputs);
            let mut sum = weights.bias.map_or(0.0, |bias| f64::from(bias[output]));
            for k in 0..depth {
                sum += f64::from(weight[output * depth + k]) * f64::from(x[image * depth + k]);
            }
            let expected = if relu { sum.max(0.0) } else { sum };
            let error = (f64::from(*found) - expected).abs();
            assert!(
                error <= 1e-6 * depth as f64,
                "{tier:?} {images} images, {src:?}: {found} at {i}, not {expected}"
            );
        }
    }
}

/// Maps of odd extents with and without a border, planes, few and many outputs; one image, a few, more than the registers hold.
#[test]
fn results_are_those_of_the_formula() {
    let sources = [
        View::blocked(16, &[37], [1, 1], [0, 0]),
        View::blocked(16, &[20, 5], [3, 2], [1, 1]),
        View::planar(16, 3, [4, 5], [0, 0], 1),
        View::blocked(16, &[96], [6, 6], [0, 0]),
    ];
    let mut seed = 0;
    for src in &sources {
        for (outputs, images) in
            [(1, 1), (16, 2), (45, 1), (70, 2), (45, 3), (33, 6), (16, 16), (33, 17), (70, 40)]
        {
            for density in [0.0, 0.05, 0.3, 1.0] {
                check_case(src, outputs, images, density, seed);
                seed += 10;
            }
        }
    }
    // More images than are computed at once, more features than are turned at once.
    check_case(&View::blocked(0, &[40], [1, 1], [0, 0]), 20, 180, 0.4, 1);
    check_case(&View::blocked(0, &[700], [1, 1], [0, 0]), 20, 100, 0.4, 2);
    check_case(&View::blocked(0, &[3000], [1, 1], [0, 0]), 18, 1, 0.02, 3);
    check_case(&View::blocked(0, &[65_535], [1, 1], [0, 0]), 3, 2, 0.02, 4);
}

/// Steps that are made for a batch run for fewer images.
#[test]
fn fewer_images_leave_the_others_alone() {
    use crate::blocked::{Lengths, Part, Sequence, Team};
    let src = View::blocked(0, &[24], [1, 1], [0, 0]);
    for (most, images) in [(2, 1), (6, 5), (20, 1), (20, 17), (100, 20)] {
        let dst = View::blocked(src.extent(most).end, &[20], [1, 1], [0, 0]);
        let weight = pruned(20, 24, 0.5, 9);
        let weights = LinearWeights { weight: &weight, bias: None, relu: false, storage: Storage::F32 };
        let mut arena = vec![f32::NAN; dst.extent(most).end];
        let x = noise(24 * images, 4);
        pack(&src, images, &x, &mut arena);
        for tier in available() {
            let step = || vec![sparse_linear_on(tier, &weights, &src, &dst, most, 1)];
            let lengths = Lengths { arena: arena.len(), ..Lengths::default() };
            let sequence = Sequence::new(vec![Part { steps: step(), images: most }], most, lengths);
            let mut scratch = vec![f32::NAN; sequence.scratch_len(1)];
            let mut memory = arena.clone();
            sequence.run(images, &[], &mut memory, &mut [], &mut scratch, &Team::new(1).unwrap(), None);
            let found = unpack(&dst, most, &memory);
            for (i, found) in found[..20 * images].iter().enumerate() {
                let terms =
                    (0..24).map(|k| f64::from(weight[i % 20 * 24 + k]) * f64::from(x[i / 20 * 24 + k]));
                let expected: f64 = terms.sum();
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-5,
                    "{tier:?}: {found} at {i}, not {expected}"
                );
            }
            assert!(found[20 * images..].iter().all(|value| value.is_nan()), "{tier:?}");
        }
    }
}

/// Rows end at different places: what fills the shorter ones is none of the features.
#[test]
fn what_a_row_does_not_read_is_no_matter() {
    let src = View::blocked(0, &[32], [1, 1], [0, 0]);
    let dst = View::blocked(src.extent(1).end, &[2], [1, 1], [0, 0]);
    let weight: Vec<f32> = (0..64).map(|at| if at < 32 || at == 33 { 1.0 } else { 0.0 }).collect();
    let weights = LinearWeights { weight: &weight, bias: None, relu: false, storage: Storage::F32 };
    let mut arena = vec![0.0; dst.extent(1).end];
    let x: Vec<f32> = (0..32).map(|at| if at == 1 { 2.0 } else { f32::INFINITY }).collect();
    pack(&src, 1, &x, &mut arena);
    for tier in available() {
        let make = |threads| vec![sparse_linear_on(tier, &weights, &src, &dst, 1, threads)];
        assert_eq!(unpack(&dst, 1, &run(make, 1, &arena)), [f32::INFINITY, 2.0], "{tier:?}");
    }
}

#[test]
fn layers_too_deep_for_their_numbers_are_told() {
    assert!(Step::sparse_linear_fits(65_535, 65_536) && !Step::sparse_linear_fits(65_536, 1));
    assert!(!Step::sparse_linear_fits(65_535, 65_550) && !Step::sparse_linear_fits(1, usize::MAX));
}

/// The caller's images are read where they lie, and its logits have no room behind the last one.
#[test]
fn images_of_the_caller_become_logits_of_the_caller() {
    use crate::blocked::{Lengths, Part, Place, Sequence, Team};
    let (depth, outputs) = (35, 21);
    for images in [1, 5, 20] {
        let src = View::dense(Place::Images, 7, [5, 1]);
        let dst = View::dense(Place::Logits, outputs, [1, 1]);
        let (x, weight) = (noise(images * depth, 5), pruned(outputs, depth, 0.4, 6));
        let weights = LinearWeights { weight: &weight, bias: None, relu: false, storage: Storage::Bf16 };
        for tier in available() {
            // In parts of fewer images, which begin elsewhere.
            for each in [images, images.div_ceil(3)] {
                let steps = vec![sparse_linear_on(tier, &weights, &src, &dst, images, 1)];
                let lengths = Lengths { images: depth, logits: outputs, ..Lengths::default() };
                let sequence = Sequence::new(vec![Part { steps, images: each }], images, lengths);
                let mut scratch = vec![f32::NAN; sequence.scratch_len(1)];
                let mut logits = vec![f32::NAN; images * outputs];
                let team = Team::new(1).unwrap();
                sequence.run(images, &x, &mut [], &mut logits, &mut scratch, &team, None);
                for (i, found) in logits.iter().enumerate() {
                    let (image, output) = (i / outputs, i % outputs);
                    let term =
                        |k: usize| f64::from(weight[output * depth + k]) * f64::from(x[image * depth + k]);
                    let expected: f64 = (0..depth).map(term).sum();
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-5,
                        "{tier:?}: {found} at {i}, not {expected}"
                    );
                }
            }
        }
    }
}
