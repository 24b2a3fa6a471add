use crate::Result;
use crate::call::named;
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

/// Ten times the compute capability that tensor cores of 32-bit words begin with.
const AMPERE: u32 = 80;

/// Whether three products in TF32 are faster than one in `f32`, by the figures of the maker: on cards for servers. The tensor cores of the
/// others do TF32 at about the rate of `f32`.
pub(crate) fn multiplies_fast(capability: u32) -> bool {
    matches!(capability, 80 | 90 | 100 | 103)
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
    Conv {
        math: Math,
        pointwise: bool,
    },
    ConvSum,
    Pair,
    Linear,
    Map,
    /// A product of a gradient and windows.
    Filter,
    /// A convolution with windows of 3x3 around each element, in tiles of so many columns; whether on tensor cores.
    Around(usize, bool),
    /// The gradient of its filters.
    AroundFilter(usize, bool),
    /// All else in training.
    Learn,
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

/// Those of training alone, for what else it needs see [`Kernel::of`].
static LEARNING: [Info; 35] = [
    other("learn_pack", Kind::Learn, 256, [1, 256], 0),
    other("learn_filter_16x64", Kind::Filter, 128, [16, 64], 32),
    other("learn_filter_64x64", Kind::Filter, 256, [64, 64], 32),
    other("learn_3x3_32_32", Kind::Around(32, false), 256, [32, 256], 72),
    other("learn_3x3_32_16", Kind::Around(32, false), 128, [16, 256], 72),
    other("learn_3x3_16_32", Kind::Around(16, false), 256, [32, 256], 72),
    other("learn_3x3_16_16", Kind::Around(16, false), 128, [16, 256], 72),
    other("learn_3x3_8_32", Kind::Around(8, false), 256, [32, 256], 72),
    other("learn_3x3_8_16", Kind::Around(8, false), 128, [16, 256], 72),
    other("learn_filter_3x3_32", Kind::AroundFilter(32, false), 128, [16, 256], 72),
    other("learn_filter_3x3_16", Kind::AroundFilter(16, false), 128, [16, 256], 72),
    other("learn_filter_3x3_8", Kind::AroundFilter(8, false), 128, [16, 256], 72),
    other("learn_mma_3x3_32_32", Kind::Around(32, true), 256, [32, 256], 72),
    other("learn_mma_3x3_32_16", Kind::Around(32, true), 128, [16, 256], 72),
    other("learn_mma_3x3_16_32", Kind::Around(16, true), 256, [32, 256], 72),
    other("learn_mma_3x3_16_16", Kind::Around(16, true), 128, [16, 256], 72),
    other("learn_mma_3x3_8_32", Kind::Around(8, true), 256, [32, 256], 72),
    other("learn_mma_3x3_8_16", Kind::Around(8, true), 128, [16, 256], 72),
    other("learn_mma_filter_3x3_32", Kind::AroundFilter(32, true), 128, [16, 256], 144),
    other("learn_mma_filter_3x3_16", Kind::AroundFilter(16, true), 128, [16, 256], 144),
    other("learn_mma_filter_3x3_8", Kind::AroundFilter(8, true), 128, [16, 256], 144),
    other("learn_source", Kind::Learn, 256, [1, 256], 0),
    other("learn_source_3x3", Kind::Learn, 256, [1, 256], 0),
    other("learn_pass", Kind::Learn, 256, [1, 1024], 0),
    other("learn_add", Kind::Learn, 256, [1, 1024], 0),
    other("learn_normalise", Kind::Learn, 256, [1, 1024], 0),
    other("learn_sum", Kind::Learn, 256, [1, 32], 0),
    other("learn_moments", Kind::Learn, 256, [1, 1], 0),
    other("learn_statistics", Kind::Learn, 64, [1, 1], 0),
    other("learn_sums", Kind::Learn, 256, [1, 1], 0),
    other("learn_sums_all", Kind::Learn, 64, [1, 1], 0),
    other("learn_normalised", Kind::Learn, 256, [1, 1024], 0),
    other("learn_pool", Kind::Learn, 256, [1, 256], 0),
    other("learn_adaptive", Kind::Learn, 256, [1, 256], 0),
    other("learn_lrn", Kind::Learn, 256, [1, 256], 0),
];

/// Kernels that are compiled and loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// To run networks.
    Run,
    /// To train them.
    Learn,
}

