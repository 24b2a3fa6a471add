//! Microseconds a call, on the layers of ResNet-20 and AlexNet, after a check against the pair loop.
//!
//! `cargo bench -p cofilter-force [-- ROUNDS]`; `RAYON_NUM_THREADS` sets the threads.

#[path = "../tests/suite/oracle.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod oracle;

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use cofilter_force::{Force, gradient};
use oracle::Generator;

/// Name, filters, columns, how many such layers the network has.
const LAYERS: [(&str, usize, usize, usize); 10] = [
    ("resnet20 group 1", 16, 144, 6),
    ("resnet20 group 2 first", 32, 144, 1),
    ("resnet20 group 2", 32, 288, 5),
    ("resnet20 group 3 first", 64, 288, 1),
    ("resnet20 group 3", 64, 576, 5),
    ("alexnet conv1", 96, 363, 1),
    ("alexnet conv2", 256, 1200, 1),
    ("alexnet conv3", 384, 2304, 1),
    ("alexnet conv4", 384, 1728, 1),
    ("alexnet conv5", 256, 1728, 1),
];

fn check(
    filters: &oracle::Filters,
    weight: &Tensor,
    force: Force,
) -> Result<f64, Box<dyn std::error::Error>> {
    let found: Vec<f64> = gradient(weight, force)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    let error = oracle::error(&found, &oracle::gradient(filters, force));
    if error > 1e-6 {
        return Err(format!("{force:?} is {error:e} away from the pair loop").into());
    }
    Ok(error)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo passes `--bench`; only a number of rounds is ours.
    let rounds =
        std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(51usize).max(1);
    let mut layers = Vec::new();
    for (seed, (name, count, columns, times)) in LAYERS.into_iter().enumerate() {
        let filters = Generator(seed as u64).filters(count, columns).rounded_to_f32();
        let weight =
            Tensor::from_slice(&filters.data, (count, columns), &Device::Cpu)?.to_dtype(DType::F32)?;
        let errors = [check(&filters, &weight, Force::L2)?, check(&filters, &weight, Force::L1)?];
        layers.push((name, count, columns, times, weight, errors, [Vec::new(), Vec::new()]));
    }
    // All layers in turn, so that a disturbance of the machine falls on each alike.
    for _ in 0..rounds {
        for (.., weight, _, samples) in &mut layers {
            for (force, samples) in [Force::L2, Force::L1].into_iter().zip(samples) {
                let start = Instant::now();
                std::hint::black_box(gradient(weight, force)?);
                samples.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    println!(
        "{:24} {:>10} {:>3}  {:>9} {:>8}  {:>9} {:>8}",
        "layer", "shape", "x", "L2 us", "error", "L1 us", "error"
    );
    let mut totals = [("resnet20", [0.0; 2]), ("alexnet", [0.0; 2])];
    for (name, count, columns, times, _, errors, mut samples) in layers {
        let [l2, l1] = [median(&mut samples[0]), median(&mut samples[1])];
        let shape = format!("{count}x{columns}");
        println!("{name:24} {shape:>10} {times:3}  {l2:9.1} {:8.1e}  {l1:9.1} {:8.1e}", errors[0], errors[1]);
        for (network, total) in totals.iter_mut().filter(|(network, _)| name.starts_with(network)) {
            let _ = network;
            total[0] += l2 * times as f64;
            total[1] += l1 * times as f64;
        }
    }
    for (network, [l2, l1]) in totals {
        println!("{network:24} {:>14}  {l2:9.1} {:8}  {l1:9.1}", "all layers", "");
    }
    Ok(())
}
