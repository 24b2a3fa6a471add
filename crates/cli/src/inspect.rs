//! `cofilter inspect`.

use crate::output::{Output, short, table};
use crate::source::Source;
use anyhow::Result;
use cofilter_graph::{Array, Graph, NodeId, Op, Provenance};
use cofilter_lowrank::Analysis;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Leave out the spectra of the layers, which take half a minute for the largest fully connected ones
    #[arg(long)]
    no_spectra: bool,
    /// Share of the energy for which ranks are given (`cofilter rank` gives more; spectra are in the JSON form)
    #[arg(long, default_value_t = 0.95, value_name = "SHARE")]
    energy: f64,
}

#[derive(Serialize)]
struct Report {
    provenance: Provenance,
    input: String,
    output: String,
    params: usize,
    bytes: usize,
    macs: usize,
    nodes: Vec<Node>,
    /// Everything odd about the numbers.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Node {
    name: String,
    op: String,
    output: String,
    params: usize,
    macs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    analysis: Option<Analysis>,
    /// Why the layer can be decomposed, or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    compressible: Option<String>,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let artifact = self.source.open()?;
        let model = &artifact.model;
        let graph = model.graph();
        let analyses =
            if self.no_spectra { Vec::new() } else { cofilter_lowrank::analyse(model, self.energy)? };
        let mut analyses: BTreeMap<String, Analysis> =
            analyses.into_iter().map(|a| (a.name.clone(), a)).collect();
        let cost = model.cost();
        let nodes = graph.iter().zip(cost.nodes()).map(|((id, node), cost)| {
            let analysis = analyses.remove(node.name());
            Node {
                name: node.name().into(),
                op: described(graph, id),
                output: node.shape().to_string(),
                params: cost.params,
                macs: cost.macs,
                compressible: analysis.as_ref().map(compressible),
                analysis,
            }
        });
        let report = Report {
            nodes: nodes.collect(),
            input: graph.input_shape().to_string(),
            output: graph.output_shape().to_string(),
            params: cost.params(),
            bytes: 4 * model.params().iter().map(|(_, _, array)| array.data().len()).sum::<usize>(),
            macs: cost.macs(),
            notes: notes(graph, model.params().iter()),
            provenance: artifact.provenance,
        };
        Output::new(report.text(self), &report)
    }
}

impl Report {
    fn text(&self, args: &Args) -> String {
        let mut text = String::new();
        let name = self.provenance.network.as_deref().unwrap_or("network");
        let _ = writeln!(
            text,
            "{}: {name}, {} to {}, {} weights, {} bytes, {} multiply-accumulates\n",
            args.source.model.display(),
            self.input,
            self.output,
            short(self.params),
            short(self.bytes),
            short(self.macs)
        );
        let rank = format!("rank at {}", args.energy);
        let header = ["node", "op", "output", "weights", "MACs", &rank, "decompose"];
        let rows = self.nodes.iter().map(|node| {
            let rank = node.analysis.as_ref().map(|a| format!("{} of {}", a.rank, a.full_rank));
            vec![
                node.name.clone(),
                node.op.clone(),
                node.output.clone(),
                if node.params > 0 { short(node.params) } else { String::new() },
                if node.macs > 0 { short(node.macs) } else { String::new() },
                rank.unwrap_or_default(),
                node.compressible.clone().unwrap_or_default(),
            ]
        });
        text += &table(&header, rows);
        text.push('\n');
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

/// An op with its settings, in a few words.
fn described(graph: &Graph, id: NodeId) -> String {
    let by = |pair: [usize; 2]| {
        if pair[0] == pair[1] { pair[0].to_string() } else { format!("{}x{}", pair[0], pair[1]) }
    };
    match graph.node(id).op() {
        Op::Conv2d(conv) => {
            let mut text = format!("conv {}x{}", conv.kernel[0], conv.kernel[1]);
            for (what, value, usual) in [
                ("/", conv.stride, [1; 2]),
                (" pad ", conv.padding, [0; 2]),
                (" dilation ", conv.dilation, [1; 2]),
            ] {
                if value != usual {
                    text += &format!("{what}{}", by(value));
                }
            }
            if conv.groups > 1 {
                text += &format!(" groups {}", conv.groups);
            }
            text
        }
        Op::Pool2d(pool) => {
            let kind = format!("{:?}", pool.kind).to_lowercase();
            format!("{kind} pool {}/{}", by(pool.kernel), by(pool.stride))
        }
        other => other.kind().replace('_', " "),
    }
}

fn compressible(analysis: &Analysis) -> String {
    let (rank, break_even) = (analysis.rank, analysis.break_even_rank);
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    let cheaper = (rank as f64) < break_even;
    match cheaper {
        true => format!("cheaper below {break_even:.0}"),
        false => format!("no gain: {rank} is above {break_even:.0}"),
    }
}

/// Numbers that are finite, which reading checks, and still odd.
fn notes<'a>(graph: &Graph, tensors: impl Iterator<Item = (NodeId, usize, &'a Array)>) -> Vec<String> {
    let mut notes = Vec::new();
    for (id, slot, array) in tensors {
        let name = graph.tensor_name(id, slot);
        let tiny = array.data().iter().filter(|x| x.is_subnormal()).count();
        if tiny > 0 {
            notes.push(format!(
                "tensor `{name}`: {tiny} denormal numbers, which some machines compute slowly with"
            ));
        }
        let zero = array.data().iter().filter(|x| **x == 0.0).count();
        if slot == 0 && zero == array.data().len() {
            notes.push(format!("tensor `{name}`: all numbers are 0"));
        } else if slot == 0 && 2 * zero > array.data().len() {
            notes.push(format!(
                "tensor `{name}`: {:.0} % of its numbers are 0",
                100.0 * zero as f64 / array.data().len() as f64
            ));
        }
    }
    notes
}
