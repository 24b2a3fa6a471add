//! The functions of the driver, of NVRTC, of cuDNN and of cuBLASLt that are called, found when they are first needed.
#![expect(
    unsafe_code,
    reason = "functions of C libraries; every one is called in one place, with its reasons"
)]

use crate::{Error, Result};
use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// A handle of the driver's.
pub(crate) type Handle = *mut c_void;
/// An address in a device's memory.
pub(crate) type DevicePtr = u64;

macro_rules! library {
    (
        $(#[$doc:meta])* $name:ident, $what:literal, $names:expr;
        $($function:ident = $symbol:literal : fn($($argument:ty),* $(,)?) -> $result:ty;)*
    ) => {
        $(#[$doc])*
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($argument),*) -> $result,)*
            _library: Library,
        }

        impl $name {
            /// The names by which it is looked for.
            fn names() -> &'static [&'static str] {
                $names
            }

            /// Loads it by one of its names.
            fn load(name: &str) -> Result<Self> {
                // SAFETY: the initialisers of these libraries are made to be run by any program that loads them.
                let library = unsafe { Library::new(name) };
                let library = library.map_err(|error| Error::Library { what: $what, reason: not_found(name, &error) })?;
                let lacks = |symbol: &str, error: libloading::Error| Error::Library {
                    what: $what,
                    reason: format!("no function `{symbol}`, so it is too old or something else ({error})"),
                };
                Ok(Self {
                    $($function: {
                        // SAFETY: the type is the one of the C header; the library stays loaded as long as the pointer.
                        unsafe { *library.get(concat!($symbol, "\0").as_bytes()).map_err(|error| lacks($symbol, error))? }
                    },)*
                    _library: library,
                })
            }
        }
    };
}

library! {
    /// `libcuda`, which comes with the driver. All of it is there since CUDA 11.4.
    Driver, "the CUDA driver", if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    init = "cuInit": fn(c_uint) -> c_int;
    version = "cuDriverGetVersion": fn(*mut c_int) -> c_int;
    device_count = "cuDeviceGetCount": fn(*mut c_int) -> c_int;
    device_get = "cuDeviceGet": fn(*mut c_int, c_int) -> c_int;
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int) -> c_int;
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int) -> c_int;
    device_memory = "cuDeviceTotalMem_v2": fn(*mut usize, c_int) -> c_int;
    context_retain = "cuDevicePrimaryCtxRetain": fn(*mut Handle, c_int) -> c_int;
    context_release = "cuDevicePrimaryCtxRelease_v2": fn(c_int) -> c_int;
    context_set = "cuCtxSetCurrent": fn(Handle) -> c_int;
    error_name = "cuGetErrorName": fn(c_int, *mut *const c_char) -> c_int;
    alloc = "cuMemAlloc_v2": fn(*mut DevicePtr, usize) -> c_int;
    free = "cuMemFree_v2": fn(DevicePtr) -> c_int;
    host_alloc = "cuMemHostAlloc": fn(*mut *mut c_void, usize, c_uint) -> c_int;
    host_free = "cuMemFreeHost": fn(*mut c_void) -> c_int;
    copy_to_device = "cuMemcpyHtoDAsync_v2": fn(DevicePtr, *const c_void, usize, Handle) -> c_int;
    copy_to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, DevicePtr, usize, Handle) -> c_int;
    stream_create = "cuStreamCreate": fn(*mut Handle, c_uint) -> c_int;
    stream_destroy = "cuStreamDestroy_v2": fn(Handle) -> c_int;
    stream_synchronize = "cuStreamSynchronize": fn(Handle) -> c_int;
    capture_begin = "cuStreamBeginCapture_v2": fn(Handle, c_int) -> c_int;
    capture_end = "cuStreamEndCapture": fn(Handle, *mut Handle) -> c_int;
    graph_instantiate = "cuGraphInstantiateWithFlags": fn(*mut Handle, Handle, u64) -> c_int;
    graph_launch = "cuGraphLaunch": fn(Handle, Handle) -> c_int;
    graph_exec_destroy = "cuGraphExecDestroy": fn(Handle) -> c_int;
    graph_destroy = "cuGraphDestroy": fn(Handle) -> c_int;
    event_create = "cuEventCreate": fn(*mut Handle, c_uint) -> c_int;
    event_record = "cuEventRecord": fn(Handle, Handle) -> c_int;
    event_elapsed = "cuEventElapsedTime": fn(*mut f32, Handle, Handle) -> c_int;
    event_destroy = "cuEventDestroy_v2": fn(Handle) -> c_int;
    module_load = "cuModuleLoadData": fn(*mut Handle, *const c_void) -> c_int;
    module_unload = "cuModuleUnload": fn(Handle) -> c_int;
    module_function = "cuModuleGetFunction": fn(*mut Handle, Handle, *const c_char) -> c_int;
    function_attribute = "cuFuncSetAttribute": fn(Handle, c_int, c_int) -> c_int;
    launch = "cuLaunchKernel": fn(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void,
    ) -> c_int;
}

