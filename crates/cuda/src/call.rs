//! What is to be computed, by which kernel, from where to where.

use crate::device::About;
use crate::kernel::{Kernel, Math};
use crate::libraries::Routine;
use crate::pack::{self, Blob, Geometry, Piece, int};
use crate::{Error, Result, args};
use half::{bf16, f16};

/// A part of a session's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The images.
    Images,
    /// Everything that is computed.
    Arena,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The memory.
    pub region: Region,
    /// First element of the first image's.
    pub at: usize,
    /// Elements from one image's to the next one's.
    pub stride: usize,
}

/// Elements of a session's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// One image.
    pub(crate) image: usize,
    /// Everything that is computed, for the whole batch.
    pub(crate) arena: usize,
    /// Sums of parts.
    pub(crate) partial: usize,
    /// Bytes that routines of libraries need.
    pub(crate) workspace: usize,
}

/// From where to where, and what follows.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// What is read.
    pub src: Place,
    /// What is added to the result, of its shape.
    pub add: Option<Place>,
    /// What is written.
    pub dst: Place,
    /// Whether the sum is rectified.
    pub relu: bool,
}

/// What looks at single elements, or at a few around them.
#[derive(Clone, Copy, Debug)]
pub enum Elementwise {
    /// Channels of zeros, then the source's channels, then channels of zeros, `channels` in all.
    Copy {
        /// Channels of zeros before the source's.
        before: usize,
        /// Channels of the result.
        channels: usize,
    },
    /// The largest element of each window of the map.
    MaxPool(Window),
    /// The mean of each window of the map.
    MeanPool {
        /// The windows.
        window: Window,
        /// Whether zeros around the map count.
        count_padding: bool,
    },
    /// The mean over windows that tile the map.
    Adaptive {
        /// `[height, width]` of the result.
        results: [usize; 2],
    },
    /// `x / (k + weight * sum x'^2)^beta`, over `size` channels or over a window of `size x size`.
    Lrn {
        /// Over the window in the same channel.
        within: bool,
        /// Odd.
        size: usize,
        /// Factor of the sum.
        weight: f32,
        /// Exponent.
        beta: f32,
        /// What the sum is added to.
        k: f32,
    },
    /// `exp(x - m) / sum exp(x - m)` over all elements of an image.
    Softmax,
}

/// Windows of a map.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// `[height, width]`.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Rows and columns around the map.
    pub padding: [usize; 2],
    /// `[height, width]` of the result.
    pub results: [usize; 2],
}

/// A convolution that is packed.
#[derive(Clone, Debug)]
pub(crate) struct Convolution {
    pub(crate) geometry: Geometry,
    pub(crate) weights: Piece,
    pub(crate) bias: Option<Piece>,
    pub(crate) table: Piece,
    pub(crate) spans: Piece,
    /// Of a group.
    pub(crate) tiles: usize,
    /// Parts of the columns, summed by `sum`.
    pub(crate) splits: usize,
    pub(crate) sum: Option<Kernel>,
}

impl Convolution {
    /// Elements from the channels of one group to those of the next.
    pub(crate) fn src_group(&self) -> usize {
        let Geometry { channels, groups, extents: [height, width], .. } = self.geometry;
        channels / groups * height * width
    }
}

pub(crate) enum Work {
    Conv(Convolution),
    Pair {
        basis: Convolution,
        second: Piece,
        outputs: usize,
        depth: usize,
    },
    Linear {
        weights: Piece,
        bias: Option<Piece>,
        inputs: usize,
        outputs: usize,
    },
    Map {
        map: args::Map,
        scale: Option<Piece>,
    },
    /// By a library, and then the call's kernel in place, if anything follows.
    Routine {
        routine: Routine,
        geometry: Geometry,
        weights: Piece,
        follows: Option<args::Map>,
        scale: Option<Piece>,
    },
}

/// One thing to compute.
pub(crate) struct Call {
    pub(crate) kernel: Kernel,
    pub(crate) work: Work,
    pub(crate) src: Place,
    pub(crate) add: Option<Place>,
    pub(crate) dst: Place,
    pub(crate) relu: bool,
    /// Elements of one image that are read, and that are written.
    lens: [usize; 2],
}

