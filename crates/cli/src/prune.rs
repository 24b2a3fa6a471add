//! `cofilter prune`.

use crate::convert::Target;
use crate::output::{Output, short, table};
use crate::source::Source;
use crate::verify::Limits;
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use cofilter_graph::{Artifact, Model};
use cofilter_sparsity::{
    Grouping, LayerDensity, Pattern, Pruning, Removal, Scope, TotalDensity, compact, density,
    prune_magnitude, total_density,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// The file to write: .safetensors or .onnx
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Fraction of the weights that become zero, the smallest ones first
    #[arg(long, default_value_t = 0.0)]
    sparsity: f64,
    /// What is pruned together: all layers by one threshold, or each alone
    #[arg(long, value_enum, default_value_t = Together::Network)]
    scope: Together,
    /// What becomes zero together: elements, filters, channels, columns, layer, blocks such as 1x4, or n of m channels such as 2:4
    #[arg(long, default_value = "elements", value_parser = pattern)]
    pattern: Pattern,
    /// Fractions of layers of their own: LAYER=FRACTION,...
    #[arg(long, value_delimiter = ',', value_name = "LAYER=FRACTION", value_parser = fraction)]
    layers: Vec<(String, f64)>,
    /// Layers to leave as they are
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    exclude: Vec<String>,
    /// Take out channels, filters and residual blocks that are all zero
    #[arg(long)]
    compact: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Together {
    Network,
    Layer,
}

/// A pattern by its name.
fn pattern(text: &str) -> Result<Pattern, String> {
    let pair = |separator: char| -> Option<[usize; 2]> {
        let (first, second) = text.split_once(separator)?;
        Some([first.parse().ok()?, second.parse().ok()?])
    };
    Ok(match (text, pair('x'), pair(':')) {
        ("elements", ..) => Pattern::Elements,
        ("filters", ..) => Pattern::Groups(Grouping::Filters),
        ("channels", ..) => Pattern::Groups(Grouping::Channels),
        ("columns", ..) => Pattern::Groups(Grouping::Columns),
        ("layer", ..) => Pattern::Groups(Grouping::Layer),
        (_, Some([rows, columns]), _) => Pattern::Groups(Grouping::Blocks { rows, columns }),
        (_, _, Some([n, m])) => Pattern::NOfM { n, m },
        _ => {
            return Err("expected elements, filters, channels, columns, layer, blocks such as 1x4, or n:m such as 2:4".into());
        }
    })
}

fn fraction(text: &str) -> Result<(String, f64), String> {
    let (layer, fraction) = text.rsplit_once('=').ok_or("expected LAYER=FRACTION")?;
    let fraction = fraction.parse().map_err(|_| format!("`{fraction}` is no number"))?;
    Ok((layer.to_owned(), fraction))
}

/// What became of a network.
#[derive(Serialize)]
pub(crate) struct Report {
    layers: Vec<LayerDensity>,
    #[serde(flatten)]
    total: TotalDensity,
    /// Weights of the network before over those that are left and not zero.
    compression: Option<f64>,
    macs_before: usize,
    macs_after: usize,
    removals: Vec<Removal>,
}

impl Report {
    fn new(before: &Model, after: &Model, removals: Vec<Removal>) -> Self {
        let layers = density(after);
        let total = total_density(&layers);
        let weights = total_density(&density(before)).weights;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let rate = (total.nonzeros > 0).then(|| weights as f64 / total.nonzeros as f64);
        let (macs_before, macs_after) = (before.cost().macs(), after.cost().macs());
        Self { layers, total, compression: rate, macs_before, macs_after, removals }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let rows = self.layers.iter().map(|layer| {
            vec![
                layer.name.clone(),
                short(layer.weights),
                format!("{:.3}", layer.density),
                format!("{} of {}", layer.zero_filters, layer.filters),
                format!("{} of {}", layer.zero_columns, layer.columns),
            ]
        });
        let mut text = table(&["layer", "weights", "density", "zero filters", "zero columns"], rows);
        text += &format!(
            "\n\nleft: {} of {} weights are not zero, density {:.3}",
            short(self.total.nonzeros),
            short(self.total.weights),
            self.total.density
        );
        if let Some(rate) = self.compression {
            text += &format!(", compression rate {rate:.2}");
        }
        text += &format!("\nMACs {} → {}", short(self.macs_before), short(self.macs_after));
        for removal in &self.removals {
            let Removal { layer, filters_before, filters, inputs_before, inputs, .. } = removal;
            text += &format!(
                "\n{layer}: {} of {filters_before} filters and {} of {inputs_before} inputs taken out",
                filters.len(),
                inputs.len()
            );
        }
        text + "\n"
    }
}

/// Prunes a network.
pub(crate) fn apply(source: &Artifact, pruning: &Pruning) -> Result<(Artifact, Report)> {
    let (model, _) = prune_magnitude(&source.model, pruning)?;
    let report = Report::new(&source.model, &model, Vec::new());
    Ok((child(source, model, serde_json::json!({ "prune": pruning })), report))
}

/// Takes out what is all zero.
pub(crate) fn shrink(source: &Artifact) -> Result<(Artifact, Report)> {
    let (model, removals) = compact(&source.model)?;
    let report = Report::new(&source.model, &model, removals);
    Ok((child(source, model, serde_json::json!("compact")), report))
}

fn child(source: &Artifact, model: Model, recipe: serde_json::Value) -> Artifact {
    let mut artifact = Artifact::new(model);
    artifact.provenance = source.provenance.clone();
    artifact.provenance.parent_sha256 = Some(source.sha256());
    artifact.provenance.recipe = Some(recipe);
    artifact
}

impl Args {
    fn pruning(&self) -> Result<Pruning> {
        let scope = match self.scope {
            Together::Network => Scope::Network,
            Together::Layer => Scope::Layer,
        };
        let mut layers = BTreeMap::new();
        for (layer, fraction) in &self.layers {
            ensure!(layers.insert(layer.clone(), *fraction).is_none(), "--layers: {layer} is named twice");
        }
        let pruning = Pruning {
            sparsity: self.sparsity,
            scope,
            pattern: self.pattern,
            layers,
            exclude: self.exclude.clone(),
        };
        pruning.check()?;
        let nothing =
            self.sparsity == 0.0 && self.layers.is_empty() && !matches!(self.pattern, Pattern::NOfM { .. });
        if nothing && !self.compact {
            bail!("nothing to do: expected `--sparsity`, `--layers`, a pattern such as 2:4, or `--compact`");
        }
        Ok(pruning)
    }

    pub(crate) fn run(&self) -> Result<Output> {
        #[derive(Serialize)]
        struct Written<'a> {
            out: &'a PathBuf,
            written: bool,
            #[serde(flatten)]
            report: &'a Report,
        }
        let target = Target::of(&self.out, false)?;
        let pruning = self.pruning()?;
        let source = self.source.open()?;
        let (pruned, mut report) = apply(&source, &pruning)?;
        let mut artifact = pruned;
        if self.compact {
            let zeroed = artifact.model;
            let (model, removals) = compact(&zeroed)?;
            report = Report::new(&source.model, &model, removals);
            artifact.model = model;
        }
        // The sparse network is another one, and the file is to hold just that.
        let (_, verdict) = target.write(&artifact, &artifact.model, &self.out, Some(&Limits::default()))?;
        let verdict = verdict.context("nothing was verified")?;
        let not = if verdict.met { "" } else { "NOT written, " };
        let text = format!("{}\n{}: {not}{verdict}", report.text(), self.out.display());
        let written = Written { out: &self.out, written: verdict.met, report: &report };
        Ok(Output::new(text, &written)?.with_met(verdict.met))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_names() {
        let cases = [
            ("elements", Pattern::Elements),
            ("columns", Pattern::Groups(Grouping::Columns)),
            ("4x1", Pattern::Groups(Grouping::Blocks { rows: 4, columns: 1 })),
            ("2:4", Pattern::NOfM { n: 2, m: 4 }),
        ];
        for (text, expected) in cases {
            assert_eq!(pattern(text), Ok(expected));
        }
        for text in ["", "rows", "4x", ":4", "1x2x3", "-1:4"] {
            assert!(pattern(text).is_err_and(|error| error.contains("2:4")), "{text}");
        }
        assert_eq!(fraction("a=b=0.5"), Ok(("a=b".to_owned(), 0.5)));
        assert!(fraction("a").is_err() && fraction("a=half").is_err());
    }
}
