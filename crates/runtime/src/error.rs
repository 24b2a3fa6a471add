/// What can be wrong when a network is compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The network itself is not usable: a pass failed, or a tensor is not finite.
    #[error(transparent)]
    Model(#[from] cofilter_graph::Error),
    /// An option has no sensible meaning.
    #[error("option `{option}`: {reason}")]
    Option {
        /// Name of the field of [`Options`](crate::Options).
        option: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// The images are not a batch that the plan takes.
    #[error("images: expected n * {image_len} values for n in 1..={batch} images, found {found}")]
    Images {
        /// Values of one image.
        image_len: usize,
        /// Most images of one run.
        batch: usize,
        /// Values given.
        found: usize,
    },
    /// The slice for the result does not fit the images.
    #[error("logits: expected {expected} values for {images} images, found {found}")]
    Logits {
        /// Values that the result of these images has.
        expected: usize,
        /// Images given.
        images: usize,
        /// Values there is room for.
        found: usize,
    },
    /// The plan would hold more memory than allowed.
    #[error(
        "the plan needs {needed} bytes (weights {weights}, values {values}, workspace {scratch}), `max_memory` allows {allowed}"
    )]
    Memory {
        /// Bytes of the plan and one session.
        needed: usize,
        /// Of weights and biases.
        weights: usize,
        /// Of values between the steps, for the whole batch.
        values: usize,
        /// Of the kernels' workspace.
        scratch: usize,
        /// The limit.
        allowed: usize,
    },
    /// A file is no table of costs for this machine.
    #[error("{}: {reason}", path.display())]
    Costs {
        /// The file.
        path: std::path::PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The backend is not a part of this program.
    #[error(
        "backend `{backend}`: this program was built without it (feature `{feature}` of cofilter-runtime)"
    )]
    NotBuilt {
        /// The backend.
        backend: &'static str,
        /// What has to be switched on.
        feature: &'static str,
    },
    /// A CUDA device, its driver or its compiler.
    #[cfg(feature = "cuda")]
    #[error("CUDA: {0}")]
    Cuda(#[from] cofilter_cuda::Error),
    /// The threads of a plan could not be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// Number asked for.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
