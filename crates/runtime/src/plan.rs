use crate::backend::{Executable, Memory, StepInfo};
use crate::{BackendKind, Error, Options, Program, Result, Session, cpu, reference};
use cofilter_graph::{Model, Op};
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// A network compiled for a batch, a number of threads and a backend. Immutable; a clone shares the packed weights.
#[derive(Clone)]
pub struct Plan {
    program: Arc<Program>,
    options: Options,
    executable: Arc<dyn Executable>,
}

impl Plan {
    /// Compiles a network; its sessions allocate nothing while they run.
    ///
    /// # Errors
    /// [`Error::Option`] for options that make no sense, [`Error::Model`] if a tensor is not finite,
    /// [`Error::Threads`] if the threads cannot be started, [`Error::Memory`] if it would take more than `max_memory`.
    pub fn compile(model: &Model, options: &Options) -> Result<Self> {
        options.check()?;
        let program = Program::lower(model)?;
        check(&program, options)?;
        let too_large = |memory: &Memory| options.max_memory.filter(|allowed| memory.peak_bytes() > *allowed);
        let executable: Arc<dyn Executable> = match options.backend {
            BackendKind::Reference => Arc::new(reference::Executor::new(model)),
            #[cfg(feature = "cuda")]
            BackendKind::Cuda => Arc::new(crate::cuda::Executor::new(&program, options)?),
            #[cfg(not(feature = "cuda"))]
            BackendKind::Cuda => return Err(Error::NotBuilt { backend: "cuda", feature: "cuda" }),
            BackendKind::Cpu => {
                let in_parts = cpu::Executor::new(&program, options)?;
                let memory = in_parts.memory();
                if too_large(&memory).is_some() && options.cache > 0 {
                    // Step by step, maps may be over earlier.
                    let whole = cpu::Executor::new(&program, &Options { cache: 0, ..options.clone() })?;
                    let smaller = whole.memory().peak_bytes() < memory.peak_bytes();
                    Arc::new(if smaller { whole } else { in_parts })
                } else {
                    Arc::new(in_parts)
                }
            }
        };
        let memory = executable.memory();
        if let Some(allowed) = too_large(&memory) {
            return Err(Error::Memory {
                needed: memory.peak_bytes(),
                weights: memory.weight_bytes,
                values: memory.arena_bytes,
                scratch: memory.scratch_bytes,
                allowed,
            });
        }
        tracing::debug!(steps = program.steps().len(), backend = options.backend.name(), "compiled");
        let program = Arc::new(program.without_tensors());
        Ok(Self { program, options: options.clone(), executable })
    }

    /// A session: the memory of one caller. Make one for each thread that runs the plan at the same time.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self.clone(), Arc::clone(&self.executable).session())
    }

    /// The lowered network, without its tensors.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What it was compiled for.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Values of one image: `C * H * W`.
    #[must_use]
    pub fn input_len(&self) -> usize {
        self.program.input().elements()
    }

    /// Values of the main output for one image: `K`.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.program.output().shape.elements()
    }

    /// The steps as the backend executes them.
    #[must_use]
    pub fn steps(&self) -> Vec<StepInfo> {
        self.executable.steps()
    }

    /// What the weights and one session hold.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.executable.memory()
    }

    /// A table for people: steps, algorithms, result shapes, images at once, MACs, weight bytes; then memory.
    #[must_use]
    pub fn describe(&self) -> String {
        let steps = self.steps();
        let width = steps.iter().map(|s| s.nodes.len()).max().unwrap_or(0).max(5);
        let kind = steps.iter().map(|s| s.algorithm.len()).max().unwrap_or(0).max(9);
        let Options { batch, threads, backend, .. } = &self.options;
        let tier = match backend {
            BackendKind::Reference => "f64",
            BackendKind::Cpu => cofilter_kernels::cpu_tier(),
            BackendKind::Cuda => "device",
        };
        let mut text = format!("{} backend ({tier}), batch {batch}, {threads} thread(s)\n", backend.name());
        let mut line = |cells: [&str; 6]| {
            let [nodes, algorithm, result, images, macs, bytes] = cells;
            writeln!(
                text,
                "{nodes:width$}  {algorithm:kind$}  {result:>12}  {images:>6}  {macs:>12}  {bytes:>12}"
            )
            .expect("writing to a string cannot fail");
        };
        line(["nodes", "algorithm", "result", "images", "MACs", "weight bytes"]);
        for s in &steps {
            let (result, images, macs, bytes) =
                (s.result.to_string(), s.images.to_string(), s.macs.to_string(), s.weight_bytes.to_string());
            line([&s.nodes, &s.algorithm, &result, &images, &macs, &bytes]);
        }
        let macs: usize = steps.iter().map(|s| s.macs).sum();
        let Memory { weight_bytes, arena_bytes, scratch_bytes } = self.memory();
        text + &format!(
            "{} steps, {macs} MACs an image; bytes: weights {weight_bytes}, arena {arena_bytes}, scratch {scratch_bytes}\n",
            steps.len()
        )
    }
}

impl fmt::Debug for Plan {
    /// Without the weights.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.program.steps().iter().map(|step| step.nodes.join("+")).collect();
        f.debug_struct("Plan").field("options", &self.options).field("steps", &steps).finish_non_exhaustive()
    }
}

/// Refuses what a program and options cannot do together.
pub(crate) fn check(program: &Program, options: &Options) -> Result<()> {
    check_size(program, options.batch)?;
    match options.backend {
        BackendKind::Reference => Ok(()),
        BackendKind::Cpu | BackendKind::Cuda => check_storage(program, options),
    }
}

/// Refuses to keep a weight as a number that it is not.
fn check_storage(program: &Program, options: &Options) -> Result<()> {
    let linear = program.steps().iter().filter(|step| matches!(step.op, Op::Linear(_)));
    for (step, weight) in linear.filter_map(|step| Some((step, step.tensors.first()?))) {
        if let Some(value) = weight.data().iter().find(|value| !options.linear_weights.holds(**value)) {
            return Err(Error::Option {
                option: "linear_weights",
                reason: format!(
                    "`{}` has a weight of {value:e}, which {} cannot hold",
                    step.nodes.first().map_or("", String::as_str),
                    options.linear_weights.name()
                ),
            });
        }
    }
    Ok(())
}

/// Refuses a batch whose values cannot be addressed.
fn check_size(program: &Program, batch: usize) -> Result<()> {
    let input = program.input().elements();
    let values = program.steps().iter().map(|step| step.result.shape.elements());
    // Borders and blocks of channels make a map at most so much larger.
    let all: usize = values.chain([input]).fold(0, usize::saturating_add);
    match all.checked_mul(batch) {
        Some(len) if len <= isize::MAX as usize / (1 << 12) => Ok(()),
        _ => Err(Error::Option {
            option: "batch",
            reason: format!("{batch} images of {all} values each are more than memory can address"),
        }),
    }
}
