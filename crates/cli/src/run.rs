//! `cofilter run`.

use crate::device::On;
use crate::evaluate::{preprocessing, threads};
use crate::output::{Output, table};
use crate::source::Source;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_data::{Augment, Pipeline};
use cofilter_graph::{Artifact, ChannelOrder, Preprocessing, Shape, write_atomically};
use cofilter_runtime::{Options, Plan};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Classes that are told of an image.
const TOLD: usize = 5;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Images to classify, JPEG or PNG, with the preprocessing that the network's file gives
    #[arg(value_name = "IMAGE", required_unless_present = "input", conflicts_with = "input")]
    images: Vec<PathBuf>,
    /// Tensor `input` [N, C, H, W] to run the network on, in a .safetensors file
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// The .safetensors file to write the tensor `output` to
    #[arg(long, value_name = "FILE", requires = "input")]
    output: Option<PathBuf>,
    /// Threads
    #[arg(long, default_value_t = threads())]
    threads: usize,
    #[command(flatten)]
    on: On,
}

#[derive(Serialize)]
struct Classified {
    image: PathBuf,
    classes: Vec<Class>,
}

#[derive(Serialize)]
struct Class {
    class: usize,
    name: Option<String>,
    score: f32,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let artifact = self.source.open()?;
        match (&self.input, &self.output) {
            (Some(input), Some(output)) => self.tensors(&artifact, input, output),
            _ => self.classify(&artifact),
        }
    }

    fn tensors(&self, artifact: &Artifact, input: &Path, output: &Path) -> Result<Output> {
        let bytes = std::fs::read(input).with_context(|| input.display().to_string())?;
        let fail = |reason: String| anyhow::anyhow!("{}: {reason}", input.display());
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| fail(format!("not a safetensors file: {error}")))?;
        let tensor = file.tensor("input").map_err(|_| fail("holds no tensor `input`".into()))?;
        let expected = artifact.model.graph().input_shape().dims();
        let dims = tensor.shape();
        if tensor.dtype() != Dtype::F32
            || dims.len() != expected.len() + 1
            || dims[1..] != expected
            || dims[0] == 0
        {
            return Err(fail(format!(
                "tensor `input`: expected F32 [N, {}], found {:?} {dims:?}",
                expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                tensor.dtype()
            )));
        }
        let images: Vec<f32> =
            tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let scores = self.scores(artifact, &images)?;
        let written: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let shape =
            std::iter::once(dims[0]).chain(artifact.model.graph().output_shape().dims()).collect::<Vec<_>>();
        let view = TensorView::new(Dtype::F32, shape.clone(), &written)?;
        write_atomically(output, &safetensors::serialize([("output", view)], None)?)?;
        let value = serde_json::json!({ "output": output, "shape": shape });
        Output::new(format!("{}: output {shape:?}", output.display()), &value)
    }

    fn classify(&self, artifact: &Artifact) -> Result<Output> {
        let preprocessing = preprocessing(artifact, &self.source.model)?;
        ensure!(
            matches!(artifact.model.graph().input_shape(), Shape::Map { .. }),
            "{}: takes no images",
            self.source.model.display()
        );
        let grey = preprocessing.channel_order == ChannelOrder::Grey;
        // Images have the extents that the preprocessing cuts out, unless it resizes them itself.
        let size = preprocessing.resize.unwrap_or(preprocessing.crop);
        let mut classified = Vec::with_capacity(self.images.len());
        for path in &self.images {
            let colour = if grey { cofilter_data::Colour::Grey } else { cofilter_data::Colour::Rgb };
            let image = cofilter_data::image(path, size, colour, cofilter_data::Filter::Bilinear)?;
            // One image has no classes of its own that could be those of the network.
            let nameless = Preprocessing { classes: Vec::new(), ..preprocessing.clone() };
            let pipeline = Pipeline::new(&image, &nameless, &Augment::default(), 0)?;
            let mut input = vec![0.0; pipeline.input_len()];
            pipeline.fill(None, &[0], &mut input, &mut [0])?;
            let scores = self.scores(artifact, &input).with_context(|| path.display().to_string())?;
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
            let class = |class: &usize| Class {
                class: *class,
                name: preprocessing.classes.get(*class).cloned(),
                score: scores[*class],
            };
            let classes = order.iter().take(TOLD).map(class).collect();
            classified.push(Classified { image: path.clone(), classes });
        }
        let rows = classified.iter().flat_map(|image| {
            image.classes.iter().enumerate().map(|(at, class)| {
                let file = if at == 0 { image.image.display().to_string() } else { String::new() };
                let name = class.name.clone().unwrap_or_else(|| format!("class {}", class.class));
                vec![file, name, format!("{:.4}", class.score)]
            })
        });
        Output::new(table(&["image", "class", "score"], rows), &classified)
    }

    /// The network's output for images one after the other.
    fn scores(&self, artifact: &Artifact, images: &[f32]) -> Result<Vec<f32>> {
        let len = artifact.model.graph().input_shape().elements();
        if images.is_empty() || !images.len().is_multiple_of(len) {
            bail!("{} numbers, expected images of {len}", images.len());
        }
        let count = images.len() / len;
        let options = Options { batch: count.min(32), threads: self.threads, ..Options::default() };
        let options = self.on.options(options)?;
        let plan = Plan::compile(&artifact.model, &options)?;
        let mut session = plan.session();
        let mut scores = vec![0.0; count * plan.output_len()];
        let parts =
            images.chunks(options.batch * len).zip(scores.chunks_mut(options.batch * plan.output_len()));
        for (images, scores) in parts {
            session.run(images, scores)?;
        }
        Ok(scores)
    }
}
