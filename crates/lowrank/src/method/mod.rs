//! The ways of taking a layer apart.

mod cp;
pub(crate) mod kmeans;
mod matrix;
mod tucker;

use crate::calibrate::{Moments, refit, regression, ridged};
use crate::chain::{Chain, Kernel};
use crate::factor::Factors;
use crate::layer::{Layer, LayerOp};
use crate::{Result, Spectrum};
use cofilter_graph::Conv2d;
use serde::{Deserialize, Serialize};
use tucker::Tucker;

/// What a layer is taken apart into. `N` filters read `C` channels through `h x w` taps; all numbers are per group where a
/// convolution has groups, and the new layers have its groups. `M` is the rank. Bias, and what a convolution has of stride,
/// padding and dilation along an axis, go to the one new layer that they belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Across filters, principal components without centring: basis `S_M U_M^T = V_M^T W` (`<name>_lowrank`, `[M, C, h, w]`),
    /// combination `V_M` with orthonormal columns (`<name>_linear`, 1x1), for `W ~ V_M S_M U_M^T` with a row a filter. The
    /// authors' default (Wen et al. 2017, section 3; their `pca`).
    ///
    /// A very large layer at a rank by number below a quarter of full rank is projected at random (Halko et al. 2011): a few percent
    /// above the least squared error at most, near none where the spectrum falls, and no spectrum.
    #[default]
    Pca,
    /// The same product, balanced: basis `S_M^(1/2) U_M^T`, combination `V_M S_M^(1/2)` (their `svd`).
    Svd,
    /// Across filters: the basis are the centres of `M` clusters of filters, the combination copies the centre of its cluster
    /// to each filter (their `kmeans`; Lloyd's algorithm from k-means++ starts). Takes ranks by number only.
    Kmeans,
    /// Across space: columns of `h x 1` (`<name>_v`, `[M, C, h, 1]`), then rows of `1 x w` (`<name>_h`, `[N, M, 1, w]`), by the
    /// singular value decomposition of the `C h x w N` matrix, balanced (Tai et al. 2016).
    Spatial,
    /// Across channels: `M` mixtures of channels (`<name>_reduce`, 1x1, orthonormal rows), then `[N, M, h, w]` of them
    /// (`<name>_core`), by the singular value decomposition of the `C x N h w` matrix (Zhang et al. 2016 call the form
    /// channel decomposition).
    Channel,
    /// Tucker-2: `<name>_reduce` (1x1, `M_in` mixtures of channels), `<name>_core` (`[M_out, M_in, h, w]`), `<name>_expand` (1x1).
    /// Higher-order SVD, then higher-order orthogonal iteration (Kim et al. 2016; De Lathauwer et al. 2000).
    Tucker,
    /// Canonical polyadic: `<name>_reduce` (1x1), `<name>_v` (`h x 1`) and `<name>_h` (`1 x w`) of each of `M` channels alone,
    /// `<name>_expand` (1x1), by alternating least squares (Lebedev et al. 2015). It may be unstable, which the report tells.
    /// Takes ranks by number only.
    Cp,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 7] =
        [Self::Pca, Self::Svd, Self::Kmeans, Self::Spatial, Self::Channel, Self::Tucker, Self::Cp];

    /// Word for messages and reports, as it is written in settings: `pca`, `spatial`, ...
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pca => "pca",
            Self::Svd => "svd",
            Self::Kmeans => "kmeans",
            Self::Spatial => "spatial",
            Self::Channel => "channel",
            Self::Tucker => "tucker",
            Self::Cp => "cp",
        }
    }

    /// Why it has no meaning for a layer, if so.
    pub(crate) fn unfit(self, layer: &Layer<'_>) -> Option<&'static str> {
        let pointwise = layer.kernel() == [1, 1];
        match self {
            Self::Pca | Self::Svd | Self::Kmeans => None,
            _ if matches!(layer.op, LayerOp::Linear(_)) => {
                Some("a fully connected layer has no channels and taps")
            }
            Self::Spatial if layer.kernel().contains(&1) => Some("its kernel has one tap along an axis"),
            Self::Channel | Self::Tucker | Self::Cp if pointwise => Some("its kernel is 1x1"),
            _ => None,
        }
    }

    /// The method of a layer: this one, or cross-filter where it has no meaning.
    pub(crate) fn or_cross_filter(self, layer: &Layer<'_>) -> Self {
        if self.unfit(layer).is_some() { Self::Pca } else { self }
    }

    /// Whether singular values tell what a rank keeps.
    pub(crate) fn has_spectrum(self) -> bool {
        !matches!(self, Self::Kmeans | Self::Cp)
    }

    /// Largest rank of one group, `[input, output]` for [`Method::Tucker`], else the rank and nothing.
    pub(crate) fn full_rank(self, layer: &Layer<'_>) -> GroupRank {
        let (filters, channels) = (layer.group_filters(), layer.group_channels());
        let [rows, columns] = layer.kernel();
        let one = |rank| GroupRank { output: rank, input: None };
        match self {
            Self::Pca | Self::Svd => one(filters.min(layer.len)),
            Self::Kmeans => one(filters),
            Self::Spatial => one((channels * rows).min(filters * columns)),
            Self::Channel => one(channels.min(filters * rows * columns)),
            Self::Tucker => GroupRank {
                output: filters.min(layer.len),
                input: Some(channels.min(filters * rows * columns)),
            },
            // Terms beyond it change nothing: unfolded along its longest extent the tensor has that many columns.
            Self::Cp => {
                let extents = [filters, channels, rows, columns];
                one(extents.iter().product::<usize>() / extents.iter().max().expect("four extents"))
            }
        }
    }

    /// The new layers at this rank a group, in order.
    pub(crate) fn links(self, layer: &Layer<'_>, rank: GroupRank) -> Vec<Form> {
        let conv = layer.as_conv();
        let groups = layer.groups;
        let output = rank.output * groups;
        let input = rank.input.map_or(output, |input| input * groups);
        let of = |suffix, conv, channels| Form { suffix, conv, channels };
        let combination = |suffix| of(suffix, pointwise(layer.filters, groups), output);
        match self {
            Self::Pca | Self::Svd | Self::Kmeans => {
                let basis = Conv2d { out_channels: output, ..conv };
                vec![of("_lowrank", basis, layer.channels), combination("_linear")]
            }
            Self::Spatial => vec![
                of("_v", along(&conv, 0, output, groups), layer.channels),
                of("_h", along(&conv, 1, layer.filters, groups), output),
            ],
            Self::Channel => {
                vec![of("_reduce", pointwise(output, groups), layer.channels), of("_core", conv, output)]
            }
            Self::Tucker => {
                let core = Conv2d { out_channels: output, ..conv };
                vec![
                    of("_reduce", pointwise(input, groups), layer.channels),
                    of("_core", core, input),
                    combination("_expand"),
                ]
            }
            Self::Cp => vec![
                of("_reduce", pointwise(output, groups), layer.channels),
                of("_v", along(&conv, 0, output, output), output),
                of("_h", along(&conv, 1, output, output), output),
                combination("_expand"),
            ],
        }
    }
}

