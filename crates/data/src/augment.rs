use serde::{Deserialize, Serialize};

/// Random changes of training images; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Zero bytes added on all four sides before the crop is drawn and before the mean is subtracted (paper, 7.3: 4
    /// for ResNet on CIFAR-10).
    pub padding: usize,
    /// Whether every second image, at random, is mirrored left to right.
    pub mirror: bool,
}
