//! Convolutions of cuDNN's, by its functions for one convolution: those are the same in versions 8 and 9.
#![expect(unsafe_code, reason = "calls of cuDNN, with handles that it gave")]

use crate::api::{Cudnn, DevicePtr, Handle};
use crate::descriptor::Descriptor;
use crate::device::{Buffer, Device};
use crate::kernel::Math;
use crate::pack::{Geometry, int};
use crate::{Error, Result};
use std::ffi::{CStr, c_int};

/// `CUDNN_DATA_FLOAT` of `cudnnDataType_t`.
const FLOAT: c_int = 0;
/// `CUDNN_TENSOR_NCHW` of `cudnnTensorFormat_t`.
const NCHW: c_int = 0;
/// `CUDNN_CROSS_CORRELATION` of `cudnnConvolutionMode_t`: filters are not turned round.
const CROSS_CORRELATION: c_int = 1;
/// `CUDNN_TENSOR_OP_MATH` of `cudnnMathType_t`: TF32 for numbers in single precision.
const TENSOR_OP_MATH: c_int = 1;
/// `CUDNN_FMA_MATH` of `cudnnMathType_t`: no tensor cores.
const FMA_MATH: c_int = 3;

/// How cuDNN computes a convolution; the numbers are those of `cudnnConvolutionFwdAlgo_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Algorithm {
    /// A product with a matrix of windows that is not written.
    ImplicitGemm = 0,
    /// The same, with a table of where the windows lie.
    ImplicitPrecompGemm = 1,
    /// A product with a matrix of windows that is written first.
    Gemm = 2,
}

impl Algorithm {
    /// Those for a kind of arithmetic, all of them plain sums: what cuDNN's transforms lose is not known, so that no tolerance could be
    /// promised with them.
    pub(crate) fn all(math: Math) -> &'static [Self] {
        match math {
            Math::F32 | Math::Tf32 => &[Self::ImplicitGemm, Self::ImplicitPrecompGemm, Self::Gemm],
            Math::F16 | Math::Bf16 => &[],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ImplicitGemm => "cudnn implicit_gemm",
            Self::ImplicitPrecompGemm => "cudnn implicit_precomp_gemm",
            Self::Gemm => "cudnn gemm",
        }
    }
}

fn check(api: &Cudnn, call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the library's own string, which stays, with a zero at its end.
    let text = unsafe { CStr::from_ptr((api.error_text)(code)) }.to_string_lossy().into_owned();
    Err(Error::LibraryCall { library: "cuDNN", call, code, text })
}

/// A handle of cuDNN's.
pub(crate) struct Context {
    api: &'static Cudnn,
    device: Device,
    handle: Handle,
}

// SAFETY: a handle may be used by any thread, by one at a time; its owner is borrowed alone wherever it orders something.
unsafe impl Send for Context {}

impl Context {
    /// With its work in a stream, if it is to do any.
    pub(crate) fn new(api: &'static Cudnn, device: &Device, stream: Option<Handle>) -> Result<Self> {
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check(api, "cudnnCreate", unsafe { (api.create)(&raw mut handle) })?;
        let context = Self { api, device: device.clone(), handle };
        if let Some(stream) = stream {
            // SAFETY: both are alive, and the owner of both drops the handle first.
            check(api, "cudnnSetStream", unsafe { (api.set_stream)(handle, stream) })?;
        }
        Ok(context)
    }

    /// 92801 for 9.28.1, 8907 for 8.9.7.
    pub(crate) fn version(&self) -> usize {
        // SAFETY: no pointers.
        unsafe { (self.api.version)() }
    }

    /// Describes a convolution of `n` images; `strides` are the elements from one image to the next of source and result.
    pub(crate) fn convolution(
        &self,
        (algorithm, math): (Algorithm, Math),
        of: &Geometry,
        [src, dst]: [usize; 2],
        n: usize,
    ) -> Result<Convolution> {
        let api = self.api;
        Ok(Convolution {
            algorithm,
            src: tensor(api, n, of.channels, of.extents, src)?,
            filter: filter(api, of)?,
            window: window(api, of, math)?,
            dst: tensor(api, n, of.filters, of.results, dst)?,
        })
    }

    /// Bytes of memory that it needs beside source, weights and result.
    pub(crate) fn workspace(&self, of: &Convolution) -> Result<usize> {
        let mut bytes = 0;
        // SAFETY: writes one number; all handles are alive.
        let code = unsafe {
            (self.api.workspace)(
                self.handle,
                of.src.handle(),
                of.filter.handle(),
                of.window.handle(),
                of.dst.handle(),
                of.algorithm as c_int,
                &raw mut bytes,
            )
        };
        check(self.api, "cudnnGetConvolutionForwardWorkspaceSize", code)?;
        Ok(bytes)
    }

