//! Costs of every way of computing the layers of the networks, kept for plans and for the choice of ranks.

use super::subject::subjects;
use super::{Options, folder};
use anyhow::{Context as _, Result};
use cofilter_runtime::{CostTable, Options as PlanOptions, Team};
use std::sync::Arc;

/// Measures what is not in the table of this machine yet and adds it.
pub(super) fn run(options: &Options) -> Result<()> {
    let path = folder()?.join(format!("costs-{}.json", cofilter_runtime::cpu_tier()));
    let mut costs = match path.exists() && !options.fresh {
        true => CostTable::load(&path)?,
        false => CostTable::new(),
    };
    for subject in subjects(options)? {
        for threads in options.thread_counts() {
            let team = Some(Arc::new(Team::new(threads)?));
            for batch in options.batches() {
                let before = costs.layers.len();
                let plan = PlanOptions { batch, threads, team: team.clone(), ..PlanOptions::default() };
                let rounds = if options.quick { 3 } else { 9 };
                costs
                    .measure(&subject.model, &plan, rounds)
                    .with_context(|| format!("{} {} batch {batch}", subject.name, subject.form))?;
                println!(
                    "{} {} batch {batch} threads {threads}: {} new layers",
                    subject.name,
                    subject.form,
                    costs.layers.len() - before
                );
                costs.save(&path)?;
            }
        }
    }
    println!("{} layers in {}", costs.layers.len(), path.display());
    Ok(())
}
