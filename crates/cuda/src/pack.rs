//! Weights in the order in which the kernels read them.

use crate::kernel::{Kernel, Math};
use half::{bf16, f16};

/// Extents of a convolution, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Channels of the source, all groups.
    pub channels: usize,
    /// Filters, all groups.
    pub filters: usize,
    /// Groups.
    pub groups: usize,
    /// `[height, width]` of the source.
    pub extents: [usize; 2],
    /// `[height, width]` of the result.
    pub results: [usize; 2],
    /// `[height, width]` of a filter.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Rows and columns of zeros on each side.
    pub padding: [usize; 2],
    /// Distance between the taps of a filter.
    pub dilation: [usize; 2],
}

impl Geometry {
    /// Every window is one element of the map, in order.
    #[must_use]
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 2]
            && self.stride == [1; 2]
            && self.padding == [0; 2]
            && self.results == self.extents
    }

    /// A fully connected layer as a convolution of maps of one element.
    #[must_use]
    pub fn linear(inputs: usize, outputs: usize) -> Self {
        Self {
            channels: inputs,
            filters: outputs,
            groups: 1,
            extents: [1; 2],
            results: [1; 2],
            kernel: [1; 2],
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
        }
    }

    /// Elements of a filter.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Elements of one image that are read, and that are written.
    #[must_use]
    pub fn lens(&self) -> [usize; 2] {
        [self.channels * self.extents[0] * self.extents[1], self.filters * self.area()]
    }

    /// Whether the result has a row and a column for every window that the padded map has room for.
    pub(crate) fn is_regular(&self) -> bool {
        (0..2).all(|axis| {
            let last_tap =
                self.kernel[axis].checked_sub(1).map(|last| last.saturating_mul(self.dilation[axis]));
            let padded = self.padding[axis].saturating_mul(2).saturating_add(self.extents[axis]);
            let left = last_tap.and_then(|last| padded.checked_sub(last)?.checked_sub(1));
            let steps = left.and_then(|left| left.checked_div(self.stride[axis]));
            steps.is_some_and(|steps| steps.checked_add(1) == Some(self.results[axis]))
        })
    }

    pub(crate) fn area(&self) -> usize {
        self.results[0] * self.results[1]
    }

    /// The entries of the kernels' table: where each element of a filter meets the map, from the window's first element.
    pub(crate) fn entries(&self) -> Vec<[i32; 2]> {
        let [height, width] = self.extents;
        let mut entries = Vec::with_capacity(self.columns());
        for channel in 0..self.channels / self.groups {
            for row in 0..self.kernel[0] {
                for column in 0..self.kernel[1] {
                    let (y, x) = (row * self.dilation[0], column * self.dilation[1]);
                    entries.push([int(channel * height * width + y * width + x), int(y << 16 | x)]);
                }
            }
        }
        entries
    }
}

/// The caller made sure that it is small.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// A convolution packed for a kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PackedConv {
    /// Weights of each tile of filters: for each column (or two), its filters.
    pub(crate) words: Vec<u32>,
    /// Entries of the columns that are there.
    pub(crate) table: Vec<u32>,
    /// Of each tile: first column in the table, number of columns, words before it.
    pub(crate) spans: Vec<u32>,
    /// Columns that are multiplied, of all tiles, over all that there would be.
    pub(crate) density: f64,
    /// Tiles of a group.
    pub(crate) tiles: usize,
    /// Most columns of a tile.
    pub(crate) longest: usize,
}

/// No element of the map.
pub(crate) const NONE: [i32; 2] = [0, -1];

