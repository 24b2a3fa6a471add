use cofilter_graph::{Array, Op};
use cofilter_kernels::blocked::BLOCK;

/// How much of the weights of a step is not zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Density {
    /// Share of the weights.
    pub weights: f64,
    /// Share of the columns of sixteen filters each (a place of the window of an input channel) of which one at least has a weight: what a
    /// direct convolution multiplies, which leaves out the others.
    pub columns: f64,
}

impl Density {
    /// Of what has no weights, or only such as are not zero.
    pub const FULL: Self = Self { weights: 1.0, columns: 1.0 };

    /// Of the weights of an operation, `[filters, columns..]`.
    pub(crate) fn of(op: &Op, tensors: &[Array]) -> Self {
        let (Op::Conv2d(_) | Op::Linear(_), Some(weight)) = (op, tensors.first()) else { return Self::FULL };
        let groups = if let Op::Conv2d(conv) = op { conv.groups } else { 1 };
        let filters = weight.dims().first().copied().unwrap_or(0);
        let columns = weight.data().len().checked_div(filters).unwrap_or(0);
        if columns == 0 {
            return Self::FULL;
        }
        let (mut weights, mut cells, mut live) = (0, 0, 0);
        let mut any = vec![false; columns];
        for group in weight.data().chunks(filters.div_ceil(groups) * columns) {
            for block in group.chunks(BLOCK * columns) {
                any.fill(false);
                for filter in block.chunks(columns) {
                    for (any, weight) in any.iter_mut().zip(filter) {
                        *any |= *weight != 0.0;
                        weights += usize::from(*weight != 0.0);
                    }
                }
                live += any.iter().filter(|any| **any).count();
                cells += columns;
            }
        }
        let share = |part: usize, all: usize| part as f64 / all as f64;
        Self { weights: share(weights, weight.data().len()), columns: share(live, cells) }
    }

    /// Words for tables of costs; nothing where there are no zeros to speak of.
    pub(crate) fn text(self) -> String {
        let percent = |share: f64| (share * 100.0).round();
        match (percent(self.weights), percent(self.columns)) {
            (100.0, 100.0) => String::new(),
            (weights, columns) => format!(" density {weights}% columns {columns}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofilter_graph::Conv2d;

    fn density(
        filters: usize,
        inputs: usize,
        groups: usize,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Density {
        let columns = inputs / groups * 9;
        let data: Vec<f32> = (0..filters * columns).map(|at| weight(at / columns, at % columns)).collect();
        let array = Array::new(vec![filters, inputs / groups, 3, 3], data);
        Density::of(&Op::Conv2d(Conv2d { groups, ..Conv2d::new(filters, 3) }), &[array])
    }

    #[test]
    fn weights_and_columns_of_sixteen_filters_are_counted() {
        assert_eq!(density(32, 4, 1, |_, _| 1.0), Density::FULL);
        // One filter of each block is enough to keep a column.
        let of = density(32, 4, 1, |filter, _| f32::from(u8::from(filter % 16 == 3)));
        assert_eq!(of, Density { weights: 1.0 / 16.0, columns: 1.0 });
        // A third of the columns is gone, in the first block all.
        let of = density(20, 4, 1, |filter, column| {
            f32::from(u8::from(filter >= 16 && !column.is_multiple_of(3)))
        });
        assert_eq!(of, Density { weights: 4.0 * 24.0 / (20.0 * 36.0), columns: 24.0 / 72.0 });
        // Blocks end where groups do.
        let of = density(16, 4, 2, |filter, _| f32::from(u8::from(filter < 8)));
        assert_eq!(of, Density { weights: 0.5, columns: 0.5 });
        assert_eq!(Density::of(&Op::Relu, &[]), Density::FULL);
        assert_eq!(of.text(), " density 50% columns 50%");
        assert_eq!(Density { weights: 0.999, columns: 1.0 }.text(), "");
    }
}
