//! `cofilter rank`.

use crate::output::{Output, table};
use crate::source::Source;
use anyhow::Result;
use cofilter_lowrank::{Analysis, analyse};
use serde::Serialize;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Shares of the energy for which ranks are given
    #[arg(long, value_delimiter = ',', default_values_t = [0.9, 0.95, 0.99], value_name = "SHARES")]
    energy: Vec<f64>,
    #[command(flatten)]
    report: crate::rank_report::ReportArgs,
}

#[derive(Serialize)]
struct Report {
    energies: Vec<f64>,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    #[serde(flatten)]
    analysis: Analysis,
    /// At each of the energies.
    ranks: Vec<usize>,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        anyhow::ensure!(!self.energy.is_empty(), "--energy: expected a share above 0 and up to 1");
        let model = self.source.open()?.model;
        for energy in &self.energy {
            anyhow::ensure!(
                *energy > 0.0 && *energy <= 1.0,
                "--energy {energy}: expected above 0 and up to 1"
            );
        }
        let layers: Vec<Layer> = analyse(&model, self.energy[0])?
            .into_iter()
            .map(|analysis| Layer {
                ranks: self.energy.iter().map(|energy| analysis.rank_at_energy(*energy)).collect(),
                analysis,
            })
            .collect();
        let report = Report { energies: self.energy.clone(), layers };
        let analyses: Vec<&Analysis> = report.layers.iter().map(|layer| &layer.analysis).collect();
        self.report.write(&self.source.model, &model, &self.energy, &analyses)?;
        let energies: Vec<String> =
            report.energies.iter().map(|energy| format!("rank at {energy}")).collect();
        let mut header = vec!["layer", "filters", "weights each", "groups", "full rank"];
        header.extend(energies.iter().map(String::as_str));
        header.extend(["break-even", "stable rank", "effective rank"]);
        let rows = report.layers.iter().map(|layer| {
            let a = &layer.analysis;
            let counts = [a.filters, a.filter_len, a.groups, a.full_rank];
            let mut row = vec![a.name.clone()];
            row.extend(counts.iter().chain(&layer.ranks).map(ToString::to_string));
            row.extend([a.break_even_rank, a.stable_rank, a.effective_rank].map(|x| format!("{x:.1}")));
            row
        });
        Output::new(table(&header, rows), &report)
    }
}
