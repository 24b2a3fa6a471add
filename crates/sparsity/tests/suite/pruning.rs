//! Global magnitude pruning.

use crate::build::{drawn, edit};
use cofilter_graph::{BatchNorm, Conv2d, Graph, Model, Shape};
use cofilter_sparsity::{
    Error, Grouping, Groups, Pattern, Pruning, Scope, apply, compact, density, prune_magnitude, silence,
};

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("conv", x, Conv2d::new(4, 3)).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 5).unwrap();
    drawn(b.finish(&[x]).unwrap(), 1)
}

const WEIGHTS: usize = 72 + 5 * 36;

fn at(sparsity: f64, exclude: &[&str]) -> Pruning {
    Pruning { sparsity, exclude: exclude.iter().map(|s| (*s).to_owned()).collect(), ..Pruning::default() }
}

fn weights<'a>(model: &'a Model, layer: &str) -> &'a [f32] {
    model.tensors(model.graph().find(layer).unwrap())[0].data()
}

fn zeros(model: &Model) -> usize {
    density(model).iter().map(|l| l.weights - l.nonzeros).sum()
}

#[test]
fn the_smallest_of_all_layers_go() {
    let model = model();
    for sparsity in [0.0, 0.001, 0.3, 0.77, 0.999] {
        let (sparse, masks) = prune_magnitude(&model, &at(sparsity, &[])).unwrap();
        let wanted = (sparsity * WEIGHTS as f64).round() as usize;
        assert_eq!(zeros(&sparse), wanted, "{sparsity}");
        let pairs =
            || ["conv", "fc"].into_iter().flat_map(|l| weights(&model, l).iter().zip(weights(&sparse, l)));
        let largest_gone = pairs().filter(|(_, a)| **a == 0.0).map(|(b, _)| b.abs()).fold(0.0, f32::max);
        let smallest_kept =
            pairs().filter(|(_, a)| **a != 0.0).map(|(b, _)| b.abs()).fold(f32::MAX, f32::min);
        assert!(largest_gone <= smallest_kept, "{sparsity}: {largest_gone} gone, {smallest_kept} kept");
        assert!(pairs().all(|(b, a)| *a == 0.0 || a == b));
        assert_eq!(apply(&model, &masks).unwrap(), sparse);
        for (id, slot, array) in model.params().iter().filter(|(_, slot, _)| *slot > 0) {
            assert_eq!(*array, sparse.tensors(id)[slot], "biases and statistics stay");
        }
    }
}

#[test]
fn excluded_layers_neither_change_nor_count() {
    let model = model();
    let (sparse, _) = prune_magnitude(&model, &at(0.5, &["fc"])).unwrap();
    assert_eq!(weights(&model, "fc"), weights(&sparse, "fc"));
    assert_eq!(zeros(&sparse), 36);
    let (none, masks) = prune_magnitude(&model, &at(0.5, &["fc", "conv"])).unwrap();
    assert_eq!(none, model);
    assert!(masks.iter().all(|(_, _, m)| m.data().iter().all(|v| *v == 1.0)));
}

#[test]
fn equal_magnitudes_go_in_graph_order() {
    let model = edit(
        &edit(&model(), "conv.weight", |i, _| if i[3] == 1 { -0.5 } else { 0.5 }),
        "fc.weight",
        |_, _| 0.5,
    );
    let (sparse, _) = prune_magnitude(&model, &at(10.0 / WEIGHTS as f64, &[])).unwrap();
    assert!(weights(&sparse, "conv")[..10].iter().all(|w| *w == 0.0));
    assert!(weights(&sparse, "conv")[10..].iter().chain(weights(&sparse, "fc")).all(|w| w.abs() == 0.5));
    let (sparse, _) = prune_magnitude(&model, &at(75.0 / WEIGHTS as f64, &[])).unwrap();
    assert!(weights(&sparse, "conv").iter().chain(&weights(&sparse, "fc")[..3]).all(|w| *w == 0.0));
    assert!(weights(&sparse, "fc")[3..].iter().all(|w| *w == 0.5));
}

#[test]
fn zeros_that_are_there_count_first_and_are_masked() {
    let model = edit(&model(), "fc.weight", |i, v| if i[0] == 0 { -0.0 } else { v });
    let (sparse, masks) = prune_magnitude(&model, &at(0.05, &[])).unwrap();
    // 36 are more than the 13 asked for.
    assert_eq!(zeros(&sparse), 36);
    let mask = &masks.get(model.graph().find("fc").unwrap())[0];
    assert_eq!(mask.data().iter().filter(|m| **m == 0.0).count(), 36);
    assert!(weights(&sparse, "fc")[..36].iter().all(|w| w.to_bits() == 0));
    let (sparse, _) = prune_magnitude(&model, &at(0.5, &[])).unwrap();
    assert_eq!(zeros(&sparse), WEIGHTS / 2);
}

