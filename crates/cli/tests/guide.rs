//! The commands of the guide, and what the command says to wrong use and wrong files.

mod common;

use cofilter_graph::Artifact;
use cofilter_zoo::{Config, Network};
use common::{cofilter, failure, json, prepare, root, stdout};
use safetensors::SafeTensors;

/// Runs the guide's commands in the order of the page; blocks of TOML are the files that they name first.
#[test]
fn every_command_of_the_guide_works() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let guide = std::fs::read_to_string(root().join("docs/guide.md")).unwrap();
    let mut commands = 0;
    for block in guide.split("\n```").skip(1).step_by(2) {
        let (kind, text) = block.split_once('\n').unwrap();
        match kind {
            "toml" => {
                let name = text.lines().next().unwrap().strip_prefix("# ").unwrap();
                std::fs::write(folder.join(name), text).unwrap();
            }
            "console" => {
                for line in text.lines() {
                    let words: Vec<&str> = line.strip_prefix("$ cofilter ").unwrap().split(' ').collect();
                    let output = stdout(folder, &words);
                    assert!(!output.is_empty(), "{line}");
                    commands += 1;
                }
            }
            _ => {}
        }
    }
    assert_eq!(commands, 26, "commands in the guide");
    // What they came to.
    let before = json(folder, &["evaluate", "lenet.safetensors", "--data", "digits"]);
    let after = json(folder, &["evaluate", "tuned.safetensors", "--data", "digits"]);
    assert!(
        before["top1"].as_f64().unwrap() < 30.0 && after["top1"].as_f64().unwrap() > 85.0,
        "{before} {after}"
    );
    let [small, whole] =
        ["tuned", "forced"].map(|name| Artifact::load(&folder.join(format!("{name}.safetensors"))).unwrap());
    assert!(small.model.cost().macs() < whole.model.cost().macs());
    assert_eq!(small.provenance.preprocessing, whole.provenance.preprocessing);
    let bytes = std::fs::read(folder.join("scores.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("output").unwrap().shape(), [3, 10]);
    let bytes = std::fs::read(folder.join("torch.safetensors")).unwrap();
    assert!(SafeTensors::deserialize(&bytes).unwrap().tensor("conv2.1.bias").is_ok());
    let clipped = Artifact::load(&folder.join("clipped.safetensors")).unwrap().model;
    let basis = clipped.graph().find("conv2_lowrank").unwrap();
    let rank = clipped.tensors(basis)[0].dims()[0];
    assert!(rank < 50, "conv2 keeps all ranks");
    assert_eq!(json(folder, &["compress", "clip.toml"])["ranks"]["conv2"], rank);
    assert!(stdout(folder, &["compress", "clip.toml", "--dry-run"]).contains("a stage clips ranks"));
    // Zeros are there, stay there, and what is all zero is gone.
    let zeros = |name: &str| {
        let model = Artifact::load(&folder.join(format!("{name}.safetensors"))).unwrap().model;
        let layers = cofilter_sparsity::density(&model);
        let zeros: usize = layers.iter().map(|layer| layer.weights - layer.nonzeros).sum();
        (zeros, layers.iter().map(|layer| layer.weights).sum::<usize>(), model.cost().macs())
    };
    let (sparse, tuned) = (zeros("sparse"), zeros("sparse-tuned"));
    assert!(sparse.0 * 10 > sparse.1 * 5 && tuned.0 >= sparse.0, "{sparse:?} {tuned:?}");
    assert!(zeros("narrow").2 * 10 < zeros("tuned").2 * 9);
    // What is gone counts as well as what is zero.
    let whole = ["prune", "tuned.safetensors", "--sparsity", "0.5", "--compact", "-o", "half.safetensors"];
    let rate = json(folder, &whole)["compression"].as_f64().unwrap();
    assert!((rate - 2.0).abs() < 0.01, "{rate}");
    let learnt = zeros("learnt");
    assert!(learnt.0 * 10 > learnt.1 * 3 && learnt.2 <= zeros("tuned").2, "{learnt:?}");
    // The recipe again: nothing is trained a second time, and the same bytes are written.
    let written = std::fs::read(folder.join("compressed.safetensors")).unwrap();
    let output = cofilter(folder, &["compress", "compress.toml"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("done before"));
    assert_eq!(std::fs::read(folder.join("compressed.safetensors")).unwrap(), written);
}

#[test]
fn another_network_is_not_verified() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for seed in [1, 2] {
        let model = Network::by_name("lenet", &Config::default()).unwrap().model(seed).unwrap();
        Artifact::new(model).save(&folder.join(format!("{seed}.safetensors"))).unwrap();
    }
    let output = cofilter(folder, &["verify", "1.safetensors", "2.safetensors", "--format", "json"]);
    assert_eq!(output.status.code(), Some(3));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["met"], false);
    assert_eq!(json(folder, &["verify", "1.safetensors", "1.safetensors"])["largest_error"], 0.0);
}

