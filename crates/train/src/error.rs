use std::path::PathBuf;

/// What can go wrong while training or evaluating.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network, its parameters or an artifact is not valid.
    #[error(transparent)]
    Graph(#[from] cofilter_graph::Error),
    /// A data set or its preprocessing is not valid.
    #[error(transparent)]
    Data(#[from] cofilter_data::Error),
    /// The regulariser refused its operands.
    #[error(transparent)]
    Force(#[from] cofilter_force::Error),
    /// Ranks could not be clipped.
    #[error(transparent)]
    Lowrank(#[from] cofilter_lowrank::Error),
    /// Weights could not be pruned.
    #[error(transparent)]
    Sparsity(#[from] cofilter_sparsity::Error),
    /// The tensor library failed.
    #[error("tensor library: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A GPU, or what is needed to use one.
    #[error(transparent)]
    Cuda(#[from] cofilter_cuda::Error),
    /// A recipe does not fit itself or the network.
    #[error("recipe: {0}")]
    Recipe(String),
    /// Images, labels, masks or a network that do not fit each other.
    #[error("{0}")]
    Input(String),
    /// A number became NaN or infinite.
    #[error(
        "iteration {iteration}: {what} of `{node}` is not finite (loss {loss}); try a lower learning rate or `clip_gradients`"
    )]
    Diverged {
        /// Iteration, counted from 0.
        iteration: u64,
        /// `output`, `gradient` or `weight`, with the slot.
        what: String,
        /// The first such node in graph order.
        node: String,
        /// Loss of the iteration.
        loss: f64,
    },
    /// A network with a force forgot what it knew.
    #[error(
        "iteration {iteration}: the mean loss {loss:.3} of the last iterations is no better than guessing ({guessing:.3}); the force is \
         too strong"
    )]
    Forgotten {
        /// Iterations done.
        iteration: u64,
        /// Mean cross entropy of the main head.
        loss: f64,
        /// Logarithm of the number of classes.
        guessing: f64,
    },
    /// A number of an evaluated network is NaN or infinite.
    #[error("evaluation: output of image {image} is not finite")]
    NotFinite {
        /// Index of the image in the data set.
        image: usize,
    },
    /// A checkpoint is not usable here.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
