use crate::{Error, Result};
use rayon::ThreadPool;
use std::sync::Arc;

/// What executes a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// Naive `f64` loops on the network as it was given; slow, the oracle of everything else.
    Reference,
    /// Packed `f32` kernels.
    #[default]
    Cpu,
}

impl BackendKind {
    /// Word for messages: `reference`, `cpu`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
        }
    }
}

/// How a network is compiled.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most images of one run, above 0. Memory is planned for it; smaller batches run too.
    pub batch: usize,
    /// Threads of one run, in `1..=1024`. 1 is the calling thread alone; more are a pool that the plan owns, or `pool`.
    /// Results are the same for every number, bit for bit. The reference always runs on the calling thread.
    pub threads: usize,
    /// What executes the plan.
    pub backend: BackendKind,
    /// A pool of the caller's, with `threads` threads, instead of one that the plan owns. Unused with one thread.
    pub pool: Option<Arc<ThreadPool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch: 1, threads: 1, backend: BackendKind::default(), pool: None }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        let fail = |option, reason| Err(Error::Option { option, reason });
        if self.batch == 0 {
            return fail("batch", "expected at least 1 image, found 0".into());
        }
        if !(1..=1024).contains(&self.threads) {
            return fail("threads", format!("expected 1..=1024, found {}", self.threads));
        }
        match &self.pool {
            Some(pool) if pool.current_num_threads() != self.threads => fail(
                "pool",
                format!(
                    "expected {} threads as in `threads`, found {}",
                    self.threads,
                    pool.current_num_threads()
                ),
            ),
            _ => Ok(()),
        }
    }

    /// The pool to run in; none for the calling thread alone.
    pub(crate) fn workers(&self) -> Result<Option<Arc<ThreadPool>>> {
        if self.threads == 1 {
            return Ok(None);
        }
        if let Some(pool) = &self.pool {
            return Ok(Some(Arc::clone(pool)));
        }
        let threads = self.threads;
        let name = |i| format!("cofilter-{i}");
        match rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build() {
            Ok(pool) => Ok(Some(Arc::new(pool))),
            Err(source) => Err(Error::Threads { threads, source }),
        }
    }
}
