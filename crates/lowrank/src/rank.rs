use crate::layer::Layer;
use crate::method::GroupRank;
use crate::{Error, Method, Result, Spectrum, evbmf_rank};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Rank of one layer, summed over its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rank {
    /// The rank; of [`Method::Tucker`] that of the output side, the input side getting the same share of its full rank.
    One(usize),
    /// `[input, output]`, for [`Method::Tucker`] only.
    Two([usize; 2]),
}

impl From<usize> for Rank {
    fn from(rank: usize) -> Self {
        Self::One(rank)
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(rank) => write!(f, "{rank}"),
            Self::Two([input, output]) => write!(f, "{input}/{output}"),
        }
    }
}

/// How the rank of each layer is chosen. `sigma` are the singular values of the matrix that the method cuts, per group where a
/// convolution has groups; the groups of a layer then all get the largest of their ranks, so that they stay equal.
///
/// [`Method::Tucker`] cuts two matrices. Under [`RankRule::Energy`] and [`RankRule::Norm`] each side may lose half of what the
/// layer may lose, so that the layer keeps what was asked for; the other rules hold for each side alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankRule {
    /// Smallest `M` with `sum_{m<=M} sigma_m^2 / sum_m sigma_m^2 >= ratio` (the authors' rule for `pca`;
    /// 0.95 is "at most 5 % PCA error").
    Energy(f64),
    /// Smallest `M` with `sqrt(sum_{m<=M} sigma_m^2 / sum_m sigma_m^2) >= ratio` (the authors' rule for `svd`:
    /// 0.95 keeps only 90.25 % of the energy).
    Norm(f64),
    /// This share of full rank, rounded to the nearest rank and at least 1.
    Ratio(f64),
    /// This many times the stable rank `||W||_F^2 / ||W||_2^2`, rounded up, at most full rank.
    StableRank(f64),
    /// The rank that the analytic solution of empirical variational Bayesian matrix factorisation tells from noise
    /// ([`crate::evbmf_rank`]), at least 1. A hint: it takes weak directions for noise, whatever they are worth.
    Evbmf,
    /// The ranks that lose the least, summed over the layers, the squared error of each relative to its squared norm, within this
    /// budget for the whole network.
    Budget(Budget),
    /// Ranks by layer name; layers not named stay as they are. For a convolution with groups this is the rank summed
    /// over the groups, rounded down to a multiple of their number as the authors do.
    Ranks(BTreeMap<String, Rank>),
    /// Full rank: an equivalent network, the start of rank pruning.
    Full,
}

/// Most that a network may cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What is counted.
    pub of: Quantity,
    /// Most of it.
    pub at_most: Limit,
}

/// What a network costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Learnt numbers.
    Params,
    /// Multiply-accumulates for one image.
    Macs,
    /// Bytes of the learnt numbers, four each.
    Bytes,
}

/// An amount.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// A share of what the network costs before, in `(0, 1]`.
    Share(f64),
    /// That many.
    Count(usize),
}

impl RankRule {
    /// [`RankRule::Ranks`] of these layers.
    pub fn by_name<N: Into<String>, R: Into<Rank>>(ranks: impl IntoIterator<Item = (N, R)>) -> Self {
        Self::Ranks(ranks.into_iter().map(|(name, rank)| (name.into(), rank.into())).collect())
    }

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// [`Error::Ratio`] outside `(0, 1]`, [`Error::Factor`] for a factor that is not positive.
    pub fn check(&self) -> Result<()> {
        let (what, value) = match self {
            Self::Energy(value) => ("energy", *value),
            Self::Norm(value) => ("norm", *value),
            Self::Ratio(value) => ("rank", *value),
            Self::Budget(Budget { at_most: Limit::Share(value), .. }) => ("budget", *value),
            Self::StableRank(value) if !(value.is_finite() && *value > 0.0) => {
                return Err(Error::Factor { value: *value });
            }
            Self::StableRank(_) | Self::Evbmf | Self::Budget(_) | Self::Ranks(_) | Self::Full => {
                return Ok(());
            }
        };
        // NaN fails both comparisons.
        if value > 0.0 && value <= 1.0 { Ok(()) } else { Err(Error::Ratio { what, value }) }
    }