/// A kernel that there is.
#[derive(Clone, Copy)]
pub struct Kernel(&'static Info);

impl Kernel {
    /// All kernels that run networks.
    pub fn all() -> impl Iterator<Item = Self> {
        KERNELS.iter().map(Self)
    }

    /// The kernels of a set. To train, values are computed by those in `f32` that run networks.
    pub fn of(set: Set) -> impl Iterator<Item = Self> {
        let learning = if set == Set::Learn { &LEARNING[..] } else { &[] };
        let runs = move |kernel: &Self| match kernel.0.kind {
            Kind::Conv { math, .. } => math == Math::F32,
            Kind::ConvSum | Kind::Map => true,
            _ => false,
        };
        Self::all().filter(move |kernel| set == Set::Run || runs(kernel)).chain(learning.iter().map(Self))
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::of(Set::Run).chain(Self::of(Set::Learn)).find(|kernel| kernel.name() == name)
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

    /// The convolution in tiles of so many columns, for 16 or 32 filters, on tensor cores or not.
    pub(crate) fn around(columns: usize, filters: usize, on_tensor_cores: bool) -> Result<Self> {
        let by = if on_tensor_cores { "mma_" } else { "" };
        named(&format!("learn_{by}3x3_{columns}_{filters}"))
    }

    /// The gradient of its filters.
    pub(crate) fn around_filter(columns: usize, on_tensor_cores: bool) -> Result<Self> {
        let by = if on_tensor_cores { "mma_" } else { "" };
        named(&format!("learn_{by}filter_3x3_{columns}"))
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

    /// Channels whose taps a block of the gradient of filters has, with windows of 3x3.
    pub(crate) fn channels(self) -> usize {
        self.0.depth / 9
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
            Kind::Conv { math, .. } if math != Math::F32 => AMPERE,
            Kind::Around(_, true) | Kind::AroundFilter(_, true) => AMPERE,
            _ => 0,
        }
    }

    pub(crate) fn may_take_much_shared_memory(self) -> bool {
        self.is_pair()
    }

    /// Bytes of shared memory of a block; a pair's for so many basis filters, up to a multiple of a tile; a sum's for so many parts.
    #[must_use]
    pub fn shared_bytes(self, depth: usize) -> usize {
        let [filters, pixels] = self.0.tile;
        4 * match self.0.kind {
            Kind::Conv { math: Math::F32, .. } => 2 * self.0.depth * (filters + pixels),
            Kind::Conv { .. } => 2 * 16 * (filters + 8 + pixels + 8),
            Kind::Pair => 2 * self.0.depth * (filters + pixels) + depth * pixels,
            Kind::Map if self.name() == "softmax" => 128,
            // Rows of 32 pixels, four words apart.
            Kind::Filter => (filters + pixels) * (self.0.depth + 4),
            Kind::Around(columns, false) => around(columns, 8, 4) + self.0.depth * filters,
            // Eight channels of the filters, eight words apart.
            Kind::Around(columns, true) => {
                around(columns, 8, if columns == 8 { 8 } else { 0 }) + 8 * (9 * filters + 8)
            }
            Kind::AroundFilter(columns, _) => around(columns, self.0.depth / 9, 4) + filters * (pixels + 4),
            Kind::Learn => match self.name() {
                "learn_sum" => 256,
                "learn_moments" | "learn_sums" => 512,
                // In double precision.
                "learn_statistics" | "learn_sums_all" => 2 * 64,
                // Eight channels of each filter and tap.
                "learn_source" | "learn_source_3x3" => 8 * depth,
                _ => 0,
            },
            Kind::Map | Kind::ConvSum | Kind::Linear => 0,
        }
    }
}

/// Words for channels of the tiles of a block with what lies around them, so far apart, and for where these are: as `Around` of
/// `learn3x3.cu`.
fn around(columns: usize, channels: usize, gap: usize) -> usize {
    let [tiles, rows] = tiles_of(columns);
    channels * (tiles * (rows + 2) * (columns + 4) + gap) + 3 * tiles
}

/// Tiles of a block, and rows of each.
fn tiles_of(columns: usize) -> [usize; 2] {
    let rows = if columns == 32 { 8 } else { columns };
    [256 / (columns * rows), rows]
}

/// Tiles of a map for kernels with windows of 3x3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiling {
    /// Columns of a tile.
    pub(crate) columns: usize,
    /// Tiles of a map.
    pub(crate) tiles: usize,
    /// Tiles of a block.
    pub(crate) at_once: usize,
}

impl Tiling {
    /// The one with the fewest elements outside the map.
    pub(crate) fn of([height, width]: [usize; 2]) -> Self {
        let tiling = |columns: usize| {
            let [at_once, rows] = tiles_of(columns);
            Self { columns, tiles: height.div_ceil(rows) * width.div_ceil(columns), at_once }
        };
        let elements = |of: &Self| of.tiles * 256 / of.at_once;
        let [wide, middle, narrow] = [32, 16, 8].map(tiling);
        let better = if elements(&middle) < elements(&wide) { middle } else { wide };
        if elements(&narrow) < elements(&better) { narrow } else { better }
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
