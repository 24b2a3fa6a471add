use std::path::{Path, PathBuf};

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is not what it should be, or holds what is not supported.
    #[error("{}: {reason}", path.display())]
    File {
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
    /// A file describes what cannot be imported; all of it at once.
    #[error("{}: {} problems:\n{}", path.display(), problems.len(), problems.join("\n"))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// One line for each op or node, with what is not supported.
        problems: Vec<String>,
    },
    /// Tensors of a checkpoint do not fit a network; all of them at once.
    #[error("{}: {} tensors do not fit `{network}`:\n{}", path.display(), problems.len(), problems.join("\n"))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The network.
        network: String,
        /// One line for each tensor: missing, unknown, or of other extents.
        problems: Vec<String>,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What is wrong with the network in a file, or with writing it.
    pub(crate) fn graph(path: &Path, error: cofilter_graph::Error) -> Self {
        match error {
            cofilter_graph::Error::Io { path, source } => Self::Io { path, source },
            other => Self::File { path: path.into(), reason: other.to_string() },
        }
    }
}