library! {
    /// The compiler of CUDA C++, which comes with the toolkit or alone. All of it is there since CUDA 11.2.
    Compiler, "NVRTC", if cfg!(windows) {
        &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
    } else {
        &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"]
    };
    version = "nvrtcVersion": fn(*mut c_int, *mut c_int) -> c_int;
    error_text = "nvrtcGetErrorString": fn(c_int) -> *const c_char;
    create = "nvrtcCreateProgram": fn(
        *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
    ) -> c_int;
    destroy = "nvrtcDestroyProgram": fn(*mut Handle) -> c_int;
    compile = "nvrtcCompileProgram": fn(Handle, c_int, *const *const c_char) -> c_int;
    binary_len = "nvrtcGetCUBINSize": fn(Handle, *mut usize) -> c_int;
    binary = "nvrtcGetCUBIN": fn(Handle, *mut c_char) -> c_int;
    log_len = "nvrtcGetProgramLogSize": fn(Handle, *mut usize) -> c_int;
    log = "nvrtcGetProgramLog": fn(Handle, *mut c_char) -> c_int;
    arch_count = "nvrtcGetNumSupportedArchs": fn(*mut c_int) -> c_int;
    archs = "nvrtcGetSupportedArchs": fn(*mut c_int) -> c_int;
}

library! {
    /// cuDNN, whose convolutions may be used. All of it is there since cuDNN 8.0; cuDNN 9 has it too and calls it deprecated.
    Cudnn, "cuDNN", if cfg!(windows) {
        &["cudnn64_9.dll", "cudnn64_8.dll"]
    } else {
        &["libcudnn.so.9", "libcudnn.so.8"]
    };
    version = "cudnnGetVersion": fn() -> usize;
    made_for = "cudnnGetCudartVersion": fn() -> usize;
    error_text = "cudnnGetErrorString": fn(c_int) -> *const c_char;
    create = "cudnnCreate": fn(*mut Handle) -> c_int;
    destroy = "cudnnDestroy": fn(Handle) -> c_int;
    set_stream = "cudnnSetStream": fn(Handle, Handle) -> c_int;
    tensor_create = "cudnnCreateTensorDescriptor": fn(*mut Handle) -> c_int;
    tensor_set = "cudnnSetTensor4dDescriptorEx": fn(
        Handle, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int,
    ) -> c_int;
    tensor_destroy = "cudnnDestroyTensorDescriptor": fn(Handle) -> c_int;
    filter_create = "cudnnCreateFilterDescriptor": fn(*mut Handle) -> c_int;
    filter_set = "cudnnSetFilter4dDescriptor": fn(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
    filter_destroy = "cudnnDestroyFilterDescriptor": fn(Handle) -> c_int;
    window_create = "cudnnCreateConvolutionDescriptor": fn(*mut Handle) -> c_int;
    window_set = "cudnnSetConvolution2dDescriptor": fn(
        Handle, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int,
    ) -> c_int;
    window_groups = "cudnnSetConvolutionGroupCount": fn(Handle, c_int) -> c_int;
    window_math = "cudnnSetConvolutionMathType": fn(Handle, c_int) -> c_int;
    window_destroy = "cudnnDestroyConvolutionDescriptor": fn(Handle) -> c_int;
    workspace = "cudnnGetConvolutionForwardWorkspaceSize": fn(
        Handle, Handle, Handle, Handle, Handle, c_int, *mut usize,
    ) -> c_int;
    forward = "cudnnConvolutionForward": fn(
        Handle, *const c_void, Handle, DevicePtr, Handle, DevicePtr, Handle, c_int, DevicePtr, usize, *const c_void, Handle, DevicePtr,
    ) -> c_int;
}

library! {
    /// cuBLASLt, whose products may be used. All of it is there since CUDA 11.4.
    CublasLt, "cuBLASLt", if cfg!(windows) {
        &["cublasLt64_13.dll", "cublasLt64_12.dll", "cublasLt64_11.dll"]
    } else {
        &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"]
    };
    version = "cublasLtGetVersion": fn() -> usize;
    made_for = "cublasLtGetCudartVersion": fn() -> usize;
    error_text = "cublasLtGetStatusName": fn(c_int) -> *const c_char;
    create = "cublasLtCreate": fn(*mut Handle) -> c_int;
    destroy = "cublasLtDestroy": fn(Handle) -> c_int;
    product_create = "cublasLtMatmulDescCreate": fn(*mut Handle, c_int, c_int) -> c_int;
    product_set = "cublasLtMatmulDescSetAttribute": fn(Handle, c_int, *const c_void, usize) -> c_int;
    product_destroy = "cublasLtMatmulDescDestroy": fn(Handle) -> c_int;
    layout_create = "cublasLtMatrixLayoutCreate": fn(*mut Handle, c_int, u64, u64, i64) -> c_int;
    layout_set = "cublasLtMatrixLayoutSetAttribute": fn(Handle, c_int, *const c_void, usize) -> c_int;
    layout_destroy = "cublasLtMatrixLayoutDestroy": fn(Handle) -> c_int;
    wish_create = "cublasLtMatmulPreferenceCreate": fn(*mut Handle) -> c_int;
    wish_set = "cublasLtMatmulPreferenceSetAttribute": fn(Handle, c_int, *const c_void, usize) -> c_int;
    wish_destroy = "cublasLtMatmulPreferenceDestroy": fn(Handle) -> c_int;
    heuristic = "cublasLtMatmulAlgoGetHeuristic": fn(
        Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int,
    ) -> c_int;
    product = "cublasLtMatmul": fn(
        Handle, Handle, *const c_void, DevicePtr, Handle, DevicePtr, Handle, *const c_void, DevicePtr, Handle, DevicePtr, Handle,
        *const [u64; 8], DevicePtr, usize, Handle,
    ) -> c_int;
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Heuristic {
    /// `cublasLtMatmulAlgo_t`.
    pub(crate) algorithm: [u64; 8],
    /// Bytes.
    pub(crate) workspace: usize,
    pub(crate) state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

// As in `cublasLt.h`; an address of a device is a pointer there. CUDA is for machines of 64 bits alone.
const _: () = assert!(
    size_of::<Handle>() < 8 || size_of::<Heuristic>() == 96 && size_of::<DevicePtr>() == size_of::<Handle>()
);

fn not_found(name: &str, error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => format!("{name}: {error}"),
    }
}

/// The first library of some names that there is; else what was said of each.
fn first<T>(what: &'static str, names: &[&str], load: impl Fn(&str) -> Result<T>) -> Result<T> {
    let mut said = Vec::new();
    for name in names {
        match load(name) {
            Ok(library) => return Ok(library),
            Err(Error::Library { reason, .. }) => said.push(reason),
            Err(error) => return Err(error),
        }
    }
    Err(Error::Library { what, reason: format!("not found ({})", said.join("; ")) })
}

impl Driver {
    /// The one of this process, loaded once. A failure is kept too.
    pub(crate) fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Driver>> = OnceLock::new();
        let load = || first("the CUDA driver", Self::names(), Self::load);
        SHARED.get_or_init(load).as_ref().map_err(Clone::clone)
    }
}

impl Compiler {
    /// One for this process, loaded once: it must be no newer than the driver, if there is one, by the first number of their
    /// versions, as the driver would not load its code. A failure is kept too.
    pub(crate) fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Compiler>> = OnceLock::new();
        let load = |name: &str| {
            let library = Self::load(name)?;
            match (library.major(), driver_major()) {
                (Some(found), Some(driver)) if found > driver => Err(Error::Library {
                    what: "NVRTC",
                    reason: format!("{name}: version {found} is newer than the driver's, {driver}"),
                }),
                _ => Ok(library),
            }
        };
        SHARED.get_or_init(|| first("NVRTC", Self::names(), load)).as_ref().map_err(Clone::clone)
    }

    fn major(&self) -> Option<c_int> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers.
        let code = unsafe { (self.version)(&raw mut major, &raw mut minor) };
        (code == 0).then_some(major)
    }
}

