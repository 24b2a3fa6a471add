use crate::Result;
use cofilter_graph::{Graph, GraphBuilder, NodeId, Shape};

/// What may differ from the published form of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of classes; `None` as published.
    pub classes: Option<usize>,
    /// Extents of one image; `None` as published.
    pub input: Option<Shape>,
    /// GoogLeNet only: with the two auxiliary heads, as outputs after the main one.
    pub auxiliary: bool,
    /// End in a node `prob` with the softmax of the scores.
    pub softmax: bool,
}

impl Default for Config {
    /// As published: auxiliary heads, scores without softmax.
    fn default() -> Self {
        Self { classes: None, input: None, auxiliary: true, softmax: false }
    }
}

impl Config {
    pub(crate) fn classes(&self, published: usize) -> usize {
        self.classes.unwrap_or(published)
    }

    /// A builder with the input as its first node.
    pub(crate) fn start(&self, name: &str, published: Shape) -> Result<(GraphBuilder, NodeId)> {
        let mut b = Graph::builder();
        let x = b.input(name, self.input.unwrap_or(published))?;
        Ok((b, x))
    }

    /// The graph with these scores as its main output and `auxiliary` behind it.
    pub(crate) fn finish(&self, mut b: GraphBuilder, scores: NodeId, auxiliary: &[NodeId]) -> Result<Graph> {
        let main = if self.softmax { b.softmax("prob", scores)? } else { scores };
        let outputs: Vec<NodeId> = std::iter::once(main).chain(auxiliary.iter().copied()).collect();
        Ok(b.finish(&outputs)?)
    }
}
