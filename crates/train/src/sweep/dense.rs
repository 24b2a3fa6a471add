//! Ops without a kernel for blocked maps, as layers on dense numbers.

use super::{Done, Gradients, Numbers, Pass, Sweep, Value, dense, no_map, with_learnt};
use crate::Result;
use crate::net::Mode;
use crate::ops::{self, Arg, Layer, Saved};
use cofilter_graph::NodeId;
use cofilter_kernels::blocked::{Place, View};
use std::sync::Arc;

impl Sweep {
    /// The op of a node as the layers of [`ops`] compute it, on dense numbers.
    pub(super) fn other_forward(
        &mut self,
        pass: &Pass<'_>,
        inputs: &[&Value],
        mode: Mode,
        keep: bool,
        mut saved: Saved,
    ) -> Result<(Value, Done)> {
        let Pass { net, layout, id, node, images } = *pass;
        let dims = || std::iter::once(images).chain(node.shape().dims()).collect();
        let from = layout.view(node.inputs()[0]);
        let layer = ops::layer(node, mode, net.running(id, mode)?)?.filter(|_| !layout.done(id));
        let Some(layer) = layer else {
            return Ok(match (from, layout.view(id)) {
                (Some(from), None) => {
                    let vector = View::dense(Place::Arena, node.shape().elements(), [1, 1]);
                    let data = Arc::new(self.relayout(from, &vector, images, inputs[0].data()));
                    (Value { dims: dims(), data }, Done::Flattened)
                }
                _ => (Value { dims: dims(), data: Arc::clone(&inputs[0].data) }, Done::Passed),
            });
        };
        let copies = self.dense_inputs(pass, inputs);
        let mut dst = self.pool.aligned(images * node.shape().elements());
        with_learnt(net, id, |params| {
            let mut args = args_of(inputs, &copies);
            args.extend_from_slice(params);
            layer.forward(&args, &mut dst, &mut saved, keep);
        })?;
        copies.into_iter().flatten().for_each(|copy| self.pool.back(copy));
        if let Some(view) = layout.view(id) {
            let laid_out = self.relayout(&dense(node, Place::Images), view, images, &dst);
            self.pool.back(std::mem::replace(&mut dst, laid_out));
        }
        Ok((Value { dims: dims(), data: Arc::new(dst) }, Done::Dense(layer, saved)))
    }

    /// Dense copies of the inputs that lie in blocks.
    fn dense_inputs(&mut self, pass: &Pass<'_>, inputs: &[&Value]) -> Vec<Option<Numbers>> {
        let Pass { net, layout, node, images, .. } = *pass;
        let copy = |(id, value): (&NodeId, &&Value)| {
            let view = layout.view(*id)?;
            Some(self.relayout(view, &dense(net.graph().node(*id), Place::Arena), images, value.data()))
        };
        node.inputs().iter().zip(inputs).map(copy).collect()
    }

    /// The same by a layer on dense numbers.
    pub(super) fn other_backward(
        &mut self,
        pass: &Pass<'_>,
        layer: &dyn Layer,
        saved: &Saved,
        values: &[Option<Value>],
        grad: &[f32],
        wanted: &[bool],
    ) -> Result<Gradients> {
        let Pass { net, layout, id, node, images } = *pass;
        let inputs: Vec<&Value> = node.inputs().iter().filter_map(|i| values[i.index()].as_ref()).collect();
        let Some(dst) = &values[id.index()] else { return Err(no_map(node)) };
        let copies = self.dense_inputs(pass, &inputs);
        let of_result = layout.view(id).map(|view| {
            let dense = dense(node, Place::Arena);
            [dst.data(), grad].map(|numbers| self.relayout(view, &dense, images, numbers))
        });
        let [dense_dst, dense_grad] = match &of_result {
            Some([dst, grad]) => [&**dst, &**grad],
            None => [dst.data(), grad],
        };
        let mut learnt = with_learnt(net, id, |params| {
            let mut args = args_of(&inputs, &copies);
            args.extend_from_slice(params);
            let mut grads: Vec<Option<Vec<f32>>> =
                args.iter().zip(wanted).map(|(a, w)| w.then(|| self.pool.take(a.data.len()))).collect();
            let mut places: Vec<Option<&mut [f32]>> = grads.iter_mut().map(|g| g.as_deref_mut()).collect();
            layer.backward(&args, dense_dst, saved, dense_grad, &mut places);
            grads
        })?;
        let spent = copies.into_iter().flatten().chain(of_result.into_iter().flatten());
        spent.for_each(|copy| self.pool.back(copy));
        let mut inputs = Vec::with_capacity(node.inputs().len());
        for (input, grad) in node.inputs().iter().zip(learnt.drain(..node.inputs().len())) {
            inputs.push(match (layout.view(*input), grad) {
                (Some(view), Some(grad)) => {
                    let from = dense(net.graph().node(*input), Place::Images);
                    let laid_out = self.relayout(&from, view, images, &grad);
                    self.pool.give(grad);
                    Some(laid_out)
                }
                (_, grad) => grad.map(Numbers::from),
            });
        }
        Ok(Gradients { inputs, learnt })
    }
}

/// The operands of a layer: the copies where there are some.
fn args_of<'a>(inputs: &[&'a Value], copies: &'a [Option<Numbers>]) -> Vec<Arg<'a>> {
    let arg = |(value, copy): (&&'a Value, &'a Option<Numbers>)| Arg {
        data: copy.as_deref().unwrap_or(&value.data),
        dims: &value.dims,
    };
    inputs.iter().zip(copies).map(arg).collect()
}