#[test]
fn errors_name_file_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let fixtures = root().join("fixtures").canonicalize().unwrap();
    let at = |name: &str| fixtures.join(name).display().to_string();
    std::fs::write(folder.join("text.txt"), "hello").unwrap();
    std::fs::write(folder.join("empty.onnx"), "").unwrap();
    let handmade = at("onnx/handmade.onnx");
    let cases: [(&[&str], &str); 16] = [
        (&["inspect", &handmade, "--scale", "nan"], "scale: expected a finite number above 0"),
        (&["inspect", &handmade, "--resize", "0x0"], "resize 0x0: expected at least 16x16"),
        (&["inspect", &handmade, "--mean-values", "1,2,3"], "3 numbers for 2 planes"),
        (&["inspect", "nowhere.onnx"], "nowhere.onnx"),
        (&["inspect", "text.txt"], "text.txt: expected .safetensors, .pth, .onnx or .prototxt"),
        (&["inspect", "empty.onnx"], "empty.onnx: not an ONNX file"),
        (&["inspect", &at("torch/zip.pth")], "zip.pth: its tensors are those of no network here"),
        (&["inspect", &at("torch/zip.pth"), "--arch", "resnet20"], "`conv1.weight` [16, 3, 3, 3] is missing"),
        (&["inspect", &at("caffe/tiny.prototxt")], "--weights"),
        (
            &["convert", &at("onnx/handmade.onnx"), "-o", "a.pdf"],
            "a.pdf: expected a name that ends in .onnx or .safetensors",
        ),
        (&["prune", &handmade, "-o", "a.onnx"], "nothing to do: expected `--sparsity`"),
        (&["prune", &handmade, "--sparsity", "1.5", "-o", "a.onnx"], "the sparsity is 1.5"),
        (&["prune", &handmade, "--pattern", "0:4", "-o", "a.onnx"], "expected 1 to 4 of 4 weights, found 0"),
        (&["prune", &handmade, "--layers", "no=0.5", "-o", "a.onnx"], "names `no`, which is no layer"),
        (&["evaluate", &at("onnx/handmade.onnx"), "--data", "."], "says not how images become its input"),
        // Before data is read.
        (&["finetune", &handmade, "--data", "nowhere", "--device", "cuda:99", "-o", "a.safetensors"], "CUDA"),
    ];
    for (args, reason) in cases {
        let (errors, code) = failure(folder, args);
        assert!(errors.contains(reason), "{args:?}: {errors}");
        assert_eq!(code, 1, "{args:?}");
    }
    assert_eq!(failure(folder, &["inspect"]).1, 2);
    assert!(std::fs::read_dir(folder).unwrap().count() == 2, "nothing is left behind");
}

#[test]
fn caffe_and_onnx_files_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let fixtures = root().join("fixtures").canonicalize().unwrap();
    let at = |name: &str| fixtures.join(name).display().to_string();
    let weights = at("caffe/tiny.caffemodel.h5");
    let report =
        json(folder, &["convert", &at("caffe/tiny.prototxt"), "--weights", &weights, "-o", "tiny.onnx"]);
    assert_eq!(report["verified"]["met"], true);
    json(folder, &["convert", "tiny.onnx", "-o", "tiny.safetensors"]);
    let agreement = json(folder, &["verify", "tiny.onnx", "tiny.safetensors", "--tolerance", "1e-6"]);
    assert_eq!(agreement["met"], true);
    // A network that was decomposed is verified too, and inspected.
    json(folder, &["decompose", "tiny.safetensors", "--ratio", "0.5", "-o", "small.onnx"]);
    let report = json(folder, &["inspect", "small.onnx"]);
    assert!(report["nodes"].as_array().unwrap().len() > 5, "{report}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(folder, &["completions", shell]).contains("cofilter"));
    }
    cofilter(folder, &["man", "pages"]);
    assert!(folder.join("pages/cofilter.1").is_file());
}
