//! The networks that benches time, and what their arithmetic takes at least.

use super::Options;
use anyhow::{Context as _, Result, ensure};
use cofilter_formats::onnx;
use cofilter_graph::{Artifact, Init, Model, Op, for_inference};
use cofilter_lowrank::{RankRule, Settings, decompose};

/// Networks of the zoo with the name that tables give them.
const NETWORKS: [(&str, &str); 6] = [
    ("bvlc_alexnet", "BVLC AlexNet"),
    ("alexnet", "torchvision AlexNet"),
    ("googlenet", "GoogLeNet"),
    ("resnet18", "ResNet-18"),
    ("resnet50", "ResNet-50"),
    ("resnet20", "CIFAR ResNet-20"),
];

/// A network to time.
pub(super) struct Subject {
    pub(super) name: String,
    /// `dense` or `low-rank`.
    pub(super) form: &'static str,
    pub(super) model: Model,
}

/// The networks that the options ask for.
pub(super) fn subjects(options: &Options) -> Result<Vec<Subject>> {
    if let Some(path) = &options.model {
        let onnx = path.extension().is_some_and(|extension| extension == "onnx");
        let artifact = if onnx { onnx::import(path, None)? } else { Artifact::load(path)? };
        let model = for_inference(&artifact.model)?;
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        return Ok(vec![Subject { name, form: "dense", model }]);
    }
    let mut found = Vec::new();
    for (network, name) in NETWORKS.iter().filter(|(network, _)| network.contains(&options.net)) {
        for form in ["dense", "low-rank"] {
            if options.form.as_ref().is_none_or(|wanted| wanted == form) {
                let model = model(network, form).with_context(|| (*network).to_owned())?;
                found.push(Subject { name: (*name).to_owned(), form, model });
            }
        }
    }
    ensure!(!found.is_empty(), "--net {}: expected part of one of {:?}", options.net, NETWORKS.map(|n| n.0));
    Ok(found)
}

/// A network with seeded weights, for inference. They keep the variance of the maps from layer to layer: with those that some
/// networks are trained from, nothing of the images would be left in the logits, and nothing to compare.
fn model(network: &str, form: &str) -> Result<Model> {
    let graph = cofilter_zoo::by_name(network, &Default::default())?;
    let model = for_inference(&Model::init(graph, &Init::default(), 1)?)?;
    if form == "dense" {
        return Ok(model);
    }
    let mut ranks = crate::speed::third_of_full_rank(model.graph());
    if network == "bvlc_alexnet" {
        // Wen et al. 2017, Table 4, AlexNet_ssl of the force-regularised network.
        ranks.extend([("conv3", 124), ("conv4", 106), ("conv5", 128)].map(|(l, r)| (l.to_owned(), r)));
    }
    let settings = Settings { rule: RankRule::by_name(ranks), ..Settings::default() };
    Ok(decompose(&model, &settings)?.0)
}

/// What a machine can do, measured.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Yardstick {
    pub(super) threads: usize,
    /// Peak of multiply-adds in registers.
    pub(super) fma_gflops: f64,
    /// Reading from memory.
    pub(super) read_gbps: f64,
}

impl Yardstick {
    pub(super) fn measure(threads: usize) -> Self {
        Self {
            threads,
            fma_gflops: cofilter_runtime::yardstick::fma_gflops(threads),
            read_gbps: cofilter_runtime::yardstick::read_gbps(threads),
        }
    }

    /// The better one of this and of what is measured now: others may have had the cores.
    pub(super) fn or_better(self) -> Self {
        let now = Self::measure(self.threads);
        Self {
            fma_gflops: self.fma_gflops.max(now.fma_gflops),
            read_gbps: self.read_gbps.max(now.read_gbps),
            ..self
        }
    }
}

/// Milliseconds that a network takes at least without saving operations: for every layer the larger one of its operations over the
/// peak, and its weights over the bandwidth of memory where they are those of a fully connected layer (each is used once for an
/// image; those of convolutions are used again and again, and maps stay in caches).
#[expect(clippy::cast_precision_loss, reason = "a bound")]
pub(super) fn roofline_ms(model: &Model, batch: usize, yardstick: &Yardstick) -> f64 {
    let cost = model.cost();
    let nodes = model.graph().iter().zip(cost.nodes());
    let layer =
        |((id, node), cost): ((cofilter_graph::NodeId, &cofilter_graph::Node), &cofilter_graph::NodeCost)| {
            let compute = 2.0 * (cost.macs * batch) as f64 / yardstick.fma_gflops;
            let bytes: usize = model.tensors(id).iter().map(|t| size_of_val(t.data())).sum();
            let memory =
                if matches!(node.op(), Op::Linear(_)) { bytes as f64 / yardstick.read_gbps } else { 0.0 };
            compute.max(memory) / 1e6
        };
    nodes.map(layer).sum()
}

/// Inputs without meaning, the same each time.
pub(super) fn images(len: usize) -> Vec<f32> {
    crate::timing::ramp(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofilter_graph::{Conv2d, Graph, Shape};

    #[test]
    fn the_roofline_adds_up_layer_by_layer() {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
        let x = b.conv2d("conv", x, Conv2d::new(3, 3)).unwrap();
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("fc", x, 5).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
        let yardstick = Yardstick { threads: 1, fma_gflops: 2.0, read_gbps: 0.5 };
        // conv: 3 filters of 18 weights at 4 pixels, 2 images; fc: 12 x 5 weights and 5 biases, 4 bytes each.
        let conv = 2.0 * (3 * 18 * 4 * 2) as f64 / 2.0;
        let fc = (65 * 4) as f64 / 0.5;
        assert!((roofline_ms(&model, 2, &yardstick) - (conv + fc) / 1e6).abs() < 1e-12);
    }
}
