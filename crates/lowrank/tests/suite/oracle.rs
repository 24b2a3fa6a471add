//! Naive `f64` loops and small networks.

use cofilter_graph::{Array, Conv2d, Graph, Linear, Model, NodeId, Op, Params, Shape};

/// Numbers in `-1..1` from a seed (xorshift).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * end as f64) as usize
    }

    pub(crate) fn array(&mut self, dims: &[usize]) -> Array {
        let len = dims.iter().product::<usize>();
        Array::new(dims.to_vec(), (0..len).map(|_| self.next() as f32).collect::<Vec<_>>())
    }

    /// A matrix `[rows, cols]` whose singular values fall by about `decay` a step.
    pub(crate) fn decaying(&mut self, dims: &[usize], decay: f64) -> Array {
        let (rows, cols) = (dims[0], dims[1..].iter().product::<usize>());
        let mut w = vec![0.0; rows * cols];
        for m in 0..rows.min(cols) {
            let (a, b): (Vec<f64>, Vec<f64>) =
                ((0..rows).map(|_| self.next()).collect(), (0..cols).map(|_| self.next()).collect());
            for (i, w) in w.iter_mut().enumerate() {
                *w += decay.powi(m as i32) * a[i / cols] * b[i % cols];
            }
        }
        Array::new(dims.to_vec(), w.into_iter().map(|v| v as f32).collect::<Vec<_>>())
    }
}

/// A network of one convolution `conv` on an input of this shape.
pub(crate) fn one_conv(input: Shape, conv: &Conv2d, weight: Array, bias: Option<Array>) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", input).unwrap();
    let y = b.conv2d("conv", x, Conv2d { bias: bias.is_some(), ..conv.clone() }).unwrap();
    let tensors = std::iter::once(weight).chain(bias).collect();
    Model::new(b.finish(&[y]).unwrap(), Params::new(vec![vec![], tensors])).unwrap()
}

/// A network of one fully connected layer `fc`.
pub(crate) fn one_linear(weight: Array, bias: Option<Array>) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::Vector(weight.dims()[1])).unwrap();
    let op = Op::Linear(Linear { out_features: weight.dims()[0], bias: bias.is_some() });
    let y = b.add("fc", op, &[x]).unwrap();
    let tensors = std::iter::once(weight).chain(bias).collect();
    Model::new(b.finish(&[y]).unwrap(), Params::new(vec![vec![], tensors])).unwrap()
}

pub(crate) fn tensor<'a>(model: &'a Model, node: &str, slot: usize) -> &'a Array {
    &model.tensors(model.graph().find(node).unwrap())[slot]
}

/// Runs a network of convolutions and fully connected layers in `f64` on one image.
pub(crate) fn evaluate(model: &Model, image: &[f64]) -> Vec<f64> {
    let graph = model.graph();
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (id, node) in graph.iter() {
        let src = |i: usize| &values[node.inputs()[i].index()];
        let value = match node.op() {
            Op::Input { .. } => image.to_vec(),
            Op::Conv2d(conv) => {
                convolve(conv, graph.input_shapes(id)[0], node.shape(), src(0), model.tensors(id))
            }
            Op::Linear(_) => multiply(src(0), model.tensors(id)),
            other => panic!("{other:?} is not needed here"),
        };
        assert_eq!(value.len(), node.shape().elements());
        values.push(value);
    }
    values.swap_remove(graph.outputs()[0].index())
}

fn multiply(src: &[f64], tensors: &[Array]) -> Vec<f64> {
    let bias = |row: usize| tensors.get(1).map_or(0.0, |b| f64::from(b.data()[row]));
    let rows = tensors[0].data().chunks_exact(src.len());
    rows.enumerate()
        .map(|(row, w)| bias(row) + w.iter().zip(src).map(|(w, x)| f64::from(*w) * x).sum::<f64>())
        .collect()
}

