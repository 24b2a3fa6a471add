//! Constant tensors of ONNX graphs.

use super::proto::{self, kind};
use crate::draft::Reason;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path};
use std::sync::Arc;

/// Most extents of a tensor.
pub(super) const MOST_DIMS: usize = 16;
/// Most integers of a byte each in a tensor: they stand for shapes and flags.
const MOST_BYTES: usize = 1 << 12;

/// A tensor that is known before the network runs.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub(super) dims: Vec<usize>,
    pub(super) data: Data,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    Floats(Arc<[f32]>),
    /// Shapes and indices; what depends on the number of images is `None`.
    Ints(Arc<[Option<i64>]>),
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.len(),
            Self::Ints(ints) => ints.len(),
        }
    }
}

impl Constant {
    pub(super) fn floats(dims: Vec<usize>, floats: impl Into<Arc<[f32]>>) -> Self {
        Self { dims, data: Data::Floats(floats.into()) }
    }

    pub(super) fn ints(ints: Vec<Option<i64>>) -> Self {
        Self { dims: vec![ints.len()], data: Data::Ints(ints.into()) }
    }

    /// The numbers of a tensor of floats.
    pub(super) fn as_floats(&self) -> Result<&Arc<[f32]>, Reason> {
        match &self.data {
            Data::Floats(floats) => Ok(floats),
            Data::Ints(_) => Err("expected a tensor of floats, found integers".into()),
        }
    }

    /// The one number of a tensor.
    pub(super) fn scalar(&self) -> Result<f32, Reason> {
        match &**self.as_floats()? {
            [number] => Ok(*number),
            _ => Err(format!("expected one number, found {:?}", self.dims)),
        }
    }

    pub(super) fn as_ints(&self) -> Result<&[Option<i64>], Reason> {
        match &self.data {
            Data::Ints(ints) => Ok(ints),
            Data::Floats(_) => Err("expected a tensor of integers, found floats".into()),
        }
    }

    /// Integers that do not depend on the number of images.
    pub(super) fn known_ints(&self) -> Result<Vec<i64>, Reason> {
        let known: Option<Vec<i64>> = self.as_ints()?.iter().copied().collect();
        known.ok_or_else(|| "depends on the number of images".into())
    }

    /// Reads a tensor; files beside the model are looked for where `beside` says.
    pub(super) fn read(tensor: &proto::Tensor, beside: &mut Beside<'_>) -> Result<Self, Reason> {
        if tensor.dims.len() > MOST_DIMS {
            return Err(format!("{} extents, at most {MOST_DIMS} are supported", tensor.dims.len()));
        }
        let dims: Option<Vec<usize>> = tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let dims = dims.ok_or_else(|| format!("extents {:?}", tensor.dims))?;
        let len = elements(&dims)?;
        let outside = if tensor.location == proto::Tensor::EXTERNAL {
            let width = width(tensor.kind)?;
            let bytes = len.checked_mul(width).ok_or_else(|| format!("extents {dims:?} are too large"))?;
            Some(beside.read(tensor, bytes)?)
        } else {
            None
        };
        let raw: &[u8] = outside.as_deref().unwrap_or(&tensor.raw);
        // Before anything is read: a wrong type may make four numbers of one.
        let count = if raw.is_empty() { typed(tensor) } else { raw.len() / width(tensor.kind)? };
        if count != len {
            return Err(format!("extents {dims:?} and {count} numbers"));
        }
        if width(tensor.kind)? == 1 && len > MOST_BYTES {
            return Err(format!("{len} numbers of a byte each, at most {MOST_BYTES} are supported"));
        }
        Ok(Self { data: numbers(tensor, raw)?, dims })
    }
}

/// Bytes of a number.
fn width(of: i32) -> Result<usize, Reason> {
    Ok(match of {
        kind::BOOL | kind::UINT8 | kind::INT8 => 1,
        kind::FLOAT16 | kind::BFLOAT16 => 2,
        kind::FLOAT | kind::INT32 => 4,
        kind::INT64 | kind::DOUBLE => 8,
        other => return Err(format!("numbers of type {other} are not supported")),
    })
}

