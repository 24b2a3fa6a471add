use cofilter_graph::{Conv2d, Graph, NodeId, Op};
use cofilter_kernels::blocked::{InputGradient, Place, View, Window};

/// How the value of each node lies in memory, and its gradient likewise: maps in blocks of channels, vectors densely.
///
/// Around a map are zeros for the convolutions that read it, and for the gradient of the one that made it.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    views: Vec<Option<View>>,
    /// Whether the ReLU that alone reads a node is computed along with it.
    rectified: Vec<bool>,
    /// Whether a node is such a ReLU.
    done: Vec<bool>,
    /// Whether the zeros around the maps of a convolution would take more room than the maps.
    crowded: Vec<bool>,
    /// The normalisation that alone reads a convolution.
    normalised: Vec<Option<NodeId>>,
    /// The node that alone reads a normalisation, past its ReLU, if that can compute it as well: a convolution, or a sum of two.
    reader: Vec<Option<NodeId>>,
    /// The normalisation that such a node reads.
    inlined: Vec<Option<NodeId>>,
    /// Numbers of the filters of each convolution.
    weights: Vec<usize>,
    inputs: Vec<Option<NodeId>>,
}

/// How a layer is cut into images, for any number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// Images of a piece, which one thread computes.
    pub(crate) each: usize,
    /// Images that go from kernel to kernel at once.
    pub(crate) at_once: usize,
}

impl Pieces {
    /// How many pieces there are.
    pub(crate) fn count(self, images: usize) -> usize {
        images.div_ceil(self.each)
    }
}

/// Pieces of a batch: enough for some threads, few enough that adding up what each gives costs little.
const PIECES: usize = 8;
/// Fewest pixels that are worth reading weights for, and numbers of maps that stay in a second-level cache.
const PIXELS: usize = 512;
const RESIDENT: usize = 64 * 1024;
/// Times that a map may grow by the zeros around it.
const CROWDED: u128 = 4;

