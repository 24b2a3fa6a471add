use std::path::PathBuf;

/// What can be wrong with a description, its parameters or a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A node cannot be built: its attributes or inputs do not fit together.
    #[error("node `{node}`: {reason}")]
    Node {
        /// Name of the node.
        node: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Two nodes have the same name, or a name cannot be used.
    #[error(
        "node name `{0}` is used twice or is not usable (empty, or with characters other than letters, digits and `_./-`)"
    )]
    Name(String),
    /// A node name that is not in the graph.
    #[error("no node is named `{name}`; there are: {known}")]
    UnknownNode {
        /// The name asked for.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// The graph as a whole is not usable.
    #[error("graph: {0}")]
    Graph(String),
    /// A tensor has other extents than its slot.
    #[error("tensor `{tensor}`: expected dims {expected:?}, found {found:?}")]
    Dims {
        /// `node.slot`.
        tensor: String,
        /// Extents the slot demands.
        expected: Vec<usize>,
        /// Extents found.
        found: Vec<usize>,
    },
    /// A node has too many or too few tensors.
    #[error("node `{node}`: expected {expected} tensors, found {found}")]
    Slots {
        /// Name of the node.
        node: String,
        /// Number of slots of the op.
        expected: usize,
        /// Number given.
        found: usize,
    },
    /// A tensor holds a value that is not finite.
    #[error("tensor `{tensor}`: element {index} is {value}, expected a finite number")]
    NotFinite {
        /// `node.slot`.
        tensor: String,
        /// Flat row-major index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A variance is below 0.
    #[error("tensor `{tensor}`: element {index} is {value}, expected a variance from 0 up")]
    Variance {
        /// `node.slot`.
        tensor: String,
        /// Flat row-major index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A file is not a valid artifact.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The first thing found wrong.
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

impl Error {
    pub(crate) fn node(node: &str, reason: impl Into<String>) -> Self {
        Self::Node { node: node.into(), reason: reason.into() }
    }
}
