//! Readers, order and preprocessing, on files written by the tests, the bundled digits and, where present, the real
//! data sets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cifar;
mod dataset;
mod digits;
mod files;
mod idx;
mod image_folder;
mod open;
mod pipeline;
mod real_data;
mod resize;
mod sampler;
mod statistics;
mod validation;
