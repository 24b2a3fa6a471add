//! Files of PyTorch from 1.6 on: an archive `NAME/data.pkl`, `NAME/data/KEY` for each storage, nothing compressed.

use super::Bytes;
use super::pickle::{self, Heap, Ref, Tensor};
use super::storage::{self, Kind, Storages};
use std::io::{BufReader, Read};
use zip::{CompressionMethod, ZipArchive};

/// Most bytes of the pickle: those of the largest networks have some.
const MOST: u64 = 64 << 20;

pub(super) fn open(file: Box<dyn Bytes>) -> Result<(Heap, Ref, Box<dyn Storages>), String> {
    let archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| format!("not an archive: {error}"))?;
    let names = archive.file_names().filter_map(Result::ok);
    let pickles: Vec<String> =
        names.filter_map(|name| name.strip_suffix("data.pkl").map(str::to_owned)).collect();
    let folder = match &pickles[..] {
        [folder] if folder.is_empty() || folder.ends_with('/') => folder.clone(),
        _ => return Err("an archive, but not one of PyTorch: it has no `data.pkl`".into()),
    };
    let mut zipped = Zipped { archive, folder };
    if zipped.archive.index_for_name(&format!("{}constants.pkl", zipped.folder)).is_some() {
        return Err("holds a TorchScript program; save the `state_dict()` of the network instead".into());
    }
    if let Some(order) = zipped.entry("byteorder", Some(16))?.filter(|order| order != b"little") {
        return Err(format!("byteorder: expected little, found {}", String::from_utf8_lossy(&order)));
    }
    let bytes = zipped.entry("data.pkl", Some(MOST))?.ok_or("data.pkl is missing")?;
    let (heap, root, _) = pickle::read(&bytes).map_err(|problem| format!("data.pkl: {problem}"))?;
    Ok((heap, root, Box::new(zipped)))
}

struct Zipped {
    archive: ZipArchive<BufReader<Box<dyn Bytes>>>,
    folder: String,
}

impl Zipped {
    /// The bytes of an entry, of at most so many.
    fn entry(&mut self, name: &str, most: Option<u64>) -> Result<Option<Vec<u8>>, String> {
        let path = format!("{}{name}", self.folder);
        let Some(index) = self.archive.index_for_name(&path) else { return Ok(None) };
        let mut entry = self.archive.by_index(index).map_err(|error| format!("{path}: {error}"))?;
        // So no entry is larger than the file.
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
            return Err(format!("{path}: is compressed, which PyTorch never does"));
        }
        if most.is_some_and(|most| entry.size() > most) {
            return Err(format!("{path}: {} bytes", entry.size()));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"))?;
        Ok(Some(bytes))
    }
}

impl Storages for Zipped {
    fn view(&mut self, key: &str, kind: Kind, count: usize, tensor: &Tensor) -> Result<Vec<f32>, String> {
        let Some(bytes) = self.entry(&format!("data/{key}"), None)? else {
            return Err(format!("storage `{key}` is not in the archive"));
        };
        if count.checked_mul(kind.bytes()) != Some(bytes.len()) {
            return Err(format!("storage `{key}`: expected {count} elements, found {} bytes", bytes.len()));
        }
        storage::numbers(&bytes, kind, tensor)
    }
}
