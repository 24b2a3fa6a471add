use crate::algebra::TASKS;
use crate::factor::single;
use crate::layer::{Layer, LayerOp};
use cofilter_graph::{Array, Conv2d, Linear, NodeId, Op, Rewriter};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::sync::Arc;

/// A convolution without bias in numbers, or a fully connected layer as one of 1x1.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Extents; `bias` is without meaning.
    pub(crate) conv: Conv2d,
    /// Channels read, over all groups.
    pub(crate) channels: usize,
    /// `[out_channels, channels / groups, kernel_h, kernel_w]`, row-major.
    pub(crate) weight: Vec<f64>,
}

impl Kernel {
    /// The layer itself.
    pub(crate) fn of(layer: &Layer<'_>) -> Self {
        let weight = layer.weight.data().iter().map(|w| f64::from(*w)).collect();
        Self { conv: layer.as_conv(), channels: layer.channels, weight }
    }

    fn group_channels(&self) -> usize {
        self.channels / self.conv.groups
    }

    fn taps(&self) -> usize {
        self.conv.kernel[0] * self.conv.kernel[1]
    }

    /// This convolution and then `next` as one, if they are one; see [`join`].
    pub(crate) fn then(&self, next: &Self) -> Option<Self> {
        let conv = join(&self.conv, &next.conv)?;
        let weight = if next.taps() == 1 && self.conv.groups == next.conv.groups {
            self.combined(next)
        } else {
            self.multiplied(next, &conv)
        };
        Some(Self { conv, channels: self.channels, weight })
    }

    /// `next` is 1x1 and of the same groups: a product of matrices for each.
    fn combined(&self, next: &Self) -> Vec<f64> {
        let groups = self.conv.groups;
        let (rows, middle) = (next.conv.out_channels / groups, self.conv.out_channels / groups);
        let len = self.group_channels() * self.taps();
        let mut weight = vec![0.0; groups * rows * len];
        for (g, to) in weight.chunks_exact_mut(rows * len).enumerate() {
            let combination = &next.weight[g * rows * middle..][..rows * middle];
            let basis = &self.weight[g * middle * len..][..middle * len];
            matmul(
                MatMut::from_row_major_slice_mut(to, rows, len),
                Accum::Replace,
                MatRef::from_row_major_slice(combination, rows, middle),
                MatRef::from_row_major_slice(basis, middle, len),
                1.0,
                Par::Seq,
            );
        }
        weight
    }

    fn multiplied(&self, next: &Self, of: &Conv2d) -> Vec<f64> {
        let (a, b) = (&self.conv, &next.conv);
        let channels = self.channels / of.groups;
        let [rows, columns] = of.kernel;
        let mut weight = vec![0.0; of.out_channels * channels * rows * columns];
        let (own, middle) = (self.group_channels(), next.group_channels());
        for n in 0..of.out_channels {
            let first_middle = n / (b.out_channels / b.groups) * middle;
            let first_channel = n / (of.out_channels / of.groups) * channels;
            let to = &mut weight[n * channels * rows * columns..][..channels * rows * columns];
            for m in 0..middle {
                let global = first_middle + m;
                let from_channel = global / (a.out_channels / a.groups) * own - first_channel;
                for tap_b in 0..next.taps() {
                    let factor = next.weight[(n * middle + m) * next.taps() + tap_b];
                    let [row_b, column_b] = [tap_b / b.kernel[1], tap_b % b.kernel[1]];
                    for c in 0..own {
                        for tap_a in 0..self.taps() {
                            let [row_a, column_a] = [tap_a / a.kernel[1], tap_a % a.kernel[1]];
                            // One of the two is 0 along each axis.
                            let (row, column) = (row_a + row_b, column_a + column_b);
                            to[((from_channel + c) * rows + row) * columns + column] +=
                                factor * self.weight[(global * own + c) * self.taps() + tap_a];
                        }
                    }
                }
            }
        }
        weight
    }
}

/// Extents of the map that a convolution makes of one of these.
pub(crate) fn extents_after(conv: &Conv2d, from: [usize; 2]) -> [usize; 2] {
    std::array::from_fn(|axis| {
        let taps = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1;
        (from[axis] + 2 * conv.padding[axis] - taps) / conv.stride[axis] + 1
    })
}

/// The convolution that `a` and then `b` are, if they are one: along each axis at most one of the two may have more than a tap,
/// and what comes before several taps must neither step nor pad there.
pub(crate) fn join(a: &Conv2d, b: &Conv2d) -> Option<Conv2d> {
    let groups = a.groups.min(b.groups);
    if !a.groups.max(b.groups).is_multiple_of(groups) {
        return None;
    }
    let mut conv = Conv2d { groups, ..Conv2d::new(b.out_channels, 1) };
    for axis in 0..2 {
        let (stride, of) = if b.kernel[axis] == 1 && b.padding[axis] == 0 {
            (b.stride[axis], a)
        } else if a.kernel[axis] == 1 && a.stride[axis] == 1 && a.padding[axis] == 0 {
            (1, b)
        } else {
            return None;
        };
        conv.kernel[axis] = of.kernel[axis];
        conv.stride[axis] = of.stride[axis] * stride;
        conv.padding[axis] = of.padding[axis];
        conv.dilation[axis] = of.dilation[axis];
    }
    Some(conv)
}

