//! `cofilter decompose`.

use crate::convert::Target;
use crate::evaluate::{preprocessing, threads};
use crate::output::{Output, ToText as _, short};
use crate::source::Source;
use crate::verify::Limits;
use anyhow::{Context as _, Result, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use cofilter_data::{Augment, Pipeline, Split};
use cofilter_graph::{Artifact, Model, NodeId};
use cofilter_lowrank::target::{Survey, SurveySettings};
use cofilter_lowrank::{
    Budget, Calibration, LayerReport, Limit, Method, Quantity, Rank, RankRule, Report, Settings, decompose,
    decompose_calibrated, recompose, reestimate_batch_norm,
};
use cofilter_report::Table;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// The file to write: .safetensors or .onnx
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    sight: Sight,
}

/// What a decomposition looks at beside weights.
#[derive(clap::Args)]
pub(crate) struct Sight {
    /// Folder of a data set. The error of the outputs for some of its training images is made small, instead of that of the
    /// weights; labels are not looked at
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: Option<PathBuf>,
    /// How many images
    #[arg(long, default_value_t = IMAGES, requires = "data")]
    images: usize,
    /// Images of a run, for `--target-speedup`
    #[arg(long, default_value_t = 1, requires = "target_speedup")]
    batch: usize,
    /// Threads
    #[arg(long, default_value_t = threads())]
    threads: usize,
}

/// Images that are looked at, unless another number is given.
pub(crate) const IMAGES: usize = 512;

/// What is decomposed, and how.
#[derive(clap::Args)]
pub(crate) struct Choice {
    #[command(flatten)]
    rule: Rule,
    /// What layers are taken apart into [default: pca, for a target speedup several]; where it has no meaning, as `spatial` for a
    /// 1x1 convolution, `pca`
    #[arg(long, value_parser = method_names())]
    method: Option<Method>,
    /// Other methods for single layers: `conv1=spatial,conv2=spatial`
    #[arg(long, value_delimiter = ',', value_name = "LAYER=METHOD", value_parser = method_of_layer)]
    methods: Vec<(String, Method)>,
    /// Decompose fully connected layers too
    #[arg(long)]
    linear: bool,
    /// Decompose 1x1 convolutions too
    #[arg(long)]
    pointwise: bool,
    /// Replace layers even where that makes them larger and slower
    #[arg(long)]
    grow: bool,
    /// Layers to leave as they are
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    exclude: Vec<String>,
}

/// How ranks are chosen.
#[derive(clap::Args)]
#[group(multiple = false)]
struct Rule {
    /// Smallest ranks that keep this share of the energy, the squares of the singular values; `rank` takes several [default: 0.95;
    /// rank: 0.9,0.95,0.99]
    #[arg(long, value_delimiter = ',', value_name = "SHARE")]
    energy: Vec<f64>,
    /// Smallest ranks that keep this share of the norm (the authors' rule for `svd`)
    #[arg(long, value_name = "SHARE")]
    norm: Option<f64>,
    /// This share of the full rank of every layer
    #[arg(long, value_name = "SHARE")]
    ratio: Option<f64>,
    /// This many times the stable rank of every layer
    #[arg(long, value_name = "TIMES")]
    stable_rank: Option<f64>,
    /// Ranks that variational Bayes tells from noise: a hint, often far too low
    #[arg(long)]
    evbmf: bool,
    /// Ranks that lose the least within a budget for the whole network: `macs=0.5` for a share, `params=250000` or `bytes=1000000`
    /// for a number
    #[arg(long, value_name = "WHAT=MOST", value_parser = budget)]
    budget: Option<Budget>,
    /// Ways and ranks with which the network runs this many times as fast on this machine and loses the least, by measurement
    /// (needs `--data`)
    #[arg(long, value_name = "TIMES", requires = "data")]
    target_speedup: Option<f64>,
    /// Ranks by layer: `conv1=5,conv2=20` (`conv1=8/16`, input and output, for `tucker`), or a file, TOML or JSON, of layers and
    /// their ranks
    #[arg(long, value_name = "LIST")]
    ranks: Option<String>,
}

impl Rule {
    fn read(&self) -> Result<RankRule> {
        Ok(match self {
            Self { norm: Some(norm), .. } => RankRule::Norm(*norm),
            Self { ratio: Some(ratio), .. } => RankRule::Ratio(*ratio),
            Self { stable_rank: Some(times), .. } => RankRule::StableRank(*times),
            Self { evbmf: true, .. } => RankRule::Evbmf,
            Self { budget: Some(budget), .. } => RankRule::Budget(*budget),
            Self { ranks: Some(list), .. } => RankRule::Ranks(ranks(list)?),
            Self { energy, .. } => match energy.as_slice() {
                [] => RankRule::Energy(0.95),
                [energy] => RankRule::Energy(*energy),
                several => bail!("--energy: expected one share, found {}", several.len()),
            },
        })
    }
}

