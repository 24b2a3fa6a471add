#![expect(unsafe_code, reason = "calls of the driver, with handles that it gave")]

use crate::api::{DevicePtr, Driver, Handle};
use crate::error::OUT_OF_MEMORY;
use crate::{Error, Result};
use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

/// A CUDA device, opened: its driver and its primary context. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Context>);

struct Context {
    api: &'static Driver,
    handle: Handle,
    device: c_int,
    about: About,
}

// SAFETY: a context may be current in any number of threads at the same time; the handle is never changed.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Number among the devices of the machine, from 0.
    pub ordinal: usize,
    /// The driver's name for it.
    pub name: String,
    /// Ten times its compute capability: 80 for 8.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of its memory.
    pub memory: usize,
    /// Most bytes of shared memory of a block.
    pub shared_memory: usize,
}

/// `CU_DEVICE_ATTRIBUTE_*`.
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY: [c_int; 2] = [75, 76];
const SHARED_MEMORY: c_int = 97;

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::Library`] without a driver, [`Error::NoDevice`] if there are not as many, [`Error::Driver`] for what it says.
    pub fn open(ordinal: usize) -> Result<Self> {
        let api = Driver::shared()?;
        let mut count = 0;
        // SAFETY: no pointers.
        let code = unsafe { (api.init)(0) };
        if code != NO_DEVICE {
            check(api, "cuInit", code)?;
            // SAFETY: writes one number.
            check(api, "cuDeviceGetCount", unsafe { (api.device_count)(&raw mut count) })?;
        }
        let found = usize::try_from(count).unwrap_or(0);
        let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < found);
        let number = number.ok_or(Error::NoDevice { ordinal, found })?;
        let mut device = 0;
        // SAFETY: writes one number.
        check(api, "cuDeviceGet", unsafe { (api.device_get)(&raw mut device, number) })?;
        let about = About {
            ordinal,
            name: name(api, device)?,
            capability: u32::try_from(
                10 * attribute(api, device, CAPABILITY[0])? + attribute(api, device, CAPABILITY[1])?,
            )
            .unwrap_or(0),
            multiprocessors: usize::try_from(attribute(api, device, MULTIPROCESSORS)?).unwrap_or(1).max(1),
            memory: {
                let mut bytes = 0;
                // SAFETY: writes one number.
                check(api, "cuDeviceTotalMem", unsafe { (api.device_memory)(&raw mut bytes, device) })?;
                bytes
            },
            shared_memory: usize::try_from(attribute(api, device, SHARED_MEMORY)?).unwrap_or(0),
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check(api, "cuDevicePrimaryCtxRetain", unsafe { (api.context_retain)(&raw mut handle, device) })?;
        let device = Self(Arc::new(Context { api, handle, device, about }));
        device.bind()?;
        Ok(device)
    }

    /// What it is.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.0.about
    }

    pub(crate) fn api(&self) -> &'static Driver {
        self.0.api
    }

    /// Makes the context current in this thread, as every call asks.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive as long as this.
        self.check("cuCtxSetCurrent", unsafe { (self.api().context_set)(self.0.handle) })
    }

    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        check(self.api(), call, code)
    }

    /// Gives something back to the driver; a failure has no other place to be told.
    pub(crate) fn give_back(&self, call: &'static str, free: impl FnOnce(&Driver) -> c_int) {
        let bound = self.bind();
        let freed = self.check(call, free(self.api()));
        if let Err(error) = bound.and(freed) {
            tracing::warn!(%error, device = self.about().name, "while giving back");
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.about().fmt(f)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, when it was opened.
        let code = unsafe { (self.api.context_release)(self.device) };
        if let Err(error) = check(self.api, "cuDevicePrimaryCtxRelease", code) {
            tracing::warn!(%error, "while giving back a device");
        }
    }
}

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

fn check(api: &Driver, call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: writes one pointer, to a string that stays.
    let known = unsafe { (api.error_name)(code, &raw mut text) } == 0 && !text.is_null();
    let name = match known {
        // SAFETY: the driver's own string, with a zero at its end.
        true => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        false => "an error without a name".to_owned(),
    };
    Err(Error::Driver { call, code, name })
}

fn attribute(api: &Driver, device: c_int, attribute: c_int) -> Result<c_int> {
    let mut value = 0;
    // SAFETY: writes one number.
    check(api, "cuDeviceGetAttribute", unsafe { (api.device_attribute)(&raw mut value, attribute, device) })?;
    Ok(value)
}

fn name(api: &Driver, device: c_int) -> Result<String> {
    let mut bytes = [0_u8; 256];
    // SAFETY: writes no more than the length that it is told.
    check(api, "cuDeviceGetName", unsafe { (api.device_name)(bytes.as_mut_ptr().cast(), 255, device) })?;
    Ok(CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
}

/// Memory of a device.
pub(crate) struct Buffer {
    device: Device,
    at: DevicePtr,
    len: usize,
}

impl Buffer {
    /// Bytes of a device's memory, at least one.
    pub(crate) fn new(device: &Device, what: &'static str, len: usize) -> Result<Self> {
        device.bind()?;
        let (mut at, len) = (0, len.max(1));
        // SAFETY: writes one address.
        let code = unsafe { (device.api().alloc)(&raw mut at, len) };
        if code == OUT_OF_MEMORY {
            let About { name, memory, .. } = device.about();
            return Err(Error::Memory { device: name.clone(), what, bytes: len, total: *memory });
        }
        device.check("cuMemAlloc", code)?;
        Ok(Self { device: device.clone(), at, len })
    }

    /// Its address.
    pub(crate) fn address(&self) -> DevicePtr {
        self.at
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by the driver and given back once; it waits for what still uses it.
        self.device.give_back("cuMemFree", |api| unsafe { (api.free)(self.at) });
    }
}

/// Numbers in memory of the host that the device reads and writes by itself.
pub(crate) struct Pinned {
    device: Device,
    at: *mut f32,
    len: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `len` zeros.
    pub(crate) fn new(device: &Device, what: &'static str, len: usize) -> Result<Self> {
        device.bind()?;
        let mut at: *mut c_void = std::ptr::null_mut();
        let bytes = len.max(1).saturating_mul(size_of::<f32>());
        // SAFETY: writes one address.
        let code = unsafe { (device.api().host_alloc)(&raw mut at, bytes, 0) };
        if code == OUT_OF_MEMORY {
            return Err(Error::HostMemory { what, bytes });
        }
        device.check("cuMemHostAlloc", code)?;
        // SAFETY: as many bytes were allocated, and zeros are numbers.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), at: at.cast(), len })
    }

    /// Its numbers. Nothing may be under way that writes them.
    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: allocated with this length and written at once.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// As `as_slice`, nor may anything be under way that reads them.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    pub(crate) fn pointer(&self) -> *mut c_void {
        self.at.cast()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by the driver and given back once.
        self.device.give_back("cuMemFreeHost", |api| unsafe { (api.host_free)(self.pointer()) });
    }
}