impl Call {
    /// For messages.
    fn name(&self) -> &'static str {
        self.routine().map_or(self.kernel.name(), |routine| routine.name())
    }

    /// The library's routine that it is.
    pub(crate) fn routine(&self) -> Option<&Routine> {
        match &self.work {
            Work::Routine { routine, .. } => Some(routine),
            _ => None,
        }
    }

    /// Elements written for one image.
    pub(crate) fn dst_len(&self) -> usize {
        self.lens[1]
    }

    /// Elements of the sums of parts of a batch.
    pub(crate) fn partial_len(&self, batch: usize) -> usize {
        match &self.work {
            Work::Conv(of) if of.splits > 1 => of.splits * of.geometry.filters * of.geometry.area() * batch,
            _ => 0,
        }
    }

    /// Whether everything stays within its memory and can be counted, for up to `batch` images.
    pub(crate) fn check(&self, batch: usize, lengths: Lengths, words: usize, about: &About) -> Result<()> {
        let name = self.name();
        let at_most =
            |what: &str, found: usize, most: usize| at_most(&format!("{name}: {what}"), found, most);
        let place = |what: &str, place: Place, len: usize| {
            check_place(&format!("{name}: {what}"), place, len, batch, lengths)
        };
        place("end of the source", self.src, self.lens[0])?;
        place("end of the result", self.dst, self.lens[1])?;
        if let Some(add) = self.add {
            place("end of the summand", add, self.lens[1])?;
        }
        at_most("elements of a batch", batch.saturating_mul(self.lens[0].max(self.lens[1])), COUNTED)?;
        at_most("elements of all partial sums", self.partial_len(batch), COUNTED)?;
        at_most("words of weights", words, COUNTED)?;
        let shared = match &self.work {
            Work::Pair { depth, .. } => self.kernel.shared_bytes(*depth),
            _ => self.kernel.shared_bytes(0),
        };
        at_most("bytes of shared memory", shared, about.shared_memory.max(48 << 10))?;
        match &self.work {
            Work::Conv(of) | Work::Pair { basis: of, .. } => {
                at_most("tiles of filters", of.tiles, 65_535)?;
                at_most("groups by parts", of.geometry.groups * of.splits, 65_535)?;
                check_windows(&of.geometry, &at_most)
            }
            Work::Linear { outputs, .. } => at_most("outputs", *outputs, 65_535 * 4),
            Work::Routine { geometry: of, .. } => {
                let extents = of.padding.iter().chain(&of.stride).chain(&of.dilation).chain(&of.kernel);
                at_most("extent of a window", extents.copied().max().unwrap_or(0), COUNTED)
            }
            Work::Map { map, .. } => check_extents(map, &at_most),
        }
    }
}

/// Whether the kernels can count the windows of a convolution.
pub(crate) fn check_windows(
    of: &Geometry,
    at_most: &impl Fn(&str, usize, usize) -> Result<()>,
) -> Result<()> {
    let Geometry { kernel, dilation, padding, extents: [height, width], .. } = *of;
    let window = |axis: usize| kernel[axis].saturating_mul(dilation[axis]);
    (0..2).try_for_each(|axis| at_most("extent of a window", window(axis), 1 << 15))?;
    // From the first element of the first window to the last one of the last.
    let rows = height.saturating_add(2 * padding[0].min(COUNTED)).saturating_add(window(0));
    let columns = width.saturating_add(2 * padding[1].min(COUNTED)).saturating_add(window(1));
    at_most("elements from the first window to the last", rows.saturating_mul(columns), COUNTED)
}

/// Whether the kernels can count the places of a map.
pub(crate) fn check_extents(
    map: &args::Map,
    at_most: &impl Fn(&str, usize, usize) -> Result<()>,
) -> Result<()> {
    let products = (0..2).map(|axis| i64::from(map.extents[axis]) * (i64::from(map.results[axis]) + 1));
    let largest = usize::try_from(products.max().unwrap_or(0)).unwrap_or(usize::MAX);
    at_most("extents before times extents after", largest, COUNTED)
}

/// Numbers are counted in 31 bits, and a block may count a tile too far.
pub(crate) const COUNTED: usize = i32::MAX as usize - 1024;

/// Whether a value of a batch lies within its memory.
pub(crate) fn check_place(
    what: &str,
    place: Place,
    len: usize,
    batch: usize,
    lengths: Lengths,
) -> Result<()> {
    let end = place.at.saturating_add((batch - 1).saturating_mul(place.stride)).saturating_add(len);
    let most = match place.region {
        Region::Images => lengths.image * batch,
        Region::Arena => lengths.arena,
    };
    at_most(what, end, most)?;
    at_most("distance between images", place.stride, COUNTED)
}

