use super::*;
use crate::blocked::testing::{check_zeros, convolution, noise, pack, run, unpack};
use crate::tier::available;

/// A case: window, channels in and out, output segments, size in, images.
struct Case {
    window: Window,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    size: [usize; 2],
    planar: bool,
    images: usize,
    add: bool,
    relu: bool,
    zeros: Zeros,
}

/// Which weights are zero.
#[derive(Clone, Copy, Debug, Default)]
enum Zeros {
    #[default]
    None,
    /// Two of three columns of the weight matrix, in no order.
    Columns,
    /// All of every second channel that is read.
    Channels,
    /// Two of three columns of each block of filters, other ones in each.
    Blocks,
    All,
}

impl Zeros {
    fn holds(self, filter: usize, column: usize, area: usize) -> bool {
        let drawn = |seed: u32| noise(1, seed << 16 | column as u32)[0] > -0.33;
        match self {
            Self::None => false,
            Self::Columns => drawn(0),
            Self::Channels => (column / area) % 2 == 1,
            Self::Blocks => drawn((filter / BLOCK + 1) as u32),
            Self::All => true,
        }
    }
}

fn check_case(case: &Case) {
    let (inputs, outputs) = (case.inputs.iter().sum::<usize>(), case.outputs.iter().sum::<usize>());
    let Window { kernel, stride, padding, dilation, groups } = case.window;
    let out: [usize; 2] = std::array::from_fn(|d| {
        (case.size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1
    });
    let src = if case.planar {
        View::planar(16, inputs, case.size, padding, stride[1])
    } else {
        View::blocked(16, &case.inputs, case.size, padding)
    };
    let dst = View::blocked(src.extent(case.images).end.next_multiple_of(16), &case.outputs, out, [1, 2]);
    let add = View::blocked(dst.extent(case.images).end, &case.outputs, out, [0, 1]);
    let mut arena = vec![f32::NAN; add.extent(case.images).end + 16];
    let x = noise(case.images * inputs * case.size[0] * case.size[1], 1);
    let columns = inputs / groups * kernel[0] * kernel[1];
    let mut weight = noise(outputs * columns, 2);
    for (at, weight) in weight.iter_mut().enumerate() {
        if case.zeros.holds(at / columns, at % columns, kernel[0] * kernel[1]) {
            *weight = 0.0;
        }
    }
    let bias = noise(outputs, 3);
    let addend = noise(case.images * outputs * out[0] * out[1], 4);
    pack(&src, case.images, &x, &mut arena);
    pack(&add, case.images, &addend, &mut arena);
    let weights = Weights { weight: &weight, bias: Some(&bias), relu: case.relu };
    let [height, width] = case.size;
    let add_to = case.add.then_some(&addend[..]);
    let expected = convolution(case.window, [inputs, height, width], case.images, &x, &weights, add_to);
    let depth = (inputs / groups * kernel[0] * kernel[1]) as f64;
    for tier in available() {
        let make = |threads: usize| {
            let weights = Weights { weight: &weight, bias: Some(&bias), relu: case.relu };
            let add = case.add.then_some(&add);
            vec![Step::from_stage(Conv::new(
                tier,
                case.window,
                weights,
                &src,
                add,
                &dst,
                case.images,
                threads,
                Vec::new(),
            ))]
        };
        let memory = run(make, case.images, &arena);
        check_zeros(&dst, case.images, &memory);
        for (i, (found, expected)) in unpack(&dst, case.images, &memory).iter().zip(&expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(
                error <= 1e-6 * depth.max(4.0),
                "{tier:?} {:?}: {found} at {i}, expected {expected}",
                case.window
            );
        }
    }
}

fn window(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], groups: usize) -> Window {
    Window { kernel, stride, padding, dilation: [1, 1], groups }
}

