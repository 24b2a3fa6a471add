/// What can go wrong on the way to a device and on it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library of CUDA's is not on this machine, or lacks something.
    #[error("{what}: {reason}")]
    Library {
        /// `the CUDA driver`, `NVRTC`, `cuDNN` or `cuBLASLt`.
        what: &'static str,
        /// The names that were tried, or the function that it lacks.
        reason: String,
    },
    /// There are fewer devices.
    #[error("CUDA device {ordinal}: this machine has {found}")]
    NoDevice {
        /// Number asked for, from 0.
        ordinal: usize,
        /// Devices that there are.
        found: usize,
    },
    /// A device is too old for what is asked of it.
    #[error("{device}: compute capability {}.{}, {what} needs {}.{} or more", found / 10, found % 10, needed / 10, needed % 10)]
    Capability {
        /// Its name.
        device: String,
        /// What needs more.
        what: &'static str,
        /// Ten times its compute capability.
        found: u32,
        /// Ten times what is needed.
        needed: u32,
    },
    /// The device has not as much memory left.
    #[error("{device}: no {bytes} bytes of memory left for {what} (it has {total} in all)")]
    Memory {
        /// Its name.
        device: String,
        /// What it is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that it has, free or not.
        total: usize,
    },
    /// A call of the driver failed.
    #[error("{call}: {name} ({code})")]
    Driver {
        /// The function: `cuGraphLaunch`.
        call: &'static str,
        /// What it returned.
        code: i32,
        /// The driver's name for that.
        name: String,
    },
    /// A call of a library that computes in place of our kernels failed.
    #[error("{library}: {call}: {text} ({code})")]
    LibraryCall {
        /// `cuDNN` or `cuBLASLt`.
        library: &'static str,
        /// The function: `cudnnConvolutionForward`.
        call: &'static str,
        /// What it returned.
        code: i32,
        /// The library's words for that.
        text: String,
    },
    /// The kernels could not be compiled.
    #[error("NVRTC, for {arch}: {log}")]
    Compile {
        /// Architecture: `sm_80`.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// The host has not as much memory that a device can reach.
    #[error("no {bytes} bytes of page-locked memory left for {what}")]
    HostMemory {
        /// What it is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// There are more or fewer of something than there have to be.
    #[error("{what}: expected {expected}, found {found}")]
    Length {
        /// What it is.
        what: String,
        /// How many there are.
        found: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// Something is larger than its memory, or than the kernels can count.
    #[error("{what}: {found}, at most {most} is possible")]
    TooLarge {
        /// What it is.
        what: String,
        /// Its size.
        found: usize,
        /// The limit.
        most: usize,
    },
}

pub(crate) const OUT_OF_MEMORY: i32 = 2;

impl Error {
    /// Whether there was not enough memory, of the device or of the host.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            Self::Memory { .. } | Self::HostMemory { .. } | Self::Driver { code: OUT_OF_MEMORY, .. }
        )
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_memory_is_told_from_other_failures() {
        let driver = |code| Error::Driver { call: "cuGraphInstantiate", code, name: String::new() };
        let host = Error::HostMemory { what: "results", bytes: 1 };
        let device = Error::Memory { device: String::new(), what: "values", bytes: 1, total: 1 };
        assert!([driver(OUT_OF_MEMORY), host, device].iter().all(Error::is_out_of_memory));
        let length = Error::Length { what: String::new(), found: 1, expected: 2 };
        assert!(![driver(1), length].iter().any(Error::is_out_of_memory));
    }
}
