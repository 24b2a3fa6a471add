use crate::calibrate::{self, Calibration, Moments, Told, Values, output_error};
use crate::chain::{self, Chain, extents_after};
use crate::choose::{Choice, choose};
use crate::factor::single;
use crate::layer::{Layer, LayerOp};
use crate::method::{GroupRank, Ready, Statistics, Taken};
use crate::rank::{Budget, Limit, Quantity};
use crate::recompose::parts;
use crate::report::{GroupReport, LayerReport, Report};
use crate::{Error, Method, Rank, RankRule, Result, Settings, Spectrum};
use cofilter_graph::{Array, Graph, Model, NodeId, Op, decomposed_names};
use rayon::prelude::*;

/// Replaces each selected layer by layers whose product is near it, see [`Method`].
///
/// Whoever read the layer reads the last of the new ones, which has the bias; an output of the network stays an output. A
/// matrix of rank 0 (all zeros) gets rank 1, there being no empty layers.
///
/// Where a convolution has groups, each group is decomposed alone and all get the same rank: the largest any group
/// needs under a rule that looks at the spectrum, an equal share of an explicit total, rounded down.
///
/// Where a rule chooses a rank at which the new layers would have more multiply-accumulates *and* more numbers than the layer,
/// it stays unless `grow` is set, and the report says so; ranks by name and [`RankRule::Full`] are taken as they are.
///
/// # Errors
/// [`Error::Ratio`] and [`Error::Factor`] for numbers of a rule; [`Error::UnknownLayer`] and [`Error::NotALayer`] for names in
/// ranks, methods or exclusions; [`Error::Method`] for a method by name that the layer cannot have, [`Error::Rule`] for
/// methods without singular values; [`Error::NotSelected`], [`Error::Rank`], [`Error::TwoRanks`] and
/// [`Error::RankBelowGroups`] for ranks that do not fit; [`Error::Budget`] for one that is out of reach; [`Error::Graph`] for
/// weights that are not finite or new names that are taken; [`Error::NoConvergence`].
pub fn decompose(model: &Model, settings: &Settings) -> Result<(Model, Report)> {
    let mut selected = select(model, settings)?;
    selected.iter().try_for_each(|of| of.layer.check_finite())?;
    if let RankRule::Budget(budget) = &settings.rule {
        share_out(model, |_| 0, &mut selected, budget)?;
    }
    // The longest first, each to the next thread that is free.
    let mut order: Vec<usize> = (0..selected.len()).collect();
    let work = |i: &usize| {
        let Layer { filters, len, .. } = selected[*i].layer;
        filters * len * filters.min(len)
    };
    order.sort_by_key(|i| std::cmp::Reverse(work(i)));
    let mut results: Vec<(usize, Result<Replacement>)> =
        order.into_iter().par_bridge().map(|i| (i, replace(&selected[i], settings, None))).collect();
    results.sort_by_key(|(i, _)| *i);
    let replacements: Vec<Replacement> = results.into_iter().map(|(_, of)| of).collect::<Result<_>>()?;
    emit(model, settings, &selected, replacements)
}

