//! Convolution: GFLOP/s and share of the measured multiply-add peak, forward and backward.
//!
//! `cargo bench -p cofilter-kernels --bench conv [-- NAME..]` first checks every operation of every shape
//! against f64 sums, then prints medians of interleaved runs on one thread and in the global pool. Names
//! select shapes. The last three columns are on blocked maps, filters packed in every run, as training does.

use std::time::{Duration, Instant};

use cofilter_kernels::blocked::{
    Aligned, InputGradient, PackedMemory, Place, Step, View, WeightGradient, Weights, Window, WinogradTile,
};
use cofilter_kernels::{
    ConvShape, Epilogue, PackedConv, Par, conv2d, conv2d_backward_src, conv2d_backward_weight, cpu_tier,
    yardstick,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Interleaved runs of which the median is printed.
const ROUNDS: usize = 15;
/// Results of each operation that are compared with f64 sums.
const CHECKED: usize = 50;

/// Name, batch, in_channels, in_size, out_channels, kernel, stride, padding, groups.
type Case = (&'static str, [usize; 8]);

const CASES: &[Case] = &[
    ("lenet-conv1", [64, 1, 28, 20, 5, 1, 0, 1]),
    ("lenet-conv2", [64, 20, 12, 50, 5, 1, 0, 1]),
    ("alexnet-conv1", [8, 3, 227, 96, 11, 4, 0, 1]),
    ("alexnet-conv2", [8, 96, 27, 256, 5, 1, 2, 2]),
    ("alexnet-conv3", [8, 256, 13, 384, 3, 1, 1, 1]),
    ("alexnet-conv3-single", [1, 256, 13, 384, 3, 1, 1, 1]),
    ("alexnet-conv4", [8, 384, 13, 384, 3, 1, 1, 2]),
    ("resnet20-16", [128, 16, 32, 16, 3, 1, 1, 1]),
    ("resnet20-32", [128, 32, 16, 32, 3, 1, 1, 1]),
    ("resnet20-64", [128, 64, 8, 64, 3, 1, 1, 1]),
    ("resnet18-64", [1, 64, 56, 64, 3, 1, 1, 1]),
    ("resnet18-128", [1, 128, 28, 128, 3, 1, 1, 1]),
    ("resnet18-128-stride2", [8, 64, 56, 128, 3, 2, 1, 1]),
    ("training18-64", [32, 64, 16, 64, 3, 1, 1, 1]),
    ("training18-128", [32, 128, 8, 128, 3, 1, 1, 1]),
    ("training18-256", [32, 256, 4, 256, 3, 1, 1, 1]),
    ("training18-512", [32, 512, 2, 512, 3, 1, 1, 1]),
    ("training-alexnet4", [32, 384, 13, 256, 3, 1, 1, 1]),
    ("resnet18-256", [1, 256, 14, 256, 3, 1, 1, 1]),
    ("resnet18-512", [8, 512, 7, 512, 3, 1, 1, 1]),
    ("resnet50-1x1-64-256", [1, 64, 56, 256, 1, 1, 0, 1]),
    ("resnet50-1x1-1024-256", [8, 1024, 14, 256, 1, 1, 0, 1]),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let measure = arguments.iter().any(|argument| argument == "--bench");
    let names: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let threads = rayon::current_num_threads();
    println!("tier {}, {threads} threads, peak {:.0} GFLOP/s on one", cpu_tier(), yardstick::fma_gflops(1));
    println!(
        "{:22} {:>6} {:>18} {:>18} {:>18} {:>18} {:>18} {:>18} {:>18}",
        "GFLOP/s (% of peak)",
        "thread",
        "packed forward",
        "forward",
        "backward src",
        "backward weight",
        "blocked forward",
        "blocked src",
        "blocked weight"
    );
    for case in CASES
        .iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| name.contains(wanted.as_str())))
    {
        run(case, measure, threads);
    }
}

const OPERATIONS: usize = 7;

/// Maps in blocks: source, result and gradients of both.
struct Blocked {
    window: Window,
    views: [View; 2],
    maps: [Aligned<f32>; 4],
    scratch: Vec<f32>,
    room: Room,
    memory: PackedMemory,
}

/// Scratch memory of kernels.
#[derive(Default)]
struct Room(Vec<f32>);

