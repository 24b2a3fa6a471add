//! A description to a network, layer by layer.

use super::text::Message;
use super::weights::Blobs;
use crate::draft::{Draft, Reason, Value};
use cofilter_graph::{Op, Shape};
use std::collections::BTreeMap;

/// Layers that only training and its surroundings need, which pass nothing on.
const SILENT: [&str; 8] = [
    "Accuracy",
    "SoftmaxWithLoss",
    "EuclideanLoss",
    "HingeLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "InfogainLoss",
    "ContrastiveLoss",
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Top {
    /// `None` where the layer that makes it has a problem.
    value: Option<Value>,
    /// Whether a layer has read it.
    read: bool,
    /// Place in the description of the layer that makes it.
    order: usize,
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
#[derive(Default)]
pub(super) struct Importer {
    pub(super) draft: Draft,
    /// Blobs by name; a layer in place replaces its own.
    pub(super) tops: BTreeMap<String, Top>,
    /// How many layers read each blob.
    pub(super) readers: BTreeMap<String, usize>,
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
        let mut layers: Vec<Layer<'_>> = Vec::new();
        for layer in net.messages("layer").chain(net.messages("layers")).map(Layer::of) {
            match in_test(layer.message) {
                Ok(true) => layers.push(layer),
                Ok(false) => {}
                Err(reason) => self.problem(&layer, &reason),
            }
        }
        for bottom in
            layers.iter().filter(|layer| !SILENT.contains(&layer.kind)).flat_map(|layer| &layer.bottoms)
        {
            *self.readers.entry((*bottom).to_owned()).or_insert(0) += 1;
        }
        match declared(net, &layers).and_then(|shape| agreed(shape, input)) {
            Ok(shape) => {
                let name = net.text("input").map(str::to_owned).or_else(|| first_top(&layers));
                let name = name.unwrap_or_else(|| "data".into());
                match self.draft.add(&name, Op::Input { shape }, &[], Vec::new()) {
                    Ok(value) => self.put(&name, Some(value), 0),
                    Err(reason) => self.problems.push(format!("input `{name}`: {reason}")),
                }
            }
            Err(reason) => self.problems.push(reason),
        }
        if self.problems.is_empty() {
            layers.iter().enumerate().for_each(|(at, layer)| self.take(layer, at + 1));
            self.complete(None);
        }
        let mut unread: Vec<&Top> = self.tops.values().filter(|top| !top.read).collect();
        // The main output is the last one of the description; heads for training come before it.
        unread.sort_by_key(|top| std::cmp::Reverse(top.order));
        let outputs: Vec<Value> = unread.iter().filter_map(|top| top.value).collect();
        if outputs.is_empty() && self.problems.is_empty() {
            self.problems.push("the description has no output".into());
        }
        outputs
    }

    fn problem(&mut self, layer: &Layer<'_>, reason: &str) {
        self.problems.push(format!("layer `{}` ({}): {reason}", layer.name, layer.kind));
    }

    fn take(&mut self, layer: &Layer<'_>, order: usize) {
        // Losses read what is the network's output.
        if layer.kind == "Input" || SOURCES.contains(&layer.kind) || SILENT.contains(&layer.kind) {
            return;
        }
        self.complete(Some(layer));
        let unknown = |name: &&str| self.tops.get(*name).is_some_and(|top| top.value.is_none());
        let broken = layer.bottoms.iter().any(unknown);
        let silence = layer.kind == "Silence";
        let result = if broken || silence { Ok(None) } else { self.layer(layer).map(Some) };
        let value = result.unwrap_or_else(|reason| {
            self.problem(layer, &reason);
            None
        });
        for bottom in &layer.bottoms {
            if let Some(top) = self.tops.get_mut(*bottom) {
                top.read = true;
            }
        }
        for top in &layer.tops {
            self.put(top, value, order);
        }
    }

    fn put(&mut self, name: &str, value: Option<Value>, order: usize) {
        self.tops.insert(name.into(), Top { value, read: false, order });
    }

    /// Changes what a blob stands for.
    pub(super) fn replace(&mut self, name: &str, value: Value) {
        if let Some(top) = self.tops.get_mut(name) {
            top.value = Some(value);
        }
    }

    /// The value of a blob.
    pub(super) fn value(&self, name: &str) -> Result<Value, Reason> {
        let top = self.tops.get(name);
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
///
/// # Errors
/// For rules that ask for more than a phase: which levels and stages are meant is not in the file.
fn in_test(layer: &Message) -> Result<bool, Reason> {
    let phases = |rules: &str| -> Result<Vec<bool>, Reason> {
        let of = |rule: &Message| {
            if let Some(other) = rule.names().find(|name| *name != "phase") {
                return Err(format!("{rules} by `{other}` is not supported"));
            }
            match rule.text("phase") {
                None => Ok(true),
                Some("TEST" | "1") => Ok(true),
                Some("TRAIN" | "0") => Ok(false),
                Some(other) => Err(format!("{rules} in phase {other}")),
            }
        };
        layer.messages(rules).map(of).collect()
    };
    let (included, excluded) = (phases("include")?, phases("exclude")?);
    Ok((included.is_empty() || included.contains(&true)) && !excluded.contains(&true))
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
            Err("the description does not say how large images are; say it (`--image CxHxW`)".into())
        }
    }
}
