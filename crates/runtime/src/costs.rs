//! What the ways of computing a layer cost on this machine, measured.

use crate::cpu::tune;
use crate::{Error, Options, Result};
use cofilter_graph::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Times of layers in every form that they can be computed in, measured inside whole networks on one machine.
///
/// A plan that is given a table takes the fastest form of each layer that is in it, and estimates the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostTable {
    /// CPU tier that it was measured on, see [`cpu_tier`](crate::cpu_tier).
    pub tier: String,
    /// For each layer (what it computes, batch, threads) the median microseconds of each form.
    pub layers: BTreeMap<String, BTreeMap<String, f64>>,
}

/// How a layer of a network is computed, and what the other ways would cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Names of the graph's nodes, joined by `+`.
    pub nodes: String,
    /// The layer in the table.
    pub layer: String,
    /// The form that a plan takes.
    pub form: String,
    /// Median microseconds of every form.
    pub times_us: BTreeMap<String, f64>,
}

impl CostTable {
    /// An empty table for this machine.
    #[must_use]
    pub fn new() -> Self {
        Self { tier: cofilter_kernels::cpu_tier().into(), layers: BTreeMap::new() }
    }

    /// Adds the layers of a network of which it lacks a form, as they run in the network with these options: it is compiled in as many
    /// variants as its layers have forms, and each runs `rounds` times in turn. Forms that `tolerance` rules out are not
    /// measured, and plans by this table do not take them.
    ///
    /// # Errors
    /// As [`Plan::compile`](crate::Plan::compile).
    pub fn measure(&mut self, model: &Model, options: &Options, rounds: usize) -> Result<()> {
        for (layer, times) in tune::measure(model, options, rounds.max(1), self)? {
            self.layers.entry(layer).or_default().extend(times);
        }
        Ok(())
    }

    /// The layers of a network that the options' table has, in the order in which they are computed, each with the form that a plan
    /// with these options takes.
    ///
    /// # Errors
    /// For options that make no sense, and as [`Program::lower`](crate::Program::lower).
    pub fn choices(model: &Model, options: &Options) -> Result<Vec<Choice>> {
        tune::choices(model, options)
    }

    /// Reads a table that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Costs`] if the file cannot be read, is no table, or is that of another CPU tier.
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Costs { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        let table: Self = serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
        let tier = cofilter_kernels::cpu_tier();
        if table.tier != tier {
            return Err(fail(format!("expected times of the tier `{tier}`, found `{}`", table.tier)));
        }
        if let Some((layer, _)) =
            table.layers.iter().find(|(_, forms)| forms.values().any(|us| us.is_nan() || *us <= 0.0))
        {
            return Err(fail(format!("layer `{layer}`: expected times above 0")));
        }
        Ok(table)
    }

    /// Writes the table as JSON.
    ///
    /// # Errors
    /// [`Error::Model`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Costs { path: path.to_owned(), reason: error.to_string() })?;
        text.push('\n');
        Ok(cofilter_graph::write_atomically(path, text.as_bytes())?)
    }
}
