use cofilter_graph::{Graph, NodeId, Op};
use std::ops::Range;

/// Channels of values that can only be removed together: a rectification keeps what it reads, a sum adds channels of
/// the same place, a flattened vector holds a channel as a block.
#[derive(Debug)]
pub(crate) struct Classes {
    /// Where the channels of each node start in `parents`.
    starts: Vec<usize>,
    /// Union-find over all channels of all nodes; flat after construction.
    parents: Vec<usize>,
}

impl Classes {
    pub(crate) fn new(graph: &Graph) -> Self {
        let mut starts = vec![0];
        for node in graph.nodes() {
            starts.push(starts[starts.len() - 1] + node.shape().channels());
        }
        let parents = (0..starts[starts.len() - 1]).collect();
        let mut classes = Self { starts, parents };
        for (id, _) in graph.iter() {
            classes.join(graph, id);
        }
        for channel in 0..classes.parents.len() {
            classes.parents[channel] = classes.root(channel);
        }
        classes
    }

    /// The class of a channel, a number below [`Classes::len`].
    pub(crate) fn of(&self, node: NodeId, channel: usize) -> usize {
        self.parents[self.starts[node.index()] + channel]
    }

    /// The classes of all channels of a node, in order.
    pub(crate) fn of_node(&self, node: NodeId) -> &[usize] {
        &self.parents[self.range(node)]
    }

    /// An upper bound of class numbers.
    pub(crate) fn len(&self) -> usize {
        self.parents.len()
    }

    fn range(&self, node: NodeId) -> Range<usize> {
        self.starts[node.index()]..self.starts[node.index() + 1]
    }

    fn join(&mut self, graph: &Graph, id: NodeId) {
        let node = graph.node(id);
        let result = self.range(id);
        let inputs: Vec<Range<usize>> = node.inputs().iter().map(|i| self.range(*i)).collect();
        match node.op() {
            // A filter decides about its own channel only.
            Op::Input { .. } | Op::Conv2d(_) | Op::Linear(_) => {}
            Op::Concat => self.unite(inputs.into_iter().flatten(), result),
            Op::Add => inputs.into_iter().for_each(|input| self.unite(input, result.clone())),
            Op::Flatten => {
                let input = inputs[0].clone();
                let block = result.len() / input.len();
                self.unite(input.flat_map(|c| std::iter::repeat_n(c, block)), result);
            }
            Op::PadChannels(pad) => {
                let first = result.start + pad.before;
                self.unite(inputs[0].clone(), first..first + inputs[0].len());
            }
            // Channel by channel. Also right for an op this crate does not know, whose channels all stay.
            _ => inputs.into_iter().for_each(|input| self.unite(input, result.clone())),
        }
    }

    fn unite(&mut self, a: impl Iterator<Item = usize>, b: Range<usize>) {
        for (a, b) in a.zip(b) {
            let (a, b) = (self.root(a), self.root(b));
            self.parents[a.max(b)] = a.min(b);
        }
    }

    fn root(&mut self, mut channel: usize) -> usize {
        while self.parents[channel] != channel {
            self.parents[channel] = self.parents[self.parents[channel]];
            channel = self.parents[channel];
        }
        channel
    }
}
