use serde::{Deserialize, Serialize};

/// Where an artifact comes from. Everything is optional; nothing of it changes a result but `preprocessing`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Name of the network, for example `lenet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What was done: a recipe or the settings of a pass, as plain data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<serde_json::Value>,
    /// Seed of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Commit of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// SHA-256 of the training data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<String>,
    /// SHA-256 of the artifact this one was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_sha256: Option<String>,
    /// How an image becomes the network's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocessing: Option<Preprocessing>,
}

/// How bytes of an image become the network's input: `x = (byte * scale - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Factor applied to a byte first (1/256 for LeNet, 1/255 for torchvision, 1 for Caffe's other networks).
    pub scale: f32,
    /// Subtracted after scaling.
    pub mean: Subtract,
    /// Divides the difference, by channel; empty means 1.
    pub std: Vec<f32>,
    /// Order of the colour planes.
    pub channel_order: ChannelOrder,
    /// `[height, width]` of the part of the image that is used, centred; the network's input extents.
    pub crop: [usize; 2],
    /// `[height, width]` the image is resized to first; `None` leaves it as it is.
    pub resize: Option<[usize; 2]>,
    /// Names of the classes, in the order of the outputs.
    pub classes: Vec<String>,
}

/// What is subtracted from a scaled image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subtract {
    /// Nothing.
    Nothing,
    /// One number by channel, in the order of the network's planes.
    Channel(Vec<f32>),
    /// A mean image `[channels, height, width]`, planes in the network's order: of the image's extents before cropping, taken
    /// at the crop's position, or of the crop's.
    Pixel(Vec<f32>),
}

/// Order of the colour planes of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelOrder {
    /// One plane.
    Grey,
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red (Caffe's ImageNet networks).
    Bgr,
}
