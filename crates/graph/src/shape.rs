use serde::{Deserialize, Serialize};
use std::fmt;

/// Extents of one value for one image; the batch is never part of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// A feature map `[channels, height, width]`.
    Map {
        /// Number of channels.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// A vector of features.
    Vector(usize),
}

impl Shape {
    /// A feature map `[channels, height, width]`.
    #[must_use]
    pub fn map(channels: usize, height: usize, width: usize) -> Self {
        Self::Map { channels, height, width }
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(self) -> usize {
        match self {
            Self::Map { channels, height, width } => channels * height * width,
            Self::Vector(len) => len,
        }
    }

    /// Channels of a map, features of a vector.
    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Self::Map { channels, .. } => channels,
            Self::Vector(len) => len,
        }
    }

    /// `[height, width]`; a vector counts as `[1, 1]`.
    #[must_use]
    pub fn spatial(self) -> [usize; 2] {
        match self {
            Self::Map { height, width, .. } => [height, width],
            Self::Vector(_) => [1, 1],
        }
    }

    /// Extents without the batch: `[channels, height, width]` or `[features]`.
    #[must_use]
    pub fn dims(self) -> Vec<usize> {
        match self {
            Self::Map { channels, height, width } => vec![channels, height, width],
            Self::Vector(len) => vec![len],
        }
    }

    /// The product of the extents if every one is positive and it fits `isize` four times over (bytes of an `f32`).
    pub(crate) fn checked_elements(self) -> Option<usize> {
        let len = self.dims().into_iter().try_fold(1usize, |n, d| n.checked_mul(d))?;
        (len > 0 && len <= isize::MAX as usize / 4).then_some(len)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { channels, height, width } => write!(f, "{channels}x{height}x{width}"),
            Self::Vector(len) => write!(f, "{len}"),
        }
    }
}
