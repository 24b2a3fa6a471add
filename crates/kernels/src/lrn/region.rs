use super::LrnShape;

/// Elements whose neighbourhoods are summed at once.
const TILE: usize = 64;

/// Over what squares are summed.
#[derive(Clone, Copy)]
pub(super) enum Region {
    /// The same place in neighbouring channels.
    AcrossChannels,
    /// A window of the same map.
    WithinChannel,
}

impl Region {
    /// Elements within which every neighbourhood lies: an image or a map.
    pub(super) fn block(self, shape: &LrnShape) -> usize {
        match self {
            Self::AcrossChannels => shape.channels * shape.plane(),
            Self::WithinChannel => shape.plane(),
        }
    }

    /// What a sum of squares is multiplied with.
    pub(super) fn weight(self, shape: &LrnShape) -> f32 {
        match self {
            Self::AcrossChannels => shape.alpha / shape.local_size as f32,
            Self::WithinChannel => shape.alpha / (shape.local_size * shape.local_size) as f32,
        }
    }

    /// Elementary operations for one element.
    pub(super) fn cost(self, shape: &LrnShape) -> usize {
        match self {
            Self::AcrossChannels => 8 + shape.local_size,
            Self::WithinChannel => 8 + 2 * shape.local_size,
        }
    }

    /// Cuts `dst`, which starts at element `first` of a block, into tiles that [`Sums::around`] takes: `body(at, tile)`
    /// with `at` the tile's first element within the block. `dst` is a whole number of maps.
    #[inline(always)]
    pub(super) fn for_each_tile(
        self,
        shape: &LrnShape,
        first: usize,
        dst: &mut [f32],
        mut body: impl FnMut(usize, &mut [f32]),
    ) {
        let run = match self {
            Self::AcrossChannels => shape.plane(),
            Self::WithinChannel => shape.size[1],
        };
        for (i, dst) in dst.chunks_mut(run).enumerate() {
            for (j, tile) in dst.chunks_mut(TILE).enumerate() {
                body(first + i * run + j * TILE, tile);
            }
        }
    }
}

/// Sums over neighbourhoods, made in two buffers on the stack.
pub(super) struct Sums<'a> {
    shape: &'a LrnShape,
    region: Region,
    sums: [f32; TILE],
    /// Sums along columns of a map.
    columns: [f32; 2 * TILE],
}

impl<'a> Sums<'a> {
    pub(super) fn new(shape: &'a LrnShape, region: Region) -> Self {
        Self { shape, region, sums: [0.0; TILE], columns: [0.0; 2 * TILE] }
    }

    /// Sums of `value(x)` over the neighbourhoods of elements `at .. at + len` of `block`, a tile of
    /// [`Region::for_each_tile`].
    ///
    /// Every sum is made anew: one that slid along would keep the rounding errors of large values that have left it.
    #[inline(always)]
    pub(super) fn around(
        &mut self,
        block: &[f32],
        at: usize,
        len: usize,
        value: impl Fn(f32) -> f32 + Copy,
    ) -> &[f32] {
        self.sums[..len].fill(0.0);
        match self.region {
            Region::AcrossChannels => self.across(block, at, len, value),
            Region::WithinChannel => self.within(block, at, len, value),
        }
        &self.sums[..len]
    }

    #[inline(always)]
    fn across(&mut self, image: &[f32], at: usize, len: usize, value: impl Fn(f32) -> f32) {
        let (plane, half) = (self.shape.plane(), self.shape.local_size / 2);
        let (channel, place) = (at / plane, at % plane);
        for other in channel.saturating_sub(half)..self.shape.channels.min(channel + half + 1) {
            let map = &image[other * plane + place..][..len];
            self.sums.iter_mut().zip(map).for_each(|(sum, &x)| *sum += value(x));
        }
    }

    /// Along columns, then along rows.
    #[inline(always)]
    fn within(&mut self, map: &[f32], at: usize, len: usize, value: impl Fn(f32) -> f32 + Copy) {
        let ([height, width], half) = (self.shape.size, self.shape.local_size / 2);
        let (y, x) = (at / width, at % width);
        // Offsets from the left end of a window, as many at a time as `columns` has room for.
        for first in (0..self.shape.local_size).step_by(TILE) {
            let offsets = TILE.min(self.shape.local_size - first);
            let wide = len + offsets - 1;
            // columns[i] belongs to column x + first + i - half of the map.
            let skip = half.saturating_sub(x + first);
            let start = (x + first + skip) - half;
            let end = (x + first + wide).saturating_sub(half).min(width);
            self.columns[..wide].fill(0.0);
            if start < end {
                for row in y.saturating_sub(half)..height.min(y + half + 1) {
                    let row = &map[row * width..][start..end];
                    self.columns[skip..].iter_mut().zip(row).for_each(|(sum, &x)| *sum += value(x));
                }
            }
            for offset in 0..offsets {
                self.sums[..len]
                    .iter_mut()
                    .zip(&self.columns[offset..])
                    .for_each(|(sum, column)| *sum += column);
            }
        }
    }
}
