//! `node.slot` is the key of the tensor in checkpoints of the original.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_zoo::{Config, by_name};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn tensors(name: &str, config: &Config) -> BTreeMap<String, Vec<usize>> {
    let graph = by_name(name, config).unwrap();
    let of_node = |id| (0..).zip(graph.slots(id)).map(move |(slot, spec)| (id, slot, spec.dims));
    graph
        .iter()
        .flat_map(|(id, _)| of_node(id))
        .map(|(id, slot, dims)| (graph.tensor_name(id, slot), dims))
        .collect()
}

/// Entries of torchvision's state dicts without `num_batches_tracked`, and some keys with their extents.
#[test]
fn keys_are_those_of_torchvision() {
    let lean = Config { auxiliary: false, ..Config::default() };
    let full = Config::default();
    type Keys = &'static [(&'static str, &'static [usize])];
    let cases: [(&str, &Config, usize, Keys); 6] = [
        ("alexnet", &full, 16, &[("features.10.weight", &[256, 256, 3, 3]), ("classifier.6.bias", &[1000])]),
        (
            "resnet18",
            &full,
            102,
            &[("layer2.0.downsample.0.weight", &[128, 64, 1, 1]), ("bn1.running_var", &[64])],
        ),
        ("resnet34", &full, 182, &[("layer3.5.bn2.running_mean", &[256])]),
        (
            "resnet50",
            &full,
            267,
            &[("layer1.0.downsample.1.bias", &[256]), ("layer4.2.conv3.weight", &[2048, 512, 1, 1])],
        ),
        (
            "googlenet",
            &lean,
            287,
            &[("conv1.conv.weight", &[64, 3, 7, 7]), ("inception5b.branch3.1.conv.weight", &[128, 48, 3, 3])],
        ),
        (
            "googlenet",
            &full,
            305,
            &[
                ("aux1.conv.bn.weight", &[128]),
                ("aux2.fc1.weight", &[1024, 2048]),
                ("aux2.fc2.bias", &[1000]),
            ],
        ),
    ];
    for (name, config, entries, keys) in cases {
        let found = tensors(name, config);
        assert_eq!(found.len(), entries, "{name}");
        for (key, dims) in keys {
            assert_eq!(found.get(*key).map(Vec::as_slice), Some(*dims), "{name}: {key}");
        }
    }
}

#[test]
fn keys_are_those_of_trained_cifar_resnets() {
    let folder = std::env::var_os("COFILTER_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")),
        PathBuf::from,
    );
    for depth in [20, 32, 44, 56] {
        let path = folder.join(format!("weights/resnet{depth}-cifar10.safetensors"));
        let Ok(bytes) = std::fs::read(&path) else {
            println!("skipped: no {}", path.display());
            continue;
        };
        let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        let entries = header.as_object().unwrap().iter().filter(|(key, _)| *key != "__metadata__");
        let dims = |entry: &serde_json::Value| serde_json::from_value(entry["shape"].clone()).unwrap();
        let expected: BTreeMap<String, Vec<usize>> = entries.map(|(key, e)| (key.clone(), dims(e))).collect();
        assert_eq!(tensors(&format!("resnet{depth}"), &Config::default()), expected, "resnet{depth}");
    }
}
