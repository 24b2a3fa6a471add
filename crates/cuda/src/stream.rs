#![expect(unsafe_code, reason = "calls of the driver, with handles that it gave")]

use crate::api::Handle;
use crate::device::{Buffer, Device, Pinned};
use crate::module::Function;
use crate::{Error, Result};
use std::ffi::c_void;

/// Work in order.
pub(crate) struct Stream {
    device: Device,
    handle: Handle,
}

// SAFETY: a stream may be used by any thread whose context is current; `bind` sees to that.
unsafe impl Send for Stream {}

/// `CU_STREAM_NON_BLOCKING`: it does not wait for what others do.
const NON_BLOCKING: u32 = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
const THREAD_LOCAL: i32 = 1;

impl Stream {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        device.check("cuStreamCreate", unsafe {
            (device.api().stream_create)(&raw mut handle, NON_BLOCKING)
        })?;
        Ok(Self { device: device.clone(), handle })
    }

    /// For libraries that order work in it.
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    /// Copies words to the beginning of a buffer and waits.
    pub(crate) fn upload(&self, to: &Buffer, words: &[u32]) -> Result<()> {
        self.upload_at(to, 0, words)
    }

    /// As `upload`, to a byte of a buffer.
    pub(crate) fn upload_at(&self, to: &Buffer, at: usize, words: &[u32]) -> Result<()> {
        let bytes = size_of_val(words);
        check_len("words", bytes, to.len().saturating_sub(at))?;
        self.device.bind()?;
        if bytes > 0 {
            // SAFETY: both have as many bytes, and both stay until the copy was waited for.
            let code = unsafe {
                (self.device.api().copy_to_device)(
                    to.address() + at as u64,
                    words.as_ptr().cast(),
                    bytes,
                    self.handle,
                )
            };
            self.device.check("cuMemcpyHtoDAsync", code)?;
        }
        self.synchronize()
    }

    /// Orders a copy of the first `len` numbers; the caller keeps both until it waited.
    pub(crate) fn copy_to_device(&self, to: &Buffer, from: &Pinned, len: usize) -> Result<()> {
        check_len("images", len * size_of::<f32>(), to.len().min(size_of_val(from.as_slice())))?;
        // SAFETY: both have as many bytes.
        let code = unsafe {
            (self.device.api().copy_to_device)(
                to.address(),
                from.pointer(),
                len * size_of::<f32>(),
                self.handle,
            )
        };
        self.device.check("cuMemcpyHtoDAsync", code)
    }

    /// Orders a copy of `len` numbers from a byte of a buffer; the caller keeps both until it waited.
    pub(crate) fn copy_to_host(&self, to: &Pinned, from: &Buffer, at: usize, len: usize) -> Result<()> {
        let bytes = len * size_of::<f32>();
        check_len("logits", bytes, from.len().saturating_sub(at).min(size_of_val(to.as_slice())))?;
        // SAFETY: both have as many bytes.
        let code = unsafe {
            (self.device.api().copy_to_host)(to.pointer(), from.address() + at as u64, bytes, self.handle)
        };
        self.device.check("cuMemcpyDtoHAsync", code)
    }

    /// Orders a kernel: one struct by value, a grid of blocks of as many threads as it was made for.
    ///
    /// # Safety
    /// `argument` is the struct of the kernel, and all that it reads and writes lies in buffers that stay until the stream was
    /// waited for.
    pub(crate) unsafe fn launch<T: Copy>(
        &self,
        function: &Function,
        argument: &T,
        grid: [u32; 3],
        shared_bytes: u32,
    ) -> Result<()> {
        let mut arguments = [std::ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let [x, y, z] = grid;
        // SAFETY: the driver copies the struct before it returns; the rest is the caller's word.
        let code = unsafe {
            (self.device.api().launch)(
                function.handle(),
                x,
                y,
                z,
                function.threads(),
                1,
                1,
                shared_bytes,
                self.handle,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.device.check("cuLaunchKernel", code)
    }

    /// Makes the context current in this thread, as what is ordered asks.
    pub(crate) fn bind(&self) -> Result<()> {
        self.device.bind()
    }

    /// Waits for all that was ordered.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream is alive.
        self.device
            .check("cuStreamSynchronize", unsafe { (self.device.api().stream_synchronize)(self.handle) })
    }

    /// What `order` orders, as a graph to be run again and again, instead of being run now.
    pub(crate) fn capture(&self, order: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let api = self.device.api();
        self.device.bind()?;
        // SAFETY: the stream is alive, and nobody else orders anything in it.
        let begun = unsafe { (api.capture_begin)(self.handle, THREAD_LOCAL) };
        self.device.check("cuStreamBeginCapture", begun)?;
        let ordered = order();
        let mut graph =
            Graph { device: self.device.clone(), graph: std::ptr::null_mut(), ready: std::ptr::null_mut() };
        // The capture ends, whatever was ordered.
        // SAFETY: writes one handle.
        let ended = self
            .device
            .check("cuStreamEndCapture", unsafe { (api.capture_end)(self.handle, &raw mut graph.graph) });
        ordered?;
        ended?;
        // SAFETY: writes one handle; the graph is alive.
        let code = unsafe { (api.graph_instantiate)(&raw mut graph.ready, graph.graph, 0) };
        self.device.check("cuGraphInstantiate", code)?;
        Ok(graph)
    }

    /// Orders a graph.
    pub(crate) fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both are alive, and a graph belongs to one session.
        self.device
            .check("cuGraphLaunch", unsafe { (self.device.api().graph_launch)(graph.ready, self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by the driver and given back once.
        self.device.give_back("cuStreamDestroy", |api| unsafe { (api.stream_destroy)(self.handle) });
    }
}

fn check_len(what: &str, found: usize, most: usize) -> Result<()> {
    match found <= most {
        true => Ok(()),
        false => Err(Error::TooLarge { what: format!("bytes of {what} to copy"), found, most }),
    }
}

/// Work that was captured, ready to run.
pub(crate) struct Graph {
    device: Device,
    graph: Handle,
    ready: Handle,
}

// SAFETY: it is used by its owner alone.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.ready.is_null() {
            // SAFETY: made ready by the driver and given back once.
            self.device
                .give_back("cuGraphExecDestroy", |api| unsafe { (api.graph_exec_destroy)(self.ready) });
        }
        if !self.graph.is_null() {
            // SAFETY: captured by the driver and given back once.
            self.device.give_back("cuGraphDestroy", |api| unsafe { (api.graph_destroy)(self.graph) });
        }
    }
}

/// A moment in a stream.
pub(crate) struct Event {
    device: Device,
    handle: Handle,
}

impl Event {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        device.check("cuEventCreate", unsafe { (device.api().event_create)(&raw mut handle, 0) })?;
        Ok(Self { device: device.clone(), handle })
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        self.device
            .check("cuEventRecord", unsafe { (self.device.api().event_record)(self.handle, stream.handle) })
    }

    /// Microseconds from another event to this one; both were waited for.
    pub(crate) fn since_us(&self, earlier: &Self) -> Result<f64> {
        let mut ms = 0.0;
        // SAFETY: writes one number; both are alive.
        let code = unsafe { (self.device.api().event_elapsed)(&raw mut ms, earlier.handle, self.handle) };
        self.device.check("cuEventElapsedTime", code)?;
        Ok(f64::from(ms) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by the driver and given back once.
        self.device.give_back("cuEventDestroy", |api| unsafe { (api.event_destroy)(self.handle) });
    }
}
