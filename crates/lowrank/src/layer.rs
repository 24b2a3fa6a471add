use crate::{Error, Result};
use cofilter_graph::{Array, Conv2d, Linear, Model, NodeId, Op};
use serde::{Deserialize, Serialize};

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A convolution; the filters are its rows.
    Conv2d,
    /// A fully connected layer; the outputs are its rows.
    Linear,
}

/// A node with a weight matrix `[filters, len]`, whose rows come in `groups` equal blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) id: NodeId,
    pub(crate) name: &'a str,
    pub(crate) op: LayerOp<'a>,
    pub(crate) weight: &'a Array,
    pub(crate) bias: Option<&'a Array>,
    /// `N`, over all groups.
    pub(crate) filters: usize,
    /// `L`: weights of one filter, `C / groups * kernel_h * kernel_w`.
    pub(crate) len: usize,
    pub(crate) groups: usize,
    /// Channels read, over all groups.
    pub(crate) channels: usize,
    /// Extents of the map read, `[1, 1]` for a vector.
    pub(crate) extents: [usize; 2],
    /// Places where a filter is applied: the extents of the output map.
    pub(crate) positions: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LayerOp<'a> {
    Conv2d(&'a Conv2d),
    Linear(&'a Linear),
}

impl<'a> Layer<'a> {
    /// The layer at this node, if it has a weight matrix.
    pub(crate) fn at(model: &'a Model, id: NodeId) -> Option<Self> {
        let node = model.graph().node(id);
        let (op, groups) = match node.op() {
            Op::Conv2d(conv) => (LayerOp::Conv2d(conv), conv.groups),
            Op::Linear(linear) => (LayerOp::Linear(linear), 1),
            _ => return None,
        };
        let tensors = model.tensors(id);
        let weight = &tensors[0];
        let (filters, len) = weight.matrix_dims();
        let positions = node.shape().spatial().iter().product();
        let input = model.graph().input_shapes(id)[0];
        Some(Self {
            id,
            name: node.name(),
            op,
            weight,
            bias: tensors.get(1),
            filters,
            len,
            groups,
            channels: input.channels(),
            extents: input.spatial(),
            positions,
        })
    }

    /// Every layer, in graph order.
    pub(crate) fn all(model: &'a Model) -> Vec<Self> {
        model.graph().iter().filter_map(|(id, _)| Self::at(model, id)).collect()
    }

    /// The layer of this name; `role` says who asks.
    pub(crate) fn find(model: &'a Model, role: &'static str, name: &str) -> Result<Self> {
        match model.graph().iter().find(|(_, node)| node.name() == name) {
            Some((id, node)) => Self::at(model, id).ok_or_else(|| Error::NotALayer {
                role,
                name: name.into(),
                kind: node.op().kind(),
            }),
            None => Err(Error::UnknownLayer {
                role,
                name: name.into(),
                known: Self::all(model).iter().map(|l| l.name).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    pub(crate) fn kind(&self) -> LayerKind {
        match self.op {
            LayerOp::Conv2d(_) => LayerKind::Conv2d,
            LayerOp::Linear(_) => LayerKind::Linear,
        }
    }

    /// Whether it is a convolution with a 1x1 kernel.
    pub(crate) fn is_pointwise(&self) -> bool {
        matches!(self.op, LayerOp::Conv2d(conv) if conv.kernel == [1, 1])
    }

    /// `N / groups`.
    pub(crate) fn group_filters(&self) -> usize {
        self.filters / self.groups
    }

    /// Its extents; a fully connected layer as a convolution of 1x1.
    pub(crate) fn as_conv(&self) -> Conv2d {
        match self.op {
            LayerOp::Conv2d(conv) => conv.clone(),
            LayerOp::Linear(linear) => Conv2d::new(linear.out_features, 1),
        }
    }

    /// `[height, width]` of a filter, `[1, 1]` of a fully connected layer.
    pub(crate) fn kernel(&self) -> [usize; 2] {
        match self.op {
            LayerOp::Conv2d(conv) => conv.kernel,
            LayerOp::Linear(_) => [1, 1],
        }
    }

    /// Channels that a filter reads, `C / groups`.
    pub(crate) fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    /// Rows of one group, `[N / groups, L]` row-major.
    pub(crate) fn group(&self, group: usize) -> &'a [f32] {
        let size = self.group_filters() * self.len;
        &self.weight.data()[group * size..(group + 1) * size]
    }

    /// Largest rank of one group.
    pub(crate) fn group_full_rank(&self) -> usize {
        self.group_filters().min(self.len)
    }

    /// Largest rank over all groups.
    pub(crate) fn full_rank(&self) -> usize {
        self.groups * self.group_full_rank()
    }

    pub(crate) fn check_finite(&self) -> Result<()> {
        for (slot, array) in [Some(self.weight), self.bias].into_iter().flatten().enumerate() {
            if let Some((index, value)) = array.first_not_finite() {
                let tensor = format!("{}.{}", self.name, if slot == 0 { "weight" } else { "bias" });
                return Err(cofilter_graph::Error::NotFinite { tensor, index, value }.into());
            }
        }
        Ok(())
    }
}
