//! The runtime against its oracle: hand-made and drawn networks, the zoo, PyTorch's fixtures, and bad input.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cuda;
mod describe;
mod drawn;
mod fixtures;
mod forms;
mod fusion;
mod input;
mod numbers;
mod passes;
mod sessions;
mod zoo;
