use crate::ops::{self, Saved, Statistics, tape};
use crate::{Error, Result};
use candle_core::{CpuStorage, bail};
use candle_core::{DType, Device, InplaceOp1, Layout, Tensor, Var};
use cofilter_graph::{Array, Graph, Model, Node, NodeId, Op, Params, Role, SlotSpec};
use std::cell::RefCell;

/// How a network runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout is the identity, batch normalisation uses its running statistics.
    Eval,
    /// Dropout draws from (seed, iteration, node name); batch normalisation uses the statistics of the batch and
    /// updates the running ones.
    Train {
        /// Seed of the run.
        seed: u64,
        /// Iteration, counted from 0.
        iteration: u64,
    },
}

/// A network whose numbers are candle variables, so that values can be differentiated.
///
/// `Net::new(m).to_model() == m`, bit for bit.
#[derive(Debug)]
pub struct Net {
    graph: Graph,
    slots: Vec<Vec<SlotSpec>>,
    params: Params<Var>,
}

impl Net {
    /// Copies the numbers of a model.
    ///
    /// # Errors
    /// [`Error::Tensor`] from candle.
    pub fn new(model: &Model) -> Result<Self> {
        let graph = model.graph().clone();
        let slots = graph.iter().map(|(id, _)| graph.slots(id)).collect();
        let params = model.params().try_map(|_, _, array| {
            Var::from_tensor(&Tensor::from_slice(array.data(), array.dims(), &Device::Cpu)?)
        })?;
        Ok(Self { graph, slots, params })
    }

    /// The description.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The variables, in slot order.
    #[must_use]
    pub fn params(&self) -> &Params<Var> {
        &self.params
    }

    /// The slots of a node.
    pub(crate) fn slots(&self, id: NodeId) -> &[SlotSpec] {
        &self.slots[id.index()]
    }

    /// The learnt variables of a node.
    pub(crate) fn learnt(&self, id: NodeId) -> impl Iterator<Item = &Var> {
        let specs = self.slots(id).iter();
        self.params.get(id).iter().zip(specs).filter(|(_, s)| s.role != Role::Statistic).map(|(v, _)| v)
    }

    /// The numbers as they are now, as a model.
    ///
    /// # Errors
    /// [`Error::Tensor`] from candle.
    pub fn to_model(&self) -> Result<Model> {
        let params = self.params.try_map(|_, _, var| -> Result<Array> {
            Ok(Array::new(var.dims().to_vec(), var.flatten_all()?.to_vec1::<f32>()?))
        })?;
        Ok(Model::new(self.graph.clone(), params)?)
    }

