use std::cmp::Ordering;

/// How a product is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Math {
    /// Single precision.
    #[default]
    F32,
    /// Tensor cores, factors rounded to 10 bits behind the point.
    Tf32,
    /// Tensor cores, factors in half precision: 10 bits, and what is beyond 65,504 is infinite.
    F16,
    /// Tensor cores, factors in bfloat16: 7 bits.
    Bf16,
}

impl Math {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Tf32, Self::F16, Self::Bf16];

    /// Word for messages and options: `f32`, `tf32`, `f16`, `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Most that a product `w x` of a convolution may differ from itself, as a part of `|w x|`: each factor is off by a part of 2^-11
    /// (bfloat16: 2^-8) at most, where it is neither too large nor below the smallest normal number. The sum is in single precision.
    #[must_use]
    pub fn error(self) -> f64 {
        let each = match self {
            Self::F32 => return 0.0,
            Self::Tf32 | Self::F16 => 1.0 / 2048.0,
            Self::Bf16 => 1.0 / 256.0,
        };
        2.0 * each + each * each
    }
}

/// What the host has to know of a kernel of `kernels/*.cu`.
#[derive(Debug)]
struct Info {
    name: &'static str,
    kind: Kind,
    /// Threads of a block.
    threads: u32,
    /// Filters and pixels of a block.
    tile: [usize; 2],
    /// Columns of a step.
    depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Conv { math: Math, pointwise: bool },
    ConvSum,
    Pair,
    Linear,
    Map,
}

const fn conv(name: &'static str, pointwise: bool, tile: [usize; 2], depth: usize, threads: u32) -> Info {
    Info { name, kind: Kind::Conv { math: Math::F32, pointwise }, threads, tile, depth }
}

const fn mma(name: &'static str, math: Math, tile: [usize; 2], threads: u32) -> Info {
    let depth = if matches!(math, Math::Tf32) { 16 } else { 32 };
    Info { name, kind: Kind::Conv { math, pointwise: false }, threads, tile, depth }
}

const fn other(name: &'static str, kind: Kind, threads: u32, tile: [usize; 2], depth: usize) -> Info {
    Info { name, kind, threads, tile, depth }
}

static KERNELS: [Info; 26] = [
    conv("conv_128x128", false, [128, 128], 8, 256),
    conv("conv_64x64", false, [64, 64], 16, 256),
    conv("conv_32x32", false, [32, 32], 16, 128),
    conv("conv_16x64", false, [16, 64], 16, 128),
    conv("conv1x1_128x128", true, [128, 128], 8, 256),
    conv("conv1x1_64x64", true, [64, 64], 16, 256),
    conv("conv1x1_32x32", true, [32, 32], 16, 128),
    conv("conv1x1_16x64", true, [16, 64], 16, 128),
    mma("conv_tf32_64x64", Math::Tf32, [64, 64], 128),
    mma("conv_tf32_128x128", Math::Tf32, [128, 128], 256),
    mma("conv_f16_64x64", Math::F16, [64, 64], 128),
    mma("conv_f16_128x128", Math::F16, [128, 128], 256),
    mma("conv_bf16_64x64", Math::Bf16, [64, 64], 128),
    mma("conv_bf16_128x128", Math::Bf16, [128, 128], 256),
    other("conv_sum", Kind::ConvSum, 256, [1, 256], 0),
    other("pair_64", Kind::Pair, 256, [64, 64], 16),
    other("pair_32", Kind::Pair, 256, [64, 32], 16),
    other("linear_f32", Kind::Linear, 128, [4, 8], 0),
    other("linear_f16", Kind::Linear, 128, [4, 8], 0),
    other("linear_bf16", Kind::Linear, 128, [4, 8], 0),
    other("map_copy", Kind::Map, 256, [1, 256], 0),
    other("map_normalise", Kind::Map, 256, [1, 256], 0),
    other("map_pool", Kind::Map, 256, [1, 256], 0),
    other("map_adaptive", Kind::Map, 256, [1, 256], 0),
    other("map_lrn", Kind::Map, 256, [1, 256], 0),
    other("softmax", Kind::Map, 128, [1, 1], 0),
];

/// A kernel that there is.
#[derive(Clone, Copy)]
pub struct Kernel(&'static Info);

impl Kernel {
    /// All kernels.
    pub fn all() -> impl Iterator<Item = Self> {
        KERNELS.iter().map(Self)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().find(|kernel| kernel.name() == name)
    }

    /// Its name in the text and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The convolutions by a kind of arithmetic, pointwise or for any window.
    pub fn convolutions(math: Math, pointwise: bool) -> impl Iterator<Item = Self> {
        // On tensor cores one kernel serves both.
        let pointwise = pointwise && math == Math::F32;
        Self::all().filter(move |kernel| kernel.0.kind == Kind::Conv { math, pointwise })
    }

    /// The low-rank pairs.
    pub fn pairs() -> impl Iterator<Item = Self> {
        Self::all().filter(|kernel| kernel.is_pair())
    }

    pub(crate) fn is_pair(self) -> bool {
        self.0.kind == Kind::Pair
    }

    /// Arithmetic of a convolution, and whether it is for 1x1 windows alone.
    pub(crate) fn convolution(self) -> Option<(Math, bool)> {
        match self.0.kind {
            Kind::Conv { math, pointwise } => Some((math, pointwise)),
            _ => None,
        }
    }

    /// Filters and pixels of a block.
    #[must_use]
    pub fn tile(self) -> [usize; 2] {
        self.0.tile
    }

    /// Columns of a step.
    pub(crate) fn depth(self) -> usize {
        self.0.depth
    }

    /// Threads of a block.
    #[must_use]
    pub fn threads(self) -> u32 {
        self.0.threads
    }

    /// Ten times the compute capability that it needs.
    #[must_use]
    pub fn needs(self) -> u32 {
        match self.0.kind {
            Kind::Conv { math, .. } if math != Math::F32 => 80,
            _ => 0,
        }
    }

    pub(crate) fn may_take_much_shared_memory(self) -> bool {
        self.is_pair()
    }

    /// Bytes of shared memory of a block; a pair's for so many basis filters, up to a multiple of a tile.
    #[must_use]
    pub fn shared_bytes(self, depth: usize) -> usize {
        let [filters, pixels] = self.0.tile;
        4 * match self.0.kind {
            Kind::Conv { math: Math::F32, .. } => 2 * self.0.depth * (filters + pixels),
            Kind::Conv { .. } => 2 * 16 * (filters + 8 + pixels + 8),
            Kind::Pair => 2 * self.0.depth * (filters + pixels) + depth * pixels,
            Kind::Map if self.name() == "softmax" => 128,
            Kind::Map | Kind::ConvSum | Kind::Linear => 0,
        }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Kernel {}

impl PartialOrd for Kernel {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kernel {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name())
    }
}
