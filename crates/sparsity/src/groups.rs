use crate::layer::Layer;
use cofilter_graph::{Graph, Model, NodeId, Op};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which weights of a layer stand and fall together. The weight of a layer is a matrix `[N, C H W / groups]`: a row is a filter, a
/// column one place of the kernel in one input channel, across the filters of its group of a grouped convolution.
///
/// The names are those of structured sparsity learning (Wen et al. 2016); the authors' options are `breadth_decay` (filters),
/// `kernel_shape_decay` (columns) and `block_group_lasso` (paper, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// A row: all weights of a filter; an output of a fully connected layer.
    Filters,
    /// All weights that read an input channel, `N / groups x H W` of them.
    Channels,
    /// A column: the shape of filters. In a 1x1 convolution and a fully connected layer an input channel.
    Columns,
    /// So many rows by so many columns, counted from the first of each group of the convolution; smaller ones at the ends.
    Blocks {
        /// Filters.
        rows: usize,
        /// Weights of each.
        columns: usize,
    },
    /// The whole layer: what a residual block is left without is its shortcut.
    Layer,
}

/// The groups of one layer's weights, as sets of places in its matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    rows: usize,
    columns: usize,
    /// Rows that share their numbering of groups: rows of a block, of a group of the convolution, or all.
    height: usize,
    /// Rows of a group of the convolution.
    part: usize,
    /// Consecutive columns in the same group.
    width: usize,
}

impl Groups {
    /// The groups of the layer at this node; `None` where it is neither a convolution nor fully connected.
    #[must_use]
    pub fn of_node(graph: &Graph, id: NodeId, grouping: Grouping) -> Option<Self> {
        let node = graph.node(id);
        let (parts, area) = match node.op() {
            Op::Conv2d(conv) => (conv.groups, conv.kernel[0] * conv.kernel[1]),
            Op::Linear(_) => (1, 1),
            _ => return None,
        };
        let dims = &graph.slots(id)[0].dims;
        Some(Self::new(dims[0], dims[1..].iter().product(), parts, area, grouping))
    }

    pub(crate) fn of_layer(layer: &Layer<'_>, grouping: Grouping) -> Self {
        Self::new(layer.filters, layer.columns, layer.groups, layer.area, grouping)
    }

    fn new(rows: usize, columns: usize, parts: usize, area: usize, grouping: Grouping) -> Self {
        let part = rows / parts;
        let (height, width) = match grouping {
            Grouping::Filters => (1, columns),
            Grouping::Channels => (part, area),
            Grouping::Columns => (part, 1),
            Grouping::Blocks { rows, columns: width } => (rows.clamp(1, part), width.clamp(1, columns)),
            Grouping::Layer => (rows, columns),
        };
        Self { rows, columns, height, part: part.max(height), width }
    }

    /// Number of groups.
    #[must_use]
    pub fn count(&self) -> usize {
        self.rows / self.part * self.part.div_ceil(self.height) * self.across()
    }

    fn across(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// The first group of a row.
    fn first(&self, row: usize) -> usize {
        let (part, at) = (row / self.part, row % self.part);
        (part * self.part.div_ceil(self.height) + at / self.height) * self.across()
    }

    /// Every run of consecutive weights of one group, in row-major order, with the number of the group.
    fn runs(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        (0..self.rows).flat_map(move |row| {
            let (first, start) = (self.first(row), row * self.columns);
            (0..self.across()).map(move |i| {
                let end = self.columns.min((i + 1) * self.width);
                (first + i, start + i * self.width..start + end)
            })
        })
    }

    /// Weights of each group.
    #[must_use]
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.count()];
        self.runs().for_each(|(group, run)| sizes[group] += run.len());
        sizes
    }

    /// Euclidean norm of each group, summed in `f64` in row-major order.
    ///
    /// # Panics
    /// If `weight` is not as long as the matrix.
    #[must_use]
    pub fn norms(&self, weight: &[f32]) -> Vec<f64> {
        assert_eq!(weight.len(), self.rows * self.columns, "weights of a layer");
        let mut squares = vec![0.0; self.count()];
        for (group, run) in self.runs() {
            squares[group] += weight[run].iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        }
        squares.into_iter().map(f64::sqrt).collect()
    }

    /// Calls `f` with every weight and the value of its group.
    ///
    /// # Panics
    /// If `values` are not one for each group, or `weights` not as long as the matrix.
    pub fn apply<T: Copy, W>(&self, values: &[T], weights: &mut [W], f: impl Fn(&mut W, T)) {
        assert_eq!(
            (values.len(), weights.len()),
            (self.count(), self.rows * self.columns),
            "groups and weights"
        );
        for (group, run) in self.runs() {
            weights[run].iter_mut().for_each(|w| f(w, values[group]));
        }
    }

    /// One step towards the group lasso `strength * sum_g ||w_g||` by its proximal operator: `w_g` shrinks by `step` in norm, and is 0
    /// where it was shorter. `step` is the learning rate times the strength (Parikh and Boyd 2014, section 6.5.1).
    ///
    /// # Panics
    /// If `weight` is not as long as the matrix.
    pub fn shrink(&self, weight: &mut [f32], step: f64) {
        #[expect(clippy::cast_possible_truncation, reason = "numbers are f32")]
        let factor = |norm: f64| if norm > step { (1.0 - step / norm) as f32 } else { 0.0 };
        let factors: Vec<f32> = self.norms(weight).into_iter().map(factor).collect();
        // Not by multiplication, so that a group that is gone has no negative zeros.
        self.apply(&factors, weight, |w, factor| *w = if factor == 0.0 { 0.0 } else { *w * factor });
    }

    /// The authors' subgradient of the group lasso: `strength * w / ||w_g||` is added to `gradient`, nothing where the norm is 0.
    ///
    /// # Panics
    /// If the slices are not as long as the matrix.
    pub fn add_subgradient(&self, weight: &[f32], strength: f64, gradient: &mut [f32]) {
        let factor = |norm: f64| if norm > 0.0 { strength / norm } else { 0.0 };
        let factors: Vec<f64> = self.norms(weight).into_iter().map(factor).collect();
        for (group, run) in self.runs() {
            #[expect(clippy::cast_possible_truncation, reason = "numbers are f32")]
            let factor = factors[group] as f32;
            gradient[run.clone()].iter_mut().zip(&weight[run]).for_each(|(g, w)| *g += factor * w);
        }
    }
}

/// For every group of every layer whether it is all zero, in the order of the layer's groups; layers in graph order.
#[must_use]
pub fn zero_groups(model: &Model, grouping: Grouping) -> Vec<(String, Vec<bool>)> {
    let of = |layer: Layer<'_>| {
        let norms = Groups::of_layer(&layer, grouping).norms(layer.weight);
        (layer.name.to_owned(), norms.iter().map(|norm| *norm == 0.0).collect())
    };
    Layer::all(model).into_iter().map(of).collect()
}
