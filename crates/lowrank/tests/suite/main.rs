//! What the decomposition promises, against loops and tables that know nothing of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its case has failed")]

mod budget;
mod calibration;
mod clipping;
mod determinism;
mod errors;
mod filters;
mod fixtures;
mod groups;
mod identity;
mod methods;
mod networks;
mod oracle;
mod paper;
mod projection;
mod recomposition;
mod rules;
mod target;
mod truncation;
