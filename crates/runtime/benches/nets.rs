//! Latency of whole networks, each checked against the oracle first.
//!
//! `cargo bench -p cofilter-runtime --bench nets [-- THREADS]`

use cofilter_graph::Model;
use cofilter_runtime::latency::{Budget, measure};
use cofilter_runtime::{Options, Plan, Session, reference};
use cofilter_zoo::{Config, Network};

type Failure = Box<dyn std::error::Error>;

const NETWORKS: [&str; 3] = ["lenet", "resnet20", "bvlc_alexnet"];
const BATCHES: [usize; 2] = [1, 8];

/// Numbers in `-0.5..0.5` of a linear congruential generator.
fn images(len: usize) -> Vec<f32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 8) as f32 / (1 << 24) as f32 - 0.5)
    };
    std::iter::repeat_n((), len).scan(1, |state, ()| next(state)).collect()
}

/// Largest difference of the first image from the oracle, relative to its largest logit.
fn error(model: &Model, session: &mut Session, images: &[f32]) -> Result<f64, Failure> {
    let (input_len, output_len) = (session.plan().input_len(), session.plan().output_len());
    let mut logits = vec![0.0; images.len() / input_len * output_len];
    session.run(images, &mut logits)?;
    let expected = reference::run(model, &images[..input_len])?;
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let difference = logits.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
    Ok(difference.fold(0.0, f64::max) / largest)
}

fn main() -> Result<(), Failure> {
    let threads = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1);
    let mut names = Vec::new();
    let mut sessions = Vec::new();
    let mut inputs = Vec::new();
    let mut errors = Vec::new();
    for name in NETWORKS {
        let model = Network::by_name(name, &Config::default())?.model(1)?;
        for batch in BATCHES {
            let plan = Plan::compile(&model, &Options { batch, threads, ..Options::default() })?;
            let images = images(batch * plan.input_len());
            let mut session = plan.session();
            let error = error(&model, &mut session, &images)?;
            if error.is_nan() || error > 1e-4 {
                return Err(
                    format!("{name}, batch {batch}: relative error {error:e} against the oracle").into()
                );
            }
            errors.push(error);
            names.push(format!("{name} b{batch}"));
            sessions.push(session);
            inputs.push(images);
        }
    }
    let mut subjects: Vec<(&str, &mut Session, &[f32])> = Vec::new();
    for ((name, session), images) in names.iter().zip(&mut sessions).zip(&inputs) {
        subjects.push((name, session, images));
    }
    let latencies = measure(&mut subjects, &Budget { rounds: 100, seconds: 20.0, ..Budget::default() })?;
    println!("{threads} thread(s); us for the whole batch");
    println!("{:18} {:>10} {:>10} {:>10} {:>6} {:>9}", "network", "p50", "p90", "p99", "runs", "error");
    for (l, error) in latencies.iter().zip(errors) {
        println!(
            "{:18} {:>10.1} {:>10.1} {:>10.1} {:>6} {error:>9.1e}",
            l.name, l.p50_us, l.p90_us, l.p99_us, l.runs
        );
    }
    Ok(())
}
