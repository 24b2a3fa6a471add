use super::*;
use crate::blocked::testing::{noise, pack};
use crate::tier::available;
use crate::{ConvShape, conv2d_backward_bias, conv2d_backward_weight};

struct Case {
    window: Window,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    size: [usize; 2],
    planar: bool,
    images: usize,
}

/// The formula, in double precision.
fn oracle(shape: &ConvShape, src: &[f32], grad: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let [height, width] = shape.out_size();
    let mut weight = Vec::new();
    let mut bias = vec![0.0; shape.out_channels];
    for o in 0..shape.out_channels {
        let at = |n: usize, y: usize, x: usize| {
            f64::from(grad[((n * shape.out_channels + o) * height + y) * width + x])
        };
        for c in 0..group_in {
            for r in 0..shape.kernel[0] {
                for s in 0..shape.kernel[1] {
                    let mut sum = 0.0;
                    for n in 0..shape.batch {
                        for y in 0..height {
                            for x in 0..width {
                                let i = (y * shape.stride[0] + r * shape.dilation[0]) as isize
                                    - shape.padding[0] as isize;
                                let j = (x * shape.stride[1] + s * shape.dilation[1]) as isize
                                    - shape.padding[1] as isize;
                                let [rows, columns] = shape.in_size.map(|size| size as isize);
                                if (0..rows).contains(&i) && (0..columns).contains(&j) {
                                    let channel = n * shape.in_channels + o / group_out * group_in + c;
                                    let pixel = (channel as isize * rows + i) * columns + j;
                                    sum += at(n, y, x) * f64::from(src[pixel as usize]);
                                }
                            }
                        }
                    }
                    weight.push(sum);
                }
            }
        }
        for n in 0..shape.batch {
            for y in 0..height {
                for x in 0..width {
                    bias[o] += at(n, y, x);
                }
            }
        }
    }
    (weight, bias)
}

fn check_case(case: &Case) {
    let (inputs, outputs) = (case.inputs.iter().sum::<usize>(), case.outputs.iter().sum::<usize>());
    let Window { kernel, stride, padding, dilation, groups } = case.window;
    let shape = ConvShape {
        batch: case.images,
        in_channels: inputs,
        in_size: case.size,
        out_channels: outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
    };
    let out = shape.out_size();
    let src = if case.planar {
        View::planar(16, inputs, case.size, padding, 1)
    } else {
        View::blocked(16, &case.inputs, case.size, padding)
    };
    let grad = View::blocked(32, &case.outputs, out, [1, 2]);
    let x = noise(shape.src_len(), 1);
    let g = noise(shape.dst_len(), 2);
    let mut src_memory = vec![f32::NAN; src.extent(case.images).end];
    let mut grad_memory = vec![f32::NAN; grad.extent(case.images).end];
    pack(&src, case.images, &x, &mut src_memory);
    pack(&grad, case.images, &g, &mut grad_memory);
    // Nothing outside the map of the gradient may be read.
    let (expected, expected_bias) = oracle(&shape, &x, &g);
    let pixels = (case.images * out[0] * out[1]) as f64;
    for tier in available() {
        let tiles = WinogradTile::ALL.into_iter().filter(|tile| tile.fits(&case.window, &src, &grad));
        for tile in std::iter::once(None).chain(tiles.map(Some)) {
            check_tile(
                case,
                tier,
                tile,
                [&src, &grad],
                [&src_memory, &grad_memory],
                [&expected, &expected_bias],
            );
        }
    }
    // The kernel for dense maps is a second witness.
    let (mut weight, mut bias) = (vec![0.0; expected.len()], vec![0.0; outputs]);
    conv2d_backward_weight(&shape, &x, &g, &mut weight, Par::Serial);
    conv2d_backward_bias(&shape, &g, &mut bias, Par::Serial);
    for (found, expected) in weight.iter().zip(&expected).chain(bias.iter().zip(&expected_bias)) {
        assert!((f64::from(*found) - expected).abs() <= 1e-5 * pixels.sqrt(), "{found} {expected}");
    }
}

