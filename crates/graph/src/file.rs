use crate::{Array, Error, Graph, Model, NodeId, Op, Params, Provenance, Result};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

/// Number of the file format; another one is refused.
pub const FORMAT_VERSION: &str = "1";

/// A model with its origin, as one `.safetensors` file.
///
/// Tensors lie under `node.slot`; `__metadata__` holds `cofilter.format`, `cofilter.graph` (JSON of the nodes) and
/// `cofilter.provenance`. Equal content gives equal bytes. Unknown metadata is ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// Graph and numbers.
    pub model: Model,
    /// Where it comes from.
    pub provenance: Provenance,
}

#[derive(Serialize, Deserialize)]
struct GraphJson {
    nodes: Vec<NodeJson>,
    outputs: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct NodeJson {
    name: String,
    #[serde(flatten)]
    op: Op,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
}

/// An entry of the header of a safetensors file. Typed, because the order of keys in a `serde_json::Value` depends on
/// the features that other crates of a build ask of `serde_json`.
#[derive(Serialize)]
#[serde(untagged)]
enum HeaderEntry<'a> {
    Metadata(BTreeMap<&'static str, String>),
    Tensor { data_offsets: [usize; 2], dtype: &'static str, shape: &'a [usize] },
}

impl Artifact {
    /// An artifact without provenance.
    #[must_use]
    pub fn new(model: Model) -> Self {
        Self { model, provenance: Provenance::default() }
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let graph = self.model.graph();
        let mut tensors: Vec<(String, &Array)> =
            self.model.params().iter().map(|(id, slot, a)| (graph.tensor_name(id, slot), a)).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let metadata = [
            ("cofilter.format", FORMAT_VERSION.to_owned()),
            ("cofilter.graph", to_json(&GraphJson::of(graph))),
            ("cofilter.provenance", to_json(&self.provenance)),
            ("format", "pt".to_owned()),
        ];
        let mut header = BTreeMap::new();
        header.insert("__metadata__".to_owned(), HeaderEntry::Metadata(metadata.into()));
        let mut offset = 0;
        for (name, array) in &tensors {
            let end = offset + 4 * array.data().len();
            let entry =
                HeaderEntry::Tensor { data_offsets: [offset, end], dtype: "F32", shape: array.dims() };
            header.insert(name.clone(), entry);
            offset = end;
        }
        let mut header = to_json(&header).into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = Vec::with_capacity(8 + header.len() + offset);
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        for (_, array) in tensors {
            bytes.extend(array.data().iter().flat_map(|v| v.to_le_bytes()));
        }
        bytes
    }

    /// SHA-256 of the bytes, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        Sha256::digest(self.to_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Writes the file: first beside it, then renamed, so that it is there whole or not at all.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a model with NaN or infinity, [`Error::Io`] from the system.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.model.check_finite()?;
        write_atomically(path, &self.to_bytes())
    }

    /// Reads a file and checks everything in it.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::File`] naming the first lie found.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::from_bytes(&bytes).map_err(|e| Error::File { path: path.into(), reason: e.to_string() })
    }

    /// Reads the bytes of a file and checks everything in them.
    ///
    /// # Errors
    /// [`Error::Graph`] and others that name node or tensor.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = |reason: String| Error::Graph(reason);
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|e| bad(format!("not a safetensors file: {e}")))?;
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|e| bad(format!("not a safetensors file: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |key: &str| {
            metadata.get(key).ok_or_else(|| bad(format!("no metadata `{key}`: not written by cofilter")))
        };
        let version = entry("cofilter.format")?;
        if version != FORMAT_VERSION {
            return Err(bad(format!("format {version}, this program reads {FORMAT_VERSION}")));
        }
        let json: GraphJson = serde_json::from_str(entry("cofilter.graph")?)
            .map_err(|e| bad(format!("metadata `cofilter.graph`: {e}")))?;
        let provenance = serde_json::from_str(entry("cofilter.provenance")?)
            .map_err(|e| bad(format!("metadata `cofilter.provenance`: {e}")))?;
        let graph = json.build()?;
        let mut unread: BTreeSet<String> = tensors.names().into_iter().map(str::to_owned).collect();
        let mut params = Vec::with_capacity(graph.nodes().len());
        for (id, _) in graph.iter() {
            let slots = 0..graph.slots(id).len();
            let read = slots.map(|slot| {
                let name = graph.tensor_name(id, slot);
                unread.remove(&name);
                read_tensor(&tensors, name)
            });
            params.push(read.collect::<Result<_>>()?);
        }
        if let Some(name) = unread.first() {
            return Err(bad(format!("tensor `{name}` belongs to no node of the graph")));
        }
        let model = Model::new(graph, Params::new(params))?;
        model.check_finite()?;
        Ok(Self { model, provenance })
    }
}

fn read_tensor(tensors: &SafeTensors<'_>, name: String) -> Result<Array> {
    let view = tensors.tensor(&name).map_err(|_| Error::Graph(format!("tensor `{name}` is missing")))?;
    if view.dtype() != Dtype::F32 {
        return Err(Error::Graph(format!("tensor `{name}`: expected F32, found {:?}", view.dtype())));
    }
    let (words, _) = view.data().as_chunks::<4>();
    let data: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
    Ok(Array::new(view.shape().to_vec(), data))
}

/// Serialises a value that is made of strings, numbers and lists only.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| unreachable!("plain data always has a JSON form: {e}"))
}

/// As the artifact's metadata has it.
impl Serialize for Graph {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        GraphJson::of(self).serialize(serializer)
    }
}

/// Checked as if it was built node by node.
impl<'de> Deserialize<'de> for Graph {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        GraphJson::deserialize(deserializer)?.build().map_err(serde::de::Error::custom)
    }
}

impl GraphJson {
    fn of(graph: &Graph) -> Self {
        let name = |id: &NodeId| graph.node(*id).name().to_owned();
        let node = |n: &crate::Node| NodeJson {
            name: n.name().to_owned(),
            op: n.op().clone(),
            inputs: n.inputs().iter().map(name).collect(),
        };
        Self {
            nodes: graph.nodes().iter().map(node).collect(),
            outputs: graph.outputs().iter().map(name).collect(),
        }
    }

    fn build(self) -> Result<Graph> {
        let mut builder = Graph::builder();
        let mut ids: BTreeMap<String, NodeId> = BTreeMap::new();
        let find = |ids: &BTreeMap<String, NodeId>, reader: &str, name: &String| {
            let reason = || format!("reads `{name}`, which is no earlier node");
            ids.get(name).copied().ok_or_else(|| Error::node(reader, reason()))
        };
        for node in self.nodes {
            let inputs: Vec<NodeId> =
                node.inputs.iter().map(|i| find(&ids, &node.name, i)).collect::<Result<_>>()?;
            let id = builder.add(&node.name, node.op, &inputs)?;
            ids.insert(node.name, id);
        }
        let outputs: Vec<NodeId> =
            self.outputs.iter().map(|o| find(&ids, "(outputs)", o)).collect::<Result<_>>()?;
        builder.finish(&outputs)
    }
}

/// Prefix of the temporary files of [`write_atomically`]; a process that is killed while writing leaves one behind.
pub const TEMPORARY_PREFIX: &str = ".cofilter-";

/// Writes a file so that it is there whole or not at all: to a temporary file in the same folder, flushed to the disk,
/// then renamed.
///
/// # Errors
/// [`Error::Io`] from the system; the old file, if any, is then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.into(), source };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    // As any new file, by the process's mask; a temporary file is else for its owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    // The new name is on the disk only when its folder is.
    #[cfg(unix)]
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(io)?;
    Ok(())
}
