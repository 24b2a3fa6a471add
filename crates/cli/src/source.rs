//! Networks from files of any format that is read.

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use cofilter_data::preprocessing;
use cofilter_formats::{StateDict, caffe, onnx};
use cofilter_graph::{Artifact, ChannelOrder, Graph, Op, Preprocessing, Shape, Subtract};
use cofilter_zoo::{Config, Shortcut};
use serde::Deserialize;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A checkpoint and what its file does not say.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Source {
    /// The checkpoint: .safetensors, .pth, .pt, .th, .onnx or .prototxt
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) about: About,
}

/// What the file of a checkpoint does not say.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct About {
    /// Network whose tensors a state dict holds, where its names do not tell (`resnet20`, `alexnet`, ...)
    #[arg(long, value_name = "NAME")]
    pub(crate) arch: Option<String>,
    /// Trained tensors of a .prototxt: .caffemodel or .caffemodel.h5
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: Option<PathBuf>,
    /// Extents of an image where the file leaves them open, or another size than usual for a state dict
    #[arg(long = "image", value_name = "CxHxW", value_parser = extents)]
    #[serde(deserialize_with = "shape")]
    pub(crate) image: Option<Shape>,
    /// Mean image of Caffe's (.binaryproto), which is subtracted from the bytes of images
    #[arg(long, value_name = "FILE", conflicts_with = "mean_values")]
    pub(crate) mean: Option<PathBuf>,
    /// Subtracted from each plane after scaling, in the order of the network's planes
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub(crate) mean_values: Vec<f32>,
    /// Divides each plane after that
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub(crate) std: Vec<f32>,
    /// Factor of the bytes of images first: 0.00390625 for Caffe's LeNet, 1 for its other networks
    #[arg(long, value_name = "FACTOR")]
    pub(crate) scale: Option<f32>,
    /// Planes are blue, green, red, as in Caffe's networks for ImageNet
    #[arg(long)]
    pub(crate) bgr: bool,
    /// Rows and columns to which images are resized before the middle is cut out
    #[arg(long, value_name = "HxW", value_parser = size)]
    #[serde(deserialize_with = "pair")]
    pub(crate) resize: Option<[usize; 2]>,
}

fn size(text: &str) -> Result<[usize; 2], String> {
    let numbers: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    let pair = numbers.ok().and_then(|numbers| <[usize; 2]>::try_from(numbers).ok());
    pair.ok_or_else(|| "expected rows and columns, like 256x256".into())
}

fn pair<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<[usize; 2]>, D::Error> {
    size(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn extents(text: &str) -> Result<Shape, String> {
    let numbers: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    match numbers.as_deref() {
        Ok([channels, height, width]) => Ok(Shape::map(*channels, *height, *width)),
        Ok([features]) => Ok(Shape::Vector(*features)),
        _ => Err("expected channels, rows and columns, like 3x224x224".into()),
    }
}

fn shape<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Shape>, D::Error> {
    let text = String::deserialize(deserializer)?;
    extents(&text).map(Some).map_err(serde::de::Error::custom)
}

/// The first bytes of a file tell what it is, and its name where they do not.
enum Kind {
    Artifact,
    StateDict,
    Onnx,
    Caffe,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        let mut begin = Vec::new();
        let file = File::open(path).with_context(|| path.display().to_string())?;
        file.take(9).read_to_end(&mut begin).with_context(|| path.display().to_string())?;
        let named =
            |name: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(name));
        Ok(match begin[..] {
            [.., b'{'] if begin.len() == 9 && !named("prototxt") && !named("onnx") => {
                if is_ours(path)? {
                    Self::Artifact
                } else {
                    Self::StateDict
                }
            }
            // A zip archive, a pickle.
            [b'P', b'K', 3, 4, ..] | [0x80, ..] => Self::StateDict,
            _ if named("prototxt") => Self::Caffe,
            _ if named("onnx") => Self::Onnx,
            _ => bail!(
                "{}: expected .safetensors, .pth, .onnx or .prototxt, found a file of another kind",
                path.display()
            ),
        })
    }
}

/// Whether a safetensors file has the description of its network with it.
fn is_ours(path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    // What is damaged is for the reader to say.
    let metadata = safetensors::SafeTensors::read_metadata(&bytes).ok();
    let metadata = metadata.and_then(|(_, header)| header.metadata().clone());
    Ok(metadata.is_some_and(|metadata| metadata.contains_key("cofilter.graph")))
}