/// A new layer without its numbers.
pub(crate) struct Form {
    pub(crate) suffix: &'static str,
    pub(crate) conv: Conv2d,
    /// Channels read, over all groups.
    pub(crate) channels: usize,
}

/// Rank of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupRank {
    pub(crate) output: usize,
    /// Of the input side, for [`Method::Tucker`].
    pub(crate) input: Option<usize>,
}

impl GroupRank {
    /// The larger along each side.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { output: self.output.max(other.output), input: self.input.max(other.input) }
    }
}

/// A layer made ready: all of a method that does not depend on the rank.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    layer: &'a Layer<'a>,
    method: Method,
    parts: Parts,
    statistics: Option<&'a Statistics>,
}

/// What is known of a layer's inputs.
#[derive(Debug)]
pub(crate) struct Statistics {
    pub(crate) groups: Vec<Moments>,
    /// See [`crate::Calibration::ridge`].
    pub(crate) ridge: f64,
}

#[derive(Debug)]
enum Parts {
    /// The matrix of each group.
    Matrix(Vec<Factors>),
    /// The same for one rank alone.
    Leading(Vec<Factors>),
    /// The tensor of each group, unfolded.
    Tucker(Vec<Tucker>),
    /// Each group's filters `[N, L]` as they are.
    Raw(Vec<Vec<f64>>),
}

/// New layers, and what is to be known of them.
pub(crate) struct Taken {
    pub(crate) chain: Chain,
    pub(crate) warning: Option<String>,
}

