//! The real data sets, from the folder in COFILTER_DATA or beside the workspace.

use cofilter_data::{
    Augment, Colour, Dataset, Filter, Pipeline, channel_statistics, image_folder, mean_image, open,
    preprocessing,
};
use std::path::{Path, PathBuf};

/// A folder below the data folder, if `file` is in it.
fn folder(name: &str, file: &str) -> Option<PathBuf> {
    let data = std::env::var_os("COFILTER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    if !data.is_dir() {
        println!("skipped: no ../shared/data");
        return None;
    }
    let folder = data.join(name);
    if !folder.join(file).exists() {
        println!("skipped: no {file} in {name} of the data folder");
        return None;
    }
    Some(folder)
}

fn counts(dataset: &Dataset) -> Vec<usize> {
    let count = |class: usize| dataset.labels().iter().filter(|label| **label as usize == class).count();
    (0..dataset.classes().len()).map(count).collect()
}

#[test]
fn mnist() {
    let Some(folder) = folder("mnist", "train-images-idx3-ubyte.gz") else { return };
    let split = open(&folder).unwrap();
    assert_eq!((split.train.name(), split.test.name()), ("mnist", "mnist"));
    assert_eq!((split.train.len(), split.test.len()), (60_000, 10_000));
    assert_eq!(split.train.extents(), [1, 28, 28]);
    assert_eq!(split.train.labels()[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
    assert_eq!(split.test.labels()[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    assert_eq!(counts(&split.train), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
    let (mean, std) = channel_statistics(&split.train);
    assert!((mean[0] - 0.1307).abs() < 5e-5 && (std[0] - 0.3081).abs() < 5e-5, "{mean:?} {std:?}");
}

#[test]
fn fashion_mnist() {
    let Some(folder) = folder("fashion-mnist", "train-images-idx3-ubyte.gz") else { return };
    let split = open(&folder).unwrap();
    assert_eq!((split.train.name(), split.test.name()), ("fashion-mnist", "fashion-mnist"));
    assert_eq!(split.test.classes()[9], "Ankle boot");
    assert_eq!(split.train.labels()[..10], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]);
    assert_eq!((counts(&split.train), counts(&split.test)), (vec![6_000; 10], vec![1_000; 10]));
    let (mean, std) = channel_statistics(&split.train);
    assert!((mean[0] - 0.2860).abs() < 5e-5 && (std[0] - 0.3530).abs() < 5e-5, "{mean:?} {std:?}");
}

#[test]
fn cifar10() {
    let Some(folder) = folder("cifar10", "test_batch.bin") else { return };
    let split = open(&folder).unwrap();
    assert_eq!((split.train.name(), split.train.len(), split.test.len()), ("cifar10", 50_000, 10_000));
    assert_eq!(split.train.labels()[..10], [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]);
    assert_eq!(split.test.labels()[..10], [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]);
    assert_eq!((counts(&split.train), counts(&split.test)), (vec![5_000; 10], vec![1_000; 10]));
    let (mean, std) = channel_statistics(&split.train);
    for (found, expected) in
        mean.iter().zip([0.49140, 0.48216, 0.44653]).chain(std.iter().zip([0.24703, 0.24349, 0.26159]))
    {
        assert!((found - expected).abs() < 6e-6, "{found} {expected}");
    }
    let image = mean_image(&split.train);
    let caffe = caffe_mean(folder.join("../weights/caffe/cifar10_mean.binaryproto"));
    if let Some(caffe) = caffe {
        let largest = image.iter().zip(&caffe).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-4, "the mean image differs from Caffe's by {largest}");
    }
    Pipeline::new(&split.test, &preprocessing::caffe_cifar(image), &Augment { padding: 4, mirror: true }, 1)
        .unwrap();
}

/// The 3x32x32 floats in a BlobProto: its only packed field of that length.
fn caffe_mean(path: PathBuf) -> Option<Vec<f32>> {
    let Ok(bytes) = std::fs::read(path) else {
        println!("skipped: no cifar10_mean.binaryproto");
        return None;
    };
    // Field 5, length-delimited, 12,288 bytes.
    let start = bytes.windows(3).position(|window| window == [0x2a, 0x80, 0x60]).unwrap() + 3;
    let (words, _) = bytes[start..start + 12_288].as_chunks::<4>();
    Some(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

#[test]
fn photographs() {
    let Some(folder) = folder("photos", "scene/china.jpg") else { return };
    let dataset = image_folder(&folder, [224, 224], Colour::Rgb, Filter::Bilinear).unwrap();
    assert_eq!((dataset.len(), dataset.extents()), (13, [3, 224, 224]));
    assert_eq!(dataset.classes(), ["animal", "object", "person", "scene", "texture"]);
    assert_eq!(counts(&dataset), [2, 4, 2, 2, 3]);
}