impl Source {
    /// Reads the network.
    ///
    /// # Errors
    /// If the file cannot be read, and everything in it that is not supported.
    pub(crate) fn open(&self) -> Result<Artifact> {
        let About { arch, weights, image, .. } = &self.about;
        let path = &self.model;
        let kind = Kind::of(path)?;
        ensure!(
            weights.is_none() || matches!(kind, Kind::Caffe),
            "--weights {}: {} has its tensors itself",
            weights.as_deref().unwrap_or(Path::new("")).display(),
            path.display()
        );
        ensure!(
            arch.is_none() || matches!(kind, Kind::StateDict),
            "--arch {}: {} says itself what it is",
            arch.as_deref().unwrap_or_default(),
            path.display()
        );
        let mut artifact = match kind {
            Kind::Artifact => {
                let artifact = Artifact::load(path)?;
                let found = artifact.model.graph().input_shape();
                if let Some(image) = image.filter(|image| *image != found) {
                    bail!("{}: its images are {found}, {image} was asked for", path.display());
                }
                artifact
            }
            Kind::StateDict => of_state(StateDict::read(path)?, arch.as_deref(), *image)?,
            Kind::Onnx => onnx::import(path, *image)?,
            Kind::Caffe => {
                let weights = weights.as_ref().with_context(|| {
                    format!("{}: needs the trained tensors too (`--weights FILE.caffemodel`)", path.display())
                })?;
                caffe::import(path, weights, *image)?
            }
        };
        self.about.preprocess(&mut artifact)?;
        Ok(artifact)
    }
}

impl About {
    /// What of it is for this file, where one command reads several.
    pub(crate) fn of(&self, path: &Path) -> Result<Self> {
        let kind = Kind::of(path)?;
        Ok(Self {
            arch: self.arch.clone().filter(|_| matches!(kind, Kind::StateDict)),
            weights: self.weights.clone().filter(|_| matches!(kind, Kind::Caffe)),
            ..self.clone()
        })
    }

    /// Sets what is said of images.
    fn preprocess(&self, artifact: &mut Artifact) -> Result<()> {
        let said = self.mean.is_some()
            || self.scale.is_some()
            || self.bgr
            || self.resize.is_some()
            || !self.mean_values.is_empty()
            || !self.std.is_empty();
        if !said {
            return Ok(());
        }
        let Shape::Map { channels, height, width } = artifact.model.graph().input_shape() else {
            bail!("what is said of images is for networks that take images");
        };
        ensure!(
            self.mean.is_none() || self.mean_values.is_empty(),
            "mean and mean-values: expected one of them"
        );
        ensure!(!self.bgr || channels == 3, "bgr: the network takes {channels} planes");
        let positive = |number: &f32| number.is_finite() && *number > 0.0;
        ensure!(
            self.scale.iter().all(positive),
            "scale: expected a finite number above 0, found {:?}",
            self.scale
        );
        ensure!(self.std.iter().all(positive), "std: expected finite numbers above 0, found {:?}", self.std);
        let finite = self.mean_values.iter().all(|number| number.is_finite());
        ensure!(finite, "mean-values: expected finite numbers, found {:?}", self.mean_values);
        if let Some([rows, columns]) = self.resize {
            let fits = (height..=1 << 14).contains(&rows) && (width..=1 << 14).contains(&columns);
            ensure!(
                fits,
                "resize {rows}x{columns}: expected at least {height}x{width}, which the network takes"
            );
        }
        for (option, numbers) in [("--mean-values", &self.mean_values), ("--std", &self.std)] {
            ensure!(
                numbers.is_empty() || numbers.len() == channels,
                "{option}: {} numbers for {channels} planes",
                numbers.len()
            );
        }
        let mut of = artifact.provenance.preprocessing.take().unwrap_or(Preprocessing {
            scale: 1.0,
            mean: Subtract::Nothing,
            std: Vec::new(),
            channel_order: if channels == 1 { ChannelOrder::Grey } else { ChannelOrder::Rgb },
            crop: [height, width],
            resize: None,
            classes: Vec::new(),
        });
        of.scale = self.scale.unwrap_or(of.scale);
        of.resize = self.resize.or(of.resize);
        if self.bgr {
            of.channel_order = ChannelOrder::Bgr;
        }
        if !self.mean_values.is_empty() {
            of.mean = Subtract::Channel(self.mean_values.clone());
        }
        if !self.std.is_empty() {
            of.std.clone_from(&self.std);
        }
        if let Some(path) = &self.mean {
            let (extents, numbers) = caffe::mean(path)?;
            let [rows, columns] = of.resize.unwrap_or(of.crop);
            ensure!(
                extents == [channels, rows, columns] || extents == [channels, height, width],
                "{}: a mean image of {extents:?} for images of {channels}x{rows}x{columns} (`--resize` says their size)",
                path.display()
            );
            // Caffe scales what is left of an image, here images are scaled first.
            of.mean = Subtract::Pixel(numbers.iter().map(|number| number * of.scale).collect());
        }
        tracing::info!("images: {}", told(&of));
        artifact.provenance.preprocessing = Some(of);
        Ok(())
    }
}