    /// Orders a convolution in the stream of the handle.
    ///
    /// # Safety
    /// All that is described lies in buffers that stay until the stream was waited for, and nothing else uses the workspace meanwhile
    /// but what is in the same stream.
    pub(crate) unsafe fn forward(
        &self,
        of: &Convolution,
        [src, weights, dst]: [DevicePtr; 3],
        workspace: &Buffer,
    ) -> Result<()> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the factors are read before it returns; the rest is the caller's word.
        let code = unsafe {
            (self.api.forward)(
                self.handle,
                (&raw const one).cast(),
                of.src.handle(),
                src,
                of.filter.handle(),
                weights,
                of.window.handle(),
                of.algorithm as c_int,
                workspace.address(),
                workspace.len(),
                (&raw const zero).cast(),
                of.dst.handle(),
                dst,
            )
        };
        check(self.api, "cudnnConvolutionForward", code)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created by the library and given back once.
        let destroyed = self
            .device
            .bind()
            .and_then(|()| check(self.api, "cudnnDestroy", unsafe { (self.api.destroy)(self.handle) }));
        if let Err(error) = destroyed {
            tracing::warn!(%error, "while giving back");
        }
    }
}

/// A convolution of a number of images as cuDNN has it described.
pub(crate) struct Convolution {
    algorithm: Algorithm,
    src: Descriptor,
    filter: Descriptor,
    window: Descriptor,
    dst: Descriptor,
}

fn made(
    api: &Cudnn,
    call: &'static str,
    create: unsafe extern "C" fn(*mut Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
) -> Result<Descriptor> {
    // SAFETY: writes one handle.
    Descriptor::new(destroy, |handle| check(api, call, unsafe { create(handle) }))
}

/// Maps of `n` images, `stride` elements apart.
fn tensor(
    api: &Cudnn,
    n: usize,
    channels: usize,
    [height, width]: [usize; 2],
    stride: usize,
) -> Result<Descriptor> {
    let made = made(api, "cudnnCreateTensorDescriptor", api.tensor_create, api.tensor_destroy)?;
    let [n, channels, height, width, stride, area] =
        [n, channels, height, width, stride, height * width].map(int);
    // SAFETY: the descriptor is alive.
    let code =
        unsafe { (api.tensor_set)(made.handle(), FLOAT, n, channels, height, width, stride, area, width, 1) };
    check(api, "cudnnSetTensor4dDescriptorEx", code)?;
    Ok(made)
}

fn filter(api: &Cudnn, of: &Geometry) -> Result<Descriptor> {
    let made = made(api, "cudnnCreateFilterDescriptor", api.filter_create, api.filter_destroy)?;
    let [filters, channels, height, width] =
        [of.filters, of.channels / of.groups, of.kernel[0], of.kernel[1]].map(int);
    // SAFETY: the descriptor is alive.
    let code = unsafe { (api.filter_set)(made.handle(), FLOAT, NCHW, filters, channels, height, width) };
    check(api, "cudnnSetFilter4dDescriptor", code)?;
    Ok(made)
}

fn window(api: &Cudnn, of: &Geometry, math: Math) -> Result<Descriptor> {
    let made = made(api, "cudnnCreateConvolutionDescriptor", api.window_create, api.window_destroy)?;
    let [padding, stride, dilation] = [of.padding, of.stride, of.dilation].map(|of| of.map(int));
    // SAFETY: the descriptor is alive.
    let code = unsafe {
        (api.window_set)(
            made.handle(),
            padding[0],
            padding[1],
            stride[0],
            stride[1],
            dilation[0],
            dilation[1],
            CROSS_CORRELATION,
            FLOAT,
        )
    };
    check(api, "cudnnSetConvolution2dDescriptor", code)?;
    // SAFETY: as above.
    let code = unsafe { (api.window_groups)(made.handle(), int(of.groups)) };
    check(api, "cudnnSetConvolutionGroupCount", code)?;
    let kind = if math == Math::F32 { FMA_MATH } else { TENSOR_OP_MATH };
    // SAFETY: as above.
    let code = unsafe { (api.window_math)(made.handle(), kind) };
    check(api, "cudnnSetConvolutionMathType", code)?;
    Ok(made)
}
