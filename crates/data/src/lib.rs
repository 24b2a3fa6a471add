//! Image data sets from files, deterministic shuffling and augmentation.
//!
//! [`open`] recognises what a folder holds: IDX files (MNIST, Fashion-MNIST, the bundled digits), CIFAR-10's binary
//! files, or class folders of JPEG and PNG images. Every reader checks what a header promises against what the file
//! can hold before it allocates. A [`Dataset`] is bytes, a [`Pipeline`] turns them into a network's input as a
//! [`cofilter_graph::Preprocessing`] says, a [`Sampler`] orders them; both draw from counters, never from a state, so
//! that a resumed run needs the iteration only.
//!
//! ```no_run
//! use cofilter_data::{Augment, Pipeline, Sampler, digits, preprocessing};
//!
//! let split = digits("fixtures/digits".as_ref())?;
//! let lenet = preprocessing::lenet(split.train.classes());
//! let pipeline = Pipeline::new(&split.train, &lenet, &Augment::default(), 1)?;
//! let sampler = Sampler::new(split.train.len(), 64, 1);
//! let (mut images, mut labels) = (vec![0.0; 64 * pipeline.input_len()], vec![0; 64]);
//! for iteration in 0..100 {
//!     pipeline.fill(Some(iteration), &sampler.indices(iteration), &mut images, &mut labels)?;
//! }
//! # Ok::<(), cofilter_data::Error>(())
//! ```

mod augment;
mod cifar;
mod dataset;
mod error;
mod file;
mod idx;
mod image_folder;
mod jpeg;
mod open;
mod pipeline;
pub mod preprocessing;
mod resize;
mod sampler;
mod statistics;
mod stream;
mod tally;
mod validate;

pub use augment::Augment;
pub use cifar::{CIFAR10_CLASSES, cifar10};
pub use dataset::{Dataset, Split};
pub use error::{Error, Result};
pub use idx::{digits, mnist};
pub use image_folder::{Colour, Filter, image, image_folder};
pub use open::open;
pub use pipeline::Pipeline;
pub use sampler::Sampler;
pub use statistics::{channel_statistics, mean_image};
pub use tally::Tally;
