//! `cofilter rank`.

use crate::decompose::{self, Choice, Plan, Sight, Speed};
use crate::output::{Output, ToText as _};
use crate::rank_report::{Contents, ReportArgs, ranks};
use crate::source::Source;
use anyhow::{Context as _, Result, ensure};
use cofilter_lowrank::{Analysis, analyse, evbmf_rank, figures};
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
    report: ReportArgs,
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
        // First, so that what is asked for wrongly is said before anything is computed or written.
        let plan = if self.choice.is_usual() && self.sight.data.is_none() {
            None
        } else {
            let plan = decompose::plan(&source, &self.source.model, &self.choice, &self.sight);
            Some(plan.context("decompose")?)
        };
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
        let hints: Vec<usize> = layers.iter().map(|layer| layer.evbmf_rank).collect();
        let mut tables = vec![ranks(&source.model, &energies, &analyses, &hints)];
        let mut text = tables[0].to_text();
        let (plan, reached, survey) = plan.map_or((None, None, None), |of| {
            let Plan { report, reached, survey, .. } = of;
            (Some(report), reached, survey)
        });
        if let Some(plan) = &plan {
            tables.push(decompose::table_of(plan));
            text +=
                &format!("\n\nby `decompose`, which this command does not do:\n{}", decompose::text(plan));
        }
        if let Some(reached) = &reached {
            text += &format!("{reached}\n");
        }
        let measured = survey.as_ref().map(figures::survey).into_iter().flatten().collect();
        let page = Contents { energies: &energies, layers: &analyses, tables, measured };
        self.report.write(&self.source.model, &source.model, page)?;
        let report = Report { energies, layers, plan, reached };
        Output::new(text, &report)
    }
}
