use crate::{Array, BatchNorm, Error, Graph, GraphBuilder, Init, Node, NodeId, Op, Params, Result, Shape};

/// A graph with the numbers of every slot. Built only by checked constructors, so dims always match.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    graph: Graph,
    params: Params<Array>,
}

impl Model {
    /// Joins a graph and its parameters.
    ///
    /// # Errors
    /// [`Error::Slots`] or [`Error::Dims`] for the first tensor that does not fit.
    pub fn new(graph: Graph, params: Params<Array>) -> Result<Self> {
        if params.nodes() != graph.nodes().len() {
            return Err(Error::Graph(format!(
                "{} nodes, parameters for {}",
                graph.nodes().len(),
                params.nodes()
            )));
        }
        for (id, node) in graph.iter() {
            check_slots(node.name(), &graph.slots(id), params.get(id))?;
        }
        Ok(Self { graph, params })
    }

    /// A model with drawn parameters; equal seeds give equal bytes on every machine.
    ///
    /// # Errors
    /// [`Error::Graph`] if `init` names a tensor that is not in the graph.
    pub fn init(graph: Graph, init: &Init, seed: u64) -> Result<Self> {
        let params = init.fill(&graph, seed);
        let known: std::collections::BTreeSet<String> =
            params.iter().map(|(id, slot, _)| graph.tensor_name(id, slot)).collect();
        match init.tensors.keys().find(|name| !known.contains(*name)) {
            Some(name) => {
                Err(Error::Graph(format!("the initialiser names `{name}`, which is no tensor of it")))
            }
            None => Self::new(graph, params),
        }
    }

    /// The description.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The numbers.
    #[must_use]
    pub fn params(&self) -> &Params<Array> {
        &self.params
    }

    /// The tensors of one node, in slot order.
    #[must_use]
    pub fn tensors(&self, id: NodeId) -> &[Array] {
        self.params.get(id)
    }

