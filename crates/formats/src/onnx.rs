//! Networks in the Open Neural Network Exchange format.
//!
//! [`import`] reads opsets 7 to 22 as far as they describe convolutional networks of inference, [`export`] writes opset 17.

mod attributes;
mod export;
mod fold;
mod import;
mod proto;
mod tensor;
#[cfg(test)]
mod tests;

use crate::{Error, Result};
use cofilter_graph::{Artifact, Pool2d, Shape};
use import::Importer;
use prost::Message as _;
use prost::bytes::Bytes;
use std::path::Path;

pub use export::{export, to_bytes};

/// Opsets that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=22;
/// Key of the provenance in the metadata of a file.
const PROVENANCE: &str = "cofilter.provenance";

/// Reads a network from an ONNX file. Weights of 16 and 64 bits become `f32`. The number of images is open whatever the file says.
///
/// `input` gives the extents of an image where the file leaves them open. Averages over windows that stick out of the padded map
/// (`ceil_mode`) count what lies in the padded map, as PyTorch does.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] if the file is damaged or of another opset; [`Error::Unsupported`] with everything that cannot be
/// imported.
pub fn import(path: &Path, input: Option<Shape>) -> Result<Artifact> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    read(bytes, path, path.parent(), input)
}

/// As [`import`], from the bytes of a file, whose name is only for messages.
///
/// # Errors
/// As [`import`]; tensors that lie in other files are errors too.
pub fn from_bytes(bytes: Vec<u8>, path: &Path, input: Option<Shape>) -> Result<Artifact> {
    read(bytes, path, None, input)
}

fn read(bytes: Vec<u8>, path: &Path, folder: Option<&Path>, input: Option<Shape>) -> Result<Artifact> {
    let fail = |reason: String| Error::File { path: path.into(), reason };
    let len = bytes.len();
    let model = proto::Model::decode(Bytes::from(bytes))
        .map_err(|error| fail(format!("not an ONNX file: {error}")))?;
    let graph = model.graph.as_ref().ok_or_else(|| fail("not an ONNX file: it holds no graph".into()))?;
    let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let opset = model.opsets.iter().find(|opset| standard(&opset.domain)).map(|opset| opset.version);
    let opset = opset.ok_or_else(|| fail("not an ONNX file: it names no opset".into()))?;
    if !OPSETS.contains(&opset) {
        return Err(fail(format!(
            "opset {opset}, this program reads {} to {}",
            OPSETS.start(),
            OPSETS.end()
        )));
    }
    let importer = Importer::new(graph, opset, len);
    let imported =
        importer.run(folder, input).map_err(|problems| Error::Unsupported { path: path.into(), problems })?;
    let model_of = |imported: import::Imported| imported.draft.finish(&imported.outputs);
    let mut artifact = Artifact::new(model_of(imported).map_err(|error| fail(error.to_string()))?);
    if let Some(entry) = model.metadata.iter().find(|entry| entry.key == PROVENANCE) {
        artifact.provenance = serde_json::from_str(&entry.value)
            .map_err(|error| fail(format!("metadata `{PROVENANCE}`: {error}")))?;
    }
    Ok(artifact)
}

/// For an average that counts padding, and each window: all its elements over those in the padded map, by row and column.
fn clipped(pool: &Pool2d, x: Shape) -> Vec<f32> {
    let [rows, columns] = [0, 1].map(|at| {
        let (kernel, stride, padding) = (pool.kernel[at], pool.stride[at], pool.padding[at]);
        let padded = x.spatial()[at] + 2 * padding;
        let count =
            cofilter_graph::Op::Pool2d(pool.clone()).infer("", &[x]).map_or(0, |shape| shape.spatial()[at]);
        (0..count).map(move |window| kernel.min(padded.saturating_sub(window * stride))).collect::<Vec<_>>()
    });
    let [height, width] = pool.kernel;
    let factor = |row: &usize, column: &usize| (height * width) as f64 / (row * column) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
    rows.iter().flat_map(|row| columns.iter().map(move |column| factor(row, column) as f32)).collect()
}
