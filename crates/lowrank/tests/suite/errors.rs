//! Every wrong request is refused by name, and nothing is returned.

use crate::oracle::{Numbers, one_linear};
use cofilter_graph::{Array, Conv2d, Error as GraphError, Graph, Init, Model, Shape};
use cofilter_lowrank::{
    Error, RankRule, Settings, analyse, decompose, low_rank_random, projection, similarity,
};
use std::collections::BTreeMap;

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 8, 8)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(6, 3)).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { groups: 3, ..Conv2d::new(9, 3) }).unwrap();
    let x = b.conv2d("point", x, Conv2d::new(5, 1)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 10).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap()
}

fn ranks(entries: &[(&str, usize)]) -> RankRule {
    RankRule::by_name(entries.iter().copied())
}

fn refusal(settings: &Settings) -> Error {
    decompose(&model(), settings).expect_err("must be refused")
}

fn with(rule: RankRule) -> Settings {
    Settings { rule, ..Settings::default() }
}

#[test]
fn ratios_outside_zero_to_one() {
    for value in [0.0, -0.5, 1.000_001, f64::NAN, f64::INFINITY] {
        for (rule, word) in [
            (RankRule::Energy(value), "energy"),
            (RankRule::Norm(value), "norm"),
            (RankRule::Ratio(value), "rank"),
        ] {
            let error = refusal(&with(rule));
            assert!(matches!(error, Error::Ratio { what, .. } if what == word), "{error}");
            assert!(error.to_string().contains(&value.to_string()), "{error}");
        }
        assert!(matches!(analyse(&model(), value), Err(Error::Ratio { .. })));
    }
}

#[test]
fn names() {
    for settings in
        [with(ranks(&[("conv9", 2)])), Settings { exclude: vec!["conv9".into()], ..Settings::default() }]
    {
        let message = refusal(&settings).to_string();
        assert!(message.contains("conv9") && message.contains("conv1, conv2, point, fc"), "{message}");
    }
    for settings in
        [with(ranks(&[("relu1", 2)])), Settings { exclude: vec!["relu1".into()], ..Settings::default() }]
    {
        assert!(matches!(refusal(&settings), Error::NotALayer { kind: "relu", .. }));
    }
}

#[test]
fn ranks_out_of_range() {
    for (name, rank, largest) in [("conv1", 0, 6), ("conv1", 7, 6), ("conv2", 10, 9), ("conv2", 0, 9)] {
        let error = refusal(&with(ranks(&[(name, rank)])));
        assert!(
            matches!(&error, Error::Rank { layer, rank: r, full } if layer == name && *r == rank && *full == largest),
            "{error}"
        );
    }
    let error = refusal(&with(ranks(&[("conv2", 2)])));
    assert!(matches!(error, Error::RankBelowGroups { rank: 2, groups: 3, .. }), "{error}");
    assert!(decompose(&model(), &with(ranks(&[("conv1", 6), ("conv2", 9)]))).is_ok());
    assert!(decompose(&model(), &with(ranks(&[("conv1", 1), ("conv2", 3)]))).is_ok());
}

#[test]
fn ranks_for_layers_that_are_left_alone() {
    let excluded = Settings { exclude: vec!["conv1".into()], ..with(ranks(&[("conv1", 2)])) };
    for (settings, word) in [
        (excluded, "exclude"),
        (with(ranks(&[("point", 2)])), "pointwise"),
        (with(ranks(&[("fc", 2)])), "linear"),
    ] {
        let error = refusal(&settings);
        assert!(matches!(error, Error::NotSelected { .. }) && error.to_string().contains(word), "{error}");
    }
    let all = Settings { linear: true, pointwise: true, ..with(ranks(&[("point", 2), ("fc", 2)])) };
    assert_eq!(decompose(&model(), &all).unwrap().1.layers.len(), 2);
}

#[test]
fn weights_that_are_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let model = model();
        let id = model.graph().find("conv2").unwrap();
        for slot in 0..2 {
            let mut params = model.params().clone();
            let array = &mut params.get_mut(id)[slot];
            let mut data = array.data().to_vec();
            data[3] = bad;
            *array = Array::new(array.dims().to_vec(), data);
            let broken = model.with_params(params).unwrap();
            let expected = ["conv2.weight", "conv2.bias"][slot];
            let only = BTreeMap::from([("conv2".to_owned(), 3)]);
            for error in [
                decompose(&broken, &Settings::default()).unwrap_err(),
                analyse(&broken, 0.95).unwrap_err(),
                low_rank_random(&broken, &only).unwrap_err(),
                similarity(&broken, "conv2").unwrap_err(),
                projection(&broken, "conv2", 4).unwrap_err(),
            ] {
                let named = matches!(&error, Error::Graph(GraphError::NotFinite { tensor, index: 3, .. }) if tensor == expected);
                assert!(named, "{error}");
            }
            // A layer that is not touched is not read.
            assert!(decompose(&broken, &with(ranks(&[("conv1", 2)]))).is_ok());
        }
    }
}

#[test]
fn a_name_that_is_taken() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.relu("conv_lowrank", x).unwrap();
    let x = b.conv2d("conv", x, Conv2d::new(4, 3)).unwrap();
    let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 1).unwrap();
    let error = decompose(&model, &with(RankRule::Full)).unwrap_err();
    assert!(matches!(&error, Error::Graph(GraphError::Name(name)) if name == "conv_lowrank"), "{error}");
}

#[test]
fn projection_checks_its_ranks() {
    let only = |name: &str, rank| BTreeMap::from([(name.to_owned(), rank)]);
    assert!(matches!(low_rank_random(&model(), &only("conv1", 0)), Err(Error::Rank { .. })));
    assert!(matches!(low_rank_random(&model(), &only("conv1", 7)), Err(Error::Rank { .. })));
    assert!(matches!(low_rank_random(&model(), &only("conv2", 1)), Err(Error::RankBelowGroups { .. })));
    assert!(matches!(low_rank_random(&model(), &only("nope", 1)), Err(Error::UnknownLayer { .. })));
}

#[test]
fn filters_of_what_is_no_layer() {
    let both =
        |name: &str| [similarity(&model(), name).unwrap_err(), projection(&model(), name, 4).unwrap_err()];
    for error in both("conv9") {
        let message = error.to_string();
        assert!(matches!(error, Error::UnknownLayer { .. }), "{message}");
        assert!(message.contains("conv9") && message.contains("conv1, conv2, point, fc"), "{message}");
    }
    for error in both("relu1") {
        assert!(matches!(error, Error::NotALayer { kind: "relu", .. }), "{error}");
    }
    let error = projection(&model(), "conv1", 0).unwrap_err();
    assert!(matches!(&error, Error::Clusters { layer } if layer == "conv1"), "{error}");
}

#[test]
fn settings_are_plain_data() {
    let settings = Settings { rule: ranks(&[("conv1", 2)]), linear: true, ..Settings::default() };
    let text = serde_json::to_string(&settings).unwrap();
    assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
    let short: Settings = serde_json::from_str(r#"{"method": "svd", "rule": {"norm": 0.9}}"#).unwrap();
    assert_eq!(short.rule, RankRule::Norm(0.9));
    assert!(serde_json::from_str::<Settings>(r#"{"methd": "svd"}"#).is_err());
    let (_, report) = decompose(
        &one_linear(Numbers::new(2).array(&[4, 6]), None),
        &Settings { linear: true, ..Settings::default() },
    )
    .unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<cofilter_lowrank::Report>(&text).unwrap(), report);
}