impl<'a> Ready<'a> {
    /// Without `vectors` only [`Ready::spectra`] may be asked for. With `statistics` the error of outputs is made small instead
    /// of that of weights, and spectra are those of outputs for methods across filters. Where only the rank `known` will be
    /// asked for, a large matrix may be left without a spectrum.
    pub(crate) fn new(
        layer: &'a Layer<'a>,
        method: Method,
        vectors: bool,
        statistics: Option<&'a Statistics>,
        known: Option<GroupRank>,
    ) -> Result<Self> {
        let groups = || 0..layer.groups;
        // The weights that give the outputs, in double precision.
        let weights = || -> Result<Vec<Vec<f64>>> {
            groups()
                .map(|g| match statistics {
                    None => Ok(layer.group(g).iter().map(|w| f64::from(*w)).collect()),
                    Some(of) => regression(layer, g, &of.groups[g], of.ridge),
                })
                .collect()
        };
        let leading = known.map(|rank| rank.output).filter(|rank| {
            Factors::is_for_leading(layer.group_filters(), layer.len, *rank) && statistics.is_none()
        });
        let parts = match (method, statistics) {
            (Method::Pca | Method::Svd, None) if leading.is_some() => {
                let rank = leading.unwrap_or(1);
                let leading = groups().map(|g| Factors::leading(layer.name, layer.group(g), layer.len, rank));
                Parts::Leading(leading.collect::<Result<_>>()?)
            }
            (Method::Pca | Method::Svd, Some(of)) => {
                let factors = weights()?.into_iter().zip(&of.groups).map(|(weight, moments)| {
                    let covariance = ridged(&moments.own, moments.ridge(of.ridge));
                    Factors::of_outputs(layer.name, &weight, &covariance)
                });
                Parts::Matrix(factors.collect::<Result<_>>()?)
            }
            (Method::Pca | Method::Svd | Method::Spatial | Method::Channel, None) => {
                let factors = groups().map(|g| matrix::factors(layer, layer.group(g), method, vectors));
                Parts::Matrix(factors.collect::<Result<_>>()?)
            }
            (Method::Spatial | Method::Channel, Some(_)) => {
                let factors =
                    weights()?.into_iter().map(|weight| matrix::factors(layer, &weight, method, vectors));
                Parts::Matrix(factors.collect::<Result<_>>()?)
            }
            (Method::Tucker, _) => {
                let tuckers = weights()?.into_iter().map(|weight| Tucker::new(layer, weight, vectors));
                Parts::Tucker(tuckers.collect::<Result<_>>()?)
            }
            (Method::Kmeans | Method::Cp, _) => Parts::Raw(weights()?),
        };
        Ok(Self { layer, method, parts, statistics })
    }

    /// What each group keeps at each rank: the spectrum of its output side, and of its input side.
    pub(crate) fn spectra(&self) -> Option<Vec<(Spectrum, Option<Spectrum>)>> {
        match &self.parts {
            Parts::Matrix(groups) => {
                Some(groups.iter().map(|f| (Spectrum::new(f.squares.clone()), None)).collect())
            }
            Parts::Tucker(groups) => Some(groups.iter().map(Tucker::spectra).collect()),
            Parts::Leading(_) | Parts::Raw(_) => None,
        }
    }

    /// The new layers at this rank.
    pub(crate) fn take_apart(&self, rank: GroupRank) -> Result<Taken> {
        let layer = self.layer;
        // The weights of each link, group after group.
        let mut weights: Vec<Vec<f64>> = Vec::new();
        let mut add = |group: Vec<Vec<f64>>| {
            weights.resize_with(group.len(), Vec::new);
            weights.iter_mut().zip(group).for_each(|(to, from)| to.extend(from));
        };
        let mut warning = None;
        match (&self.parts, self.method) {
            (Parts::Matrix(groups) | Parts::Leading(groups), method) => {
                groups.iter().for_each(|group| add(matrix::weights(layer, group, method, rank.output)));
            }
            (Parts::Tucker(groups), _) => {
                let ranks = [rank.input.unwrap_or(rank.output), rank.output];
                for group in groups {
                    add(group.weights(layer.name, ranks)?);
                }
            }
            (Parts::Raw(weights), Method::Kmeans) => {
                weights.iter().for_each(|w| add(kmeans::weights(w, layer.len, rank.output)));
            }
            (Parts::Raw(weights), _) => {
                for weight in weights {
                    let (group, unstable) = cp::weights(layer, weight, rank.output)?;
                    add(group);
                    warning = warning.or(unstable);
                }
            }
        }
        let links = self.method.links(layer, rank).into_iter().zip(weights);
        let kernels = links.map(|(Form { suffix, conv, channels }, weight)| {
            debug_assert_eq!(
                weight.len(),
                conv.out_channels * (channels / conv.groups) * conv.kernel[0] * conv.kernel[1]
            );
            (suffix, Kernel { conv, channels, weight })
        });
        let mut chain = Chain::new(kernels);
        // Across filters it is the best already.
        if let Some(of) = self.statistics.filter(|_| !matches!(self.method, Method::Pca | Method::Svd)) {
            chain = refit(layer, &chain, &of.groups, of.ridge)?;
        }
        Ok(Taken { chain, warning })
    }
}

/// A 1x1 convolution with these groups.
fn pointwise(out_channels: usize, groups: usize) -> Conv2d {
    Conv2d { groups, ..Conv2d::new(out_channels, 1) }
}

/// What a convolution does along one axis only.
fn along(conv: &Conv2d, axis: usize, out_channels: usize, groups: usize) -> Conv2d {
    let mut one = pointwise(out_channels, groups);
    one.kernel[axis] = conv.kernel[axis];
    one.stride[axis] = conv.stride[axis];
    one.padding[axis] = conv.padding[axis];
    one.dilation[axis] = conv.dilation[axis];
    one
}
