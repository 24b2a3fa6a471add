//! The controls of the stand-in for the driver.
#![expect(unsafe_code, reason = "functions of C libraries of our own")]

use anyhow::{Context as _, Result};
use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int, c_longlong};

/// Whether the loader finds a library.
pub(crate) fn loads(name: &str) -> bool {
    // SAFETY: libraries of CUDA's, whose initialisers are made to be run by any program that loads them.
    unsafe { Library::new(name) }.is_ok()
}

/// The stand-in, as this process has it loaded.
pub(crate) struct Standin {
    driver: Library,
}

impl Standin {
    /// Finds it where the loader finds the library that it stands for.
    pub(crate) fn open() -> Result<Self> {
        let name = "libcuda.so.1";
        // SAFETY: a library of our own without initialisers.
        let driver = unsafe { Library::new(name) };
        let driver = driver.with_context(|| format!("{name}: start this by `cargo xtask cuda-check`"))?;
        let standin = Self { driver };
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

    /// Sets `memory`, `devices`, `capability`, `backwards`, the line of a `deleted` barrier (0: none), the version of every `library`,
    /// `library_us`, the time that a library takes by a clock of the stand-in's own; `repair` undoes what failed.
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
}