/// A basis and a combination of it as one weight, in single precision: for a measurement of an error that is much larger than
/// its rounding, or of that size.
fn single_product(basis: &Link, combination: &Link) -> Vec<f32> {
    let groups = basis.conv.groups;
    let (rows, middle) = (combination.conv.out_channels / groups, basis.conv.out_channels / groups);
    let (bases, combinations) = (basis.weight.data(), combination.weight.data());
    let len = bases.len() / basis.conv.out_channels;
    let mut product = vec![0.0f32; groups * rows * len];
    let par = if rows * middle * len > LARGE { Par::rayon(TASKS) } else { Par::Seq };
    for (g, to) in product.chunks_exact_mut(rows * len).enumerate() {
        matmul(
            MatMut::from_row_major_slice_mut(to, rows, len),
            Accum::Replace,
            MatRef::from_row_major_slice(&combinations[g * rows * middle..][..rows * middle], rows, middle),
            MatRef::from_row_major_slice(&bases[g * middle * len..][..middle * len], middle, len),
            1.0,
            par,
        );
    }
    product
}

/// Multiplications from which on one product is shared between threads.
const LARGE: usize = 4_000_000_000;

/// One of the layers that replace a layer, with its weight as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Its name is that of the layer and this.
    suffix: &'static str,
    conv: Conv2d,
    channels: usize,
    weight: Array,
}

impl Link {
    /// Rounds the weight to `f32`.
    pub(crate) fn new(suffix: &'static str, kernel: Kernel) -> Self {
        let Kernel { conv, channels, weight } = kernel;
        let [rows, columns] = conv.kernel;
        let dims = vec![conv.out_channels, channels / conv.groups, rows, columns];
        let weight = Array::new(dims, weight.into_iter().map(single).collect::<Arc<[f32]>>());
        Self { suffix, conv, channels, weight }
    }

    /// As a layer of the kind of this one, and its weight.
    pub(crate) fn layer(&self, like: &Layer<'_>, bias: bool) -> (Op, Array) {
        let weight = match like.op {
            LayerOp::Conv2d(_) => self.weight.clone(),
            LayerOp::Linear(_) => self.weight.reshaped(vec![self.conv.out_channels, self.channels]),
        };
        (op(like, &self.conv, bias), weight)
    }

    pub(crate) fn kernel(&self) -> Kernel {
        let weight = self.weight.data().iter().map(|w| f64::from(*w)).collect();
        Kernel { conv: self.conv.clone(), channels: self.channels, weight }
    }
}

/// What replaces a layer: convolutions one after the other, without anything between them. The last one has the bias.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) links: Vec<Link>,
}

impl Chain {
    /// Rounds the weights to `f32`.
    pub(crate) fn new(links: impl IntoIterator<Item = (&'static str, Kernel)>) -> Self {
        Self { links: links.into_iter().map(|(suffix, kernel)| Link::new(suffix, kernel)).collect() }
    }

    /// The same with another weight of the last link.
    pub(crate) fn with_last(&self, weight: Vec<f64>) -> Self {
        let mut chain = self.clone();
        if let Some(last) = chain.links.last_mut() {
            let dims = last.weight.dims().to_vec();
            last.weight = Array::new(dims, weight.into_iter().map(single).collect::<Arc<[f32]>>());
        }
        chain
    }

    /// The dense layer it is.
    pub(crate) fn product(&self) -> Kernel {
        let product = self.links.iter().map(Link::kernel).reduce(|product, next| {
            product.then(&next).expect("the layers of a decomposition make one convolution")
        });
        product.expect("a chain has links")
    }

    /// `||W_g - W'_g||_F^2` and `||W_g||_F^2` of each group.
    pub(crate) fn errors(&self, layer: &Layer<'_>) -> Vec<[f64; 2]> {
        let product = match &self.links[..] {
            [basis, combination] if basis.suffix == "_lowrank" => single_product(basis, combination),
            _ => self.product().weight.into_iter().map(single).collect(),
        };
        let size = layer.group_filters() * layer.len;
        let of_group = |(old, new): (&[f32], &[f32])| {
            let of_row = |(old, new): (&[f32], &[f32])| {
                old.iter().zip(new).fold([0.0f64, 0.0], |[lost, whole], (w, v)| {
                    let (w, v) = (f64::from(*w), f64::from(*v));
                    [lost + (w - v) * (w - v), whole + w * w]
                })
            };
            let rows = old.chunks_exact(layer.len).zip(new.chunks_exact(layer.len)).map(of_row);
            rows.fold([0.0, 0.0], |[a, b], [lost, whole]| [a + lost, b + whole])
        };
        layer.weight.data().chunks_exact(size).zip(product.chunks_exact(size)).map(of_group).collect()
    }

    /// Puts it in the place of a layer, with this bias.
    pub(crate) fn emit(
        &self,
        b: &mut Rewriter<'_>,
        layer: &Layer<'_>,
        bias: Option<&Array>,
        inputs: &[NodeId],
    ) -> cofilter_graph::Result<NodeId> {
        let mut x = inputs[0];
        for (i, link) in self.links.iter().enumerate() {
            let bias = bias.filter(|_| i + 1 == self.links.len());
            let (op, weight) = link.layer(layer, bias.is_some());
            let tensors = [Some(weight), bias.cloned()].into_iter().flatten().collect();
            x = b.add(&format!("{}{}", layer.name, link.suffix), op, &[x], tensors)?;
        }
        Ok(x)
    }
}

/// A convolution as a layer of the kind of this one.
pub(crate) fn op(like: &Layer<'_>, conv: &Conv2d, bias: bool) -> Op {
    match like.op {
        LayerOp::Conv2d(_) => Op::Conv2d(Conv2d { bias, ..conv.clone() }),
        LayerOp::Linear(_) => Op::Linear(Linear { out_features: conv.out_channels, bias }),
    }
}
