use crate::{Error, Fit, Result};
use cofilter_graph::{Array, Artifact, Graph, Model, Params, write_atomically};
use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const FORMAT: &str = "1";

/// What makes a run: two runs of the same identity do the same. SHA-256 of each part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    graph: String,
    recipe: String,
    data: String,
    preprocessing: String,
    masks: String,
    test: String,
    start: String,
    #[serde(default)]
    teacher: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    iteration: u64,
    records: usize,
    #[serde(flatten)]
    state: State,
    identity: Identity,
    /// Whether it holds masks.
    #[serde(default)]
    masked: bool,
    /// Where clipping has changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    graph: Option<Graph>,
}

/// What a run has gone through, beside its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Times that it was rolled back.
    #[serde(default)]
    pub(crate) rollbacks: u32,
    /// Whether its network was ever better than guessing, where there is rolling back.
    #[serde(default)]
    pub(crate) learnt: bool,
}

/// A run that can go on: numbers and momenta after an iteration. Sampler, augmentation and dropout are functions of seed
/// and iteration, so there is no other state.
pub(crate) struct Checkpoint {
    pub(crate) model: Model,
    pub(crate) momentum: Params<Vec<f32>>,
    pub(crate) iteration: u64,
    pub(crate) records: usize,
    pub(crate) state: State,
    /// What was pruned so far, where there is pruning.
    pub(crate) masks: Option<Params<Array>>,
}

/// Where the checkpoint of a folder is.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join("checkpoint.safetensors")
}

impl Identity {
    pub(crate) fn of(model: &Model, fit: &Fit<'_>) -> Self {
        let masks = fit.masks.map(|masks| {
            let mut hash = Sha256::new();
            masks
                .iter()
                .for_each(|(_, _, mask)| mask.data().iter().for_each(|v| hash.update(v.to_le_bytes())));
            hex(hash)
        });
        Self {
            graph: json_hash(&describe(model.graph())),
            recipe: json_hash(fit.recipe),
            data: fit.train.sha256().to_owned(),
            preprocessing: json_hash(fit.preprocessing),
            masks: masks.unwrap_or_default(),
            test: fit.test.map(|t| t.sha256().to_owned()).unwrap_or_default(),
            start: Artifact::new(model.clone()).sha256(),
            teacher: fit
                .teacher
                .filter(|_| fit.recipe.distillation.is_some())
                .map(|teacher| Artifact::new(teacher.clone()).sha256())
                .unwrap_or_default(),
        }
    }

    /// The first part in which the two differ.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = [
            ("another network", &self.graph, &other.graph),
            ("another recipe", &self.recipe, &other.recipe),
            ("other training data", &self.data, &other.data),
            ("another preprocessing", &self.preprocessing, &other.preprocessing),
            ("other masks", &self.masks, &other.masks),
            ("other test data", &self.test, &other.test),
            ("another starting model", &self.start, &other.start),
            ("another teacher", &self.teacher, &other.teacher),
        ];
        parts.into_iter().find(|(_, a, b)| a != b).map(|(what, ..)| what)
    }
}

/// Nodes as (name, op, inputs), and the outputs.
fn describe(graph: &Graph) -> serde_json::Value {
    let name = |id: &cofilter_graph::NodeId| graph.node(*id).name();
    let nodes = graph.nodes().iter().map(|node| {
        let inputs: Vec<&str> = node.inputs().iter().map(name).collect();
        serde_json::json!([node.name(), node.op(), inputs])
    });
    let outputs: Vec<&str> = graph.outputs().iter().map(name).collect();
    serde_json::json!({"nodes": nodes.collect::<Vec<_>>(), "outputs": outputs})
}

