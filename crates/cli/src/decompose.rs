//! `cofilter decompose`.

use crate::convert::Target;
use crate::output::{Output, short, table};
use crate::source::Source;
use crate::verify::Limits;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use cofilter_graph::{Artifact, Model};
use cofilter_lowrank::{Method, RankRule, Report, Settings, decompose, recompose};
use serde::Serialize;
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
    rule: Rule,
    /// How the two factors are scaled
    #[arg(long, value_enum, default_value_t = MethodName::Pca)]
    method: MethodName,
    /// Decompose fully connected layers too
    #[arg(long)]
    linear: bool,
    /// Decompose 1x1 convolutions too
    #[arg(long)]
    pointwise: bool,
    /// Layers to leave as they are
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    exclude: Vec<String>,
}

/// How ranks are chosen.
#[derive(clap::Args)]
#[group(multiple = false)]
struct Rule {
    /// Smallest ranks that keep this share of the energy, the squares of the singular values [default: 0.95]
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
    /// Smallest ranks that keep this share of the norm (the authors' rule for `svd`)
    #[arg(long, value_name = "SHARE")]
    norm: Option<f64>,
    /// This share of the full rank of every layer
    #[arg(long, value_name = "SHARE")]
    ratio: Option<f64>,
    /// Ranks by layer: `conv1=5,conv2=20`, or a file, TOML or JSON, of layers and their ranks
    #[arg(long, value_name = "LIST")]
    ranks: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    /// Principal components
    Pca,
    /// Singular values, shared between both factors
    Svd,
}

impl Rule {
    fn read(&self) -> Result<RankRule> {
        Ok(match (self.energy, self.norm, self.ratio, &self.ranks) {
            (None, None, None, None) => RankRule::Energy(0.95),
            (Some(energy), ..) => RankRule::Energy(energy),
            (_, Some(norm), ..) => RankRule::Norm(norm),
            (_, _, Some(ratio), _) => RankRule::Ratio(ratio),
            (.., Some(list)) => RankRule::Ranks(ranks(list)?),
        })
    }
}

/// Ranks by name, from a list or a file.
fn ranks(list: &str) -> Result<BTreeMap<String, usize>> {
    if list.contains('=') {
        let pair = |pair: &str| {
            let (layer, rank) = pair.split_once('=').unwrap_or((pair, ""));
            let rank = rank.parse().with_context(|| format!("--ranks {pair}: expected LAYER=RANK"))?;
            Ok((layer.to_owned(), rank))
        };
        return list.split(',').map(pair).collect();
    }
    let path = Path::new(list);
    let text = std::fs::read_to_string(path).with_context(|| format!("--ranks {list}"))?;
    let named = |name: &str| path.extension().is_some_and(|extension| extension == name);
    let read: Result<BTreeMap<String, usize>, String> = match () {
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
    #[serde(flatten)]
    report: &'a Report,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let target = Target::of(&self.out, false)?;
        let settings = Settings {
            method: match self.method {
                MethodName::Pca => Method::Pca,
                MethodName::Svd => Method::Svd,
            },
            rule: self.rule.read()?,
            linear: self.linear,
            pointwise: self.pointwise,
            exclude: self.exclude.clone(),
        };
        let source = self.source.open()?;
        let (artifact, report) = apply(&source, &settings)?;
        // The small network is another one, and the file is to hold just that.
        let (_, verdict) = target.write(&artifact, &artifact.model, &self.out, Some(&Limits::default()))?;
        let verdict = verdict.context("nothing was verified")?;
        let not = if verdict.met { "" } else { "NOT written, " };
        let text = format!("{}\n{}: {not}{verdict}", text(&report), self.out.display());
        let written = Written { out: &self.out, written: verdict.met, report: &report };
        Ok(Output::new(text, &written)?.with_met(verdict.met))
    }
}

/// Decomposes a network anew, whatever was decomposed in it before.
pub(crate) fn apply(source: &Artifact, settings: &Settings) -> Result<(Artifact, Report)> {
    let dense: Model = recompose(&source.model)?;
    let (model, report) = decompose(&dense, settings)?;
    let mut artifact = Artifact::new(model);
    artifact.provenance = source.provenance.clone();
    artifact.provenance.parent_sha256 = Some(source.sha256());
    artifact.provenance.recipe = Some(serde_json::json!({ "decompose": settings, "ranks": report.ranks() }));
    Ok((artifact, report))
}

/// The ranks that [`apply`] noted in an artifact.
pub(crate) fn ranks_of(artifact: &Artifact) -> BTreeMap<String, usize> {
    let recipe = artifact.provenance.recipe.as_ref();
    let ranks = recipe.and_then(|recipe| serde_json::from_value(recipe["ranks"].clone()).ok());
    ranks.unwrap_or_default()
}

/// A report as a table.
pub(crate) fn text(report: &Report) -> String {
    let header = ["layer", "filters", "full rank", "rank", "energy", "weights", "MACs", "gain in MACs"];
    let rows = report.layers.iter().map(|layer| {
        vec![
            layer.name.clone(),
            layer.filters.to_string(),
            layer.full_rank.to_string(),
            layer.rank.to_string(),
            format!("{:.4}", layer.energy),
            format!("{} → {}", short(layer.params_before), short(layer.params_after)),
            format!("{} → {}", short(layer.macs_before), short(layer.macs_after)),
            format!("{:.2}", layer.theoretical_speedup),
        ]
    });
    #[expect(clippy::cast_precision_loss, reason = "a ratio with two digits")]
    let gain = report.macs_before as f64 / report.macs_after as f64;
    format!(
        "{}\n\nall: weights {} → {}, MACs {} → {}, {gain:.2} times fewer\n",
        table(&header, rows),
        short(report.params_before),
        short(report.params_after),
        short(report.macs_before),
        short(report.macs_after)
    )
}
