//! Layers with weights of zero over the same layers dense: from which density on zeros are time.

use super::layers::Expected;
use super::subject::images;
use super::{Options, median, publish, written_by};
use crate::machine::Machine;
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Conv2d, Graph, Model, Shape};
use cofilter_runtime::{CostTable, Options as PlanOptions, Plan, Session, Team};
use cofilter_sparsity::{Grouping, Pattern, Pruning, prune_magnitude};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

/// Largest error of a layer relative to its largest result: Winograd's bound.
const TOLERANCE: f64 = 1e-4;
/// How many times as fast a layer must be to be faster.
const NOISE: f64 = 1.02;
/// Shares of weights that are left.
pub(crate) const DENSITIES: [f64; 9] = [0.98, 0.8, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05];

/// What becomes zero together: name and pattern.
pub(crate) const PATTERNS: [(&str, Pattern); 5] = [
    ("single weights", Pattern::Elements),
    ("1x4", Pattern::Groups(Grouping::Blocks { rows: 1, columns: 4 })),
    ("4x1", Pattern::Groups(Grouping::Blocks { rows: 4, columns: 1 })),
    ("16x1", Pattern::Groups(Grouping::Blocks { rows: 16, columns: 1 })),
    ("columns", Pattern::Groups(Grouping::Columns)),
];

/// A convolution of stride 1 that keeps the size of the map, or a fully connected layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Input channels.
    pub(crate) inputs: usize,
    /// Output channels.
    pub(crate) outputs: usize,
    /// Height and width of the window of a convolution.
    pub(crate) kernel: Option<usize>,
    /// Height and width of the map.
    pub(crate) size: usize,
}

/// Convolutions of ResNet-50 at stride 1, and of ResNet-20; fully connected layers of LeNet and of AlexNet.
pub(crate) const LAYERS: [Layer; 13] = [
    layer(64, 64, 3, 56),
    layer(128, 128, 3, 28),
    layer(256, 256, 3, 14),
    layer(512, 512, 3, 7),
    layer(256, 64, 1, 56),
    layer(64, 256, 1, 56),
    layer(512, 128, 1, 28),
    layer(1024, 256, 1, 14),
    layer(512, 2048, 1, 7),
    layer(32, 32, 3, 16),
    layer(64, 64, 3, 8),
    Layer { inputs: 800, outputs: 500, kernel: None, size: 1 },
    Layer { inputs: 4096, outputs: 4096, kernel: None, size: 1 },
];

/// One of each kind, for a quick look.
pub(crate) const FEW: [Layer; 2] = [LAYERS[0], LAYERS[11]];

const fn layer(inputs: usize, outputs: usize, kernel: usize, size: usize) -> Layer {
    Layer { inputs, outputs, kernel: Some(kernel), size }
}

impl Layer {
    pub(crate) fn title(&self) -> String {
        let Self { inputs, outputs, kernel, size } = *self;
        match kernel {
            Some(kernel) => format!("{kernel}x{kernel} {inputs} > {outputs}, {size}x{size}"),
            None => format!("fully connected {inputs} > {outputs}"),
        }
    }

    /// Name of its figure.
    pub(crate) fn id(&self) -> String {
        let Self { inputs, outputs, kernel, size } = *self;
        match kernel {
            Some(kernel) => format!("layer-{kernel}x{kernel}-{inputs}-{size}"),
            None => format!("layer-linear-{inputs}-{outputs}"),
        }
    }

    /// Whether it is one of ResNet-50.
    pub(crate) fn in_resnet50(&self) -> bool {
        self.kernel.is_some() && self.size.is_multiple_of(7)
    }

