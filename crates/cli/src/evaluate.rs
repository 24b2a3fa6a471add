//! `cofilter evaluate`.

use crate::device::On;
use crate::output::Output;
use crate::source::Source;
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use cofilter_data::{Augment, Dataset, Pipeline, Tally};
use cofilter_graph::{Artifact, Preprocessing};
use cofilter_runtime::{Options, Plan};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Images of a run.
const BATCH: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Folder of the data set: IDX, CIFAR-10 binary, or images in class folders below `train` and `test`
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Which part of it
    #[arg(long, value_enum, default_value_t = Part::Test)]
    part: Part,
    /// Threads
    #[arg(long, default_value_t = threads())]
    threads: usize,
    #[command(flatten)]
    on: On,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Train,
    Test,
}

/// Accuracy in percent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Accuracy {
    pub(crate) images: usize,
    pub(crate) top1: f64,
    pub(crate) top5: f64,
}

impl std::fmt::Display for Accuracy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "top-1 {:.2} %, top-5 {:.2} % of {} images", self.top1, self.top5, self.images)
    }
}

/// As many as the machine has cores.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// On the processor.
pub(crate) fn on_cpu(threads: usize) -> Options {
    Options { threads, ..Options::default() }
}

/// How images become the input of a network, which its file must say.
pub(crate) fn preprocessing(artifact: &Artifact, path: &Path) -> Result<Preprocessing> {
    artifact.provenance.preprocessing.clone().with_context(|| {
        format!("{}: says not how images become its input; say it (`--scale`, `--mean`)", path.display())
    })
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let artifact = self.source.open()?;
        let preprocessing = preprocessing(&artifact, &self.source.model)?;
        let split = cofilter_data::open(&self.data)?;
        let data = if self.part == Part::Test { split.test } else { split.train };
        let options = self.on.options(on_cpu(self.threads))?;
        let accuracy = of(&artifact, &data, &preprocessing, &options)?;
        Output::new(format!("{}: {accuracy}", self.source.model.display()), &accuracy)
    }
}

/// Classifies a whole data set, in batches of a size of its own.
pub(crate) fn of(
    artifact: &Artifact,
    data: &Dataset,
    preprocessing: &Preprocessing,
    options: &Options,
) -> Result<Accuracy> {
    ensure!(!data.is_empty(), "data set `{}` has no images", data.name());
    let options = Options { batch: BATCH.min(data.len()), ..options.clone() };
    let plan = Plan::compile(&artifact.model, &options)?;
    let pipeline = Pipeline::new(data, preprocessing, &Augment::default(), 0)?;
    if pipeline.input_len() != plan.input_len() {
        let (found, expected) = (pipeline.input_extents(), artifact.model.graph().input_shape());
        bail!("data set `{}` gives images of {found:?}, the network takes {expected}", data.name());
    }
    let classes = plan.output_len();
    if let Some(label) = data.labels().iter().find(|label| **label as usize >= classes) {
        bail!("data set `{}` has label {label}, the network {classes} classes", data.name());
    }
    let mut session = plan.session();
    let mut images = vec![0.0; options.batch * plan.input_len()];
    let mut scores = vec![0.0; options.batch * classes];
    let mut tally = Tally::default();
    let indices: Vec<u32> = (0..u32::try_from(data.len()).context("too many images")?).collect();
    for chunk in indices.chunks(options.batch) {
        let images = &mut images[..chunk.len() * plan.input_len()];
        let scores = &mut scores[..chunk.len() * classes];
        let mut labels = vec![0; chunk.len()];
        pipeline.fill(None, chunk, images, &mut labels)?;
        session.run(images, scores)?;
        scores
            .chunks_exact(classes)
            .zip(labels)
            .for_each(|(scores, label)| tally.add(scores, label as usize));
    }
    Ok(Accuracy { images: tally.images, top1: 100.0 * tally.top1(), top5: 100.0 * tally.top5() })
}