/// Numbers in the field for the type of a tensor.
fn typed(tensor: &proto::Tensor) -> usize {
    match tensor.kind {
        kind::FLOAT => tensor.floats.len(),
        kind::DOUBLE => tensor.doubles.len(),
        kind::INT64 => tensor.int64s.len(),
        _ => tensor.int32s.len(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "doubles become floats; int32_data holds 16 bits of a half"
)]
fn numbers(tensor: &proto::Tensor, raw: &[u8]) -> Result<Data, Reason> {
    let width = width(tensor.kind)?;
    if !raw.len().is_multiple_of(width) {
        return Err(format!("{} bytes of numbers of {width} bytes", raw.len()));
    }
    let halves = || tensor.int32s.iter().map(|bits| *bits as u16);
    let wide = || tensor.int32s.iter().map(|int| Some(i64::from(*int)));
    let is_raw = !raw.is_empty();
    Ok(match tensor.kind {
        kind::FLOAT if is_raw => Data::Floats(words(raw).map(f32::from_le_bytes).collect()),
        kind::FLOAT => Data::Floats(tensor.floats.clone().into()),
        kind::FLOAT16 if is_raw => Data::Floats(words(raw).map(|w| f16::from_le_bytes(w).to_f32()).collect()),
        kind::FLOAT16 => Data::Floats(halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
        kind::BFLOAT16 if is_raw => {
            Data::Floats(words(raw).map(|w| bf16::from_le_bytes(w).to_f32()).collect())
        }
        kind::BFLOAT16 => Data::Floats(halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
        kind::DOUBLE if is_raw => Data::Floats(words(raw).map(|w| f64::from_le_bytes(w) as f32).collect()),
        kind::DOUBLE => Data::Floats(tensor.doubles.iter().map(|double| *double as f32).collect()),
        kind::INT64 if is_raw => Data::Ints(words(raw).map(|w| Some(i64::from_le_bytes(w))).collect()),
        kind::INT64 => Data::Ints(tensor.int64s.iter().map(|int| Some(*int)).collect()),
        kind::INT32 if is_raw => {
            Data::Ints(words(raw).map(|w| Some(i64::from(i32::from_le_bytes(w)))).collect())
        }
        kind::UINT8 | kind::BOOL if is_raw => {
            Data::Ints(raw.iter().map(|byte| Some(i64::from(*byte))).collect())
        }
        kind::INT8 if is_raw => {
            Data::Ints(raw.iter().map(|byte| Some(i64::from(byte.cast_signed()))).collect())
        }
        _ => Data::Ints(wide().collect()),
    })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Files beside a model, which hold numbers of its tensors.
pub(super) struct Beside<'a> {
    folder: Option<&'a Path>,
    /// Bytes of each file that may still be read: many tensors that name the same ones are no honest model.
    left: BTreeMap<String, u64>,
    /// Bytes that were read.
    pub(super) bytes: usize,
}

impl<'a> Beside<'a> {
    pub(super) fn new(folder: Option<&'a Path>) -> Self {
        Self { folder, left: BTreeMap::new(), bytes: 0 }
    }

    /// The bytes of a tensor.
    fn read(&mut self, tensor: &proto::Tensor, len: usize) -> Result<Vec<u8>, Reason> {
        let entry = |key: &str| {
            tensor.external.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => {
                text.parse::<u64>().map(Some).map_err(|_| format!("external data: {key} is {text:?}"))
            }
        };
        let location = entry("location").ok_or("external data without a location")?;
        let folder = self.folder.ok_or("external data, but the model is not a file")?;
        // A file must not reach for others than those that came with it.
        let relative = Path::new(location);
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(format!("external data in {location:?}, expected a file beside the model"));
        }
        let fail = |error: std::io::Error| format!("external data in {location:?}: {error}");
        let offset = number("offset")?.unwrap_or(0);
        let wanted = len as u64;
        let given = number("length")?.unwrap_or(wanted);
        if given != wanted {
            return Err(format!("external data of {given} bytes, expected {wanted}"));
        }
        let mut file = File::open(folder.join(relative)).map_err(fail)?;
        let held = file.metadata().map_err(fail)?.len();
        if offset.checked_add(wanted).is_none_or(|end| end > held) {
            return Err(format!("external data at {offset}, {wanted} bytes: {location:?} has {held}"));
        }
        let left = self.left.entry(location.to_owned()).or_insert(held);
        *left = left.checked_sub(wanted).ok_or_else(|| {
            format!("external data in {location:?}: tensors name more than its {held} bytes")
        })?;
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes).map_err(fail)?;
        self.bytes = self.bytes.saturating_add(len);
        Ok(bytes)
    }
}

/// Elements of a tensor, if they and all products of its extents can be counted.
pub(super) fn elements(dims: &[usize]) -> Result<usize, Reason> {
    // An extent of 0 must not hide others.
    let counted = dims.iter().try_fold(1_usize, |len, dim| len.checked_mul((*dim).max(1)));
    match counted {
        Some(counted) if isize::try_from(counted).is_ok() => Ok(dims.iter().product()),
        _ => Err(format!("extents {dims:?} are too large")),
    }
}
