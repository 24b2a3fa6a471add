//! A description to a network, layer by layer.

use super::text::Message;
use super::weights::Blobs;
use crate::draft::{Draft, Reason, Value};
use cofilter_graph::{Op, Shape};

/// Layers that only training and its surroundings need, which pass nothing on.
const SILENT: [&str; 10] = [
    "Accuracy",
    "SoftmaxWithLoss",
    "EuclideanLoss",
    "HingeLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "InfogainLoss",
    "ContrastiveLoss",
    "Silence",
    "ArgMax",
];
/// Layers that read images.
const SOURCES: [&str; 6] = ["Data", "ImageData", "MemoryData", "HDF5Data", "DummyData", "WindowData"];

/// Names of kinds of layers before 2014.
const OLD: [(&str, &str); 33] = [
    ("ACCURACY", "Accuracy"),
    ("ABSVAL", "AbsVal"),
    ("ARGMAX", "ArgMax"),
    ("BNLL", "BNLL"),
    ("CONCAT", "Concat"),
    ("CONTRASTIVE_LOSS", "ContrastiveLoss"),
    ("CONVOLUTION", "Convolution"),
    ("DATA", "Data"),
    ("DECONVOLUTION", "Deconvolution"),
    ("DROPOUT", "Dropout"),
    ("DUMMY_DATA", "DummyData"),
    ("ELTWISE", "Eltwise"),
    ("EUCLIDEAN_LOSS", "EuclideanLoss"),
    ("EXP", "Exp"),
    ("FLATTEN", "Flatten"),
    ("HDF5_DATA", "HDF5Data"),
    ("HINGE_LOSS", "HingeLoss"),
    ("IMAGE_DATA", "ImageData"),
    ("INFOGAIN_LOSS", "InfogainLoss"),
    ("INNER_PRODUCT", "InnerProduct"),
    ("LRN", "LRN"),
    ("MEMORY_DATA", "MemoryData"),
    ("MULTINOMIAL_LOGISTIC_LOSS", "MultinomialLogisticLoss"),
    ("MVN", "MVN"),
    ("POOLING", "Pooling"),
    ("POWER", "Power"),
    ("RELU", "ReLU"),
    ("SIGMOID", "Sigmoid"),
    ("SILENCE", "Silence"),
    ("SOFTMAX", "Softmax"),
    ("SOFTMAX_LOSS", "SoftmaxWithLoss"),
    ("SPLIT", "Split"),
    ("TANH", "TanH"),
];

/// What a blob of the description stands for.
#[derive(Clone, Debug)]
pub(super) struct Top {
    name: String,
    /// `None` where the layer that makes it has a problem.
    value: Option<Value>,
    /// Whether a layer has read it.
    read: bool,
}

/// A layer that may be completed by the next one: a `BatchNorm`, whose `Scale` follows.
#[derive(Clone, Debug)]
pub(super) struct Normalised {
    pub(super) top: String,
    pub(super) input: Value,
    pub(super) layer: String,
    pub(super) eps: f32,
    pub(super) momentum: f32,
    pub(super) mean: Vec<f32>,
    pub(super) variance: Vec<f32>,
}

/// Builds a network from the layers of a description.
pub(super) struct Importer {
    pub(super) draft: Draft,
    /// Blobs by name; a layer in place replaces its own.
    pub(super) tops: Vec<Top>,
    /// The batch normalisation that waits for its factors.
    pub(super) last: Option<Normalised>,
    pub(super) blobs: Blobs,
    pub(super) problems: Vec<String>,
}

/// A layer of the description.
pub(super) struct Layer<'a> {
    pub(super) message: &'a Message,
    pub(super) name: &'a str,
    pub(super) kind: &'a str,
    pub(super) bottoms: Vec<&'a str>,
    pub(super) tops: Vec<&'a str>,
}

impl Importer {
    /// Imports all layers and gives the outputs: the blobs that no layer reads.
    pub(super) fn run(&mut self, net: &Message, input: Option<Shape>) -> Vec<Value> {
        let layers: Vec<Layer<'_>> = (net.messages("layer").chain(net.messages("layers")))
            .filter(|layer| in_test(layer))
            .map(Layer::of)
            .collect();
        let mut source = net.text("input").map(str::to_owned);
        match declared(net, &layers).and_then(|shape| agreed(shape, input)) {
            Ok(shape) => {
                let name = source.take().or_else(|| first_top(&layers));
                let name = name.unwrap_or_else(|| "data".into());
                match self.draft.add(&name, Op::Input { shape }, &[], Vec::new()) {
                    Ok(value) => self.put(&name, Some(value)),
                    Err(reason) => self.problems.push(format!("input `{name}`: {reason}")),
                }
            }
            Err(reason) => self.problems.push(reason),
        }
        if self.problems.is_empty() {
            layers.iter().for_each(|layer| self.take(layer));
            self.complete(None);
        }
        let mut outputs: Vec<Value> =
            self.tops.iter().filter(|top| !top.read).filter_map(|top| top.value).collect();
        // The main output is the last one of the description; heads for training come before it.
        outputs.reverse();
        if outputs.is_empty() && self.problems.is_empty() {
            self.problems.push("the description has no output".into());
        }
        outputs
    }