/// `dst[n, y, x] = bias[n] + sum_{c, i, j} w[n, c, i, j] src[g C + c, y sy - py + i dy, x sx - px + j dx]`.
fn convolve(conv: &Conv2d, from: Shape, to: Shape, src: &[f64], tensors: &[Array]) -> Vec<f64> {
    let ([height, width], [rows, cols], [kh, kw]) = (from.spatial(), to.spatial(), conv.kernel);
    let per_group = from.channels() / conv.groups;
    let mut dst = Vec::new();
    for n in 0..conv.out_channels {
        let group = n / (conv.out_channels / conv.groups);
        for (y, x) in (0..rows).flat_map(|y| (0..cols).map(move |x| (y, x))) {
            let mut sum = tensors.get(1).map_or(0.0, |b| f64::from(b.data()[n]));
            for (c, i, j) in
                (0..per_group).flat_map(|c| (0..kh).flat_map(move |i| (0..kw).map(move |j| (c, i, j))))
            {
                let row = (y * conv.stride[0] + i * conv.dilation[0]).checked_sub(conv.padding[0]);
                let col = (x * conv.stride[1] + j * conv.dilation[1]).checked_sub(conv.padding[1]);
                let (Some(row), Some(col)) = (row, col) else { continue };
                if row < height && col < width {
                    let w = tensors[0].data()[((n * per_group + c) * kh + i) * kw + j];
                    sum += f64::from(w) * src[((group * per_group + c) * height + row) * width + col];
                }
            }
            dst.push(sum);
        }
    }
    dst
}

/// `|a - b| / |a|` in the Frobenius norm.
pub(crate) fn relative(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    let mut b = b.into_iter();
    for a in a {
        difference += (a - b.next().unwrap()).powi(2);
        size += a * a;
    }
    assert!(b.next().is_none(), "of different lengths");
    assert!(size > 0.0, "nothing to compare with");
    (difference / size).sqrt()
}

pub(crate) fn doubles(array: &Array) -> impl Iterator<Item = f64> + '_ {
    array.data().iter().map(|v| f64::from(*v))
}

/// Singular values of a `[rows, cols]` matrix by one-sided Jacobi rotations, falling.
pub(crate) fn singular_values(matrix: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    // Rotates pairs of rows (or columns, whichever are fewer) until all are orthogonal.
    let vectors = rows.min(cols);
    let mut v: Vec<Vec<f64>> = (0..vectors)
        .map(|i| {
            if rows <= cols {
                matrix[i * cols..(i + 1) * cols].to_vec()
            } else {
                (0..rows).map(|r| matrix[r * cols + i]).collect()
            }
        })
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    for _ in 0..60 {
        let mut off = 0.0f64;
        for p in 0..vectors {
            for q in p + 1..vectors {
                let (a, b, c) = (dot(&v[p], &v[p]), dot(&v[q], &v[q]), dot(&v[p], &v[q]));
                if c == 0.0 {
                    continue;
                }
                off = off.max(c.abs() / (a * b).sqrt());
                let zeta = (b - a) / (2.0 * c);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let (cos, sin) = (1.0 / (1.0 + t * t).sqrt(), t / (1.0 + t * t).sqrt());
                for k in 0..v[p].len() {
                    let (x, y) = (v[p][k], v[q][k]);
                    v[p][k] = cos * x - sin * y;
                    v[q][k] = sin * x + cos * y;
                }
            }
        }
        if off < 1e-15 {
            break;
        }
    }
    let mut values: Vec<f64> = v.iter().map(|v| dot(v, v).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Ids of nodes by name, for short tests.
pub(crate) fn names(model: &Model) -> Vec<&str> {
    model.graph().nodes().iter().map(cofilter_graph::Node::name).collect()
}

/// The node that a node reads.
pub(crate) fn input_of<'a>(model: &'a Model, node: &str) -> &'a str {
    let id: NodeId = model.graph().find(node).unwrap();
    model.graph().node(model.graph().node(id).inputs()[0]).name()
}
