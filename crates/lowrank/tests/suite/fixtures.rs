//! The authors' formulas, computed by NumPy (`fixtures/lowrank/make.py`).

use crate::oracle::{doubles, one_conv, one_linear, relative, tensor};
use cofilter_graph::{Array, Conv2d, Model, Shape};
use cofilter_lowrank::{Method, RankRule, Settings, analyse, decompose, recompose};
use safetensors::SafeTensors;
use std::path::PathBuf;

struct Case {
    name: String,
    model: Model,
    layer: &'static str,
    groups: usize,
    group_rank: usize,
    singular_values: Vec<Vec<f64>>,
    energy_ranks: Vec<usize>,
    norm_ranks: Vec<usize>,
    reconstruction: Vec<f64>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/lowrank")
}

fn words(file: &SafeTensors<'_>, name: &str) -> Vec<[u8; 8]> {
    file.tensor(name).unwrap().data().chunks_exact(8).map(|b| b.try_into().unwrap()).collect()
}

fn reals(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    words(file, name).into_iter().map(f64::from_le_bytes).collect()
}

fn counts(file: &SafeTensors<'_>, name: &str) -> Vec<usize> {
    words(file, name).into_iter().map(|b| i64::from_le_bytes(b) as usize).collect()
}

fn cases() -> Vec<Case> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 4, "{} cases in {}", paths.len(), folder().display());
    paths.iter().map(|path| read(&std::fs::read(path).unwrap())).collect()
}

fn read(bytes: &[u8]) -> Case {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(bytes).unwrap();
    let dims = file.tensor("weight").unwrap().shape().to_vec();
    let numbers: Vec<f32> = reals(&file, "weight").into_iter().map(|v| v as f32).collect();
    let weight = Array::new(dims.clone(), numbers);
    let groups: usize = metadata["groups"].parse().unwrap();
    let (model, layer) = match dims.as_slice() {
        [n, c, h, w] => {
            let conv = Conv2d { kernel: [*h, *w], groups, ..Conv2d::new(*n, 1) };
            (one_conv(Shape::map(c * groups, 6, 6), &conv, weight, None), "conv")
        }
        _ => (one_linear(weight, None), "fc"),
    };
    let values = reals(&file, "singular_values");
    Case {
        name: metadata["case"].clone(),
        model,
        layer,
        groups,
        group_rank: metadata["rank"].parse().unwrap(),
        singular_values: values.chunks_exact(values.len() / groups).map(<[f64]>::to_vec).collect(),
        energy_ranks: counts(&file, "rank.energy"),
        norm_ranks: counts(&file, "rank.norm"),
        reconstruction: reals(&file, "reconstruction"),
    }
}

#[test]
fn singular_values_and_ranks() {
    for case in cases() {
        let analysis = analyse(&case.model, 0.95).unwrap().remove(0);
        assert_eq!(analysis.group_ranks, case.energy_ranks, "{}", case.name);
        let norm_ranks: Vec<usize> = analysis.group_spectra.iter().map(|s| s.rank_at_norm(0.95)).collect();
        assert_eq!(norm_ranks, case.norm_ranks, "{}", case.name);
        for (spectrum, expected) in analysis.group_spectra.iter().zip(&case.singular_values) {
            let found: Vec<f64> = spectrum.normalised.iter().map(|s| (s * spectrum.total).sqrt()).collect();
            assert_eq!(found.len(), expected.len(), "{}", case.name);
            for (m, (found, expected_value)) in found.iter().zip(expected).enumerate() {
                let off = (found - expected_value).abs() / expected[0];
                assert!(off < 1e-7, "{}, value {m}: {found}, NumPy {expected_value}", case.name);
            }
        }
    }
}

#[test]
fn both_rules_choose_the_largest_group_rank() {
    for case in cases() {
        for (rule, ranks) in
            [(RankRule::Energy(0.95), &case.energy_ranks), (RankRule::Norm(0.95), &case.norm_ranks)]
        {
            let settings = Settings { rule, linear: true, grow: true, ..Settings::default() };
            let (_, report) = decompose(&case.model, &settings).unwrap();
            assert_eq!(report.layers[0].rank, case.groups * ranks.iter().max().unwrap(), "{}", case.name);
        }
    }
}

#[test]
fn reconstructions() {
    for case in cases() {
        for method in [Method::Pca, Method::Svd] {
            let rule = RankRule::by_name([(case.layer, case.groups * case.group_rank)]);
            let (pair, _) =
                decompose(&case.model, &Settings { method, rule, linear: true, ..Settings::default() })
                    .unwrap();
            let product = recompose(&pair).unwrap();
            let found = tensor(&product, case.layer, 0);
            let error = relative(case.reconstruction.iter().copied(), doubles(found));
            assert!(error < 1e-6, "{}, {method:?}: {error}", case.name);
            let changed =
                relative(case.reconstruction.iter().copied(), doubles(tensor(&case.model, case.layer, 0)));
            assert!(changed > 1e-3, "{}: the case cuts something off", case.name);
        }
    }
}
