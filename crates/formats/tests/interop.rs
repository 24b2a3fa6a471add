//! Networks to and from PyTorch, torchvision, ONNX Runtime and OpenVINO. Needs a Python that has them, in `COFILTER_PYTHON`;
//! `cargo xtask interop` sets one up and runs this.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use cofilter_formats::{Agreement, StateDict, onnx};
use cofilter_graph::{Array, Artifact, Init, Model, Op, Shape};
use cofilter_lowrank::{RankRule, Settings, decompose};
use cofilter_runtime::{Options, Plan};
use cofilter_sparsity::{Grouping, Pattern, Pruning, Scope, compact, prune_magnitude};
use cofilter_zoo::{Config, Network};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use std::process::Command;

/// Largest difference between two programs, relative to the largest output.
const TOLERANCE: f64 = 1e-4;
/// Networks of torchvision, and the CIFAR ResNet, with the extents of their images.
const NETWORKS: [(&str, [usize; 3]); 5] = [
    ("alexnet", [3, 224, 224]),
    ("googlenet", [3, 224, 224]),
    ("resnet18", [3, 128, 128]),
    ("resnet50", [3, 128, 128]),
    ("resnet20", [3, 32, 32]),
];

/// Runs the other side; what it printed, or `None` without a Python for it.
fn peer(command: &str, folder: &Path) -> Option<String> {
    let Some(python) = std::env::var_os("COFILTER_PYTHON") else {
        println!("skipped: no Python with PyTorch and the others (`cargo xtask interop`)");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peer.py");
    let output = Command::new(python).arg(script).arg(command).arg(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "peer.py {command}: {errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The lines of `peer check` and `peer load`, none of which may be further off than allowed.
fn agree(lines: &str, expected: usize) {
    println!("{lines}");
    for line in lines.lines() {
        let error: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(error <= TOLERANCE, "{line}");
    }
    assert_eq!(lines.lines().count(), expected);
}

fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap();
    data.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn run(model: &Model, images: &[f32]) -> Vec<f32> {
    let plan = Plan::compile(model, &Options { batch: 1, ..Options::default() }).unwrap();
    let mut session = plan.session();
    let mut all = Vec::new();
    for image in images.chunks_exact(plan.input_len()) {
        let mut logits = vec![0.0; plan.output_len()];
        session.run(image, &mut logits).unwrap();
        all.extend(logits);
    }
    all
}

/// Weights that keep the size of values, and batch normalisation that changes something: from published starts some outputs are those
/// of the last bias alone.
fn lively(network: Network) -> Model {
    let model = Model::init(network.graph, &Init::default(), 1).unwrap();
    let mut generator = ChaCha8Rng::seed_from_u64(2);
    let params = model.params().map(|id, slot, array| match model.graph().node(id).op() {
        Op::BatchNorm(_) => {
            // Factors and variances around 1, shifts and means around 0.
            let centre = if slot == 0 || slot == 3 { 1.0 } else { 0.0 };
            let mut draw = |_: usize| -> f32 { StandardNormal.sample(&mut generator) };
            let drawn: Vec<f32> =
                (0..array.data().len()).map(|at| centre + 0.2 * draw(at).clamp(-2.0, 2.0)).collect();
            Array::new(array.dims().to_vec(), drawn)
        }
        _ => array.clone(),
    });
    model.with_params(params).unwrap()
}

fn graph(name: &str, [channels, height, width]: [usize; 3]) -> Network {
    let config = Config { input: Some(Shape::map(channels, height, width)), ..Config::default() };
    Network::by_name(name, &config).unwrap()
}

#[test]
fn networks_of_torchvision_give_their_logits() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: String| folder.path().join(name);
    if peer("make", folder.path()).is_none() {
        return;
    }
    for (name, extents) in NETWORKS {
        let expected = at(format!("{name}.safetensors"));
        let (input, output) = (tensor(&expected, "input"), tensor(&expected, "output"));
        let state = |file: String| {
            StateDict::read(at(file)).unwrap().into_model(name, graph(name, extents).graph).unwrap()
        };
        let models = [
            ("pth", state(format!("{name}.pth"))),
            ("safetensors", state(format!("{name}.state.safetensors"))),
            ("old.onnx", onnx::import(&at(format!("{name}.old.onnx")), None).unwrap().model),
            ("dynamo.onnx", onnx::import(&at(format!("{name}.dynamo.onnx")), None).unwrap().model),
        ];
        for (form, model) in models {
            let agreement = Agreement::of(&output, &run(&model, &input), output.len() / 2);
            println!("{name} {form} {:.1e}", agreement.largest_error);
            assert!(agreement.largest_error <= TOLERANCE, "{name} {form}: {agreement:?}");
        }
    }
}

/// Input and output of a network, for the other side.
fn write(path: &Path, model: &Model) {
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    let len = model.graph().input_shape().elements();
    let images: Vec<f32> = (0..2 * len).map(|_| StandardNormal.sample(&mut generator)).collect();
    let output = run(model, &images);
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (images, output) = (bytes(&images), bytes(&output));
    let dims = |shape: Shape| std::iter::once(2).chain(shape.dims()).collect::<Vec<_>>();
    let view = |shape, bytes| TensorView::new(Dtype::F32, dims(shape), bytes).unwrap();
    let tensors = [
        ("input", view(model.graph().input_shape(), &images)),
        ("output", view(model.graph().output_shape(), &output)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// Half of the filters of every layer pruned, and what can be taken out gone.
fn narrow(model: &Model) -> Model {
    let pruning = Pruning {
        sparsity: 0.5,
        scope: Scope::Layer,
        pattern: Pattern::Groups(Grouping::Filters),
        exclude: vec!["linear".into()],
        ..Pruning::default()
    };
    let (small, _) = compact(&prune_magnitude(model, &pruning).unwrap().0).unwrap();
    assert!(small.cost().params() * 10 < model.cost().params() * 7, "{}", small.cost().params());
    small
}

#[test]
fn torchvision_loads_our_state_dicts() {
    if std::env::var_os("COFILTER_PYTHON").is_none() {
        peer("load", Path::new("."));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, extents) in NETWORKS {
        let model = lively(graph(name, extents));
        let settings = Settings { rule: RankRule::Energy(0.5), linear: true, ..Settings::default() };
        let (low, _) = decompose(&model, &settings).unwrap();
        let mut models = vec![(name.to_owned(), model.clone()), (format!("{name}-low-rank"), low)];
        if name == "resnet20" {
            models.push((format!("{name}-narrow"), narrow(&model)));
        }
        for (name, model) in models {
            write(&folder.path().join(format!("{name}.safetensors")), &model);
            StateDict::of(&model).save(folder.path().join(format!("{name}.state.safetensors"))).unwrap();
        }
    }
    if let Some(lines) = peer("load", folder.path()) {
        agree(&lines, 2 * NETWORKS.len() + 1);
    }
}

#[test]
fn our_onnx_files_run_elsewhere() {
    if std::env::var_os("COFILTER_PYTHON").is_none() {
        peer("check", Path::new("."));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    let mut put = |name: String, artifact: &Artifact| {
        write(&folder.path().join(format!("{name}.safetensors")), &artifact.model);
        onnx::export(artifact, &folder.path().join(format!("{name}.onnx"))).unwrap();
        count += 1;
    };
    for name in cofilter_zoo::NAMES {
        let model = lively(Network::by_name(name, &Config::default()).unwrap());
        let settings = Settings { rule: RankRule::Energy(0.5), linear: true, ..Settings::default() };
        let (low, _) = decompose(&model, &settings).unwrap();
        if *name == "resnet20" {
            put(format!("{name}-narrow"), &Artifact::new(narrow(&model)));
        }
        put((*name).to_owned(), &Artifact::new(model));
        put(format!("{name}-low-rank"), &Artifact::new(low));
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/caffe");
    let caffe = cofilter_formats::caffe::import(
        &fixtures.join("tiny.prototxt"),
        &fixtures.join("tiny.caffemodel"),
        None,
    );
    put("caffe".into(), &caffe.unwrap());
    agree(&peer("check", folder.path()).unwrap(), 2 * count);
}
