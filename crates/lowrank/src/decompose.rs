use crate::factor::{Factors, Pair};
use crate::layer::{Layer, LayerOp};
use crate::recompose::halves;
use crate::report::{GroupReport, LayerReport, Report};
use crate::{Error, Method, RankRule, Result, Settings, Spectrum, break_even_rank, theoretical_speedup};
use cofilter_graph::{Array, Conv2d, Linear, Model, NodeId, Op, Rewriter};
use rayon::prelude::*;

/// Replaces each selected layer by a basis and a combination of it.
///
/// A convolution `[N, C/g, h, w]` of rank `M` becomes `<name>_lowrank` `[M, C/g, h, w]` with the layer's stride,
/// padding, dilation and groups and no bias, and `<name>_linear` `[N, M/g, 1, 1]` with its groups and bias. A fully
/// connected layer `[N, C]` becomes `[M, C]` and `[N, M]`. Whoever read the layer reads `<name>_linear`; an output of
/// the network stays an output. A matrix of rank 0 (all zeros) gets rank 1, there being no empty layers.
///
/// Where a convolution has groups, each group is decomposed alone and all get the same rank: the largest any group
/// needs under a rule that looks at the spectrum, an equal share of an explicit total, rounded down.
///
/// # Errors
/// [`Error::Ratio`] for a ratio outside `(0, 1]`; [`Error::UnknownLayer`] and [`Error::NotALayer`] for names in ranks
/// or exclusions; [`Error::NotSelected`], [`Error::Rank`] and [`Error::RankBelowGroups`] for ranks that do not fit;
/// [`Error::Graph`] for weights that are not finite or new names that are taken; [`Error::NoConvergence`].
pub fn decompose(model: &Model, settings: &Settings) -> Result<(Model, Report)> {
    let selected = select(model, settings)?;
    selected.iter().try_for_each(|(layer, _)| layer.check_finite())?;
    let results: Vec<Result<Replacement>> =
        selected.par_iter().map(|(layer, rank)| replace(layer, *rank, settings)).collect();
    let replacements: Vec<Replacement> = results.into_iter().collect::<Result<_>>()?;

    let mut of_node: Vec<Option<(&Layer<'_>, &Replacement)>> = vec![None; model.graph().nodes().len()];
    for ((layer, _), replacement) in selected.iter().zip(&replacements) {
        of_node[layer.id.index()] = Some((layer, replacement));
    }
    let small = model.rewrite(|b, id, inputs| match of_node[id.index()] {
        Some((layer, replacement)) => emit(b, layer, replacement, inputs),
        None => b.keep(id, inputs),
    })?;
    let (before, after) = (model.cost(), small.cost());
    let report = Report {
        settings: settings.clone(),
        layers: replacements.into_iter().map(|r| r.report).collect(),
        params_before: before.params(),
        params_after: after.params(),
        macs_before: before.macs(),
        macs_after: after.macs(),
    };
    Ok((small, report))
}

/// The layers to decompose, in graph order, each with its total rank where that was given by name.
fn select<'a>(model: &'a Model, settings: &Settings) -> Result<Vec<(Layer<'a>, Option<usize>)>> {
    settings.rule.check()?;
    for name in &settings.exclude {
        Layer::find(model, "the exclude list", name)?;
    }
    if let RankRule::Ranks(ranks) = &settings.rule {
        for (name, rank) in ranks {
            check_rank(&Layer::find(model, "the list of ranks", name)?, *rank)?;
        }
    }
    let halves = halves(model.graph());
    let mut selected = Vec::new();
    for layer in Layer::all(model) {
        let left_alone = left_alone(&layer, settings);
        match &settings.rule {
            RankRule::Ranks(ranks) => match (ranks.get(layer.name), left_alone) {
                (None, _) => {}
                (Some(_), Some(reason)) => {
                    return Err(Error::NotSelected { name: layer.name.into(), reason });
                }
                (Some(rank), None) => selected.push((layer, Some(*rank))),
            },
            _ if left_alone.is_some() || halves.contains(&layer.id) => {}
            _ => selected.push((layer, None)),
        }
    }
    Ok(selected)
}