pub(crate) fn at_most(what: &str, found: usize, most: usize) -> Result<()> {
    match found <= most {
        true => Ok(()),
        false => Err(Error::TooLarge { what: what.to_owned(), found, most }),
    }
}

/// Collects the calls of a network and their weights.
pub struct Builder {
    calls: Vec<Call>,
    blob: Blob,
    lengths: Lengths,
}

/// What a call became, for reports.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// The kernel, or the library's routine.
    pub algorithm: &'static str,
    /// Parts of its columns that are summed afterwards.
    pub splits: usize,
    /// Bytes of weights, tables and biases.
    pub bytes: usize,
    /// Columns that are multiplied over all that there are.
    pub density: f64,
}

impl Builder {
    /// For images of `image` elements and `arena` elements of values, for the whole batch.
    #[must_use]
    pub fn new(image: usize, arena: usize) -> Self {
        let lengths = Lengths { image, arena, ..Lengths::default() };
        Self { calls: Vec::new(), blob: Blob::default(), lengths }
    }

    pub(crate) fn finish(self) -> (Vec<Call>, Blob, Lengths) {
        (self.calls, self.blob, self.lengths)
    }

    fn push(&mut self, kernel: Kernel, work: Work, flow: &Flow, lens: [usize; 2]) {
        let Flow { src, add, dst, relu } = *flow;
        self.calls.push(Call { kernel, work, src, add, dst, relu, lens });
    }

    /// A convolution with `weight` `[filters, channels / groups, height, width]`.
    ///
    /// # Errors
    /// [`Error::Length`] if the tensors do not have as many elements, or the kernel is not for such windows.
    pub fn conv(
        &mut self,
        (kernel, splits): (Kernel, usize),
        geometry: &Geometry,
        [weight, bias]: [&[f32]; 2],
        flow: &Flow,
    ) -> Result<Made> {
        check_conv(geometry, [weight, bias])?;
        let fits = kernel.convolution().is_some_and(|(_, pointwise)| !pointwise || geometry.is_pointwise());
        exactly(&format!("windows of {}", kernel.name()), usize::from(!fits), 0)?;
        let before = self.blob.words().len();
        let (of, density) = self.pack(kernel, splits, geometry, [weight, bias]);
        let splits = of.splits;
        self.push(kernel, Work::Conv(of), flow, geometry.lens());
        Ok(Made { algorithm: kernel.name(), splits, bytes: self.bytes_since(before), density })
    }

    /// The same by a library, with what follows the product by a kernel in place. The places are those that the routine was looked for
    /// with.
    ///
    /// # Errors
    /// [`Error::Length`] if the tensors do not have as many elements, the routine is not for such a convolution or such places, or the
    /// summand lies where the result is to lie.
    pub fn routine(
        &mut self,
        routine: Routine,
        geometry: &Geometry,
        [weight, bias]: [&[f32]; 2],
        flow: &Flow,
    ) -> Result<Made> {
        check_conv(geometry, [weight, bias])?;
        let fits = routine.is_for(geometry, [flow.src, flow.dst]);
        exactly(&format!("convolutions that {} does not compute", routine.name()), usize::from(!fits), 0)?;
        // The product is written before the summand is read.
        let both = flow
            .add
            .filter(|add| add.region == flow.dst.region && add.at.abs_diff(flow.dst.at) < geometry.lens()[1]);
        exactly(
            &format!("summands of {} in the place of its result", routine.name()),
            both.iter().count(),
            0,
        )?;
        let before = self.blob.words().len();
        let weights = self.blob.floats(weight);
        // `(x - 0) * 1 + bias` is rounded once.
        let scale: Vec<f32> = bias.iter().flat_map(|bias| [0.0, 1.0, *bias]).collect();
        let scale = (!bias.is_empty()).then(|| self.blob.floats(&scale));
        let kernel = named(if scale.is_some() { "map_normalise" } else { "map_copy" })?;
        let map = args::Map {
            channels: int(geometry.filters),
            size: int(geometry.filters),
            extents: geometry.results.map(int),
            results: geometry.results.map(int),
            ..args::Map::default()
        };
        let follows = (scale.is_some() || flow.add.is_some() || flow.relu).then_some(map);
        let work = Work::Routine { routine, geometry: *geometry, weights, follows, scale };
        self.push(kernel, work, flow, geometry.lens());
        Ok(Made { algorithm: routine.name(), splits: 1, bytes: self.bytes_since(before), density: 1.0 })
    }

