//! Inference of compiled networks on CPU and CUDA, deployable alone.
//!
//! [`Plan::compile`] lowers a [`Model`] to a [`Program`] (inference passes, fused steps, one arena)
//! and makes it ready for a [`BackendKind`]. A plan is immutable and shared; a [`Session`] owns the memory of one caller,
//! and running it allocates nothing. [`mod@reference`] is the oracle that everything else is compared with.
//!
//! ```
//! use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
//! use cofilter_runtime::{Options, Plan};
//!
//! let mut b = Graph::builder();
//! let x = b.input("data", Shape::map(3, 8, 8))?;
//! let x = b.conv2d("conv1", x, Conv2d::new(4, 3))?;
//! let x = b.relu("relu1", x)?;
//! let x = b.global_avg_pool("pool", x)?;
//! let x = b.flatten("flat", x)?;
//! let x = b.linear("ip1", x, 10)?;
//! let model = Model::init(b.finish(&[x])?, &Init::default(), 1)?;
//!
//! let plan = Plan::compile(&model, &Options { batch: 2, ..Options::default() })?;
//! let mut session = plan.session();
//! let mut logits = vec![0.0; 2 * plan.output_len()];
//! session.run(&vec![1.0; 2 * plan.input_len()], &mut logits)?;
//! assert!(plan.describe().contains("conv1+relu1"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arena;
mod backend;
mod costs;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod density;
mod error;
pub mod latency;
mod lower;
mod options;
mod plan;
mod program;
pub mod reference;
mod session;

pub use backend::{Memory, StepInfo};
pub use cofilter_graph::{Artifact, Model};
pub use cofilter_kernels::blocked::{Storage, Team};
pub use cofilter_kernels::{cpu_tier, yardstick};
pub use costs::{Choice, CostTable};
pub use density::Density;
pub use error::{Error, Result};
pub use options::{BackendKind, Options};
pub use plan::Plan;
pub use program::{Program, Step, Value};
pub use session::{Profile, Session, StepTime};
