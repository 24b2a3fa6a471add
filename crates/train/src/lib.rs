//! Training of graphs: a [`Model`](cofilter_graph::Model) goes in, a trained one of the same graph comes out (of
//! smaller ranks, where a recipe clips them).
//!
//! - [`fit`] is the loop: seeded order and augmentation, evaluation, history, checkpoints, exact resumption.
//! - [`Recipe`] says how, as plain data; the update is Caffe's (paper, section 1.4), with force regularisation.
//! - [`Trainer`] does one iteration at a time.
//! - [`evaluate`] scores a network on a data set.
//! - [`Net`] is a network as candle variables: its outputs are on candle's tape.
//!
//! On CPU every op is a layer over `cofilter-kernels`; [`Trainer`] and [`evaluate`] call the layers on plain buffers,
//! [`Net::forward`] hands them to candle as custom ops, and both give the same bits. On a GPU ([`Device::Cuda`]) values and gradients
//! are computed by the kernels of `cofilter-cuda`; parameters, losses and updates stay on the processor, so that every recipe is there.
//! Equal arguments give equal bytes on the same device, for any number of threads.

mod checkpoint;
mod clip;
mod contraction;
mod cuda;
mod device;
mod distillation;
mod error;
mod evaluate;
mod fit;
mod history;
mod layout;
mod multipliers;
mod net;
mod ops;
mod progress;
mod recipe;
mod rollback;
mod schedule;
mod sgd;
mod sparse;
mod sweep;
mod trainer;

pub use clip::Clip;
pub use device::Device;
pub use distillation::Distillation;
pub use error::{Error, Result};
pub use evaluate::{Score, evaluate};
pub use fit::{Fit, Outcome, Trained, fit};
pub use history::{Clock, Record};
pub use multipliers::{Multiplier, Multipliers};
pub use net::{Mode, Net};
pub use progress::Progress;
pub use recipe::{Decay, ForceRule, Recipe};
pub use rollback::Rollback;
pub use schedule::Schedule;
pub use sparse::{Freeze, GroupLasso, LassoUpdate, Prune};
pub use trainer::{Step, Trainer};