    /// Bytes of what was packed since there were so many words.
    fn bytes_since(&self, words: usize) -> usize {
        4 * (self.blob.words().len() - words)
    }

    fn pack(
        &mut self,
        kernel: Kernel,
        splits: usize,
        geometry: &Geometry,
        [weight, bias]: [&[f32]; 2],
    ) -> (Convolution, f64) {
        let packed = pack::conv(kernel, geometry, weight);
        // A part has a step at least.
        let splits = splits.min(packed.longest / kernel.depth()).max(1);
        let of = Convolution {
            geometry: *geometry,
            tiles: packed.tiles,
            splits,
            sum: if splits > 1 { Kernel::named("conv_sum") } else { None },
            weights: self.blob.push(packed.words),
            table: self.blob.push(packed.table),
            spans: self.blob.push(packed.spans),
            bias: (!bias.is_empty()).then(|| self.blob.floats(bias)),
        };
        (of, packed.density)
    }

    /// A low-rank layer: a convolution with `basis` and then 1x1 with `combination` `[outputs, rank]` and a bias.
    ///
    /// # Errors
    /// As [`Builder::conv`].
    pub fn pair(
        &mut self,
        kernel: Kernel,
        geometry: &Geometry,
        [basis, combination, bias]: [&[f32]; 3],
        flow: &Flow,
    ) -> Result<Made> {
        let Geometry { filters: rank, channels, extents: [height, width], groups, .. } = *geometry;
        exactly(&format!("pairs that {} computes", kernel.name()), usize::from(kernel.is_pair()), 1)?;
        let outputs = combination.len() / rank.max(1);
        exactly("weights of a basis", basis.len(), geometry.filters * geometry.columns())?;
        exactly("weights of a combination", combination.len(), outputs * rank)?;
        exactly("groups of a pair's basis", groups, 1)?;
        exactly("biases", bias.len(), if bias.is_empty() { 0 } else { outputs })?;
        let before = self.blob.words().len();
        let (of, density) = self.pack(kernel, 1, geometry, [basis, &[]]);
        let depth = of.tiles * kernel.tile()[0];
        let second = self.blob.push(pack::combination(kernel, outputs, rank, depth, combination));
        let of = Convolution { bias: (!bias.is_empty()).then(|| self.blob.floats(bias)), ..of };
        let lens = [channels * height * width, outputs * geometry.area()];
        self.push(kernel, Work::Pair { basis: of, second, outputs, depth }, flow, lens);
        Ok(Made { algorithm: kernel.name(), splits: 1, bytes: self.bytes_since(before), density })
    }

    /// A fully connected layer with `weight` `[outputs, inputs]`, kept as `math` says (TF32: as they are).
    ///
    /// # Errors
    /// [`Error::Length`] if the tensors do not have as many elements.
    pub fn linear(
        &mut self,
        math: Math,
        inputs: usize,
        [weight, bias]: [&[f32]; 2],
        flow: &Flow,
    ) -> Result<Made> {
        plain("a fully connected layer", flow, true)?;
        let outputs = weight.len() / inputs.max(1);
        exactly("weights", weight.len(), inputs * outputs)?;
        exactly("biases", bias.len(), if bias.is_empty() { 0 } else { outputs })?;
        let before = self.blob.words().len();
        let pairs = |bits: fn(f32) -> u16| {
            weight
                .chunks(2)
                .map(move |pair| pack::halves([bits(pair[0]), pair.get(1).map_or(0, |x| bits(*x))]))
        };
        let (name, weights) = match math {
            Math::F32 | Math::Tf32 => ("linear_f32", self.blob.floats(weight)),
            Math::F16 => ("linear_f16", self.blob.push(pairs(|x| f16::from_f32(x).to_bits()))),
            Math::Bf16 => ("linear_bf16", self.blob.push(pairs(|x| bf16::from_f32(x).to_bits()))),
        };
        let kernel = named(name)?;
        let bias = (!bias.is_empty()).then(|| self.blob.floats(bias));
        self.push(kernel, Work::Linear { weights, bias, inputs, outputs }, flow, [inputs, outputs]);
        Ok(Made { algorithm: kernel.name(), splits: 1, bytes: self.bytes_since(before), density: 1.0 })
    }

