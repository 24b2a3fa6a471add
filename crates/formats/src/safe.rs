//! Tensors of safetensors files.

use crate::draft::Reason;
use crate::{Error, Result};
use cofilter_graph::Array;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Bytes by which a file is recognised.
const BEGIN: u64 = 9;

/// Whether a file is one of safetensors': the length of its header comes first, then the header, which is JSON.
pub(crate) fn is(path: &Path) -> Result<bool> {
    let file = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let mut begin = Vec::new();
    Ok(file.take(BEGIN).read_to_end(&mut begin).is_ok() && begins(&begin))
}

/// Whether the bytes of a file begin as one of safetensors'.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

/// Reads all tensors, in the order of the file, as `f32`.
///
/// # Errors
/// [`Error::Io`], or [`Error::File`] if the file is damaged or holds numbers that are not supported.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Array)>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    from_bytes(&bytes, path)
}

/// As [`read`], from the bytes of a file, whose name is for messages.
pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Vec<(String, Array)>> {
    let fail = |reason: String| Error::File { path: path.into(), reason };
    let file =
        SafeTensors::deserialize(bytes).map_err(|error| fail(format!("not a safetensors file: {error}")))?;
    if file.is_empty() {
        return Err(fail("holds no tensors".into()));
    }
    let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
    tensors.sort_by_key(|(_, view)| view.data().as_ptr() as usize);
    let read = |(name, view): (String, TensorView<'_>)| {
        let numbers = numbers(&view).map_err(|reason| fail(format!("tensor `{name}`: {reason}")))?;
        Ok((name, Array::new(view.shape().to_vec(), numbers)))
    };
    tensors.into_iter().map(read).collect()
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "networks compute in f32")]
fn numbers(view: &TensorView<'_>) -> std::result::Result<Vec<f32>, Reason> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => words(data).map(f32::from_le_bytes).collect(),
        Dtype::F64 => words(data).map(|bytes| f64::from_le_bytes(bytes) as f32).collect(),
        Dtype::F16 => words(data).map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => words(data).map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::I64 => words(data).map(|bytes| i64::from_le_bytes(bytes) as f32).collect(),
        Dtype::I32 => words(data).map(|bytes| i32::from_le_bytes(bytes) as f32).collect(),
        other => return Err(format!("numbers of type {other:?} are not supported")),
    })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// A file of these tensors, as Python's libraries read it.
pub(crate) fn to_bytes(tensors: &[(String, Array)]) -> std::result::Result<Vec<u8>, Reason> {
    let bytes: Vec<(&str, &Array, Vec<u8>)> = (tensors.iter())
        .map(|(name, array)| {
            (name.as_str(), array, array.data().iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, array, bytes)| {
        let view = TensorView::new(Dtype::F32, array.dims().to_vec(), bytes);
        view.map(|view| (*name, view)).map_err(|error| format!("tensor `{name}`: {error}"))
    });
    let views = views.collect::<std::result::Result<Vec<_>, Reason>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
}
