//! (b) What fails on the way gives a clear error, and leaves nothing behind.

use crate::networks::{model, options};
use crate::numbers::Numbers;
use crate::standin::Standin;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_graph::Model;
use cofilter_runtime::cuda::{Math, Pairs};
use cofilter_runtime::{Error, Options, Plan};
use cofilter_zoo::{Config, by_name};
use std::path::Path;

/// Calls of the driver and what they return: out of memory, a failed launch, a lost device, a bad image.
pub(crate) const FAILURES: &[(&str, i32, &str)] = &[
    ("cuInit", 999, "cuInit"),
    ("cuDeviceGetCount", 3, "cuDeviceGetCount"),
    ("cuDevicePrimaryCtxRetain", 2, "cuDevicePrimaryCtxRetain"),
    ("cuCtxSetCurrent", 201, "cuCtxSetCurrent"),
    ("cuModuleLoadData", 200, "cuModuleLoadData"),
    ("cuModuleGetFunction", 500, "cuModuleGetFunction"),
    ("cuFuncSetAttribute", 1, "cuFuncSetAttribute"),
    ("cuMemAlloc_v2", 2, "memory"),
    ("cuMemHostAlloc", 2, "memory"),
    ("cuStreamCreate", 2, "cuStreamCreate"),
    ("cuMemcpyHtoDAsync_v2", 46, "cuMemcpyHtoDAsync"),
    ("cuMemcpyDtoHAsync_v2", 214, "cuMemcpyDtoHAsync"),
    ("cuStreamSynchronize", 719, "cuStreamSynchronize"),
    ("cuStreamBeginCapture_v2", 901, "cuStreamBeginCapture"),
    ("cuStreamEndCapture", 901, "cuStreamEndCapture"),
    ("cuGraphInstantiateWithFlags", 2, "cuGraphInstantiate"),
    ("cuGraphLaunch", 46, "cuGraphLaunch"),
    ("cuLaunchKernel", 719, "cuLaunchKernel"),
];

/// Number of failures that were tried.
pub(crate) fn check(standin: &Standin, cache: &Path) -> Result<usize> {
    let model = model(by_name("lenet", &Config::default())?)?;
    let mut tried = 0;
    for (call, code, named) in FAILURES {
        // The first of these calls, the second, and so on until a run makes no more of them.
        for after in 0..200 {
            standin.fail(call, after, *code)?;
            let outcome = run(&model, cache);
            // What was planned and did not happen is forgotten; a device that was lost is there again.
            standin.set("repair", 0)?;
            ensure!(
                standin.get("live")? == 0,
                "{call} number {after}: {} things are left",
                standin.get("live")?
            );
            match outcome {
                Ok(()) if after > 0 => break,
                Ok(()) => bail!("{call} failed and nobody noticed"),
                Err(error) => {
                    let text = error.to_string();
                    ensure!(matches!(error, Error::Cuda(_)), "{call} number {after}: {text}");
                    ensure!(text.contains(named), "{call} number {after}: `{text}` does not say {named}");
                    tried += 1;
                }
            }
        }
    }
    memory(standin, &model, cache).context("a device with little memory")?;
    lost(standin, &model, cache).context("a device that is lost")?;
    standin.set("devices", 0)?;
    let text = expect_error(&model, cache)?;
    standin.set("devices", 1)?;
    ensure!(text.contains("CUDA device 0: this machine has 0"), "{text}");
    standin.set("capability", 70)?;
    let text = expect_error(&model, &cache.join("elsewhere"))?;
    standin.set("capability", 80)?;
    ensure!(text.contains("sm_70"), "{text}");
    // Kept code of another compiler is made anew; the driver's word is what counts.
    for file in std::fs::read_dir(cache)? {
        std::fs::write(file?.path(), b"damaged")?;
    }
    run(&model, cache)?;
    ensure!(standin.get("live")? == 0, "{} things are left", standin.get("live")?);
    Ok(tried + 4)
}

fn expect_error(model: &Model, cache: &Path) -> Result<String> {
    match run(model, cache) {
        Ok(()) => bail!("nothing failed"),
        Err(error) => Ok(error.to_string()),
    }
}

/// Compiles, runs two batches of different sizes, and measures.
fn run(model: &Model, cache: &Path) -> Result<(), Error> {
    run_batches(model, &options(2, Math::F32, Pairs::Faster, cache), &[2, 1])
}

/// Compiles, runs so many images, each time with the same plan and session, and measures. Logits are as they were after an error.
pub(crate) fn run_batches(model: &Model, options: &Options, numbers: &[usize]) -> Result<(), Error> {
    let plan = Plan::compile(model, options)?;
    let mut session = plan.session();
    let images = Numbers::new(5).list(options.batch * plan.input_len());
    for n in numbers {
        let mut logits = vec![7.0; n * plan.output_len()];
        let outcome = session.run(&images[..n * plan.input_len()], &mut logits);
        assert!(outcome.is_ok() || logits.iter().all(|x| x.to_bits() == 7.0_f32.to_bits()), "half a result");
        outcome?;
    }
    session.profile(&images)?;
    Ok(())
}

/// The plan fits, its session does not; once there is memory the same session runs.
fn memory(standin: &Standin, model: &Model, cache: &Path) -> Result<()> {
    let plan = Plan::compile(model, &options(64, Math::F32, Pairs::Faster, cache))?;
    standin.set("memory", standin.get("memory")? + 1000)?;
    let mut session = plan.session();
    let images = Numbers::new(5).list(plan.input_len());
    let mut logits = vec![0.0; plan.output_len()];
    let text = session.run(&images, &mut logits).err().context("it ran")?.to_string();
    ensure!(text.contains("no ") && text.contains("bytes of memory left for"), "{text}");
    standin.set("memory", 64 << 30)?;
    session.run(&images, &mut logits).context("with memory again")?;
    Ok(())
}

/// Every run after the one that failed says so too, and giving back works.
fn lost(standin: &Standin, model: &Model, cache: &Path) -> Result<()> {
    {
        let plan = Plan::compile(model, &options(1, Math::F32, Pairs::Faster, cache))?;
        let mut session = plan.session();
        let images = Numbers::new(5).list(plan.input_len());
        let mut logits = vec![0.0; plan.output_len()];
        session.run(&images, &mut logits)?;
        standin.fail("cuStreamSynchronize", 0, 46)?;
        for _ in 0..3 {
            let text = session.run(&images, &mut logits).err().context("it ran")?.to_string();
            ensure!(text.contains("CUDA_ERROR_DEVICE_UNAVAILABLE (46)"), "{text}");
        }
    }
    standin.set("repair", 0)?;
    ensure!(standin.get("live")? == 0, "{} things are left", standin.get("live")?);
    Ok(())
}
