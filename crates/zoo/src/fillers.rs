use cofilter_graph::{Filler, Graph, Init, Op};

/// PyTorch's default for convolutions and fully connected layers: weights and biases uniform in `+- 1 / sqrt(fan_in)`.
///
/// A bias has no fan-in of its own in [`Filler`], so both are drawn here from a normal distribution of the same
/// variance, `1 / (3 fan_in)`.
pub(crate) fn torch_default(graph: &Graph) -> Init {
    let mut init = Init::default();
    for (id, node) in graph.iter() {
        if !matches!(node.op(), Op::Conv2d(_) | Op::Linear(_)) {
            continue;
        }
        let slots = graph.slots(id);
        let fan_in: usize = slots[0].dims[1..].iter().product();
        for slot in 0..slots.len() {
            init.tensors.insert(graph.tensor_name(id, slot), Filler::Gaussian(deviation(1.0 / 3.0, fan_in)));
        }
    }
    init
}

/// `sqrt(gain / fan)`.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a fan is far below 2^52")]
pub(crate) fn deviation(gain: f64, fan: usize) -> f32 {
    (gain / fan as f64).sqrt() as f32
}

/// Names of all convolutions, in graph order.
pub(crate) fn convolutions(graph: &Graph) -> Vec<String> {
    let conv = |node: &&cofilter_graph::Node| matches!(node.op(), Op::Conv2d(_));
    graph.nodes().iter().filter(conv).map(|n| n.name().to_owned()).collect()
}
