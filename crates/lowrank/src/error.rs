use crate::Rank;

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
    /// A rank or a method is given for a layer that the other settings leave alone.
    #[error("a rank or a method is given for `{name}`, but {reason}")]
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
    /// A factor of the stable rank that is not a positive number.
    #[error("the stable rank is to be taken {value} times, expected a number above 0")]
    Factor {
        /// The value found.
        value: f64,
    },
    /// A method that cannot have this layer.
    #[error("layer `{layer}`: the method `{method}` has no meaning for it: {reason}")]
    Method {
        /// The layer.
        layer: String,
        /// The method.
        method: &'static str,
        /// What it lacks.
        reason: &'static str,
    },
    /// A rule that looks at singular values, and a method without.
    #[error(
        "layer `{layer}`: the rule `{rule}` chooses no rank for the method `{method}`, which takes ranks by number or as a share"
    )]
    Rule {
        /// The layer.
        layer: String,
        /// The method.
        method: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// Ranks of two sides for a method with one.
    #[error("layer `{layer}`: the method `{method}` has one rank, found {rank}")]
    TwoRanks {
        /// The layer.
        layer: String,
        /// The method.
        method: &'static str,
        /// The ranks.
        rank: Rank,
    },
    /// A budget below what the network costs at rank 1.
    #[error("the network cannot have at most {allowed} {quantity}: with the least ranks it has {least}")]
    Budget {
        /// What is counted.
        quantity: &'static str,
        /// The most that was asked for.
        allowed: usize,
        /// What is left with the least ranks.
        least: usize,
    },
    /// Filters were to be put into no cluster.
    #[error("layer `{layer}`: expected at least 1 cluster of filters, found 0")]
    Clusters {
        /// The layer.
        layer: String,
    },
    /// Images, or numbers that say what is done with them, that make no sense.
    #[error("calibration: {reason}")]
    Calibration {
        /// What is wrong.
        reason: String,
    },
    /// A speedup beyond what all layers at their fastest give.
    #[error("{speedup:.3} times as fast is out of reach: the most that there is is {best:.3} times")]
    Unreachable {
        /// What was asked for.
        speedup: f64,
        /// The most that was measured, or is to be expected where nothing was.
        best: f64,
    },
    /// The network could not be run on the images.
    #[error(transparent)]
    Runtime(#[from] cofilter_runtime::Error),
    /// The singular values could not be computed.
    #[error("layer `{layer}`: the decomposition did not converge")]
    NoConvergence {
        /// The layer.
        layer: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
