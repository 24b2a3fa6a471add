//! The controls of the stand-ins for the driver and for NVRTC.
#![expect(unsafe_code, reason = "functions of C libraries of our own")]

use anyhow::{Context as _, Result};
use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int, c_longlong};

/// Whether the loader finds a library.
pub(crate) fn loads(name: &str) -> bool {
    // SAFETY: libraries of CUDA's, whose initialisers are made to be run by any program that loads them.
    unsafe { Library::new(name) }.is_ok()
}

/// Both stand-ins, as this process has them loaded.
pub(crate) struct Standin {
    driver: Library,
    compiler: Library,
}

impl Standin {
    /// Finds them where the loader finds the libraries that they stand for.
    pub(crate) fn open() -> Result<Self> {
        let open = |name: &str| {
            // SAFETY: libraries of our own without initialisers.
            let library = unsafe { Library::new(name) };
            library.with_context(|| format!("{name}: start this by `cargo xtask cuda-check`"))
        };
        let standin = Self { driver: open("libcuda.so.1")?, compiler: open("libnvrtc.so.13")? };
        standin.get("live").context("libcuda.so.1 is not the stand-in")?;
        Ok(standin)
    }

    /// What it counted: `live`, `memory`, or how often a function of the driver or of a library was called.
    pub(crate) fn get(&self, what: &str) -> Result<i64> {
        let name = CString::new(what)?;
        // SAFETY: the function of `driver.cpp`, with its type.
        let get: Symbol<'_, unsafe extern "C" fn(*const c_char) -> c_longlong> =
            unsafe { self.driver.get(b"standin_get\0")? };
        // SAFETY: a string with a zero at its end.
        Ok(unsafe { get(name.as_ptr()) })
    }

    /// Sets `memory`, `devices`, `capability`, `backwards`, the version of every `library`, `library_us`, the time that a library takes by
    /// a clock of the stand-in's own; `repair` undoes what failed.
    pub(crate) fn set(&self, what: &str, value: i64) -> Result<()> {
        let name = CString::new(what)?;
        // SAFETY: the function of `driver.cpp`, with its type.
        let set: Symbol<'_, unsafe extern "C" fn(*const c_char, c_longlong)> =
            unsafe { self.driver.get(b"standin_set\0")? };
        // SAFETY: a string with a zero at its end.
        unsafe { set(name.as_ptr(), value) };
        Ok(())
    }

    /// Lets a function of the driver, or of a library, fail until it is repaired, after so many more calls that go well.
    pub(crate) fn fail(&self, call: &str, after: c_int, code: c_int) -> Result<()> {
        let name = CString::new(call)?;
        // SAFETY: the function of `driver.cpp`, with its type.
        let fail: Symbol<'_, unsafe extern "C" fn(*const c_char, c_int, c_int)> =
            unsafe { self.driver.get(b"standin_fail\0")? };
        // SAFETY: a string with a zero at its end.
        unsafe { fail(name.as_ptr(), after, code) };
        Ok(())
    }

    /// Leaves a barrier out of what is compiled from now on; none if nothing is said.
    pub(crate) fn delete_barrier(&self, number: Option<c_int>) -> Result<()> {
        // SAFETY: the function of `nvrtc.cpp`, with its type.
        let delete: Symbol<'_, unsafe extern "C" fn(c_int)> =
            unsafe { self.compiler.get(b"standin_delete_barrier\0")? };
        // SAFETY: no pointers.
        unsafe { delete(number.unwrap_or(-1)) };
        Ok(())
    }
}
