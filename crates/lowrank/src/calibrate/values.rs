use super::Calibration;
use crate::{Error, Result};
use cofilter_graph::{Graph, Model, NodeId};
use cofilter_runtime::{Options, Plan, Session, Team};
use std::sync::Arc;

/// Images of a run.
const BATCH: usize = 32;
/// Values that are kept, for all images each.
const KEPT: usize = 3;
/// Most bytes of them. A value of more is computed again whenever it is asked for.
const KEPT_BYTES: usize = 1 << 30;

/// Values inside a network for all images, computed some images at a time as they are asked for, from values that were kept.
pub(crate) struct Values<'a> {
    images: &'a [f32],
    count: usize,
    team: Arc<Team>,
    most_bytes: usize,
    kept: Vec<(NodeId, Arc<Vec<f32>>)>,
}

/// What a network is run on.
#[derive(Clone)]
enum Origin<'a> {
    Images(&'a [f32]),
    Kept(Arc<Vec<f32>>),
}

impl Origin<'_> {
    fn slice(&self) -> &[f32] {
        match self {
            Self::Images(images) => images,
            Self::Kept(value) => value,
        }
    }
}

impl<'a> Values<'a> {
    pub(crate) fn new(model: &Model, calibration: &Calibration<'a>) -> Result<Self> {
        let count = calibration.check(model)?;
        let threads = calibration.threads;
        let team =
            Team::new(threads).map_err(|source| cofilter_runtime::Error::Threads { threads, source })?;
        let team = Arc::new(team);
        Ok(Self { images: calibration.images, count, team, most_bytes: KEPT_BYTES, kept: Vec::new() })
    }

    #[cfg(test)]
    pub(crate) fn with_most_bytes(self, most_bytes: usize) -> Self {
        Self { most_bytes, ..self }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The value of a node, `[n, C, H, W]`, some images at a time. Nodes that were asked for before must not have changed since.
    pub(crate) fn stream(&mut self, model: &Model, node: NodeId) -> Result<Stream<'_, 'a>> {
        let graph = model.graph();
        // What every way to the end goes through will be needed again.
        let trunk = cuts(graph, graph.outputs()[0]);
        let last = trunk.into_iter().find(|id| *id < node && cuts(graph, node).contains(id));
        if let Some(last) = last.filter(|last| self.fits(graph, *last) && self.find(*last).is_none()) {
            let mut stream = self.after_nearest(model, last)?;
            while stream.next()?.is_some() {}
        }
        self.after_nearest(model, node)
    }

    /// Hands the value of a node over, some images at a time, each part with the number of its first image.
    pub(crate) fn each(
        &mut self,
        model: &Model,
        node: NodeId,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let mut stream = self.stream(model, node)?;
        while let Some((first, part)) = stream.next()? {
            visit(first, part);
        }
        Ok(())
    }

    /// The value of `to` in a network in which `node`, whose input was asked for last, and nothing before it differs.
    pub(crate) fn behind(&self, changed: &Model, node: NodeId, to: NodeId) -> Result<Vec<f32>> {
        let graph = changed.graph();
        let before = cuts(graph, to).into_iter().filter(|id| *id < node);
        let (from, origin) = self.nearest(graph, before);
        let mut run = Run::new(&changed.part(from, to)?, self.count, &self.team)?;
        let mut value = Vec::new();
        for first in (0..self.count).step_by(BATCH) {
            value.extend_from_slice(run.at(first, origin.slice())?);
        }
        Ok(value)
    }

    fn find(&self, node: NodeId) -> Option<Arc<Vec<f32>>> {
        self.kept.iter().find(|(kept, _)| *kept == node).map(|(_, value)| Arc::clone(value))
    }

    fn fits(&self, graph: &Graph, node: NodeId) -> bool {
        4 * graph.node(node).shape().elements() * self.count <= self.most_bytes
    }

    /// The first of these values that is there, or the images.
    fn nearest(&self, graph: &Graph, nodes: impl IntoIterator<Item = NodeId>) -> (NodeId, Origin<'a>) {
        nodes
            .into_iter()
            .find_map(|id| Some((id, Origin::Kept(self.find(id)?))))
            .unwrap_or((graph.input(), Origin::Images(self.images)))
    }

    fn after_nearest(&mut self, model: &Model, node: NodeId) -> Result<Stream<'_, 'a>> {
        let graph = model.graph();
        let len = graph.node(node).shape().elements();
        let known = match self.find(node) {
            _ if node == graph.input() => Some(Origin::Images(self.images)),
            value => value.map(Origin::Kept),
        };
        let (origin, run) = match known {
            Some(origin) => (origin, None),
            None => {
                let (from, origin) = self.nearest(graph, cuts(graph, node));
                (origin, Some(Run::new(&model.part(from, node)?, self.count, &self.team)?))
            }
        };
        let collects = run.is_some() && self.fits(graph, node);
        let whole = collects.then(|| Vec::with_capacity(len * self.count));
        Ok(Stream { values: self, node, len, origin, run, whole, first: 0 })
    }

    fn keep(&mut self, node: NodeId, value: Vec<f32>) {
        self.kept.push((node, Arc::new(value)));
        let bytes =
            |kept: &[(NodeId, Arc<Vec<f32>>)]| kept.iter().map(|(_, value)| 4 * value.len()).sum::<usize>();
        while self.kept.len() > KEPT || bytes(&self.kept) > self.most_bytes {
            self.kept.remove(0);
        }
    }
}

/// A value on its way, some images at a time; kept at the end if it is not too large.
pub(crate) struct Stream<'v, 'a> {
    values: &'v mut Values<'a>,
    node: NodeId,
    len: usize,
    origin: Origin<'a>,
    /// Nothing where the value is there already.
    run: Option<Run>,
    whole: Option<Vec<f32>>,
    first: usize,
}

impl Stream<'_, '_> {
    /// The number of an image, and the value of it and those after it; nothing after the last one.
    pub(crate) fn next(&mut self) -> Result<Option<(usize, &[f32])>> {
        let first = self.first;
        if first >= self.values.count {
            if let Some(whole) = self.whole.take() {
                self.values.keep(self.node, whole);
            }
            return Ok(None);
        }
        self.first += BATCH;
        let part = match &mut self.run {
            None => {
                let end = self.first.min(self.values.count);
                &self.origin.slice()[first * self.len..end * self.len]
            }
            Some(run) => run.at(first, self.origin.slice())?,
        };
        if let Some(whole) = &mut self.whole {
            whole.extend_from_slice(part);
        }
        Ok(Some((first, part)))
    }
}

/// A part of a network that is run on some images at a time.
struct Run {
    session: Session,
    output: String,
    lens: [usize; 2],
    value: Vec<f32>,
}

impl Run {
    fn new(part: &Model, count: usize, team: &Arc<Team>) -> Result<Self> {
        let options = Options {
            batch: BATCH.min(count),
            threads: team.threads(),
            team: Some(Arc::clone(team)),
            ..Options::default()
        };
        let plan = Plan::compile(part, &options)?;
        let graph = part.graph();
        Ok(Self {
            session: plan.session(),
            output: graph.node(graph.outputs()[0]).name().to_owned(),
            lens: [plan.input_len(), plan.output_len()],
            value: Vec::new(),
        })
    }

