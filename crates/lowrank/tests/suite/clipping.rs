//! Ranks that fall while a decomposed network is trained.

use crate::oracle::{Numbers, doubles, evaluate, one_conv, one_linear, relative, tensor};
use cofilter_graph::{Array, Conv2d, Model, Params, Shape};
use cofilter_lowrank::{Error, Method, RankRule, Settings, clip, decompose, recompose};

/// A pair at full rank whose basis has lost directions since: of rank `rank` a group, up to a little noise.
fn trained(groups: usize, bias: bool, rank: usize) -> Model {
    let mut numbers = Numbers::new(70 + groups as u64);
    let conv = Conv2d { groups, padding: [1, 1], ..Conv2d::new(8, 3) };
    let bias = bias.then(|| numbers.array(&[8]));
    let dense = one_conv(Shape::map(4, 6, 6), &conv, numbers.array(&[8, 4 / groups, 3, 3]), bias);
    let full = Settings { rule: RankRule::Full, ..Settings::default() };
    let (pair, _) = decompose(&dense, &full).unwrap();
    let id = pair.graph().find("conv_lowrank").unwrap();
    let mut params = pair.params().clone();
    let array = &mut params.get_mut(id)[0];
    let (rows, len) = array.matrix_dims();
    let of_group = rows / groups;
    let mut data = Vec::new();
    for _ in 0..groups {
        let patterns: Vec<Vec<f64>> = (0..rank).map(|_| (0..len).map(|_| numbers.next()).collect()).collect();
        for _ in 0..of_group {
            let factors: Vec<f64> = (0..rank).map(|_| numbers.next()).collect();
            data.extend((0..len).map(|i| {
                let sum: f64 =
                    factors.iter().zip(&patterns).map(|(factor, pattern)| factor * pattern[i]).sum();
                (sum + 1e-5 * numbers.next()) as f32
            }));
        }
    }
    *array = Array::new(array.dims().to_vec(), data);
    pair.with_params(params).unwrap()
}

#[test]
fn a_basis_of_lower_rank_is_cut_and_nothing_is_lost() {
    for groups in [1, 2] {
        for bias in [true, false] {
            let model = trained(groups, bias, 3);
            let clipped = clip(&model, None, &RankRule::Energy(0.9999)).unwrap();
            assert_eq!(clipped.layers.len(), 1);
            let layer = &clipped.layers[0];
            assert_eq!((layer.name.as_str(), layer.before, layer.rank), ("conv", 8, 3 * groups));
            assert_eq!(tensor(&clipped.model, "conv_lowrank", 0).dims(), [3 * groups, 4 / groups, 3, 3]);
            assert_eq!(tensor(&clipped.model, "conv_linear", 0).dims(), [8, 3, 1, 1]);
            let mut numbers = Numbers::new(4);
            let image: Vec<f64> = (0..144).map(|_| numbers.next()).collect();
            let error = relative(evaluate(&model, &image), evaluate(&clipped.model, &image));
            assert!(error < 1e-4, "{groups} groups: {error}");
            if bias {
                assert_eq!(tensor(&clipped.model, "conv_linear", 1), tensor(&model, "conv_linear", 1));
            }
            // Once more changes nothing.
            let again = clip(&clipped.model, None, &RankRule::Energy(0.9999)).unwrap();
            assert!(again.layers.is_empty() && again.model == clipped.model);
        }
    }
}

/// `sum w_i^2 / 2` style loss: the gradient of the product `C B` is a fixed matrix `G`, so `dB = C^T G` and `dC = G B^T`.
fn gradients(
    basis: &[f64],
    combination: &[f64],
    g: &[f64],
    [rows, middle, len]: [usize; 3],
) -> [Vec<f64>; 2] {
    let mut of_basis = vec![0.0; middle * len];
    let mut of_combination = vec![0.0; rows * middle];
    for n in 0..rows {
        for m in 0..middle {
            for i in 0..len {
                of_basis[m * len + i] += combination[n * middle + m] * g[n * len + i];
                of_combination[n * middle + m] += g[n * len + i] * basis[m * len + i];
            }
        }
    }
    [of_basis, of_combination]
}