/// A preprocessing in a line.
fn told(of: &Preprocessing) -> String {
    let mean = match &of.mean {
        Subtract::Nothing => "no mean".to_owned(),
        Subtract::Channel(mean) => format!("mean {mean:?}"),
        Subtract::Pixel(_) => "a mean image".to_owned(),
    };
    let resize = of.resize.map_or(String::new(), |[rows, columns]| format!("{rows}x{columns}, of which "));
    let [rows, columns] = of.crop;
    format!(
        "{resize}{rows}x{columns}, {:?}, bytes times {}, {mean}, deviation {:?}",
        of.channel_order, of.scale, of.std
    )
}

/// The network whose tensors a state dict holds: the one that is named, or the one of the zoo that they fit.
fn of_state(state: StateDict, arch: Option<&str>, image: Option<Shape>) -> Result<Artifact> {
    if let Some(name) = arch {
        let graph = graph(name, &state, image)?;
        return Ok(named(state.into_model(name, graph)?, name));
    }
    let mut closest: Option<(usize, &str)> = None;
    for name in cofilter_zoo::NAMES {
        // Some networks take no images of these extents.
        let Ok(graph) = graph(name, &state, image) else { continue };
        match state.clone().into_model(name, graph) {
            Ok(model) => {
                tracing::info!("{}: the tensors are those of `{name}`", state.path().display());
                return Ok(named(model, name));
            }
            Err(cofilter_formats::Error::Mismatch { problems, .. }) => {
                if closest.is_none_or(|(fewest, _)| problems.len() < fewest) {
                    closest = Some((problems.len(), name));
                }
            }
            Err(other) => return Err(other.into()),
        }
    }
    let (problems, name) = closest.unwrap_or_default();
    bail!(
        "{}: its tensors are those of no network here; closest is `{name}`, where {problems} do not fit (`--arch {name}` lists them)",
        state.path().display()
    )
}

/// The network of this name, as a state dict has it: with its number of classes, heads of training, and shortcuts.
fn graph(name: &str, state: &StateDict, image: Option<Shape>) -> Result<Graph> {
    let published = cofilter_zoo::by_name(name, &Config::default())?;
    let last = published.nodes().iter().rev().find(|node| {
        matches!(node.op(), Op::Linear(_))
            && !node.name().starts_with("aux")
            && !node.name().starts_with("loss")
    });
    let classes = last.and_then(|last| {
        let names = [last.name(), "fc", "linear"];
        names
            .iter()
            .find_map(|name| state.get(&format!("{name}.weight")))
            .and_then(|weight| weight.dims().first().copied())
    });
    let auxiliary =
        state.tensors().iter().any(|(name, _)| name.starts_with("aux1.") || name.starts_with("loss1/"));
    let config = Config { classes, input: image, auxiliary, ..Config::default() };
    let depth = name.strip_prefix("resnet").and_then(|depth| depth.parse::<usize>().ok());
    let convolutions = state.tensors().iter().any(|(name, _)| name.ends_with(".shortcut.0.weight"));
    match depth.filter(|_| convolutions) {
        Some(depth) if cofilter_zoo::NAMES.contains(&&*format!("{name}_projection")) => {
            Ok(cofilter_zoo::cifar_resnet(depth, Shortcut::Convolution, &config)?)
        }
        _ => Ok(cofilter_zoo::by_name(name, &config)?),
    }
}

/// A network of the zoo with the preprocessing that it is usually trained with.
fn named(model: cofilter_graph::Model, name: &str) -> Artifact {
    let mut artifact = Artifact::new(model);
    let shape = artifact.model.graph().output_shape();
    let of = match name {
        "lenet" => Some(preprocessing::lenet(&[])),
        "alexnet" | "googlenet" | "resnet18" | "resnet34" | "resnet50" => Some(preprocessing::torchvision()),
        _ if name.starts_with("resnet") && !name.ends_with("_projection") => {
            Some(preprocessing::torchvision_cifar())
        }
        _ => None,
    };
    if let Some(of) = &of {
        tracing::info!("images as this network usually takes them: {}", told(of));
    }
    let fits = |of: &Preprocessing| of.crop == artifact.model.graph().input_shape().spatial();
    artifact.provenance.preprocessing =
        of.filter(fits).map(|of| match of.classes.len() == shape.elements() {
            true => of,
            false => Preprocessing { classes: Vec::new(), ..of },
        });
    artifact.provenance.network = Some(name.to_owned());
    artifact
}
