//! Trained tensors of Caffe: `.caffemodel`, as protocol buffers of both generations or as HDF5, and mean images.

use crate::draft::Reason;
use hdf5_reader::{Hdf5File, OpenOptions};
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;

/// The first bytes of an HDF5 file.
const HDF5: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// Extents and numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blob {
    pub(super) dims: Vec<usize>,
    pub(super) data: Vec<f32>,
}

/// Tensors of each layer by its name.
pub(super) type Blobs = BTreeMap<String, Vec<Blob>>;

#[derive(Clone, PartialEq, Message)]
struct Net {
    #[prost(message, repeated, tag = "2")]
    old_layers: Vec<OldLayer>,
    #[prost(message, repeated, tag = "100")]
    layers: Vec<Layer>,
}

#[derive(Clone, PartialEq, Message)]
struct Layer {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "7")]
    blobs: Vec<BlobMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct OldLayer {
    #[prost(string, tag = "4")]
    name: String,
    #[prost(message, repeated, tag = "6")]
    blobs: Vec<BlobMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct BlobMessage {
    #[prost(int32, optional, tag = "1")]
    num: Option<i32>,
    #[prost(int32, optional, tag = "2")]
    channels: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    height: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    width: Option<i32>,
    #[prost(float, repeated, tag = "5")]
    data: Vec<f32>,
    #[prost(message, optional, tag = "7")]
    shape: Option<BlobShape>,
    #[prost(double, repeated, tag = "8")]
    doubles: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct BlobShape {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
}

impl BlobMessage {
    fn read(self) -> Result<Blob, Reason> {
        let legacy = [self.num, self.channels, self.height, self.width];
        let dims: Vec<i64> = match &self.shape {
            Some(shape) => shape.dims.clone(),
            None if legacy.iter().any(Option::is_some) => {
                legacy.map(|dim| i64::from(dim.unwrap_or(0))).into()
            }
            None => Vec::new(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "networks compute in f32")]
        let data = if self.doubles.is_empty() {
            self.data
        } else {
            self.doubles.iter().map(|double| *double as f32).collect()
        };
        Blob::new(&dims, data)
    }
}

impl Blob {
    fn new(dims: &[i64], data: Vec<f32>) -> Result<Self, Reason> {
        let extents: Option<Vec<usize>> = dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let len = |dims: &Vec<usize>| dims.iter().try_fold(1_usize, |len, dim| len.checked_mul(*dim));
        match extents {
            Some(extents) if len(&extents) == Some(data.len()) => Ok(Self { dims: extents, data }),
            _ => Err(format!("extents {dims:?} and {} numbers", data.len())),
        }
    }
}

/// Reads the tensors of all layers.
pub(super) fn read(bytes: Vec<u8>) -> Result<Blobs, Reason> {
    if bytes.starts_with(&HDF5) {
        return hdf5(bytes);
    }
    let net = Net::decode(Bytes::from(bytes)).map_err(|error| format!("not a caffemodel: {error}"))?;
    let old = net.old_layers.into_iter().map(|layer| (layer.name, layer.blobs));
    let layers: Vec<_> = net.layers.into_iter().map(|layer| (layer.name, layer.blobs)).chain(old).collect();
    if layers.is_empty() {
        return Err("not a caffemodel: it holds no layers (files before 2014 are not read)".into());
    }
    let mut all = Blobs::new();
    for (name, blobs) in layers.into_iter().filter(|(_, blobs)| !blobs.is_empty()) {
        let blobs: Result<Vec<Blob>, Reason> = blobs.into_iter().map(BlobMessage::read).collect();
        let blobs = blobs.map_err(|reason| format!("layer `{name}`: {reason}"))?;
        if all.insert(name.clone(), blobs).is_some() {
            return Err(format!("layer `{name}` is there twice"));
        }
    }
    Ok(all)
}

/// Groups `/data/LAYER` of data sets `0`, `1`, and so on.
fn hdf5(bytes: Vec<u8>) -> Result<Blobs, Reason> {
    fn fail(error: impl std::fmt::Display) -> Reason {
        format!("HDF5: {error}")
    }
    // Caffe compresses nothing, so no data set is larger than the file.
    let len = bytes.len();
    let options = OpenOptions::default().with_max_read_bytes(bytes.len()).with_max_chunk_bytes(bytes.len());
    let file = Hdf5File::from_vec_with_options(bytes, options).map_err(fail)?;
    let data = file.root_group().map_err(fail)?.group("data").map_err(fail)?;
    let mut all = Blobs::new();
    // Several names may be links to one data set.
    let mut left = len;
    for layer in data.groups().map_err(fail)? {
        let mut numbered = BTreeMap::new();
        for set in layer.datasets().map_err(fail)? {
            let blob = || -> Result<Blob, Reason> {
                let dims: Vec<i64> =
                    set.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(-1)).collect();
                let array = set.read_array::<f32>().map_err(fail)?;
                Blob::new(&dims, array.iter().copied().collect())
            };
            let at = || -> Result<usize, Reason> {
                set.name().parse().map_err(|_| "its name is no number".into())
            };
            let read = at().and_then(|at| Ok((at, blob()?)));
            let (at, blob) =
                read.map_err(|reason| format!("data set `{}/{}`: {reason}", layer.name(), set.name()))?;
            left = left.checked_sub(4 * blob.data.len()).ok_or(
                "HDF5: the data sets hold more than the file, links to the same one are not supported",
            )?;
            numbered.insert(at, blob);
        }
        if !numbered.is_empty() {
            all.insert(layer.name().to_owned(), numbered.into_values().collect());
        }
    }
    if all.is_empty() { Err("HDF5: no layers under `/data`".into()) } else { Ok(all) }
}

/// Reads a mean image `[channels, height, width]`.
pub(super) fn mean(bytes: Vec<u8>) -> Result<Blob, Reason> {
    let message =
        BlobMessage::decode(Bytes::from(bytes)).map_err(|error| format!("not a mean image: {error}"))?;
    let mut blob = message.read()?;
    if blob.dims.len() == 4 && blob.dims[0] == 1 {
        blob.dims.remove(0);
    }
    match blob.dims[..] {
        [_, _, _] => Ok(blob),
        _ => Err(format!("a mean image of extents {:?}", blob.dims)),
    }
}