/// As [`decompose`], with the least error of *outputs* for these images instead of the least error of weights: across filters the
/// projection of the outputs on their principal components (Zhang et al. 2016), for other methods with the last of the
/// new layers fitted by least squares. Spectra and energies are those of outputs across filters. Layers are taken one
/// after the other, see [`Calibration::asymmetric`].
///
/// The means of all outputs stay what they were: the bias makes up for it, or, where the layer has none and only a batch
/// normalisation reads it, the running mean there. Variances are those of least squares, below what they were:
/// [`crate::reestimate_batch_norm`], which is for decompositions by weights, would raise what is left with the errors.
///
/// # Errors
/// As [`decompose`]; [`Error::Calibration`] for images that do not fit; [`Error::Runtime`] where the network cannot be run.
pub fn decompose_calibrated(
    model: &Model,
    settings: &Settings,
    calibration: &Calibration<'_>,
) -> Result<(Model, Report)> {
    model.check_finite()?;
    // A place for the means of all outputs.
    let biased = with_biases(model, &select(model, settings)?)?;
    let mut selected = select(&biased, settings)?;
    selected.iter().try_for_each(|of| of.layer.check_finite())?;
    if let RankRule::Budget(budget) = &settings.rule {
        // Biases that the layers did not have, and that no batch normalisation takes.
        let consumers = model.graph().consumers();
        let bias = |layer: &Layer<'_>| {
            let stays = model.tensors(layer.id).len() == 1
                && normaliser(model.graph(), &consumers, layer.id).is_none();
            if stays { layer.filters } else { 0 }
        };
        share_out(model, bias, &mut selected, budget)?;
    }
    let mut original = Values::new(&biased, calibration)?;
    let mut values = Values::new(&biased, calibration)?;
    // The network with the products of the new layers.
    let mut now = biased.clone();
    // Nodes whose values are others than in the original network.
    let mut changed = vec![false; biased.graph().nodes().len()];
    let mut replacements = Vec::with_capacity(selected.len());
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(calibration.threads)
        .build()
        .map_err(|error| Error::Calibration { reason: error.to_string() })?;
    let mut told = Told::new("fitting to outputs", selected.len());
    for (done, of) in selected.iter().enumerate() {
        told.done(done);
        let input = biased.graph().node(of.layer.id).inputs()[0];
        let before = original.stream(&biased, input)?;
        // Up to the first layer that changes, both are the same.
        let differs = calibration.asymmetric && changed[input.index()];
        let read = if differs { Some(values.stream(&now, input)?) } else { None };
        let replacement = pool.install(|| {
            let groups = Moments::of(&of.layer, before, read, calibration)?;
            replace(of, settings, Some(&Statistics { groups, ridge: calibration.ridge }))
        })?;
        if replacement.replaces {
            let mut params = now.params().clone();
            let product = replacement.chain.product().weight;
            let tensors = params.get_mut(of.layer.id);
            tensors[0] =
                Array::new(tensors[0].dims().to_vec(), product.into_iter().map(single).collect::<Vec<_>>());
            if let Some(bias) = &replacement.bias {
                tensors[1] = bias.clone();
            }
            now = now.with_params(params)?;
            changed[of.layer.id.index()] = true;
            for (id, node) in biased.graph().iter() {
                changed[id.index()] |= node.inputs().iter().any(|input| changed[input.index()]);
            }
        }
        replacements.push(replacement);
    }
    let (small, mut report) = emit(&biased, settings, &selected, replacements)?;
    let small = without_idle_biases(model, &small)?;
    let (before, after) = (model.cost(), small.cost());
    (report.params_before, report.params_after) = (before.params(), after.params());
    Ok((small, report))
}

