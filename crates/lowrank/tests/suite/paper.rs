//! The ranks of the paper on its networks (`fixtures/paper`).

use cofilter_graph::Model;
use cofilter_lowrank::{Rank, RankRule, Report, Settings, decompose, theoretical_speedup};
use cofilter_zoo::{Config, Network};
use serde_json::Value;
use std::path::Path;

fn table(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/paper").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap()
}

fn at_ranks(model: &Model, layers: &[Value], ranks: &[Value]) -> Report {
    assert_eq!(layers.len(), ranks.len());
    let entry = |(l, r): (&Value, &Value)| (l.as_str().unwrap().to_owned(), r.as_u64().unwrap() as usize);
    let rule = RankRule::by_name(layers.iter().zip(ranks).map(entry));
    decompose(model, &Settings { rule, ..Settings::default() }).unwrap().1
}

#[test]
fn table_4_theoretical_speedups_of_alexnet() {
    let table = table("table4.json");
    let model = Network::by_name("bvlc_alexnet", &Config::default()).unwrap().model(5).unwrap();
    for row in list(&table, "rows") {
        let report = at_ranks(&model, list(&table, "layers"), list(row, "ranks"));
        assert_eq!(report.layers.len(), 3);
        for (layer, paper) in report.layers.iter().zip(list(row, "theoretical_speedup")) {
            let Some(Rank::One(rank)) = layer.requested_rank else { panic!("a rank was asked for") };
            let speedup = theoretical_speedup(layer.filters, layer.filter_len, layer.groups, rank);
            assert_eq!(format!("{speedup:.2}"), format!("{:.2}", paper.as_f64().unwrap()), "{}", layer.name);
            // An odd total of two groups becomes even, as in the authors' program.
            assert_eq!(layer.rank, rank / layer.groups * layer.groups);
            assert!((layer.theoretical_speedup / speedup - rank as f64 / layer.rank as f64).abs() < 1e-12);
        }
    }
}

#[test]
fn figure_5_operations_of_resnet_20() {
    let figure = table("figure5.json");
    let model = Network::by_name("resnet20_projection", &Config::default()).unwrap().model(5).unwrap();
    let speedups = list(&figure["derived"], "theoretical_speedup");
    for (row, expected) in list(&figure, "rows").iter().zip(speedups) {
        let report = at_ranks(&model, list(&figure, "layers"), list(row, "ranks"));
        let full: Vec<u64> = report.layers.iter().map(|l| l.full_rank as u64).collect();
        assert_eq!(full, list(&figure, "full").iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>());
        let before: usize = report.layers.iter().map(|l| l.macs_before).sum();
        let after: usize = report.layers.iter().map(|l| l.macs_after).sum();
        assert_eq!(format!("{:.2}", before as f64 / 1e6), figure["derived"]["macs_millions"].to_string());
        assert_eq!(format!("{:.2}", before as f64 / after as f64), expected.to_string());
    }
}