    /// Word for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Energy(_) => "energy",
            Self::Norm(_) => "norm",
            Self::Ratio(_) => "ratio",
            Self::StableRank(_) => "stable_rank",
            Self::Evbmf => "evbmf",
            Self::Budget(_) => "budget",
            Self::Ranks(_) => "ranks",
            Self::Full => "full",
        }
    }

    /// The rank that a group gets alone, from the spectra of its sides; `None` for rules that are not of one group.
    pub(crate) fn of_group(
        &self,
        layer: &Layer<'_>,
        method: Method,
        (output, input): &(Spectrum, Option<Spectrum>),
    ) -> Option<GroupRank> {
        let sides = if input.is_some() { 2.0 } else { 1.0 };
        let [output_dims, input_dims] = unfolded(layer, method);
        let of = |spectrum: &Spectrum, [rows, columns]: [usize; 2]| match self {
            Self::Energy(ratio) => Some(spectrum.rank_at_energy(1.0 - (1.0 - ratio) / sides)),
            Self::Norm(ratio) if input.is_none() => Some(spectrum.rank_at_norm(*ratio)),
            Self::Norm(ratio) => Some(spectrum.rank_at_energy(1.0 - (1.0 - ratio * ratio) / sides)),
            Self::Ratio(ratio) => Some(share(spectrum.full_rank(), *ratio)),
            Self::StableRank(factor) => Some(spectrum.stable(*factor)),
            Self::Evbmf => Some(evbmf_rank(&spectrum.singular_values(), rows, columns).max(1)),
            Self::Full => Some(spectrum.full_rank()),
            Self::Budget(_) | Self::Ranks(_) => None,
        };
        Some(GroupRank {
            output: of(output, output_dims)?,
            input: match input {
                Some(input) => Some(of(input, input_dims)?),
                None => None,
            },
        })
    }

    /// The rank of a group without looking at it, for methods without a spectrum.
    pub(crate) fn unseen(&self, layer: &Layer<'_>, method: Method) -> Result<GroupRank> {
        let full = method.full_rank(layer);
        match self {
            Self::Ratio(ratio) => Ok(GroupRank { output: share(full.output, *ratio), input: None }),
            Self::Full if method == Method::Kmeans => Ok(full),
            _ => Err(Error::Rule { layer: layer.name.into(), method: method.name(), rule: self.name() }),
        }
    }
}

/// Extents of the matrices that a method cuts: `[rows, columns]` of the output side and of the input side.
fn unfolded(layer: &Layer<'_>, method: Method) -> [[usize; 2]; 2] {
    let (filters, channels, [rows, columns]) =
        (layer.group_filters(), layer.group_channels(), layer.kernel());
    let input = [channels, filters * rows * columns];
    match method {
        Method::Spatial => [[channels * rows, filters * columns], input],
        Method::Channel => [input, input],
        _ => [[filters, layer.len], input],
    }
}

impl Rank {
    /// Checked, a group's part of it: rounded down.
    pub(crate) fn of_group(self, layer: &Layer<'_>, method: Method) -> Result<GroupRank> {
        let full = method.full_rank(layer);
        let groups = layer.groups;
        let checked = |rank: usize, full: usize| {
            let full = full * groups;
            if rank == 0 || rank > full {
                return Err(Error::Rank { layer: layer.name.into(), rank, full });
            }
            if rank < groups {
                return Err(Error::RankBelowGroups { layer: layer.name.into(), rank, groups });
            }
            Ok(rank / groups)
        };
        match (self, full.input) {
            (Self::One(output), None) => Ok(GroupRank { output: checked(output, full.output)?, input: None }),
            (Self::One(output), Some(input)) => {
                let output = checked(output, full.output)?;
                #[expect(clippy::cast_precision_loss, reason = "ranks are far below 2^53")]
                let ratio = output as f64 / full.output as f64;
                Ok(GroupRank { output, input: Some(share(input, ratio)) })
            }
            (Self::Two([input, output]), Some(full_input)) => Ok(GroupRank {
                output: checked(output, full.output)?,
                input: Some(checked(input, full_input)?),
            }),
            (Self::Two(_), None) => {
                Err(Error::TwoRanks { layer: layer.name.into(), method: method.name(), rank: self })
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank far below 2^53 times a ratio in (0, 1]"
)]
pub(crate) fn share(full: usize, ratio: f64) -> usize {
    ((full as f64 * ratio).round() as usize).max(1)
}
