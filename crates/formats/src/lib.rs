//! Checkpoints of other programs as models.
//!
//! Files are read as data: nothing in them is executed, and whatever is wrong with one is an error that names it.

pub mod caffe;
mod draft;
mod error;
pub mod onnx;
mod safe;
mod state;
mod torch;
mod verify;

pub use error::{Error, Result};
pub use state::StateDict;
pub use verify::{Agreement, verify};
