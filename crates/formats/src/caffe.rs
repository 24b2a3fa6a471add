//! Networks that Caffe trained: a description (`.prototxt`) and its tensors (`.caffemodel`, also as HDF5).

mod layers;
mod net;
mod text;
mod weights;

use crate::{Error, Result};
use cofilter_graph::{Artifact, Shape};
use net::Importer;
use std::path::Path;
use text::Message;

/// Reads the network that a `.prototxt` describes, with the tensors of a `.caffemodel`, of either generation or HDF5.
///
/// Layers of the phase `TRAIN`, and losses and accuracies, are left out; `BatchNorm` followed by `Scale` is one batch normalisation.
/// `input` gives the extents of an image where the description leaves them to a data layer, whose `transform_param` is not read: how
/// images become the input is for the caller to say.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] if a file is damaged; [`Error::Unsupported`] with everything that cannot be imported, tensors that do
/// not fit included.
pub fn import(description: &Path, tensors: &Path, input: Option<Shape>) -> Result<Artifact> {
    let io = |path: &Path, source| Error::Io { path: path.into(), source };
    let text = std::fs::read(description).map_err(|source| io(description, source))?;
    let bytes = std::fs::read(tensors).map_err(|source| io(tensors, source))?;
    from_bytes(&text, description, bytes, tensors, input)
}

/// As [`import`], from the bytes of both files, whose names are only for messages.
///
/// # Errors
/// As [`import`].
pub fn from_bytes(
    text: &[u8],
    description: &Path,
    bytes: Vec<u8>,
    tensors: &Path,
    input: Option<Shape>,
) -> Result<Artifact> {
    let fail = |path: &Path, reason: String| Error::File { path: path.into(), reason };
    let text =
        std::str::from_utf8(text).map_err(|error| fail(description, format!("not a prototxt: {error}")))?;
    let net = Message::parse(text).map_err(|reason| fail(description, reason))?;
    let blobs = weights::read(bytes).map_err(|reason| fail(tensors, reason))?;
    let mut importer = Importer { blobs, ..Importer::default() };
    let outputs = importer.run(&net, input);
    let Importer { draft, problems, .. } = importer;
    if !problems.is_empty() {
        return Err(Error::Unsupported { path: description.into(), problems });
    }
    let mut artifact =
        Artifact::new(draft.finish(&outputs).map_err(|error| Error::graph(description, error))?);
    artifact.provenance.network = net.text("name").map(str::to_owned);
    Ok(artifact)
}

/// Reads a mean image (`.binaryproto`): channels, rows, columns, and its numbers in this order.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] if the file is damaged or holds something else.
pub fn mean(path: &Path) -> Result<([usize; 3], Vec<f32>)> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let fail = |reason: String| Error::File { path: path.into(), reason };
    let blob = weights::mean(bytes).map_err(fail)?;
    match blob.dims[..] {
        [channels, height, width] => Ok(([channels, height, width], blob.data)),
        _ => Err(fail(format!("a mean image of extents {:?}", blob.dims))),
    }
}
