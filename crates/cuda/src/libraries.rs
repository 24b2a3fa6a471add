//! cuDNN and cuBLASLt in place of our kernels, for convolutions.
//!
//! Neither has to be there. What they compute is dense, as our weights are before they are packed, and goes straight to its place; bias,
//! summand and rectification follow by a kernel of ours.

use crate::api::{self, DevicePtr};
use crate::call::Place;
use crate::cublaslt;
use crate::cudnn::{self, Algorithm};
use crate::device::{Buffer, Device};
use crate::kernel::Math;
use crate::pack::Geometry;
use crate::stream::Stream;
use crate::{Error, Result};

/// Most bytes of memory that a routine may need beside source, weights and result: for all calls of a session together there is one such
/// memory.
const MOST_WORKSPACE: usize = 64 << 20;

/// Whose routine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cudnn(Algorithm),
    CublasLt,
}

/// A library's way to compute a convolution of up to as many images as it was [looked for](Opened::routines).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routine {
    way: Way,
    math: Math,
    version: usize,
    /// Bytes, the most for any number of images.
    workspace: usize,
}

impl Routine {
    /// The library, and its algorithm if it has several: `cudnn implicit_gemm`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.way {
            Way::Cudnn(algorithm) => algorithm.name(),
            Way::CublasLt => "cublaslt",
        }
    }

    /// Its name with the version of its library, to which a time belongs.
    pub(crate) fn name_and_version(&self) -> String {
        format!("{}, version {}", self.name(), self.version)
    }

    pub(crate) fn workspace(&self) -> usize {
        self.workspace
    }

    /// Whether it is for such a convolution between two places, as far as that is known without the library.
    pub(crate) fn is_for(&self, geometry: &Geometry, [src, dst]: [Place; 2]) -> bool {
        let fits = |place: Place, len: usize| {
            (place.at * size_of::<f32>()).is_multiple_of(cublaslt::ALIGNMENT as usize) && place.stride >= len
        };
        let [src_len, dst_len] = geometry.lens();
        let windows = match self.way {
            Way::Cudnn(_) => geometry.is_regular(),
            Way::CublasLt => geometry.is_pointwise() && geometry.groups == 1,
        };
        windows && fits(src, src_len) && fits(dst, dst_len)
    }
}

/// Libraries, opened for a device.
pub struct Opened {
    device: Device,
    cudnn: Option<cudnn::Context>,
    cublaslt: Option<cublaslt::Context>,
}