#[test]
fn wrong_requests_are_refused() {
    for sparsity in [-0.1, 1.0, 1.5, f64::NAN] {
        assert!(matches!(prune_magnitude(&model(), &at(sparsity, &[])), Err(Error::Sparsity(_))));
    }
    for name in ["nope", "bn"] {
        let error = prune_magnitude(&model(), &at(0.5, &[name])).unwrap_err();
        assert!(error.to_string().contains(name) && error.to_string().contains("conv, fc"), "{error}");
    }
    let broken = edit(&model(), "conv.weight", |i, v| if i == [0, 0, 0, 0] { f32::INFINITY } else { v });
    assert!(matches!(prune_magnitude(&broken, &at(0.5, &[])), Err(Error::Graph(_))));
}

#[test]
fn layers_can_be_pruned_alone_and_by_fractions_of_their_own() {
    let model = model();
    let of =
        |sparse: &Model| -> Vec<usize> { density(sparse).iter().map(|l| l.weights - l.nonzeros).collect() };
    let each = Pruning { scope: Scope::Layer, ..at(0.5, &[]) };
    assert_eq!(of(&prune_magnitude(&model, &each).unwrap().0), [36, 90]);
    let own = Pruning { layers: [("conv".to_owned(), 0.25)].into(), ..each.clone() };
    assert_eq!(of(&prune_magnitude(&model, &own).unwrap().0), [18, 90]);
    let own = Pruning { scope: Scope::Network, ..own };
    assert_eq!(of(&prune_magnitude(&model, &own).unwrap().0), [18, 90]);
    let error =
        prune_magnitude(&model, &Pruning { layers: [("con".to_owned(), 0.1)].into(), ..own }).unwrap_err();
    assert!(error.to_string().contains("`con`"), "{error}");
}

#[test]
fn groups_go_by_the_root_of_their_mean_square_and_never_more_than_asked_for() {
    let model = model();
    for (grouping, sizes) in [
        (Grouping::Filters, [18, 36]),
        (Grouping::Columns, [4, 5]),
        (Grouping::Channels, [36, 5]),
        (Grouping::Blocks { rows: 1, columns: 4 }, [4, 4]),
    ] {
        for sparsity in [0.1, 0.4, 0.8] {
            let pruning = Pruning { pattern: Pattern::Groups(grouping), ..at(sparsity, &[]) };
            let (sparse, masks) = prune_magnitude(&model, &pruning).unwrap();
            assert_eq!(apply(&model, &masks).unwrap(), sparse);
            let wanted = (sparsity * WEIGHTS as f64).round() as usize;
            let most = sizes[0].max(sizes[1]);
            assert!(zeros(&sparse) <= wanted && zeros(&sparse) + most > wanted, "{grouping:?} {sparsity}");
            // Every group whole or gone, and none that is gone larger than one that stays.
            let (mut gone, mut stays) = (0.0f64, f64::MAX);
            for layer in ["conv", "fc"] {
                let id = model.graph().find(layer).unwrap();
                let groups = Groups::of_node(model.graph(), id, grouping).unwrap();
                let scores = groups.norms(weights(&model, layer)).into_iter().zip(groups.sizes());
                for ((score, size), left) in scores.zip(groups.norms(weights(&sparse, layer))) {
                    let mean = score / (size as f64).sqrt();
                    assert!(left == 0.0 || left == score);
                    if left == 0.0 { gone = gone.max(mean) } else { stays = stays.min(mean) }
                }
            }
            assert!(gone <= stays, "{grouping:?} {sparsity}: {gone}, {stays}");
        }
    }
}

#[test]
fn of_m_channels_the_n_largest_stay() {
    let model = model();
    let pruning = Pruning { pattern: Pattern::NOfM { n: 2, m: 4 }, ..Pruning::default() };
    let (sparse, _) = prune_magnitude(&model, &pruning).unwrap();
    // The convolution reads two channels, all of which stay; the other layer 36, two of four.
    assert_eq!(weights(&sparse, "conv"), weights(&model, "conv"));
    for (before, after) in weights(&model, "fc").chunks(4).zip(weights(&sparse, "fc").chunks(4)) {
        let mut order: Vec<f32> = before.iter().map(|w| w.abs()).collect();
        order.sort_by(f32::total_cmp);
        let expected: Vec<f32> = before.iter().map(|w| if w.abs() >= order[2] { *w } else { 0.0 }).collect();
        assert_eq!(after, expected);
    }
    // One of two channels at each place of the kernel.
    let (sparse, _) =
        prune_magnitude(&model, &Pruning { pattern: Pattern::NOfM { n: 1, m: 2 }, ..Pruning::default() })
            .unwrap();
    for (before, after) in weights(&model, "conv").chunks(18).zip(weights(&sparse, "conv").chunks(18)) {
        for place in 0..9 {
            let first = before[place].abs() >= before[9 + place].abs();
            let expected = if first { [before[place], 0.0] } else { [0.0, before[9 + place]] };
            assert_eq!([after[place], after[9 + place]], expected);
        }
    }
}

