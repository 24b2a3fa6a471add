//! State dicts: tensors by name.

use crate::{Error, Result, safe, torch};
use cofilter_graph::{Array, Graph, Model, Op, Params, write_atomically};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Prefixes that training programs put before every name: wrappers of the network.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "model."];
/// What batch normalisation counts beside its statistics, which nothing here needs.
const COUNTER: &str = "num_batches_tracked";

/// Names that programs give to the same last layer: a checkpoint may have the one where a network has the other.
const ALIASES: [(&str, &str); 2] = [("fc", "linear"), ("linear", "fc")];

/// The tensors of a network by name, in the order of the file.
#[derive(Clone, Debug)]
pub struct StateDict {
    path: PathBuf,
    /// What all names had in front.
    wrapper: String,
    tensors: Vec<(String, Array)>,
}

impl StateDict {
    /// Reads a `.safetensors` file, or one that `torch.save` wrote (`.pth`, `.pt`, `.th`): a state dict, or a dictionary that holds
    /// one under a usual name. Which it is the file says itself, whatever its name. Prefixes that all names
    /// have (`module.` and the like) are removed, and all numbers become `f32`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] if the file is damaged, of another kind, or holds what is not supported.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let tensors = if safe::is(path)? { safe::read(path)? } else { torch::read(path)? };
        Ok(Self::cleaned(path, tensors))
    }

    /// Without what training programs add to names, and without their counters.
    fn cleaned(path: &Path, mut tensors: Vec<(String, Array)>) -> Self {
        // What all names have in front they have of the first one.
        let mut wrapped = 0;
        while let Some((first, _)) = tensors.first() {
            let begins =
                |name: &str, prefix: &str| name.get(wrapped..).is_some_and(|rest| rest.starts_with(prefix));
            let Some(prefix) = PREFIXES.iter().find(|prefix| begins(first, prefix)) else { break };
            if !tensors.iter().all(|(name, _)| begins(name, prefix)) {
                break;
            }
            wrapped += prefix.len();
        }
        let wrapper = tensors.first().map_or(String::new(), |(first, _)| first[..wrapped].to_owned());
        tensors.iter_mut().for_each(|(name, _)| drop(name.drain(..wrapped)));
        tensors.retain(|(name, _)| name.rsplit('.').next() != Some(COUNTER));
        Self { path: path.into(), wrapper, tensors }
    }

    /// The tensors of a model under the names of PyTorch's modules. The layers of a decomposed one, `conv1_lowrank` and
    /// `conv1_linear`, are called `conv1.0` and `conv1.1`, as in an `nn.Sequential` in the place of `conv1`.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let graph = model.graph();
        let modules = modules(graph);
        let tensors = model.params().iter().map(|(id, slot, array)| {
            (format!("{}.{}", modules[id.index()], graph.slots(id)[slot].name), array.clone())
        });
        Self { path: PathBuf::new(), wrapper: String::new(), tensors: tensors.collect() }
    }

    /// The bytes of a `.safetensors` file of the tensors.
    ///
    /// # Errors
    /// If two tensors have the same name.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        safe::to_bytes(&self.tensors)
    }

    /// As [`Self::read`], from the bytes of a file, whose name is for messages.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let tensors = if safe::begins(&bytes) {
            safe::from_bytes(&bytes, path)?
        } else {
            let len = bytes.len() as u64;
            torch::read_from(Box::new(Cursor::new(bytes)), len, path)?
        };
        Ok(Self::cleaned(path, tensors))
    }

    /// Writes the tensors as a `.safetensors` file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] as [`Self::to_bytes`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.to_bytes().map_err(|reason| Error::File { path: path.into(), reason })?;
        write_atomically(path, &bytes).map_err(|error| Error::graph(path, error))
    }

    /// The file it was read from; empty for one that was not.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Array> {
        self.tensors.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor)
    }

    /// Names and tensors.
    #[must_use]
    pub fn tensors(&self) -> &[(String, Array)] {
        &self.tensors
    }

    /// The model of a network whose tensors have these names, `node.slot`, or those that [`Self::of`] gives. A last layer `fc` fits
    /// one that is called `linear`, and the other way round.
    ///
    /// # Errors
    /// [`Error::Mismatch`] that lists every tensor that is missing, unknown or has other extents; [`Error::File`] for numbers that
    /// cannot be.
    pub fn into_model(self, network: &str, graph: Graph) -> Result<Model> {
        let Self { path, wrapper, tensors } = self;
        let mut known: BTreeMap<String, Array> = tensors.into_iter().collect();
        rename(&mut known, &graph);
        let modules = modules(&graph);
        let mut problems = Vec::new();
        let nodes = graph.iter().map(|(id, node)| {
            let slots = graph.slots(id).into_iter().map(|slot| {
                let name = format!("{}.{}", node.name(), slot.name);
                let module = format!("{}.{}", modules[id.index()], slot.name);
                // Layers may have in their names what looks like a wrapper.
                let names = [
                    Some(&*name),
                    Some(&*module),
                    name.strip_prefix(&*wrapper),
                    module.strip_prefix(&*wrapper),
                ];
                let found = names.into_iter().flatten().find_map(|name| known.remove(name));
                match found {
                    Some(tensor) if tensor.dims() == slot.dims => tensor,
                    found => {
                        problems.push(match found {
                            None => format!("`{name}` {:?} is missing", slot.dims),
                            Some(tensor) => {
                                format!("`{name}`: expected {:?}, found {:?}", slot.dims, tensor.dims())
                            }
                        });
                        Array::full(vec![0], 0.0)
                    }
                }
            });
            slots.collect::<Vec<_>>()
        });
        let params = Params::new(nodes.collect());
        problems
            .extend(known.iter().map(|(name, tensor)| format!("`{name}` {:?} is unknown", tensor.dims())));
        if !problems.is_empty() {
            return Err(Error::Mismatch { path, network: network.into(), problems });
        }
        let checked = Model::new(graph, params).and_then(|model| model.check_finite().map(|()| model));
        checked.map_err(|error| Error::File { path, reason: error.to_string() })
    }
}

/// Gives last layers the name that the network has for them.
fn rename(known: &mut BTreeMap<String, Array>, graph: &Graph) {
    for (theirs, ours) in ALIASES {
        let layer = graph.iter().find(|(_, node)| node.name() == ours && matches!(node.op(), Op::Linear(_)));
        if layer.is_none() || graph.find(theirs).is_ok() || known.contains_key(&format!("{ours}.weight")) {
            continue;
        }
        for slot in ["weight", "bias"] {
            if let Some(tensor) = known.remove(&format!("{theirs}.{slot}")) {
                known.entry(format!("{ours}.{slot}")).or_insert(tensor);
            }
        }
    }
}

/// The name of each node as a module of PyTorch's.
fn modules(graph: &Graph) -> Vec<String> {
    let mut modules: Vec<String> = graph.nodes().iter().map(|node| node.name().to_owned()).collect();
    for (layer, nodes) in graph.decomposed() {
        for (place, id) in nodes.into_iter().enumerate() {
            modules[id.index()] = format!("{layer}.{place}");
        }
    }
    modules
}
