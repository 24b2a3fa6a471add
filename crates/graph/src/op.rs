use crate::Shape;
use serde::{Deserialize, Serialize};

/// What a node computes. The set is closed; every interpreter is one exhaustive match.
///
/// Formulas, shapes and limits of each op are in `docs/ops.md`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// The image (or feature vector) given to the network.
    Input {
        /// Extents for one image.
        shape: Shape,
    },
    /// Cross-correlation with a bank of filters.
    Conv2d(Conv2d),
    /// `y = W x + b`.
    Linear(Linear),
    /// Normalisation by channel, with scale and shift.
    BatchNorm(BatchNorm),
    /// `max(x, 0)`, with gradient 0 at 0.
    Relu,
    /// Maximum or average over windows.
    Pool2d(Pool2d),
    /// Average over `output` windows that tile the map: window `i` of `n` covers rows `floor(i*h/n) .. ceil((i+1)*h/n)`.
    /// `[1, 1]` is global average pooling.
    AdaptiveAvgPool {
        /// `[height, width]` of the result.
        output: [usize; 2],
    },
    /// Local response normalisation.
    Lrn(Lrn),
    /// Sets a fraction `p` to zero and scales the rest by `1 / (1 - p)` while training; the identity otherwise.
    Dropout {
        /// Probability of zero, in `[0, 1)`.
        p: f32,
    },
    /// Elementwise sum of two or more values of one shape.
    Add,
    /// Maps (or vectors) one after the other along the channels.
    Concat,
    /// Map to vector, channel by channel, row by row.
    Flatten,
    /// `exp(x_i) / sum_j exp(x_j)` over a vector.
    Softmax,
    /// Channels of zeros before and after (the option-A shortcut of CIFAR ResNets).
    PadChannels(PadChannels),
}

/// A convolution. Weight `[out_channels, in_channels / groups, kernel_h, kernel_w]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2d {
    /// Number of filters.
    pub out_channels: usize,
    /// `[height, width]` of a filter.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Rows and columns of zeros on each side.
    pub padding: [usize; 2],
    /// Distance between the taps of a filter.
    pub dilation: [usize; 2],
    /// Number of groups; both channel counts are multiples of it.
    pub groups: usize,
    /// Whether there is a bias `[out_channels]`.
    pub bias: bool,
}

impl Conv2d {
    /// A square convolution of stride 1 without padding, with bias.
    #[must_use]
    pub fn new(out_channels: usize, kernel: usize) -> Self {
        Self {
            out_channels,
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
            groups: 1,
            bias: true,
        }
    }
}

/// A fully connected layer. Weight `[out_features, in_features]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// Length of the result.
    pub out_features: usize,
    /// Whether there is a bias `[out_features]`.
    pub bias: bool,
}

/// Batch normalisation: `weight * (x - mean) / sqrt(var + eps) + bias` by channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Share of the batch in the running statistics: `running = (1 - momentum) * running + momentum * batch`, with the
    /// unbiased variance.
    pub momentum: f32,
}

impl BatchNorm {
    /// Position of the running variance among the slots.
    pub(crate) const VARIANCE: usize = 3;
}

impl Default for BatchNorm {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1 }
    }
}

/// Which value a pooling window gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// The largest.
    Max,
    /// The mean.
    Average,
}

/// How the number of windows is rounded when the last one does not fit: `(in + 2 padding - kernel) / stride` down
/// (PyTorch's default) or up (Caffe). Rounded up, a window that would start beyond the map and its leading padding is
/// dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Windows that stick out are dropped.
    Floor,
    /// Windows that stick out are clipped.
    Ceil,
}

/// Pooling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool2d {
    /// Maximum or average.
    pub kind: PoolKind,
    /// `[height, width]` of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Rows and columns on each side, less than the kernel; never a maximum.
    pub padding: [usize; 2],
    /// Rounding of the number of windows.
    pub rounding: Rounding,
    /// Average only: divide by the window clipped to the *padded* map (Caffe; PyTorch's default) instead of by the
    /// number of real elements in it.
    pub count_padding: bool,
}

