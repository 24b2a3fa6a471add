//! Runs an experiment.
fn main() {}
