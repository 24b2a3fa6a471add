//! What low rank gains, layer by layer, of what its arithmetic promises, over our own dense layers.

use super::layers::first_and_last;
use super::subject::images;
use super::{Options, median, publish, written_by};
use crate::machine::{Machine, commit};
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::{Array, Conv2d, Graph, Init, Model, Shape};
use cofilter_runtime::{CostTable, Options as PlanOptions, Plan, Session, Team};
use comfy_table::{Table, presets};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Largest error of a layer relative to its largest result: Winograd's bound and the product of the factors.
const TOLERANCE: f64 = 1e-4;

/// How a layer is factored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Factors {
    /// A basis of this many filters in all groups, and a 1x1 combination.
    Basis(usize),
    /// This many vertical filters, and horizontal ones.
    Separable(usize),
}

/// A layer to compare with its factored form.
#[derive(Clone, Debug)]
struct Case {
    /// Which of the tables it belongs to.
    set: &'static str,
    layer: String,
    input: [usize; 3],
    conv: Conv2d,
    factors: Factors,
    /// Share of the theoretical gain that is hoped for.
    wanted: Option<f64>,
}

/// Sets whose layers are added up, with the gain that is hoped for.
const SUMS: [(&str, f64); 2] = [("mixed 8/40/120/120/110", 3.3), ("mixed 8/40/64/80/80", 4.05)];