/// Packs `weight` `[filters, channels / groups, height, width]`. A column without a weight in a tile of filters is left out of that tile.
pub(crate) fn conv(kernel: Kernel, of: &Geometry, weight: &[f32]) -> PackedConv {
    let (math, _) = kernel.convolution().unwrap_or((Math::F32, false));
    let ([tile, _], depth) = (kernel.tile(), kernel.depth());
    let (columns, filters) = (of.columns(), of.filters / of.groups);
    let entries = of.entries();
    let tiles = filters.div_ceil(tile);
    let mut packed = PackedConv { tiles, ..PackedConv::default() };
    let (mut kept, mut dense) = (0, None);
    for group in 0..of.groups {
        for first in (0..filters).step_by(tile) {
            let rows = group * filters + first..group * filters + filters.min(first + tile);
            let at = |row: usize, column: usize| weight[row * columns + column];
            let there = |column: &usize| rows.clone().any(|row| at(row, *column) != 0.0);
            let mut list: Vec<Option<usize>> = (0..columns).filter(there).map(Some).collect();
            kept += list.len();
            let whole = list.len() == columns;
            list.resize(list.len().next_multiple_of(depth), None);
            packed.longest = packed.longest.max(list.len());
            let start = match dense {
                Some(start) if whole => start,
                _ => {
                    let start = packed.table.len() / 2;
                    let of_columns = list.iter().flat_map(|column| column.map_or(NONE, |at| entries[at]));
                    packed.table.extend(of_columns.map(i32::cast_unsigned));
                    dense = whole.then_some(start).or(dense);
                    start
                }
            };
            packed.spans.extend([start, list.len(), packed.words.len()].map(word));
            let value = |column: Option<usize>, filter: usize| match column {
                Some(column) if rows.start + filter < rows.end => at(rows.start + filter, column),
                _ => 0.0,
            };
            let step = if matches!(math, Math::F16 | Math::Bf16) { 2 } else { 1 };
            for columns in list.chunks(step) {
                let bits = |filter: usize| {
                    let value = |i: usize| value(columns[i], filter);
                    match math {
                        Math::F32 => value(0).to_bits(),
                        Math::Tf32 => tf32(value(0)),
                        Math::F16 => halves([0, 1].map(|i| f16::from_f32(value(i)).to_bits())),
                        Math::Bf16 => halves([0, 1].map(|i| bf16::from_f32(value(i)).to_bits())),
                    }
                };
                packed.words.extend((0..tile).map(bits));
            }
        }
    }
    packed.density = kept as f64 / (columns * tiles * of.groups).max(1) as f64;
    packed
}

/// Columns that are multiplied over all that there are, in tiles of so many filters.
pub(crate) fn density(tile: usize, of: &Geometry, weight: &[f32]) -> f64 {
    let (columns, filters) = (of.columns(), of.filters / of.groups);
    let (mut kept, mut all) = (0, 0);
    for group in weight.chunks((filters * columns).max(1)) {
        for rows in group.chunks((tile * columns).max(1)) {
            let there = |column: &usize| rows.iter().skip(*column).step_by(columns).any(|w| *w != 0.0);
            kept += (0..columns).filter(there).count();
            all += columns;
        }
    }
    kept as f64 / all.max(1) as f64
}

/// The combination of a pair: `weight` `[outputs, rank]` as tiles of outputs, `depth` basis filters deep.
pub(crate) fn combination(
    kernel: Kernel,
    outputs: usize,
    rank: usize,
    depth: usize,
    weight: &[f32],
) -> Vec<u32> {
    let [tile, _] = kernel.tile();
    let mut words = Vec::with_capacity(outputs.next_multiple_of(tile) * depth);
    for first in (0..outputs).step_by(tile) {
        for basis in 0..depth {
            let of = |output: usize| match output < outputs && basis < rank {
                true => weight[output * rank + basis].to_bits(),
                false => 0,
            };
            words.extend((first..first + tile).map(of));
        }
    }
    words
}

/// The nearest number with 10 bits behind the point, ties away from zero, as the device rounds the other factor.
fn tf32(x: f32) -> u32 {
    match x.is_finite() {
        true => x.to_bits().wrapping_add(0x1000) & !0x1fff,
        false => x.to_bits(),
    }
}

