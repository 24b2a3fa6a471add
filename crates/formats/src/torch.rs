//! Checkpoints that PyTorch wrote with `torch.save`.
//!
//! The current form is a zip archive of a pickle and of the storages that its tensors are views of; before version 1.6 it was five
//! pickles in a row, then the storages. Both hold the same pickle of the object that was saved. It is read as data, see
//! [`pickle`]: nothing in a file is ever executed, whatever it asks for.

mod legacy;
mod pickle;
mod storage;
mod zipped;

use crate::{Error, Result};
use cofilter_graph::Array;
use pickle::{Heap, Object, Ref, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use storage::{Kind, Storages};

/// The first bytes of an archive.
const ARCHIVE: [u8; 4] = *b"PK\x03\x04";
/// Keys under which training programs keep the state dict of a network, most wanted first.
const WRAPPERS: [&str; 8] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "model_ema",
    "state_dict_ema",
    "net",
    "weights",
];
/// Wrappers within wrappers that are looked into.
const DEPTH: usize = 3;
/// Most extents of a tensor.
const MOST_DIMS: usize = 16;

/// What a checkpoint is read from.
pub(crate) trait Bytes: Read + Seek {}
impl<T: Read + Seek> Bytes for T {}

/// Reads the tensors of a file that `torch.save` wrote: a state dict, or a dictionary that holds one under a usual name.
///
/// # Errors
/// [`Error::Io`], or [`Error::File`] if the file is damaged, of another kind, or holds what is not supported.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Array)>> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    read_from(Box::new(file), len, path)
}

/// As [`read`], from `len` bytes of a file, whose name is for messages.
pub(crate) fn read_from(mut file: Box<dyn Bytes>, len: u64, path: &Path) -> Result<Vec<(String, Array)>> {
    let io = |source| Error::Io { path: path.into(), source };
    let fail = |reason: String| Error::File { path: path.into(), reason };
    let mut magic = [0; 4];
    let begins = file.read_exact(&mut magic);
    if begins.is_err() {
        return Err(fail(format!("expected a checkpoint, found {len} bytes")));
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let (heap, root, mut storages): (Heap, Ref, Box<dyn Storages>) =
        if magic == ARCHIVE { zipped::open(file) } else { legacy::open(file, len) }.map_err(fail)?;
    let entries = state_dict(&heap, root).map_err(fail)?;
    // A file cannot name many more numbers than it holds: shared storages are few.
    let mut room = usize::try_from(len).unwrap_or(usize::MAX).saturating_mul(4);
    let mut tensors = Vec::with_capacity(entries.len());
    described(&heap).map_err(fail)?;
    for (name, tensor) in entries {
        let fail =
            |reason: String| Error::File { path: path.into(), reason: format!("tensor `{name}`: {reason}") };
        let (key, kind, count) = persistent(&heap, tensor.storage).map_err(fail)?;
        let Some(numbers) =
            count_of(tensor).filter(|numbers| numbers.saturating_mul(size_of::<f32>()) <= room)
        else {
            return Err(fail(format!("extents {:?} are more than a file of {len} bytes holds", tensor.size)));
        };
        room -= numbers * size_of::<f32>();
        let numbers = storages.view(&key, kind, count, tensor).map_err(fail)?;
        tensors.push((name, Array::new(tensor.size.clone(), numbers)));
    }
    Ok(tensors)
}

/// Kind and number of elements of every storage that is named anywhere.
fn described(heap: &Heap) -> Result<BTreeMap<String, (Kind, usize)>, String> {
    let mut known = BTreeMap::new();
    for at in heap.refs().filter(|at| matches!(heap.get(*at), Object::Persistent(_))) {
        let (key, kind, count) = persistent(heap, at)?;
        if *known.entry(key.clone()).or_insert((kind, count)) != (kind, count) {
            return Err(format!("storage `{key}` is described in two ways"));
        }
    }
    Ok(known)
}

/// Numbers of a tensor.
fn count_of(tensor: &Tensor) -> Option<usize> {
    let count = tensor.size.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))?;
    (tensor.size.len() <= MOST_DIMS).then_some(count)
}

/// Key, kind and number of elements of a storage.
fn persistent(heap: &Heap, at: Ref) -> Result<(String, Kind, usize), String> {
    let Object::Persistent(id) = heap.get(at) else { return Err("it has no storage".into()) };
    let Some(&[what, class, key, _, count, ref rest @ ..]) = heap.items(*id) else {
        return Err("its storage is named in an unknown way".into());
    };
    if heap.text(what) != Some("storage") {
        return Err("its storage is something else".into());
    }
    if rest.iter().any(|view| *heap.get(*view) != Object::None) {
        return Err("its storage is part of another one (as before PyTorch 0.4)".into());
    }
    let Object::Global(module, class) = heap.get(class) else {
        return Err("the type of its storage is unknown".into());
    };
    let kind = Kind::of(class).ok_or_else(|| format!("numbers of `{module}.{class}` are not supported"))?;
    match (heap.text(key), heap.index(count)) {
        (Some(key), Some(count)) => Ok((key.into(), kind, count)),
        _ => Err("its storage has no key or no length".into()),
    }
}

/// The tensors of the object that was saved, by name, in its order.
fn state_dict(heap: &Heap, root: Ref) -> Result<Vec<(String, &Tensor)>, String> {
    let mut at = root;
    for _ in 0..=DEPTH {
        let Object::Dict(pairs) = heap.get(at) else {
            return Err(match heap.get(at) {
                Object::Opaque | Object::Global(..) => {
                    "holds a whole Python object; save its `state_dict()` instead".into()
                }
                _ => "expected a dictionary of tensors, found something else".into(),
            });
        };
        // Python keeps the last of equal keys, at the place of the first.
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut entries: Vec<(&str, Ref)> = Vec::new();
        for (key, value) in pairs {
            let Some(name) = heap.text(*key) else { continue };
            match places.get(name) {
                Some(place) => entries[*place].1 = *value,
                None => {
                    places.insert(name, entries.len());
                    entries.push((name, *value));
                }
            }
        }
        let tensors: Vec<(String, &Tensor)> = (entries.iter())
            .filter_map(|(name, value)| match heap.get(*value) {
                Object::Tensor(tensor) => Some(((*name).to_owned(), tensor)),
                _ => None,
            })
            .collect();
        let inner = WRAPPERS.iter().find_map(|wrapper| {
            let value = entries[*places.get(wrapper)?].1;
            (!matches!(heap.get(value), Object::Tensor(_) | Object::None)).then_some(value)
        });
        match inner {
            Some(inner) => at = inner,
            None if tensors.is_empty() => {
                let names: Vec<&str> = entries.iter().take(8).map(|(name, _)| *name).collect();
                return Err(format!("holds no tensors; keys: {}", names.join(", ")));
            }
            None => return Ok(tensors),
        }
    }
    Err("wraps its tensors too often".into())
}
