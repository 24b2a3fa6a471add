use cofilter_graph::{Model, NodeId, Op};

/// A node with a weight matrix `[filters, columns]`, whose rows come in `groups` equal blocks. A filter has `area`
/// consecutive weights for each of its input channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) id: NodeId,
    pub(crate) name: &'a str,
    /// `[filters, columns]`, row-major.
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) filters: usize,
    pub(crate) columns: usize,
    pub(crate) groups: usize,
    /// Weights per input channel: the kernel's area, 1 for a fully connected layer.
    pub(crate) area: usize,
    /// Whether some windows reach beyond the map, so that a constant input gives no constant output.
    pub(crate) padded: bool,
}

impl<'a> Layer<'a> {
    /// The layer at this node, if it is a convolution or fully connected.
    pub(crate) fn at(model: &'a Model, id: NodeId) -> Option<Self> {
        let node = model.graph().node(id);
        let (groups, area, padded) = match node.op() {
            Op::Conv2d(conv) => (conv.groups, conv.kernel[0] * conv.kernel[1], conv.padding != [0, 0]),
            Op::Linear(_) => (1, 1, false),
            _ => return None,
        };
        let tensors = model.tensors(id);
        let (filters, columns) = tensors[0].matrix_dims();
        let (weight, bias) = (tensors[0].data(), tensors.get(1).map(cofilter_graph::Array::data));
        Some(Self { id, name: node.name(), weight, bias, filters, columns, groups, area, padded })
    }

    /// Every layer, in graph order.
    pub(crate) fn all(model: &'a Model) -> Vec<Self> {
        model.graph().iter().filter_map(|(id, _)| Self::at(model, id)).collect()
    }

    /// Weights of one filter, `area` for each input channel of its group.
    pub(crate) fn filter(&self, filter: usize) -> &'a [f32] {
        &self.weight[filter * self.columns..(filter + 1) * self.columns]
    }

    /// Input channels of one filter.
    pub(crate) fn group_inputs(&self) -> usize {
        self.columns / self.area
    }

    /// First input channel of a filter's group.
    pub(crate) fn first_input(&self, filter: usize) -> usize {
        filter / (self.filters / self.groups) * self.group_inputs()
    }

    /// Input channels of a filter with the weights it has for each.
    pub(crate) fn taps(&self, filter: usize) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        let first = self.first_input(filter);
        self.filter(filter).chunks_exact(self.area).enumerate().map(move |(i, w)| (first + i, w))
    }
}
