//! What the kernels compute, as loops in `f64` straight from the formulas, with the error that each result may have.

use crate::numbers::Numbers;
use cofilter_cuda::{Elementwise, Geometry, Math, Window};

/// Something for a kernel to do. Tensors come from fixed seeds.
#[derive(Clone, Debug)]
pub(crate) enum Case {
    /// A convolution, or a pair with so many outputs.
    Conv { math: Math, geometry: Geometry, images: usize, splits: usize, zeros: f64, second: Option<usize> },
    /// A fully connected layer.
    Linear { math: Math, inputs: usize, outputs: usize, images: usize },
    /// Something else.
    Map { shape: [usize; 3], of: Elementwise, images: usize },
    /// Batch normalisation.
    Normalise { shape: [usize; 3], images: usize },
}

/// A result and how far from it a number may be.
pub(crate) struct Bound {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

/// Rounding of single precision.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

impl Case {
    /// Elements of source and result.
    pub(crate) fn lens(&self) -> [usize; 2] {
        match self {
            Self::Conv { geometry, second, .. } => {
                let area = geometry.results[0] * geometry.results[1];
                let channels = second.unwrap_or(geometry.filters);
                [geometry.channels * geometry.extents[0] * geometry.extents[1], channels * area]
            }
            Self::Linear { inputs, outputs, .. } => [*inputs, *outputs],
            Self::Map { shape, of, .. } => {
                let [channels, height, width] = *shape;
                let area = match of {
                    Elementwise::MaxPool(window) | Elementwise::MeanPool { window, .. } => window.results,
                    Elementwise::Adaptive { results } => *results,
                    _ => [height, width],
                };
                let all = match of {
                    Elementwise::Copy { channels, .. } => *channels,
                    _ => channels,
                };
                [channels * height * width, all * area[0] * area[1]]
            }
            Self::Normalise { shape: [channels, height, width], .. } => [channels * height * width; 2],
        }
    }

