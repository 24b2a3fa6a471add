//! What pruning and compaction promise, against the reference interpreter and networks small enough to count by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its case has failed")]

mod build;
mod compaction;
mod constants;
mod groups;
mod joints;
mod masking;
mod pipeline;
mod pruning;
mod reports;
mod zoo;
