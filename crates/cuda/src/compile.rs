//! From text to machine code, once a device.
#![expect(unsafe_code, reason = "calls of NVRTC, with handles that it gave")]

use crate::api::{Compiler, Handle};
use crate::device::About;
use crate::kernel::Set;
use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The text of the kernels of a set.
#[must_use]
pub fn text(set: Set) -> String {
    let (prelude, conv) = (include_str!("kernels/prelude.cuh"), include_str!("kernels/conv.cu"));
    let (pair, conv_mma) = (include_str!("kernels/pair.cu"), include_str!("kernels/conv_mma.cu"));
    let (linear, maps) = (include_str!("kernels/linear.cu"), include_str!("kernels/maps.cu"));
    match set {
        Set::Run => [prelude, conv, pair, conv_mma, linear, maps].join("\n"),
        Set::Learn => {
            let (learn, around) = (include_str!("kernels/learn.cu"), include_str!("kernels/learn3x3.cu"));
            let around_mma = include_str!("kernels/learn3x3_mma.cu");
            [prelude, conv, maps, learn, around, around_mma].join("\n")
        }
    }
}

/// Where compiled kernels are kept if nothing else is said: `cofilter` in the user's folder for such things.
#[must_use]
pub fn default_cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?.join("cofilter"))
}

/// Machine code and what the compiler said about it.
pub struct Compiled {
    /// A whole cubin.
    pub binary: Vec<u8>,
    /// Registers, shared memory and spills of each kernel, in the words of `ptxas -v`.
    pub log: String,
}

/// Machine code of all kernels for a device, and where it is to be kept.
pub(crate) struct Code {
    pub(crate) binary: Vec<u8>,
    /// If it is not there already.
    keep: Option<PathBuf>,
}

/// The kernels for a device, as they were kept in a folder.
pub(crate) fn kept(set: Set, about: &About, cache: Option<&Path>) -> Option<Code> {
    let path = cache?.join(file_name(&text(set), about.capability));
    Some(Code { binary: read(&path)?, keep: None })
}

/// The kernels for a device, compiled.
pub(crate) fn compiled(set: Set, about: &About, cache: Option<&Path>) -> Result<Code> {
    let text = text(set);
    let arch = arch_for(about)?;
    let start = std::time::Instant::now();
    let Compiled { binary, .. } = compile(&text, arch)?;
    tracing::debug!(arch, seconds = start.elapsed().as_secs_f64(), "compiled the kernels");
    Ok(Code { binary, keep: cache.map(|folder| folder.join(file_name(&text, about.capability))) })
}

impl Code {
    /// Keeps it, once it is known to work. A failure is told and does no harm.
    pub(crate) fn keep(&self) {
        if let Some(path) = &self.keep
            && let Err(error) = write(path, &self.binary)
        {
            tracing::warn!(%error, path = %path.display(), "compiled kernels are not kept");
        }
    }
}