    /// In which patterns it is pruned. Fully connected layers have one form for all of them.
    pub(crate) fn patterns(&self) -> &'static [(&'static str, Pattern)] {
        &PATTERNS[..if self.kernel.is_some() { PATTERNS.len() } else { 1 }]
    }

    /// The layer behind another one, with weights drawn at random.
    fn model(&self) -> Result<Model> {
        let mut b = Graph::builder();
        let shape = match self.kernel {
            Some(_) => Shape::map(self.inputs, self.size, self.size),
            None => Shape::Vector(self.inputs),
        };
        let x = b.input("data", shape)?;
        let x = b.relu("before", x)?;
        let x = match self.kernel {
            Some(kernel) => {
                let padding = [kernel / 2; 2];
                b.conv2d("layer", x, Conv2d { padding, ..Conv2d::new(self.outputs, kernel) })?
            }
            None => b.linear("layer", x, self.outputs)?,
        };
        Ok(Model::init(b.finish(&[x])?, &Default::default(), 1)?)
    }
}

/// Median microseconds of a layer in each of its forms, dense and pruned, in one interleaved run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The layer.
    pub(crate) layer: Layer,
    /// Name of the pattern.
    pub(crate) pattern: String,
    /// Share of weights that was asked for.
    pub(crate) density: f64,
    /// Share of weights that are there.
    pub(crate) weights: f64,
    /// Share of the columns of sixteen filters each that are there.
    pub(crate) columns: f64,
    /// Images.
    pub(crate) batch: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// With all weights, by form.
    pub(crate) dense_us: BTreeMap<String, f64>,
    /// With those that are left, by form.
    pub(crate) pruned_us: BTreeMap<String, f64>,
    /// Largest difference from the reference, relative to its largest number.
    pub(crate) error: f64,
}

impl Row {
    /// The fastest form of each and its time.
    pub(crate) fn best(&self) -> [(&str, f64); 2] {
        [&self.dense_us, &self.pruned_us].map(|times| {
            let least = times.iter().min_by(|a, b| a.1.total_cmp(b.1));
            least.map_or(("", f64::NAN), |(form, us)| (form.as_str(), *us))
        })
    }

    /// Times as fast as the fastest dense form, of the forms that make use of zeros.
    pub(crate) fn speedup(&self) -> f64 {
        self.best()[0].1 / self.without_zeros()
    }

    /// Time of the fastest form that makes use of zeros: Winograd's method does not.
    fn without_zeros(&self) -> f64 {
        let times = ["direct", "sparse"].into_iter().filter_map(|form| self.pruned_us.get(form));
        times.copied().fold(f64::INFINITY, f64::min)
    }

    /// The same over the dense form that does one multiplication for each weight.
    pub(crate) fn over_direct(&self) -> f64 {
        self.dense_us["direct"] / self.without_zeros()
    }
}

/// Largest density from which on down all of these layers are faster, by this measure of how many times.
pub(crate) fn break_even(rows: &[&Row], speedup: fn(&Row) -> f64) -> Option<f64> {
    let mut densities: Vec<f64> = rows.iter().map(|row| row.density).collect();
    densities.sort_by(f64::total_cmp);
    densities.dedup();
    let faster =
        |density: &f64| rows.iter().filter(|row| row.density == *density).all(|row| speedup(row) > NOISE);
    densities.into_iter().take_while(faster).last()
}

/// A session for each form of the layer.
fn sessions(model: &Model, options: &PlanOptions) -> Result<Vec<(String, Session)>> {
    let mut costs = CostTable::new();
    costs.measure(model, options, 1)?;
    let forms: Vec<String> = costs.layers.values().flat_map(|forms| forms.keys().cloned()).collect();
    // A layer with one form is in no table.
    let forms = if forms.is_empty() { vec!["direct".to_owned()] } else { forms };
    let session = |form: String| {
        let mut costs = costs.clone();
        for (name, us) in costs.layers.values_mut().flatten() {
            *us = if *name == form { 1.0 } else { 2.0 };
        }
        let plan = Plan::compile(model, &PlanOptions { costs: Some(Arc::new(costs)), ..options.clone() })?;
        Ok((form, plan.session()))
    };
    forms.into_iter().map(session).collect()
}