impl Opened {
    /// Those that this machine has and that work on the device: perhaps none. A library that does not is told by a warning.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        fn working<T>(opened: Result<T>) -> Option<T> {
            opened.inspect_err(|error| tracing::warn!(%error, "a library is not used")).ok()
        }
        let cudnn = api::Cudnn::shared();
        let cublaslt = api::CublasLt::shared();
        Self {
            device: device.clone(),
            cudnn: cudnn.and_then(|api| working(cudnn::Context::new(api, device, None))),
            cublaslt: cublaslt.and_then(|api| working(cublaslt::Context::new(api, device))),
        }
    }

    /// Those of some routines, with their work in a stream, which has to outlive this; `None` if there are no routines.
    pub(crate) fn of(
        routines: impl Iterator<Item = Routine>,
        device: &Device,
        stream: &Stream,
    ) -> Result<Option<Self>> {
        let mut opened = None;
        for routine in routines {
            let of = opened.get_or_insert(Self { device: device.clone(), cudnn: None, cublaslt: None });
            match routine.way {
                Way::Cudnn(_) if of.cudnn.is_none() => {
                    let api = api::Cudnn::shared().ok_or_else(|| gone("cuDNN"))?;
                    of.cudnn = Some(cudnn::Context::new(api, device, Some(stream.handle()))?);
                }
                Way::CublasLt if of.cublaslt.is_none() => {
                    let api = api::CublasLt::shared().ok_or_else(|| gone("cuBLASLt"))?;
                    of.cublaslt = Some(cublaslt::Context::new(api, device)?);
                }
                Way::Cudnn(_) | Way::CublasLt => {}
            }
        }
        Ok(opened)
    }

    /// The routines that can compute a convolution between two places for every number of images up to `batch`, and need no more than
    /// 64 MiB beside.
    ///
    /// Both places have to begin at multiples of 16 bytes. cuDNN is there for [`Math::F32`] and [`Math::Tf32`], cuBLASLt for
    /// pointwise convolutions without groups and for fully connected layers.
    #[must_use]
    pub fn routines(
        &self,
        math: Math,
        geometry: &Geometry,
        [src, dst]: [Place; 2],
        batch: usize,
    ) -> Vec<Routine> {
        let math = if self.device.about().capability < 80 { Math::F32 } else { math };
        let cudnn = self.cudnn.iter().flat_map(|of| {
            Algorithm::all(math).iter().map(|algorithm| (Way::Cudnn(*algorithm), of.version()))
        });
        let cublaslt = self.cublaslt.iter().map(|of| (Way::CublasLt, of.version()));
        let fitting = |(way, version): (Way, usize)| {
            let routine = Routine { way, math, version, workspace: MOST_WORKSPACE };
            if !routine.is_for(geometry, [src, dst]) {
                return None;
            }
            let workspace = self
                .workspace(&routine, geometry, [src.stride, dst.stride], batch)
                .inspect_err(|error| tracing::debug!(%error, routine = routine.name(), "has no routine"))
                .ok()?;
            (workspace <= MOST_WORKSPACE).then_some(Routine { workspace, ..routine })
        };
        cudnn.chain(cublaslt).filter_map(fitting).collect()
    }

    fn workspace(
        &self,
        routine: &Routine,
        geometry: &Geometry,
        strides: [usize; 2],
        batch: usize,
    ) -> Result<usize> {
        let mut most = 0;
        // A large batch is the least likely to fit.
        for n in (1..=batch).rev() {
            let bytes = match self.prepare(routine, geometry, strides, n)? {
                Prepared::Cudnn(of) => self.cudnn()?.workspace(&of)?,
                Prepared::CublasLt(of) => of.workspace(),
            };
            most = most.max(bytes);
            if most > MOST_WORKSPACE {
                break;
            }
        }
        Ok(most)
    }

    fn cudnn(&self) -> Result<&cudnn::Context> {
        self.cudnn.as_ref().ok_or_else(|| gone("cuDNN"))
    }

    fn cublaslt(&self) -> Result<&cublaslt::Context> {
        self.cublaslt.as_ref().ok_or_else(|| gone("cuBLASLt"))
    }

    /// Describes a convolution of `n` images; `strides` are the elements from one image to the next of source and result.
    pub(crate) fn prepare(
        &self,
        routine: &Routine,
        geometry: &Geometry,
        strides: [usize; 2],
        n: usize,
    ) -> Result<Prepared> {
        self.device.bind()?;
        Ok(match routine.way {
            Way::Cudnn(algorithm) => {
                let of = self.cudnn()?.convolution((algorithm, routine.math), geometry, strides, n)?;
                Prepared::Cudnn(of)
            }
            Way::CublasLt => {
                let product =
                    self.cublaslt()?.product(routine.math, geometry, strides, n, routine.workspace)?;
                Prepared::CublasLt(Box::new(product))
            }
        })
    }

    /// Orders what was described.
    ///
    /// # Safety
    /// Source, weights and result lie in buffers that stay until the stream was waited for, and nothing else uses the workspace meanwhile
    /// but what is in the same stream, which is the one that this was opened for.
    #[expect(unsafe_code, reason = "the work of the libraries is ordered; the caller answers for its memory")]
    pub(crate) unsafe fn launch(
        &self,
        of: &Prepared,
        addresses: [DevicePtr; 3],
        workspace: &Buffer,
        stream: &Stream,
    ) -> Result<()> {
        match of {
            // SAFETY: the caller's word.
            Prepared::Cudnn(of) => unsafe { self.cudnn()?.forward(of, addresses, workspace) },
            Prepared::CublasLt(of) => {
                // SAFETY: as above.
                unsafe { self.cublaslt()?.multiply(of, addresses, workspace, stream.handle()) }
            }
        }
    }
}

/// A convolution of a number of images as its library has it described.
pub(crate) enum Prepared {
    Cudnn(cudnn::Convolution),
    CublasLt(Box<cublaslt::Product>),
}

fn gone(what: &'static str) -> Error {
    Error::Library { what, reason: "it was there when the plan was made".to_owned() }
}
