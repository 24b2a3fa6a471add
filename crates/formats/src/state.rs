//! State dicts: tensors by name.

use crate::{Error, Result, torch};
use cofilter_graph::{Array, Graph, Model, Params};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Prefixes that training programs put before every name: wrappers of the network.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "model."];
/// What batch normalisation counts beside its statistics, which nothing here needs.
const COUNTER: &str = "num_batches_tracked";

/// The tensors of a network by name, in the order of the file.
#[derive(Clone, Debug)]
pub struct StateDict {
    path: PathBuf,
    tensors: Vec<(String, Array)>,
}

impl StateDict {
    /// Reads a file that `torch.save` wrote (`.pth`, `.pt`, `.th`): a state dict, or a dictionary that holds one under a usual
    /// name. Prefixes that all names have (`module.` and the like) are removed, and all numbers become `f32`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] if the file is damaged, of another kind, or holds what is not supported.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut tensors = torch::read(path)?;
        while let Some(prefix) =
            PREFIXES.iter().find(|prefix| tensors.iter().all(|(name, _)| name.starts_with(**prefix)))
        {
            tensors.iter_mut().for_each(|(name, _)| *name = name[prefix.len()..].to_owned());
        }
        tensors.retain(|(name, _)| name.rsplit('.').next() != Some(COUNTER));
        Ok(Self { path: path.into(), tensors })
    }

    /// Names and tensors.
    pub fn tensors(&self) -> &[(String, Array)] {
        &self.tensors
    }

    /// The model of a network whose tensors have these names: `node.slot`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] that lists every tensor that is missing, unknown or has other extents; [`Error::File`] for numbers that
    /// cannot be.
    pub fn into_model(self, network: &str, graph: Graph) -> Result<Model> {
        let Self { path, tensors } = self;
        let mut known: BTreeMap<String, Array> = tensors.into_iter().collect();
        let mut problems = Vec::new();
        let nodes = graph.iter().map(|(id, node)| {
            let slots = graph.slots(id).into_iter().map(|slot| {
                let name = format!("{}.{}", node.name(), slot.name);
                match known.remove(&name) {
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