impl Choice {
    /// The shares of the energy that were given.
    pub(crate) fn energies(&self) -> &[f64] {
        &self.rule.energy
    }

    /// Whether nothing is said but shares of the energy.
    pub(crate) fn is_usual(&self) -> bool {
        let Rule { energy: _, norm, ratio, stable_rank, evbmf, budget, target_speedup, ranks } = &self.rule;
        let shares = [norm, ratio, stable_rank, target_speedup];
        let rule =
            *evbmf || budget.is_some() || ranks.is_some() || shares.iter().any(|share| share.is_some());
        let Self { rule: _, method, methods, linear, pointwise, grow, exclude } = self;
        let layers = *linear || *pointwise || *grow || !exclude.is_empty();
        !rule && !layers && method.is_none() && methods.is_empty()
    }

    fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            method: self.method.unwrap_or_default(),
            methods: self.methods.iter().cloned().collect(),
            rule: self.rule.read()?,
            linear: self.linear,
            pointwise: self.pointwise,
            grow: self.grow,
            exclude: self.exclude.clone(),
        })
    }
}

impl Choice {
    /// What a survey looks at: all methods that are usual, or the one that is given.
    fn survey(&self, batch: usize, threads: usize) -> Result<SurveySettings> {
        ensure!(!self.grow, "--grow: `--target-speedup` takes what is faster");
        ensure!(self.methods.is_empty(), "--methods: `--target-speedup` chooses the method of each layer");
        let usual = SurveySettings::default();
        Ok(SurveySettings {
            methods: self.method.map_or(usual.methods, |method| vec![method]),
            linear: self.linear,
            pointwise: self.pointwise,
            exclude: self.exclude.clone(),
            batch,
            threads,
            ..SurveySettings::default()
        })
    }
}

/// The methods by their names in settings.
fn method_names() -> impl TypedValueParser<Value = Method> {
    PossibleValuesParser::new(Method::ALL.map(Method::name)).map(|name| named(&name).unwrap_or_default())
}

fn named(name: &str) -> Option<Method> {
    Method::ALL.into_iter().find(|method| method.name() == name)
}

fn method_of_layer(text: &str) -> Result<(String, Method)> {
    let (layer, name) = text.split_once('=').context("expected LAYER=METHOD")?;
    let names = || Method::ALL.map(Method::name).join(", ");
    let method = named(name).with_context(|| format!("no method `{name}`; there are {}", names()))?;
    Ok((layer.to_owned(), method))
}

fn budget(text: &str) -> Result<Budget> {
    let (what, most) = text.split_once('=').context("expected WHAT=MOST")?;
    let of = match what {
        "params" => Quantity::Params,
        "macs" => Quantity::Macs,
        "bytes" => Quantity::Bytes,
        _ => bail!("expected params, macs or bytes, found `{what}`"),
    };
    let at_most = match most.parse::<usize>() {
        Ok(count) if !most.contains('.') && count != 1 => Limit::Count(count),
        _ => Limit::Share(most.parse().context("expected a share up to 1, or a number")?),
    };
    Ok(Budget { of, at_most })
}

/// Ranks by name, from a list or a file.
fn ranks(list: &str) -> Result<BTreeMap<String, Rank>> {
    if list.contains('=') {
        let pair = |pair: &str| {
            let (layer, rank) = pair.split_once('=').unwrap_or((pair, ""));
            let number =
                |text: &str| text.parse().with_context(|| format!("--ranks {pair}: expected LAYER=RANK"));
            let rank = match rank.split_once('/') {
                Some((input, output)) => Rank::Two([number(input)?, number(output)?]),
                None => Rank::One(number(rank)?),
            };
            Ok((layer.to_owned(), rank))
        };
        return list.split(',').map(pair).collect();
    }
    let path = Path::new(list);
    let text = std::fs::read_to_string(path).with_context(|| format!("--ranks {list}"))?;
    let named = |name: &str| path.extension().is_some_and(|extension| extension == name);
    let read: Result<BTreeMap<String, Rank>, String> = match () {
        () if named("json") => serde_json::from_str(&text).map_err(|error| error.to_string()),
        () if named("toml") => toml::from_str(&text).map_err(|error| error.to_string()),
        () => bail!("--ranks {list}: expected LAYER=RANK,..., a .toml or a .json file"),
    };
    read.map_err(|error| anyhow::anyhow!("{list}: {error}"))
}

