//! Which form each unit takes: by a table of measured costs, or by estimate; and how such a table is measured.

use super::Executor;
use super::estimate;
use super::form::{Form, Unit, forms, signature, units};
use crate::backend::Executable;
use crate::{Choice, CostTable, Options, Program, Result, plan};
use cofilter_graph::Model;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The units of a program with the form that each takes.
pub(super) fn choose(program: &Program, options: &Options) -> Vec<(Unit, Form)> {
    let form = |unit: Unit| {
        let forms = forms(program, unit, options);
        let known = known(program, unit, options);
        let cost = |form: &Form| match known.map(|(_, times)| times.get(&form.name())) {
            Some(time) => time.copied().unwrap_or(f64::INFINITY),
            None => estimate::cycles(program, unit, *form, options),
        };
        forms.iter().copied().min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(forms[0])
    };
    units(program).into_iter().map(|unit| (unit, form(unit))).collect()
}

/// What the table of the options knows of a unit: its layer there, and times.
fn known<'a>(
    program: &Program,
    unit: Unit,
    options: &'a Options,
) -> Option<(&'a String, &'a BTreeMap<String, f64>)> {
    options.costs.as_ref()?.layers.get_key_value(&signature(program, unit, options)?)
}

/// The layers of a network that the table of the options knows, each with the form that a plan takes.
pub(crate) fn choices(model: &Model, options: &Options) -> Result<Vec<Choice>> {
    options.check()?;
    let program = Program::lower(model)?;
    let nodes = |unit: Unit| {
        let steps = match unit {
            Unit::One(index) => vec![index],
            Unit::Two(first, second) => vec![first, second],
        };
        let nodes = steps.into_iter().flat_map(|index| program.steps()[index].nodes.clone());
        nodes.collect::<Vec<_>>().join("+")
    };
    let choice = |(unit, form): (Unit, Form)| {
        let (layer, times) = known(&program, unit, options)?;
        Some(Choice { nodes: nodes(unit), layer: layer.clone(), form: form.name(), times_us: times.clone() })
    };
    Ok(choose(&program, options).into_iter().filter_map(choice).collect())
}

/// Times, in every form, of the layers of a network of which a table lacks a form: the whole layer, or what is new since the
/// table was made, or offered for these weights or this tolerance only.
pub(crate) fn measure(
    model: &Model,
    options: &Options,
    rounds: usize,
    known: &CostTable,
) -> Result<BTreeMap<String, BTreeMap<String, f64>>> {
    options.check()?;
    let team = options.workers()?;
    let options = Options { team: Some(team), ..options.clone() };
    let program = Program::lower(model)?;
    plan::check(&program, &options)?;
    let units = units(&program);
    let all: Vec<Vec<Form>> = units.iter().map(|unit| forms(&program, *unit, &options)).collect();
    let open = |i: usize| {
        let has_all = |layer: &String| {
            known.layers.get(layer).is_some_and(|times| all[i].iter().all(|f| times.contains_key(&f.name())))
        };
        signature(&program, units[i], &options).filter(|layer| all[i].len() > 1 && !has_all(layer))
    };
    let layers: Vec<Option<String>> = (0..units.len()).map(open).collect();
    let variants = (0..units.len()).filter(|i| layers[*i].is_some()).map(|i| all[i].len()).max().unwrap_or(0);
    let mut sessions = Vec::with_capacity(variants);
    for variant in 0..variants {
        let forms = |i: usize| all[i][variant % all[i].len()];
        let chosen: Vec<(Unit, Form)> = (0..units.len()).map(|i| (units[i], forms(i))).collect();
        let executor = Arc::new(Executor::with_forms(&program, &chosen, &options)?);
        let owners = executor.owners.clone();
        sessions.push((Arc::clone(&executor).session(), owners, chosen));
    }
    let images = vec![0.5_f32; options.batch * program.input().elements()];
    let mut logits = vec![0.0_f32; options.batch * program.output().shape.elements()];
    let mut times: BTreeMap<String, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for round in 0..=rounds {
        for (session, owners, chosen) in &mut sessions {
            let mut steps_us = vec![0.0; owners.len()];
            // Once to bring its weights into the caches that the other variants took.
            session.run(options.batch, &images, &mut logits, None)?;
            session.run(options.batch, &images, &mut logits, Some(&mut steps_us))?;
            let mut units_us = vec![0.0; units.len()];
            for (owner, us) in owners.iter().zip(&steps_us) {
                if let Some(unit) = owner {
                    units_us[*unit] += us;
                }
            }
            for (i, (_, form)) in chosen.iter().enumerate().filter(|_| round > 0) {
                if let Some(layer) = &layers[i] {
                    let samples = times.entry(layer.clone()).or_default().entry(form.name()).or_default();
                    samples.push(units_us[i]);
                }
            }
        }
    }
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2].max(1e-3)
    };
    let summary =
        |forms: BTreeMap<String, Vec<f64>>| forms.into_iter().map(|(f, s)| (f, median(s))).collect();
    Ok(times.into_iter().map(|(layer, forms)| (layer, summary(forms))).collect())
}
