//! What a stage does on a device: one thing after the other, each told in a file before it begins, so that another process can go on.

use crate::kernels::{self, By, keep_module};
use crate::learning;
use crate::libraries::{self, layers, lines};
use crate::networks::{self, Task, each};
use crate::times;
use anyhow::{Context as _, Result, bail};
use cofilter_cuda::{Device, Error, Opened, Sequence};
use cofilter_runtime::cuda::Libraries;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KERNELS: &str = "kernels";
const NETWORKS: &str = "networks";
const SESSIONS: &str = "sessions";
const ROUTINES: &str = "routines";
const WITH_LIBRARIES: &str = "networks-with-libraries";
const TRAINING: &str = "training";
const TIMES: &str = "times";

/// All stages, in order.
pub(crate) const STAGES: [&str; 7] = [KERNELS, NETWORKS, SESSIONS, ROUTINES, WITH_LIBRARIES, TRAINING, TIMES];

/// How far a stage is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Things that were begun.
    pub(crate) begun: usize,
    /// What the device has to do.
    pub(crate) under_way: Option<String>,
    /// Whether all was done.
    pub(crate) done: bool,
    /// What went well, by kind.
    pub(crate) counts: BTreeMap<String, usize>,
    pub(crate) failed: Vec<String>,
    pub(crate) refused: Vec<String>,
}

impl Progress {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("progress.json");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Writes all of it at once, as another process may read.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let [file, new] = ["progress.json", "progress.new"].map(|name| folder.join(name));
        std::fs::write(&new, serde_json::to_string(self)?).with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &file).with_context(|| file.display().to_string())
    }

    fn count(&mut self, kind: &str) {
        *self.counts.entry(kind.to_owned()).or_default() += 1;
    }
}

/// A process that runs a stage.
struct Stage {
    progress: Progress,
    folder: PathBuf,
    /// Machine code and times.
    cache: PathBuf,
    device: Device,
    _kept: Arc<Sequence>,
}

/// Goes on with a stage, whose file is in `folder`.
pub(crate) fn run(stage: &str, folder: &Path, table: &Path) -> Result<()> {
    // `RUST_LOG=debug` says why a library is not used.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (progress, cache) = (Progress::read(folder)?, folder.join("cache"));
    let device = Device::open(0)?;
    let start = std::time::Instant::now();
    let kept = keep_module(&device, Some(&cache)).context("the kernels")?;
    if progress.begun == 0 {
        println!(
            "{stage}: kernels compiled or taken from the cache in {:.1} s",
            start.elapsed().as_secs_f64()
        );
    }
    let mut of = Stage { progress, folder: folder.to_owned(), cache, device, _kept: kept };
    match stage {
        KERNELS => of.kernels()?,
        NETWORKS => of.networks(networks::tasks())?,
        SESSIONS => of.sessions()?,
        ROUTINES => of.routines()?,
        WITH_LIBRARIES => {
            of.networks(
                [Libraries::Always, Libraries::Faster].into_iter().flat_map(libraries::tasks).collect(),
            )?;
        }
        TRAINING => of.training()?,
        TIMES => of.times(table)?,
        _ => bail!("no stage `{stage}`"),
    }
    of.progress.done = true;
    of.progress.write(folder)
}

impl Stage {
    /// Does one thing. What fails is told and kept; an error is that nothing more can be done on the device by this process.
    fn thing(&mut self, name: &str, run: impl FnOnce(&mut Progress) -> Result<()>) -> Result<()> {
        self.progress.begun += 1;
        self.progress.under_way = Some(name.to_owned());
        self.progress.write(&self.folder)?;
        let outcome = run(&mut self.progress);
        self.progress.under_way = None;
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            println!("  FAILED {name}: {error:#}");
            self.progress.failed.push(format!("{name}: {error:#}"));
        }
        self.progress.write(&self.folder)?;
        if failed {
            keep_module(&self.device, Some(&self.cache)).context("the device is lost")?;
        }
        Ok(())
    }

    /// Every case of every kernel.
    fn kernels(&mut self) -> Result<()> {
        let device = self.device.clone();
        for (kernel, case) in kernels::cases().into_iter().skip(self.progress.begun) {
            self.thing(&format!("{}: {case:?}", kernel.name()), |progress| {
                case.check(&device, By::Kernel(kernel))?;
                progress.count(kernel.name());
                Ok(())
            })?;
        }
        Ok(())
    }

    fn training(&mut self) -> Result<()> {
        for task in learning::tasks(cofilter_zoo::NAMES)?.into_iter().skip(self.progress.begun) {
            self.thing(&task.name, |progress| {
                task.check()?;
                progress.count("compared");
                Ok(())
            })?;
        }
        self.thing("evaluation", |_| learning::evaluation())
    }

    fn networks(&mut self, tasks: Vec<Task>) -> Result<()> {
        let cache = self.cache.clone();
        let tasks: Vec<Task> = tasks.into_iter().skip(self.progress.begun).collect();
        each(&tasks, |task, known| {
            self.thing(&task.name, |progress| {
                let (error, plan) = task.check(known, &cache, task.libraries.is_none())?;
                println!("  {}: relative error {error:.1e}, {} steps by libraries", task.name, lines(&plan));
                progress.count("compared");
                Ok(())
            })
        })
    }

    /// What sessions and plans promise beside their results.
    fn sessions(&mut self) -> Result<()> {
        type Check = fn(&Path) -> Result<()>;
        let checks: [(&str, Check); 3] = [
            ("kernels chosen by their times", |cache| networks::measured(None, cache)),
            ("convolutions one after the other", networks::chain),
            ("concurrent sessions", networks::concurrent),
        ];
        let cache = self.cache.clone();
        for (name, check) in checks.into_iter().skip(self.progress.begun) {
            self.thing(name, |progress| {
                check(&cache)?;
                progress.count(name);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Every routine that there is for every convolution of the kernels'.
    fn routines(&mut self) -> Result<()> {
        let (device, opened) = (self.device.clone(), Opened::new(&self.device));
        let of = |layer: libraries::Layer| {
            layer.routines(&opened).into_iter().map(move |routine| (routine, layer.math, layer.case.clone()))
        };
        let all: Vec<_> = layers().into_iter().flat_map(of).collect();
        for (routine, math, case) in all.into_iter().skip(self.progress.begun) {
            let name = format!("{}: {case:?}", routine.name());
            self.thing(&name, |progress| {
                match case.check(&device, By::Routine(routine)) {
                    // It said that it could.
                    Err(error) if matches!(error.downcast_ref(), Some(Error::LibraryCall { .. })) => {
                        println!("  refused: {name}: {error:#}");
                        progress.refused.push(format!("{name}: {error:#}"));
                    }
                    outcome => {
                        outcome?;
                        progress.count(&format!("{} {}", math.name(), routine.name()));
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Times of layers, row by row.
    fn times(&mut self, table: &Path) -> Result<()> {
        let mut times = times::Times::new(&self.device, &self.cache, table, self.progress.begun == 0)?;
        for row in times::rows().into_iter().skip(self.progress.begun) {
            self.thing(&row.name(), |progress| {
                times.add(&row)?;
                progress.count("rows");
                Ok(())
            })?;
        }
        Ok(())
    }
}
