use crate::channels::Classes;
use crate::constants::Constants;
use crate::layer::Layer;
use cofilter_graph::{LrnRegion, Model, NodeId, Op};

/// Which channels stay, found from the outputs backwards: a channel stays if a filter that stays reads it with a weight
/// other than zero and cannot take it as a constant.
#[derive(Debug)]
pub(crate) struct Liveness<'a> {
    model: &'a Model,
    classes: Classes,
    constants: Constants,
    layers: Vec<Option<Layer<'a>>>,
    /// Filters of each class, as node and row.
    filters: Vec<Vec<(NodeId, usize)>>,
    live: Vec<bool>,
    /// Classes found live whose filters were not looked at yet.
    open: Vec<usize>,
}

impl<'a> Liveness<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        let graph = model.graph();
        let classes = Classes::new(graph);
        let layers: Vec<_> = graph.iter().map(|(id, _)| Layer::at(model, id)).collect();
        let mut filters = vec![Vec::new(); classes.len()];
        for layer in layers.iter().flatten() {
            for row in 0..layer.filters {
                filters[classes.of(layer.id, row)].push((layer.id, row));
            }
        }
        let live = vec![false; classes.len()];
        let constants = Constants::new(model);
        let mut liveness = Self { model, classes, constants, layers, filters, live, open: Vec::new() };
        liveness.seed();
        liveness.spread();
        while liveness.repair() {
            liveness.spread();
        }
        liveness
    }

    /// Channels of a node that stay, rising.
    pub(crate) fn kept(&self, node: NodeId) -> Vec<usize> {
        let classes = self.classes.of_node(node).iter().enumerate();
        classes.filter(|(_, class)| self.live[**class]).map(|(channel, _)| channel).collect()
    }

    pub(crate) fn constant(&self, node: NodeId, channel: usize) -> Option<f32> {
        self.constants.get(node, channel)
    }

    pub(crate) fn layer(&self, node: NodeId) -> Option<&Layer<'a>> {
        self.layers[node.index()].as_ref()
    }

    /// What nobody may shorten: the image, the outputs, and every op that mixes channels by their place.
    fn seed(&mut self) {
        let graph = self.model.graph();
        for (id, node) in graph.iter() {
            let fixed = match node.op() {
                Op::Input { .. } | Op::Softmax => true,
                // A channel of zeros still separates its neighbours.
                Op::Lrn(lrn) => lrn.region == LrnRegion::AcrossChannels,
                Op::Conv2d(_)
                | Op::Linear(_)
                | Op::BatchNorm(_)
                | Op::Relu
                | Op::Pool2d(_)
                | Op::AdaptiveAvgPool { .. }
                | Op::Dropout { .. }
                | Op::Add
                | Op::Concat
                | Op::Flatten
                | Op::PadChannels(_) => false,
            };
            if fixed {
                self.keep_all(id);
                node.inputs().iter().for_each(|input| self.keep_all(*input));
            }
        }
        graph.outputs().iter().for_each(|output| self.keep_all(*output));
    }

    fn keep_all(&mut self, node: NodeId) {
        let classes = self.classes.of_node(node).to_vec();
        classes.into_iter().for_each(|class| self.keep(class));
    }

    fn keep(&mut self, class: usize) {
        if !self.live[class] {
            self.live[class] = true;
            self.open.push(class);
        }
    }

    /// Follows the filters of live classes to what they read.
    fn spread(&mut self) {
        while let Some(class) = self.open.pop() {
            for (node, row) in std::mem::take(&mut self.filters[class]) {
                let Some(layer) = self.layers[node.index()] else { continue };
                let input = self.model.graph().node(node).inputs()[0];
                for (channel, weights) in layer.taps(row) {
                    if weights.iter().any(|w| *w != 0.0) && !self.absorbed(&layer, input, channel) {
                        let class = self.classes.of(input, channel);
                        self.keep(class);
                    }
                }
            }
        }
    }

    /// Whether a layer does without this input: it is zero, or a constant that its bias can take.
    fn absorbed(&self, layer: &Layer<'_>, input: NodeId, channel: usize) -> bool {
        match self.constants.get(input, channel) {
            Some(value) => value == 0.0 || (layer.bias.is_some() && !layer.padded),
            None => false,
        }
    }

    /// Keeps more where otherwise nothing of a value would be left, or groups would become unequal. Whether it did.
    fn repair(&mut self) -> bool {
        let before = self.open.len();
        for (id, node) in self.model.graph().iter() {
            self.equalise(id, 1);
            if let Some(groups) = self.layers[id.index()].map(|l| l.groups).filter(|g| *g > 1) {
                self.equalise(id, groups);
                self.equalise(node.inputs()[0], groups);
            }
        }
        self.open.len() > before
    }

    /// The same number of channels, at least one, in each of so many equal blocks of a value; the earliest come back.
    fn equalise(&mut self, node: NodeId, groups: usize) {
        let classes = self.classes.of_node(node).to_vec();
        let size = classes.len() / groups;
        let count = |live: &[bool], block: &[usize]| block.iter().filter(|c| live[**c]).count();
        let most = classes.chunks_exact(size).map(|block| count(&self.live, block)).max().unwrap_or(0).max(1);
        for block in classes.chunks_exact(size) {
            for class in block {
                if count(&self.live, block) >= most {
                    break;
                }
                self.keep(*class);
            }
        }
    }
}