/// Two halves in a word, the first in the lower half.
pub(crate) fn halves([low, high]: [u16; 2]) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Words for a device, each piece at a multiple of 16 bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blob {
    words: Vec<u32>,
}

/// A piece of a blob: first word and number of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) at: usize,
    pub(crate) len: usize,
}

impl Blob {
    pub(crate) fn push(&mut self, words: impl IntoIterator<Item = u32>) -> Piece {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let at = self.words.len();
        self.words.extend(words);
        Piece { at, len: self.words.len() - at }
    }

    pub(crate) fn floats(&mut self, values: &[f32]) -> Piece {
        self.push(values.iter().map(|value| value.to_bits()))
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(channels: usize, filters: usize, groups: usize, kernel: [usize; 2]) -> Geometry {
        Geometry {
            channels,
            filters,
            groups,
            extents: [5, 7],
            results: [5, 7],
            kernel,
            stride: [1; 2],
            padding: [1; 2],
            dilation: [2, 1],
        }
    }

    #[test]
    fn entries_say_where_an_element_meets_the_map() {
        let entries = geometry(2, 1, 1, [2, 3]).entries();
        assert_eq!(entries.len(), 12);
        assert_eq!(entries[0], [0, 0]);
        assert_eq!(entries[4], [14 + 1, 2 << 16 | 1], "row 1 is two rows further");
        assert_eq!(entries[6], [35, 0], "the second channel");
    }

    #[test]
    fn dense_tiles_share_their_table_and_sparse_ones_have_their_own() {
        let of = geometry(3, 40, 1, [1, 3]);
        let kernel = Kernel::named("conv_32x32").unwrap();
        let mut weight = vec![1.0; 40 * 9];
        let packed = conv(kernel, &of, &weight);
        assert_eq!((packed.tiles, packed.table.len(), packed.density), (2, 2 * 16, 1.0));
        assert_eq!(density(32, &of, &weight), 1.0);
        assert_eq!(packed.spans, [0, 16, 0, 0, 16, 16 * 32]);
        assert_eq!(packed.table[2 * 9 + 1].cast_signed(), -1, "the columns that fill up");
        // Filters 32 to 39 lose their first column, filters 0 to 31 all.
        for (row, weights) in weight.chunks_mut(9).enumerate() {
            weights[0] = 0.0;
            if row < 32 {
                weights.fill(0.0);
            }
        }
        let packed = conv(kernel, &of, &weight);
        assert_eq!(packed.spans, [0, 0, 0, 0, 16, 0]);
        assert_eq!((packed.table[0], packed.density), (1, 8.0 / 18.0));
        assert_eq!(density(32, &of, &weight), packed.density);
        assert_eq!(packed.words[..8], [1.0_f32.to_bits(); 8]);
        assert_eq!(packed.words[8], 0, "there is no filter 40");
    }

    #[test]
    fn results_without_a_window_each_are_not_regular() {
        let of = geometry(3, 4, 1, [3, 3]);
        assert!(!of.is_regular(), "rows are two apart in a window");
        let of = Geometry { padding: [2, 1], ..of };
        assert!(of.is_regular());
        assert!(Geometry { stride: [2, 1], results: [3, 7], ..of }.is_regular());
        let none = Geometry { kernel: [0, 3], ..of };
        assert!(!none.is_regular() && !Geometry { stride: [0, 1], ..of }.is_regular());
        assert!(!Geometry { padding: [usize::MAX, 1], ..of }.is_regular());
    }

    #[test]
    fn halves_hold_two_columns() {
        let of = geometry(1, 1, 1, [1, 3]);
        let packed = conv(Kernel::named("conv_bf16_64x64").unwrap(), &of, &[1.0, -2.0, 3.0]);
        assert_eq!(packed.words[0], 0xc000_3f80);
        assert_eq!((packed.words[64], packed.words[1]), (0x4040, 0));
        assert_eq!(tf32(1.0 + 2.0_f32.powi(-11)), (1.0 + 2.0_f32.powi(-10)).to_bits());
    }
}
