//! Pruning, masks and physical removal of what is all zero: passes from model to model.
//!
//! Sparsity is a property of the numbers, not of the graph. [`prune_magnitude`] sets the smallest weights of a network
//! to zero and gives the [`Masks`] that keep them there through fine-tuning; [`density`] and [`compression`] tell what
//! that makes of each layer, [`compact`] takes channels out that cannot change an output. What becomes zero together, and what a
//! group lasso pulls to zero together, are [`Groups`].
//!
//! ```
//! use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
//! use cofilter_sparsity::{Pruning, compact, density, prune_magnitude};
//!
//! let mut b = Graph::builder();
//! let x = b.input("data", Shape::map(1, 8, 8))?;
//! let x = b.conv2d("conv1", x, Conv2d::new(8, 3))?;
//! let x = b.relu("relu1", x)?;
//! let x = b.conv2d("conv2", x, Conv2d::new(4, 3))?;
//! let model = Model::init(b.finish(&[x])?, &Init::default(), 1)?;
//!
//! let (sparse, masks) = prune_magnitude(&model, &Pruning { sparsity: 0.9, ..Pruning::default() })?;
//! let kept: usize = density(&sparse).iter().map(|layer| layer.nonzeros).sum();
//! assert_eq!(kept, 36); // a tenth of 8 * 9 + 4 * 8 * 9
//! let (small, removals) = compact(&sparse)?;
//! assert!(small.cost().macs() <= sparse.cost().macs());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod branches;
mod channels;
mod compact;
mod compression;
mod constants;
mod density;
mod error;
mod groups;
mod layer;
mod liveness;
mod masks;
mod prune;
mod silence;

pub use compact::{Removal, compact};
pub use compression::{Compression, LayerCompression, compression};
pub use density::{LayerDensity, TotalDensity, density, total_density};
pub use error::{Error, Result};
pub use groups::{Grouping, Groups, zero_groups};
pub use masks::{Masks, apply, masks_of_zero_groups, masks_of_zeros};
pub use prune::{Pattern, Pruning, Scope, prune_magnitude};
pub use silence::silence;