impl Room {
    fn for_threads(&mut self, len: usize, threads: usize) -> &mut [f32] {
        let len = len * threads + Step::SCRATCH_MORE;
        self.0.resize(len.max(self.0.len()), 0.0);
        &mut self.0[..len]
    }
}

/// How training computes a convolution, or what is forced: `TILE` is 0 for sums, 2 or 4.
fn tile(window: &Window, src: &View, dst: &View, batch: usize) -> Option<WinogradTile> {
    forced(window, src, dst).unwrap_or_else(|| WinogradTile::fastest(window, src, dst, batch, batch, 1.0))
}

fn filters_tile(window: &Window, src: &View, grad: &View, batch: usize) -> Option<WinogradTile> {
    let fastest = || WinogradTile::fastest_gradient(window, src, grad, batch, None, batch, 1.0);
    forced(window, src, grad).unwrap_or_else(fastest)
}

fn forced(window: &Window, src: &View, dst: &View) -> Option<Option<WinogradTile>> {
    let tile = match &*std::env::var("TILE").ok()? {
        "2" => WinogradTile::Two,
        "4" => WinogradTile::Four,
        _ => return Some(None),
    };
    Some(Some(tile).filter(|tile| tile.fits(window, src, dst)))
}

impl Blocked {
    fn new(shape: &ConvShape, src: &[f32], grad_dst: &[f32]) -> Self {
        let ConvShape { kernel, stride, padding, dilation, groups, .. } = *shape;
        let window = Window { kernel, stride, padding, dilation, groups };
        let out = shape.out_size();
        let border = InputGradient::border(&window, shape.in_size, out);
        let views = [
            View::blocked(0, &[shape.in_channels], shape.in_size, padding),
            View::blocked(0, &[shape.out_channels], out, border),
        ];
        let map = |view: &View| Aligned::new(view.memory_len(shape.batch), 0.0);
        let mut maps = [map(&views[0]), map(&views[1]), map(&views[0]), map(&views[1])];
        for (view, map, numbers) in [(0, 0, src), (1, 3, grad_dst)] {
            let view = &views[view];
            let dense = View::dense(Place::Images, view.channels(), view.size);
            Step::relayout(&dense, view).run(shape.batch, numbers, maps[map].as_mut_slice(), Par::Rayon);
        }
        Self {
            window,
            views,
            maps,
            scratch: Vec::new(),
            room: Room::default(),
            memory: PackedMemory::default(),
        }
    }

    fn operate(&mut self, shape: &ConvShape, weight: &[f32], dst: &mut [f32], operation: usize, par: Par) {
        let Self { window, views: [src, dst_view], maps: [x, y, dx, dy], scratch, room, memory } = self;
        let threads = if par == Par::Serial { 1 } else { rayon::current_num_threads() };
        let read = View { place: Place::Images, ..src.clone() };
        match operation {
            4 => {
                let weights = Weights { weight, bias: None, relu: false };
                let batch = shape.batch;
                let step = match tile(window, src, dst_view, batch) {
                    None => Step::conv_in(*window, weights, &read, None, dst_view, batch, threads, memory),
                    Some(tile) => Step::winograd(
                        tile, *window, weights, &read, None, dst_view, batch, threads, par, memory,
                    ),
                };
                let room = room.for_threads(step.scratch_len(), threads);
                step.run_in(batch, x.as_slice(), y.as_mut_slice(), room, par);
                step.into_memory(memory);
            }
            5 => {
                let tile = tile(window, dst_view, src, shape.batch);
                let gradient =
                    InputGradient::new(*window, weight, dst_view, src, tile, shape.batch, par, memory);
                let room = room.for_threads(gradient.scratch_len(), threads);
                gradient.run(shape.batch, dy.as_slice(), dx.as_mut_slice(), room, par);
                gradient.into_memory(memory);
            }
            _ => {
                let tile = filters_tile(window, src, dst_view, shape.batch);
                let gradient = WeightGradient::new(*window, src, dst_view, tile, shape.batch);
                scratch.resize(gradient.scratch_len(), 0.0);
                gradient.run(shape.batch, x.as_slice(), dy.as_slice(), dst, None, scratch, par);
            }
        }
    }

    /// The map that an operation wrote, dense.
    fn dense(&self, shape: &ConvShape, operation: usize, dst: &mut [f32]) {
        let (view, map) = if operation == 4 { (&self.views[1], 1) } else { (&self.views[0], 2) };
        let read = View { place: Place::Images, ..view.clone() };
        Step::relayout(&read, &View::dense(Place::Arena, view.channels(), view.size)).run(
            shape.batch,
            self.maps[map].as_slice(),
            dst,
            Par::Rayon,
        );
    }
}

