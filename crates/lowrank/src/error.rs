/// What can be wrong with a request for a decomposition.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The network itself, for example a weight that is not finite or a name that is taken.
    #[error(transparent)]
    Graph(#[from] cofilter_graph::Error),
    /// A layer name in the settings that the network does not have.
    #[error(
        "{role} names `{name}`, which is no layer of the network; its convolutions and fully connected layers are: {known}"
    )]
    UnknownLayer {
        /// Which setting names it.
        role: &'static str,
        /// The name.
        name: String,
        /// The layers that have a rank.
        known: String,
    },
    /// A node without a weight matrix was asked for.
    #[error("{role} names `{name}`, which is a {kind}; only conv2d and linear have a rank")]
    NotALayer {
        /// Which setting names it.
        role: &'static str,
        /// The name.
        name: String,
        /// Kind of its op.
        kind: &'static str,
    },
    /// A rank is given for a layer that the other settings leave alone.
    #[error("a rank is given for `{name}`, but {reason}")]
    NotSelected {
        /// The layer.
        name: String,
        /// Which setting leaves it alone.
        reason: &'static str,
    },
    /// A rank of 0 or above full rank.
    #[error("layer `{layer}`: expected a rank in 1..={full}, found {rank}")]
    Rank {
        /// The layer.
        layer: String,
        /// The rank asked for.
        rank: usize,
        /// The largest rank, `groups * min(filters per group, weights per filter)`.
        full: usize,
    },
    /// A total rank below the number of groups.
    #[error(
        "layer `{layer}` has {groups} groups, each needs a rank of 1 or more; the total rank given is {rank}"
    )]
    RankBelowGroups {
        /// The layer.
        layer: String,
        /// The rank asked for.
        rank: usize,
        /// Number of groups.
        groups: usize,
    },
    /// An energy, norm or rank ratio outside `(0, 1]`.
    #[error("the {what} ratio is {value}, expected a number in (0, 1]")]
    Ratio {
        /// `energy`, `norm` or `rank`.
        what: &'static str,
        /// The value found.
        value: f64,
    },
    /// The singular values could not be computed.
    #[error("layer `{layer}`: the singular value decomposition did not converge")]
    NoConvergence {
        /// The layer.
        layer: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
