//! The report of `cofilter rank`: tables and figures as a page, as data, or both.

use anyhow::{Context as _, Result};
use cofilter_graph::{Model, write_atomically};
use cofilter_lowrank::{Analysis, LayerKind, figures, projection, similarity};
use cofilter_report::{Figure, Page, Table, free_id, write_svgs};
use std::path::{Path, PathBuf};

/// Layers whose curves share a figure.
const CURVES: usize = 8;
/// Clusters of the filters that are drawn in a plane, as on the paper's poster.
const CLUSTERS: usize = 4;

#[derive(clap::Args)]
pub(crate) struct ReportArgs {
    /// Write a report with figures: NAME.html, NAME.json, or a folder for both and each figure as .svg
    #[arg(long, value_name = "NAME", value_parser = target)]
    report: Option<Target>,
    /// Layers whose filters the report compares [default: the first convolution and the one with the most operations]
    #[arg(long, value_delimiter = ',', value_name = "LAYERS", requires = "report")]
    show: Vec<String>,
}

/// Where a report goes, and so its form.
#[derive(Clone, Debug)]
enum Target {
    Html(PathBuf),
    Json(PathBuf),
    Folder(PathBuf),
}

fn target(text: &str) -> Result<Target, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        _ if path.is_dir() => Ok(Target::Folder(path)),
        Some("html") => Ok(Target::Html(path)),
        Some("json") => Ok(Target::Json(path)),
        None => Ok(Target::Folder(path)),
        Some(other) => {
            Err(format!("expected a name that ends in .html or .json, or a folder, found one in .{other}"))
        }
    }
}

/// What is known of the network.
pub(crate) struct Contents<'a> {
    pub(crate) energies: &'a [f64],
    pub(crate) layers: &'a [&'a Analysis],
    pub(crate) tables: Vec<Table>,
    /// Figures of a survey, where a speedup was asked for.
    pub(crate) measured: Vec<Figure>,
}

impl ReportArgs {
    /// Writes what was asked for, if anything was.
    pub(crate) fn write(&self, name: &Path, model: &Model, contents: Contents<'_>) -> Result<()> {
        let Some(target) = &self.report else { return Ok(()) };
        let page = self.page(name, model, contents)?;
        let json = || Ok::<_, anyhow::Error>(serde_json::to_string_pretty(&page)? + "\n");
        let write = |path: &Path, bytes: &[u8]| Ok::<_, anyhow::Error>(write_atomically(path, bytes)?);
        match target {
            Target::Html(path) => write(path, page.to_html().as_bytes()),
            Target::Json(path) => write(path, json()?.as_bytes()),
            Target::Folder(folder) => {
                std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
                write(&folder.join("report.json"), json()?.as_bytes())?;
                write(&folder.join("report.html"), page.to_html().as_bytes())?;
                write_svgs(&folder.join("figures"), &page.figures, write)
            }
        }
    }

    fn page(&self, name: &Path, model: &Model, contents: Contents<'_>) -> Result<Page> {
        let Contents { energies, layers, tables, measured } = contents;
        let macs = macs(model, layers);
        let mut all = vec![figures::rank_ratios(layers, energies)];
        for draw in [figures::energy_curves, figures::spectra] {
            for part in layers.chunks(CURVES) {
                let mut figure = draw(part);
                figure.id = free_id(&figure.id, &all);
                if part.len() < layers.len() {
                    figure.title += &format!(", {} to {}", part[0].name, part[part.len() - 1].name);
                }
                all.push(figure);
            }
        }
        let chosen = if self.show.is_empty() { shown(layers, &macs) } else { self.show.clone() };
        for layer in &chosen {
            let asked = if self.show.is_empty() { "figures" } else { "--show" };
            let told = || asked;
            for mut figure in [
                figures::similarity(&similarity(model, layer).with_context(told)?),
                figures::projection(&projection(model, layer, CLUSTERS).with_context(told)?),
            ] {
                figure.id = free_id(&figure.id, &all);
                all.push(figure);
            }
        }
        all.extend(measured);
        let cost = model.cost();
        Ok(Page {
            title: format!("Ranks of {}", name.file_name().unwrap_or(name.as_os_str()).display()),
            summary: format!(
                "{} layers with a rank; the network has {} parameters and {} multiply-accumulates for one input.",
                layers.len(),
                cost.params(),
                cost.macs()
            ),
            tables,
            figures: all,
        })
    }
}

/// Multiply-accumulates of each layer for one input.
fn macs(model: &Model, layers: &[&Analysis]) -> Vec<usize> {
    let cost = model.cost();
    let of = |layer: &&Analysis| cost.nodes().iter().find(|n| n.name == layer.name).map_or(0, |n| n.macs);
    layers.iter().map(of).collect()
}

/// The first convolution and the one with the most operations; fully connected layers where there is none.
fn shown(layers: &[&Analysis], macs: &[usize]) -> Vec<String> {
    let convolutions = layers.iter().any(|layer| layer.kind == LayerKind::Conv2d);
    let eligible =
        || layers.iter().zip(macs).filter(|(layer, _)| !convolutions || layer.kind == LayerKind::Conv2d);
    // Of equals the first.
    let most = eligible().rev().max_by_key(|(_, macs)| **macs);
    let mut names: Vec<String> =
        eligible().next().into_iter().chain(most).map(|(layer, _)| layer.name.clone()).collect();
    names.dedup();
    names
}

/// The ranks of each layer, and what variational Bayes hints at.
pub(crate) fn ranks(model: &Model, energies: &[f64], layers: &[&Analysis], hints: &[usize]) -> Table {
    let macs = macs(model, layers);
    let mut columns: Vec<String> =
        ["layer", "filters", "weights each", "groups", "MACs", "full rank"].map(String::from).into();
    columns.extend(energies.iter().map(|energy| format!("rank at {energy}")));
    columns.extend(["break-even", "stable rank", "effective rank", "EVBMF"].map(String::from));
    let row = |((layer, macs), hint): ((&&Analysis, &usize), &usize)| {
        let mut row = vec![layer.name.clone()];
        row.extend(
            [layer.filters, layer.filter_len, layer.groups, *macs, layer.full_rank].map(|n| n.to_string()),
        );
        row.extend(energies.iter().map(|energy| layer.rank_at_energy(*energy).to_string()));
        row.extend(
            [layer.break_even_rank, layer.stable_rank, layer.effective_rank].map(|x| format!("{x:.1}")),
        );
        row.push(hint.to_string());
        row
    };
    Table {
        title: "Ranks".into(),
        caption: "Rank at a share of the energy: the least number of basis filters that keep it, summed over groups. Above the break-even \
                  rank a pair of layers costs more than the layer does. EVBMF: the rank that variational Bayes tells from noise, a hint."
            .into(),
        columns,
        rows: layers.iter().zip(&macs).zip(hints).map(row).collect(),
    }
}