    /// `(x - mean) * factor + shift` by channel: three numbers for each of a map's channels.
    ///
    /// # Errors
    /// [`Error::Length`] if there are not as many numbers.
    pub fn normalise(
        &mut self,
        [channels, height, width]: [usize; 3],
        scale: &[f32],
        flow: &Flow,
    ) -> Result<Made> {
        exactly("numbers of a batch normalisation", scale.len(), 3 * channels)?;
        let kernel = named("map_normalise")?;
        let scale = self.blob.floats(scale);
        let len = channels * height * width;
        let map = args::Map {
            channels: int(channels),
            extents: [height, width].map(int),
            results: [height, width].map(int),
            ..args::Map::default()
        };
        self.push(kernel, Work::Map { map, scale: Some(scale) }, flow, [len; 2]);
        Ok(Made { algorithm: kernel.name(), splits: 1, bytes: 4 * scale.len, density: 1.0 })
    }

    /// What looks at single elements, or at a few around them.
    ///
    /// # Errors
    /// [`Error::Length`] for a summand, or a rectification, that the kernel does not have.
    pub fn map(&mut self, shape: [usize; 3], of: Elementwise, flow: &Flow) -> Result<Made> {
        let (name, map, dst_len) = elementwise(shape, of);
        let kernel = named(name)?;
        if name != "map_copy" {
            plain(name, flow, false)?;
        }
        self.push(kernel, Work::Map { map, scale: None }, flow, [shape.iter().product(), dst_len]);
        Ok(Made { algorithm: name, splits: 1, bytes: 0, density: 1.0 })
    }
}

/// The kernel for a map of this shape, what is in its struct beside addresses, and elements of an image of the result.
pub(crate) fn elementwise(
    [channels, height, width]: [usize; 3],
    of: Elementwise,
) -> (&'static str, args::Map, usize) {
    let mut map = args::Map {
        channels: int(channels),
        extents: [height, width].map(int),
        results: [height, width].map(int),
        ..args::Map::default()
    };
    let src_len = channels * height * width;
    let mut dst_len = src_len;
    let mut windows = |map: &mut args::Map, window: &Window, kind| {
        let Window { kernel, stride, padding, results } = *window;
        map.kind = kind;
        [map.kernel, map.stride, map.padding, map.results] =
            [kernel, stride, padding, results].map(|of| of.map(int));
        dst_len = channels * results[0] * results[1];
    };
    let name = match of {
        Elementwise::Copy { before, channels: all } => {
            map.size = int(channels);
            map.channels = int(all);
            map.before = int(before);
            dst_len = all * height * width;
            "map_copy"
        }
        Elementwise::MaxPool(window) => {
            windows(&mut map, &window, 0);
            "map_pool"
        }
        Elementwise::MeanPool { window, count_padding } => {
            windows(&mut map, &window, if count_padding { 2 } else { 1 });
            "map_pool"
        }
        Elementwise::Adaptive { results } => {
            map.results = results.map(int);
            dst_len = channels * results[0] * results[1];
            "map_adaptive"
        }
        Elementwise::Lrn { within, size, weight, beta, k } => {
            map.kind = within.into();
            map.size = int(size);
            (map.weight, map.beta, map.k) = (weight, beta, k);
            "map_lrn"
        }
        Elementwise::Softmax => {
            map.channels = int(src_len);
            "softmax"
        }
    };
    (name, map, dst_len)
}

pub(crate) fn named(name: &str) -> Result<Kernel> {
    Kernel::named(name)
        .ok_or_else(|| Error::Library { what: "the kernels", reason: format!("none is called {name}") })
}

fn check_conv(geometry: &Geometry, [weight, bias]: [&[f32]; 2]) -> Result<()> {
    exactly("weights of a convolution", weight.len(), geometry.filters * geometry.columns())?;
    exactly("biases", bias.len(), if bias.is_empty() { 0 } else { geometry.filters })
}

pub(crate) fn exactly(what: &str, found: usize, expected: usize) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::Length { what: what.to_owned(), found, expected }),
    }
}

/// Refuses what a kernel would not do.
fn plain(what: &str, flow: &Flow, may_rectify: bool) -> Result<()> {
    exactly(&format!("summands of {what}"), usize::from(flow.add.is_some()), 0)?;
    exactly(&format!("rectifications after {what}"), usize::from(flow.relu && !may_rectify), 0)
}