#[derive(Serialize)]
struct Written<'a> {
    out: &'a Path,
    written: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: &'a Option<Speed>,
    #[serde(flatten)]
    report: &'a Report,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let target = Target::of(&self.out, false)?;
        let source = self.source.open()?;
        let Plan { artifact, report, reached, .. } =
            plan(&source, &self.source.model, &self.choice, &self.sight)?;
        // The small network is another one, and the file is to hold just that.
        let (_, verdict) = target.write(&artifact, &artifact.model, &self.out, Some(&Limits::default()))?;
        let verdict = verdict.context("nothing was verified")?;
        let not = if verdict.met { "" } else { "NOT written, " };
        let speed = reached.as_ref().map_or(String::new(), |of| format!("{of}\n"));
        let text = format!("{}\n{speed}{}: {not}{verdict}", text(&report), self.out.display());
        let written = Written { out: &self.out, written: verdict.met, reached: &reached, report: &report };
        let fast_enough = reached.as_ref().is_none_or(Speed::met);
        Ok(Output::new(text, &written)?.with_met(verdict.met && fast_enough))
    }
}

/// A decomposition as a command asks for it.
pub(crate) struct Plan {
    pub(crate) artifact: Artifact,
    pub(crate) report: Report,
    /// Where a speedup was asked for.
    pub(crate) reached: Option<Speed>,
    /// What was measured for it.
    pub(crate) survey: Option<Survey>,
}

/// Decomposes the network of this file.
pub(crate) fn plan(source: &Artifact, path: &Path, choice: &Choice, sight: &Sight) -> Result<Plan> {
    let Sight { data, images, batch, threads } = sight;
    ensure!((1..=1024).contains(threads), "--threads {threads}: expected 1 to 1024");
    ensure!(*images > 0, "--images 0: expected at least 1");
    if let Some(speedup) = choice.rule.target_speedup {
        ensure!(speedup.is_finite() && speedup > 1.0, "--target-speedup {speedup}: expected above 1");
        ensure!(*batch > 0, "--batch 0: expected at least 1");
    }
    let settings = choice.settings()?;
    let images = match data {
        None => None,
        Some(folder) => Some(sample(source, path, &cofilter_data::open(folder)?, *images)?),
    };
    let calibration = images.as_deref().map(|images| calibration(images, *threads));
    match (choice.rule.target_speedup, &calibration) {
        (Some(speedup), Some(calibration)) => {
            let survey = choice.survey(*batch, *threads)?;
            reach(source, &survey, speedup, calibration)
        }
        _ => {
            let (artifact, report) = apply(source, &settings, calibration.as_ref())?;
            Ok(Plan { artifact, report, reached: None, survey: None })
        }
    }
}

/// Inputs of some training images.
pub(crate) fn sample(source: &Artifact, path: &Path, split: &Split, count: usize) -> Result<Vec<f32>> {
    let of = preprocessing(source, path)?;
    // Resizing is of all images that there are.
    let pipeline = Pipeline::new(&split.train.spread(count), &of, &Augment::default(), 0)?;
    let (found, expected) = (pipeline.input_extents(), source.model.graph().input_shape());
    ensure!(
        found.as_slice() == expected.dims(),
        "data set `{}` gives images of {found:?}, the network takes {expected}",
        split.train.name()
    );
    Ok(pipeline.all()?)
}

/// As the commands calibrate.
pub(crate) fn calibration(images: &[f32], threads: usize) -> Calibration<'_> {
    Calibration { threads, ..Calibration::new(images) }
}

/// Decomposes a network anew, whatever was decomposed in it before; with images for the least error of outputs.
pub(crate) fn apply(
    source: &Artifact,
    settings: &Settings,
    calibration: Option<&Calibration<'_>>,
) -> Result<(Artifact, Report)> {
    let dense: Model = recompose(&source.model)?;
    let (model, report) = match calibration {
        None => decompose(&dense, settings)?,
        Some(calibration) => decompose_calibrated(&dense, settings, calibration)?,
    };
    let mut artifact = Artifact::new(model);
    artifact.provenance = source.provenance.clone();
    artifact.provenance.parent_sha256 = Some(source.sha256());
    artifact.provenance.recipe = Some(serde_json::json!({ "decompose": settings, "ranks": report.ranks() }));
    Ok((artifact, report))
}

/// New statistics of batch normalisations, moved by as much as the decomposition moved those of these images.
pub(crate) fn restate(small: &Artifact, original: &Model, calibration: &Calibration<'_>) -> Result<Artifact> {
    let model = reestimate_batch_norm(&small.model, Some(&recompose(original)?), calibration)?;
    let mut provenance = small.provenance.clone();
    if let Some(recipe) = &mut provenance.recipe {
        let images = calibration.images.len() / model.graph().input_shape().elements();
        recipe["batch_norm"] = serde_json::json!({ "images": images });
    }
    Ok(Artifact { model, provenance })
}

/// What was measured on the way to a speedup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Speed {
    target: f64,
    predicted: f64,
    pub(crate) measured: f64,
    batch: usize,
    threads: usize,
    divergence: f64,
}

