//! Training and deployment compute the same function: candle's forward, the compiled plan and the `f64` oracle on every
//! network of the zoo.

use candle_core::{Device, Tensor};
use cofilter_graph::{Array, Model, Role, Shape};
use cofilter_runtime::{Options, Plan, reference};
use cofilter_train::{Mode, Net};
use cofilter_zoo::{Config, NAMES, Network};

/// Square inputs small enough for the oracle; the others are as published.
const EXTENTS: [(&str, usize); 8] = [
    ("bvlc_alexnet", 99),
    ("bvlc_alexnet_split", 99),
    ("alexnet", 95),
    ("bvlc_googlenet", 64),
    ("googlenet", 64),
    ("resnet18", 64),
    ("resnet34", 64),
    ("resnet50", 64),
];

fn wave(len: usize, step: usize) -> impl Iterator<Item = f32> {
    (0..len).map(move |i| ((i * step) % 1024) as f32 / 512.0 - 1.0)
}

/// Batch statistics as after training, not the 0 and 1 of the start.
fn with_statistics(model: &Model) -> Model {
    let statistic = |id, slot: usize, array: &Array| match model.graph().slots(id)[slot].role {
        Role::Statistic => {
            let variance = model.graph().slots(id)[slot].name == "running_var";
            let values = wave(array.data().len(), 37).map(|v| if variance { 1.0 + 0.5 * v } else { 0.1 * v });
            Array::new(array.dims().to_vec(), values.collect::<Vec<_>>())
        }
        _ => array.clone(),
    };
    model.with_params(model.params().map(statistic)).expect("same dims")
}

fn check(name: &str) {
    let extent = EXTENTS.iter().find(|(n, _)| *n == name).map(|(_, e)| Shape::map(3, *e, *e));
    let network = Network::by_name(name, &Config { input: extent, ..Config::default() }).expect("of the zoo");
    let model = with_statistics(&network.model(3).expect("its own fillers"));
    let images: Vec<f32> = wave(2 * model.graph().input_shape().elements(), 131).collect();

    let plan =
        Plan::compile(&model, &Options { batch: 2, threads: 2, ..Options::default() }).expect("compiles");
    let mut deployed = vec![0.0; 2 * plan.output_len()];
    plan.session().run(&images, &mut deployed).expect("fits");

    let net = Net::new(&model).expect("builds");
    let mut dims = model.graph().input_shape().dims();
    dims.insert(0, 2);
    let tensor = Tensor::from_slice(&images, dims, &Device::Cpu).expect("fits");
    let trained = net.forward(&tensor, Mode::Eval).expect("runs").swap_remove(0);
    let trained: Vec<f32> = trained.flatten_all().and_then(|t| t.to_vec1()).expect("f32 on the CPU");

    let oracle = reference::run(&model, &images[..images.len() / 2]).expect("fits");
    let largest = oracle.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    assert!(largest > 0.0, "{name}: all outputs are zero");
    let compare = |what: &str, a: &mut dyn Iterator<Item = f64>, b: &mut dyn Iterator<Item = f64>| {
        let error = a.zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
        println!("{name}: {what}: {error:.1e} of the largest output");
        assert!(error < 1e-4, "{name}: {what} differ by {error:e}");
    };
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>().into_iter();
    compare("candle and runtime", &mut wide(&trained), &mut wide(&deployed));
    compare("candle and the oracle", &mut wide(&trained), &mut oracle.iter().copied());
}

#[test]
fn on_small_networks() {
    ["lenet", "convnet", "resnet20", "resnet20_projection"].into_iter().for_each(check);
}

#[test]
fn on_every_other_network() {
    NAMES
        .iter()
        .filter(|n| !["lenet", "convnet", "resnet20", "resnet20_projection"].contains(n))
        .for_each(|n| check(n));
}