    /// Every second convolution has one; layers that copy or normalise have one too.
    pub(crate) fn takes_summand(&self) -> bool {
        match self {
            Self::Conv { geometry, .. } => geometry.filters % 2 == 1,
            Self::Map { of: Elementwise::Copy { .. }, .. } | Self::Normalise { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn rectified(&self) -> bool {
        match self {
            Self::Conv { geometry, .. } => geometry.channels % 2 == 0,
            Self::Linear { inputs, .. } => inputs % 2 == 0,
            Self::Map { of: Elementwise::Copy { before, .. }, .. } => *before > 0,
            Self::Map { .. } => false,
            Self::Normalise { images, .. } => *images > 1,
        }
    }

    /// Weights (of a basis, of a normalisation), biases, and weights of a combination.
    pub(crate) fn tensors(&self) -> [Vec<f32>; 3] {
        let mut numbers = Numbers::new(3);
        match self {
            Self::Conv { geometry, zeros, second, .. } => {
                let columns = geometry.columns();
                let mut weight = numbers.list(geometry.filters * columns);
                // Columns of zeros in blocks of sixteen filters, so that tiles differ in what is left.
                for block in weight.chunks_mut(16 * columns) {
                    for column in 0..columns {
                        if (numbers.below(1000) as f64) < 1000.0 * zeros {
                            block.iter_mut().skip(column).step_by(columns).for_each(|w| *w = 0.0);
                        }
                    }
                }
                let outputs = second.unwrap_or(geometry.filters);
                let bias = if geometry.filters % 3 == 0 { Vec::new() } else { numbers.list(outputs) };
                let combination = numbers.list(second.map_or(0, |outputs| outputs * geometry.filters));
                [weight, bias, combination]
            }
            Self::Linear { inputs, outputs, .. } => {
                let bias = if outputs % 2 == 0 { Vec::new() } else { numbers.list(*outputs) };
                [numbers.list(inputs * outputs), bias, Vec::new()]
            }
            Self::Map { .. } => [Vec::new(), Vec::new(), Vec::new()],
            Self::Normalise { shape, .. } => [numbers.list(3 * shape[0]), Vec::new(), Vec::new()],
        }
    }
}

/// A sum of products: its value, the sum of their sizes, and the sums of the sizes of both factors.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    size: f64,
    factors: f64,
    terms: usize,
}

impl Sum {
    fn add(&mut self, w: f64, x: f64) {
        self.value += w * x;
        self.size += (w * x).abs();
        self.factors += w.abs() + x.abs();
        self.terms += 1;
    }

    /// What the sum may be off by, from the roundings of factors, products and sums.
    fn error(&self, math: Math) -> f64 {
        let tiny = if math == Math::F16 { self.factors / (1 << 24) as f64 } else { 0.0 };
        self.size * (math.error() + (self.terms + 8) as f64 * ROUNDING) + tiny
    }
}

/// The result of a case for one image.
pub(crate) fn evaluate(case: &Case, src: &[f32], add: Option<&[f32]>) -> Vec<Bound> {
    let [first, bias, second] = case.tensors();
    let src: Vec<f64> = src.iter().map(|x| f64::from(*x)).collect();
    let mut bounds = match case {
        Case::Conv { math, geometry, second: outputs, .. } => {
            let sums = conv(geometry, &src, &first);
            match outputs {
                None => sums.iter().map(|sum| Bound { value: sum.value, error: sum.error(*math) }).collect(),
                Some(outputs) => combine(geometry, &sums, *outputs, &second),
            }
        }
        Case::Linear { math, inputs, outputs, .. } => {
            let row = |o: usize| {
                let mut sum = Sum::default();
                (0..*inputs).for_each(|i| sum.add(f64::from(first[o * inputs + i]), src[i]));
                // Only the weights are rounded, not the source.
                Bound { value: sum.value, error: sum.error(*math) }
            };
            (0..*outputs).map(row).collect()
        }
        Case::Map { shape, of, .. } => map(*shape, *of, &src),
        Case::Normalise { shape, .. } => {
            let area = shape[1] * shape[2];
            let of = |(i, x): (usize, &f64)| {
                let [mean, factor, shift] = [0, 1, 2].map(|k| f64::from(first[3 * (i / area) + k]));
                near((x - mean) * factor + shift)
            };
            src.iter().enumerate().map(of).collect()
        }
    };
    let area = case.lens()[1] / bias.len().max(1);
    for (i, bound) in bounds.iter_mut().enumerate() {
        bound.value += bias.get(i / area.max(1)).map_or(0.0, |b| f64::from(*b))
            + add.map_or(0.0, |add| f64::from(add[i]));
        bound.error += 8.0 * ROUNDING * (1.0 + bound.value.abs());
        if case.rectified() {
            bound.value = bound.value.max(0.0);
        }
    }
    bounds
}

fn near(value: f64) -> Bound {
    Bound { value, error: 32.0 * ROUNDING * (1.0 + value.abs()) }
}

fn conv(of: &Geometry, src: &[f64], weight: &[f32]) -> Vec<Sum> {
    let [height, width] = of.extents;
    let (channels, filters) = (of.channels / of.groups, of.filters / of.groups);
    let mut sums = Vec::new();
    for filter in 0..of.filters {
        for y in 0..of.results[0] {
            for x in 0..of.results[1] {
                let mut sum = Sum::default();
                for c in 0..channels {
                    for u in 0..of.kernel[0] {
                        for v in 0..of.kernel[1] {
                            let row = (y * of.stride[0] + u * of.dilation[0]).checked_sub(of.padding[0]);
                            let column = (x * of.stride[1] + v * of.dilation[1]).checked_sub(of.padding[1]);
                            let (Some(row), Some(column)) = (row, column) else { continue };
                            if row < height && column < width {
                                let w =
                                    weight[((filter * channels + c) * of.kernel[0] + u) * of.kernel[1] + v];
                                let channel = filter / filters * channels + c;
                                sum.add(f64::from(w), src[(channel * height + row) * width + column]);
                            }
                        }
                    }
                }
                sums.push(sum);
            }
        }
    }
    sums
}

fn combine(of: &Geometry, middle: &[Sum], outputs: usize, weight: &[f32]) -> Vec<Bound> {
    let area = of.results[0] * of.results[1];
    let mut bounds = Vec::new();
    for output in 0..outputs {
        for place in 0..area {
            let (mut sum, mut carried) = (Sum::default(), 0.0);
            for rank in 0..of.filters {
                let (w, of) = (f64::from(weight[output * of.filters + rank]), &middle[rank * area + place]);
                sum.add(w, of.value);
                carried += w.abs() * of.error(Math::F32);
            }
            bounds.push(Bound { value: sum.value, error: carried + sum.error(Math::F32) });
        }
    }
    bounds
}

fn map([channels, height, width]: [usize; 3], of: Elementwise, src: &[f64]) -> Vec<Bound> {
    let at = |c: usize, y: usize, x: usize| src[(c * height + y) * width + x];
    let each = |channels: usize, results: [usize; 2], f: &dyn Fn(usize, usize, usize) -> f64| {
        let mut bounds = Vec::new();
        for c in 0..channels {
            for y in 0..results[0] {
                bounds.extend((0..results[1]).map(|x| near(f(c, y, x))));
            }
        }
        bounds
    };
    // Elements of the map in a window, and the extents of the window within the padded map.
    let inside = |window: &Window, c: usize, y: usize, x: usize| {
        let Window { kernel, stride, padding, .. } = *window;
        let (top, left) = (y * stride[0], x * stride[1]);
        let rows = top..(top + kernel[0]).min(height + 2 * padding[0]);
        let columns = left..(left + kernel[1]).min(width + 2 * padding[1]);
        let mut elements = Vec::new();
        for row in rows.clone().filter_map(|row| row.checked_sub(padding[0])).filter(|row| *row < height) {
            for column in columns.clone().filter_map(|c| c.checked_sub(padding[1])).filter(|c| *c < width) {
                elements.push(at(c, row, column));
            }
        }
        (elements, rows.len() * columns.len())
    };
    match of {
        Elementwise::Copy { before, channels: all } => each(all, [height, width], &|c, y, x| {
            c.checked_sub(before).filter(|c| *c < channels).map_or(0.0, |c| at(c, y, x))
        }),
        Elementwise::MaxPool(window) => each(channels, window.results, &|c, y, x| {
            inside(&window, c, y, x).0.into_iter().fold(f64::NEG_INFINITY, f64::max)
        }),
        Elementwise::MeanPool { window, count_padding } => each(channels, window.results, &|c, y, x| {
            let (elements, padded) = inside(&window, c, y, x);
            let count = if count_padding { padded } else { elements.len() };
            elements.iter().sum::<f64>() / count as f64
        }),
        Elementwise::Adaptive { results } => each(channels, results, &|c, y, x| {
            let (mut sum, mut count) = (0.0, 0);
            for row in y * height / results[0]..((y + 1) * height).div_ceil(results[0]) {
                for column in x * width / results[1]..((x + 1) * width).div_ceil(results[1]) {
                    sum += at(c, row, column);
                    count += 1;
                }
            }
            sum / f64::from(count)
        }),
        Elementwise::Lrn { within, size, weight, beta, k } => each(channels, [height, width], &|c, y, x| {
            let around = |at: usize, end: usize| at.saturating_sub(size / 2)..(at + size / 2 + 1).min(end);
            let mut sum = 0.0;
            if within {
                for row in around(y, height) {
                    sum += around(x, width).map(|column| at(c, row, column).powi(2)).sum::<f64>();
                }
            } else {
                sum += around(c, channels).map(|c| at(c, y, x).powi(2)).sum::<f64>();
            }
            at(c, y, x) / (f64::from(k) + f64::from(weight) * sum).powf(f64::from(beta))
        }),
        Elementwise::Softmax => {
            let most = src.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let all: f64 = src.iter().map(|x| (x - most).exp()).sum();
            src.iter().map(|x| near((x - most).exp() / all)).collect()
        }
    }
}
