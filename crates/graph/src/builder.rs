use crate::{
    BatchNorm, Conv2d, Error, Graph, Linear, Lrn, Node, NodeId, Op, PadChannels, Pool2d, Result, Shape,
};
use std::collections::BTreeSet;

/// Adds nodes one after the other; each call infers the shape and refuses what does not fit.
#[derive(Clone, Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    names: BTreeSet<String>,
}

impl GraphBuilder {
    /// Adds any op.
    ///
    /// # Errors
    /// [`Error::Name`] for a name taken or unusable, [`Error::Node`] where op and inputs do not fit.
    ///
    /// # Panics
    /// If an input id was made by another builder that had more nodes.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        let usable = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        if name.is_empty() || !name.chars().all(usable) || self.names.contains(name) {
            return Err(Error::Name(name.into()));
        }
        if matches!(op, Op::Input { .. }) != self.nodes.is_empty() {
            return Err(Error::node(name, "a graph has one input, and it is the first node"));
        }
        if self.nodes.len() >= u32::MAX as usize {
            return Err(Error::node(name, "too many nodes"));
        }
        let shapes: Vec<Shape> = inputs.iter().map(|i| self.shape(*i)).collect();
        let shape = op.infer(name, &shapes)?;
        self.names.insert(name.into());
        self.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec(), shape });
        Ok(NodeId::from_index(self.nodes.len() - 1))
    }

    /// Shape of a value added before.
    ///
    /// # Panics
    /// If the id was made by another builder that had more nodes.
    #[must_use]
    pub fn shape(&self, id: NodeId) -> Shape {
        self.nodes[id.index()].shape
    }

    /// Number of nodes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node was added yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Ends with these values as outputs, the main one first.
    ///
    /// # Errors
    /// [`Error::Graph`] without an input or an output, or with the same output twice.
    pub fn finish(self, outputs: &[NodeId]) -> Result<Graph> {
        if self.nodes.is_empty() {
            return Err(Error::Graph("no input".into()));
        }
        if outputs.is_empty() {
            return Err(Error::Graph("no output".into()));
        }
        let distinct: BTreeSet<_> = outputs.iter().collect();
        if distinct.len() != outputs.len() {
            return Err(Error::Graph("the same value is an output twice".into()));
        }
        if let Some(id) = outputs.iter().find(|id| id.index() >= self.nodes.len()) {
            return Err(Error::Graph(format!("output {} of {} nodes", id.index(), self.nodes.len())));
        }
        Ok(Graph { nodes: self.nodes, outputs: outputs.to_vec() })
    }
}

/// One line an op; errors are those of [`GraphBuilder::add`].
#[expect(clippy::missing_errors_doc, reason = "all are `add`")]
impl GraphBuilder {
    /// The input.
    pub fn input(&mut self, name: &str, shape: Shape) -> Result<NodeId> {
        self.add(name, Op::Input { shape }, &[])
    }

    /// A convolution.
    pub fn conv2d(&mut self, name: &str, x: NodeId, conv: Conv2d) -> Result<NodeId> {
        self.add(name, Op::Conv2d(conv), &[x])
    }

    /// A fully connected layer with bias.
    pub fn linear(&mut self, name: &str, x: NodeId, out_features: usize) -> Result<NodeId> {
        self.add(name, Op::Linear(Linear { out_features, bias: true }), &[x])
    }

    /// Batch normalisation.
    pub fn batch_norm(&mut self, name: &str, x: NodeId, bn: BatchNorm) -> Result<NodeId> {
        self.add(name, Op::BatchNorm(bn), &[x])
    }

    /// Rectification.
    pub fn relu(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::Relu, &[x])
    }

    /// Pooling.
    pub fn pool2d(&mut self, name: &str, x: NodeId, pool: Pool2d) -> Result<NodeId> {
        self.add(name, Op::Pool2d(pool), &[x])
    }

    /// Average over the whole map.
    pub fn global_avg_pool(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::AdaptiveAvgPool { output: [1, 1] }, &[x])
    }

    /// Local response normalisation.
    pub fn lrn(&mut self, name: &str, x: NodeId, lrn: Lrn) -> Result<NodeId> {
        self.add(name, Op::Lrn(lrn), &[x])
    }

    /// Dropout.
    pub fn dropout(&mut self, name: &str, x: NodeId, p: f32) -> Result<NodeId> {
        self.add(name, Op::Dropout { p }, &[x])
    }

    /// Elementwise sum.
    pub fn sum(&mut self, name: &str, inputs: &[NodeId]) -> Result<NodeId> {
        self.add(name, Op::Add, inputs)
    }

    /// Concatenation along the channels.
    pub fn concat(&mut self, name: &str, inputs: &[NodeId]) -> Result<NodeId> {
        self.add(name, Op::Concat, inputs)
    }

    /// Map to vector.
    pub fn flatten(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::Flatten, &[x])
    }

    /// Probabilities from scores.
    pub fn softmax(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        self.add(name, Op::Softmax, &[x])
    }

    /// Channels of zeros before and after.
    pub fn pad_channels(&mut self, name: &str, x: NodeId, before: usize, after: usize) -> Result<NodeId> {
        self.add(name, Op::PadChannels(PadChannels { before, after }), &[x])
    }
}
