mod adaptive;
mod average;
mod max;
mod row;

pub use adaptive::{adaptive_avg_pool, adaptive_avg_pool_backward};
pub use average::{avg_pool, avg_pool_backward};
pub use max::{max_pool, max_pool_backward};

use std::ops::Range;

/// Windows over `planes` maps (images times channels). `src` is `[planes, in_size]`, `dst` `[planes, out_size]`, both
/// row-major.
///
/// Along an axis, window `o` covers `o * stride - padding .. + kernel`, clipped to the map. `out_size` is the caller's:
/// it says how the number of windows was rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Images times channels.
    pub planes: usize,
    /// `[height, width]` of a map.
    pub in_size: [usize; 2],
    /// Windows along `[height, width]`.
    pub out_size: [usize; 2],
    /// `[height, width]` of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Rows and columns on each side that are not part of the map; less than the kernel.
    pub padding: [usize; 2],
}

impl PoolShape {
    /// Elements of `src`.
    #[must_use]
    pub fn src_len(&self) -> usize {
        self.planes * self.in_plane()
    }

    /// Elements of `dst`.
    #[must_use]
    pub fn dst_len(&self) -> usize {
        self.planes * self.out_plane()
    }

    fn in_plane(&self) -> usize {
        self.in_size[0] * self.in_size[1]
    }

    fn out_plane(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// Elementary operations for one plane.
    fn cost(&self) -> usize {
        self.out_plane() * self.kernel[0] * self.kernel[1]
    }

    /// Panics unless every window has an element of the map, which all the loops below rely on.
    fn check(&self) {
        for axis in 0..2 {
            let (k, s, p) = (self.kernel[axis], self.stride[axis], self.padding[axis]);
            assert!(k > p && s > 0 && self.out_size[axis] > 0, "pooling: {self:?}");
            assert!(
                (self.out_size[axis] - 1) * s < self.in_size[axis] + p,
                "pooling: a window is empty: {self:?}"
            );
        }
    }

    /// The part of the map that window `o` covers along `axis`; never empty.
    fn window(&self, axis: usize, o: usize) -> Range<usize> {
        let start = o * self.stride[axis];
        let end = start + self.kernel[axis] - self.padding[axis];
        start.saturating_sub(self.padding[axis])..end.min(self.in_size[axis])
    }

    /// The windows along a row that have all their columns in the map.
    fn inside(&self) -> Range<usize> {
        let (k, s, p) = (self.kernel[1], self.stride[1], self.padding[1]);
        let end = (self.in_size[1] + p + s).saturating_sub(k) / s;
        let end = end.min(self.out_size[1]);
        p.div_ceil(s).min(end)..end
    }
}