impl Pool2d {
    /// A square window as Caffe pools: counts rounded up, padding counted in averages.
    #[must_use]
    pub fn caffe(kind: PoolKind, kernel: usize, stride: usize) -> Self {
        Self {
            kind,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [0; 2],
            rounding: Rounding::Ceil,
            count_padding: true,
        }
    }

    /// A square window as PyTorch pools: counts rounded down, padding counted in averages.
    #[must_use]
    pub fn torch(kind: PoolKind, kernel: usize, stride: usize) -> Self {
        Self { rounding: Rounding::Floor, ..Self::caffe(kind, kernel, stride) }
    }
}

/// Over what a response is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrnRegion {
    /// `x / (k + alpha / size * sum_{size neighbouring channels} x^2)^beta`.
    AcrossChannels,
    /// `x / (k + alpha / size^2 * sum_{size x size window} x^2)^beta`, zeros outside the map.
    WithinChannel,
}

/// Local response normalisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lrn {
    /// Channels or space.
    pub region: LrnRegion,
    /// Extent of the neighbourhood, odd.
    pub size: usize,
    /// Weight of the squares.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Constant term.
    pub k: f32,
}

/// Zero channels around a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PadChannels {
    /// Channels of zeros in front.
    pub before: usize,
    /// Channels of zeros behind.
    pub after: usize,
}

/// What a tensor of a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learnt, decayed.
    Weight,
    /// Learnt, usually decayed less.
    Bias,
    /// Measured while training, never learnt.
    Statistic,
}

/// One tensor that a node needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSpec {
    /// Name in files, after the node's: `conv1.weight`.
    pub name: &'static str,
    /// Extents, row-major.
    pub dims: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl SlotSpec {
    fn new(name: &'static str, dims: Vec<usize>, role: Role) -> Self {
        Self { name, dims, role }
    }
}

impl Op {
    /// Word for messages and reports: `conv2d`, `linear`, ...
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Input { .. } => "input",
            Self::Conv2d(_) => "conv2d",
            Self::Linear(_) => "linear",
            Self::BatchNorm(_) => "batch_norm",
            Self::Relu => "relu",
            Self::Pool2d(_) => "pool2d",
            Self::AdaptiveAvgPool { .. } => "adaptive_avg_pool",
            Self::Lrn(_) => "lrn",
            Self::Dropout { .. } => "dropout",
            Self::Add => "add",
            Self::Concat => "concat",
            Self::Flatten => "flatten",
            Self::Softmax => "softmax",
            Self::PadChannels(_) => "pad_channels",
        }
    }

    /// The tensors this op needs, in a fixed order, for inputs of these shapes, which [`Op::infer`] accepts.
    ///
    /// # Panics
    /// For a convolution of 0 groups, which [`Op::infer`] refuses.
    #[must_use]
    pub fn slots(&self, inputs: &[Shape]) -> Vec<SlotSpec> {
        let channels = inputs.first().map_or(0, |s| s.channels());
        match self {
            Self::Conv2d(c) => {
                let [h, w] = c.kernel;
                let mut slots = vec![SlotSpec::new(
                    "weight",
                    vec![c.out_channels, channels / c.groups, h, w],
                    Role::Weight,
                )];
                if c.bias {
                    slots.push(SlotSpec::new("bias", vec![c.out_channels], Role::Bias));
                }
                slots
            }
            Self::Linear(l) => {
                let mut slots = vec![SlotSpec::new("weight", vec![l.out_features, channels], Role::Weight)];
                if l.bias {
                    slots.push(SlotSpec::new("bias", vec![l.out_features], Role::Bias));
                }
                slots
            }
            Self::BatchNorm(_) => vec![
                SlotSpec::new("weight", vec![channels], Role::Weight),
                SlotSpec::new("bias", vec![channels], Role::Bias),
                SlotSpec::new("running_mean", vec![channels], Role::Statistic),
                SlotSpec::new("running_var", vec![channels], Role::Statistic),
            ],
            Self::Input { .. }
            | Self::Relu
            | Self::Pool2d(_)
            | Self::AdaptiveAvgPool { .. }
            | Self::Lrn(_)
            | Self::Dropout { .. }
            | Self::Add
            | Self::Concat
            | Self::Flatten
            | Self::Softmax
            | Self::PadChannels(_) => Vec::new(),
        }
    }
}
