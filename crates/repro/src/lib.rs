//! The experiments of the paper as cached stages, and their reports.
