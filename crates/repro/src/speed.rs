//! Theoretical and measured gain of low rank, without data and without training.
//!
//! The weights are random and of exactly the rank in question, so that the decomposed network computes the same function
//! and its outputs can be compared in the run that times it.

use crate::machine::{self, Machine};
use crate::options::Options;
use crate::report::{Arm, BarSeries, Claim, Figure, Percentiles, Plot, Report, Table};
use crate::stage::{Key, Store};
use crate::timing;
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Graph, Init, Model, NodeId, Op, Params};
use cofilter_lowrank as lowrank;
use cofilter_runtime::Plan;
use cofilter_zoo as zoo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A network and the ranks it is decomposed to.
struct Subject {
    name: &'static str,
    graph: Graph,
    ranks: BTreeMap<String, usize>,
    /// Published figures of a layer: theoretical gain, CPU gain.
    published: BTreeMap<&'static str, [f64; 2]>,
}

/// Times of one dense layer and its decomposition.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LayerResult {
    layer: String,
    /// Rank it was given.
    rank: usize,
    full_rank: usize,
    dense_macs: usize,
    lowrank_macs: usize,
    /// By batch size: dense and low-rank.
    times: BTreeMap<usize, [Percentiles; 2]>,
    /// Largest difference of the outputs over the largest output.
    difference: f64,
}

/// Runs the experiment and writes its report.
///
/// # Errors
/// If outputs of the dense and the low-rank form differ, or a network cannot be compiled.
pub fn run(options: &Options) -> Result<Report> {
    let store = Store::open(&options.folder().join("stages"), options.fresh)?;
    let batches: &[usize] = if options.quick { &[1] } else { &[1, 8] };
    let mut arms = Vec::new();
    let mut claims = Vec::new();
    let mut figures = Vec::new();
    let mut tables = Vec::new();
    for subject in subjects()? {
        options.check_stop()?;
        eprintln!("{}: {} layers", subject.name, subject.ranks.len());
        let (dense, low) = models(&subject, options.seed)?;
        arms.extend(whole(&subject, [&dense, &low], batches, options, &store)?);
        let layers = layers(&subject, [&dense, &low], batches, options, &store)?;
        claims.extend(subject_claims(&subject, &layers, options));
        figures.push(figure(&subject, &layers, batches));
        tables.push(table(&subject, &layers, batches));
    }
    let mut report = Report {
        experiment: "speed".into(),
        summary: "Random weights of exactly the rank in question, so that dense and low-rank form compute the same function: \
                  BVLC AlexNet at the ranks of the paper's Table 4 (without force: None; with: L2), GoogLeNet, ResNet-18 and \
                  ResNet-50 with every convolution larger than 1x1 but the first at a third of full rank."
            .into(),
        commit: machine::commit(),
        command: options.command(),
        seeds: vec![options.seed],
        machine: Machine::here(options.thread_count(), cofilter_runtime::cpu_tier()),
        data: None,
        arms,
        claims,
        figures,
        tables,
        notes: vec![
            "Hardware, library and batch of the paper's timings are unknown; its gains are over its own dense layers, ours over \
             ours."
                .into(),
            "Grouped ranks are rounded down to a multiple of the groups, as the authors' decomposer does (201 becomes 200, 129 \
             becomes 128); the theoretical gains of Table 4 use the totals as printed."
                .into(),
        ],
    };
    report.notes.extend(store.foreign());
    report.write(&options.folder())?;
    Ok(report)
}

