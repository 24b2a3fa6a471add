//! Density and compression.

use crate::build::{drawn, edit, kill_filters};
use cofilter_graph::{Conv2d, Graph, Model, Shape};
use cofilter_lowrank::{RankRule, Settings, decompose};
use cofilter_sparsity::{Error, Removal, compact, compression, density};

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 6, 6)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { groups: 2, ..Conv2d::new(6, 3) }).unwrap();
    let x = b.conv2d("conv2", x, Conv2d::new(8, 3)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 3).unwrap();
    drawn(b.finish(&[x]).unwrap(), 1)
}

#[test]
fn rows_columns_and_elements_are_counted() {
    let model = kill_filters(&model(), "conv1", &[1]);
    // One position of the second group is zero in all its three filters, another in two of them.
    let model = edit(&model, "conv1.weight", |i, v| match i {
        [3..=5, 0, 0, 2] | [3..=4, 1, 2, 2] => 0.0,
        _ => v,
    });
    let layers = density(&model);
    let conv1 = &layers[0];
    assert_eq!((conv1.name.as_str(), conv1.weights, conv1.nonzeros), ("conv1", 108, 108 - 18 - 3 - 2));
    assert_eq!((conv1.filters, conv1.zero_filters, conv1.columns, conv1.zero_columns), (6, 1, 36, 1));
    assert!((conv1.density - 85.0 / 108.0).abs() < 1e-15);
    let speedup = 1.0 / ((35.0 / 36.0) * (5.0 / 6.0));
    assert!((conv1.structured_speedup.unwrap() - speedup).abs() < 1e-12);
    assert_eq!((layers.len(), layers[2].density, layers[2].structured_speedup), (3, 1.0, Some(1.0)));
    let dead = density(&kill_filters(&model, "fc", &[0, 1, 2]));
    assert_eq!((dead[2].density, dead[2].structured_speedup), (0.0, None));
}

#[test]
fn compression_is_counted_against_the_original() {
    let dense = model();
    let rule = RankRule::by_name([("conv2", 3)]);
    let (low, _) = decompose(&dense, &Settings { rule, ..Settings::default() }).unwrap();
    let rates = compression(&dense, &low).unwrap();
    let rate = |name: &str, r: &cofilter_sparsity::Compression| {
        r.layers.iter().find(|l| l.name == name).unwrap().rate.unwrap()
    };
    let pair = 3.0 * (54.0 + 8.0);
    assert!((rate("conv2", &rates) - 432.0 / pair).abs() < 1e-12);
    assert_eq!(rate("conv1", &rates), 1.0);
    let fc = 3.0 * 8.0 * 4.0;
    assert!((rates.total.unwrap() - (108.0 + 432.0 + fc) / (108.0 + pair + fc)).abs() < 1e-12);

    // Half the basis becomes zero: stored or taken out, the rate is the same where no weight is left that reads it.
    let sparse = kill_filters(&low, "conv2_lowrank", &[0]);
    let stored = compression(&dense, &sparse).unwrap();
    assert!((rate("conv2", &stored) - 432.0 / (2.0 * 54.0 + 3.0 * 8.0)).abs() < 1e-12);
    let (small, removals) = compact(&sparse).unwrap();
    let taken_out = compression(&dense, &small).unwrap();
    assert!((rate("conv2", &taken_out) - 432.0 / (2.0 * (54.0 + 8.0))).abs() < 1e-12);
    assert_eq!(
        removals.iter().map(|r| r.layer.as_str()).collect::<Vec<_>>(),
        ["conv2_lowrank", "conv2_linear"]
    );

    assert!(
        matches!(compression(&low, &dense), Err(Error::MissingLayer { layer }) if layer == "conv2_lowrank")
    );
    // A block that is gone has nothing left.
    let mut b = Graph::builder();
    let x = b.input("data", dense.graph().input_shape()).unwrap();
    let x = b.relu("relu", x).unwrap();
    let gone = drawn(b.finish(&[x]).unwrap(), 1);
    assert!(compression(&dense, &gone).unwrap().layers.iter().all(|layer| layer.rate.is_none()));
    let nothing = kill_filters(&dense, "conv1", &[0, 1, 2, 3, 4, 5]);
    assert_eq!(compression(&dense, &nothing).unwrap().layers[0].rate, None);
}

#[test]
fn reports_are_plain_data() {
    let model = kill_filters(&model(), "conv2", &[1]);
    let (_, removals) = compact(&model).unwrap();
    let text = serde_json::to_string(&removals).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Removal>>(&text).unwrap(), removals);
    assert!(serde_json::to_string(&density(&model)).unwrap().contains("zero_filters"));
    assert!(serde_json::to_string(&compression(&model, &model).unwrap()).unwrap().contains("\"total\":"));
}
