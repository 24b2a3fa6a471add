/// What can be wrong with a request to prune or with masks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The network itself, for example a weight that is not finite.
    #[error(transparent)]
    Graph(#[from] cofilter_graph::Error),
    /// A layer to prune or to exclude that the network does not have.
    #[error(
        "the request names `{name}`, which is no layer of the network; its convolutions and fully connected layers are: {known}"
    )]
    UnknownLayer {
        /// The name.
        name: String,
        /// The layers that can be pruned.
        known: String,
    },
    /// A layer of the original network that the smaller one does not have, whole or as a pair.
    #[error(
        "layer `{layer}` of the original is not in the smaller network, whole or taken apart (`{layer}_lowrank` and `{layer}_linear`, ...)"
    )]
    MissingLayer {
        /// The layer.
        layer: String,
    },
    /// A fraction of zeros outside `[0, 1)`.
    #[error("the sparsity is {0}, expected a number in [0, 1)")]
    Sparsity(f64),
    /// A pattern that makes no sense.
    #[error("pattern: {0}")]
    Pattern(String),
    /// Masks with another number of nodes or tensors than the network.
    #[error("the masks are of another network: {reason}")]
    Masks {
        /// What was expected and what was found.
        reason: String,
    },
    /// A mask with an element other than 0 and 1.
    #[error("mask of `{tensor}`: element {index} is {value}, expected 0 or 1")]
    MaskValue {
        /// `node.slot`.
        tensor: String,
        /// Flat row-major index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
