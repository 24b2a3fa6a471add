//! Random masks over every network of the zoo, on small images.

use crate::build::{Numbers, assert_same_outputs};
use cofilter_graph::{Array, Filler, Init, Model, Op, Role, Shape};
use cofilter_sparsity::compact;
use cofilter_zoo::{Config, NAMES, by_name};

/// Smallest square image the network takes, of those tried.
fn smallest(name: &str) -> Model {
    let channels = if name == "lenet" { 1 } else { 3 };
    for extent in [13, 16, 24, 32, 48, 63, 64, 67, 96, 128, 224] {
        let config = Config { input: Some(Shape::map(channels, extent, extent)), ..Config::default() };
        if let Ok(graph) = by_name(name, &config) {
            let init = Init { bias: Filler::Gaussian(0.1), ..Init::default() };
            return Model::init(graph, &init, 17).unwrap();
        }
    }
    panic!("{name} takes none of the sizes tried");
}

/// Whether channel `c` of every layer with this many channels is zero: agreed, so that sums can drop it.
fn agreed(channels: usize, channel: usize) -> bool {
    Numbers::new((channels * 7919 + channel) as u64 + 1).next() < 0.15 && channel > 0
}

/// Zero filters with their bias, zero input channels, single zeros; batch normalisations with statistics, some of
/// whose channels are zero for any input.
fn masked(model: &Model) -> Model {
    let graph = model.graph();
    let outputs = graph.outputs().to_vec();
    let params = model.params().map(|id, slot, array| {
        let node = graph.node(id);
        let channels = node.shape().channels();
        let name = graph.tensor_name(id, slot);
        let mut numbers = Numbers::new(name.bytes().fold(1, |h, b| h * 31 % 1_000_003 + u64::from(b)));
        let mut rows = Numbers::new(id.index() as u64 + 1);
        let dead: Vec<bool> = (0..channels)
            .map(|c| {
                let alone = rows.next() < 0.2;
                !outputs.contains(&id) && (alone || agreed(channels, c))
            })
            .collect();
        let batch_norm = matches!(node.op(), Op::BatchNorm(_));
        let row = array.data().len() / channels;
        let inputs = array.dims().get(1).copied().unwrap_or(1);
        let area = row / inputs.max(1);
        let unread: Vec<bool> = (0..inputs).map(|c| inputs > 1 && agreed(inputs + 1, c)).collect();
        let mean = graph.slots(id)[slot].name == "running_mean";
        let role = graph.slots(id)[slot].role;
        let value = |(i, v): (usize, &f32)| {
            let drawn = numbers.next() as f32;
            match (role, batch_norm, dead[i / row]) {
                (Role::Statistic, _, _) if mean => 0.2 * (drawn - 0.5),
                (Role::Statistic, _, _) => 0.5 + drawn,
                (_, true, true) => 0.0,
                (_, true, false) => v + 0.3 * drawn,
                (_, false, true) => 0.0,
                (Role::Weight, false, false) if unread[i % row / area] || drawn < 0.1 => 0.0,
                (_, false, false) => *v,
            }
        };
        Array::new(array.dims().to_vec(), array.data().iter().enumerate().map(value).collect::<Vec<_>>())
    });
    model.with_params(params).unwrap()
}

fn check(name: &str) {
    let dense = smallest(name);
    assert_eq!(compact(&dense).unwrap().0, dense, "{name}: nothing to take out");
    let sparse = masked(&dense);
    let (small, removals) = compact(&sparse).unwrap();
    assert_same_outputs(name, &sparse, &small);
    let (before, after) = (sparse.cost(), small.cost());
    assert!(after.macs() * 10 < before.macs() * 9, "{name}: {} of {} MACs left", after.macs(), before.macs());
    assert!(!removals.is_empty());
    let removed: usize = removals.iter().map(|r| r.params_before - r.params_after).sum();
    assert!(removed > 0 && removed <= before.params() - after.params(), "{name}");
    let (again, nothing) = compact(&small).unwrap();
    assert!(nothing.is_empty() && again == small, "{name}: one call reaches the fixed point");
}

/// The others of a family differ in depth only.
const DEEP: [&str; 8] = [
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet32_projection",
    "resnet44_projection",
    "resnet56_projection",
    "resnet110_projection",
];

#[test]
fn outputs_of_every_network_are_unchanged() {
    for name in NAMES.iter().filter(|name| !DEEP.contains(name)) {
        check(name);
    }
}
