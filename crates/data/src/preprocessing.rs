//! The usual preprocessings, as plain values of [`cofilter_graph::Preprocessing`].

use crate::CIFAR10_CLASSES;
use cofilter_graph::{ChannelOrder, Preprocessing, Subtract};

/// Caffe's LeNet (paper, 7.1): 28x28 grey, `byte / 256`, no mean.
#[must_use]
pub fn lenet(classes: &[String]) -> Preprocessing {
    Preprocessing {
        scale: 1.0 / 256.0,
        mean: Subtract::Nothing,
        std: Vec::new(),
        channel_order: ChannelOrder::Grey,
        crop: [28, 28],
        resize: None,
        classes: classes.to_vec(),
    }
}

/// Caffe's CIFAR-10 networks (paper, 7.2 and 7.3): 32x32 in the file's order (RGB), bytes minus the mean image of the
/// training set (3x32x32, from [`crate::mean_image`]), not scaled.
#[must_use]
pub fn caffe_cifar(mean_image: Vec<f32>) -> Preprocessing {
    Preprocessing {
        scale: 1.0,
        mean: Subtract::Pixel(mean_image),
        std: Vec::new(),
        channel_order: ChannelOrder::Rgb,
        crop: [32, 32],
        resize: None,
        classes: cifar10_classes(),
    }
}

/// CIFAR-10 for networks trained with torchvision's customary transforms: 32x32 RGB, `byte / 255`, then the mean
/// (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225) of ImageNet.
#[must_use]
pub fn torchvision_cifar() -> Preprocessing {
    Preprocessing {
        scale: 1.0 / 255.0,
        mean: Subtract::Channel(vec![0.485, 0.456, 0.406]),
        std: vec![0.229, 0.224, 0.225],
        channel_order: ChannelOrder::Rgb,
        crop: [32, 32],
        resize: None,
        classes: cifar10_classes(),
    }
}

/// BVLC AlexNet (paper, 7.4): resized to 256x256, BGR, minus the mean image (3x256x256, planes in BGR order) at the
/// position of the 227x227 crop.
#[must_use]
pub fn caffe_alexnet(mean_image: Vec<f32>, classes: &[String]) -> Preprocessing {
    Preprocessing {
        scale: 1.0,
        mean: Subtract::Pixel(mean_image),
        std: Vec::new(),
        channel_order: ChannelOrder::Bgr,
        crop: [227, 227],
        resize: Some([256, 256]),
        classes: classes.to_vec(),
    }
}

/// BVLC GoogLeNet (paper, 7.5): resized to 256x256, BGR minus (104, 117, 123), crop 224x224.
#[must_use]
pub fn caffe_googlenet(classes: &[String]) -> Preprocessing {
    Preprocessing {
        scale: 1.0,
        mean: Subtract::Channel(vec![104.0, 117.0, 123.0]),
        std: Vec::new(),
        channel_order: ChannelOrder::Bgr,
        crop: [224, 224],
        resize: Some([256, 256]),
        classes: classes.to_vec(),
    }
}

/// Of torchvision's networks for ImageNet: RGB over 255, its mean and deviation, the middle 224x224 of 256x256. torchvision resizes
/// the shorter side to 256; here images become square.
#[must_use]
pub fn torchvision() -> Preprocessing {
    Preprocessing { crop: [224, 224], resize: Some([256, 256]), classes: Vec::new(), ..torchvision_cifar() }
}

fn cifar10_classes() -> Vec<String> {
    CIFAR10_CLASSES.map(str::to_owned).to_vec()
}
