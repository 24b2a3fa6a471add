#![expect(unsafe_code, reason = "calls of libraries, with handles that they gave")]

use crate::Result;
use crate::api::Handle;
use std::ffi::c_int;

/// What describes something to cuDNN or cuBLASLt: memory of the host alone.
pub(crate) struct Descriptor {
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

// SAFETY: it is used by its owner alone.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// The one that `create` writes, given back by `destroy` of the same library.
    pub(crate) fn new(
        destroy: unsafe extern "C" fn(Handle) -> c_int,
        create: impl FnOnce(*mut Handle) -> Result<()>,
    ) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        create(&raw mut handle)?;
        Ok(Self { handle, destroy })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created by the library and given back once.
        let code = unsafe { (self.destroy)(self.handle) };
        if code != 0 {
            tracing::warn!(code, "while giving back a description");
        }
    }
}
