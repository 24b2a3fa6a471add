use crate::{Density, Step, Value};
use cofilter_graph::{Model, NodeId, Op};

/// The steps of a network to which the inference passes were applied, and its main output.
pub(crate) fn steps(model: &Model) -> (Vec<Step>, Value) {
    let graph = model.graph();
    let macs = graph.cost().nodes().iter().map(|cost| cost.macs).collect();
    let mut lowering = Lowering { model, macs, values: vec![0; graph.nodes().len()], steps: Vec::new() };
    for chain in chains(model).iter().flatten() {
        lowering.emit(chain);
    }
    let output = graph.outputs()[0];
    let output = lowering.value(output);
    (lowering.steps, output)
}

/// A node and the element-wise followers that its step computes too.
#[derive(Clone, Copy, Debug)]
struct Chain {
    head: NodeId,
    add: Option<NodeId>,
    relu: Option<NodeId>,
}

impl Chain {
    fn tail(&self) -> NodeId {
        self.relu.or(self.add).unwrap_or(self.head)
    }
}

/// The longest chain that ends at each node, where all its operands are there; none for a node that is passed through.
/// A follower joins if it is the only reader and the value before it is not an output.
fn chains(model: &Model) -> Vec<Option<Chain>> {
    let graph = model.graph();
    let consumers = graph.consumers();
    let sole_reader = |id: NodeId| match consumers[id.index()].as_slice() {
        [reader] if !graph.outputs().contains(&id) => Some(*reader),
        _ => None,
    };
    let convolved = |id: NodeId| matches!(graph.node(id).op(), Op::Conv2d(_)) && sole_reader(id).is_some();
    let mut chains: Vec<Option<Chain>> = vec![None; graph.nodes().len()];
    for (head, node) in graph.iter() {
        // Of two convolutions that meet in a sum, the later one takes it: the earlier result is there by then.
        let add = sole_reader(head).filter(|reader| {
            let reader = graph.node(*reader);
            let last = reader.inputs().iter().copied().filter(|i| convolved(*i)).max();
            matches!(reader.op(), Op::Add) && last == Some(head)
        });
        let relu = match node.op() {
            Op::Conv2d(_) | Op::Linear(_) | Op::BatchNorm(_) | Op::Add => sole_reader(add.unwrap_or(head)),
            _ => None,
        };
        let relu = relu.filter(|reader| matches!(graph.node(*reader).op(), Op::Relu));
        let chain = Chain { head, add, relu };
        // Heads come in order, so the first with this tail is the longest.
        chains[chain.tail().index()].get_or_insert(chain);
    }
    chains
}

struct Lowering<'a> {
    model: &'a Model,
    macs: Vec<usize>,
    /// Value of each node, filled in order.
    values: Vec<usize>,
    steps: Vec<Step>,
}

impl Lowering<'_> {
    fn emit(&mut self, chain: &Chain) {
        let graph = self.model.graph();
        let head = graph.node(chain.head);
        let mut operands: Vec<Value> = head.inputs().iter().map(|i| self.value(*i)).collect();
        let value = match head.op() {
            Op::Input { .. } => 0,
            Op::Flatten | Op::Dropout { .. } => operands[0].id,
            Op::Add => {
                let last = operands.pop().expect("an add has two or more inputs, the graph checked it");
                let sum = self.sum(&operands, head.name());
                self.push(chain, vec![sum, last], None)
            }
            _ => {
                let add = chain.add.map(|add| {
                    let others = graph.node(add).inputs().iter().filter(|i| **i != chain.head);
                    let others: Vec<Value> = others.map(|i| self.value(*i)).collect();
                    self.sum(&others, graph.node(add).name())
                });
                self.push(chain, operands, add)
            }
        };
        self.values[chain.tail().index()] = value;
    }

    fn value(&self, id: NodeId) -> Value {
        Value { id: self.values[id.index()], shape: self.model.graph().node(id).shape() }
    }

    /// The sum of one or more values, by steps of two.
    fn sum(&mut self, values: &[Value], node: &str) -> Value {
        let (first, rest) =
            values.split_first().expect("an add has two or more inputs, the graph checked it");
        rest.iter().fold(*first, |sum, value| {
            let result = Value { id: self.steps.len() + 1, shape: sum.shape };
            self.steps.push(Step {
                nodes: vec![node.into()],
                op: Op::Add,
                tensors: Vec::new(),
                operands: vec![sum, *value],
                add: None,
                relu: false,
                result,
                macs: 0,
                density: Density::FULL,
            });
            result
        })
    }

    fn push(&mut self, chain: &Chain, operands: Vec<Value>, add: Option<Value>) -> usize {
        let graph = self.model.graph();
        let members = [Some(chain.head), chain.add, chain.relu].into_iter().flatten();
        let result = Value { id: self.steps.len() + 1, shape: graph.node(chain.head).shape() };
        self.steps.push(Step {
            nodes: members.map(|id| graph.node(id).name().to_string()).collect(),
            op: graph.node(chain.head).op().clone(),
            tensors: self.model.tensors(chain.head).to_vec(),
            operands,
            add,
            relu: chain.relu.is_some(),
            result,
            macs: self.macs[chain.head.index()],
            density: Density::of(graph.node(chain.head).op(), self.model.tensors(chain.head)),
        });
        result.id
    }
}
