//! Checkpoints of PyTorch: what it wrote, real ones, and damaged ones.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use cofilter_formats::{Error, StateDict};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/torch").join(name)
}

/// Tensors of a safetensors file by name: extents and numbers.
fn plain(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |data: &[u8]| {
        data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()
    };
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.shape().to_vec(), numbers(view.data())))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn same(found: &StateDict, expected: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    assert_eq!(found.tensors().len(), expected.len());
    for (name, tensor) in found.tensors() {
        let (dims, numbers) = &expected[name];
        assert_eq!(tensor.dims(), dims, "{name}");
        assert_eq!(tensor.data(), numbers, "{name}");
    }
}

#[test]
fn both_forms_of_a_checkpoint_are_read() {
    let expected = plain(&fixture("expected.safetensors"));
    for name in ["zip.pth", "legacy.pth"] {
        same(&StateDict::read(fixture(name)).unwrap(), &expected);
    }
}

#[test]
fn what_does_not_fit_a_network_is_listed_at_once() {
    let graph = cofilter_zoo::by_name("resnet20", &cofilter_zoo::Config::default()).unwrap();
    let state = StateDict::read(fixture("zip.pth")).unwrap();
    let error = state.into_model("resnet20", graph).unwrap_err();
    let Error::Mismatch { problems, .. } = &error else { panic!("{error}") };
    assert!(problems.iter().any(|line| line.contains("`conv1.weight` [16, 3, 3, 3] is missing")), "{error}");
    assert!(problems.iter().any(|line| line.contains("`part.weight` [2, 3] is unknown")), "{error}");
    assert!(error.to_string().contains("zip.pth"), "{error}");
}

/// The small checkpoint as the network it is: two of its tensors.
#[test]
fn a_number_that_is_none_is_refused_with_file_and_tensor() {
    let mut b = cofilter_graph::Graph::builder();
    let x = b.input("data", cofilter_graph::Shape::map(2, 4, 4)).unwrap();
    let x = b.conv2d("conv", x, cofilter_graph::Conv2d::new(3, 3)).unwrap();
    let graph = b.finish(&[x]).unwrap();
    let bytes = std::fs::read(fixture("nan.pth")).unwrap();
    let error = read(&bytes).unwrap().into_model("small", graph.clone()).unwrap_err().to_string();
    assert!(error.contains("damaged.pth") && error.contains("`conv.bias`: element 1 is NaN"), "{error}");
    let model = StateDict::read(fixture("small.pth")).unwrap().into_model("small", graph).unwrap();
    let bias: Vec<&[f32]> =
        model.params().iter().filter(|(_, slot, _)| *slot == 1).map(|p| p.2.data()).collect();
    assert_eq!(bias, [&[1.0, 2.0, 3.0]]);
}

/// Layers whose own names look as if a wrapper had been put before them.
#[test]
fn names_like_wrappers_come_back() {
    let mut b = cofilter_graph::Graph::builder();
    let x = b.input("data", cofilter_graph::Shape::Vector(3)).unwrap();
    let x = b.linear("model.first", x, 4).unwrap();
    let x = b.linear("model.second", x, 2).unwrap();
    let graph = b.finish(&[x]).unwrap();
    let model = cofilter_graph::Model::init(graph.clone(), &cofilter_graph::Init::default(), 1).unwrap();
    let bytes = StateDict::of(&model).to_bytes().unwrap();
    let read = StateDict::from_bytes(bytes, Path::new("a.safetensors")).unwrap();
    assert_eq!(read.get("first.bias").unwrap().dims(), [4]);
    assert_eq!(read.into_model("small", graph).unwrap(), model);
}

#[test]
fn real_checkpoints_are_read() {
    let data = std::env::var_os("COFILTER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    let weights = data.join("weights");
    if !weights.is_dir() {
        println!("skipped: no ../shared/data");
        return;
    }
    for (depth, hash) in [(20, "12fca82f"), (32, "d509ac18"), (44, "014dd654"), (56, "4bfd9763")] {
        let state = StateDict::read(weights.join(format!("resnet{depth}-{hash}.th"))).unwrap();
        same(&state, &plain(&weights.join(format!("resnet{depth}-cifar10.safetensors"))));
        let name = format!("resnet{depth}");
        let graph = cofilter_zoo::by_name(&name, &cofilter_zoo::Config::default()).unwrap();
        state.into_model(&name, graph).unwrap();
    }
}

/// Reads bytes as a file; an error must name it.
fn read(bytes: &[u8]) -> Result<StateDict, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    std::fs::write(&path, bytes).unwrap();
    let found = StateDict::read(&path);
    if let Err(error) = &found {
        assert!(error.to_string().contains("damaged.pth"), "{error}");
    }
    found
}

#[test]
fn other_files_are_refused() {
    for (bytes, reason) in [
        (&b""[..], "found 0 bytes"),
        (b"PK\x03\x04", "not an archive"),
        (b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
        (b"{\"state_dict\": 1}", "not a checkpoint of PyTorch"),
        (b"\x80\x02c__builtin__\neval\n.", "magic number"),
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_give_an_error_or_tensors(
        legacy in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let name = if legacy { "legacy.pth" } else { "zip.pth" };
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(state) = read(&bytes) {
            let numbers: usize = state.tensors().iter().map(|(_, tensor)| tensor.data().len()).sum();
            prop_assert!(numbers <= bytes.len());
        }
    }
}
