use super::{Arg, Layer, Saved};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// Puts a layer on candle's tape: runs it forward on CPU tensors of one to three operands, and backward when candle
/// asks.
///
/// What the forward pass saved is returned too, once it has run.
pub(crate) fn apply(layer: Box<dyn Layer>, args: &[&Tensor]) -> Result<(Tensor, Arc<OnceLock<Saved>>)> {
    let saved = Arc::new(OnceLock::new());
    let op = OnTape { layer, saved: Arc::clone(&saved), keep: args.iter().any(|a| a.track_op()) };
    let value = match args {
        [x] => x.apply_op1(op),
        [x, y] => x.apply_op2(y, op),
        [x, y, z] => x.apply_op3(y, z, op),
        _ => bail!("{}: {} operands on the tape, expected 1 to 3", op.layer.name(), args.len()),
    };
    Ok((value?, saved))
}

struct OnTape {
    layer: Box<dyn Layer>,
    saved: Arc<OnceLock<Saved>>,
    keep: bool,
}

/// The elements of a contiguous `f32` CPU tensor.
pub(crate) fn slice<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(v), Some((start, end))) => Ok(&v[start..end]),
        _ => bail!("{name}: expected a contiguous f32 operand, found {:?} {layout:?}", storage_kind(storage)),
    }
}

fn storage_kind(storage: &CpuStorage) -> candle_core::DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// Runs `f` with the elements of contiguous `f32` CPU tensors.
pub(crate) fn with_slices<T>(name: &str, tensors: &[&Tensor], f: impl FnOnce(&[Arg<'_>]) -> T) -> Result<T> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut args = Vec::with_capacity(tensors.len());
    for (guard, layout) in &guards {
        let Storage::Cpu(storage) = guard.deref() else { bail!("{name}: expected a CPU tensor") };
        args.push(Arg { data: slice(name, storage, layout)?, dims: layout.dims() });
    }
    Ok(f(&args))
}

impl OnTape {
    fn forward(&self, operands: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let name = self.layer.name();
        let mut args = Vec::with_capacity(operands.len());
        for (storage, layout) in operands {
            args.push(Arg { data: slice(name, storage, layout)?, dims: layout.dims() });
        }
        let dims = self.layer.dst_dims(&args.iter().map(|a| a.dims).collect::<Vec<_>>());
        let mut dst = vec![0.0; dims.iter().product()];
        let mut saved = Saved::Nothing;
        self.layer.forward(&args, &mut dst, &mut saved, self.keep);
        // An op runs once; a second run by candle would save the same again.
        let _ = self.saved.set(saved);
        Ok((CpuStorage::F32(dst), dims.into()))
    }

    fn backward(&self, args: &[&Tensor], value: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let name = self.layer.name();
        let Some(saved) = self.saved.get() else { bail!("{name}: backward before forward") };
        let grad = grad.contiguous()?;
        let wanted: Vec<bool> = args.iter().map(|a| a.track_op()).collect();
        let mut buffers: Vec<Vec<f32>> =
            args.iter().zip(&wanted).map(|(a, w)| vec![0.0; if *w { a.elem_count() } else { 0 }]).collect();
        let mut tensors = args.to_vec();
        tensors.extend([value, &grad]);
        with_slices(name, &tensors, |slices| {
            let (operands, rest) = slices.split_at(args.len());
            let mut places: Vec<Option<&mut [f32]>> =
                buffers.iter_mut().zip(&wanted).map(|(b, w)| w.then_some(b.as_mut_slice())).collect();
            self.layer.backward(operands, rest[0].data, saved, rest[1].data, &mut places);
        })?;
        let tensor = |((buffer, wanted), arg): ((Vec<f32>, &bool), &&Tensor)| {
            wanted.then(|| Tensor::from_vec(buffer, arg.dims(), arg.device())).transpose()
        };
        buffers.into_iter().zip(&wanted).zip(args).map(tensor).collect()
    }
}

type Gradient = Option<Tensor>;

impl CustomOp1 for OnTape {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s, l)])
    }

    fn bwd(&self, x: &Tensor, value: &Tensor, grad: &Tensor) -> Result<Gradient> {
        Ok(self.backward(&[x], value, grad)?.pop().flatten())
    }
}

impl CustomOp2 for OnTape {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, value: &Tensor, grad: &Tensor) -> Result<(Gradient, Gradient)> {
        let mut grads = self.backward(&[x, y], value, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl CustomOp3 for OnTape {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Gradient, Gradient, Gradient)> {
        let mut grads = self.backward(&[x, y, z], value, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten(), grads.next().flatten()))
    }
}
