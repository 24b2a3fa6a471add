use crate::{CostTable, Error, Result};
use cofilter_kernels::blocked::{Storage, Team};
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
    /// A CUDA device, in programs with feature `cuda`.
    Cuda,
}

impl BackendKind {
    /// Word for messages: `reference`, `cpu`, `cuda`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// How a network is compiled.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most images of one run, above 0. Memory, and how threads share the work, are planned for it; smaller batches run too, but a
    /// plan that is made for them may run faster.
    pub batch: usize,
    /// Threads of one run, in `1..=1024`. 1 is the calling thread alone; more are a team that the plan owns, or `team`.
    /// Results are the same for every number, bit for bit. The reference always runs on the calling thread.
    pub threads: usize,
    /// What executes the plan.
    pub backend: BackendKind,
    /// A team of the caller's with `threads` threads, its own or those of a rayon pool, instead of one that the plan owns.
    /// Several plans may share it.
    pub team: Option<Arc<Team>>,
    /// Largest error of a layer's result, relative to its largest one, that a faster algorithm may add to the rounding of a plain
    /// sum: convolutions use Winograd's only where the error that is to be expected of it is below. Filters that cancel (a
    /// sum of zero on a constant map) exceed it. 0 rules Winograd's out.
    pub tolerance: f32,
    /// How the weights of fully connected layers are kept, which are read once for each run: with half of the bytes a small batch
    /// takes half of the time. See [`Storage::error`] for what each weight loses. The reference keeps them as they are, and so does a
    /// layer whose zeros are left out.
    pub linear_weights: Storage,
    /// Measured times by which the way of computing each layer is chosen; without them, or for a layer that is not among them, it
    /// is estimated. Results of different ways differ in their rounding.
    pub costs: Option<Arc<CostTable>>,
    /// Bytes that stay in the caches of the machine from one step to the next, about. Where the maps of a batch are larger, several steps
    /// run for some of its images before they run for the next ones. 0: every step runs for the whole batch. Results do not
    /// depend on it.
    pub cache: usize,
    /// Most bytes that the plan and one session may hold, if there is a limit: on the device, where there is one.
    pub max_memory: Option<usize>,
    /// Which CUDA device, and how it computes.
    #[cfg(feature = "cuda")]
    pub cuda: crate::cuda::Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch: 1,
            threads: 1,
            backend: BackendKind::default(),
            team: None,
            tolerance: 1e-4,
            linear_weights: Storage::F32,
            costs: None,
            cache: 6_000_000,
            max_memory: None,
            #[cfg(feature = "cuda")]
            cuda: crate::cuda::Settings::default(),
        }
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
        if self.tolerance.is_nan() || self.tolerance < 0.0 {
            return fail("tolerance", format!("expected 0 or more, found {}", self.tolerance));
        }
        match &self.team {
            Some(team) if team.threads() != self.threads => fail(
                "team",
                format!("expected {} threads as in `threads`, found {}", self.threads, team.threads()),
            ),
            _ => Ok(()),
        }
    }

    /// The team to run with.
    pub(crate) fn workers(&self) -> Result<Arc<Team>> {
        if let Some(team) = &self.team {
            return Ok(Arc::clone(team));
        }
        let threads = self.threads;
        Team::new(threads).map(Arc::new).map_err(|source| Error::Threads { threads, source })
    }
}
