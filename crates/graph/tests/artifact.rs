//! The artifact file: the same bytes there and back, and nothing that lies gets in.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{
    Array, Artifact, BatchNorm, ChannelOrder, Conv2d, Error, Graph, Init, Lrn, LrnRegion, Model, Op, Pool2d,
    PoolKind, Preprocessing, Provenance, Shape, Subtract, write_atomically,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::path::Path;

/// One node of every kind.
fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 9, 9)).unwrap();
    let c = b.conv2d("conv_1/a.b-c", x, Conv2d { groups: 2, padding: [1, 0], ..Conv2d::new(4, 3) }).unwrap();
    let n = b.batch_norm("bn", c, BatchNorm { eps: 1e-3, momentum: 0.001 }).unwrap();
    let r = b.relu("relu", n).unwrap();
    let p = b.pool2d("pool", r, Pool2d::caffe(PoolKind::Average, 3, 2)).unwrap();
    let l = Lrn { region: LrnRegion::WithinChannel, size: 3, alpha: 5e-5, beta: 0.75, k: 1.0 };
    let l = b.lrn("lrn", p, l).unwrap();
    let z = b.pad_channels("pad", l, 1, 2).unwrap();
    let t = b.concat("concat", &[z, l]).unwrap();
    let s = b.sum("sum", &[t, t]).unwrap();
    let d = b.dropout("drop", s, 0.4).unwrap();
    let a = b.add("adaptive", Op::AdaptiveAvgPool { output: [2, 1] }, &[d]).unwrap();
    let f = b.flatten("flatten", a).unwrap();
    let y = b.linear("fc", f, 3).unwrap();
    let q = b.softmax("prob", y).unwrap();
    let graph = b.finish(&[q, y]).unwrap();
    let kinds: std::collections::BTreeSet<&str> = graph.nodes().iter().map(|n| n.op().kind()).collect();
    assert_eq!(kinds.len(), 14, "every op is in the file");
    Model::init(graph, &Init::default(), 3).unwrap()
}

fn artifact() -> Artifact {
    let preprocessing = Preprocessing {
        scale: 1.0 / 256.0,
        mean: Subtract::Channel(vec![0.1, 0.2]),
        std: vec![0.3, 0.4],
        channel_order: ChannelOrder::Rgb,
        crop: [9, 9],
        resize: Some([12, 12]),
        classes: vec!["a".into(), "b \"quoted\"\n".into(), "ü".into()],
    };
    let provenance = Provenance {
        network: Some("test".into()),
        recipe: Some(json!({"z": 1, "a": [1.5, {"y": null, "b": true}], "rate": 0.1})),
        seed: Some(u64::MAX),
        commit: Some("0123abcd".into()),
        data_sha256: None,
        parent_sha256: Some("ff".into()),
        preprocessing: Some(preprocessing),
    };
    Artifact { model: model(), provenance }
}

#[test]
fn a_round_trip_gives_equal_values_and_equal_bytes() {
    for a in [artifact(), Artifact::new(model())] {
        let bytes = a.to_bytes();
        let back = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(back, a);
        assert_eq!(back.to_bytes(), bytes);
        assert_eq!(back.sha256(), a.sha256());
    }
}

#[test]
fn bytes_are_those_of_every_machine() {
    // Numbers that no generator draws, so that this changes with the format alone.
    let m = model();
    let params = m.params().map(|_, _, a| {
        Array::new(a.dims().to_vec(), (0..a.data().len()).map(|i| i as f32 / 8.0).collect::<Vec<_>>())
    });
    let mut a = Artifact { model: m.with_params(params).unwrap(), ..artifact() };
    let digest = a.sha256();
    assert_eq!(
        digest, "a29de1ed028067e49203bb6cc339a545771ca0c166e409356a7579ad54660603",
        "the format is no longer that of FORMAT_VERSION 1"
    );
    a.provenance.seed = Some(1);
    assert_ne!(a.sha256(), digest);
}

