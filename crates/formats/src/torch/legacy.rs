//! Files of PyTorch before 1.6: pickles of a magic number, a version, facts about the machine, the object, and the keys of the
//! storages; then for each key the number of its elements and those.

use super::pickle::{self, Heap, Object, Ref, Tensor};
use super::storage::{self, Kind, Storages};
use super::{Bytes, described};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

/// `0x1950a86a20f9469cfc6c`, little endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Most bytes of all pickles: those of the largest networks have some.
const MOST: u64 = 64 << 20;

pub(super) fn open(mut file: Box<dyn Bytes>, len: u64) -> Result<(Heap, Ref, Box<dyn Storages>), String> {
    let mut bytes = Vec::new();
    (&mut file).take(MOST.min(len)).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let mut at = 0;
    let mut next = |what: &str| {
        let (heap, root, used) =
            pickle::read(&bytes[at..]).map_err(|problem| format!("{what}, byte {at}: {problem}"))?;
        at += used;
        Ok::<_, String>((heap, root))
    };
    let (heap, root) = next("not a checkpoint of PyTorch, or damaged: magic number")?;
    match heap.get(root) {
        Object::Long(magic) if *magic == MAGIC => {}
        _ => return Err("not a checkpoint of PyTorch: its magic number is another one".into()),
    }
    let (heap, root) = next("version")?;
    if heap.index(root) != Some(1001) {
        return Err(format!("version: expected 1001, found {:?}", heap.get(root)));
    }
    let (heap, root) = next("machine")?;
    little_endian(&heap, root)?;
    let object = next("object")?;
    let (heap, root) = next("keys of the storages")?;
    let keys: Option<Vec<String>> =
        heap.items(root).and_then(|keys| keys.iter().map(|key| heap.text(*key).map(str::to_owned)).collect());
    let keys = keys.ok_or("the keys of the storages are no list of texts")?;
    let (heap, root) = object;
    let kinds = described(&heap)?;
    let storages = Legacy::new(file, len, at as u64, keys, &kinds)?;
    Ok((heap, root, Box::new(storages)))
}

fn little_endian(heap: &Heap, root: Ref) -> Result<(), String> {
    let Object::Dict(pairs) = heap.get(root) else { return Err("expected facts about the machine".into()) };
    let value = pairs.iter().find(|(key, _)| heap.text(*key) == Some("little_endian"));
    match value.map(|(_, value)| heap.get(*value)) {
        Some(Object::Bool(false)) => Err("was written on a big-endian machine".into()),
        _ => Ok(()),
    }
}

struct Legacy {
    file: Box<dyn Bytes>,
    /// First byte and elements of each storage.
    places: BTreeMap<String, (u64, u64)>,
}

impl Legacy {
    /// Storages follow each other from byte `at` on in the order of their keys, each after the number of its elements.
    fn new(
        mut file: Box<dyn Bytes>,
        len: u64,
        mut at: u64,
        keys: Vec<String>,
        kinds: &BTreeMap<String, (Kind, usize)>,
    ) -> Result<Self, String> {
        let mut places = BTreeMap::new();
        for key in keys {
            let Some((kind, expected)) = kinds.get(&key) else {
                return Err(format!("storage `{key}` is not described"));
            };
            let mut count = [0; 8];
            file.seek(SeekFrom::Start(at)).map_err(|error| error.to_string())?;
            file.read_exact(&mut count).map_err(|_| format!("ends before storage `{key}`"))?;
            let count = u64::from_le_bytes(count);
            if count != *expected as u64 {
                return Err(format!("storage `{key}`: expected {expected} elements, found {count}"));
            }
            let (first, bytes) = (at + 8, count.checked_mul(kind.bytes() as u64));
            let end = bytes.and_then(|bytes| first.checked_add(bytes)).filter(|end| *end <= len);
            at = end.ok_or_else(|| {
                format!("storage `{key}`: {count} elements from byte {first} on, in a file of {len} bytes")
            })?;
            places.insert(key, (first, count));
        }
        Ok(Self { file, places })
    }
}

impl Storages for Legacy {
    fn view(&mut self, key: &str, kind: Kind, count: usize, tensor: &Tensor) -> Result<Vec<f32>, String> {
        let Some((at, _)) = self.places.get(key) else { return Err(format!("storage `{key}` is missing")) };
        // Both were checked against the length of the file.
        let mut bytes = vec![0; count * kind.bytes()];
        self.file.seek(SeekFrom::Start(*at)).map_err(|error| error.to_string())?;
        self.file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        storage::numbers(&bytes, kind, tensor)
    }
}
