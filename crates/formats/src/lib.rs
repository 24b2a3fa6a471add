//! Checkpoints of other programs as models.
//!
//! Files are read as data: nothing in them is executed, and whatever is wrong with one is an error that names it.

mod error;
mod state;
mod torch;

pub use error::{Error, Result};
pub use state::StateDict;
