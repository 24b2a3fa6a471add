use candle_core::{DType, Shape};

/// What can be wrong with the arguments of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor without columns has no filter directions.
    #[error("a weight needs at least 2 dimensions [filters, ..] and an element, found {found:?}")]
    Shape {
        /// Dimensions of the weight.
        found: Shape,
    },
    /// Only `f32` and `f64` tensors are handled.
    #[error("weight and gradient must be both F32 or both F64, found {weight:?} and {gradient:?}")]
    DType {
        /// Type of the weight.
        weight: DType,
        /// Type of the gradient (the weight's own where there is none).
        gradient: DType,
    },
    /// The filters cannot be split evenly.
    #[error("{filters} filters cannot be split into {groups} equal groups")]
    Groups {
        /// Rows of the weight.
        filters: usize,
        /// Requested number of groups.
        groups: usize,
    },
    /// The gradient does not belong to the weight.
    #[error("the gradient has shape {found:?}, its weight {expected:?}")]
    GradientShape {
        /// Dimensions of the weight.
        expected: Shape,
        /// Dimensions of the gradient.
        found: Shape,
    },
    /// `strength * multiplier` is infinite or not a number.
    #[error("strength {strength} times multiplier {multiplier} is not finite")]
    Coefficient {
        /// Strength of the rule.
        strength: f64,
        /// Multiplier of the layer.
        multiplier: f64,
    },
    /// A tensor operation failed, for example for want of memory.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