/// A library that is used where it is there: one for the process, made for a CUDA no newer than the driver's.
fn optional<T>(
    what: &'static str,
    names: &[&str],
    load: impl Fn(&str) -> Result<T>,
    made_for: impl Fn(&T) -> usize,
) -> Option<T> {
    let fitting = |name: &str| {
        let library = load(name)?;
        match (made_for(&library) / 1000, driver_major().and_then(|major| usize::try_from(major).ok())) {
            (found, Some(driver)) if found > driver => Err(Error::Library {
                what,
                reason: format!("{name}: made for CUDA {found}, which is newer than the driver's, {driver}"),
            }),
            _ => Ok(library),
        }
    };
    first(what, names, fitting).inspect_err(|error| tracing::debug!(%error, "not used")).ok()
}

impl Cudnn {
    /// The one of this process, if there is one.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Cudnn>> = OnceLock::new();
        // SAFETY: no pointers.
        let made_for = |library: &Self| unsafe { (library.made_for)() };
        SHARED.get_or_init(|| optional("cuDNN", Self::names(), Self::load, made_for)).as_ref()
    }
}

impl CublasLt {
    /// The one of this process, if there is one.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<CublasLt>> = OnceLock::new();
        // SAFETY: no pointers.
        let made_for = |library: &Self| unsafe { (library.made_for)() };
        SHARED.get_or_init(|| optional("cuBLASLt", Self::names(), Self::load, made_for)).as_ref()
    }
}

/// 12 for a driver that knows CUDA 12.4.
fn driver_major() -> Option<c_int> {
    let driver = Driver::shared().ok()?;
    let mut version = 0;
    // SAFETY: writes one number.
    let code = unsafe { (driver.version)(&raw mut version) };
    (code == 0).then_some(version / 1000)
}
