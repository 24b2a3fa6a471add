//! `cofilter rank`.

use crate::decompose::{self, Choice, Plan, Sight, Speed};
use crate::output::{Output, table};
use crate::source::Source;
use anyhow::{Context as _, Result, ensure};
use cofilter_lowrank::{Analysis, analyse, evbmf_rank};
use serde::Serialize;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    sight: Sight,
    #[command(flatten)]
    report: crate::rank_report::ReportArgs,
}

#[derive(Serialize)]
struct Report {
    energies: Vec<f64>,
    layers: Vec<Layer>,
    /// What `decompose` would do with the same method and rule, if any were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<cofilter_lowrank::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<Speed>,
}

#[derive(Serialize)]
struct Layer {
    #[serde(flatten)]
    analysis: Analysis,
    /// At each of the energies.
    ranks: Vec<usize>,
    /// Told from noise by variational Bayes, all filters as one matrix: a hint.
    evbmf_rank: usize,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let energies = match self.choice.energies() {
            [] => vec![0.9, 0.95, 0.99],
            given => given.to_vec(),
        };
        for energy in &energies {
            ensure!(*energy > 0.0 && *energy <= 1.0, "--energy {energy}: expected above 0 and up to 1");
        }
        let source = self.source.open()?;
        let layers: Vec<Layer> = analyse(&source.model, energies[0])?
            .into_iter()
            .map(|analysis| Layer {
                ranks: energies.iter().map(|energy| analysis.rank_at_energy(*energy)).collect(),
                evbmf_rank: evbmf_rank(
                    &analysis.whole.singular_values(),
                    analysis.filters,
                    analysis.filter_len,
                ),
                analysis,
            })
            .collect();
        let analyses: Vec<&Analysis> = layers.iter().map(|layer| &layer.analysis).collect();
        self.report.write(&self.source.model, &source.model, &energies, &analyses)?;
        let heads: Vec<String> = energies.iter().map(|energy| format!("rank at {energy}")).collect();
        let mut header = vec!["layer", "filters", "weights each", "groups", "full rank"];
        header.extend(heads.iter().map(String::as_str));
        header.extend(["break-even", "stable rank", "effective rank", "EVBMF"]);
        let rows = layers.iter().map(|layer| {
            let a = &layer.analysis;
            let counts = [a.filters, a.filter_len, a.groups, a.full_rank];
            let mut row = vec![a.name.clone()];
            row.extend(counts.iter().chain(&layer.ranks).map(ToString::to_string));
            row.extend([a.break_even_rank, a.stable_rank, a.effective_rank].map(|x| format!("{x:.1}")));
            row.push(layer.evbmf_rank.to_string());
            row
        });
        let mut text = table(&header, rows);
        let mut report = Report { energies, layers, plan: None, reached: None };
        if !self.choice.is_usual() || self.sight.data.is_some() {
            let plan = decompose::plan(&source, &self.source.model, &self.choice, &self.sight);
            let Plan { report: plan, reached, .. } = plan.context("decompose")?;
            text +=
                &format!("\n\nby `decompose`, which this command does not do:\n{}", decompose::text(&plan));
            if let Some(reached) = &reached {
                text += &format!("{reached}\n");
            }
            (report.plan, report.reached) = (Some(plan), reached);
        }
        Output::new(text, &report)
    }
}