fn subjects() -> Result<Vec<Subject>> {
    let published_form = zoo::Config { auxiliary: false, ..zoo::Config::default() };
    let table4 = |name, ranks: [usize; 3], published: [[f64; 2]; 3]| -> Result<Subject> {
        let layers = ["conv3", "conv4", "conv5"];
        Ok(Subject {
            name,
            graph: zoo::by_name("bvlc_alexnet", &published_form)?,
            ranks: layers.map(String::from).into_iter().zip(ranks).collect(),
            published: layers.into_iter().zip(published).collect(),
        })
    };
    let third = |name, network: &str| -> Result<Subject> {
        let graph = zoo::by_name(network, &published_form)?;
        let ranks = third_of_full_rank(&graph);
        Ok(Subject { name, graph, ranks, published: BTreeMap::new() })
    };
    Ok(vec![
        table4("alexnet-none", [184, 201, 146], [[1.79, 1.78], [1.72, 1.60], [1.63, 1.47]])?,
        table4("alexnet-l2", [124, 106, 129], [[2.65, 2.45], [3.26, 2.76], [1.85, 1.64]])?,
        third("googlenet", "bvlc_googlenet")?,
        third("resnet18", "resnet18")?,
        third("resnet50", "resnet50")?,
    ])
}

/// A third of full rank for every convolution larger than 1x1 but the first.
pub(crate) fn third_of_full_rank(graph: &Graph) -> BTreeMap<String, usize> {
    let convolutions = graph.iter().filter_map(|(id, node)| match node.op() {
        Op::Conv2d(c) => Some((node, c, full_rank(graph, id))),
        _ => None,
    });
    let large = convolutions.skip(1).filter(|(_, c, _)| c.kernel != [1, 1]);
    large.map(|(node, _, full)| (node.name().to_owned(), (full / 3).max(1))).collect()
}

/// Full rank of a convolution, summed over its groups.
fn full_rank(graph: &Graph, id: NodeId) -> usize {
    let Op::Conv2d(c) = graph.node(id).op() else { return 0 };
    let columns: usize = graph.slots(id)[0].dims[1..].iter().product();
    c.groups * columns.min(c.out_channels / c.groups)
}

/// The dense network with weights of these ranks, and its decomposition; for inference, so that batch normalisation is
/// part of the weights before they are projected.
fn models(subject: &Subject, seed: u64) -> Result<(Model, Model)> {
    let model = Model::init(subject.graph.clone(), &Init::default(), seed)?;
    let model = cofilter_graph::for_inference(&model)?;
    let dense = lowrank::low_rank_random(&model, &subject.ranks)?;
    let settings = lowrank::Settings {
        rule: lowrank::RankRule::by_name(subject.ranks.clone()),
        ..lowrank::Settings::default()
    };
    let (low, _) = lowrank::decompose(&dense, &settings)?;
    Ok((dense, low))
}

fn whole(
    subject: &Subject,
    models: [&Model; 2],
    batches: &[usize],
    options: &Options,
    store: &Store,
) -> Result<Vec<Arm>> {
    let time = Duration::from_millis(if options.quick { 200 } else { 4_000 });
    let key = key("network", subject, options, time);
    let times: BTreeMap<usize, [Percentiles; 2]> = store.value(&key, || {
        difference(models).with_context(|| subject.name)?;
        times(models, batches, options, time)
    })?;
    let full_ranks: BTreeMap<String, usize> = subject
        .ranks
        .keys()
        .map(|l| Ok((l.clone(), full_rank(&subject.graph, subject.graph.find(l)?))))
        .collect::<Result<_>>()?;
    let given: BTreeMap<String, usize> =
        subject.ranks.keys().map(|l| Ok((l.clone(), rank_given(models[1], l)?))).collect::<Result<_>>()?;
    let arm = |form: usize| Arm {
        name: format!("{}-{}", subject.name, ["dense", "lowrank"][form]),
        parent: (form == 1).then(|| format!("{}-dense", subject.name)),
        ranks: if form == 1 { given.clone() } else { full_ranks.clone() },
        full_ranks: full_ranks.clone(),
        params: models[form].cost().params(),
        macs: models[form].cost().macs(),
        density: 1.0,
        latency_us: times.iter().map(|(batch, pair)| (*batch, pair[form])).collect(),
        ..Arm::default()
    };
    Ok(vec![arm(0), arm(1)])
}

fn key(kind: &str, subject: &Subject, options: &Options, time: Duration) -> Key {
    let here = Machine::here(options.thread_count(), cofilter_runtime::cpu_tier());
    // Measured anew by every other build of the program.
    let settings = (&subject.ranks, options.seed, options.quick, here, time.as_millis(), machine::commit());
    Key::new(&format!("{kind}-{}", subject.name), &[], &settings)
}

