//! The experiments of the paper as cached stages, and their reports.
//!
//! `cargo xtask reproduce` builds and starts this program; see `docs/report-schema.md` for what it writes.

pub mod bench;
pub mod cifar;
pub mod decompose;
mod figures;
pub mod lenet;
pub mod machine;
pub mod options;
mod pipeline;
pub mod report;
pub mod results;
pub mod sparsity;
pub mod speed;
pub mod stage;
pub mod statistics;
pub mod timing;

/// The guide, so that its code is compiled and run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide.md")]
pub struct Guide;