/// Time of the convolution and of the copy that it needs: what comes after the step before it, up to it.
fn layer_us(session: &mut Session, images: &[f32]) -> Result<f64> {
    let steps = session.profile(images)?.steps;
    let at = |name: &str| steps.iter().position(|step| step.step.nodes.split('+').any(|node| node == name));
    let (before, layer) = at("before").zip(at("layer")).context("no such step")?;
    Ok(steps[before + 1..=layer].iter().map(|step| step.time_us).sum())
}

/// A form of the layer that is measured.
struct Runner {
    /// Which density it is pruned to; none if it is not.
    of: Option<usize>,
    form: String,
    session: Session,
    times: Vec<f64>,
}

/// Measures a layer at some densities, so many seconds for each.
pub(crate) fn measure(
    layer: Layer,
    (name, pattern): (&str, Pattern),
    densities: &[f64],
    batch: usize,
    team: &Arc<Team>,
    seconds: f64,
) -> Result<Vec<Row>> {
    let dense = layer.model()?;
    let threads = team.threads();
    let options = PlanOptions { batch, threads, team: Some(Arc::clone(team)), ..PlanOptions::default() };
    let images = images(batch * dense.graph().input_shape().elements());
    let mut all: Vec<Runner> = Vec::new();
    let mut add = |of: Option<usize>, model: &Model| -> Result<f64> {
        let expected = Expected::of(model, &images, batch)?;
        let mut error = 0.0_f64;
        for (form, mut session) in sessions(model, &options)? {
            let mut found = vec![f32::NAN; batch * session.plan().output_len()];
            session.run(&images, &mut found)?;
            let worst = expected.error(&found)?;
            ensure!(worst <= TOLERANCE, "{}, {form}: differs from the reference by {worst:e}", layer.title());
            error = error.max(worst);
            all.push(Runner { of, form, session, times: Vec::new() });
        }
        Ok(error)
    };
    let dense_error = add(None, &dense)?;
    let mut rows = Vec::new();
    for (i, &density) in densities.iter().enumerate() {
        let pruning = Pruning { sparsity: 1.0 - density, pattern, ..Pruning::default() };
        let (pruned, _) = prune_magnitude(&dense, &pruning)?;
        let program = cofilter_runtime::Program::lower(&pruned)?;
        let of = program.steps().last().context("no step")?.density;
        rows.push(Row {
            layer,
            pattern: name.into(),
            density,
            weights: of.weights,
            columns: of.columns,
            batch,
            threads,
            dense_us: BTreeMap::new(),
            pruned_us: BTreeMap::new(),
            error: add(Some(i), &pruned)?.max(dense_error),
        });
    }
    // All densities in turn: a moment in which the machine is busy is a small part of each.
    let seconds = seconds * densities.len() as f64;
    let start = Instant::now();
    let mut round = 0;
    while round < 7 || start.elapsed().as_secs_f64() < seconds {
        let count = all.len();
        for turn in 0..count {
            let runner = &mut all[(round + turn) % count];
            runner.times.push(layer_us(&mut runner.session, &images)?);
        }
        round += 1;
    }
    for Runner { of, form, times, .. } in &mut all {
        let us = median(times);
        let rows = match *of {
            Some(i) => &mut rows[i..=i],
            None => &mut rows[..],
        };
        for row in rows {
            let times = if of.is_some() { &mut row.pruned_us } else { &mut row.dense_us };
            times.insert(form.clone(), us);
        }
    }
    Ok(rows)
}