/// How much slower than asked for a measurement may come out: two of the same network differ by as much.
const SLACK: f64 = 0.05;

impl Speed {
    /// Whether it is as fast as was asked for, within 5 %.
    pub(crate) fn met(&self) -> bool {
        self.measured >= self.target * (1.0 - SLACK)
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} times as fast was asked for (batch {}, {} thread(s)): expected {:.3}, measured {:.3}{}",
            self.target,
            self.batch,
            self.threads,
            self.predicted,
            self.measured,
            if self.met() { "" } else { ", more than 5 % too slow" }
        )
    }
}

/// Decomposes a network so that it runs this many times as fast, and measures it once more.
pub(crate) fn reach(
    source: &Artifact,
    survey: &SurveySettings,
    speedup: f64,
    calibration: &Calibration<'_>,
) -> Result<Plan> {
    let dense: Model = recompose(&source.model)?;
    let mut surveyed = Survey::measure(&dense, survey, calibration)?;
    let selection = surveyed.reach(&dense, speedup, SECONDS)?.selection;
    let (mut artifact, report) = apply(source, &selection.settings, Some(calibration))?;
    let predicted = selection.predicted_speedup;
    let measured = surveyed.speedup_of(&dense, &artifact.model, SECONDS)?;
    let (batch, threads) = (survey.batch, survey.threads);
    let speed =
        Speed { target: speedup, predicted, measured, batch, threads, divergence: selection.divergence };
    if let Some(recipe) = &mut artifact.provenance.recipe {
        recipe["speed"] = serde_json::to_value(&speed)?;
    }
    Ok(Plan { artifact, report, reached: Some(speed), survey: Some(surveyed) })
}

/// Of each measurement of a whole network.
const SECONDS: f64 = 1.5;

/// The ranks of what is decomposed in a network.
pub(crate) fn ranks_of(model: &Model) -> BTreeMap<String, Rank> {
    let graph = model.graph();
    let width = |id: NodeId| graph.node(id).shape().channels();
    let rank = |nodes: &[NodeId]| match nodes {
        // Tucker's two; the four links of CP have one rank.
        [reduce, core, _] => Rank::Two([width(*reduce), width(*core)]),
        [first, ..] => Rank::One(width(*first)),
        [] => Rank::One(0),
    };
    graph.decomposed().iter().map(|(name, nodes)| ((*name).to_owned(), rank(nodes))).collect()
}

/// The speedup that [`reach`] noted in an artifact.
pub(crate) fn speed_of(artifact: &Artifact) -> Option<Speed> {
    let recipe = artifact.provenance.recipe.as_ref()?;
    serde_json::from_value(recipe["speed"].clone()).ok()
}

/// The layers of a report.
pub(crate) fn table_of(report: &Report) -> Table {
    let columns =
        ["layer", "method", "filters", "full rank", "rank", "energy", "weights", "MACs", "gain in MACs"];
    let row = |layer: &LayerReport, rank: String| {
        vec![
            layer.name.clone(),
            layer.method.name().to_owned(),
            layer.filters.to_string(),
            layer.full_rank.to_string(),
            rank,
            format!("{:.4}", layer.energy),
            format!("{} → {}", short(layer.params_before), short(layer.params_after)),
            format!("{} → {}", short(layer.macs_before), short(layer.macs_after)),
            format!("{:.2}", layer.theoretical_speedup),
        ]
    };
    let ranks = report.ranks();
    let replaced = report.layers.iter().map(|layer| row(layer, ranks[&layer.name].to_string()));
    let kept = report.kept.iter().map(|layer| row(layer, format!("{}, stays", layer.rank)));
    Table {
        title: "Decomposition".into(),
        caption: "Layers as they would be taken apart, and those that would have become larger and slower, which stay.".into(),
        columns: columns.map(String::from).into(),
        rows: replaced.chain(kept).collect(),
    }
}

/// A report as text.
pub(crate) fn text(report: &Report) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a ratio with two digits")]
    let gain = report.macs_before as f64 / report.macs_after as f64;
    let mut text = format!(
        "{}\n\nall: weights {} → {}, MACs {} → {}, {gain:.2} times fewer\n",
        table_of(report).to_text(),
        short(report.params_before),
        short(report.params_after),
        short(report.macs_before),
        short(report.macs_after)
    );
    if !report.kept.is_empty() {
        text += match report.settings.rule {
            RankRule::Budget(_) => "layers that stay are within the budget as they are\n",
            _ => "layers that stay would have become larger and slower\n",
        };
    }
    for layer in &report.layers {
        if let Some(warning) = &layer.warning {
            text += &format!("{}: {warning}\n", layer.name);
        }
    }
    text
}
