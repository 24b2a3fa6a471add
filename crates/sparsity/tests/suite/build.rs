//! Small networks, numbers from a seed, and the comparison of outputs.

use cofilter_graph::{Array, Filler, Graph, Init, Model};
use cofilter_runtime::reference;

/// Numbers in `0..1` from a seed (xorshift).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A model whose biases are drawn too, so that a lost bias shows.
pub(crate) fn drawn(graph: Graph, seed: u64) -> Model {
    Model::init(graph, &Init { bias: Filler::Gaussian(0.5), ..Init::default() }, seed).unwrap()
}

/// The model with one tensor changed: `f` gets the multi-index of each element and its value.
pub(crate) fn edit(model: &Model, tensor: &str, f: impl Fn(&[usize], f32) -> f32) -> Model {
    let params = model.params().map(|id, slot, array| {
        if model.graph().tensor_name(id, slot) != tensor {
            return array.clone();
        }
        let at = |flat: usize| {
            let mut rest = flat;
            let mut index: Vec<usize> = array.dims().iter().rev().map(|d| (rest % d, rest /= d).0).collect();
            index.reverse();
            index
        };
        let data = array.data().iter().enumerate().map(|(i, v)| f(&at(i), *v)).collect::<Vec<_>>();
        Array::new(array.dims().to_vec(), data)
    });
    let known = model.params().iter().any(|(id, slot, _)| model.graph().tensor_name(id, slot) == tensor);
    assert!(known, "no tensor {tensor}");
    model.with_params(params).unwrap()
}

/// Filters of these numbers all zero, with their bias if there is one.
pub(crate) fn kill_filters(model: &Model, layer: &str, filters: &[usize]) -> Model {
    let zero = |i: &[usize], v: f32| if filters.contains(&i[0]) { 0.0 } else { v };
    let model = edit(model, &format!("{layer}.weight"), zero);
    let id = model.graph().find(layer).unwrap();
    if model.tensors(id).len() > 1 { edit(&model, &format!("{layer}.bias"), zero) } else { model }
}

/// Weights of these input channels all zero.
pub(crate) fn kill_inputs(model: &Model, layer: &str, inputs: &[usize]) -> Model {
    edit(model, &format!("{layer}.weight"), |i, v| if inputs.contains(&i[1]) { 0.0 } else { v })
}

/// `[filters, inputs per group]` of a layer.
pub(crate) fn extents(model: &Model, layer: &str) -> [usize; 2] {
    let dims = model.tensors(model.graph().find(layer).unwrap())[0].dims();
    [dims[0], dims[1]]
}

pub(crate) fn images(model: &Model, seed: u64, count: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    let len = model.graph().input_shape().elements() * count;
    (0..len).map(|_| (2.0 * numbers.next() - 1.0) as f32).collect()
}

/// Fails unless every output of the two networks is the same on drawn images, and is something to compare.
pub(crate) fn assert_same_outputs(what: &str, before: &Model, after: &Model) {
    let images = images(before, 91, 2);
    let (before, after) =
        (reference::outputs(before, &images).unwrap(), reference::outputs(after, &images).unwrap());
    assert_eq!(before.len(), after.len(), "{what}");
    for (a, b) in before.iter().zip(&after) {
        assert_eq!(a.len(), b.len(), "{what}");
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        let (first, second) = a.split_at(a.len() / 2);
        let (off, spread) = (distance(a, b), distance(first, second));
        assert!(spread > 0.0, "{what}: the outputs do not depend on the image");
        assert!(off < 1e-5 * spread, "{what}: {off} apart, where two images are {spread} apart");
    }
}
