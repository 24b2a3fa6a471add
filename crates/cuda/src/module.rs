#![expect(unsafe_code, reason = "calls of the driver, with handles that it gave")]

use crate::api::Handle;
use crate::compile;
use crate::device::{About, Device};
use crate::kernel::{Kernel, Set};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The kernels, compiled for a device and loaded.
pub(crate) struct Module {
    device: Device,
    handle: Handle,
    functions: BTreeMap<Kernel, Function>,
}

// SAFETY: handles that are only read once the module is loaded.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module that is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    handle: Handle,
    threads: u32,
}

// SAFETY: as the module's handles; who launches has the module alive.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn threads(&self) -> u32 {
        self.threads
    }
}

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: i32 = 8;

/// The call that refuses code.
const LOAD: &str = "cuModuleLoadData";

/// Modules that are loaded, by their kernels and the number of the device: one for all that use them.
static LOADED: Mutex<Vec<(Set, usize, Weak<Module>)>> = Mutex::new(Vec::new());

impl Module {
    /// The kernels of a set on a device, loaded now if nobody has them.
    pub(crate) fn shared(set: Set, device: &Device, cache: Option<&Path>) -> Result<Arc<Self>> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(.., module)| module.strong_count() > 0);
        let ordinal = device.about().ordinal;
        let found = loaded.iter().find(|(of, number, _)| (*of, *number) == (set, ordinal));
        if let Some(module) = found.and_then(|(.., module)| module.upgrade()) {
            return Ok(module);
        }
        let module = Arc::new(Self::load(set, device, cache)?);
        loaded.push((set, ordinal, Arc::downgrade(&module)));
        Ok(module)
    }

    /// Takes the kernels for a device from the folder where they were kept, or compiles them.
    fn load(set: Set, device: &Device, cache: Option<&Path>) -> Result<Self> {
        if let Some(code) = compile::kept(set, device.about(), cache) {
            match Self::from(set, device, &code.binary) {
                // Of another compiler than this driver's, perhaps.
                Err(error @ Error::Driver { call: LOAD, .. }) => {
                    tracing::warn!(%error, "kept kernels cannot be loaded; they are compiled again");
                }
                module => return module,
            }
        }
        let code = compile::compiled(set, device.about(), cache)?;
        let module = Self::from(set, device, &code.binary)?;
        code.keep();
        Ok(module)
    }

    fn from(set: Set, device: &Device, binary: &[u8]) -> Result<Self> {
        device.bind()?;
        let mut module =
            Self { device: device.clone(), handle: std::ptr::null_mut(), functions: BTreeMap::new() };
        // SAFETY: a whole binary, which the driver copies.
        let code = unsafe { (device.api().module_load)(&raw mut module.handle, binary.as_ptr().cast()) };
        device.check(LOAD, code)?;
        for kernel in Kernel::of(set).filter(|kernel| kernel.needs() <= device.about().capability) {
            let function = module.find(kernel)?;
            module.functions.insert(kernel, function);
        }
        Ok(module)
    }

    fn find(&self, kernel: Kernel) -> Result<Function> {
        let api = self.device.api();
        let mut handle = std::ptr::null_mut();
        let name = CString::new(kernel.name()).unwrap_or_default();
        // SAFETY: writes one handle; the name ends with a zero.
        let code = unsafe { (api.module_function)(&raw mut handle, self.handle, name.as_ptr()) };
        self.device.check("cuModuleGetFunction", code)?;
        let most = self.device.about().shared_memory;
        if kernel.may_take_much_shared_memory() && most > 0 {
            let most = i32::try_from(most).unwrap_or(i32::MAX);
            // SAFETY: the function is alive.
            let code = unsafe { (api.function_attribute)(handle, MAX_DYNAMIC_SHARED, most) };
            self.device.check("cuFuncSetAttribute", code)?;
        }
        Ok(Function { handle, threads: kernel.threads() })
    }

    pub(crate) fn function(&self, kernel: Kernel) -> Result<&Function> {
        let About { name, capability, .. } = self.device.about();
        self.functions.get(&kernel).ok_or_else(|| Error::Capability {
            device: name.clone(),
            what: kernel.name(),
            found: *capability,
            needed: kernel.needs(),
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        // SAFETY: loaded by the driver and given back once.
        self.device.give_back("cuModuleUnload", |api| unsafe { (api.module_unload)(self.handle) });
    }
}