#[test]
fn attributes_of_any_value_survive() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2000 {
        let any = |rng: &mut ChaCha8Rng| loop {
            let v = f32::from_bits(rng.random::<u32>() & 0x7fff_ffff);
            if v.is_finite() && v > 0.0 {
                return v;
            }
        };
        let mut b = Graph::builder();
        let x = b.input("x", Shape::map(1, 1, 1)).unwrap();
        let bn = BatchNorm { eps: any(&mut rng), momentum: rng.random::<f32>() };
        let x = b.batch_norm("bn", x, bn).unwrap();
        let region = LrnRegion::AcrossChannels;
        let lrn = Lrn { region, size: 5, alpha: any(&mut rng), beta: -any(&mut rng), k: any(&mut rng) };
        let x = b.lrn("lrn", x, lrn).unwrap();
        let x = b.dropout("drop", x, rng.random::<f32>()).unwrap();
        let weights: f32 = any(&mut rng);
        let m = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
        let m = m
            .with_params(m.params().map(|_, slot, a| {
                // A variance is not below 0.
                Array::full(a.dims().to_vec(), if slot == 3 { weights } else { -weights })
            }))
            .unwrap();
        let a = Artifact::new(m);
        assert_eq!(Artifact::from_bytes(&a.to_bytes()).unwrap(), a);
    }
}

#[test]
fn weights_keep_their_bits() {
    let m = model();
    let strange = [-0.0f32, f32::MIN_POSITIVE / 2.0, f32::MAX, f32::MIN, 1.0e-45];
    let params = m.params().map(|_, slot, a| {
        // A variance is not below 0.
        let sign = |v: f32| if slot == 3 { v.abs() } else { v };
        let data: Vec<f32> = (0..a.data().len()).map(|i| sign(strange[i % strange.len()])).collect();
        Array::new(a.dims().to_vec(), data)
    });
    let a = Artifact::new(m.with_params(params).unwrap());
    let back = Artifact::from_bytes(&a.to_bytes()).unwrap();
    for (_, _, before, after) in a.model.params().zip(back.model.params()) {
        let bits = |a: &Array| a.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(before), bits(after));
    }
}

/// Header and tensor data of a file.
fn parts(bytes: &[u8]) -> (Value, Vec<u8>) {
    let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), data].concat()
}

/// The file with another header (and, where `change` says so, other data).
fn forged(change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Vec<u8> {
    let (mut header, mut data) = parts(&artifact().to_bytes());
    change(&mut header, &mut data);
    join(&header, &data)
}

/// The file with another graph; tensors stay.
fn forged_graph(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    forged(|header, _| {
        let entry = &mut header["__metadata__"]["cofilter.graph"];
        let mut graph: Value = serde_json::from_str(entry.as_str().unwrap()).unwrap();
        change(&mut graph);
        *entry = graph.to_string().into();
    })
}

fn assert_refused(bytes: &[u8], part: &str) {
    let message = Artifact::from_bytes(bytes).expect_err(part).to_string();
    assert!(message.contains(part), "`{message}` does not say `{part}`");
}

fn node<'a>(graph: &'a mut Value, name: &str) -> &'a mut Value {
    let nodes = graph["nodes"].as_array_mut().unwrap();
    nodes.iter_mut().find(|n| n["name"] == name).unwrap()
}

#[test]
fn an_unchanged_forgery_is_read() {
    // Else the attacks below would be refused for another reason.
    assert_eq!(Artifact::from_bytes(&forged(|_, _| ())).unwrap(), artifact());
    assert_eq!(Artifact::from_bytes(&forged_graph(|_| ())).unwrap(), artifact());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = artifact().to_bytes();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let lengths =
        (0..16).chain((16..bytes.len()).step_by(13)).chain(header - 9..=header + 9).chain([bytes.len() - 1]);
    for len in lengths {
        assert!(Artifact::from_bytes(&bytes[..len]).is_err(), "cut to {len} of {} bytes", bytes.len());
    }
    for more in [1, 4, 4096] {
        let longer = [bytes.as_slice(), &vec![0; more]].concat();
        assert_refused(&longer, "not a safetensors file");
    }
}