    /// The same graph with other numbers.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn with_params(&self, params: Params<Array>) -> Result<Self> {
        Self::new(self.graph.clone(), params)
    }

    /// Refuses NaN, infinity, and variances below 0, whose roots would be NaN.
    ///
    /// # Errors
    /// [`Error::NotFinite`] or [`Error::Variance`] for the first such element.
    pub fn check_finite(&self) -> Result<()> {
        for (id, slot, array) in self.params.iter() {
            let tensor = || self.graph.tensor_name(id, slot);
            if let Some((index, value)) = array.first_not_finite() {
                return Err(Error::NotFinite { tensor: tensor(), index, value });
            }
            if matches!(self.graph.node(id).op(), Op::BatchNorm(_)) && slot == BatchNorm::VARIANCE {
                let negative = array.data().iter().copied().enumerate().find(|(_, v)| *v < 0.0);
                if let Some((index, value)) = negative {
                    return Err(Error::Variance { tensor: tensor(), index, value });
                }
            }
        }
        Ok(())
    }

    /// The one way to change a network. Walks the nodes in order; for each, `f` adds zero or more nodes with the
    /// [`Rewriter`] and returns the value that stands for it. What nobody reads afterwards is dropped.
    ///
    /// `f` gets the old node's id and its inputs already translated to new ids.
    ///
    /// # Errors
    /// The first error of `f`, or of the graph it built.
    pub fn rewrite<E: From<Error>>(
        &self,
        f: impl FnMut(&mut Rewriter<'_>, NodeId, &[NodeId]) -> Result<NodeId, E>,
    ) -> Result<Self, E> {
        self.rewrite_outputs(self.graph.outputs(), f)
    }

    /// The part of the network that computes `to` from `from`, which becomes its input and keeps its name.
    ///
    /// # Errors
    /// [`Error::Graph`] if `to` needs anything that is not computed from `from`.
    pub fn part(&self, from: NodeId, to: NodeId) -> Result<Self> {
        let name = |id: NodeId| self.graph.node(id).name();
        let mut needed = vec![false; self.graph.nodes().len()];
        needed[to.index()] = true;
        for index in (0..=to.index()).rev() {
            if needed[index] && index != from.index() {
                let inputs = self.graph.nodes()[index].inputs();
                if inputs.is_empty() {
                    return Err(Error::Graph(format!(
                        "`{}` is not computed from `{}` alone",
                        name(to),
                        name(from)
                    )));
                }
                inputs.iter().for_each(|input| needed[input.index()] = true);
            }
        }
        let mut builder = Graph::builder();
        let mut params = vec![Vec::new()];
        let mut new_ids = vec![None; needed.len()];
        new_ids[from.index()] = Some(builder.input(name(from), self.graph.node(from).shape())?);
        for (id, node) in self.graph.iter().filter(|(id, _)| needed[id.index()] && *id != from) {
            let inputs: Vec<NodeId> =
                node.inputs().iter().filter_map(|input| new_ids[input.index()]).collect();
            params.push(self.tensors(id).to_vec());
            new_ids[id.index()] = Some(builder.add(node.name(), node.op().clone(), &inputs)?);
        }
        let output: Vec<NodeId> = new_ids[to.index()].into_iter().collect();
        Self::new(builder.finish(&output)?, Params::new(params))
    }

    /// As [`Model::rewrite`], with only these of the old values as outputs.
    pub(crate) fn rewrite_outputs<E: From<Error>>(
        &self,
        outputs: &[NodeId],
        mut f: impl FnMut(&mut Rewriter<'_>, NodeId, &[NodeId]) -> Result<NodeId, E>,
    ) -> Result<Self, E> {
        let mut rewriter = Rewriter { old: self, builder: Graph::builder(), params: Vec::new() };
        let mut new_ids: Vec<NodeId> = Vec::with_capacity(self.graph.nodes().len());
        for (id, node) in self.graph.iter() {
            let inputs: Vec<NodeId> = node.inputs().iter().map(|i| new_ids[i.index()]).collect();
            new_ids.push(f(&mut rewriter, id, &inputs)?);
        }
        let outputs: Vec<NodeId> = outputs.iter().map(|o| new_ids[o.index()]).collect();
        let graph = rewriter.builder.finish(&outputs)?;
        Ok(Self::new(graph, Params::new(rewriter.params))?.prune_dead()?)
    }

    /// Drops nodes that no output needs; the input stays.
    fn prune_dead(&self) -> Result<Self> {
        let mut live = vec![false; self.graph.nodes().len()];
        live[0] = true;
        for output in self.graph.outputs() {
            live[output.index()] = true;
        }
        for (id, node) in self.graph.iter().collect::<Vec<_>>().into_iter().rev() {
            if live[id.index()] {
                node.inputs().iter().for_each(|i| live[i.index()] = true);
            }
        }
        let mut builder = Graph::builder();
        let mut params = Vec::new();
        let mut new_ids: Vec<Option<NodeId>> = Vec::with_capacity(live.len());
        for (id, node) in self.graph.iter() {
            new_ids.push(if live[id.index()] {
                let inputs: Vec<NodeId> = node.inputs().iter().filter_map(|i| new_ids[i.index()]).collect();
                params.push(self.tensors(id).to_vec());
                Some(builder.add(node.name(), node.op().clone(), &inputs)?)
            } else {
                None
            });
        }
        let outputs: Vec<NodeId> = self.graph.outputs().iter().filter_map(|o| new_ids[o.index()]).collect();
        Self::new(builder.finish(&outputs)?, Params::new(params))
    }
}

fn check_slots(node: &str, slots: &[crate::SlotSpec], arrays: &[Array]) -> Result<()> {
    if slots.len() != arrays.len() {
        return Err(Error::Slots { node: node.into(), expected: slots.len(), found: arrays.len() });
    }
    for (spec, array) in slots.iter().zip(arrays) {
        if spec.dims != array.dims() {
            return Err(Error::Dims {
                tensor: format!("{node}.{}", spec.name),
                expected: spec.dims.clone(),
                found: array.dims().to_vec(),
            });
        }
    }
    Ok(())
}

/// Builds the new network during [`Model::rewrite`].
#[derive(Debug)]
pub struct Rewriter<'a> {
    old: &'a Model,
    builder: GraphBuilder,
    params: Vec<Vec<Array>>,
}

impl Rewriter<'_> {
    /// The node of the old network.
    #[must_use]
    pub fn old(&self, id: NodeId) -> &Node {
        self.old.graph.node(id)
    }

    /// Shape of a value of the new network.
    #[must_use]
    pub fn shape(&self, id: NodeId) -> Shape {
        self.builder.shape(id)
    }

    /// Adds a node with its tensors, in slot order.
    ///
    /// # Errors
    /// As [`GraphBuilder::add`], and [`Error::Slots`] or [`Error::Dims`] for tensors that do not fit.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[NodeId], tensors: Vec<Array>) -> Result<NodeId> {
        let shapes: Vec<Shape> = inputs.iter().map(|i| self.builder.shape(*i)).collect();
        let id = self.builder.add(name, op.clone(), inputs)?;
        let slots = op.slots(&shapes);
        check_slots(name, &slots, &tensors)?;
        self.params.push(tensors);
        Ok(id)
    }

    /// Copies a node of the old network onto new inputs.
    ///
    /// # Errors
    /// As [`Rewriter::add`].
    pub fn keep(&mut self, id: NodeId, inputs: &[NodeId]) -> Result<NodeId> {
        let node = self.old.graph.node(id);
        self.add(&node.name, node.op.clone(), inputs, self.old.tensors(id).to_vec())
    }
}