/// Convolutions of BVLC AlexNet: input, filters, kernel, stride, padding, groups.
fn alexnet(layer: usize) -> ([usize; 3], Conv2d) {
    let conv = |filters, kernel, padding: usize, groups| Conv2d {
        padding: [padding; 2],
        groups,
        ..Conv2d::new(filters, kernel)
    };
    match layer {
        1 => ([3, 227, 227], Conv2d { stride: [4, 4], ..conv(96, 11, 0, 1) }),
        2 => ([96, 27, 27], conv(256, 5, 2, 2)),
        3 => ([256, 13, 13], conv(384, 3, 1, 1)),
        4 => ([384, 13, 13], conv(384, 3, 1, 2)),
        _ => ([384, 13, 13], conv(256, 3, 1, 2)),
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |set, layer: String, (input, conv): ([usize; 3], Conv2d), factors, wanted| {
        cases.push(Case { set, layer, input, conv, factors, wanted });
    };
    for (set, ranks, wanted) in [
        ("AlexNet, whole blocks", [128, 96, 128], [0.95; 3]),
        // Wen et al. 2017, Table 4: CPU gain over theoretical gain with force: 2.45/2.65, 2.76/3.26, 1.64/1.85.
        ("AlexNet, Table 4", [124, 106, 128], [0.92, 0.85, 0.89]),
    ] {
        for (i, (rank, wanted)) in ranks.into_iter().zip(wanted).enumerate() {
            push(set, format!("conv{}", 3 + i), alexnet(3 + i), Factors::Basis(rank), Some(wanted));
        }
    }
    for (filters, size) in [(64, 56), (128, 28), (256, 14), (512, 7)] {
        let same = Conv2d { padding: [1, 1], ..Conv2d::new(filters, 3) };
        let half = Conv2d { stride: [2, 2], ..same.clone() };
        let rank = Factors::Basis(filters / 3);
        if filters > 64 {
            let input = [filters / 2, 2 * size, 2 * size];
            push("ResNet-18, a third", format!("{filters}/2"), (input, half), rank, Some(0.9));
        }
        push("ResNet-18, a third", format!("{filters}"), ([filters, size, size], same), rank, Some(0.9));
    }
    for ((set, _), ranks) in SUMS.into_iter().zip([[120, 120, 110], [64, 80, 80]]) {
        push(set, "conv1".into(), alexnet(1), Factors::Separable(8), None);
        push(set, "conv2".into(), alexnet(2), Factors::Separable(40), None);
        for (i, rank) in ranks.into_iter().enumerate() {
            push(set, format!("conv{}", 3 + i), alexnet(3 + i), Factors::Basis(rank), None);
        }
    }
    cases
}

impl Case {
    fn rank(&self) -> String {
        match self.factors {
            Factors::Basis(rank) if self.conv.groups > 1 => {
                format!("{}x{}", self.conv.groups, rank / self.conv.groups)
            }
            Factors::Basis(rank) => rank.to_string(),
            Factors::Separable(rank) => format!("separable {rank}"),
        }
    }

    /// The two convolutions.
    fn factored(&self) -> [Conv2d; 2] {
        let whole = &self.conv;
        match self.factors {
            Factors::Basis(rank) => [
                Conv2d { out_channels: rank, bias: false, ..whole.clone() },
                Conv2d { groups: whole.groups, ..Conv2d::new(whole.out_channels, 1) },
            ],
            Factors::Separable(rank) => {
                // The extent of one direction only.
                let along = |d: usize, out_channels, bias| {
                    let keep = |pair: [usize; 2], other| {
                        std::array::from_fn(|i| if i == d { pair[i] } else { other })
                    };
                    Conv2d {
                        out_channels,
                        bias,
                        kernel: keep(whole.kernel, 1),
                        stride: keep(whole.stride, 1),
                        padding: keep(whole.padding, 0),
                        ..whole.clone()
                    }
                };
                [along(0, rank, false), along(1, whole.out_channels, true)]
            }
        }
    }

    /// Both forms, with ReLU, of the same function. Maps other than images come from a step before, as in a network.
    fn models(&self) -> Result<[Model; 2]> {
        let [c, h, w] = self.input;
        let graph = |convolutions: &[&Conv2d]| -> Result<Graph> {
            let mut b = Graph::builder();
            let mut x = b.input("data", Shape::map(c, h, w))?;
            if c > 3 {
                x = b.relu("before", x)?;
            }
            for (i, conv) in convolutions.iter().enumerate() {
                x = b.conv2d(&format!("conv{i}"), x, (*conv).clone())?;
            }
            let x = b.relu("after", x)?;
            Ok(b.finish(&[x])?)
        };
        let [first, second] = self.factored();
        let low = Model::init(graph(&[&first, &second])?, &Init::default(), 1)?;
        let tensors = |name: &str| Ok::<_, anyhow::Error>(low.tensors(low.graph().find(name)?));
        let weight = self.product(tensors("conv0")?[0].data(), tensors("conv1")?[0].data());
        let dense = Model::init(graph(&[&self.conv])?, &Init::default(), 1)?;
        let params = dense.params().map(|_, slot, array| match slot {
            0 => Array::new(array.dims().to_vec(), weight.clone()),
            _ => array.clone(),
        });
        Ok([dense.with_params(params)?, low])
    }

    /// Filters of the whole layer.
    fn product(&self, first: &[f32], second: &[f32]) -> Vec<f32> {
        let [a, b] = self.factored();
        let (groups, outputs) = (self.conv.groups, self.conv.out_channels);
        let share = self.input[0] / groups;
        let [kh, kw] = self.conv.kernel;
        let ranks = a.out_channels / groups;
        let mut weight = Vec::with_capacity(outputs * share * kh * kw);
        for o in 0..outputs {
            let group = o / (outputs / groups);
            for (c, r, s) in
                (0..share).flat_map(|c| (0..kh).flat_map(move |r| (0..kw).map(move |s| (c, r, s))))
            {
                let term = |k: usize| {
                    // A tap that a factor does not have is its only one.
                    let basis = ((group * ranks + k) * share + c) * a.kernel[0] * a.kernel[1]
                        + r.min(a.kernel[0] - 1) * a.kernel[1]
                        + s.min(a.kernel[1] - 1);
                    let combination = (o * ranks + k) * b.kernel[1] + s.min(b.kernel[1] - 1);
                    f64::from(first[basis]) * f64::from(second[combination])
                };
                #[expect(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
                weight.push((0..ranks).map(term).sum::<f64>() as f32);
            }
        }
        weight
    }
}

/// What was measured for one layer.
#[derive(Clone, Debug, Serialize)]
struct Row {
    set: String,
    layer: String,
    rank: String,
    batch: usize,
    threads: usize,
    /// Multiply-adds of the dense layer over those of its factors.
    theory: f64,
    /// Median microseconds without Winograd's method: dense, low-rank.
    direct_us: [f64; 2],
    /// The same where plans may use it.
    best_us: [f64; 2],
    wanted: Option<f64>,
    error: f64,
    how: [String; 2],
}

/// Measures all layers and prints tables.
pub(super) fn run(options: &Options) -> Result<()> {
    let wanted = options.net.to_lowercase();
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| case.set.to_lowercase().contains(&wanted)).collect();
    ensure!(!cases.is_empty(), "--net {}: no set of layers has this in its name", options.net);
    let mut rows = Vec::new();
    for threads in options.thread_counts() {
        let team = Arc::new(Team::new(threads)?);
        for batch in options.batches() {
            let first = rows.len();
            for case in &cases {
                let row = measure(case, batch, threads, &team, options.seconds())
                    .with_context(|| format!("{} {}", case.set, case.layer))?;
                rows.push(row);
            }
            println!("\nbatch {batch}, {threads} thread(s)\n{}", table(&rows[first..]));
        }
    }
    let machine =
        Machine::here(options.thread_counts().into_iter().max().unwrap_or(1), cofilter_runtime::cpu_tier());
    let text = markdown(&rows, &machine);
    let value = serde_json::json!({ "machine": machine, "commit": commit(), "rows": rows });
    publish(options, "runs/speed/layers.md", &text, &value)
}

