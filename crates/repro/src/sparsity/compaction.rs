//! Removing what is zero changes no result: random groups of every network of the zoo.

use crate::options::Options;
use crate::stage::{Key, Store};
use crate::{machine, timing};
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Array, Model};
use cofilter_runtime::{Options as PlanOptions, Plan};
use cofilter_sparsity::{Grouping, Groups, compact};
use cofilter_zoo::{Config, NAMES, Network};
use serde::{Deserialize, Serialize};

/// Share of the groups that become zero.
const ZERO: f64 = 0.4;

/// A network with zeros, before and after they were removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Exact {
    /// Name in the zoo.
    pub(super) network: String,
    /// Groups that were set to zero.
    pub(super) grouping: String,
    /// Parameters before and after.
    pub(super) params: [usize; 2],
    /// Largest difference of the results, relative to their largest number.
    pub(super) error: f64,
}

/// All networks, by filters, input channels and columns.
pub(super) fn all(options: &Options, store: &Store) -> Result<Vec<Exact>> {
    let names = if options.quick { &NAMES[..3] } else { NAMES };
    let key =
        Key::new("compaction", &[], &(names, ZERO, options.seed, options.thread_count(), machine::commit()));
    store.value(&key, || {
        let mut found = Vec::new();
        for name in names {
            let model = Network::by_name(name, &Config::default())?.model(options.seed)?;
            for (title, grouping) in [
                ("filters", Grouping::Filters),
                ("channels", Grouping::Channels),
                ("columns", Grouping::Columns),
            ] {
                options.check_stop()?;
                found
                    .push(one(name, &model, (title, grouping), options).with_context(|| (*name).to_owned())?);
            }
        }
        Ok(found)
    })
}

fn one(name: &str, model: &Model, (title, grouping): (&str, Grouping), options: &Options) -> Result<Exact> {
    let masked = with_zero_groups(model, grouping, options.seed)?;
    let (small, _) = compact(&masked)?;
    let plan = PlanOptions { threads: options.thread_count(), tolerance: 0.0, ..PlanOptions::default() };
    let results = [&masked, &small].map(|model| -> Result<Vec<f32>> {
        let plan = Plan::compile(model, &plan)?;
        let mut logits = vec![0.0; plan.output_len()];
        plan.session().run(&timing::ramp(plan.input_len()), &mut logits)?;
        Ok(logits)
    });
    let [before, after] = results;
    let (before, after) = (before?, after?);
    let largest = before.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    ensure!(before.len() == after.len(), "{} results, {} before", after.len(), before.len());
    let larger = |most: f32, (a, b): (&f32, &f32)| {
        let d = (a - b).abs();
        if d > most || d.is_nan() { d } else { most }
    };
    let error = before.iter().zip(&after).fold(0.0_f32, larger);
    ensure!(error.is_finite(), "the results are not finite");
    let params = [&masked, &small].map(|model| model.cost().params());
    ensure!(largest > 0.0, "the results are nothing but zeros");
    let error = f64::from(error) / f64::from(largest);
    Ok(Exact { network: name.into(), grouping: title.into(), params, error })
}

/// Sets groups of every layer but the last one to zero, drawn by a seed.
fn with_zero_groups(model: &Model, grouping: Grouping, seed: u64) -> Result<Model> {
    let graph = model.graph();
    let outputs = graph.outputs();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        #[expect(clippy::cast_precision_loss, reason = "a draw")]
        let drawn = (state >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < ZERO
    };
    let params = model.params().map(|id, slot, array| {
        let groups = Groups::of_node(graph, id, grouping).filter(|_| slot == 0 && !outputs.contains(&id));
        let Some(groups) = groups else { return array.clone() };
        let zero: Vec<bool> = (0..groups.count()).map(|_| draw()).collect();
        let mut weight = array.data().to_vec();
        groups.apply(&zero, &mut weight, |weight, zero| {
            if zero {
                *weight = 0.0;
            }
        });
        Array::new(array.dims().to_vec(), weight)
    });
    Ok(model.with_params(params)?)
}