    fn take(&mut self, layer: &Layer<'_>) {
        if layer.kind == "Input" || SOURCES.contains(&layer.kind) {
            return;
        }
        // Losses read what is the network's output.
        if SILENT.contains(&layer.kind) {
            return;
        }
        self.complete(Some(layer));
        let broken = (layer.bottoms.iter())
            .any(|name| self.tops.iter().any(|top| top.name == *name && top.value.is_none()));
        let result = if broken { Ok(None) } else { self.layer(layer).map(Some) };
        let value = result.unwrap_or_else(|reason| {
            self.problems.push(format!("layer `{}` ({}): {reason}", layer.name, layer.kind));
            None
        });
        for bottom in &layer.bottoms {
            self.tops.iter_mut().filter(|top| top.name == *bottom).for_each(|top| top.read = true);
        }
        for top in &layer.tops {
            self.put(top, value);
        }
    }

    fn put(&mut self, name: &str, value: Option<Value>) {
        self.tops.retain(|top| top.name != name);
        self.tops.push(Top { name: name.into(), value, read: false });
    }

    /// Changes what a blob stands for.
    pub(super) fn replace(&mut self, name: &str, value: Value) {
        self.tops.iter_mut().filter(|top| top.name == name).for_each(|top| top.value = Some(value));
    }

    /// The value of a blob.
    pub(super) fn value(&self, name: &str) -> Result<Value, Reason> {
        let top = self.tops.iter().find(|top| top.name == name);
        top.and_then(|top| top.value).ok_or_else(|| format!("reads `{name}`, which no layer before it gives"))
    }
}

impl<'a> Layer<'a> {
    fn of(message: &'a Message) -> Self {
        let kind = message.text("type").unwrap_or("");
        let kind = OLD.iter().find(|(old, _)| *old == kind).map_or(kind, |(_, new)| new);
        Self {
            message,
            name: message.text("name").unwrap_or(""),
            kind,
            bottoms: message.all("bottom").collect(),
            tops: message.all("top").collect(),
        }
    }

    /// The one blob that the layer reads.
    pub(super) fn bottom(&self) -> Result<&'a str, Reason> {
        match self.bottoms[..] {
            [bottom] => Ok(bottom),
            _ => Err(format!("reads {} blobs, expected 1", self.bottoms.len())),
        }
    }

    /// The settings of the layer, in which only `known` names may stand.
    pub(super) fn settings(&self, name: &str, known: &[&str]) -> Result<Message, Reason> {
        let settings = self.message.message(name);
        if let Some(unknown) = settings.names().find(|found| !known.contains(found)) {
            return Err(format!("`{unknown}` in {name} is not supported"));
        }
        Ok(settings)
    }
}

/// Whether a layer is there when images are classified.
fn in_test(layer: &Message) -> bool {
    let phases = |rules: &str| {
        layer.messages(rules).filter_map(|rule| rule.text("phase")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (included, excluded) = (phases("include"), phases("exclude"));
    (included.is_empty() || included.iter().any(|phase| phase == "TEST"))
        && !excluded.iter().any(|phase| phase == "TEST")
}

/// The first blob of a layer that reads images.
fn first_top(layers: &[Layer<'_>]) -> Option<String> {
    let source = layers.iter().find(|layer| layer.kind == "Input" || SOURCES.contains(&layer.kind))?;
    source.tops.first().map(|top| (*top).to_owned())
}

/// The extents of an image as the description gives them.
fn declared(net: &Message, layers: &[Layer<'_>]) -> Result<Option<Shape>, Reason> {
    let inputs = layers.iter().filter(|layer| layer.kind == "Input").count();
    if net.all("input").count() + inputs > 1 {
        return Err("has several inputs, expected one".into());
    }
    let old: Vec<usize> = net.numbers("input_dim")?;
    let shape = net.messages("input_shape").next().cloned();
    let layer = layers.iter().find(|layer| layer.kind == "Input");
    let own = layer.and_then(|layer| layer.message.message("input_param").messages("shape").next().cloned());
    let dims = match shape.or(own) {
        Some(shape) => shape.numbers("dim")?,
        None => old,
    };
    match dims[..] {
        [] => Ok(None),
        [_, channels, height, width] => Ok(Some(Shape::map(channels, height, width))),
        [_, features] => Ok(Some(Shape::Vector(features))),
        _ => Err(format!("an input of extents {dims:?}")),
    }
}

fn agreed(declared: Option<Shape>, given: Option<Shape>) -> Result<Shape, Reason> {
    match (declared, given) {
        (Some(declared), Some(given)) if declared != given => {
            Err(format!("the input is {declared}, {given} was asked for"))
        }
        (Some(shape), _) | (None, Some(shape)) => Ok(shape),
        (None, None) => {
            Err("the description does not say how large images are; say it (`--input CxHxW`)".into())
        }
    }
}