/// The step of a layer in four plans, in turn.
fn measure(case: &Case, batch: usize, threads: usize, team: &Arc<Team>, seconds: f64) -> Result<Row> {
    let models = case.models()?;
    let mut sessions = Vec::new();
    let mut error = 0.0_f64;
    let images = images(batch * models[0].graph().input_shape().elements());
    for tolerance in [0.0, PlanOptions::default().tolerance] {
        for model in &models {
            let mut plan = PlanOptions {
                batch,
                threads,
                tolerance,
                team: Some(Arc::clone(team)),
                ..PlanOptions::default()
            };
            let mut costs = CostTable::new();
            costs.measure(model, &plan, 9)?;
            plan.costs = Some(Arc::new(costs));
            let plan = Plan::compile(model, &plan)?;
            let mut session = plan.session();
            let mut found = vec![f32::NAN; batch * plan.output_len()];
            session.run(&images, &mut found)?;
            let worst = first_and_last(&models[0], &images, batch, &found)?;
            ensure!(worst <= TOLERANCE, "differs from the reference by {worst:e}");
            error = error.max(worst);
            sessions.push(session);
        }
    }
    let mut times = vec![Vec::new(); sessions.len()];
    let start = Instant::now();
    while times[0].len() < 7 || start.elapsed().as_secs_f64() < seconds {
        for (session, times) in sessions.iter_mut().zip(&mut times) {
            times.push(layer_us(session, &images)?);
        }
    }
    let how = [0, 1].map(|i| {
        let steps = sessions[2 + i].plan().steps();
        let steps: Vec<String> = steps.into_iter().filter(|s| s.macs > 0).map(|s| s.algorithm).collect();
        steps.join("; ")
    });
    let times: Vec<f64> = times.iter().map(|times| median(times)).collect();
    let macs = |model: &Model| model.cost().macs();
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let theory = macs(&models[0]) as f64 / macs(&models[1]) as f64;
    Ok(Row {
        set: case.set.into(),
        layer: case.layer.clone(),
        rank: case.rank(),
        batch,
        threads,
        theory,
        direct_us: [times[0], times[1]],
        best_us: [times[2], times[3]],
        wanted: case.wanted,
        error,
        how,
    })
}

/// Time of the steps that multiply: copies of images and result are no part of a layer.
pub(super) fn layer_us(session: &mut Session, images: &[f32]) -> Result<f64> {
    let profile = session.profile(images)?;
    Ok(profile.steps.iter().filter(|step| step.step.macs > 0).map(|step| step.time_us).sum())
}

const HEADER: [&str; 10] = [
    "layers",
    "layer",
    "rank",
    "theory",
    "dense us",
    "low-rank us",
    "gain",
    "share of theory (wanted)",
    "gain with Winograd",
    "how, with Winograd",
];

