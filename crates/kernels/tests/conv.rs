//! Convolution, forward and backward, against f64 loops straight from the definition.

use cofilter_kernels::{
    ConvShape, Epilogue, PackedConv, Par, conv2d, conv2d_backward_bias, conv2d_backward_src,
    conv2d_backward_weight, cpu_tier,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Calls `f(dst index, src index, weight index)` for every product of the convolution that does not fall on
/// padding.
fn for_each_product(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let [oh, ow] = shape.out_size();
    let (channels, filters) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let ([kh, kw], [ih, iw]) = (shape.kernel, shape.in_size);
    for n in 0..shape.batch {
        for o in 0..shape.out_channels {
            for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
                let dst = ((n * shape.out_channels + o) * oh + y) * ow + x;
                for c in 0..channels {
                    let channel = n * shape.in_channels + o / filters * channels + c;
                    for (r, s) in (0..kh).flat_map(|r| (0..kw).map(move |s| (r, s))) {
                        let row =
                            (y * shape.stride[0] + r * shape.dilation[0]).wrapping_sub(shape.padding[0]);
                        let col =
                            (x * shape.stride[1] + s * shape.dilation[1]).wrapping_sub(shape.padding[1]);
                        if row < ih && col < iw {
                            f(dst, (channel * ih + row) * iw + col, ((o * channels + c) * kh + r) * kw + s);
                        }
                    }
                }
            }
        }
    }
}

/// The largest difference allowed between `got` and `expected`: rounding of sums of `terms` products of
/// numbers in -1..1.
fn assert_close(got: &[f32], expected: &[f64], terms: usize, what: &str, shape: &ConvShape) {
    assert_eq!(got.len(), expected.len(), "{what} {shape:?}");
    let tolerance = 2e-6 * (terms as f64).sqrt() + 1e-7 * terms as f64;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let difference = (f64::from(got) - expected).abs();
        assert!(
            difference <= tolerance,
            "{what}[{i}] is {got}, expected {expected}, {shape:?}, {}",
            cpu_tier()
        );
    }
}

