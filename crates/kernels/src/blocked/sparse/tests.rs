use super::*;
use crate::blocked::testing::{check_zeros, convolution, noise, pack, run, unpack};
use crate::tier::available;

struct Case {
    kernel: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    inputs: usize,
    outputs: &'static [usize],
    size: [usize; 2],
    /// Columns and rows of zeros beyond the padding.
    more: usize,
    images: usize,
    add: bool,
    relu: bool,
    density: f32,
}

const USUAL: Case = Case {
    kernel: [3, 3],
    padding: [1, 1],
    dilation: [1, 1],
    groups: 1,
    inputs: 5,
    outputs: &[16],
    size: [9, 11],
    more: 0,
    images: 2,
    add: false,
    relu: false,
    density: 0.3,
};

fn check_case(case: &Case, seed: u32) {
    let outputs: usize = case.outputs.iter().sum();
    let Case { kernel, padding, dilation, groups, inputs, size, images, .. } = *case;
    let out: [usize; 2] = std::array::from_fn(|d| size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1));
    let window = Window { kernel, stride: [1, 1], padding, dilation, groups };
    let src = View::planar(16, inputs, size, padding.map(|p| p + case.more), 1);
    let dst = View::blocked(src.extent(images).end.next_multiple_of(16), case.outputs, out, [1, 2]);
    let add = View::blocked(dst.extent(images).end, case.outputs, out, [0, 1]);
    // Nothing behind the last view may be read.
    let mut arena = vec![f32::NAN; add.extent(images).end];
    let x = noise(images * inputs * size[0] * size[1], seed);
    let keep = noise(outputs * inputs / groups * kernel[0] * kernel[1], seed + 1);
    let weight: Vec<f32> = (noise(keep.len(), seed + 2).iter().zip(&keep))
        .map(|(w, keep)| if (keep + 1.0) / 2.0 < case.density { *w } else { 0.0 })
        .collect();
    let (bias, addend) = (noise(outputs, seed + 3), noise(images * outputs * out[0] * out[1], seed + 4));
    pack(&src, images, &x, &mut arena);
    pack(&add, images, &addend, &mut arena);
    let weights = Weights { weight: &weight, bias: Some(&bias), relu: case.relu };
    let add_to = case.add.then_some(&addend[..]);
    let expected = convolution(window, [inputs, size[0], size[1]], images, &x, &weights, add_to);
    let depth = (inputs * kernel[0] * kernel[1]) as f64;
    for tier in available() {
        let make = |_| {
            let weights = Weights { weight: &weight, bias: Some(&bias), relu: case.relu };
            let add = case.add.then_some(&add);
            vec![Step::from_stage(Sparse::new(tier, window, &weights, &src, add, &dst))]
        };
        let memory = run(make, images, &arena);
        check_zeros(&dst, images, &memory);
        for (i, (found, expected)) in unpack(&dst, images, &memory).iter().zip(&expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(
                error <= 1e-6 * depth.max(4.0),
                "{tier:?} {window:?} {size:?}: {found} at {i}, expected {expected}"
            );
        }
    }
}

#[test]
fn results_are_those_of_the_formula() {
    let cases = [
        USUAL,
        Case { add: true, relu: true, ..USUAL },
        Case { density: 0.0, add: true, ..USUAL },
        Case { density: 1.0, relu: true, ..USUAL },
        Case { outputs: &[3, 20], inputs: 17, ..USUAL },
        Case { kernel: [1, 1], padding: [0, 0], inputs: 33, outputs: &[70], density: 0.1, ..USUAL },
        Case { kernel: [5, 3], padding: [2, 1], size: [4, 13], ..USUAL },
        Case { dilation: [2, 3], padding: [2, 3], size: [12, 7], add: true, ..USUAL },
        Case { padding: [0, 0], size: [3, 18], images: 1, ..USUAL },
        Case { more: 2, size: [16, 14], outputs: &[40], ..USUAL },
        Case { groups: 2, inputs: 6, outputs: &[32], relu: true, ..USUAL },
        // Groups that share blocks, and fours of filters.
        Case { groups: 3, inputs: 6, outputs: &[9, 18], add: true, ..USUAL },
        Case { groups: 5, inputs: 5, outputs: &[5], density: 1.0, ..USUAL },
        Case { groups: 4, inputs: 400, outputs: &[40], density: 0.1, ..USUAL },
        // Just sixteen pixels; more than one tile, the last one short.
        Case { kernel: [1, 1], padding: [0, 0], size: [4, 4], ..USUAL },
        Case { kernel: [1, 1], padding: [0, 0], size: [1, 17], ..USUAL },
        Case { size: [7, 7], inputs: 40, outputs: &[32], density: 0.4, ..USUAL },
        Case { size: [20, 23], inputs: 3, images: 3, relu: true, ..USUAL },
    ];
    for (seed, case) in (1..).zip(&cases) {
        check_case(case, 10 * seed);
    }
}

