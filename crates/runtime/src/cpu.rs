//! Execution on the processor: packed kernels, one arena, nothing allocated while running.

mod kernel;

use crate::arena::LINE;
use crate::backend::{Executable, Memory, State, StepInfo};
use crate::{Error, Options, Place, Program, Result, Step, Value};
use cofilter_kernels::Par;
use kernel::Kernel;
use rayon::ThreadPool;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A program with packed weights.
pub(crate) struct Executor {
    steps: Vec<CpuStep>,
    /// Whether the result is the images themselves.
    identity: bool,
    arena_len: usize,
    scratch_len: usize,
    pool: Option<Arc<ThreadPool>>,
}

struct CpuStep {
    kernel: Kernel,
    operands: Vec<Value>,
    add: Option<Value>,
    result: Value,
    in_place: bool,
    info: StepInfo,
}

impl Executor {
    pub(crate) fn new(program: &Program, options: &Options) -> Result<Self> {
        let steps: Vec<CpuStep> = program.steps().iter().map(CpuStep::new).collect();
        // Kernels need no more for fewer images.
        let scratch = |step: &CpuStep| step.kernel.scratch_len(options.batch, options.threads);
        let scratch_len = steps.iter().map(scratch).max().unwrap_or(0);
        let arena_len = program.arena_len() * options.batch;
        check_memory(arena_len.saturating_add(scratch_len))?;
        let identity = program.output().place == Place::Images;
        Ok(Self { steps, identity, arena_len, scratch_len, pool: options.workers()? })
    }

    fn run(&self, mut buffers: Buffers<'_>, scratch: &mut [f32], times_us: Option<&mut [f64]>) {
        let par = if self.pool.is_some() { Par::Rayon } else { Par::Serial };
        let mut times_us = times_us.map(|times| times.iter_mut());
        for step in &self.steps {
            let _span = tracing::trace_span!("step", nodes = step.info.nodes).entered();
            let start = times_us.is_some().then(Instant::now);
            step.run(&mut buffers, scratch, par);
            if let (Some(times), Some(start)) = (&mut times_us, start) {
                *times.next().expect("one time a step") = start.elapsed().as_secs_f64() * 1e6;
            }
        }
    }
}

impl Executable for Executor {
    fn steps(&self) -> Vec<StepInfo> {
        self.steps.iter().map(|step| step.info.clone()).collect()
    }

    fn memory(&self) -> Memory {
        Memory {
            weight_bytes: self.steps.iter().map(|step| step.info.weight_bytes).sum(),
            arena_bytes: (self.arena_len + LINE) * size_of::<f32>(),
            scratch_bytes: (self.scratch_len + LINE) * size_of::<f32>(),
        }
    }

    fn session(self: Arc<Self>) -> Box<dyn State> {
        let (arena, scratch) = (Lines::new(self.arena_len), Lines::new(self.scratch_len));
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
    arena: Lines,
    scratch: Lines,
}

impl State for CpuState {
    fn run(&mut self, n: usize, images: &[f32], logits: &mut [f32], times_us: Option<&mut [f64]>) {
        let Self { executor, arena, scratch } = self;
        if executor.identity {
            logits.copy_from_slice(images);
            return;
        }
        let buffers = Buffers { n, images, arena: arena.as_mut_slice(), logits };
        let scratch = scratch.as_mut_slice();
        match &executor.pool {
            None => executor.run(buffers, scratch, times_us),
            Some(pool) => pool.install(|| executor.run(buffers, scratch, times_us)),
        }
    }
}

/// Zeroed elements that begin at a cache line.
struct Lines {
    elements: Vec<f32>,
    start: usize,
}

impl Lines {
    fn new(len: usize) -> Self {
        let elements = vec![0.0f32; len + LINE];
        let start = elements.as_ptr().align_offset(LINE * size_of::<f32>());
        // Alignment is a matter of speed alone.
        Self { start: if start <= LINE { start } else { 0 }, elements }
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        let len = self.elements.len() - LINE;
        &mut self.elements[self.start..self.start + len]
    }
}

/// What the steps of one run read and write.
struct Buffers<'a> {
    /// Images of this run.
    n: usize,
    images: &'a [f32],
    arena: &'a mut [f32],
    logits: &'a mut [f32],
}

impl Buffers<'_> {
    /// Where in the arena, if there.
    fn range(&self, value: Value) -> Option<Range<usize>> {
        match value.place {
            Place::Images | Place::Logits => None,
            Place::Arena(offset) => {
                let start = offset * self.n;
                Some(start..start + value.shape.elements() * self.n)
            }
        }
    }

    /// One value to write and others to read; the planner keeps them apart.
    fn split<const N: usize>(&mut self, reads: [Value; N], write: Value) -> ([&[f32]; N], &mut [f32]) {
        let reads = reads.map(|value| self.range(value));
        let (low, dst, high, end) = match self.range(write) {
            None => (&*self.arena, &mut *self.logits, &[][..], self.arena.len()),
            Some(write) => {
                let (low, rest) = self.arena.split_at_mut(write.start);
                let (dst, high) = rest.split_at_mut(write.len());
                (&*low, dst, &*high, write.end)
            }
        };
        let slices = reads.map(|read| match read {
            None => self.images,
            Some(read) if read.end <= low.len() => &low[read],
            Some(read) => &high[read.start - end..read.end - end],
        });
        (slices, dst)
    }

    fn write(&mut self, value: Value) -> &mut [f32] {
        self.split([], value).1
    }
}

impl CpuStep {
    fn new(step: &Step) -> Self {
        let kernel = Kernel::new(step);
        let info = StepInfo {
            nodes: step.nodes.join("+"),
            algorithm: kernel.algorithm() + if step.in_place() { ", in place" } else { "" },
            result: step.result.shape,
            macs: step.macs,
            weight_bytes: step.tensors.iter().map(|t| size_of_val(t.data())).sum(),
        };
        Self {
            kernel,
            operands: step.operands.to_vec(),
            add: step.add,
            result: step.result,
            in_place: step.in_place(),
            info,
        }
    }

    fn run(&self, buffers: &mut Buffers<'_>, scratch: &mut [f32], par: Par) {
        let n = buffers.n;
        match (&self.kernel, self.operands.as_slice(), self.add) {
            (Kernel::Relu, _, _) if self.in_place => kernel::rectify(buffers.write(self.result), par),
            (Kernel::Concat, operands, _) => {
                let row = self.result.shape.elements();
                let mut offset = 0;
                for operand in operands {
                    let ([src], dst) = buffers.split([*operand], self.result);
                    let len = operand.shape.elements();
                    kernel::copy_columns(src, len, &mut dst[offset..], row);
                    offset += len;
                }
            }
            (kernel, &[operand], None) => {
                let ([src], dst) = buffers.split([operand], self.result);
                kernel.run(n, &[src], dst, scratch, par);
            }
            (kernel, &[operand], Some(other)) | (kernel, &[operand, other], _) => {
                let (srcs, dst) = buffers.split([operand, other], self.result);
                kernel.run(n, &srcs, dst, scratch, par);
            }
            _ => unreachable!("only a concatenation has other than one or two operands"),
        }
    }
}
