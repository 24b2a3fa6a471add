//! Force regularisation: gradients that pull the filters of a layer towards each other, so that a few basis
//! filters span them all (Wen et al. 2017, "Coordinating Filters for Faster Deep Neural Networks").
//!
//! A weight tensor `[N, ..]` is read as `N` filters, its rows `W_i` flattened. With `w_i = W_i / ||W_i||` and
//! `d_ij = ||w_i - w_j||` the regulariser adds `strength * multiplier * G` to the gradient of the loss and
//! the weight decay, before momentum, where
//!
//! ```text
//! G_i = ||W_i|| (I - w_i^T w_i) sum_{j != i} (w_i - w_j) / d_ij^p      p = 0, 1, 2, 3: L2, L1, Linear, Gravity
//! ```
//!
//! A positive strength attracts (fewer basis filters are needed afterwards), a negative one repels.
//!
//! - [`gradient`](gradient()) and [`gradient_grouped`] compute `G` in closed form; the module [`gradient`](mod@gradient)
//!   tells how, and how exactly.
//! - [`gradient_into`] does so for filters in a slice, with memory that is used again; on the CPU and in `f32` the two
//!   above are this one.
//! - [`Rule`] is what a training recipe stores, and turns a gradient into the regularised one.
//! - [`spread`](spread()) tells how far the filters still are from being one, and [`remaining`] lets a force end there.
//! - [`stopped`] is the rule that ends the force before training ends.
//!
//! `f64` weights and other devices are handled in candle's tensor operations.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use cofilter_force::{Direction, Force, Rule, Scaling};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let weight = Tensor::new(&[[1f32, 0.], [0., 2.]], &Device::Cpu)?;
//! let loss_gradient = weight.zeros_like()?;
//! let rule = Rule { force: Force::L2, strength: 0.5, direction: Direction::All, scaling: Scaling::Fixed };
//! let gradient = rule.apply(&weight, &loss_gradient, 1.0)?;
//! // A step against the gradient turns each filter towards the other.
//! assert_eq!(gradient.to_vec2::<f32>()?, [[0., -0.5], [-1., 0.]]);
//! # Ok(())
//! # }
//! ```

mod error;
mod force;
pub mod gradient;
mod rule;
mod single;
mod spread;

pub use error::{Error, Result};
pub use force::Force;
pub use gradient::{VANISHING, gradient, gradient_grouped};
pub use rule::{Direction, Push, Rule, Scaling, stopped};
pub use single::{Scratch, gradient_into};
pub use spread::{remaining, spread};