/// Architectures that the compiler of this machine knows: 80 for `sm_80`.
///
/// # Errors
/// [`Error::Library`] if there is none.
pub fn architectures() -> Result<Vec<u32>> {
    let api = Compiler::shared()?;
    let mut count = 0;
    // SAFETY: writes one number.
    check(api, "counting the architectures", unsafe { (api.arch_count)(&raw mut count) })?;
    let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: writes as many numbers as it said.
    check(api, "listing the architectures", unsafe { (api.archs)(archs.as_mut_ptr()) })?;
    Ok(archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
}

/// The newest architecture that the device runs and the compiler knows: code for 8.0 runs on 8.6.
fn arch_for(about: &About) -> Result<u32> {
    let runs = |arch: &u32| *arch <= about.capability && arch / 10 == about.capability / 10;
    architectures()?.into_iter().filter(runs).max().ok_or_else(|| Error::Compile {
        arch: format!("sm_{}", about.capability),
        log: format!("the compiler of this machine knows no code that {} runs", about.name),
    })
}

/// Compiles a text for an architecture, 80 for `sm_80`.
///
/// # Errors
/// [`Error::Library`] without NVRTC, [`Error::Compile`] with what it says.
pub fn compile(text: &str, arch: u32) -> Result<Compiled> {
    let api = Compiler::shared()?;
    let text = CString::new(text)
        .map_err(|_| Error::Compile { arch: format!("sm_{arch}"), log: "the text has a zero byte".into() })?;
    let mut program = Program { api, handle: std::ptr::null_mut() };
    // SAFETY: writes one handle; the text outlives the program, and there are no headers.
    let code = unsafe {
        (api.create)(
            &raw mut program.handle,
            text.as_ptr(),
            c"cofilter.cu".as_ptr(),
            0,
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    check(api, "a program", code)?;
    let options =
        [format!("--gpu-architecture=sm_{arch}"), "--std=c++17".into(), "--ptxas-options=-v".into()]
            .map(|option| CString::new(option).unwrap_or_default());
    let pointers = options.each_ref().map(|option| option.as_ptr());
    // SAFETY: as many strings as it is told, each with a zero at its end.
    let compiled = unsafe { (api.compile)(program.handle, 3, pointers.as_ptr()) };
    let log = program.log();
    if compiled != 0 {
        return Err(Error::Compile { arch: format!("sm_{arch}"), log });
    }
    let mut len = 0;
    // SAFETY: writes one number.
    check(api, "the length of a binary", unsafe { (api.binary_len)(program.handle, &raw mut len) })?;
    let mut binary = vec![0_u8; len];
    // SAFETY: writes as many bytes as it said.
    check(api, "a binary", unsafe { (api.binary)(program.handle, binary.as_mut_ptr().cast()) })?;
    Ok(Compiled { binary, log })
}

struct Program {
    api: &'static Compiler,
    handle: Handle,
}

impl Program {
    fn log(&self) -> String {
        let mut len = 0;
        // SAFETY: writes one number.
        if unsafe { (self.api.log_len)(self.handle, &raw mut len) } != 0 {
            return "no log".into();
        }
        let mut bytes = vec![0_u8; len];
        // SAFETY: writes as many bytes as it said.
        if unsafe { (self.api.log)(self.handle, bytes.as_mut_ptr().cast()) } != 0 {
            return "no log".into();
        }
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by the compiler and given back once.
        unsafe { (self.api.destroy)(&raw mut self.handle) };
    }
}

fn check(api: &Compiler, what: &str, code: i32) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the compiler's own string, which stays, with a zero at its end.
    let text = unsafe { CStr::from_ptr((api.error_text)(code)) }.to_string_lossy().into_owned();
    Err(Error::Library { what: "NVRTC", reason: format!("{what}: {text} ({code})") })
}

/// The file of the times that were measured on a device with these kernels.
pub(crate) fn times_name(about: &About) -> String {
    let name: String = about.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("times-{}-{name}.json", short_hash(&text(Set::Run)))
}

fn file_name(text: &str, capability: u32) -> String {
    format!("kernels-{}-{capability}.cubin", short_hash(text))
}

fn short_hash(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What was kept: the SHA-256 of the rest, and the rest. Nothing if it is not whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (hash, binary) = bytes.split_at_checked(32)?;
    let whole = Sha256::digest(binary).as_slice() == hash;
    if !whole {
        tracing::warn!(path = %path.display(), "kept kernels are damaged; they are compiled again");
    }
    whole.then(|| binary.to_vec())
}

/// Keeps a binary behind its hash.
fn write(path: &Path, binary: &[u8]) -> std::io::Result<()> {
    write_whole(path, &[Sha256::digest(binary).as_slice(), binary].concat())
}

/// Writes a file, all of it or nothing.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join(file_name("text", 80));
        assert!(read(&path).is_none());
        write(&path, b"machine code").unwrap();
        assert_eq!(read(&path).unwrap(), b"machine code");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.pop();
        std::fs::write(&path, bytes).unwrap();
        assert!(read(&path).is_none(), "damaged");
        assert_ne!(file_name("text", 80), file_name("text", 90));
        assert_ne!(file_name("text", 80), file_name("texts", 80));
    }

    #[test]
    fn every_kernel_is_in_the_text() {
        for set in [Set::Run, Set::Learn] {
            let text = text(set);
            for kernel in crate::Kernel::of(set) {
                let name = kernel.name();
                let by_macro = ["conv_", "conv1x1_", "learn_3x3_", "learn_filter_3x3_", "learn_mma_"]
                    .iter()
                    .any(|start| name.starts_with(start));
                let found = text.contains(&format!("KERNEL({name},"));
                assert!(found || by_macro, "{name}");
            }
        }
    }
}
