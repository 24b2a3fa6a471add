//! Extents of a convolution.

/// Extents of a two-dimensional convolution (cross-correlation, as in PyTorch and Caffe).
///
/// `src` is `[batch, in_channels, in_size]`, `weight` is `[out_channels, in_channels / groups, kernel]`,
/// `dst` is `[batch, out_channels, out_size]`, all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images in a batch.
    pub batch: usize,
    /// Channels of an input image.
    pub in_channels: usize,
    /// Height and width of an input image.
    pub in_size: [usize; 2],
    /// Filters, and so channels of an output image.
    pub out_channels: usize,
    /// Height and width of a filter.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step of the filter.
    pub stride: [usize; 2],
    /// Rows of zeros above and below, and columns of zeros left and right.
    pub padding: [usize; 2],
    /// Vertical and horizontal distance between the taps of a filter; 1 is dense.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other; divides `in_channels` and `out_channels`.
    pub groups: usize,
}

impl ConvShape {
    /// Height and width of an output image: `(in + 2 padding - dilation (kernel - 1) - 1) / stride + 1`,
    /// rounded down; 0 where the padded image is smaller than the filter.
    pub fn out_size(&self) -> [usize; 2] {
        std::array::from_fn(|d| {
            let reach = self.dilation[d] * (self.kernel[d] - 1) + 1;
            (self.in_size[d] + 2 * self.padding[d])
                .checked_sub(reach)
                .map_or(0, |free| free / self.stride[d] + 1)
        })
    }

    /// Numbers in `src`.
    pub fn src_len(&self) -> usize {
        self.batch * self.src_image_len()
    }

    /// Numbers in `dst`.
    pub fn dst_len(&self) -> usize {
        self.batch * self.dst_image_len()
    }

    /// Numbers in `weight`.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.filter_len()
    }

    /// Multiply-accumulate operations of the forward pass; taps that fall on padding count.
    pub fn macs(&self) -> u64 {
        self.dst_len() as u64 * self.filter_len() as u64
    }

    /// Numbers in one filter: `in_channels / groups * kernel_h * kernel_w`.
    pub(crate) fn filter_len(&self) -> usize {
        self.in_channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Numbers in one input image.
    pub(crate) fn src_image_len(&self) -> usize {
        self.in_channels * self.in_size[0] * self.in_size[1]
    }

    /// Numbers in one output image.
    pub(crate) fn dst_image_len(&self) -> usize {
        self.out_channels * self.out_plane()
    }

    /// Pixels of an output map.
    pub(crate) fn out_plane(&self) -> usize {
        let [height, width] = self.out_size();
        height * width
    }

    /// Panics unless the extents describe a convolution.
    pub(crate) fn check(&self) {
        assert!(self.groups > 0, "convolution: 0 groups");
        assert!(
            self.in_channels.is_multiple_of(self.groups) && self.out_channels.is_multiple_of(self.groups),
            "convolution: {} groups do not divide {} input and {} output channels",
            self.groups,
            self.in_channels,
            self.out_channels
        );
        assert!(self.in_channels > 0 && self.out_channels > 0, "convolution: no channels");
        let positive = |extents: [usize; 2]| extents[0] > 0 && extents[1] > 0;
        assert!(
            positive(self.kernel) && positive(self.stride) && positive(self.dilation),
            "convolution: kernel {:?}, stride {:?} and dilation {:?} must be positive",
            self.kernel,
            self.stride,
            self.dilation
        );
        // Everything that is computed from the extents then fits `usize`.
        let padded = |d: usize| {
            let taps = self.kernel[d] as u128 * self.dilation[d] as u128;
            taps.saturating_add(self.in_size[d] as u128 + 2 * self.padding[d] as u128)
        };
        let numbers = (self.batch.max(1) as u128)
            .saturating_mul(self.in_channels.max(self.out_channels).max(1) as u128)
            .saturating_mul(padded(0).saturating_mul(padded(1)));
        let weights = (self.in_channels.max(1) as u128)
            .saturating_mul(self.out_channels.max(1) as u128)
            .saturating_mul(self.kernel[0] as u128 * self.kernel[1] as u128);
        assert!(numbers.max(weights) < 1 << 48, "convolution: extents too large: {self:?}");
    }
}