/// The network with a bias, of zeros where it has none, for each of these layers.
pub(crate) fn with_biases(model: &Model, selected: &[Selected<'_>]) -> Result<Model> {
    model.rewrite(|b, id, inputs| {
        let Some(layer) =
            selected.iter().map(|of| &of.layer).find(|layer| layer.id == id && layer.bias.is_none())
        else {
            return Ok(b.keep(id, inputs)?);
        };
        let op = chain::op(layer, &layer.as_conv(), true);
        let bias = Array::full(vec![layer.filters], 0.0);
        Ok(b.add(layer.name, op, inputs, vec![layer.weight.clone(), bias])?)
    })
}

/// Moves the biases of layers that had none to the batch normalisations behind them, and drops those of zeros.
fn without_idle_biases(model: &Model, small: &Model) -> Result<Model> {
    let graph = small.graph();
    let consumers = graph.consumers();
    // The layer of the original network whose place a node has.
    let had_bias = |name: &str| {
        Layer::all(model).into_iter().any(|layer| {
            let stands_for = name == layer.name || decomposed_names(name).contains(&layer.name);
            layer.bias.is_some() && stands_for
        })
    };
    let mut moved: Vec<Option<Array>> = vec![None; graph.nodes().len()];
    let mut bare = vec![false; graph.nodes().len()];
    for layer in Layer::all(small) {
        let Some(bias) = layer.bias.filter(|_| !had_bias(layer.name)) else { continue };
        if bias.data().iter().all(|v| *v == 0.0) {
            bare[layer.id.index()] = true;
        } else if let Some(reader) = normaliser(graph, &consumers, layer.id) {
            bare[layer.id.index()] = true;
            moved[reader.index()] = Some(bias.clone());
        }
    }
    small.rewrite(|b, id, inputs| {
        let name = graph.node(id).name();
        if bare[id.index()] {
            let layer = Layer::at(small, id).expect("only layers are bare");
            let op = chain::op(&layer, &layer.as_conv(), false);
            return Ok(b.add(name, op, inputs, vec![layer.weight.clone()])?);
        }
        match &moved[id.index()] {
            None => Ok(b.keep(id, inputs)?),
            Some(bias) => {
                let mut tensors = small.tensors(id).to_vec();
                let mean = tensors[2].data().iter().zip(bias.data()).map(|(m, b)| m - b).collect::<Vec<_>>();
                tensors[2] = Array::new(tensors[2].dims().to_vec(), mean);
                Ok(b.add(name, graph.node(id).op().clone(), inputs, tensors)?)
            }
        }
    })
}

/// The batch normalisation that alone reads a layer, if that is so.
fn normaliser(graph: &Graph, consumers: &[Vec<NodeId>], layer: NodeId) -> Option<NodeId> {
    match consumers[layer.index()].as_slice() {
        [reader] if !graph.outputs().contains(&layer) => {
            matches!(graph.node(*reader).op(), Op::BatchNorm(_)).then_some(*reader)
        }
        _ => None,
    }
}

/// The network with the new layers, and what was done.
fn emit(
    model: &Model,
    settings: &Settings,
    selected: &[Selected<'_>],
    replacements: Vec<Replacement>,
) -> Result<(Model, Report)> {
    let mut of_node: Vec<Option<(&Layer<'_>, &Replacement)>> = vec![None; model.graph().nodes().len()];
    for (of, replacement) in selected.iter().zip(&replacements) {
        if replacement.replaces {
            of_node[of.layer.id.index()] = Some((&of.layer, replacement));
        }
    }
    let small = model.rewrite(|b, id, inputs| match of_node[id.index()] {
        Some((layer, new)) => new.chain.emit(b, layer, new.bias.as_ref().or(layer.bias), inputs),
        None => b.keep(id, inputs),
    })?;
    let (before, after) = (model.cost(), small.cost());
    let (layers, kept): (Vec<_>, Vec<_>) = replacements.into_iter().partition(|r| r.replaces);
    let reports = |of: Vec<Replacement>| of.into_iter().map(|r| r.report).collect();
    let report = Report {
        settings: settings.clone(),
        layers: reports(layers),
        kept: reports(kept),
        params_before: before.params(),
        params_after: after.params(),
        macs_before: before.macs(),
        macs_after: after.macs(),
    };
    Ok((small, report))
}

/// A layer to decompose.
pub(crate) struct Selected<'a> {
    pub(crate) layer: Layer<'a>,
    pub(crate) method: Method,
    /// By name.
    requested: Option<Rank>,
    /// From a budget: the rank of a group, or nothing for a layer that stays.
    allotted: Option<Option<GroupRank>>,
}

/// The layers to decompose, in graph order.
pub(crate) fn select<'a>(model: &'a Model, settings: &Settings) -> Result<Vec<Selected<'a>>> {
    settings.rule.check()?;
    for name in &settings.exclude {
        Layer::find(model, "the exclude list", name)?;
    }
    for (name, method) in &settings.methods {
        let layer = Layer::find(model, "the list of methods", name)?;
        if let Some(reason) = method.unfit(&layer) {
            return Err(Error::Method { layer: name.clone(), method: method.name(), reason });
        }
        let unnamed = matches!(&settings.rule, RankRule::Ranks(ranks) if !ranks.contains_key(name));
        let unnamed = unnamed.then_some("the list of ranks does not name it");
        if let Some(reason) = left_alone(&layer, settings).or(unnamed) {
            return Err(Error::NotSelected { name: name.clone(), reason });
        }
    }
    let method_of = |layer: &Layer<'_>| {
        settings.methods.get(layer.name).copied().unwrap_or_else(|| settings.method.or_cross_filter(layer))
    };
    if let RankRule::Ranks(ranks) = &settings.rule {
        for (name, rank) in ranks {
            let layer = Layer::find(model, "the list of ranks", name)?;
            rank.of_group(&layer, method_of(&layer))?;
        }
    }
    let parts = parts(model);
    let mut selected = Vec::new();
    for layer in Layer::all(model) {
        let left_alone = left_alone(&layer, settings);
        let method = method_of(&layer);
        let requested = match &settings.rule {
            RankRule::Ranks(ranks) => match (ranks.get(layer.name), left_alone) {
                (None, _) => continue,
                (Some(_), Some(reason)) => {
                    return Err(Error::NotSelected { name: layer.name.into(), reason });
                }
                (rank, None) => rank.copied(),
            },
            _ if left_alone.is_some() || parts.contains(&layer.id) => continue,
            _ => None,
        };
        selected.push(Selected { layer, method, requested, allotted: None });
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

/// Chooses all ranks together, where a layer that is taken apart gets a bias of so many numbers.
fn share_out(
    model: &Model,
    bias: impl Fn(&Layer<'_>) -> usize + Sync,
    selected: &mut [Selected<'_>],
    budget: &Budget,
) -> Result<()> {
    let cost = model.cost();
    let (quantity, whole, per) = match budget.of {
        Quantity::Params => ("params", cost.params(), 1),
        Quantity::Bytes => ("bytes", 4 * cost.params(), 4),
        Quantity::Macs => ("macs", cost.macs(), 1),
    };
    let allowed = match budget.at_most {
        Limit::Count(count) => count,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a count"
        )]
        Limit::Share(share) => (whole as f64 * share) as usize,
    };
    let candidates: Vec<Vec<Candidate>> =
        selected.par_iter().map(|of| candidates(of, budget.of, bias(&of.layer))).collect::<Result<_>>()?;
    let dense: f64 = candidates.iter().map(|of| of[0].choice.cost).sum();
    let choices: Vec<Vec<Choice>> =
        candidates.iter().map(|of| of.iter().map(|candidate| candidate.choice).collect()).collect();
    let (whole, room) = (real(whole) / real(per), real(allowed) / real(per));
    let chosen = choose(&choices, room - (whole - dense)).ok_or_else(|| {
        let least: f64 =
            choices.iter().map(|of| of.iter().map(|c| c.cost).fold(f64::INFINITY, f64::min)).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let least = (whole - dense + least) as usize * per;
        Error::Budget { quantity, allowed, least }
    })?;
    for ((of, candidates), index) in selected.iter_mut().zip(candidates).zip(chosen) {
        of.allotted = Some(candidates[index].rank);
    }
    Ok(())
}

/// The layer at one rank; the first is the layer as it is.
struct Candidate {
    rank: Option<GroupRank>,
    choice: Choice,
}

/// Ranks at which a layer is cheaper than as it is.
fn candidates(of: &Selected<'_>, quantity: Quantity, bias: usize) -> Result<Vec<Candidate>> {
    let Selected { layer, method, .. } = of;
    if !method.has_spectrum() {
        return Err(Error::Rule { layer: layer.name.into(), method: method.name(), rule: "budget" });
    }
    let spectra = Ready::new(layer, *method, false, None, None)?.spectra().unwrap_or_default();
    let weights = layer.filters * layer.len;
    let cost = |weights: usize, macs: usize| real(if quantity == Quantity::Macs { macs } else { weights });
    let dense = Choice { cost: cost(weights, weights * layer.positions), loss: 0.0 };
    let mut found = vec![Candidate { rank: None, choice: dense }];
    let full = method.full_rank(layer);
    for output in 1..=full.output {
        let rank = Rank::One(output * layer.groups).of_group(layer, *method)?;
        let [weights, macs] = costs(layer, *method, rank);
        let cost = cost(weights + bias, macs);
        if cost >= dense.cost {
            break;
        }
        let whole: f64 = spectra.iter().map(|(output, _)| output.total).sum();
        let lost = |spectrum: &Spectrum, rank: usize| spectrum.total * (1.0 - spectrum.energy(rank));
        let loss: f64 = spectra
            .iter()
            .map(|(output, input)| {
                let of_input = input.as_ref().zip(rank.input).map_or(0.0, |(input, rank)| lost(input, rank));
                lost(output, rank.output) + of_input
            })
            .sum();
        let loss = if whole > 0.0 { loss / whole } else { 0.0 };
        found.push(Candidate { rank: Some(rank), choice: Choice { cost, loss } });
    }
    Ok(found)
}

/// Weights and multiply-accumulates of the layers that replace one.
pub(crate) fn costs(layer: &Layer<'_>, method: Method, rank: GroupRank) -> [usize; 2] {
    let mut extents = layer.extents;
    method.links(layer, rank).iter().fold([0, 0], |[weights, macs], form| {
        extents = extents_after(&form.conv, extents);
        let own = form.conv.out_channels
            * (form.channels / form.conv.groups)
            * form.conv.kernel[0]
            * form.conv.kernel[1];
        [weights + own, macs + own * extents[0] * extents[1]]
    })
}

/// The new layers, and what to tell about them.
struct Replacement {
    chain: Chain,
    /// Another one than the layer has.
    bias: Option<Array>,
    /// Not where the layer is better as it is.
    replaces: bool,
    report: LayerReport,
}

fn replace(of: &Selected<'_>, settings: &Settings, statistics: Option<&Statistics>) -> Result<Replacement> {
    let rule = &settings.rule;
    let Selected { layer, method, requested, allotted } = of;
    let named = requested.map(|rank| rank.of_group(layer, *method)).transpose()?;
    let known = named.or(allotted.flatten());
    let ready = Ready::new(layer, *method, true, statistics, known)?;
    let spectra = ready.spectra();
    let chosen: Vec<Option<GroupRank>> = match &spectra {
        Some(groups) => groups.iter().map(|of| rule.of_group(layer, *method, of)).collect(),
        None => vec![None; layer.groups],
    };
    let rank = match (known, allotted, &spectra) {
        (Some(rank), ..) => rank,
        // What it would be at the smallest loss tells why it stays.
        (None, Some(_), _) => method.full_rank(layer),
        (None, None, None) => rule.unseen(layer, *method)?,
        (None, None, Some(_)) => {
            let largest = chosen.iter().flatten().copied().reduce(GroupRank::max);
            largest.unwrap_or_else(|| method.full_rank(layer))
        }
    };
    let Taken { chain, warning } = ready.take_apart(rank)?;
    let errors = chain.errors(layer);
    let groups = errors.iter().zip(&chosen).enumerate().map(|(g, ([lost, whole], chosen))| {
        let relative = if *whole > 0.0 { lost / whole } else { 0.0 };
        let spectrum = spectra.as_ref().map(|groups| &groups[g]);
        let energy = match spectrum {
            Some((output, None)) => output.energy(rank.output),
            _ => 1.0 - relative,
        };
        GroupReport {
            chosen_rank: chosen.map(|rank| rank.output),
            chosen_input_rank: chosen.and_then(|rank| rank.input),
            energy,
            relative_error: relative.sqrt(),
            spectrum: spectrum.map(|(output, _)| output.clone()),
        }
    });
    let mut report = report(layer, *method, rank, groups.collect(), &errors);
    report.requested_rank = *requested;
    report.warning = warning;
    let mut bias = None;
    if let Some(of) = statistics {
        let product = chain.product().weight;
        let groups =
            of.groups.iter().zip(product.chunks_exact(layer.group_filters() * layer.len)).enumerate();
        let (mut lost, mut whole, mut biases) = (0.0, 0.0, Vec::with_capacity(layer.filters));
        for (g, (moments, weight)) in groups {
            let [a, b] = output_error(layer, g, moments, weight);
            lost += a;
            whole += b;
            biases.extend(calibrate::bias(layer, g, moments, weight).into_iter().map(single));
        }
        #[expect(clippy::cast_precision_loss, reason = "weights of a filter")]
        let few = of.groups.iter().any(|moments| moments.samples < 2.0 * layer.len as f64);
        if few && report.warning.is_none() {
            report.warning = Some(format!(
                "{} windows are few for {} weights a filter: the layer may be fitted to these images alone",
                of.groups[0].samples, layer.len
            ));
        }
        report.output_error = Some(if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 });
        bias = Some(Array::new(vec![layer.filters], biases));
    }
    let larger = report.macs_after > report.macs_before && report.params_after > report.params_before;
    let asked = settings.grow || matches!(rule, RankRule::Ranks(_) | RankRule::Full);
    Ok(Replacement { chain, bias, replaces: *allotted != Some(None) && (asked || !larger), report })
}

