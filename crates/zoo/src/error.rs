/// What can be wrong with a request for a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration gives a network that cannot be built, for example an input that is too small.
    #[error(transparent)]
    Graph(#[from] cofilter_graph::Error),
    /// No network has this name.
    #[error("no network is named `{name}`; there are: {known}")]
    UnknownNetwork {
        /// The name asked for.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// A CIFAR ResNet has `6 n + 2` layers, `n` at least 1.
    #[error("a CIFAR ResNet of depth {0}: expected 6 n + 2 layers with n at least 1 (20, 32, 44, 56, 110)")]
    Depth(usize),
    /// A model is not of the form that a conversion takes.
    #[error("expected {expected}: {reason}")]
    Form {
        /// The form, by the name of its network.
        expected: &'static str,
        /// The first difference.
        reason: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