    /// Of the images from this one on, as many as go into a run.
    fn at(&mut self, first: usize, from: &[f32]) -> Result<&[f32]> {
        let [input, output] = self.lens;
        let from = &from[first * input..];
        let from = &from[..from.len().min(BATCH * input)];
        self.value.resize(from.len() / input * output, 0.0);
        self.session.run(from, &mut self.value)?;
        if let Some(at) = self.value.iter().position(|value| !value.is_finite()) {
            return Err(Error::Calibration {
                reason: format!(
                    "`{}` has the value {} for image {}",
                    self.output,
                    self.value[at],
                    first + at / output
                ),
            });
        }
        Ok(&self.value)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, decompose_calibrated};
    use cofilter_graph::{Conv2d, Init, Shape};

    /// A trunk, a shortcut and groups.
    fn model() -> Model {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(3, 12, 12)).unwrap();
        let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(8, 3) }).unwrap();
        let x = b.relu("relu1", x).unwrap();
        let conv = Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new(8, 3) };
        let y = b.conv2d("conv2", x, conv).unwrap();
        let x = b.sum("sum", &[x, y]).unwrap();
        let x = b.conv2d("conv3", x, Conv2d { stride: [2, 2], ..Conv2d::new(6, 3) }).unwrap();
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("fc", x, 4).unwrap();
        Model::init(b.finish(&[x]).unwrap(), &Init::default(), 2).unwrap()
    }

    fn images(count: usize) -> Vec<f32> {
        (0..count * 432).map(|i| ((i * 7919) % 1024) as f32 / 512.0 - 1.0).collect()
    }

    /// Memory decides from where a value is computed, and so how it is rounded, nothing else.
    #[test]
    fn values_do_not_depend_on_what_is_kept() {
        let model = model();
        let images = images(70);
        let calibration = Calibration::new(&images);
        let of = |most_bytes: usize| -> Vec<Vec<f32>> {
            let mut values = Values::new(&model, &calibration).unwrap().with_most_bytes(most_bytes);
            let mut all = Vec::new();
            for (id, node) in model.graph().iter() {
                let mut value = Vec::new();
                values
                    .each(&model, id, |first, part| {
                        assert_eq!(value.len(), first * node.shape().elements());
                        value.extend_from_slice(part);
                    })
                    .unwrap();
                assert_eq!(value.len(), 70 * node.shape().elements(), "{}", node.name());
                let bytes: usize = values.kept.iter().map(|(_, value)| 4 * value.len()).sum();
                assert!(bytes <= most_bytes && values.kept.len() <= KEPT, "{bytes}");
                all.push(value);
            }
            all
        };
        let whole = of(KEPT_BYTES);
        assert_eq!(whole[0], images);
        let wanted = cofilter_runtime::reference::run(&model, &images).unwrap();
        let found = &whole[model.graph().outputs()[0].index()];
        assert!(wanted.iter().any(|value| value.abs() > 0.1));
        assert!(wanted.iter().zip(found).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-4));
        for most_bytes in [0, 4 * 70 * 600, 4 * 70 * 1500] {
            let found = of(most_bytes);
            let numbers = whole.iter().flatten().zip(found.iter().flatten());
            let off = numbers.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{most_bytes} bytes: {off}");
        }
    }

    #[test]
    fn more_images_than_a_run_takes_are_all_seen() {
        // The first 32 images show one channel alone: whoever looks at no others takes the rest for idle.
        let mut images = images(64);
        for image in images.chunks_exact_mut(432).take(32) {
            image[144..].fill(0.0);
        }
        let settings = Settings { rule: crate::RankRule::Ratio(0.75), ..Settings::default() };
        let error = |images: &[f32]| {
            let calibration = Calibration { windows: 200, ..Calibration::new(images) };
            let (_, report) = decompose_calibrated(&model(), &settings, &calibration).unwrap();
            report.layers[0].output_error.unwrap()
        };
        let [all, first] = [error(&images), error(&images[..32 * 432])];
        assert!(first < 0.7 * all, "{first} against {all}");
    }
}