/// Cells of the rows, and of the sums of the sets that have one.
fn cells(rows: &[Row]) -> Vec<[String; 10]> {
    let mut cells = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let gain = row.direct_us[0] / row.direct_us[1];
        let share = gain / row.theory;
        let share = match row.wanted {
            Some(wanted) if share < wanted => format!("{share:.2} ({wanted:.2}) **missed**"),
            Some(wanted) => format!("{share:.2} ({wanted:.2})"),
            None => format!("{share:.2}"),
        };
        cells.push([
            row.set.clone(),
            row.layer.clone(),
            row.rank.clone(),
            format!("{:.2}", row.theory),
            format!("{:.0}", row.direct_us[0]),
            format!("{:.0}", row.direct_us[1]),
            format!("{gain:.2}"),
            share,
            format!("{:.2}", row.best_us[0] / row.best_us[1]),
            format!("{} | {}", row.how[0], row.how[1]).replace('|', "→"),
        ]);
        let last = rows.get(i + 1).is_none_or(|next| next.set != row.set);
        let wanted = SUMS.iter().find(|(set, _)| *set == row.set);
        if let (true, Some((set, wanted))) = (last, wanted) {
            let of_set = || rows.iter().filter(|row| row.set == *set);
            let sum = |f: &dyn Fn(&Row) -> f64| of_set().map(f).sum::<f64>();
            let (dense, low) = (sum(&|r| r.direct_us[0]), sum(&|r| r.direct_us[1]));
            let best = sum(&|r| r.best_us[0]) / sum(&|r| r.best_us[1]);
            let missed = if dense / low < *wanted { " **missed**" } else { "" };
            cells.push([
                (*set).into(),
                "all".into(),
                String::new(),
                String::new(),
                format!("{dense:.0}"),
                format!("{low:.0}"),
                format!("{:.2} (wanted {wanted:.2}){missed}", dense / low),
                String::new(),
                format!("{best:.2}"),
                String::new(),
            ]);
        }
    }
    cells
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(HEADER);
    cells(rows).into_iter().for_each(|row| {
        table.add_row(row);
    });
    table
}

fn markdown(rows: &[Row], machine: &Machine) -> String {
    let mut text = format!(
        "# What low rank gains, layer by layer\n\n{}\n\n{machine}.\n\n\
         Each layer in four plans, run in turn: dense and factored, first without Winograd's method (`dense us`, `low-rank us`, \
         `gain`), then where a plan may use it (`gain with Winograd`; what both plans chose is in the last column). `theory` is \
         the ratio of multiply-adds. Weights are random; the dense filters are the products of the factors, and the \
         results of the first and the last image are compared with f64 loops before it is timed. \
         Times are medians of the layer's own steps with bias and ReLU.\n",
        written_by()
    );
    let mut start = 0;
    for (i, row) in rows.iter().enumerate() {
        let next = rows.get(i + 1);
        if next.is_none_or(|next| (next.batch, next.threads) != (row.batch, row.threads)) {
            text += &format!(
                "\n## Batch {}, {} thread(s)\n\n| {} |\n",
                row.batch,
                row.threads,
                HEADER.join(" | ")
            );
            text += &format!("|{}\n", "---|".repeat(HEADER.len()));
            for cells in cells(&rows[start..=i]) {
                text += &format!("| {} |\n", cells.join(" | "));
            }
            start = i + 1;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofilter_runtime::reference;

    #[test]
    fn both_forms_of_a_case_are_one_function() {
        for (groups, factors) in [(1, Factors::Basis(3)), (2, Factors::Separable(4))] {
            let conv = Conv2d { groups, padding: [1, 1], stride: [2, 1], ..Conv2d::new(6, 3) };
            let case = Case { set: "", layer: String::new(), input: [4, 7, 6], conv, factors, wanted: None };
            let models = case.models().unwrap();
            let images = images(4 * 7 * 6);
            let [dense, low] = models.map(|model| reference::run(&model, &images).unwrap());
            let largest = dense.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            let worst = dense.iter().zip(&low).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest > 0.1 && worst < 1e-6 * largest, "{factors:?}: {worst} of {largest}");
        }
    }

    #[test]
    fn multiply_adds_are_those_of_the_paper() {
        // Wen et al. 2017, Table 4, and the total of the mixed network of Table 6.
        let theory = |case: &Case| {
            let [dense, low] = case.models().unwrap().map(|model| model.cost().macs() as f64);
            dense / low
        };
        let gains: Vec<f64> =
            cases().iter().filter(|case| case.set.starts_with("AlexNet, Table")).map(theory).collect();
        for (gain, published) in gains.iter().zip([2.65, 3.26, 1.86]) {
            assert!((gain - published).abs() < 0.01, "{gains:?}");
        }
        let mixed = cases().into_iter().filter(|case| case.set == SUMS[0].0);
        let macs = mixed.map(|case| case.models().unwrap().map(|model| model.cost().macs()));
        let [dense, low] = macs.fold([0, 0], |sum, macs| [sum[0] + macs[0], sum[1] + macs[1]]);
        assert!((dense as f64 / low as f64 - 3.65).abs() < 0.01, "{dense} {low}");
    }
}
