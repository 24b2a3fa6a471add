//! Execution on a CUDA device: the program as calls of kernels, one arena, one graph for each number of images.
//!
//! Nothing of CUDA is needed to build or to start a program with this backend. [`Plan::compile`](crate::Plan::compile) opens the driver
//! and, if there is no machine code for the device in the [cache](Settings::cache), the compiler.

mod calls;
mod units;

use crate::backend::{Executable, Memory, State, StepInfo};
use crate::{Error, Options, Program, Result};
pub use cofilter_cuda::{About, Device, Error as DeviceError, Libraries, Math};
use cofilter_cuda::{Sequence, Session, Tuner, compile};
use std::path::PathBuf;
use std::sync::Arc;

/// Which device, and how it computes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of the device, from 0.
    pub device: usize,
    /// How convolutions, and fully connected layers of large batches, multiply. [`Math::error`] says what each product may lose; a
    /// device without such tensor cores uses [`Math::F32`].
    pub math: Math,
    /// Whether low-rank pairs may be one call with their middle in shared memory.
    pub pairs: Pairs,
    /// Whether the kernels of convolutions and pairs are chosen by their times on this device, which are measured when a layer is
    /// compiled there for the first time and kept in the `cache`; else by an estimate. Results of different kernels differ in
    /// their rounding.
    pub measure: bool,
    /// Whether convolutions, and fully connected layers of large batches, may be computed by cuDNN or cuBLASLt where the machine has them.
    /// They are timed beside our kernels, so only with `measure`. Their results may differ in their rounding with the number of images.
    pub libraries: Libraries,
    /// Where machine code and times are kept from one start to the next; both are made at every start without.
    pub cache: Option<PathBuf>,
}

/// When a low-rank pair is one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairs {
    /// Where it takes less time, by an estimate or measured.
    #[default]
    Faster,
    /// Wherever its middle fits into shared memory.
    Always,
    /// Never.
    Never,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            device: 0,
            math: Math::F32,
            pairs: Pairs::default(),
            measure: false,
            libraries: Libraries::default(),
            cache: compile::default_cache(),
        }
    }
}

/// A program on a device.
pub(crate) struct Executor {
    sequence: Arc<Sequence>,
    infos: Vec<StepInfo>,
}

impl Executor {
    pub(crate) fn new(program: &Program, options: &Options) -> Result<Self> {
        let device = Device::open(options.cuda.device)?;
        let cache = options.cuda.cache.as_deref();
        let mut tuner = options.cuda.measure.then(|| Tuner::new(&device, cache, options.cuda.libraries));
        let calls::Calls { builder, output, infos } =
            calls::calls(program, options, device.about(), tuner.as_mut())?;
        if let Some(tuner) = &mut tuner {
            tuner.save();
        }
        let sequence = Sequence::new(&device, builder, output, options.batch, cache)?;
        Ok(Self { sequence: Arc::new(sequence), infos })
    }
}

impl Executable for Executor {
    fn steps(&self) -> Vec<StepInfo> {
        self.infos.clone()
    }

    fn memory(&self) -> Memory {
        let [arena_bytes, scratch_bytes] = self.sequence.session_bytes();
        Memory { weight_bytes: self.sequence.weight_bytes(), arena_bytes, scratch_bytes }
    }

    fn session(self: Arc<Self>) -> Box<dyn State> {
        let session = self.sequence.session();
        Box::new(CudaState { sequence: Arc::clone(&self.sequence), session })
    }
}

/// Memory of one session, or why there is none: every run asks for it again.
struct CudaState {
    sequence: Arc<Sequence>,
    session: cofilter_cuda::Result<Session>,
}

impl State for CudaState {
    fn run(
        &mut self,
        n: usize,
        images: &[f32],
        logits: &mut [f32],
        times_us: Option<&mut [f64]>,
    ) -> Result<()> {
        if self.session.is_err() {
            self.session = self.sequence.session();
        }
        match &mut self.session {
            Ok(session) => Ok(session.run(n, images, logits, times_us)?),
            Err(error) => Err(Error::Cuda(error.clone())),
        }
    }
}
