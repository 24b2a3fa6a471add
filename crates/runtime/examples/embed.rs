//! A deployment: compiles an artifact, runs it twice, and tells what that took.
//!
//! `embed ARTIFACT IMAGES LOGITS BATCH THREADS`; images and logits are little-endian `f32` without a header.

use cofilter_runtime::{Artifact, Options, Plan};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("started");
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [artifact, images, logits, batch, threads] = args.as_slice() else {
        return Err("usage: embed ARTIFACT IMAGES LOGITS BATCH THREADS".into());
    };
    let bytes = std::fs::read(images)?;
    let images: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let start = Instant::now();
    let options = Options { batch: batch.parse()?, threads: threads.parse()?, ..Options::default() };
    let plan = Plan::compile(&Artifact::load(artifact.as_ref())?.model, &options)?;
    let mut session = plan.session();
    let mut results = vec![0.0; options.batch * plan.output_len()];
    let ready = start.elapsed();
    let mut times = Vec::new();
    for _ in 0..2 {
        let start = Instant::now();
        session.run(&images, &mut results)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::write(logits, results.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // `null` where the system does not tell.
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    println!(
        "{{\"load_ms\": {}, \"first_ms\": {}, \"second_ms\": {}, \"peak_kib\": {}}}",
        ready.as_secs_f64() * 1e3,
        times[0],
        times[1],
        peak.unwrap_or("null")
    );
    Ok(())
}