#[test]
fn patterns_that_make_no_sense_are_refused() {
    let pattern = |pattern| Pruning { pattern, ..Pruning::default() };
    for (pruning, expected) in [
        (pattern(Pattern::NOfM { n: 0, m: 4 }), "found 0"),
        (pattern(Pattern::NOfM { n: 5, m: 4 }), "found 5"),
        (Pruning { sparsity: 0.5, ..pattern(Pattern::NOfM { n: 2, m: 4 }) }, "makes no sense"),
        (pattern(Pattern::Groups(Grouping::Blocks { rows: 0, columns: 4 })), "0 x 4"),
    ] {
        let error = prune_magnitude(&model(), &pruning).unwrap_err();
        assert!(matches!(error, Error::Pattern(_)) && error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn pruned_filters_leave_nothing_that_keeps_them() {
    let mut b = Graph::builder();
    let padded = |filters| Conv2d { padding: [1, 1], ..Conv2d::new(filters, 3) };
    let x = b.input("data", Shape::map(3, 6, 6)).unwrap();
    let x = b.conv2d("stem", x, padded(8)).unwrap();
    let y = b.conv2d("inner", x, padded(12)).unwrap();
    let y = b.batch_norm("norm", y, BatchNorm::default()).unwrap();
    let y = b.relu("relu", y).unwrap();
    let y = b.conv2d("outer", y, padded(8)).unwrap();
    let y = b.batch_norm("outer_norm", y, BatchNorm::default()).unwrap();
    let x = b.sum("sum", &[x, y]).unwrap();
    let model = drawn(b.finish(&[x]).unwrap(), 7);
    let model = edit(&model, "norm.bias", |i, _| 0.5 + i[0] as f32);
    let model = edit(&model, "outer_norm.bias", |i, _| 0.5 + i[0] as f32);
    let pruning = Pruning {
        sparsity: 0.5,
        scope: Scope::Layer,
        pattern: Pattern::Groups(Grouping::Filters),
        ..Pruning::default()
    };
    let (sparse, masks) = prune_magnitude(&model, &pruning).unwrap();
    assert_eq!(apply(&model, &masks).unwrap(), sparse);
    let (small, _) = compact(&sparse).unwrap();
    let filters = |model: &Model, layer: &str| model.tensors(model.graph().find(layer).unwrap())[0].dims()[0];
    assert_eq!(filters(&small, "inner"), 6, "a scale and a shift would have kept the others");
    assert_eq!(filters(&small, "outer"), 8, "the sum keeps them");
    let tensor = |model: &Model, node: &str, slot: usize| {
        model.tensors(model.graph().find(node).unwrap())[slot].data().to_vec()
    };
    // What ends in the sum keeps its numbers.
    assert_eq!(tensor(&sparse, "outer_norm", 1), tensor(&model, "outer_norm", 1));
    assert_ne!(tensor(&sparse, "norm", 1), tensor(&model, "norm", 1));
    let image: Vec<f32> = (0..108).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let run = |model| cofilter_runtime::reference::run(model, &image).unwrap();
    for (a, b) in run(&sparse).iter().zip(run(&small)) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }
    // Alone it does the same to filters that became zero in another way.
    let weights = |model: &Model| silence(&with_weights_of(model, &sparse)).unwrap();
    assert_eq!(weights(&model), sparse);
}

/// A network with the weights of layers of another one.
fn with_weights_of(model: &Model, other: &Model) -> Model {
    let params = model.params().map(|id, slot, array| {
        let layer = density(other).iter().any(|layer| layer.name == model.graph().node(id).name());
        if layer && slot == 0 { other.tensors(id)[0].clone() } else { array.clone() }
    });
    model.with_params(params).unwrap()
}

#[test]
fn biases_of_outputs_and_of_layers_that_are_not_pruned_stay() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("first", x, Conv2d::new(4, 3)).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.conv2d("second", x, Conv2d::new(4, 3)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let model = drawn(b.finish(&[x]).unwrap(), 3);
    let zero = |filters: usize| move |i: &[usize], v: f32| if i[0] < filters { 0.0 } else { v };
    let model = edit(&edit(&model, "first.weight", zero(1)), "second.weight", zero(2));
    let bias =
        |model: &Model, layer: &str| model.tensors(model.graph().find(layer).unwrap())[1].data().to_vec();
    // The flattened result of the second one is the output.
    let quiet = silence(&model).unwrap();
    assert_eq!((bias(&quiet, "first")[0], bias(&quiet, "second")), (0.0, bias(&model, "second")));
    let filters = Pattern::Groups(Grouping::Filters);
    let without = |layer: &str| Pruning { pattern: filters, ..at(0.5, &[layer]) };
    let (pruned, _) = prune_magnitude(&model, &without("first")).unwrap();
    assert_eq!(bias(&pruned, "first"), bias(&model, "first"));
}
