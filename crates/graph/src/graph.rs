use crate::{Error, GraphBuilder, Op, Result, Shape, SlotSpec};

/// A node, which is also its value. Ids name earlier nodes only, so a graph has no cycles by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// Position in [`Graph::nodes`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }

    #[expect(clippy::cast_possible_truncation, reason = "the builder refuses more nodes than u32 holds")]
    pub(crate) fn from_index(index: usize) -> Self {
        Self(index as u32)
    }
}

/// One operation with its inputs and the shape of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<NodeId>,
    pub(crate) shape: Shape,
}

impl Node {
    /// Unique name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is computed.
    #[must_use]
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// Where the operands come from.
    #[must_use]
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// Shape of the result for one image.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }
}

/// A network without numbers: nodes in topological order and the values it gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<NodeId>,
}

impl Graph {
    /// An empty graph to add nodes to.
    #[must_use]
    pub fn builder() -> GraphBuilder {
        GraphBuilder::default()
    }

    /// All nodes; each names earlier ones only.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    ///
    /// # Panics
    /// If the id is of a larger graph.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// All nodes with their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId::from_index(i), node))
    }

    /// Values of the network; the first is the main one, the others are auxiliary heads.
    #[must_use]
    pub fn outputs(&self) -> &[NodeId] {
        &self.outputs
    }

    /// The one input.
    #[must_use]
    pub fn input(&self) -> NodeId {
        NodeId::from_index(0)
    }

    /// Shape of the input for one image.
    #[must_use]
    pub fn input_shape(&self) -> Shape {
        self.nodes[0].shape
    }

    /// Shape of the main output for one image.
    #[must_use]
    pub fn output_shape(&self) -> Shape {
        self.node(self.outputs[0]).shape
    }

    /// Shapes of the operands of a node.
    #[must_use]
    pub fn input_shapes(&self, id: NodeId) -> Vec<Shape> {
        self.node(id).inputs.iter().map(|i| self.node(*i).shape).collect()
    }

    /// The tensors a node needs.
    #[must_use]
    pub fn slots(&self, id: NodeId) -> Vec<SlotSpec> {
        self.node(id).op.slots(&self.input_shapes(id))
    }

    /// `node.slot`, the name of a tensor in files and reports.
    #[must_use]
    pub fn tensor_name(&self, id: NodeId, slot: usize) -> String {
        format!("{}.{}", self.node(id).name, self.slots(id)[slot].name)
    }

    /// The node of this name.
    ///
    /// # Errors
    /// [`Error::UnknownNode`], with the names that exist.
    pub fn find(&self, name: &str) -> Result<NodeId> {
        let found = self.iter().find(|(_, node)| node.name == name).map(|(id, _)| id);
        found.ok_or_else(|| Error::UnknownNode {
            name: name.into(),
            known: self.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// For each node, the nodes that read it.
    #[must_use]
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.iter() {
            for input in &node.inputs {
                readers[input.index()].push(id);
            }
        }
        readers
    }
}
