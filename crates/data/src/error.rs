use std::path::{Path, PathBuf};

/// What can be wrong with a data set, or with what is asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or folder holds something else than its format demands.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What the format, or the other files of the set, demand.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A JPEG or PNG file cannot be decoded.
    #[error("{}: expected a JPEG or PNG image, found: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        source: image::ImageError,
    },
    /// A folder holds nothing that is known.
    #[error("{}: no data set found; looked for {looked_for}", folder.display())]
    Unrecognised {
        /// The folder.
        folder: PathBuf,
        /// The files and folders that would have been recognised.
        looked_for: String,
    },
    /// Extents, classes, pixels and labels of a data set do not fit together.
    #[error("data set `{dataset}`: expected {expected}, found {found}")]
    Dataset {
        /// Name of the data set.
        dataset: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A preprocessing or augmentation does not fit the data set.
    #[error("preprocessing of data set `{dataset}`: {field}: expected {expected}, found {found}")]
    Preprocessing {
        /// Name of the data set.
        dataset: String,
        /// The field that does not fit.
        field: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A batch cannot be filled as asked.
    #[error("batch of data set `{dataset}`: expected {expected}, found {found}")]
    Batch {
        /// Name of the data set.
        dataset: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn format(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), expected: expected.into(), found: found.into() }
    }
}