/// Tensors of one case.
struct Tensors {
    src: Vec<f32>,
    weight: Vec<f32>,
    grad_dst: Vec<f32>,
    /// Results: packed forward, forward, gradient of the source, gradient of the weight; the last three on blocked maps, which are
    /// checked when they are dense.
    results: [Vec<f32>; OPERATIONS],
    blocked: Blocked,
    packed: PackedConv,
    scratch: Vec<f32>,
}

fn run(
    &(name, [batch, in_channels, size, out_channels, kernel, stride, padding, groups]): &Case,
    measure: bool,
    threads: usize,
) {
    let shape = ConvShape {
        batch,
        in_channels,
        in_size: [size; 2],
        out_channels,
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [1, 1],
        groups,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let (src, weight, grad_dst) =
        (random(shape.src_len()), random(shape.weight_len()), random(shape.dst_len()));
    let packed = PackedConv::new(&shape, &weight, None);
    let scratch = vec![0.0; packed.scratch_len(batch, threads)];
    let [dst_len, src_len, weight_len] = [shape.dst_len(), shape.src_len(), shape.weight_len()];
    let results = [dst_len, dst_len, src_len, weight_len, dst_len, src_len, weight_len];
    let results = results.map(|len| vec![f32::NAN; len]);
    let blocked = Blocked::new(&shape, &src, &grad_dst);
    let mut tensors = Tensors { src, weight, grad_dst, results, blocked, packed, scratch };
    for operation in 0..OPERATIONS {
        operate(&shape, &mut tensors, operation, Par::Rayon);
        if operation == 4 || operation == 5 {
            tensors.blocked.dense(&shape, operation, &mut tensors.results[operation]);
        }
    }
    check(name, &shape, &tensors);
    if !measure {
        println!("{name:22} right");
        return;
    }
    // The peak moves with the clock, so it is measured beside the runs.
    let (mut times, mut peaks) = ([const { Vec::new() }; 2 * OPERATIONS], Vec::new());
    for _ in 0..ROUNDS {
        peaks.push(yardstick::fma_gflops(1));
        for (i, times) in times.iter_mut().enumerate() {
            let par = if i < OPERATIONS { Par::Serial } else { Par::Rayon };
            let start = Instant::now();
            operate(&shape, &mut tensors, i % OPERATIONS, par);
            times.push(start.elapsed());
        }
    }
    peaks.sort_by(f64::total_cmp);
    let peak = peaks[ROUNDS / 2];
    for (times, threads) in times.chunks_mut(OPERATIONS).zip([1, threads]) {
        let cells = times.iter_mut().map(|times| {
            times.sort();
            let rate = 2.0 * shape.macs() as f64
                / times[ROUNDS / 2].max(Duration::from_nanos(1)).as_secs_f64()
                / 1e9;
            format!("{rate:11.1} ({:3.0} %)", 100.0 * rate / (peak * threads as f64))
        });
        println!("{name:22} {threads:>6} {}", cells.collect::<Vec<_>>().join(" "));
    }
}

/// Runs one operation.
fn operate(shape: &ConvShape, tensors: &mut Tensors, operation: usize, par: Par) {
    let Tensors { src, weight, grad_dst, results, blocked, packed, scratch } = tensors;
    let dst = &mut results[operation];
    match operation {
        0 => packed.run(shape.batch, src, Epilogue::default(), dst, scratch, par),
        1 => conv2d(shape, src, weight, None, dst, par),
        2 => conv2d_backward_src(shape, grad_dst, weight, dst, par),
        3 => conv2d_backward_weight(shape, src, grad_dst, dst, par),
        _ => blocked.operate(shape, weight, dst, operation, par),
    }
}

/// Compares some results of every operation with f64 sums straight from the definition.
fn check(name: &str, shape: &ConvShape, tensors: &Tensors) {
    let [oh, ow] = shape.out_size();
    let ([ih, iw], [kh, kw]) = (shape.in_size, shape.kernel);
    let (channels, filters) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    // Index of the input pixel that a tap of an output reads.
    let read = |n: usize, o: usize, c: usize, [y, x]: [usize; 2], [r, s]: [usize; 2]| {
        let row = (y * shape.stride[0] + r).wrapping_sub(shape.padding[0]);
        let col = (x * shape.stride[1] + s).wrapping_sub(shape.padding[1]);
        let channel = n * shape.in_channels + o / filters * channels + c;
        (row < ih && col < iw).then(|| (channel * ih + row) * iw + col)
    };
    let pairs = |height: usize, width: usize| (0..height).flat_map(move |y| (0..width).map(move |x| [y, x]));
    for i in 0..CHECKED {
        let sample = |len: usize| i * (len - 1) / (CHECKED - 1);
        let at = sample(shape.dst_len());
        let (n, o, pixel) = (
            at / (oh * ow) / shape.out_channels,
            at / (oh * ow) % shape.out_channels,
            [at / ow % oh, at % ow],
        );
        let mut sum = 0.0;
        for c in 0..channels {
            for tap @ [r, s] in pairs(kh, kw) {
                if let Some(src) = read(n, o, c, pixel, tap) {
                    sum += f64::from(tensors.src[src])
                        * f64::from(tensors.weight[((o * channels + c) * kh + r) * kw + s]);
                }
            }
        }
        expect(name, tensors.results[0][at], sum, shape.weight_len() / shape.out_channels);
        expect(name, tensors.results[1][at], sum, shape.weight_len() / shape.out_channels);
        expect_about(name, tensors.results[4][at], sum, shape.weight_len() / shape.out_channels);

        let at = sample(shape.weight_len());
        let (o, c, tap) = (at / (kh * kw) / channels, at / (kh * kw) % channels, [at / kw % kh, at % kw]);
        let mut sum = 0.0;
        for n in 0..shape.batch {
            for pixel @ [y, x] in pairs(oh, ow) {
                if let Some(src) = read(n, o, c, pixel, tap) {
                    let dst = ((n * shape.out_channels + o) * oh + y) * ow + x;
                    sum += f64::from(tensors.src[src]) * f64::from(tensors.grad_dst[dst]);
                }
            }
        }
        expect(name, tensors.results[3][at], sum, shape.batch * oh * ow);
        expect_about(name, tensors.results[6][at], sum, shape.batch * oh * ow);

        let at = sample(shape.src_len());
        let (n, channel) = (at / (ih * iw) / shape.in_channels, at / (ih * iw) % shape.in_channels);
        let (group, c) = (channel / channels, channel % channels);
        let mut sum = 0.0;
        for o in group * filters..(group + 1) * filters {
            for [r, s] in pairs(kh, kw) {
                // The output that reads the pixel at this tap, if there is one.
                let output = |pixel: usize, tap: usize, d: usize, len: usize| {
                    let place = (pixel + shape.padding[d]).checked_sub(tap)?;
                    (place % shape.stride[d] == 0 && place / shape.stride[d] < len)
                        .then(|| place / shape.stride[d])
                };
                if let (Some(y), Some(x)) = (output(at / iw % ih, r, 0, oh), output(at % iw, s, 1, ow)) {
                    let dst = ((n * shape.out_channels + o) * oh + y) * ow + x;
                    let weight = ((o * channels + c) * kh + r) * kw + s;
                    sum += f64::from(tensors.grad_dst[dst]) * f64::from(tensors.weight[weight]);
                }
            }
        }
        expect(name, tensors.results[2][at], sum, filters * kh * kw);
        expect_about(name, tensors.results[5][at], sum, filters * kh * kw);
    }
}

/// Panics unless a sum of `terms` products of numbers in -1..1 is right up to rounding.
fn expect(name: &str, got: f32, expected: f64, terms: usize) {
    let tolerance = 2e-6 * (terms as f64).sqrt() + 1e-7 * terms as f64;
    assert!((f64::from(got) - expected).abs() <= tolerance, "{name}: {got}, expected {expected}");
}

/// The same where Winograd's method may have been used, whose bound is relative to the largest result: some four times the root of
/// the mean square. `terms` are products of numbers in -1..1, a third of 1 on average squared twice.
fn expect_about(name: &str, got: f32, expected: f64, terms: usize) {
    let largest = 4.0 * (terms as f64 / 9.0).sqrt();
    let tolerance = f64::from(WinogradTile::Four.error_bound(3)) * largest.max(1.0);
    assert!((f64::from(got) - expected).abs() <= tolerance, "{name}: {got}, expected {expected}");
}