fn json_hash(value: &impl Serialize) -> String {
    let json =
        serde_json::to_vec(value).unwrap_or_else(|e| unreachable!("plain data always has a JSON form: {e}"));
    hex(Sha256::new().chain_update(json))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes the state of a run that began with `start`, whole or not at all.
pub(crate) fn write(
    folder: &Path,
    start: &Model,
    checkpoint: &Checkpoint,
    identity: &Identity,
) -> Result<PathBuf> {
    let path = path(folder);
    let bad = |reason: String| Error::Checkpoint { path: path.clone(), reason };
    let model = &checkpoint.model;
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut put = |prefix: &str, name: &str, dims: &[usize], numbers: &[f32]| {
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.insert(format!("{prefix}/{name}"), (dims.to_vec(), bytes));
    };
    for (id, slot, array, momentum) in model.params().zip(&checkpoint.momentum) {
        let name = model.graph().tensor_name(id, slot);
        put("momentum", &name, array.dims(), momentum);
        put("value", &name, array.dims(), array.data());
        if let Some(masks) = &checkpoint.masks {
            put("mask", &name, array.dims(), masks.get(id)[slot].data());
        }
    }
    let header = Header {
        format: FORMAT.into(),
        iteration: checkpoint.iteration,
        records: checkpoint.records,
        state: checkpoint.state,
        identity: identity.clone(),
        masked: checkpoint.masks.is_some(),
        graph: (model.graph() != start.graph()).then(|| model.graph().clone()),
    };
    let json = serde_json::to_string(&header).map_err(|e| bad(e.to_string()))?;
    let views: Vec<(&String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (dims, bytes))| Ok((name, TensorView::new(Dtype::F32, dims.clone(), bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| bad(e.to_string()))?;
    // One entry: a map of several would be written in arbitrary order.
    let metadata = HashMap::from([("cofilter.checkpoint".to_owned(), json)]);
    let bytes = serialize(views, Some(metadata)).map_err(|e| bad(e.to_string()))?;
    write_atomically(&path, &bytes)?;
    Ok(path)
}

/// The checkpoint of a folder, if there is one.
///
/// # Errors
/// [`Error::Checkpoint`] for one of another run or a damaged one.
pub(crate) fn read(folder: &Path, start: &Model, identity: &Identity) -> Result<Option<Checkpoint>> {
    let path = path(folder);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path, source }),
    };
    decode(&bytes, start, identity).map(Some).map_err(|reason| Error::Checkpoint { path, reason })
}

fn decode(bytes: &[u8], start: &Model, identity: &Identity) -> Result<Checkpoint, String> {
    let broken = |e: &dyn std::fmt::Display| format!("not a checkpoint: {e}");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
    let entry = metadata.metadata().as_ref().and_then(|m| m.get("cofilter.checkpoint"));
    let header: Header =
        serde_json::from_str(entry.ok_or("not a checkpoint: no metadata `cofilter.checkpoint`")?)
            .map_err(|e| broken(&e))?;
    if header.format != FORMAT {
        return Err(format!("checkpoint format {}, this program reads {FORMAT}", header.format));
    }
    if let Some(what) = header.identity.difference(identity) {
        return Err(format!(
            "a checkpoint of {what} (at iteration {}); remove it to start anew",
            header.iteration
        ));
    }
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| broken(&e))?;
    let graph = header.graph.as_ref().unwrap_or(start.graph());
    let tensor = |prefix: &str, id, slot, dims: &[usize]| -> Result<Vec<f32>, String> {
        let name = format!("{prefix}/{}", graph.tensor_name(id, slot));
        let view = tensors.tensor(&name).map_err(|_| format!("tensor `{name}` is missing"))?;
        if view.dtype() != Dtype::F32 || view.shape() != dims {
            return Err(format!(
                "tensor `{name}`: expected F32 {dims:?}, found {:?} {:?}",
                view.dtype(),
                view.shape()
            ));
        }
        let (words, _) = view.data().as_chunks::<4>();
        let numbers: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
        match numbers.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(format!("tensor `{name}` holds {v}")),
            None => Ok(numbers),
        }
    };
    let all = |prefix: &str| {
        let of_node = |(id, _)| {
            let slots = graph.slots(id);
            slots.iter().enumerate().map(|(slot, spec)| tensor(prefix, id, slot, &spec.dims)).collect()
        };
        graph.iter().map(of_node).collect::<Result<Vec<Vec<Vec<f32>>>, String>>().map(Params::new)
    };
    let arrays = |numbers: Params<Vec<f32>>| {
        numbers.map(|id, slot, numbers| Array::new(graph.slots(id)[slot].dims.clone(), numbers.clone()))
    };
    Ok(Checkpoint {
        model: Model::new(graph.clone(), arrays(all("value")?)).map_err(|e| e.to_string())?,
        momentum: all("momentum")?,
        iteration: header.iteration,
        records: header.records,
        state: header.state,
        masks: if header.masked { Some(arrays(all("mask")?)) } else { None },
    })
}
