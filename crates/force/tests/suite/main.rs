//! What the forces promise, against pair loops over `f64`, NumPy, finite differences and the authors' update
//! by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its case has failed")]

mod closed_forms;
mod numpy;
mod oracle;
mod rule;
mod spread;
mod threads;
