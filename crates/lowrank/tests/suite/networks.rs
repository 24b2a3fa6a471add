//! Whole networks of the zoo.

use cofilter_graph::{Model, Op};
use cofilter_lowrank::{RankRule, Settings, analyse, decompose, recompose};
use cofilter_zoo::{Config, Network};

fn network(name: &str) -> (Model, Network) {
    let network = Network::by_name(name, &Config::default()).unwrap();
    (network.model(5).unwrap(), network)
}

#[test]
fn reported_costs_are_those_of_the_new_network() {
    for name in ["lenet", "convnet", "resnet20_projection"] {
        let (dense, network) = network(name);
        let settings =
            Settings { exclude: network.exclude.clone(), linear: true, grow: true, ..Settings::default() };
        let (small, report) = decompose(&dense, &settings).unwrap();
        let (before, after) = (dense.cost(), small.cost());
        let cost = |of: &cofilter_graph::Cost, name: &str| {
            let node = of.nodes().iter().find(|n| n.name == name).unwrap();
            (node.params, node.macs)
        };
        assert!(!report.layers.is_empty());
        for layer in &report.layers {
            assert_eq!(
                cost(&before, &layer.name),
                (layer.params_before, layer.macs_before),
                "{}",
                layer.name
            );
            let (basis, combination) = (
                cost(&after, &format!("{}_lowrank", layer.name)),
                cost(&after, &format!("{}_linear", layer.name)),
            );
            assert_eq!(basis.0 + combination.0, layer.params_after, "{}", layer.name);
            assert_eq!(basis.1 + combination.1, layer.macs_after, "{}", layer.name);
            let speedup = layer.macs_before as f64 / layer.macs_after as f64;
            assert!((speedup - layer.theoretical_speedup).abs() < 1e-12, "{}", layer.name);
            assert!((layer.break_even_rank.unwrap() / layer.rank as f64 - speedup).abs() < 1e-12);
        }
        assert_eq!((report.params_before, report.params_after), (before.params(), after.params()));
        assert_eq!((report.macs_before, report.macs_after), (before.macs(), after.macs()));
        for excluded in &network.exclude {
            assert!(small.graph().find(excluded).is_ok() && !report.ranks().contains_key(excluded));
        }
        assert_eq!(small.graph().output_shape(), dense.graph().output_shape());
        assert_eq!(recompose(&small).unwrap().graph(), dense.graph());
        let ranks = RankRule::Ranks(report.ranks());
        assert_eq!(decompose(&dense, &Settings { rule: ranks, ..settings }).unwrap().0, small);
    }
}

#[test]
fn analysis_and_energy_rule_agree_without_groups() {
    let (dense, _) = network("resnet20");
    let analysis = analyse(&dense, 0.95).unwrap();
    let layers =
        dense.graph().nodes().iter().filter(|n| matches!(n.op(), Op::Conv2d(_) | Op::Linear(_))).count();
    assert_eq!(analysis.len(), layers);
    let settings = Settings { linear: true, pointwise: true, grow: true, ..Settings::default() };
    let (_, report) = decompose(&dense, &settings).unwrap();
    for (a, layer) in analysis.iter().zip(&report.layers) {
        assert_eq!((&a.name, a.rank, a.whole_rank), (&layer.name, layer.rank, layer.rank));
        assert!((a.whole.energy(a.rank) - layer.energy).abs() < 1e-12);
    }
}