fn report(
    layer: &Layer<'_>,
    method: Method,
    rank: GroupRank,
    group_reports: Vec<GroupReport>,
    errors: &[[f64; 2]],
) -> LayerReport {
    let lost: f64 = errors.iter().map(|[lost, _]| lost).sum();
    let whole: f64 = errors.iter().map(|[_, whole]| whole).sum();
    // Means over the groups by their squared norms.
    let (energy, relative) = if whole > 0.0 {
        let kept: f64 = group_reports.iter().zip(errors).map(|(g, [_, whole])| whole * g.energy).sum();
        (kept / whole, lost / whole)
    } else {
        (1.0, 0.0)
    };
    let squares = group_reports
        .iter()
        .map(|g| g.spectrum.as_ref().map(|s| s.normalised.iter().map(|share| share * s.total)))
        .collect::<Option<Vec<_>>>();
    let bias = layer.bias.map_or(0, |b| b.data().len());
    let full = method.full_rank(layer);
    let [weights, macs_after] = costs(layer, method, rank);
    let macs = [layer.filters * layer.len * layer.positions, macs_after];
    let speedup = real(macs[0]) / real(macs[1]);
    LayerReport {
        name: layer.name.into(),
        method,
        kind: layer.kind(),
        filters: layer.filters,
        filter_len: layer.len,
        groups: layer.groups,
        full_rank: full.output * layer.groups,
        requested_rank: None,
        rank: rank.output * layer.groups,
        input_rank: rank.input.map(|input| input * layer.groups),
        energy,
        relative_error: relative.sqrt(),
        spectrum: squares.map(|groups| Spectrum::new(groups.into_iter().flatten().collect())),
        params_before: layer.filters * layer.len + bias,
        params_after: weights + bias,
        macs_before: macs[0],
        macs_after: macs[1],
        theoretical_speedup: speedup,
        break_even_rank: rank.input.is_none().then(|| real(rank.output * layer.groups) * speedup),
        output_error: None,
        warning: None,
        group_reports,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn real(count: usize) -> f64 {
    count as f64
}
