//! What the tests of the command share.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use cofilter_formats::StateDict;
use cofilter_zoo::{Config, Network};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

pub(crate) fn cofilter(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cofilter")).args(args).current_dir(folder).output().unwrap()
}

/// What a command that must succeed writes to stdout.
pub(crate) fn stdout(folder: &Path, args: &[&str]) -> String {
    let output = cofilter(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cofilter {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that must fail writes to stderr, and its exit code.
pub(crate) fn failure(folder: &Path, args: &[&str]) -> (String, i32) {
    let output = cofilter(folder, args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !errors.contains("panicked"), "cofilter {args:?}: {errors}");
    (errors, output.status.code().unwrap())
}

pub(crate) fn json(folder: &Path, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(folder, &[args, &["--format", "json"]].concat())).unwrap()
}

/// What the guide starts from: a state dict, digits, one of them as an image and some as a tensor.
pub(crate) fn prepare(folder: &Path) {
    let model = Network::by_name("lenet", &Config::default()).unwrap().model(1).unwrap();
    StateDict::of(&model).save(folder.join("lenet.safetensors")).unwrap();
    let digits = folder.join("digits");
    std::fs::create_dir(&digits).unwrap();
    for entry in std::fs::read_dir(root().join("fixtures/digits")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, digits.join(path.file_name().unwrap())).unwrap();
    }
    let split = cofilter_data::open(&digits).unwrap();
    image::GrayImage::from_raw(28, 28, split.test.image(0).to_vec())
        .unwrap()
        .save(folder.join("digit.png"))
        .unwrap();
    let numbers: Vec<u8> =
        (0..3 * 784).flat_map(|i| (f32::from(split.test.pixels()[i]) / 256.0).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![3, 1, 28, 28], &numbers).unwrap();
    std::fs::write(
        folder.join("images.safetensors"),
        safetensors::serialize([("input", view)], None).unwrap(),
    )
    .unwrap();
}