#[test]
fn every_kind_of_convolution_equals_the_formula() {
    let case = |window, inputs: &[usize], outputs: &[usize], size| Case {
        window,
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
        size,
        planar: false,
        images: 2,
        add: false,
        relu: false,
        zeros: Zeros::None,
    };
    let three = window([3, 3], [1, 1], [1, 1], 1);
    let cases = [
        case(three, &[32], &[64], [9, 9]),
        case(three, &[16], &[5], [8, 11]),
        case(three, &[20], &[53], [7, 7]),
        Case { images: 3, add: true, relu: true, ..case(three, &[37], &[48], [5, 6]) },
        Case { add: true, ..case(three, &[16], &[7], [6, 15]) },
        Case { relu: true, ..case(window([1, 1], [1, 1], [0, 0], 1), &[40], &[96], [7, 7]) },
        case(window([1, 1], [2, 2], [0, 0], 1), &[16], &[32], [9, 8]),
        case(window([3, 3], [2, 2], [1, 1], 1), &[16], &[33], [13, 14]),
        case(window([5, 5], [1, 1], [2, 2], 2), &[48, 48], &[53, 53], [7, 9]),
        case(window([5, 5], [1, 1], [2, 2], 2), &[96], &[106], [6, 4]),
        case(window([3, 1], [1, 1], [1, 0], 1), &[3, 30], &[8, 20], [6, 6]),
        case(window([1, 3], [1, 1], [0, 1], 1), &[10], &[16], [3, 20]),
        case(window([3, 3], [3, 4], [1, 1], 1), &[18], &[20], [11, 13]),
        case(window([3, 3], [1, 1], [1, 1], 12), &[12], &[24], [5, 5]),
        case(window([3, 3], [1, 1], [1, 1], 3), &[33], &[21], [5, 5]),
        case(window([2, 2], [1, 1], [0, 0], 1), &[4], &[40], [2, 2]),
        case(Window { dilation: [2, 3], ..window([3, 3], [1, 1], [2, 3], 1) }, &[16], &[32], [8, 9]),
        Case { planar: true, ..case(window([11, 11], [4, 4], [0, 0], 1), &[3], &[96], [35, 39]) },
        Case { planar: true, ..case(window([7, 7], [2, 2], [3, 3], 1), &[3], &[20], [18, 21]) },
        Case { planar: true, relu: true, ..case(window([5, 5], [1, 1], [2, 2], 1), &[1], &[7], [9, 30]) },
        Case { planar: true, ..case(three, &[3], &[16], [10, 33]) },
        Case { images: 5, ..case(three, &[256], &[320], [4, 4]) },
    ];
    for mut case in cases {
        for zeros in [Zeros::None, Zeros::Columns, Zeros::Channels, Zeros::Blocks, Zeros::All] {
            case.zeros = zeros;
            check_case(&case);
        }
    }
}

#[test]
fn columns_of_zeros_are_neither_kept_nor_read() {
    let (inputs, outputs, size) = (32, 64, [6, 6]);
    let src = View::blocked(0, &[inputs], size, [1, 1]);
    let dst = View::blocked(src.memory_len(1), &[outputs], size, [0, 0]);
    let columns = inputs * 9;
    let bytes = |zeros: Zeros| {
        let weight: Vec<f32> = (0..outputs * columns)
            .map(|at| if zeros.holds(at / columns, at % columns, 9) { 0.0 } else { 1.0 })
            .collect();
        let weights = Weights { weight: &weight, bias: None, relu: false };
        Step::conv(window([3, 3], [1, 1], [1, 1], 1), weights, &src, None, &dst, 1, 1).weight_bytes()
    };
    let left = |zeros: Zeros, filter: usize| (0..columns).filter(|c| !zeros.holds(filter, *c, 9)).count();
    let biases = outputs * 4;
    assert_eq!(bytes(Zeros::None), outputs * columns * 4 + biases);
    for zeros in [Zeros::Columns, Zeros::Channels] {
        assert_eq!(bytes(zeros), outputs * left(zeros, 0) * 4 + biases, "{zeros:?}");
    }
    let blocks: usize =
        (0..outputs).step_by(BLOCK).map(|filter| left(Zeros::Blocks, filter) * BLOCK * 4).sum();
    assert_eq!(bytes(Zeros::Blocks), blocks + biases);
}

#[test]
fn random_shapes_equal_the_formula() {
    let mut state = 7_u64;
    let mut pick = |from: usize, to: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (state >> 33) as usize % (to - from + 1)
    };
    for _ in 0..40 {
        let groups = [1, 1, 1, 2, 3][pick(0, 4)];
        let kernel = [pick(1, 5), pick(1, 5)];
        let dilation = [pick(1, 2), pick(1, 2)];
        let padding = [pick(0, 2), pick(0, 2)];
        let size = std::array::from_fn(|d| (dilation[d] * (kernel[d] - 1) + 1).max(pick(1, 20)));
        let planar = pick(0, 3) == 0;
        check_case(&Case {
            window: Window { kernel, stride: [pick(1, 3), pick(1, 3)], padding, dilation, groups },
            inputs: vec![groups * pick(1, if planar { 4 } else { 40 })],
            outputs: vec![groups * pick(1, 70)],
            size,
            planar,
            images: pick(1, 3),
            add: pick(0, 1) == 1,
            relu: pick(0, 1) == 1,
            zeros: [Zeros::None, Zeros::Columns, Zeros::Channels, Zeros::Blocks][pick(0, 3)],
        });
    }
}

