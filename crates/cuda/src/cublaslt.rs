//! Products of cuBLASLt's: 1x1 convolutions, and fully connected layers of many images.
#![expect(unsafe_code, reason = "calls of cuBLASLt, with handles that it gave")]

use crate::api::{CublasLt, DevicePtr, Handle, Heuristic};
use crate::descriptor::Descriptor;
use crate::device::{Buffer, Device};
use crate::kernel::Math;
use crate::pack::Geometry;
use crate::{Error, Result};
use std::ffi::{CStr, c_int, c_void};

/// `CUDA_R_32F` of `cudaDataType_t`.
const FLOAT: c_int = 0;
/// `CUBLAS_OP_T` of `cublasOperation_t`.
const TRANSPOSED: i32 = 1;
/// `CUBLASLT_MATMUL_DESC_TRANSA` of `cublasLtMatmulDescAttributes_t`, an `int32_t`.
const TRANSPOSE_A: c_int = 3;
/// `CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT` of `cublasLtMatrixLayoutAttribute_t`, an `int32_t`.
const BATCH_COUNT: c_int = 5;
/// `CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET` of `cublasLtMatrixLayoutAttribute_t`, an `int64_t` in elements.
const BATCH_OFFSET: c_int = 6;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES` of `cublasLtMatmulPreferenceAttributes_t`, a `uint64_t`.
const MAX_WORKSPACE: c_int = 1;
/// `CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{A,B,C,D}_BYTES` of `cublasLtMatmulPreferenceAttributes_t`, each a `uint32_t`.
const MIN_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
/// `CUBLAS_STATUS_NOT_SUPPORTED`.
const NOT_SUPPORTED: i32 = 15;

/// Bytes that the addresses of all matrices are a multiple of.
pub(crate) const ALIGNMENT: u32 = 16;

/// Of `cublasComputeType_t`; data are in single precision, and so are sums.
fn compute_type(math: Math) -> c_int {
    match math {
        // `CUBLAS_COMPUTE_32F`
        Math::F32 => 68,
        // `CUBLAS_COMPUTE_32F_FAST_TF32`
        Math::Tf32 => 77,
        // `CUBLAS_COMPUTE_32F_FAST_16F`
        Math::F16 => 74,
        // `CUBLAS_COMPUTE_32F_FAST_16BF`
        Math::Bf16 => 75,
    }
}

fn check(api: &CublasLt, call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the library's own string, which stays, with a zero at its end.
    let text = unsafe { CStr::from_ptr((api.error_text)(code)) }.to_string_lossy().into_owned();
    Err(Error::LibraryCall { library: "cuBLASLt", call, code, text })
}

/// A handle of cuBLASLt's.
pub(crate) struct Context {
    api: &'static CublasLt,
    device: Device,
    handle: Handle,
}

// SAFETY: a handle may be used by any thread.
unsafe impl Send for Context {}

impl Context {
    pub(crate) fn new(api: &'static CublasLt, device: &Device) -> Result<Self> {
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check(api, "cublasLtCreate", unsafe { (api.create)(&raw mut handle) })?;
        Ok(Self { api, device: device.clone(), handle })
    }

    /// 130200 for 13.2.
    pub(crate) fn version(&self) -> usize {
        // SAFETY: no pointers.
        unsafe { (self.api.version)() }
    }

    /// Describes the product of a pointwise convolution of `n` images and asks for the algorithm that is expected to be fastest, with at
    /// most `workspace` bytes; `strides` are the elements from one image to the next of source and result.
    ///
    /// Matrices are stored by columns. A map is `area x channels` and the weights `channels x filters`, for each image
    /// `result = map * weights`. Where a map is one element, all images are one product: `results = weights^T * maps`, of matrices with a
    /// column for each image.
    pub(crate) fn product(
        &self,
        math: Math,
        of: &Geometry,
        [src, dst]: [usize; 2],
        n: usize,
        workspace: usize,
    ) -> Result<Product> {
        let api = self.api;
        let operation = Descriptor::new(api.product_destroy, |handle| {
            // SAFETY: writes one handle.
            let code = unsafe { (api.product_create)(handle, compute_type(math), FLOAT) };
            check(api, "cublasLtMatmulDescCreate", code)
        })?;
        let weights = layout(api, of.channels, of.filters, of.channels)?;
        let one_product = of.area() == 1;
        let [a, b, d] = if one_product {
            let transpose = "cublasLtMatmulDescSetAttribute(TRANSA)";
            set(api, &operation, (transpose, api.product_set), TRANSPOSE_A, &TRANSPOSED)?;
            [weights, layout(api, of.channels, n, src)?, layout(api, of.filters, n, dst)?]
        } else {
            let made = [
                layout(api, of.area(), of.channels, of.area())?,
                weights,
                layout(api, of.area(), of.filters, of.area())?,
            ];
            for (layout, offset) in made.iter().zip([src, 0, dst]) {
                let [count, offset] = [n, offset].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
                let count = i32::try_from(count).unwrap_or(i32::MAX);
                let call = "cublasLtMatrixLayoutSetAttribute(BATCH_COUNT)";
                set(api, layout, (call, api.layout_set), BATCH_COUNT, &count)?;
                let call = "cublasLtMatrixLayoutSetAttribute(STRIDED_BATCH_OFFSET)";
                set(api, layout, (call, api.layout_set), BATCH_OFFSET, &offset)?;
            }
            made
        };
        let algorithm = self.algorithm([&operation, &a, &b, &d], workspace)?;
        Ok(Product { operation, a, b, d, one_product, algorithm })
    }

    fn algorithm(&self, [operation, a, b, d]: [&Descriptor; 4], workspace: usize) -> Result<Heuristic> {
        let api = self.api;
        let wish = Descriptor::new(api.wish_destroy, |handle| {
            // SAFETY: writes one handle.
            check(api, "cublasLtMatmulPreferenceCreate", unsafe { (api.wish_create)(handle) })
        })?;
        let call = "cublasLtMatmulPreferenceSetAttribute";
        set(api, &wish, (call, api.wish_set), MAX_WORKSPACE, &(workspace as u64))?;
        for attribute in MIN_ALIGNMENTS {
            set(api, &wish, (call, api.wish_set), attribute, &ALIGNMENT)?;
        }
        let (mut found, mut count) = (Heuristic::default(), 0);
        // SAFETY: writes one result at most, as it is told, and one number; all handles are alive. The result is written in place of a
        // summand, which has no factor, so that both have one layout.
        let code = unsafe {
            (api.heuristic)(
                self.handle,
                operation.handle(),
                a.handle(),
                b.handle(),
                d.handle(),
                d.handle(),
                wish.handle(),
                1,
                &raw mut found,
                &raw mut count,
            )
        };
        let call = "cublasLtMatmulAlgoGetHeuristic";
        check(api, call, code)?;
        check(api, call, if count < 1 { NOT_SUPPORTED } else { found.state })?;
        Ok(found)
    }

    /// Orders a product in a stream.
    ///
    /// # Safety
    /// All that is described lies in buffers that stay until the stream was waited for, and nothing else uses the workspace meanwhile
    /// but what is in the same stream.
    pub(crate) unsafe fn multiply(
        &self,
        of: &Product,
        [src, weights, dst]: [DevicePtr; 3],
        workspace: &Buffer,
        stream: Handle,
    ) -> Result<()> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let [a, b] = if of.one_product { [weights, src] } else { [src, weights] };
        // SAFETY: the factors are read before it returns; the rest is the caller's word.
        let code = unsafe {
            (self.api.product)(
                self.handle,
                of.operation.handle(),
                (&raw const one).cast(),
                a,
                of.a.handle(),
                b,
                of.b.handle(),
                (&raw const zero).cast(),
                dst,
                of.d.handle(),
                dst,
                of.d.handle(),
                &raw const of.algorithm.algorithm,
                workspace.address(),
                workspace.len(),
                stream,
            )
        };
        check(self.api, "cublasLtMatmul", code)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created by the library and given back once.
        let destroyed = self
            .device
            .bind()
            .and_then(|()| check(self.api, "cublasLtDestroy", unsafe { (self.api.destroy)(self.handle) }));
        if let Err(error) = destroyed {
            tracing::warn!(%error, "while giving back");
        }
    }
}

/// A product of a number of images as cuBLASLt has it described, and its algorithm.
pub(crate) struct Product {
    operation: Descriptor,
    a: Descriptor,
    b: Descriptor,
    d: Descriptor,
    one_product: bool,
    algorithm: Heuristic,
}

impl Product {
    /// Bytes of memory that it needs beside source, weights and result.
    pub(crate) fn workspace(&self) -> usize {
        self.algorithm.workspace
    }
}

/// A function that sets an attribute.
type Set = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> c_int;

/// Sets an attribute of a description, whose type is `T`.
fn set<T: Copy>(
    api: &CublasLt,
    of: &Descriptor,
    (call, set): (&'static str, Set),
    attribute: c_int,
    value: &T,
) -> Result<()> {
    // SAFETY: reads as many bytes as it is told; the descriptor is alive.
    let code = unsafe { set(of.handle(), attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) };
    check(api, call, code)
}

/// A matrix stored by columns, each `leading` elements behind the one before it.
fn layout(api: &CublasLt, rows: usize, columns: usize, leading: usize) -> Result<Descriptor> {
    let leading = i64::try_from(leading).unwrap_or(i64::MAX);
    Descriptor::new(api.layout_destroy, |handle| {
        // SAFETY: writes one handle.
        let code = unsafe { (api.layout_create)(handle, FLOAT, rows as u64, columns as u64, leading) };
        check(api, "cublasLtMatrixLayoutCreate", code)
    })
}