/// Why the settings leave a layer alone.
fn left_alone(layer: &Layer<'_>, settings: &Settings) -> Option<&'static str> {
    if settings.exclude.iter().any(|name| name == layer.name) {
        Some("the exclude list names it too")
    } else if matches!(layer.op, LayerOp::Linear(_)) && !settings.linear {
        Some("it is a fully connected layer and `linear` is off")
    } else if layer.is_pointwise() && !settings.pointwise {
        Some("it is a 1x1 convolution and `pointwise` is off")
    } else {
        None
    }
}

pub(crate) fn check_rank(layer: &Layer<'_>, rank: usize) -> Result<()> {
    let full = layer.full_rank();
    if rank == 0 || rank > full {
        return Err(Error::Rank { layer: layer.name.into(), rank, full });
    }
    if rank < layer.groups {
        return Err(Error::RankBelowGroups { layer: layer.name.into(), rank, groups: layer.groups });
    }
    Ok(())
}

/// The numbers of the two new layers, and what to tell about them.
struct Replacement {
    /// `[rank, len]` row-major, group after group.
    basis: Vec<f32>,
    /// `[filters, rank / groups]` row-major, group after group.
    combination: Vec<f32>,
    rank: usize,
    report: LayerReport,
}

fn replace(layer: &Layer<'_>, requested: Option<usize>, settings: &Settings) -> Result<Replacement> {
    let groups = (0..layer.groups)
        .map(|g| Factors::new(layer.name, layer.group(g), layer.group_filters(), layer.len, true))
        .collect::<Result<Vec<_>>>()?;
    let spectra: Vec<Spectrum> = groups.iter().map(|f| Spectrum::new(f.squares.clone())).collect();
    let chosen: Vec<Option<usize>> = spectra.iter().map(|s| s.rank(&settings.rule)).collect();
    let group_rank = match requested {
        Some(total) => total / layer.groups,
        None => chosen.iter().flatten().copied().max().unwrap_or(1),
    };
    let (pairs, group_reports) = truncate(layer, &groups, spectra, group_rank, settings.method);
    let (basis, combination): (Vec<_>, Vec<_>) = pairs.into_iter().map(|p| (p.basis, p.combination)).unzip();
    let mut group_reports = group_reports;
    group_reports.iter_mut().zip(chosen).for_each(|(report, chosen)| report.chosen_rank = chosen);
    Ok(Replacement {
        basis: basis.concat(),
        combination: combination.concat(),
        rank: group_rank * layer.groups,
        report: report(layer, requested, group_rank, group_reports),
    })
}

/// Every group at this rank, as stored, and what is lost.
fn truncate(
    layer: &Layer<'_>,
    groups: &[Factors],
    spectra: Vec<Spectrum>,
    rank: usize,
    method: Method,
) -> (Vec<Pair>, Vec<GroupReport>) {
    let of_group = |(g, (factors, spectrum)): (usize, (&Factors, Spectrum))| {
        let pair = factors.pair(rank, method);
        let relative_error = pair.relative_error(layer.group(g), layer.len);
        let energy = spectrum.energy(rank);
        (pair, GroupReport { chosen_rank: None, energy, relative_error, spectrum })
    };
    groups.iter().zip(spectra).enumerate().map(of_group).unzip()
}

fn report(
    layer: &Layer<'_>,
    requested_rank: Option<usize>,
    group_rank: usize,
    group_reports: Vec<GroupReport>,
) -> LayerReport {
    let rank = group_rank * layer.groups;
    let whole: f64 = group_reports.iter().map(|g| g.spectrum.total).sum();
    // Mean over the groups by their squared norms; of equal weight where all are zeros.
    let over_groups = |of_group: &dyn Fn(&GroupReport) -> f64, of_zeros: f64| {
        if whole > 0.0 {
            group_reports.iter().map(|g| g.spectrum.total * of_group(g)).sum::<f64>() / whole
        } else {
            of_zeros
        }
    };
    let squares =
        group_reports.iter().flat_map(|g| g.spectrum.normalised.iter().map(|s| s * g.spectrum.total));
    let bias = layer.bias.map_or(0, |b| b.data().len());
    let weights_after = rank * (layer.len + layer.group_filters());
    LayerReport {
        name: layer.name.into(),
        kind: layer.kind(),
        filters: layer.filters,
        filter_len: layer.len,
        groups: layer.groups,
        full_rank: layer.full_rank(),
        requested_rank,
        rank,
        energy: over_groups(&|g| g.energy, 1.0),
        relative_error: over_groups(&|g| g.relative_error * g.relative_error, 0.0).sqrt(),
        spectrum: Spectrum::new(squares.collect()),
        params_before: layer.filters * layer.len + bias,
        params_after: weights_after + bias,
        macs_before: layer.filters * layer.len * layer.positions,
        macs_after: weights_after * layer.positions,
        theoretical_speedup: theoretical_speedup(layer.filters, layer.len, layer.groups, rank),
        break_even_rank: break_even_rank(layer.filters, layer.len, layer.groups),
        group_reports,
    }
}

fn emit(
    b: &mut Rewriter<'_>,
    layer: &Layer<'_>,
    new: &Replacement,
    inputs: &[NodeId],
) -> cofilter_graph::Result<NodeId> {
    let (basis_op, combination_op, basis_dims, combination_dims) = match layer.op {
        LayerOp::Conv2d(conv) => {
            let mut basis_dims = layer.weight.dims().to_vec();
            basis_dims[0] = new.rank;
            (
                Op::Conv2d(Conv2d { out_channels: new.rank, bias: false, ..conv.clone() }),
                Op::Conv2d(Conv2d {
                    groups: conv.groups,
                    bias: conv.bias,
                    ..Conv2d::new(conv.out_channels, 1)
                }),
                basis_dims,
                vec![layer.filters, new.rank / layer.groups, 1, 1],
            )
        }
        LayerOp::Linear(linear) => (
            Op::Linear(Linear { out_features: new.rank, bias: false }),
            Op::Linear(linear.clone()),
            vec![new.rank, layer.len],
            vec![layer.filters, new.rank],
        ),
    };
    let basis = Array::new(basis_dims, new.basis.as_slice());
    let combination = Array::new(combination_dims, new.combination.as_slice());
    let x = b.add(&format!("{}_lowrank", layer.name), basis_op, inputs, vec![basis])?;
    let tensors = [Some(combination), layer.bias.cloned()].into_iter().flatten().collect();
    b.add(&format!("{}_linear", layer.name), combination_op, &[x], tensors)
}