#[test]
fn a_header_length_that_lies_is_refused() {
    let bytes = artifact().to_bytes();
    let honest = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let data = bytes.len() as u64 - 8 - honest;
    for lie in [0, 1, 2, honest - 8, honest - 1, honest + 1, honest + 8, honest + data, honest + data + 1]
        .into_iter()
        .chain([100_000_001, u64::from(u32::MAX), u64::MAX - 8, u64::MAX - 7, u64::MAX])
    {
        let mut changed = bytes.clone();
        changed[..8].copy_from_slice(&lie.to_le_bytes());
        assert_refused(&changed, "not a safetensors file");
    }
}

#[test]
fn tensors_that_do_not_belong_are_refused() {
    assert_refused(
        &forged(|h, _| drop(h.as_object_mut().unwrap().remove("fc.bias"))),
        "not a safetensors file",
    );
    let renamed = |from: &str, to: &str| {
        forged(|h, _| {
            let entry = h.as_object_mut().unwrap().remove(from).unwrap();
            h[to] = entry;
        })
    };
    assert_refused(&renamed("fc.bias", "fc.Bias"), "`fc.bias` is missing");
    assert_refused(&renamed("fc.bias", "bias"), "`fc.bias` is missing");
    let extra = forged(|h, data| {
        let end = data.len();
        data.extend([0; 8]);
        h["relu.weight"] = json!({"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]});
    });
    assert_refused(&extra, "`relu.weight` belongs to no node");
    let empty = forged(|h, data| {
        h["spare"] = json!({"dtype": "F32", "shape": [0], "data_offsets": [data.len(), data.len()]});
    });
    assert_refused(&empty, "`spare` belongs to no node");
}

#[test]
fn tensors_of_other_extents_or_types_are_refused() {
    let with = |name: &str, key: &str, value: Value| {
        let (name, key) = (name.to_owned(), key.to_owned());
        forged(move |h, _| h[name][key] = value)
    };
    // The same number of elements.
    assert_refused(&with("fc.weight", "shape", json!([22, 3])), "expected dims [3, ");
    assert_refused(
        &with("bn.weight", "shape", json!([2, 2])),
        "`bn.weight`: expected dims [4], found [2, 2]",
    );
    assert_refused(&with("bn.weight", "shape", json!([1, 4])), "bn.weight");
    // Another number.
    for shape in
        [json!([5]), json!([3]), json!([]), json!([0]), json!([4, 0]), json!([-4]), json!("4"), json!([4.5])]
    {
        assert_refused(&with("bn.weight", "shape", shape), "not a safetensors file");
    }
    // Products that overflow, also those that come out right.
    let half = 1u64 << 32;
    for shape in [
        json!([half, half]),
        json!([1u64 << 63, 4]),
        json!([1u64 << 63, 4, 0]),
        json!([u64::MAX]),
        json!([half, half, 4]),
    ] {
        assert_refused(&with("bn.weight", "shape", shape), "not a safetensors file");
    }
    for dtype in ["I32", "U32"] {
        assert_refused(&with("bn.weight", "dtype", dtype.into()), &format!("expected F32, found {dtype}"));
    }
    for dtype in ["F16", "F64", "F33", ""] {
        assert_refused(&with("bn.weight", "dtype", dtype.into()), "not a safetensors file");
    }
    // Half as many, twice as wide.
    let wide = forged(|h, _| {
        h["bn.weight"]["dtype"] = "F64".into();
        h["bn.weight"]["shape"] = json!([2]);
    });
    assert_refused(&wide, "`bn.weight`: expected F32, found F64");
    // Overlap, gaps, order.
    for offsets in
        [json!([0, 16]), json!([4, 20]), json!([16, 0]), json!([0, u64::MAX]), json!([u64::MAX, 0])]
    {
        assert_refused(&with("fc.weight", "data_offsets", offsets), "not a safetensors file");
    }
}

#[test]
fn values_that_are_not_finite_are_refused_in_both_directions() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bytes = forged(|h, data| {
            let start = usize::try_from(h["fc.weight"]["data_offsets"][0].as_u64().unwrap()).unwrap();
            data[start + 8..start + 12].copy_from_slice(&bad.to_le_bytes());
        });
        assert_refused(&bytes, "`fc.weight`: element 2 is");
    }
}