    /// Values of all outputs for images `[N, C, H, W]` (vectors: `[N, F]`), main output first. They are on candle's
    /// tape: [`Tensor::backward`] gives the gradients of [`Net::params`].
    ///
    /// In [`Mode::Train`] the running statistics of batch normalisations change.
    ///
    /// # Errors
    /// [`Error::Input`] for images of another shape or type, [`Error::Tensor`].
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        self.forward_to(images, mode, self.graph.outputs())
    }

    /// As [`Net::forward`], for any nodes.
    pub(crate) fn forward_to(&self, images: &Tensor, mode: Mode, targets: &[NodeId]) -> Result<Vec<Tensor>> {
        let mut values: Vec<Tensor> = Vec::with_capacity(self.graph.nodes().len());
        for (id, node) in self.graph.iter() {
            let value = match node.op() {
                Op::Input { .. } => self.check_images(images)?,
                _ => {
                    let inputs: Vec<&Tensor> = node.inputs().iter().map(|i| &values[i.index()]).collect();
                    self.value(id, node, &inputs, mode)?
                }
            };
            values.push(value);
        }
        Ok(targets.iter().map(|t| values[t.index()].clone()).collect())
    }

    fn check_images(&self, images: &Tensor) -> Result<Tensor> {
        let mut expected = vec![images.dims().first().copied().unwrap_or(0)];
        expected.extend(self.graph.input_shape().dims());
        if images.dims() != expected || expected[0] == 0 || images.dtype() != DType::F32 {
            return Err(Error::Input(format!(
                "images: expected f32 [N, {}], found {:?} {:?}",
                self.graph.input_shape(),
                images.dtype(),
                images.dims()
            )));
        }
        Ok(images.contiguous()?)
    }

    fn value(&self, id: NodeId, node: &Node, inputs: &[&Tensor], mode: Mode) -> Result<Tensor> {
        let batch_norm = match (node.op(), mode) {
            (Op::BatchNorm(bn), Mode::Train { .. }) => Some(bn),
            _ => None,
        };
        let Some(layer) = ops::layer(node, mode, self.running(id, mode)?)? else {
            return Ok(if matches!(node.op(), Op::Flatten) {
                inputs[0].flatten_from(1)?
            } else {
                inputs[0].clone()
            });
        };
        match node.op() {
            // More operands than candle's custom ops take; both are copies and sums of candle's own here.
            Op::Concat => Ok(Tensor::cat(inputs, 1)?),
            Op::Add if inputs.len() > 2 => {
                let mut sum = (inputs[0] + inputs[1])?;
                for input in &inputs[2..] {
                    sum = (sum + *input)?;
                }
                Ok(sum)
            }
            _ => {
                let learnt = self.learnt(id).map(Var::as_tensor);
                let args: Vec<&Tensor> = inputs.iter().copied().chain(learnt).collect();
                let (value, saved) = tape::apply(layer, &args)?;
                if let (Some(_), Some(Saved::Statistics(batch))) = (batch_norm, saved.get()) {
                    self.update_running(id, inputs[0].elem_count(), batch)?;
                }
                Ok(value)
            }
        }
    }

    /// The running statistics of a batch normalisation, where the mode uses them.
    pub(crate) fn running(&self, id: NodeId, mode: Mode) -> Result<Option<Statistics>> {
        match (self.graph.node(id).op(), mode) {
            (Op::BatchNorm(_), Mode::Eval) => {
                let vars = self.params.get(id);
                Ok(Some(Statistics { mean: vars[2].to_vec1()?, var: vars[3].to_vec1()? }))
            }
            _ => Ok(None),
        }
    }

    /// `running = (1 - momentum) running + momentum batch`, the variance unbiased.
    ///
    /// `elements`: of the whole operand.
    pub(crate) fn update_running(&self, id: NodeId, elements: usize, batch: &Statistics) -> Result<()> {
        let Op::BatchNorm(bn) = self.graph.node(id).op() else { return Ok(()) };
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact to 2^24 elements a channel, then relative 6e-8"
        )]
        let count = (elements / batch.mean.len()) as f32;
        let unbiased = count / (count - 1.0).max(1.0);
        let (old, new) = (1.0 - bn.momentum, bn.momentum);
        let vars = self.params.get(id);
        update(&vars[2], |mean| mean.iter_mut().zip(&batch.mean).for_each(|(r, b)| *r = old * *r + new * b))?;
        update(&vars[3], |var| {
            var.iter_mut().zip(&batch.var).for_each(|(r, b)| *r = old * *r + new * (unbiased * b));
        })
    }
}

/// Changes the numbers of a variable in place.
pub(crate) fn update(var: &Var, f: impl FnMut(&mut [f32])) -> Result<()> {
    Ok(var.inplace_op1(&InPlace(RefCell::new(f)))?)
}

/// Runs `f` with the numbers of a tensor.
pub(crate) fn read<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    Ok(tape::with_slices("read", &[tensor], |args| f(args[0].data))?)
}

struct InPlace<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(v), Some((start, end))) => {
                (self.0.borrow_mut())(&mut v[start..end]);
                Ok(())
            }
            _ => bail!("expected a contiguous f32 variable"),
        }
    }
}
