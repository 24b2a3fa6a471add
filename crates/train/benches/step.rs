//! Milliseconds of a training iteration, split into data, forward, backward and update; and convolutions, forward and
//! backward, beside candle's own in one interleaved run.
//!
//! `cargo bench -p cofilter-train`; `RAYON_NUM_THREADS` sets the threads of both. Run by `cargo test --benches`, it does one round.

use candle_core::{DType, Device, Tensor, Var};
use cofilter_data::{Augment, Dataset, Pipeline, Sampler, preprocessing};
use cofilter_graph::{Conv2d, Graph, Init, Model, Preprocessing, Shape};
use cofilter_train::{Mode, Net, Recipe, Trainer};
use cofilter_zoo::{Config, Network};
use std::time::Instant;

fn main() {
    let measured = std::env::args().any(|a| a == "--bench");
    let rounds = if measured { 15 } else { 1 };
    println!("{} threads, {rounds} rounds", rayon::current_num_threads());
    steps(rounds);
    convolutions(rounds);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(seconds: f64) -> f64 {
    1e3 * seconds
}

/// Random images and labels.
fn noise(extents: [usize; 3], images: usize) -> Dataset {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let pixels = (0..images * extents.iter().product::<usize>()).map(|_| byte()).collect();
    let labels = (0..images).map(|_| u32::from(byte()) % 10).collect();
    let classes = (0..10).map(|c| c.to_string()).collect();
    Dataset::new("noise", extents, classes, pixels, labels).expect("images, labels and classes fit")
}

fn steps(rounds: usize) {
    println!(
        "\n{:<10} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "network", "batch", "data", "forward", "backward", "update", "total", "images/s"
    );
    let cifar = || preprocessing::torchvision_cifar();
    let lenet = preprocessing::lenet(&[]);
    let crop = Augment { padding: 4, mirror: true };
    let runs: [(&str, usize, [usize; 3], Preprocessing, Augment); 3] = [
        ("lenet", 64, [1, 28, 28], lenet, Augment::default()),
        ("convnet", 100, [3, 32, 32], cifar(), Augment::default()),
        ("resnet20", 128, [3, 32, 32], cifar(), crop),
    ];
    for (name, batch, extents, preprocessing, augment) in runs {
        let data = noise(extents, 1000);
        let preprocessing = Preprocessing { classes: Vec::new(), ..preprocessing };
        let pipeline = Pipeline::new(&data, &preprocessing, &augment, 1).expect("the preprocessing fits");
        let sampler = Sampler::new(data.len(), batch, 1);
        let model = Network::by_name(name, &Config::default())
            .and_then(|n| n.model(1))
            .expect("a network of the zoo");
        let recipe = Recipe { batch, learning_rate: 1e-4, ..Recipe::default() };
        let mut trainer =
            Trainer::new(&model, &recipe, None, cofilter_train::Device::Cpu).expect("the recipe fits");
        let mut labels = vec![0; batch];
        let mut times: [Vec<f64>; 5] = Default::default();
        for _ in 0..rounds + 2 {
            let start = Instant::now();
            let iteration = trainer.iteration();
            let mut images = trainer.buffer(batch * pipeline.input_len());
            pipeline
                .fill(Some(iteration), &sampler.indices(iteration), &mut images, &mut labels)
                .expect("in range");
            let data = start.elapsed().as_secs_f64();
            let step = trainer.step(images, &labels, false).expect("finite numbers");
            let total = start.elapsed().as_secs_f64();
            let [forward, backward, update] = step.seconds;
            times.iter_mut().zip([data, forward, backward, update, total]).for_each(|(all, t)| all.push(t));
        }
        // The first two iterations fill buffers and caches.
        let [data, forward, backward, update, total] = times.map(|t| median(t[2..].to_vec()));
        println!(
            "{name:<10} {batch:>5} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>10.0}",
            ms(data),
            ms(forward),
            ms(backward),
            ms(update),
            ms(total),
            batch as f64 / total
        );
    }
}

/// Forward and backward of one convolution (both gradients) on candle's tape: our op and candle's.
fn convolutions(rounds: usize) {
    println!(
        "\n{:<26} {:>5} {:>9} {:>9} {:>7} {:>9}",
        "convolution", "batch", "ours", "candle", "ratio", "GFLOP/s"
    );
    let layers = [
        ("lenet 1>20 5x5", 64, Shape::map(1, 28, 28), Conv2d { bias: false, ..Conv2d::new(20, 5) }),
        ("lenet 20>50 5x5", 64, Shape::map(20, 12, 12), Conv2d { bias: false, ..Conv2d::new(50, 5) }),
        ("resnet20 3>16 3x3 @32", 128, Shape::map(3, 32, 32), padded(16, 1)),
        ("resnet20 16>16 3x3 @32", 128, Shape::map(16, 32, 32), padded(16, 1)),
        ("resnet20 16>32 3x3/2 @32", 128, Shape::map(16, 32, 32), padded(32, 2)),
        ("resnet20 32>32 3x3 @16", 128, Shape::map(32, 16, 16), padded(32, 1)),
        ("resnet20 64>64 3x3 @8", 128, Shape::map(64, 8, 8), padded(64, 1)),
    ];
    for (name, batch, shape, conv) in layers {
        let mut b = Graph::builder();
        let x = b.input("x", shape).expect("a new name");
        let y = b.conv2d("conv", x, conv.clone()).expect("the layer fits");
        let model =
            Model::init(b.finish(&[y]).expect("one output"), &Init::default(), 1).expect("no exceptions");
        let net = Net::new(&model).expect("memory");
        let dims: Vec<usize> = std::iter::once(batch).chain(shape.dims()).collect();
        let images =
            Var::from_tensor(&Tensor::ones(dims, DType::F32, &Device::Cpu).expect("memory")).expect("memory");
        let weight = &net.params().get(y)[0];
        let (mut ours, mut candle) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(time(|| net.forward(&images, Mode::Eval).expect("it fits").remove(0)));
            candle.push(time(|| {
                images.conv2d(weight, conv.padding[0], conv.stride[0], 1, 1).expect("it fits")
            }));
        }
        let (ours, candle) = (median(ours), median(candle));
        let flops = 6.0 * (batch * model.cost().macs()) as f64;
        println!(
            "{name:<26} {batch:>5} {:>9.2} {:>9.2} {:>7.1} {:>9.0}",
            ms(ours),
            ms(candle),
            candle / ours,
            flops / ours / 1e9
        );
    }
}

fn padded(out_channels: usize, stride: usize) -> Conv2d {
    Conv2d { padding: [1; 2], stride: [stride; 2], bias: false, ..Conv2d::new(out_channels, 3) }
}

fn time(forward: impl FnOnce() -> Tensor) -> f64 {
    let start = Instant::now();
    let value = forward();
    let grads = value.backward().expect("a backward pass");
    std::hint::black_box(grads);
    start.elapsed().as_secs_f64()
}