impl Layout {
    pub(crate) fn new(graph: &Graph) -> Self {
        let nodes = graph.nodes();
        let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); nodes.len()];
        for (id, node) in graph.iter() {
            node.inputs().iter().for_each(|input| readers[input.index()].push(id));
        }
        let is_map = |id: NodeId| !matches!(graph.node(id).shape(), cofilter_graph::Shape::Vector(_));
        let image = graph.input();
        // Images stay planes where only convolutions read them.
        let is_conv = |id: &NodeId| matches!(graph.node(*id).op(), Op::Conv2d(_));
        let planar = is_map(image) && readers[image.index()].iter().all(is_conv);
        let mut layout = Self {
            rectified: vec![false; nodes.len()],
            done: vec![false; nodes.len()],
            crowded: vec![false; nodes.len()],
            normalised: vec![None; nodes.len()],
            reader: vec![None; nodes.len()],
            inlined: vec![None; nodes.len()],
            weights: vec![0; nodes.len()],
            inputs: nodes.iter().map(|node| node.inputs().first().copied()).collect(),
            ..Self::default()
        };
        for (id, node) in graph.iter().filter(|(id, node)| matches!(node.op(), Op::Relu) && is_map(*id)) {
            let input = node.inputs()[0];
            let folds = match graph.node(input).op() {
                Op::Conv2d(conv) => !crowded(graph, input, conv),
                op => matches!(op, Op::BatchNorm(_) | Op::Add),
            };
            if folds && readers[input.index()].len() == 1 && !graph.outputs().contains(&input) {
                layout.rectified[input.index()] = true;
                layout.done[id.index()] = true;
            }
        }
        // Values that are added or passed on number by number share a layout.
        let mut classes: Vec<usize> = (0..nodes.len()).collect();
        for (id, node) in graph.iter() {
            if matches!(node.op(), Op::Relu | Op::Add | Op::Dropout { .. }) {
                for input in node.inputs() {
                    let (a, b) = (classes[id.index()], classes[input.index()]);
                    classes.iter_mut().filter(|class| **class == a).for_each(|class| *class = b);
                }
            }
        }
        let mut borders = vec![[0, 0]; nodes.len()];
        let mut need = |id: NodeId, border: [usize; 2]| {
            let known: &mut [usize; 2] = &mut borders[classes[id.index()]];
            *known = [known[0].max(border[0]), known[1].max(border[1])];
        };
        for (id, node) in graph.iter() {
            if let Op::Conv2d(conv) = node.op() {
                if crowded(graph, id, conv) {
                    layout.crowded[id.index()] = true;
                    continue;
                }
                let input = node.inputs()[0];
                let depth = graph.node(input).shape().channels() / conv.groups;
                layout.weights[id.index()] = conv.out_channels * depth * conv.kernel[0] * conv.kernel[1];
                let reader = readers[id.index()].first().copied();
                let normalises = |reader: &NodeId| matches!(graph.node(*reader).op(), Op::BatchNorm(_));
                let alone = readers[id.index()].len() == 1 && !graph.outputs().contains(&id);
                layout.normalised[id.index()] = reader.filter(|reader| alone && normalises(reader));
                need(input, conv.padding);
                if input != image {
                    let sizes = [input, id].map(|id| graph.node(id).shape().spatial());
                    need(id, InputGradient::border(&window(conv), sizes[0], sizes[1]));
                }
            }
        }
        for (id, _) in graph.iter().filter(|(id, node)| matches!(node.op(), Op::BatchNorm(_)) && is_map(*id))
        {
            let last = if layout.rectified[id.index()] { readers[id.index()][0] } else { id };
            let [reader] = readers[last.index()][..] else { continue };
            let suits = match graph.node(reader).op() {
                Op::Conv2d(_) => !layout.crowded[reader.index()],
                Op::Add => last == id && graph.node(reader).inputs().len() == 2,
                _ => false,
            };
            // What a sum adds to is there.
            let taken = layout.inlined[reader.index()].is_some();
            let shown = graph.outputs().iter().any(|output| [id, last].contains(output));
            if suits && !taken && !shown {
                layout.reader[id.index()] = Some(reader);
                layout.inlined[reader.index()] = Some(id);
            }
        }
        layout.views = (graph.iter())
            .map(|(id, node)| {
                let (shape, border) = (node.shape(), borders[classes[id.index()]]);
                let (channels, size) = (shape.channels(), shape.spatial());
                match is_map(id) {
                    false => None,
                    true if id == image && planar && border == [0, 0] => {
                        Some(View::dense(Place::Arena, channels, size))
                    }
                    true if id == image && planar => Some(View::planar(0, channels, size, border, 1)),
                    true => Some(View::blocked(0, &[channels], size, border)),
                }
            })
            .collect();
        layout
    }

    /// The view of a map; vectors have none.
    pub(crate) fn view(&self, id: NodeId) -> Option<&View> {
        self.views[id.index()].as_ref()
    }

    /// Whether a ReLU is computed along with this node.
    pub(crate) fn rectified(&self, id: NodeId) -> bool {
        self.rectified[id.index()]
    }

    /// Whether a convolution is better computed on dense maps: its zeros would take more room than its numbers.
    pub(crate) fn crowded(&self, id: NodeId) -> bool {
        self.crowded[id.index()]
    }

    /// The normalisation that alone reads a convolution.
    pub(crate) fn normalised(&self, id: NodeId) -> Option<NodeId> {
        self.normalised[id.index()]
    }

    /// How a convolution is cut into images, if that is worth its while: each piece has sums of its own for all filters.
    pub(crate) fn pieces(&self, id: NodeId, images: usize) -> Option<Pieces> {
        let (view, from) = (self.view(id)?, self.view(self.inputs[id.index()]?)?);
        let few = PIECES * self.weights[id.index()] <= view.memory_len(images);
        let each = images.div_ceil(PIECES);
        let pixels = PIXELS.div_ceil(view.size[0] * view.size[1]);
        let at_once = pixels.max(RESIDENT / (view.image_stride + from.image_stride)).clamp(1, each);
        few.then_some(Pieces { each, at_once })
    }

    /// Whether a normalisation leaves its gradient to the convolution before it.
    pub(crate) fn defers(&self, id: NodeId, images: usize) -> bool {
        let conv = self.inputs[id.index()].filter(|conv| self.normalised(*conv) == Some(id));
        conv.is_some_and(|conv| self.pieces(conv, images).is_some())
    }

    /// Whether a normalisation in training is best computed where it is read.
    pub(crate) fn inlines(&self, id: NodeId, images: usize) -> bool {
        let reader = self.reader[id.index()];
        // A convolution needs it a few images at a time.
        let at_once =
            |reader: NodeId| self.weights[reader.index()] == 0 || self.pieces(reader, images).is_some();
        reader.is_some_and(at_once)
    }

    /// The normalisation that may be computed by this node.
    pub(crate) fn inlined(&self, id: NodeId) -> Option<NodeId> {
        self.inlined[id.index()]
    }

    /// Whether a node is a ReLU that was computed with the one before it.
    pub(crate) fn done(&self, id: NodeId) -> bool {
        self.done[id.index()]
    }
}

/// Whether the zeros around the input of a convolution, or around the gradient of its result, are many times the map.
fn crowded(graph: &Graph, id: NodeId, conv: &Conv2d) -> bool {
    let input = graph.node(id).inputs()[0];
    let [from, to] = [input, id].map(|id| graph.node(id).shape().spatial());
    let exceeds = |size: [usize; 2], border: [usize; 2]| {
        let area = |border: [usize; 2]| {
            let sides = [0, 1].map(|d| (size[d] as u128) + 2 * border[d] as u128);
            sides[0] * sides[1]
        };
        area(border) > CROWDED * area([0, 0])
    };
    exceeds(from, conv.padding) || exceeds(to, InputGradient::border(&window(conv), from, to))
}

/// The extents of a convolution as kernels take them.
pub(crate) fn window(conv: &Conv2d) -> Window {
    Window {
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
        dilation: conv.dilation,
        groups: conv.groups,
    }
}

/// The same view, to be read by a step that writes another memory.
pub(crate) fn read(view: &View) -> View {
    View { place: Place::Images, ..view.clone() }
}
