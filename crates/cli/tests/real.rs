//! Real trained networks of `../shared/data`, whose accuracies were measured in PyTorch (its README has them).

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("COFILTER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    let found = data.join("weights").is_dir();
    if !found {
        println!("skipped: no ../shared/data");
    }
    found.then_some(data)
}

/// Top-1 of a network in percent, as the command tells it.
fn top1(weights: &Path, args: &[&str], data: &Path) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cofilter"));
    command.args(["evaluate", "--format", "json", "--data"]).arg(data).args(args).current_dir(weights);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let accuracy: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(accuracy["images"], 10_000);
    accuracy["top1"].as_f64().unwrap()
}

/// Two digits after the point, as the figures are given.
fn check(weights: &Path, args: &[&str], data: &Path, expected: f64) {
    let found = top1(weights, args, data);
    println!("{}: {found:.2} %, expected {expected:.2} %", args.join(" "));
    assert!((found - expected).abs() < 0.005, "{args:?}: {found} %, expected {expected} %");
}

#[test]
fn lenet_of_caffe_has_its_accuracy() {
    let Some(data) = data() else { return };
    let weights = data.join("weights/caffe");
    for (generation, expected) in [("v1", 99.05), ("v2", 99.14)] {
        let tensors = format!("lenet_iter_10000.{generation}.caffemodel");
        let args = ["lenet.prototxt", "--weights", &tensors, "--scale", "0.00390625"];
        check(&weights, &args, &data.join("mnist"), expected);
    }
}

#[test]
fn networks_for_cifar_have_their_accuracy() {
    let Some(data) = data() else { return };
    let Some(cifar) = std::env::var_os("COFILTER_CIFAR10").map(PathBuf::from) else {
        println!(
            "skipped: no unpacked CIFAR-10 in COFILTER_CIFAR10 (`unpack_cifar10.py` in ../shared/data/cifar10 unpacks it)"
        );
        return;
    };
    let weights = data.join("weights");
    for (file, expected) in [
        ("resnet20-12fca82f.th", 91.73),
        ("resnet32-d509ac18.th", 92.63),
        ("resnet44-014dd654.th", 93.10),
        ("resnet56-4bfd9763.th", 93.39),
    ] {
        check(&weights, &[file], &cifar, expected);
    }
    let weights = weights.join("caffe");
    for (text, tensors, expected) in [
        ("cifar10_full.prototxt", "cifar10_full_iter_70000.v1.caffemodel", 82.11),
        ("cifar10_full.v1.prototxt", "cifar10_full_iter_70000.v2.caffemodel", 81.45),
        ("cifar10_quick.prototxt", "cifar10_quick_iter_5000.v1.caffemodel", 74.91),
        ("cifar10_quick.prototxt", "cifar10_quick_iter_5000.caffemodel.h5", 75.84),
    ] {
        check(
            &weights,
            &[text, "--weights", tensors, "--mean", "cifar10_mean.binaryproto"],
            &cifar,
            expected,
        );
    }
}