#[test]
#[should_panic(expected = "reads beyond the border")]
fn a_border_that_is_too_narrow_is_refused() {
    let src = View::blocked(0, &[16], [4, 4], [1, 1]);
    let dst = View::blocked(src.memory_len(1), &[16], [5, 5], [0, 0]);
    let weight = vec![0.0; 16 * 16 * 9];
    let weights = Weights { weight: &weight, bias: None, relu: false };
    Step::conv(window([3, 3], [1, 1], [1, 1], 1), weights, &src, None, &dst, 1, 1);
}

#[test]
fn a_pair_equals_its_two_convolutions_bit_for_bit() {
    let three = window([3, 3], [1, 1], [1, 1], 1);
    let point = window([1, 1], [1, 1], [0, 0], 1);
    let across = window([1, 5], [1, 2], [0, 2], 1);
    let cases = [
        (three, vec![32], vec![11], point, vec![48], [9, 14], [1, 1], 3),
        (
            window([3, 3], [1, 1], [1, 1], 2),
            vec![64],
            vec![21, 21],
            window([1, 1], [1, 1], [0, 0], 2),
            vec![64],
            [13, 13],
            [1, 1],
            2,
        ),
        (window([5, 1], [1, 1], [2, 0], 1), vec![24], vec![20], across, vec![32], [40, 33], [2, 0], 2),
        (window([3, 3], [2, 2], [1, 1], 1), vec![16], vec![5], point, vec![32], [16, 16], [1, 1], 9),
        (three, vec![64], vec![24], point, vec![64], [56, 56], [1, 1], 1),
    ];
    for (first, inputs, middles, second, outputs, size, border, images) in cases {
        let channels = |segments: &[usize]| segments.iter().sum::<usize>();
        let (c, m, o) = (channels(&inputs), channels(&middles), channels(&outputs));
        let out = |window: &Window, size: [usize; 2]| -> [usize; 2] {
            std::array::from_fn(|d| {
                (size[d] + 2 * window.padding[d] - window.kernel[d]) / window.stride[d] + 1
            })
        };
        let src = View::blocked(0, &inputs, size, border);
        let between = out(&first, size);
        let middle = View::blocked(src.extent(images).end, &middles, between, second.padding);
        let result = out(&second, between);
        let dst = View::blocked(middle.extent(images).end, &outputs, result, [1, 1]);
        let add = View::blocked(dst.extent(images).end, &outputs, result, [0, 0]);
        let mut arena = vec![f32::NAN; add.extent(images).end];
        pack(&src, images, &noise(images * c * size[0] * size[1], 1), &mut arena);
        pack(&add, images, &noise(images * o * result[0] * result[1], 2), &mut arena);
        let first_weight = noise(m * c / first.groups * first.kernel[0] * first.kernel[1], 3);
        let second_weight = noise(o * m / second.groups * second.kernel[1], 4);
        let (first_bias, second_bias) = (noise(m, 5), noise(o, 6));
        for tier in available() {
            let a = Weights { weight: &first_weight, bias: Some(&first_bias), relu: false };
            let b = Weights { weight: &second_weight, bias: Some(&second_bias), relu: true };
            let two = |threads: usize| {
                vec![
                    Step::from_stage(Conv::new(
                        tier,
                        first,
                        a,
                        &src,
                        None,
                        &middle,
                        images,
                        threads,
                        Vec::new(),
                    )),
                    Step::from_stage(Conv::new(
                        tier,
                        second,
                        b,
                        &middle,
                        Some(&add),
                        &dst,
                        images,
                        threads,
                        Vec::new(),
                    )),
                ]
            };
            let one = |threads: usize| {
                let pair = pair::Pair::new(
                    tier,
                    (first, a),
                    &middles,
                    (second, b),
                    &src,
                    Some(&add),
                    &dst,
                    images,
                    threads,
                );
                vec![Step::from_stage(pair)]
            };
            let (two, one) = (run(two, images, &arena), run(one, images, &arena));
            check_zeros(&dst, images, &one);
            let (two, one) = (unpack(&dst, images, &two), unpack(&dst, images, &one));
            assert!(one.iter().any(|number| *number > 0.0));
            assert!(
                two.iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{tier:?} {first:?} {second:?}"
            );
        }
    }
}

#[test]
fn a_thin_combination_of_one_image_is_work_for_several_threads() {
    let src = View::blocked(0, &[21], [56, 56], [0, 0]);
    let dst = View::blocked(src.memory_len(1), &[48], [56, 56], [0, 0]);
    let window = Window { kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };
    let weights = Weights { weight: &[0.5; 48 * 21], bias: None, relu: false };
    for tier in available() {
        let jobs =
            |threads| Conv::new(tier, window, weights, &src, None, &dst, 1, threads, Vec::new()).jobs(1);
        assert!(jobs(1) == 1 && jobs(2) >= 2, "{tier:?}: {} and {} jobs", jobs(1), jobs(2));
    }
}
