use crate::{Graph, Model, NodeId, Op, Role, Shape};

/// What one node costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCost {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Learnt numbers (weights and biases, no statistics).
    pub params: usize,
    /// Multiply-accumulate operations for one image; convolutions and fully connected layers only, biases not counted.
    pub macs: usize,
}

/// Parameters and operations of a network, node by node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost(Vec<NodeCost>);

impl Cost {
    /// Every node, in graph order.
    #[must_use]
    pub fn nodes(&self) -> &[NodeCost] {
        &self.0
    }

    /// Learnt numbers of the network.
    #[must_use]
    pub fn params(&self) -> usize {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(n.params))
    }

    /// Multiply-accumulate operations for one image.
    #[must_use]
    pub fn macs(&self) -> usize {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(n.macs))
    }
}

impl Graph {
    /// Parameters and operations of each node.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let cost = |(id, node): (NodeId, &crate::Node)| {
            let slots = self.slots(id);
            let learnt = slots.iter().filter(|s| s.role != Role::Statistic);
            let weight: usize = slots.first().map_or(0, |s| s.dims.iter().product());
            let macs = match (node.op(), node.shape()) {
                (Op::Conv2d(_), Shape::Map { height, width, .. }) => weight * height * width,
                (Op::Linear(_), _) => weight,
                _ => 0,
            };
            let params = learnt.map(|s| s.dims.iter().product::<usize>()).sum();
            NodeCost { node: id, name: node.name().into(), params, macs }
        };
        Cost(self.iter().map(cost).collect())
    }
}

impl Model {
    /// As [`Graph::cost`].
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.graph().cost()
    }
}
