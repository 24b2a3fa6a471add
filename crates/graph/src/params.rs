use crate::NodeId;
use std::fmt;
use std::sync::Arc;

/// A dense `f32` tensor, row-major; cloning shares the numbers.
#[derive(Clone, PartialEq)]
pub struct Array {
    dims: Vec<usize>,
    data: Arc<[f32]>,
}

/// Extents only: a model has millions of numbers.
impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array{:?}", self.dims)
    }
}

impl Array {
    /// A tensor of these extents.
    ///
    /// # Panics
    /// If the number of elements is not the product of the extents.
    #[must_use]
    pub fn new(dims: Vec<usize>, data: impl Into<Arc<[f32]>>) -> Self {
        let data = data.into();
        assert_eq!(dims.iter().product::<usize>(), data.len(), "dims {dims:?} and {} elements", data.len());
        Self { dims, data }
    }

    /// A tensor with every element `value`.
    #[must_use]
    pub fn full(dims: Vec<usize>, value: f32) -> Self {
        let len = dims.iter().product();
        Self::new(dims, vec![value; len])
    }

    /// The same numbers, shared, with other extents.
    ///
    /// # Panics
    /// If the number of elements is not the product of the extents.
    #[must_use]
    pub fn reshaped(&self, dims: Vec<usize>) -> Self {
        Self::new(dims, Arc::clone(&self.data))
    }

    /// Extents.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Elements, row-major.
    #[must_use]
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Extents as a matrix: the first axis by all the others, `[N, C*H*W]` for filters.
    #[must_use]
    pub fn matrix_dims(&self) -> (usize, usize) {
        match self.dims.split_first() {
            Some((rows, rest)) => (*rows, rest.iter().product()),
            None => (1, 1),
        }
    }

    /// Index and value of the first element that is not finite.
    #[must_use]
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        self.data.iter().copied().enumerate().find(|(_, v)| !v.is_finite())
    }
}

/// One vector per node of a graph, in the order of the op's slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Params<T>(Vec<Vec<T>>);

impl<T> Params<T> {
    /// Wraps one vector per node.
    #[must_use]
    pub fn new(nodes: Vec<Vec<T>>) -> Self {
        Self(nodes)
    }

    /// The values of one node.
    #[must_use]
    pub fn get(&self, node: NodeId) -> &[T] {
        &self.0[node.index()]
    }

    /// The values of one node, to change.
    pub fn get_mut(&mut self, node: NodeId) -> &mut [T] {
        &mut self.0[node.index()]
    }

    /// Number of nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.0.len()
    }

    /// Every value with its node and slot index, in order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, usize, &T)> {
        self.0.iter().enumerate().flat_map(|(n, slots)| {
            slots.iter().enumerate().map(move |(s, value)| (NodeId::from_index(n), s, value))
        })
    }

    /// A value computed from each value; `f` gets node, slot index and value.
    pub fn map<U>(&self, mut f: impl FnMut(NodeId, usize, &T) -> U) -> Params<U> {
        let node = |(n, slots): (usize, &Vec<T>)| {
            slots.iter().enumerate().map(|(s, value)| f(NodeId::from_index(n), s, value)).collect()
        };
        Params(self.0.iter().enumerate().map(node).collect())
    }

    /// As [`Params::map`], stopping at the first error.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(
        &self,
        mut f: impl FnMut(NodeId, usize, &T) -> Result<U, E>,
    ) -> Result<Params<U>, E> {
        let mut nodes = Vec::with_capacity(self.0.len());
        for (n, slots) in self.0.iter().enumerate() {
            let id = NodeId::from_index(n);
            nodes.push(slots.iter().enumerate().map(|(s, v)| f(id, s, v)).collect::<Result<_, E>>()?);
        }
        Ok(Params(nodes))
    }

    /// Pairs of values of two collections of the same graph.
    ///
    /// # Panics
    /// If the two were made for different graphs.
    pub fn zip<'a, U>(&'a self, other: &'a Params<U>) -> impl Iterator<Item = (NodeId, usize, &'a T, &'a U)> {
        assert_eq!(self.0.len(), other.0.len(), "params of different graphs");
        self.iter().map(|(n, s, value)| (n, s, value, &other.0[n.index()][s]))
    }
}
