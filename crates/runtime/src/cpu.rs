//! Execution on the processor: blocked maps, packed kernels, one arena, nothing allocated while running.

mod estimate;
mod form;
mod kernel;
mod layout;
mod parts;
mod product;
#[cfg(test)]
mod tests;
pub(crate) mod tune;

use crate::arena::LINE;
use crate::backend::{Executable, Memory, State, StepInfo};
use crate::{Error, Options, Program, Result};
use cofilter_kernels::blocked::{Aligned, Lengths, Sequence, Team};
use form::{Form, Unit};
use layout::{Layout, Work};
use std::sync::Arc;

/// A program with packed weights.
pub(crate) struct Executor {
    sequence: Sequence,
    infos: Vec<StepInfo>,
    /// The unit that each step belongs to; none for copies.
    owners: Vec<Option<usize>>,
    team: Arc<Team>,
    arena_len: usize,
    scratch_len: usize,
}

impl Executor {
    pub(crate) fn new(program: &Program, options: &Options) -> Result<Self> {
        Self::with_forms(program, &tune::choose(program, options), options)
    }

    /// With the given forms of the program's units.
    fn with_forms(program: &Program, units: &[(Unit, Form)], options: &Options) -> Result<Self> {
        Self::with_parts(program, units, options, &parts::parts)
    }

    /// With the given forms, and cut into parts by a rule.
    fn with_parts(
        program: &Program,
        units: &[(Unit, Form)],
        options: &Options,
        cut: parts::Cut<'_>,
    ) -> Result<Self> {
        let team = options.workers()?;
        let layout = Layout::new(program, units, options, cut)?;
        let (parts, infos) = kernel::steps(program, units, &layout, options);
        let owners = layout.work.iter().map(Work::unit).collect();
        let lengths = Lengths {
            images: program.input().elements(),
            arena: layout.arena_len,
            worker: layout.worker_len,
            logits: program.output().shape.elements(),
        };
        let Lengths { arena: arena_len, .. } = lengths;
        let sequence = Sequence::new(parts, options.batch, lengths);
        let scratch_len = sequence.scratch_len(team.threads());
        check_memory(arena_len.saturating_add(scratch_len))?;
        Ok(Self { sequence, infos, owners, team, arena_len, scratch_len })
    }
}

impl Executable for Executor {
    fn steps(&self) -> Vec<StepInfo> {
        self.infos.clone()
    }

    fn memory(&self) -> Memory {
        // The maps that each worker has for itself are a part of the scratch memory.
        let maps = self.sequence.worker_maps_len(self.team.threads());
        Memory {
            weight_bytes: self.infos.iter().map(|step| step.weight_bytes).sum(),
            arena_bytes: (self.arena_len + maps + LINE) * size_of::<f32>(),
            scratch_bytes: (self.scratch_len - maps + LINE) * size_of::<f32>(),
        }
    }

    fn session(self: Arc<Self>) -> Box<dyn State> {
        let (arena, scratch) = (Aligned::new(self.arena_len, 0.0), Aligned::new(self.scratch_len, 0.0));
        Box::new(CpuState { executor: self, arena, scratch })
    }
}

/// Asks for the memory of a session once, where there is still an error to give.
fn check_memory(elements: usize) -> Result<()> {
    Vec::<f32>::new().try_reserve_exact(elements).map_err(|_| Error::Option {
        option: "batch",
        reason: format!("a session would need {elements} values, more than can be allocated"),
    })
}

/// Memory of one session.
struct CpuState {
    executor: Arc<Executor>,
    arena: Aligned<f32>,
    scratch: Aligned<f32>,
}

impl State for CpuState {
    fn run(
        &mut self,
        n: usize,
        images: &[f32],
        logits: &mut [f32],
        times_us: Option<&mut [f64]>,
    ) -> Result<()> {
        let Self { executor, arena, scratch } = self;
        let Executor { sequence, team, .. } = &**executor;
        sequence.run(n, images, arena.as_mut_slice(), logits, scratch.as_mut_slice(), team, times_us);
        Ok(())
    }
}
