//! Low-rank approximation of convolutions and fully connected layers: a pass from model to model.
//!
//! The filters of a layer are the rows of a matrix `W` of `N` filters by `L = C*H*W` weights. [`decompose`] replaces
//! the layer by a basis of `M` filters (`<name>_lowrank`, no bias) and a 1x1 combination (`<name>_linear`, with the
//! bias) whose product is the best approximation of `W` of rank `M` (Eckart and Young); Wen et al. 2017, section 3,
//! "cross-filter low-rank approximation". Other ways of taking a layer apart are other [`Method`]s. [`analyse`] tells spectra
//! and ranks without changing anything, [`similarity`] and [`projection`] compare the filters of a layer, and [`recompose`]
//! multiplies the new layers out again.
//!
//! Factors are computed in `f64`, layers side by side and large ones in a fixed number of tasks, so the result has the same bits for
//! any number of threads; errors of weights are measured in `f32`. Another processor may choose other vector instructions and
//! differ in the last bits.
//!
//! ```
//! use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
//! use cofilter_lowrank::{Method, RankRule, Settings, decompose};
//!
//! let mut b = Graph::builder();
//! let x = b.input("data", Shape::map(3, 32, 32))?;
//! let x = b.conv2d("conv1", x, Conv2d { padding: [2, 2], ..Conv2d::new(32, 5) })?;
//! let model = Model::init(b.finish(&[x])?, &Init::default(), 1)?;
//!
//! let settings = Settings { rule: RankRule::Energy(0.6), ..Settings::default() };
//! let (small, report) = decompose(&model, &settings)?;
//! assert!(small.graph().find("conv1_lowrank").is_ok() && small.graph().find("conv1_linear").is_ok());
//! assert!(report.layers[0].energy >= 0.6 && report.layers[0].rank < 32);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod algebra;
mod analyse;
mod calibrate;
mod chain;
mod choose;
mod clip;
mod cost;
mod decompose;
mod error;
mod evbmf;
mod factor;
pub mod figures;
mod filters;
mod layer;
mod method;
mod project;
mod rank;
mod recompose;
mod report;
mod settings;
mod spectrum;
pub mod target;

pub use analyse::{Analysis, analyse, spectrum};
pub use calibrate::{Calibration, reestimate_batch_norm};
pub use choose::{Choice, choose};
pub use clip::{Clipped, ClippedLayer, clip};
pub use cost::{break_even_rank, theoretical_speedup};
pub use decompose::{decompose, decompose_calibrated};
pub use error::{Error, Result};
pub use evbmf::evbmf_rank;
pub use filters::{Plane, Projection, Similarity, projection, similarity};
pub use layer::LayerKind;
pub use method::Method;
pub use project::low_rank_random;
pub use rank::{Budget, Limit, Quantity, Rank, RankRule};
pub use recompose::recompose;
pub use report::{GroupReport, LayerReport, Report};
pub use settings::Settings;
pub use spectrum::Spectrum;