#[test]
fn momentum_goes_through_the_same_change_as_gradients() {
    let model = trained(1, false, 3);
    let (rows, middle, len) = (8, 8, 36);
    let mut numbers = Numbers::new(55);
    let g: Vec<f64> = (0..rows * len).map(|_| numbers.next()).collect();
    let weights = |model: &Model| -> [Vec<f64>; 2] {
        ["conv_lowrank", "conv_linear"].map(|name| doubles(tensor(model, name, 0)).collect())
    };
    let momentum_of = |[basis, combination]: &[Vec<f64>; 2]| {
        let single = |of: &[f64]| of.iter().map(|v| *v as f32).collect::<Vec<_>>();
        Params::new(vec![vec![], vec![single(basis)], vec![single(combination)]])
    };
    let [basis, combination] = weights(&model);
    // One step of momentum from that gradient.
    let before = gradients(&basis, &combination, &g, [rows, middle, len]);
    let clipped = clip(&model, Some(&momentum_of(&before)), &RankRule::Energy(0.9999)).unwrap();
    let [basis, combination] = weights(&clipped.model);
    // The gradient of the same loss with the new weights.
    let expected = gradients(&basis, &combination, &g, [rows, 3, len]);
    let momentum = clipped.momentum.unwrap();
    for (name, expected) in ["conv_lowrank", "conv_linear"].into_iter().zip(expected) {
        let id = clipped.model.graph().find(name).unwrap();
        let found = momentum.get(id)[0].iter().map(|v| f64::from(*v));
        let error = relative(expected.iter().copied(), found);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn fully_connected_pairs_are_cut_too() {
    let mut numbers = Numbers::new(8);
    let dense = one_linear(numbers.decaying(&[12, 20], 0.3), Some(numbers.array(&[12])));
    let full = Settings { rule: RankRule::Full, linear: true, ..Settings::default() };
    let (pair, _) = decompose(&dense, &full).unwrap();
    let clipped = clip(&pair, None, &RankRule::Energy(0.99)).unwrap();
    let layer = &clipped.layers[0];
    assert_eq!((layer.name.as_str(), layer.before), ("fc", 12));
    // Right after the decomposition it is the decomposition at that energy.
    let at = Settings { rule: RankRule::Energy(0.99), linear: true, grow: true, ..Settings::default() };
    let (expected, _) = decompose(&dense, &at).unwrap();
    let product = |model: &Model| doubles(tensor(&recompose(model).unwrap(), "fc", 0)).collect::<Vec<_>>();
    assert!(relative(product(&expected), product(&clipped.model)) < 1e-5);
}

#[test]
fn what_is_no_pair_stays() {
    let mut numbers = Numbers::new(3);
    let dense = one_conv(Shape::map(3, 8, 8), &Conv2d::new(8, 3), numbers.array(&[8, 3, 3, 3]), None);
    for method in [Method::Spatial, Method::Channel, Method::Tucker] {
        let settings = Settings { method, rule: RankRule::Full, ..Settings::default() };
        let (small, _) = decompose(&dense, &settings).unwrap();
        let clipped = clip(&small, None, &RankRule::Energy(0.5)).unwrap();
        assert!(clipped.layers.is_empty() && clipped.model == small, "{method:?}");
    }
    assert_eq!(clip(&dense, None, &RankRule::Energy(0.5)).unwrap().model, dense);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let model = trained(1, true, 3);
    assert!(matches!(clip(&model, None, &RankRule::Energy(1.5)), Err(Error::Ratio { .. })));
    let by_name = RankRule::by_name([("conv", 2)]);
    assert!(matches!(clip(&model, None, &by_name), Err(Error::Rule { .. })));
    let momentum = Params::new(vec![vec![], vec![vec![0.0; 3]], vec![]]);
    assert!(matches!(clip(&model, Some(&momentum), &RankRule::Energy(0.9)), Err(Error::Graph(_))));
}
