use super::Calibration;
use crate::{Error, Result};
use cofilter_graph::{Graph, Model, NodeId};
use cofilter_runtime::{Options, Plan, Team};
use std::sync::Arc;

/// Images of a run.
const BATCH: usize = 32;
/// Values that are kept, for all images each.
const KEPT: usize = 3;
/// Bytes of them beyond which only the latest is.
const KEPT_BYTES: usize = 1 << 30;

/// Values inside a network for all images, computed as they are asked for, from those asked for before.
pub(crate) struct Values {
    images: Arc<Vec<f32>>,
    count: usize,
    team: Arc<Team>,
    kept: Vec<(NodeId, Arc<Vec<f32>>)>,
}

impl Values {
    pub(crate) fn new(model: &Model, calibration: &Calibration<'_>) -> Result<Self> {
        let count = calibration.check(model)?;
        let threads = calibration.threads;
        let team =
            Team::new(threads).map_err(|source| cofilter_runtime::Error::Threads { threads, source })?;
        Ok(Self {
            images: Arc::new(calibration.images.to_vec()),
            count,
            team: Arc::new(team),
            kept: Vec::new(),
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The value of a node, `[n, C, H, W]`. Nodes that were asked for before must not have changed since.
    pub(crate) fn at(&mut self, model: &Model, node: NodeId) -> Result<Arc<Vec<f32>>> {
        let graph = model.graph();
        // What every way to the end goes through will be needed again.
        let trunk = cuts(graph, graph.outputs()[0]);
        let last = trunk.into_iter().find(|id| *id < node && cuts(graph, node).contains(id));
        if let Some(last) = last {
            self.compute(model, last)?;
        }
        self.compute(model, node)
    }

    /// The value of `to` in a network in which `node`, whose input was asked for last, and nothing before it differs.
    pub(crate) fn behind(&self, changed: &Model, node: NodeId, to: NodeId) -> Result<Vec<f32>> {
        let graph = changed.graph();
        let find =
            |id: NodeId| self.kept.iter().find(|(kept, _)| *kept == id).map(|(_, value)| Arc::clone(value));
        let before = cuts(graph, to).into_iter().filter(|id| *id < node);
        let (from, values) = before
            .into_iter()
            .find_map(|id| Some((id, find(id)?)))
            .unwrap_or_else(|| (graph.input(), Arc::clone(&self.images)));
        self.run(&changed.part(from, to)?, &values)
    }

    /// From the nearest value before it that is kept.
    fn compute(&mut self, model: &Model, node: NodeId) -> Result<Arc<Vec<f32>>> {
        let graph = model.graph();
        if node == graph.input() {
            return Ok(Arc::clone(&self.images));
        }
        let find =
            |id: NodeId| self.kept.iter().find(|(kept, _)| *kept == id).map(|(_, value)| Arc::clone(value));
        if let Some(value) = find(node) {
            return Ok(value);
        }
        let nearest = cuts(graph, node).into_iter().find_map(|id| Some((id, find(id)?)));
        let (from, before) = nearest.unwrap_or_else(|| (graph.input(), Arc::clone(&self.images)));
        let value = Arc::new(self.run(&model.part(from, node)?, &before)?);
        self.kept.push((node, Arc::clone(&value)));
        let bytes =
            |kept: &[(NodeId, Arc<Vec<f32>>)]| kept.iter().map(|(_, value)| 4 * value.len()).sum::<usize>();
        // The latest stays in any case.
        while self.kept.len() > KEPT || (self.kept.len() > 1 && bytes(&self.kept) > KEPT_BYTES) {
            self.kept.remove(0);
        }
        Ok(value)
    }

    fn run(&self, part: &Model, images: &[f32]) -> Result<Vec<f32>> {
        let options = Options {
            batch: BATCH.min(self.count),
            threads: self.team.threads(),
            team: Some(Arc::clone(&self.team)),
            ..Options::default()
        };
        let plan = Plan::compile(part, &options)?;
        let mut session = plan.session();
        let mut values = vec![0.0; self.count * plan.output_len()];
        let batches = images.chunks(options.batch * plan.input_len());
        for (from, to) in batches.zip(values.chunks_mut(options.batch * plan.output_len())) {
            session.run(from, to)?;
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let graph = part.graph();
            return Err(Error::Calibration {
                reason: format!(
                    "`{}` has the value {} for image {}",
                    graph.node(graph.outputs()[0]).name(),
                    values[at],
                    at / plan.output_len()
                ),
            });
        }
        Ok(values)
    }
}

/// Nodes that every way from the input to this node goes through, the nearest first, the node itself excepted.
fn cuts(graph: &Graph, node: NodeId) -> Vec<NodeId> {
    let mut needed = vec![false; graph.nodes().len()];
    needed[node.index()] = true;
    // The earliest node that one of the later ones reads.
    let mut earliest = node.index();
    let mut found = Vec::new();
    for (id, of) in graph.iter().collect::<Vec<_>>().into_iter().rev() {
        if !needed[id.index()] {
            continue;
        }
        if id != node && earliest >= id.index() {
            found.push(id);
        }
        for input in of.inputs() {
            needed[input.index()] = true;
            earliest = earliest.min(input.index());
        }
    }
    found
}