#[test]
fn metadata_must_be_there_and_of_this_format() {
    for key in ["cofilter.format", "cofilter.graph", "cofilter.provenance"] {
        let without = forged(|h, _| drop(h["__metadata__"].as_object_mut().unwrap().remove(key)));
        assert_refused(&without, &format!("no metadata `{key}`"));
    }
    assert_refused(&forged(|h, _| drop(h.as_object_mut().unwrap().remove("__metadata__"))), "no metadata");
    for version in ["0", "2", "", "1.0", " 1", "one"] {
        let other = forged(|h, _| h["__metadata__"]["cofilter.format"] = version.into());
        assert_refused(&other, &format!("format {version}, this program reads 1"));
    }
    for (key, text) in [
        ("cofilter.graph", ""),
        ("cofilter.graph", "{}"),
        ("cofilter.graph", "[]"),
        ("cofilter.graph", r#"{"nodes": []}"#),
        ("cofilter.provenance", "[1"),
        ("cofilter.provenance", r#"{"seed": -1}"#),
        ("cofilter.provenance", r#"{"preprocessing": {"scale": 1}}"#),
    ] {
        assert_refused(&forged(|h, _| h["__metadata__"][key] = text.into()), &format!("metadata `{key}`"));
    }
    let deep = format!(r#"{{"nodes": [{{"name": "x", "note": {}"#, "[".repeat(100_000));
    assert_refused(&forged(|h, _| h["__metadata__"]["cofilter.graph"] = deep.into()), "recursion limit");
    assert_refused(&forged(|h, _| h["__metadata__"]["cofilter.format"] = json!(1)), "not a safetensors file");
    // What we do not know does not matter.
    let noted = forged(|h, _| h["__metadata__"]["note"] = "by hand".into());
    assert_eq!(Artifact::from_bytes(&noted).unwrap(), artifact());
}

#[test]
fn a_plain_safetensors_file_is_told_apart() {
    let header = json!({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
    assert_refused(&join(&header, &[0; 4]), "not written by cofilter");
    assert_refused(b"", "not a safetensors file");
    assert_refused(b"PK\x03\x04 a zip file of another world, long enough", "not a safetensors file");
}

#[test]
fn a_graph_that_lies_is_refused() {
    let refused = |part: &str, change: &dyn Fn(&mut Value)| assert_refused(&forged_graph(change), part);
    refused("unknown variant `warp`", &|g| node(g, "relu")["op"] = "warp".into());
    refused("missing field", &|g| drop(node(g, "fc").as_object_mut().unwrap().remove("out_features")));
    refused("missing field", &|g| drop(node(g, "relu").as_object_mut().unwrap().remove("op")));
    refused("`fc`: reads `prob`, which is no earlier node", &|g| node(g, "fc")["inputs"] = json!(["prob"]));
    refused("`relu`: reads `relu`", &|g| node(g, "relu")["inputs"] = json!(["relu"]));
    refused("`relu`: reads `nowhere`", &|g| node(g, "relu")["inputs"] = json!(["nowhere"]));
    refused("takes 1 inputs, found 0", &|g| drop(node(g, "relu").as_object_mut().unwrap().remove("inputs")));
    refused("takes 1 inputs, found 2", &|g| node(g, "relu")["inputs"] = json!(["bn", "bn"]));
    refused("`bn` is used twice", &|g| node(g, "relu")["name"] = "bn".into());
    refused("not usable", &|g| node(g, "prob")["name"] = "pr ob".into());
    refused("no output", &|g| g["outputs"] = json!([]));
    refused("twice", &|g| g["outputs"] = json!(["fc", "fc"]));
    refused("`(outputs)`: reads `fd`", &|g| g["outputs"] = json!(["fd"]));
    refused("one input", &|g| {
        let again = json!({"name": "again", "op": "input", "shape": {"vector": 3}, "inputs": []});
        g["nodes"].as_array_mut().unwrap().push(again);
    });
    refused("no input", &|g| *g = json!({"nodes": [], "outputs": []}));
    refused("reads `data`", &|g| drop(g["nodes"].as_array_mut().unwrap().remove(0)));
    refused("first node", &|g| *g = json!({"nodes": [{"name": "n", "op": "relu"}], "outputs": ["n"]}));
    // Attributes.
    refused("groups 0", &|g| node(g, "conv_1/a.b-c")["groups"] = 0.into());
    refused("kernel 0", &|g| node(g, "conv_1/a.b-c")["kernel"] = json!([0, 3]));
    refused("invalid length", &|g| node(g, "conv_1/a.b-c")["kernel"] = json!([3]));
    refused("invalid value", &|g| node(g, "conv_1/a.b-c")["groups"] = json!(-1));
    refused("invalid type", &|g| node(g, "conv_1/a.b-c")["groups"] = json!(1.5));
    refused("eps", &|g| node(g, "bn")["eps"] = json!(1e39));
    refused("invalid type", &|g| node(g, "bn")["eps"] = Value::Null);
    refused("not in [0, 1)", &|g| node(g, "drop")["p"] = json!(1.0));
    // Extents beyond all memory.
    let huge = 1u64 << 40;
    refused("too large", &|g| node(g, "data")["shape"]["map"]["height"] = json!(1u64 << 60));
    refused("too large", &|g| node(g, "conv_1/a.b-c")["padding"] = json!([1u64 << 61, 0]));
    refused("too large", &|g| node(g, "conv_1/a.b-c")["padding"] = json!([huge, huge]));
    refused("too large", &|g| node(g, "adaptive")["output"] = json!([huge, huge]));
    refused("too many channels", &|g| node(g, "pad")["before"] = json!(u64::MAX));
    refused("too large", &|g| node(g, "pad")["before"] = json!(1u64 << 62));
    refused("weight", &|g| node(g, "fc")["out_features"] = json!(1u64 << 60));
    refused("expected dims [1099511627776, ", &|g| node(g, "fc")["out_features"] = json!(huge));
    refused("invalid type", &|g| node(g, "fc")["out_features"] = json!(1e30));
    refused("expected dims [4, 2, 3, 3], found [4, 1, 3, 3]", &|g| {
        node(g, "conv_1/a.b-c")["groups"] = 1.into()
    });
}

#[test]
fn flipped_bits_give_an_error_or_a_valid_model() {
    let bytes = artifact().to_bytes();
    let mut rng = ChaCha8Rng::seed_from_u64(500);
    let (mut refused, mut read) = (0, 0);
    for flip in 0..1500 {
        let mut changed = bytes.clone();
        // One bit, then more at a time.
        for _ in 0..1 + flip / 500 {
            let bit = rng.random_range(0..8 * bytes.len());
            changed[bit / 8] ^= 1 << (bit % 8);
        }
        match Artifact::from_bytes(&changed) {
            Err(e) => {
                assert!(!e.to_string().is_empty());
                refused += 1;
            }
            Ok(a) => {
                a.model.check_finite().unwrap();
                let _ = a.model.cost().macs();
                assert_eq!(Artifact::from_bytes(&a.to_bytes()).unwrap(), a);
                read += 1;
            }
        }
    }
    assert!(refused > 300 && read > 30, "{refused} refused, {read} read: both must happen");
}

#[test]
fn files_are_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let a = artifact();
    a.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), a.to_bytes());
    assert_eq!(Artifact::load(&path).unwrap(), a);

    // A model with NaN: the old file stays, and nothing else is left behind.
    let bad = Artifact::new(nan_model());
    assert!(matches!(bad.save(&path).unwrap_err(), Error::NotFinite { tensor, .. } if tensor == "fc.bias"));
    assert_eq!(std::fs::read(&path).unwrap(), a.to_bytes());
    assert_eq!(entries(folder.path()), ["m.safetensors"]);

    // Saving over it.
    let other = Artifact::new(model());
    other.save(&path).unwrap();
    assert_eq!(Artifact::load(&path).unwrap(), other);
    assert_eq!(entries(folder.path()), ["m.safetensors"]);
}

fn nan_model() -> Model {
    let m = model();
    let name = |id, slot| m.graph().tensor_name(id, slot);
    let params = m.params().map(|id, slot, a| match name(id, slot).as_str() {
        "fc.bias" => Array::full(a.dims().to_vec(), f32::NAN),
        _ => a.clone(),
    });
    m.with_params(params).unwrap()
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn errors_of_the_system_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no").join("m.safetensors");
    for e in [Artifact::load(&missing).unwrap_err(), artifact().save(&missing).unwrap_err()] {
        assert!(matches!(&e, Error::Io { path, .. } if *path == missing), "{e}");
        assert!(e.to_string().contains("m.safetensors"), "{e}");
    }
    let truncated = folder.path().join("cut.safetensors");
    std::fs::write(&truncated, &artifact().to_bytes()[..100]).unwrap();
    let e = Artifact::load(&truncated).unwrap_err();
    assert!(matches!(&e, Error::File { .. }) && e.to_string().contains("cut.safetensors"), "{e}");

    // A folder in the way is not replaced, and what is in it stays.
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("old"), "old").unwrap();
    assert!(matches!(write_atomically(&taken, b"new").unwrap_err(), Error::Io { .. }));
    assert_eq!(std::fs::read(taken.join("old")).unwrap(), b"old");
    assert_eq!(entries(folder.path()), ["cut.safetensors", "taken"], "no temporary file is left");
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_not_writable_keeps_its_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    write_atomically(&path, b"old").unwrap();
    let mode = |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    if std::fs::write(folder.path().join("probe"), "").is_ok() {
        println!("skipped: this user may write anywhere");
        mode(0o755);
        return;
    }
    let result = write_atomically(&path, b"new");
    mode(0o755);
    assert!(matches!(result.unwrap_err(), Error::Io { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[cfg(unix)]
#[test]
fn a_new_file_has_the_mode_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| folder.path().join(name).metadata().unwrap().permissions().mode();
    std::fs::write(folder.path().join("plain"), "x").unwrap();
    write_atomically(&folder.path().join("atomic"), b"x").unwrap();
    assert_eq!(mode("atomic"), mode("plain"));
}

#[test]
fn a_variance_below_zero_is_refused() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 4, 4)).unwrap();
    let x = b.batch_norm("bn", x, cofilter_graph::BatchNorm::default()).unwrap();
    let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
    let bn = model.graph().find("bn").unwrap();
    let negative = model.params().map(|id, slot, a| match (id == bn, slot) {
        (true, 3) => Array::new(vec![2], vec![1.0, -1e-6]),
        _ => a.clone(),
    });
    let lying = Artifact::new(model.with_params(negative).unwrap());
    let error = Artifact::from_bytes(&lying.to_bytes()).unwrap_err().to_string();
    assert!(error.contains("bn.running_var") && error.contains("element 1"), "{error}");
}