fn times(
    models: [&Model; 2],
    batches: &[usize],
    options: &Options,
    time: Duration,
) -> Result<BTreeMap<usize, [Percentiles; 2]>> {
    let pair = [("dense", models[0]), ("low-rank", models[1])];
    let one = |batch: &usize| {
        let measured = timing::latencies(&pair, *batch, options.thread_count(), time)?;
        Ok((*batch, [measured[0], measured[1]]))
    };
    batches.iter().map(one).collect()
}

/// Largest difference of the outputs of two networks over the largest output.
fn difference(models: [&Model; 2]) -> Result<f64> {
    let mut outputs = Vec::new();
    for model in models {
        let plan = Plan::compile(model, &cofilter_runtime::Options::default())?;
        let mut output = vec![0.0; plan.output_len()];
        plan.session().run(&timing::ramp(plan.input_len()), &mut output)?;
        outputs.push(output);
    }
    let pairs = || outputs[0].iter().zip(&outputs[1]).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let largest = pairs().map(|(a, _)| a.abs()).fold(0.0, f64::max);
    let difference = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
    ensure!(difference < 1e-3, "dense and low-rank outputs differ by {difference:e} of the largest value");
    Ok(difference)
}

fn layers(
    subject: &Subject,
    models: [&Model; 2],
    batches: &[usize],
    options: &Options,
    store: &Store,
) -> Result<Vec<LayerResult>> {
    let time = Duration::from_millis(if options.quick { 10 } else { 300 });
    store.value(&key("layers", subject, options, time), || {
        subject.ranks.keys().map(|layer| one_layer(layer, models, batches, options, time)).collect()
    })
}

fn one_layer(
    layer: &str,
    models: [&Model; 2],
    batches: &[usize],
    options: &Options,
    time: Duration,
) -> Result<LayerResult> {
    let dense = chain(models[0], &[layer.to_owned()])?;
    let low = chain(models[1], &[format!("{layer}_lowrank"), format!("{layer}_linear")])?;
    let conv = models[0].graph();
    Ok(LayerResult {
        layer: layer.to_owned(),
        rank: rank_given(models[1], layer)?,
        full_rank: full_rank(conv, conv.find(layer)?),
        dense_macs: dense.cost().macs(),
        lowrank_macs: low.cost().macs(),
        difference: difference([&dense, &low]).with_context(|| layer.to_owned())?,
        times: times([&dense, &low], batches, options, time)?,
    })
}

/// Number of basis filters of a decomposed layer.
fn rank_given(model: &Model, layer: &str) -> Result<usize> {
    let graph = model.graph();
    Ok(graph.node(graph.find(&format!("{layer}_lowrank"))?).shape().channels())
}

/// A network of these nodes alone, one after the other.
fn chain(model: &Model, names: &[String]) -> Result<Model> {
    let graph = model.graph();
    let first = graph.find(&names[0])?;
    let mut builder = Graph::builder();
    let mut value = builder.input("input", graph.input_shapes(first)[0])?;
    let mut params = vec![Vec::new()];
    for name in names {
        let id = graph.find(name)?;
        value = builder.add(name, graph.node(id).op().clone(), &[value])?;
        params.push(model.tensors(id).to_vec());
    }
    Ok(Model::new(builder.finish(&[value])?, Params::new(params))?)
}

#[expect(clippy::cast_precision_loss, reason = "operations are far below 2^53")]
fn theory(layer: &LayerResult) -> f64 {
    layer.dense_macs as f64 / layer.lowrank_macs as f64
}

/// Gain by operations of a convolution at a rank that need not be a multiple of its groups (paper, Table 4).
fn theory_at(graph: &Graph, id: NodeId, rank: usize) -> f64 {
    let Op::Conv2d(c) = graph.node(id).op() else { return f64::NAN };
    let filter_len = graph.slots(id)[0].dims[1..].iter().product();
    lowrank::theoretical_speedup(c.out_channels, filter_len, c.groups, rank)
}

