//! (e) All of it on a device, with the driver and the libraries that the loader finds: stages, each a process of its own, so that a device
//! that is lost, a kernel without an end and a library that ends the process cost one thing to do and no more.

use crate::Found;
use crate::stages::{Progress, STAGES};
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_cuda::{Device, Error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Longest that the device may have one thing to do.
const LONGEST: Duration = Duration::from_secs(60);

/// What ran on a device.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct OnDevice {
    name: String,
    /// What went well, by stage and by kind.
    counts: BTreeMap<String, BTreeMap<String, usize>>,
    /// What libraries would not do.
    refused: Vec<String>,
    /// What there was no time for.
    skipped: Vec<String>,
}

/// Runs all stages, or some, within a time, and adds what they found to a file. Times of layers go to `table`.
pub(crate) fn check(json: &Path, table: &Path, limit: Duration, stages: &[&str]) -> Result<()> {
    if let Some(unknown) = stages.iter().find(|stage| !STAGES.contains(stage)) {
        bail!("no stage `{unknown}`, only {}", STAGES.join(", "));
    }
    let end = Instant::now() + limit;
    let name = match Device::open(0) {
        Ok(device) => device.about().name.clone(),
        Err(error @ (Error::Library { .. } | Error::NoDevice { .. })) => {
            println!("skipped: no CUDA device here ({error})");
            return Ok(());
        }
        Err(error) => return Err(error).context("CUDA device 0"),
    };
    println!("on {name}");
    let mut found = if json.exists() { Found::read(json)? } else { Found::default() };
    let folder = tempfile::tempdir()?;
    let mut on_device = OnDevice { name, ..OnDevice::default() };
    for stage in STAGES.into_iter().filter(|stage| stages.is_empty() || stages.contains(stage)) {
        let start = Instant::now();
        let progress = run(stage, folder.path(), table, end)?;
        println!("{stage}: {:.1} s, {:?}", start.elapsed().as_secs_f64(), progress.counts);
        let about = |line: String| format!("{stage}: {line}");
        on_device.counts.insert(stage.to_owned(), progress.counts);
        on_device.refused.extend(progress.refused.into_iter().map(about));
        found.failed.extend(progress.failed.into_iter().map(|line| format!("device: {}", about(line))));
        if !progress.done && Instant::now() >= end {
            on_device.skipped.push(format!("{stage} after {} things", progress.begun));
            println!("skipped: {stage} after {} things, as {} s are over", progress.begun, limit.as_secs());
        }
        // What was found so far, whatever comes.
        found.device = Some(on_device);
        found.write(json)?;
        on_device = found.device.take().unwrap_or_default();
    }
    let failed = found.failed.iter().filter(|line| line.starts_with("device: ")).count();
    println!("{failed} failures, {} refused, {} skipped", on_device.refused.len(), on_device.skipped.len());
    ensure!(failed == 0, "see above what failed");
    Ok(())
}

/// Runs a stage, again behind what ended its process.
fn run(stage: &str, folder: &Path, table: &Path, end: Instant) -> Result<Progress> {
    let mut before = Progress::default();
    before.write(folder)?;
    while Instant::now() < end {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg("device-stage").arg(stage).args([folder, table]).spawn()?;
        let ended = wait(child, folder, end)?;
        let mut progress = Progress::read(folder)?;
        if progress.done || Instant::now() >= end {
            return Ok(progress);
        }
        let how = match ended {
            Some(status) => format!("its process ended: {status}"),
            None => format!("no end after {} s", LONGEST.as_secs()),
        };
        let under_way = progress.under_way.take();
        // A device that was lost has been told of, and the next process goes on.
        if under_way.is_some() || progress.begun == before.begun {
            let line = format!("{}: {how}", under_way.as_deref().unwrap_or("before anything ran"));
            println!("  FAILED {line}");
            progress.failed.push(line);
        }
        let stuck = progress.begun == before.begun;
        progress.write(folder)?;
        if stuck {
            return Ok(progress);
        }
        before = progress;
    }
    Ok(before)
}

/// Waits until a process ends; `None` if it was ended here, as one thing took too long or the time was over.
fn wait(mut child: Child, folder: &Path, end: Instant) -> Result<Option<ExitStatus>> {
    let (mut begun, mut since) = (0, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let progress = Progress::read(folder)?;
        if progress.under_way.is_none() || progress.begun != begun {
            (begun, since) = (progress.begun, Instant::now());
        }
        if since.elapsed() > LONGEST || Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
