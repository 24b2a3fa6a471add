use crate::{Config, Depth, Error, Result, Shortcut};
use crate::{alexnet, cifar_resnet, convnet, googlenet, lenet, resnet};
use cofilter_graph::{Graph, Init, Model};

/// Every name that [`by_name`] knows.
pub const NAMES: &[&str] = &[
    "lenet",
    "convnet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet20_projection",
    "resnet32_projection",
    "resnet44_projection",
    "resnet56_projection",
    "resnet110_projection",
    "resnet18",
    "resnet34",
    "resnet50",
    "bvlc_alexnet",
    "bvlc_alexnet_split",
    "alexnet",
    "bvlc_googlenet",
    "googlenet",
];

/// A network with what its original says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The description.
    pub graph: Graph,
    /// Fillers of the original.
    pub init: Init,
    /// Nodes the paper applies force to; for networks it does not mention, the like of those.
    pub force_layers: Vec<String>,
    /// Nodes that are not decomposed: shortcuts.
    pub exclude: Vec<String>,
}

impl Network {
    /// The network of this name, one of [`NAMES`].
    ///
    /// # Errors
    /// [`Error::UnknownNetwork`], and those of the function behind the name.
    pub fn by_name(name: &str, config: &Config) -> Result<Self> {
        let graph = by_name(name, config)?;
        let (init, force_layers, exclude) = match name {
            "lenet" => (lenet::init(), lenet::force_layers(), Vec::new()),
            "convnet" => (convnet::init(), convnet::force_layers(), Vec::new()),
            "bvlc_alexnet" | "bvlc_alexnet_split" => {
                (alexnet::init(&graph), alexnet::force_layers(&graph), Vec::new())
            }
            "alexnet" => (alexnet::torchvision_init(&graph), alexnet::force_layers(&graph), Vec::new()),
            "bvlc_googlenet" => (googlenet::init(&graph), googlenet::force_layers(&graph), Vec::new()),
            "googlenet" => (googlenet::torchvision_init(&graph), googlenet::force_layers(&graph), Vec::new()),
            "resnet18" | "resnet34" | "resnet50" => {
                (resnet::init(&graph), resnet::force_layers(&graph), resnet::exclude(&graph))
            }
            _ => (
                cifar_resnet::init(&graph),
                cifar_resnet::force_layers(&graph),
                cifar_resnet::exclude(&graph),
            ),
        };
        Ok(Self { graph, init, force_layers, exclude })
    }

    /// A model with drawn parameters; equal seeds give equal bytes.
    ///
    /// # Errors
    /// None that a network of this crate can cause.
    pub fn model(&self, seed: u64) -> Result<Model> {
        Ok(Model::init(self.graph.clone(), &self.init, seed)?)
    }
}

/// The graph of this name, one of [`NAMES`].
///
/// # Errors
/// [`Error::UnknownNetwork`], and those of the function behind the name.
pub fn by_name(name: &str, config: &Config) -> Result<Graph> {
    match name {
        "lenet" => lenet::lenet(config),
        "convnet" => convnet::convnet(config),
        "resnet18" => resnet::resnet(Depth::D18, config),
        "resnet34" => resnet::resnet(Depth::D34, config),
        "resnet50" => resnet::resnet(Depth::D50, config),
        "bvlc_alexnet" => alexnet::bvlc(config),
        "bvlc_alexnet_split" => alexnet::bvlc_split(config),
        "alexnet" => alexnet::torchvision(config),
        "bvlc_googlenet" => googlenet::bvlc(config),
        "googlenet" => googlenet::torchvision(config),
        _ => cifar_by_name(name, config),
    }
}

fn cifar_by_name(name: &str, config: &Config) -> Result<Graph> {
    let unknown = || Error::UnknownNetwork { name: name.into(), known: NAMES.join(", ") };
    if !NAMES.contains(&name) {
        return Err(unknown());
    }
    let (plain, shortcut) = match name.strip_suffix("_projection") {
        Some(plain) => (plain, Shortcut::Projection),
        None => (name, Shortcut::PadChannels),
    };
    let depth = plain.strip_prefix("resnet").and_then(|d| d.parse().ok()).ok_or_else(unknown)?;
    cifar_resnet::cifar_resnet(depth, shortcut, config)
}