/// Zeros that stand in for a filter of another group are none of its weights.
#[test]
fn what_a_group_reads_is_no_matter_of_another_one() {
    let (size, groups, outputs) = ([4, 4], 2, 4);
    let window = Window { kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups };
    let src = View::planar(0, 32, size, [0, 0], 1);
    let dst = View::blocked(src.extent(1).end, &[outputs], size, [0, 0]);
    let mut arena = vec![0.0; dst.extent(1).end];
    let x: Vec<f32> = (0..32 * 16).map(|at| if at < 16 * 16 { f32::INFINITY } else { 1.0 }).collect();
    pack(&src, 1, &x, &mut arena);
    // Few places of each pattern, so that they share loops.
    let weight: Vec<f32> = (0..outputs * 16).map(|at| if at % 8 == 0 { 1.0 } else { 0.0 }).collect();
    for tier in available() {
        let make = |_| {
            let weights = Weights { weight: &weight, bias: None, relu: false };
            vec![Step::from_stage(Sparse::new(tier, window, &weights, &src, None, &dst))]
        };
        let found = unpack(&dst, 1, &run(make, 1, &arena));
        assert!(found[2 * 16..].iter().all(|value| value.is_finite()), "{tier:?}: {found:?}");
    }
}

#[test]
fn shapes_drawn_at_random() {
    let mut numbers = noise(10_000, 77).into_iter().map(|v| ((v + 1.0) * 5e5) as usize);
    let mut below = |n: usize| numbers.next().unwrap() % n;
    let mut checked = 0;
    while checked < 40 {
        let kernel = [1 + below(4), 1 + below(4)];
        let dilation = [1 + below(2), 1 + below(2)];
        let groups = [1, 1, 2, 3][below(4)];
        let outputs: &[&[usize]] = match groups {
            1 => &[&[1], &[16], &[17], &[9, 30], &[64]],
            _ => &[&[6], &[12, 6], &[36], &[48]],
        };
        let case = Case {
            kernel,
            dilation,
            groups,
            padding: [below(3), below(3)],
            inputs: groups * (1 + below(20)),
            outputs: outputs[below(outputs.len())],
            size: [1 + below(18), 1 + below(40)],
            more: below(2),
            images: 1 + below(2),
            add: below(2) == 1,
            relu: below(2) == 1,
            density: below(11) as f32 / 10.0,
        };
        let window = Window { kernel, stride: [1, 1], padding: case.padding, dilation, groups };
        let src = View::planar(0, case.inputs, case.size, case.padding.map(|p| p + case.more), 1);
        if Step::sparse_conv_fits(&window, &src) {
            check_case(&case, 1000 + checked);
            checked += 1;
        }
    }
}

#[test]
fn tiles_cover_every_pixel_once_and_nothing_behind() {
    for most in 1..=VECTORS {
        for pixels in 16..400 {
            let tiles = tiles(pixels, most);
            let mut next = 0;
            for tile in &tiles {
                assert!(
                    (1..=most).contains(&tile.vectors) && tile.start == next,
                    "{pixels} {most}: {tile:?}"
                );
                let before = tile.start + (tile.vectors - 1) * BLOCK;
                let end = tile.start.wrapping_add_signed(tile.last) + BLOCK;
                assert!(end > before && end <= pixels, "{pixels} {most}: {tile:?}");
                next = end;
            }
            assert_eq!(next, pixels, "{most}: {tiles:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let window = Window { kernel: [3, 3], stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };
    let planar = |size| View::planar(0, 4, size, [1, 1], 1);
    assert!(Step::sparse_conv_fits(&window, &planar([8, 8])));
    assert!(!Step::sparse_conv_fits(&window, &planar([2, 3])), "fewer than sixteen pixels");
    assert!(!Step::sparse_conv_fits(&Window { stride: [2, 2], ..window }, &planar([8, 8])));
    assert!(Step::sparse_conv_fits(&Window { groups: 2, ..window }, &planar([8, 8])));
    assert!(!Step::sparse_conv_fits(&Window { groups: 3, ..window }, &planar([8, 8])), "four channels");
    assert!(!Step::sparse_conv_fits(&window, &View::blocked(0, &[16], [8, 8], [1, 1])));
    assert!(!Step::sparse_conv_fits(&Window { kernel: [20, 3], ..window }, &planar([8, 8])));
}
