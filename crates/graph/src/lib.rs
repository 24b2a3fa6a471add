//! One description of a network that training, decomposition, pruning and the runtime share.
//!
//! A [`Graph`] is a list of [`Node`]s, each with one output, in topological order by construction; a batch is never
//! part of it. [`Params`] holds one vector per node. [`Model`] is both, checked against each other once, so that a
//! mismatched shape cannot exist later. Everything that changes a network is a function from `Model` to `Model`,
//! written with [`Model::rewrite`].
//!
//! ```
//! use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
//!
//! let mut b = Graph::builder();
//! let x = b.input("data", Shape::map(3, 32, 32))?;
//! let x = b.conv2d("conv1", x, Conv2d { padding: [2, 2], ..Conv2d::new(32, 5) })?;
//! let x = b.relu("relu1", x)?;
//! let x = b.flatten("flat", x)?;
//! let x = b.linear("ip1", x, 10)?;
//! let model = Model::init(b.finish(&[x])?, &Init::default(), 1)?;
//! assert_eq!(model.cost().params(), 32 * 3 * 25 + 32 + 32 * 32 * 32 * 10 + 10);
//! # Ok::<(), cofilter_graph::Error>(())
//! ```

mod builder;
mod cost;
mod decomposed;
mod error;
mod file;
mod graph;
mod infer;
mod init;
mod model;
mod op;
mod params;
mod passes;
mod provenance;
mod shape;

pub use builder::GraphBuilder;
pub use cost::{Cost, NodeCost};
pub use decomposed::decomposed_names;
pub use error::{Error, Result};
pub use file::{Artifact, FORMAT_VERSION, TEMPORARY_PREFIX, write_atomically};
pub use graph::{Graph, Node, NodeId};
pub use init::{Filler, Init};
pub use model::{Model, Rewriter};
pub use op::{
    BatchNorm, Conv2d, Linear, Lrn, LrnRegion, Op, PadChannels, Pool2d, PoolKind, Role, Rounding, SlotSpec,
};
pub use params::{Array, Params};
pub use passes::{fold_batch_norm, for_inference};
pub use provenance::{ChannelOrder, Preprocessing, Provenance, Subtract};
pub use shape::Shape;