/// Measures all layers, patterns and densities and writes the tables.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut rows: Vec<Row> = Vec::new();
    let batches = if options.batch.is_empty() { vec![1] } else { options.batch.clone() };
    for threads in options.thread_counts() {
        let team = Arc::new(Team::new(threads)?);
        for &batch in &batches {
            for layer in LAYERS.into_iter().filter(|layer| layer.title().contains(&options.net)) {
                for pattern in layer.patterns() {
                    let quick = usize::from(options.quick);
                    let densities: Vec<f64> = DENSITIES.into_iter().skip(quick).step_by(1 + quick).collect();
                    let seconds = options.seconds() / 8.0;
                    for row in measure(layer, *pattern, &densities, batch, &team, seconds)? {
                        println!("{}", row.cells().join("  "));
                        rows.push(row);
                    }
                }
            }
        }
    }
    let machine =
        Machine::here(options.thread_counts().into_iter().max().unwrap_or(1), cofilter_runtime::cpu_tier());
    let value = serde_json::json!({ "machine": machine, "commit": crate::machine::commit(), "rows": rows });
    publish(options, "runs/speed/sparse.md", &markdown(&rows, &machine), &value)
}

impl Row {
    /// Heads of the columns of a table.
    pub(crate) const HEADER: [&str; 13] = [
        "layer",
        "zeros",
        "batch",
        "threads",
        "weights",
        "columns",
        "dense, direct",
        "dense, best",
        "pruned, direct",
        "pruned, sparse",
        "pruned, best",
        "over direct",
        "over best",
    ];

    /// One line of it.
    pub(crate) fn cells(&self) -> [String; 13] {
        let us = |form: &str| self.pruned_us.get(form).map_or("-".into(), |us| format!("{us:.0}"));
        let [(dense, dense_us), (pruned, pruned_us)] = self.best();
        [
            self.layer.title(),
            self.pattern.clone(),
            self.batch.to_string(),
            self.threads.to_string(),
            format!("{:.0} %", 100.0 * self.weights),
            format!("{:.0} %", 100.0 * self.columns),
            format!("{:.0}", self.dense_us["direct"]),
            format!("{dense_us:.0} {dense}"),
            us("direct"),
            us("sparse"),
            format!("{pruned_us:.0} {pruned}"),
            format!("{:.2}", self.over_direct()),
            format!("{:.2}", self.speedup()),
        ]
    }
}

fn markdown(rows: &[Row], machine: &Machine) -> String {
    let mut text = format!(
        "# Pruned layers\n\n{}\n\nMachine: {machine}.\n\n\
         Microseconds of a layer of random weights, all or pruned by magnitude, in every form \
         that a plan may take, copies that a form needs included; medians of one interleaved run, every result checked. \"Columns\" are \
         the columns of sixteen filters each with a weight. The last two columns are how many times as fast the faster form \
         that makes use of zeros (direct or sparse) is as the dense one that multiplies weight by weight, and as the fastest dense one.\n",
        written_by()
    );
    let _ = write!(text, "\n| {} |\n|{}\n", Row::HEADER.join(" | "), "---|".repeat(Row::HEADER.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(size: usize, density: f64, pruned: f64) -> Row {
        let times = |us: f64| BTreeMap::from([("direct".to_owned(), us)]);
        Row {
            layer: layer(64, 64, 3, size),
            pattern: "1x4".into(),
            density,
            weights: density,
            columns: 1.0,
            batch: 1,
            threads: 1,
            dense_us: times(10.0),
            pruned_us: times(pruned),
            error: 0.0,
        }
    }

    #[test]
    fn all_layers_break_even_where_the_last_one_does() {
        let rows = [
            row(7, 0.5, 9.0),
            row(7, 0.2, 4.0),
            row(14, 0.5, 11.0),
            row(14, 0.2, 5.0),
            row(7, 0.8, 9.5),
            row(14, 0.8, 9.0),
        ];
        let found = |rows: &[&Row]| break_even(rows, Row::over_direct);
        assert_eq!(found(&rows.iter().collect::<Vec<_>>()), Some(0.2));
        assert_eq!(found(&[&rows[0], &rows[1]]), Some(0.5));
        assert_eq!(found(&[&rows[2]]), None);
        assert!((rows[1].speedup() - 2.5).abs() < 1e-12);
        // What makes no use of zeros is no gain by them.
        let mut dense = row(7, 0.5, 10.0);
        dense.pruned_us.insert("winograd 4x4".into(), 3.0);
        assert_eq!(found(&[&dense]), None);
    }
}
