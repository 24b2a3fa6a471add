use std::path::PathBuf;

/// Why figures could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id that may be no file name everywhere.
    #[error(
        "a figure has the id `{id}`; expected 1 to 100 letters, digits, `-`, `_` and `.` that begin with no `.`"
    )]
    Id {
        /// The id.
        id: String,
    },
    /// An id that two figures have, or that differs from another in the case of its letters alone.
    #[error("two figures have the id `{id}`")]
    Taken {
        /// The id.
        id: String,
    },
    /// What the system says.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