fn measured(layer: &LayerResult, batch: usize) -> Option<f64> {
    layer.times.get(&batch).map(|[dense, low]| dense.p50 / low.p50)
}

/// Table 4: the theoretical gain from the printed rank to two decimals, and the CPU gain beside ours.
fn subject_claims(subject: &Subject, layers: &[LayerResult], options: &Options) -> Vec<Claim> {
    let mut claims = Vec::new();
    for layer in layers {
        let Some([theoretical, cpu]) = subject.published.get(layer.layer.as_str()) else { continue };
        let rank = subject.ranks[&layer.layer];
        let ours =
            subject.graph.find(&layer.layer).map_or(f64::NAN, |id| theory_at(&subject.graph, id, rank));
        let claim =
            |id: &str, statement: String, paper: f64, ours: f64, tolerance: Option<f64>, holds: bool| Claim {
                id: format!("{id}-{}-{}", subject.name, layer.layer),
                statement,
                paper: Some(paper),
                ours,
                interval: None,
                tolerance,
                holds,
                command: options.command(),
            };
        claims.push(claim(
            "theory",
            format!("{} at rank {rank}: theoretical gain of Table 4 to two decimals", layer.layer),
            *theoretical,
            ours,
            Some(0.005),
            (ours - theoretical).abs() <= 0.005 + 1e-9,
        ));
        for batch in layer.times.keys() {
            let gain = measured(layer, *batch).unwrap_or(f64::NAN);
            claims.push(claim(
                &format!("cpu-batch{batch}"),
                format!(
                    "{} at rank {}, batch {batch}: measured gain at least the paper's on its CPU",
                    layer.layer, layer.rank
                ),
                *cpu,
                gain,
                None,
                gain >= *cpu,
            ));
        }
    }
    claims
}

fn figure(subject: &Subject, layers: &[LayerResult], batches: &[usize]) -> Figure {
    let mut series = vec![BarSeries {
        name: "operations".into(),
        values: layers.iter().map(|l| Some(theory(l))).collect(),
    }];
    for batch in batches {
        let values = layers.iter().map(|l| measured(l, *batch)).collect();
        series.push(BarSeries { name: format!("time, batch {batch}"), values });
    }
    if !subject.published.is_empty() {
        let values = layers.iter().map(|l| subject.published.get(l.layer.as_str()).map(|p| p[1])).collect();
        series.push(BarSeries { name: "paper, CPU".into(), values });
    }
    Figure {
        id: format!("gain-{}", subject.name),
        title: format!("{}: gain of each layer", subject.name),
        caption: "Dense over low-rank: by multiply-accumulates, and by median time of interleaved runs."
            .into(),
        x_label: "layer".into(),
        y_label: "times faster".into(),
        plot: Plot::Bars { categories: layers.iter().map(|l| l.layer.clone()).collect(), series },
    }
}

fn table(subject: &Subject, layers: &[LayerResult], batches: &[usize]) -> Table {
    let mut columns: Vec<String> = ["layer", "rank", "full", "gain by operations"].map(String::from).into();
    for batch in batches {
        columns.extend([
            format!("dense us, batch {batch}"),
            "low-rank us".into(),
            "measured gain".into(),
            "realised".into(),
        ]);
    }
    columns.push("output difference".into());
    let row = |l: &LayerResult| {
        let mut row =
            vec![l.layer.clone(), l.rank.to_string(), l.full_rank.to_string(), format!("{:.2}", theory(l))];
        for batch in batches {
            let (Some(gain), Some([dense, low])) = (measured(l, *batch), l.times.get(batch)) else {
                continue;
            };
            row.extend([
                format!("{:.1}", dense.p50),
                format!("{:.1}", low.p50),
                format!("{gain:.2}"),
                format!("{:.2}", gain / theory(l)),
            ]);
        }
        row.push(format!("{:.0e}", l.difference));
        row
    };
    Table {
        title: format!("{}: layer by layer", subject.name),
        caption: "Realised: measured gain over gain by operations.".into(),
        columns,
        rows: layers.iter().map(row).collect(),
    }
}