/// Runs `f` into a buffer of garbage on one thread and in the ambient pool, and returns the result both must
/// agree on.
fn both(len: usize, what: &str, shape: &ConvShape, mut f: impl FnMut(&mut [f32], Par)) -> Vec<f32> {
    let mut serial = vec![f32::NAN; len];
    f(&mut serial, Par::Serial);
    let mut rayon = vec![f32::NAN; len];
    f(&mut rayon, Par::Rayon);
    assert_eq!(bits(&serial), bits(&rayon), "{what}: serial and rayon differ, {shape:?}");
    serial
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Checks all four operations and the packed convolution on one shape.
fn check(shape: &ConvShape, rng: &mut ChaCha8Rng) {
    let (src, weight) = (random(rng, shape.src_len()), random(rng, shape.weight_len()));
    let (bias, grad) = (random(rng, shape.out_channels), random(rng, shape.dst_len()));
    let plane: usize = shape.out_size().iter().product();
    let channel = |i: usize| i / plane % shape.out_channels;
    let mut dst: Vec<f64> = vec![0.0; shape.dst_len()];
    let (mut grad_src, mut grad_weight) = (vec![0.0; shape.src_len()], vec![0.0; shape.weight_len()]);
    for_each_product(shape, |d, s, w| {
        dst[d] += f64::from(src[s]) * f64::from(weight[w]);
        grad_src[s] += f64::from(grad[d]) * f64::from(weight[w]);
        grad_weight[w] += f64::from(grad[d]) * f64::from(src[s]);
    });
    let taps = shape.weight_len() / shape.out_channels;

    let got = both(dst.len(), "dst", shape, |dst, par| conv2d(shape, &src, &weight, None, dst, par));
    assert_close(&got, &dst, taps, "dst without bias", shape);
    let biased: Vec<_> = dst.iter().enumerate().map(|(i, &d)| d + f64::from(bias[channel(i)])).collect();
    let got = both(dst.len(), "dst", shape, |dst, par| conv2d(shape, &src, &weight, Some(&bias), dst, par));
    assert_close(&got, &biased, taps + 1, "dst", shape);

    let got =
        both(src.len(), "grad_src", shape, |dst, par| conv2d_backward_src(shape, &grad, &weight, dst, par));
    assert_close(&got, &grad_src, taps * shape.out_channels, "grad_src", shape);
    let got = both(weight.len(), "grad_weight", shape, |dst, par| {
        conv2d_backward_weight(shape, &src, &grad, dst, par)
    });
    assert_close(&got, &grad_weight, shape.batch * plane, "grad_weight", shape);
    let mut grad_bias = vec![0.0; shape.out_channels];
    grad.iter().enumerate().for_each(|(i, &grad)| grad_bias[channel(i)] += f64::from(grad));
    let got = both(bias.len(), "grad_bias", shape, |dst, par| conv2d_backward_bias(shape, &grad, dst, par));
    assert_close(&got, &grad_bias, shape.batch * plane, "grad_bias", shape);

    let add = random(rng, dst.len());
    for (with_bias, with_add, relu) in
        [(false, false, false), (true, false, true), (true, true, true), (false, true, false)]
    {
        let packed =
            PackedConv::new(&ConvShape { batch: 77, ..*shape }, &weight, with_bias.then_some(&bias[..]));
        let epilogue = Epilogue { add: with_add.then_some(&add[..]), relu };
        let scratch_len = packed.scratch_len(shape.batch, rayon::current_num_threads());
        let got = both(dst.len(), "packed", shape, |dst, par| {
            packed.run(shape.batch, &src, epilogue, dst, &mut vec![f32::NAN; scratch_len], par);
        });
        let expected: Vec<_> = (0..dst.len())
            .map(|i| {
                let bias = if with_bias { f64::from(bias[channel(i)]) } else { 0.0 };
                let sum = dst[i] + bias + if with_add { f64::from(add[i]) } else { 0.0 };
                if relu { sum.max(0.0) } else { sum }
            })
            .collect();
        assert_close(&got, &expected, taps + 2, "packed", shape);
    }
}

/// `[batch, channels, height, width, filters, kernel, kernel, stride, stride, padding, padding, dilation,
/// dilation, groups]`.
fn shape(extents: [usize; 14]) -> ConvShape {
    let [batch, in_channels, h, w, out_channels, kh, kw, sh, sw, ph, pw, dh, dw, groups] = extents;
    ConvShape {
        batch,
        in_channels,
        in_size: [h, w],
        out_channels,
        kernel: [kh, kw],
        stride: [sh, sw],
        padding: [ph, pw],
        dilation: [dh, dw],
        groups,
    }
}

/// Shapes that networks use, small, and corners of the geometry.
const CASES: &[[usize; 14]] = &[
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1],
    [2, 1, 28, 28, 20, 5, 5, 1, 1, 0, 0, 1, 1, 1],
    [3, 20, 12, 12, 50, 5, 5, 1, 1, 0, 0, 1, 1, 1],
    [2, 3, 35, 35, 24, 11, 11, 4, 4, 0, 0, 1, 1, 1],
    [2, 3, 32, 32, 8, 11, 11, 4, 4, 2, 2, 1, 1, 1],
    [2, 8, 13, 13, 12, 5, 5, 1, 1, 2, 2, 1, 1, 2],
    [1, 16, 13, 13, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    [4, 16, 8, 8, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    [5, 24, 7, 7, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    [3, 8, 17, 17, 16, 3, 3, 2, 2, 1, 1, 1, 1, 1],
    [2, 3, 31, 33, 16, 7, 7, 2, 2, 3, 3, 1, 1, 1],
    [3, 32, 9, 9, 40, 1, 1, 1, 1, 0, 0, 1, 1, 1],
    [3, 12, 10, 11, 20, 1, 1, 2, 2, 0, 0, 1, 1, 1],
    [2, 6, 9, 12, 10, 3, 1, 1, 1, 1, 0, 1, 1, 1],
    [2, 6, 9, 12, 10, 1, 3, 1, 1, 0, 1, 1, 1, 1],
    [2, 6, 12, 9, 10, 1, 5, 1, 2, 0, 2, 1, 1, 1],
    [2, 8, 11, 11, 8, 3, 3, 1, 1, 1, 1, 1, 1, 8],
    [2, 8, 11, 11, 16, 3, 3, 2, 2, 1, 1, 1, 1, 4],
    [2, 4, 15, 14, 6, 3, 3, 1, 1, 2, 2, 2, 2, 1],
    [1, 4, 16, 19, 6, 3, 2, 2, 3, 1, 2, 3, 2, 2],
    // The stride is larger than the kernel: some pixels are never read.
    [2, 3, 11, 13, 5, 2, 1, 4, 3, 0, 0, 1, 1, 1],
    // Padding larger than the kernel: whole outputs see only zeros.
    [2, 2, 5, 6, 3, 2, 3, 1, 2, 4, 5, 1, 1, 1],
    // Stride and dilation share a factor: one remainder gets all taps, the others none.
    [1, 3, 17, 18, 4, 3, 3, 2, 2, 2, 2, 2, 2, 1],
    // A convolution that is a fully connected layer.
    [70, 9, 4, 4, 33, 4, 4, 1, 1, 0, 0, 1, 1, 1],
    // Depth over several blocks, more filters than a job takes.
    [1, 48, 6, 6, 200, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    // The image is smaller than the filter: there is no output.
    [2, 3, 2, 9, 4, 3, 3, 1, 1, 0, 0, 1, 1, 1],
    [0, 3, 9, 9, 4, 3, 3, 1, 1, 0, 0, 1, 1, 1],
];

#[test]
fn known_shapes_match_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for extents in CASES {
        check(&shape(*extents), &mut rng);
    }
}

#[test]
fn random_shapes_match_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..300 {
        let groups = rng.random_range(1..=3);
        let mut upto = |most: usize| rng.random_range(1..=most);
        let (channels, filters) = (groups * upto(6), groups * upto(11));
        let kernel = [upto(5), upto(5)];
        let padding = [upto(kernel[0] + 1) - 1, upto(kernel[1] + 1) - 1];
        let shape = ConvShape {
            batch: upto(4),
            in_channels: channels,
            in_size: [upto(20), upto(20)],
            out_channels: filters,
            kernel,
            stride: [upto(3), upto(3)],
            padding,
            dilation: [upto(2), upto(2)],
            groups,
        };
        check(&shape, &mut rng);
    }
}

/// Large enough that several threads take part: many images, one image, few pixels and many filters, strided,
/// grouped.
const LARGE: &[[usize; 14]] = &[
    [64, 1, 28, 28, 20, 5, 5, 1, 1, 0, 0, 1, 1, 1],
    [9, 20, 12, 12, 50, 5, 5, 1, 1, 0, 0, 1, 1, 1],
    [1, 16, 56, 56, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    [1, 96, 7, 7, 192, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    [10, 32, 7, 7, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    [1, 3, 99, 99, 32, 11, 11, 4, 4, 0, 0, 1, 1, 1],
    [3, 64, 28, 28, 64, 1, 1, 1, 1, 0, 0, 1, 1, 1],
    [7, 64, 28, 28, 64, 1, 1, 2, 2, 0, 0, 1, 1, 1],
    [5, 32, 27, 27, 64, 5, 5, 1, 1, 2, 2, 1, 1, 2],
    [33, 256, 1, 1, 200, 1, 1, 1, 1, 0, 0, 1, 1, 1],
];

#[test]
fn large_shapes_match_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for extents in LARGE {
        check(&shape(*extents), &mut rng);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for extents in LARGE {
        let shape = shape(*extents);
        assert!(shape.macs() >= 1 << 20, "{shape:?} is too small to be shared out");
        let (src, weight) = (random(&mut rng, shape.src_len()), random(&mut rng, shape.weight_len()));
        let grad = random(&mut rng, shape.dst_len());
        let packed = PackedConv::new(&shape, &weight, None);
        let run = || {
            let mut results =
                [shape.dst_len(), shape.src_len(), shape.weight_len(), shape.out_channels, shape.dst_len()]
                    .map(|len| vec![f32::NAN; len]);
            conv2d(&shape, &src, &weight, None, &mut results[0], Par::Rayon);
            conv2d_backward_src(&shape, &grad, &weight, &mut results[1], Par::Rayon);
            conv2d_backward_weight(&shape, &src, &grad, &mut results[2], Par::Rayon);
            conv2d_backward_bias(&shape, &grad, &mut results[3], Par::Rayon);
            let mut scratch = vec![f32::NAN; packed.scratch_len(shape.batch, rayon::current_num_threads())];
            packed.run(shape.batch, &src, Epilogue::default(), &mut results[4], &mut scratch, Par::Rayon);
            results.map(|result| bits(&result))
        };
        let one = pool(1).install(run);
        for threads in [2, 3, 7] {
            assert_eq!(pool(threads).install(run), one, "{threads} threads, {shape:?}");
        }
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started")
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for extents in LARGE {
        let shape = shape(*extents);
        let single = ConvShape { batch: 1, ..shape };
        let (src, weight) = (random(&mut rng, shape.src_len()), random(&mut rng, shape.weight_len()));
        let mut together = vec![f32::NAN; shape.dst_len()];
        conv2d(&shape, &src, &weight, None, &mut together, Par::Serial);
        for (src, together) in src.chunks(single.src_len()).zip(together.chunks(single.dst_len())) {
            let mut alone = vec![f32::NAN; single.dst_len()];
            conv2d(&single, src, &weight, None, &mut alone, Par::Serial);
            assert_eq!(bits(&alone), bits(together), "{shape:?}");
        }
    }
}

#[test]
fn nan_reaches_every_output_that_reads_it() {
    let shape = shape([1, 2, 6, 6, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1]);
    let (mut src, weight) = (vec![1.0; shape.src_len()], vec![1.0; shape.weight_len()]);
    src[6 * 2 + 3] = f32::NAN;
    let mut dst = vec![0.0; shape.dst_len()];
    let packed = PackedConv::new(&shape, &weight, None);
    let mut scratch = vec![0.0; packed.scratch_len(1, 1)];
    packed.run(1, &src, Epilogue { add: None, relu: true }, &mut dst, &mut scratch, Par::Serial);
    for (i, dst) in dst.iter().enumerate() {
        let (y, x) = (i / 6 % 6, i % 6);
        assert_eq!(dst.is_nan(), (1..=3).contains(&y) && (2..=4).contains(&x), "output {y}, {x}");
    }
}

#[test]
fn every_tier_of_this_machine_passes() {
    if std::env::var_os("COFILTER_CPU").is_some() {
        return;
    }
    for tier in ["avx512", "avx2", "neon", "portable"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .env("COFILTER_CPU", tier)
            .args(["--skip", "every_tier"])
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                println!("skipped {tier}: a test that is emulated cannot start itself ({error})");
                continue;
            }
        };
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "COFILTER_CPU={tier}:\n{text}");
        if text.contains("this machine has the tiers") {
            println!("skipped: this machine has no {tier}");
        }
    }
}

#[test]
#[should_panic(expected = "length of src")]
fn a_short_source_is_refused() {
    let shape = shape([1, 2, 6, 6, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1]);
    conv2d(&shape, &[0.0; 71], &[0.0; 54], None, &mut [0.0; 108], Par::Serial);
}

#[test]
#[should_panic(expected = "groups do not divide")]
fn groups_that_do_not_divide_are_refused() {
    let shape = shape([1, 3, 6, 6, 4, 3, 3, 1, 1, 1, 1, 1, 1, 2]);
    conv2d(&shape, &[0.0; 108], &[0.0; 54], None, &mut [0.0; 144], Par::Serial);
}

#[test]
#[should_panic(expected = "extents too large")]
fn absurd_extents_are_refused() {
    let shape = shape([1, 1, 6, 6, 1, 3, 3, 1, 1, usize::MAX / 2, 1, 1, 1, 1]);
    conv2d(&shape, &[0.0; 36], &[0.0; 9], None, &mut [0.0; 16], Par::Serial);
}