/// All at once on any number of threads, and some images after others.
fn check_tile(
    case: &Case,
    tier: &'static Tier,
    tile: Option<WinogradTile>,
    [src, grad]: [&View; 2],
    [src_memory, grad_memory]: [&[f32]; 2],
    [expected, expected_bias]: [&[f64]; 2],
) {
    let pixels = (case.images * grad.size[0] * grad.size[1]) as f64;
    let outputs = grad.channels();
    let bound = tile.map_or(1e-6, |tile| f64::from(tile.error_bound(case.window.kernel[0])));
    let check = |weight: &[f32], bias: &[f32]| {
        for (found, expected) in weight.iter().zip(expected).chain(bias.iter().zip(expected_bias)) {
            let error = (f64::from(*found) - expected).abs();
            assert!(
                error <= bound * pixels.sqrt().max(8.0) * 4.0,
                "{tier:?} {tile:?} {:?}: {found}, expected {expected}",
                case.window
            );
        }
    };
    let run = |par: Par| {
        let gradient = WeightGradient::on(tier, case.window, src, grad, tile, case.images + 1);
        let mut scratch = vec![f32::NAN; gradient.scratch_len()];
        let (mut weight, mut bias) = (vec![f32::NAN; expected.len()], vec![f32::NAN; outputs]);
        gradient.run(case.images, src_memory, grad_memory, &mut weight, Some(&mut bias), &mut scratch, par);
        (weight, bias)
    };
    let (weight, bias) = run(Par::Serial);
    check(&weight, &bias);
    for threads in [2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| run(Par::Rayon)), (weight.clone(), bias.clone()));
    }
    let gradient = WeightGradient::on(tier, case.window, src, grad, tile, 2);
    let mut sums = vec![0.0; 2 * gradient.sums_len()];
    let mut scratch = vec![f32::NAN; gradient.add_scratch_len() + Step::SCRATCH_MORE];
    for first in (0..case.images).step_by(2) {
        let count = 2.min(case.images - first);
        let part = |view: &View, memory: &[f32]| memory[first * view.image_stride..].to_vec();
        let sums = &mut sums[first / 2 % 2 * gradient.sums_len()..][..gradient.sums_len()];
        gradient.add(count, &part(src, src_memory), &part(grad, grad_memory), sums, &mut scratch);
    }
    let (mut weight, mut bias) = (vec![f32::NAN; expected.len()], vec![f32::NAN; outputs]);
    gradient.finish(&mut sums, &mut weight, Some(&mut bias), Par::Serial);
    check(&weight, &bias);
}

fn window(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], groups: usize) -> Window {
    Window { kernel, stride, padding, dilation: [1, 1], groups }
}

#[test]
fn every_kind_of_convolution_equals_the_formula() {
    let case = |window, inputs: &[usize], outputs: &[usize], size, images| Case {
        window,
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
        size,
        planar: false,
        images,
    };
    let planar = |window, inputs: usize, outputs: &[usize], size, images| Case {
        planar: true,
        ..case(window, &[inputs], outputs, size, images)
    };
    let three = window([3, 3], [1, 1], [1, 1], 1);
    let cases = [
        case(three, &[16], &[16], [9, 9], 5),
        case(three, &[32], &[64], [8, 8], 3),
        case(three, &[20], &[53], [7, 7], 2),
        case(three, &[3, 17], &[48], [5, 6], 4),
        case(three, &[16], &[96], [32, 32], 2),
        case(window([3, 3], [1, 1], [0, 2], 1), &[40], &[20], [5, 6], 3),
        case(window([3, 3], [1, 1], [1, 1], 2), &[16, 16], &[48, 48], [4, 4], 3),
        case(three, &[96], &[32], [2, 2], 9),
        case(window([5, 5], [1, 1], [2, 2], 1), &[32], &[48], [8, 9], 3),
        case(window([5, 5], [1, 1], [0, 0], 1), &[20], &[50], [12, 12], 2),
        case(window([1, 1], [1, 1], [0, 0], 1), &[40], &[80], [7, 7], 3),
        case(window([1, 1], [2, 2], [0, 0], 1), &[16], &[32], [9, 8], 2),
        case(window([3, 3], [2, 2], [1, 1], 1), &[16], &[33], [13, 14], 2),
        case(window([5, 5], [1, 1], [2, 2], 2), &[48, 48], &[53, 53], [7, 9], 2),
        case(window([5, 5], [1, 1], [2, 2], 2), &[96], &[106], [6, 4], 2),
        case(window([3, 1], [1, 2], [1, 0], 1), &[3, 30], &[8, 20], [6, 6], 1),
        case(window([3, 3], [1, 1], [1, 1], 8), &[24], &[16], [5, 5], 2),
        case(Window { dilation: [2, 3], ..window([3, 2], [1, 1], [2, 3], 1) }, &[10], &[17], [9, 9], 2),
        planar(window([11, 11], [4, 4], [2, 2], 1), 3, &[64], [35, 31], 2),
        planar(window([7, 7], [2, 2], [3, 3], 1), 3, &[24], [21, 18], 3),
        planar(window([5, 5], [1, 1], [0, 0], 1), 1, &[20], [28, 28], 7),
        planar(window([5, 5], [1, 1], [2, 2], 1), 3, &[32], [32, 32], 2),
        planar(Window { dilation: [2, 2], ..window([3, 3], [1, 1], [2, 2], 1) }, 2, &[5], [9, 9], 2),
    ];
    cases.iter().for_each(check_case);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let view = View::blocked(0, &[16], [4, 4], [1, 1]);
    let gradient = WeightGradient::new(window([3, 3], [1, 1], [1, 1], 1), &view, &view, None, 2);
    let memory = vec![0.0; view.extent(2).end];
    let mut scratch = vec![0.0; gradient.scratch_len()];
    let mut run = |images: usize, len: usize, weight: usize| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut weight = vec![0.0; weight];
            gradient.run(images, &memory[..len], &memory, &mut weight, None, &mut scratch, Par::Serial);
        }))
        .is_ok()
    };
    assert!(run(2, memory.len(), 16 * 16 * 9));
    assert!(!run(3, memory.len(), 16 * 16 * 9));
    assert!(!run(2, memory.len() - 1, 16 * 16 * 9));
    assert!(!run(2, memory.len(), 16 * 16 * 9 - 1));
}
