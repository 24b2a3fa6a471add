//! Ways of taking a layer apart other than across filters.

use crate::identity::cases;
use crate::oracle::{
    Numbers, doubles, evaluate, names, one_conv, one_linear, relative, singular_values, tensor,
};
use cofilter_graph::{Array, Conv2d, Graph, Init, Model, Shape};
use cofilter_lowrank::{Error, Method, Rank, RankRule, Settings, decompose, recompose};
use std::collections::BTreeMap;

fn at(method: Method, rank: impl Into<Rank>) -> Settings {
    let rule = RankRule::by_name([("conv", rank)]);
    Settings { method, rule, pointwise: true, ..Settings::default() }
}

fn conv_of(weight: Array) -> Model {
    let d = weight.dims().to_vec();
    one_conv(Shape::map(d[1], 6, 6), &Conv2d { kernel: [d[2], d[3]], ..Conv2d::new(d[0], 1) }, weight, None)
}

/// What is lost of the weight of `conv`, squared and relative.
fn lost(dense: &Model, small: &Model) -> f64 {
    let product = recompose(small).unwrap();
    relative(doubles(tensor(dense, "conv", 0)), doubles(tensor(&product, "conv", 0))).powi(2)
}

/// The share of the squared singular values behind the first `rank`.
fn tail(matrix: &[f64], rows: usize, rank: usize) -> f64 {
    let sigma = singular_values(matrix, rows, matrix.len() / rows);
    let sum = |of: &[f64]| of.iter().map(|s| s * s).sum::<f64>();
    sum(&sigma[rank..]) / sum(&sigma)
}

/// The weight `[n, c, h, w]` with its indices in another order; the first `rows` of them count rows.
fn unfold(weight: &Array, order: [usize; 4]) -> Vec<f64> {
    let d = weight.dims();
    let from: Vec<f64> = doubles(weight).collect();
    let mut to = Vec::new();
    let mut index = [0; 4];
    for i in 0..d[order[0]] {
        for j in 0..d[order[1]] {
            for k in 0..d[order[2]] {
                for l in 0..d[order[3]] {
                    for (axis, value) in order.into_iter().zip([i, j, k, l]) {
                        index[axis] = value;
                    }
                    to.push(from[((index[0] * d[1] + index[1]) * d[2] + index[2]) * d[3] + index[3]]);
                }
            }
        }
    }
    to
}

#[test]
fn what_the_new_layers_are() {
    let conv = Conv2d { stride: [2, 3], padding: [1, 2], dilation: [1, 2], groups: 2, ..Conv2d::new(8, 3) };
    let mut numbers = Numbers::new(1);
    let dense =
        one_conv(Shape::map(6, 12, 14), &conv, numbers.array(&[8, 3, 3, 3]), Some(numbers.array(&[8])));
    let of = |method, rank: Rank| decompose(&dense, &at(method, rank)).unwrap().0;
    let spatial = of(Method::Spatial, 4.into());
    assert_eq!(names(&spatial), ["data", "conv_v", "conv_h"]);
    assert_eq!(tensor(&spatial, "conv_v", 0).dims(), [4, 3, 3, 1]);
    assert_eq!(tensor(&spatial, "conv_h", 0).dims(), [8, 2, 1, 3]);
    let channel = of(Method::Channel, 4.into());
    assert_eq!(names(&channel), ["data", "conv_reduce", "conv_core"]);
    assert_eq!(tensor(&channel, "conv_reduce", 0).dims(), [4, 3, 1, 1]);
    assert_eq!(tensor(&channel, "conv_core", 0).dims(), [8, 2, 3, 3]);
    let tucker = of(Method::Tucker, Rank::Two([4, 6]));
    assert_eq!(names(&tucker), ["data", "conv_reduce", "conv_core", "conv_expand"]);
    assert_eq!(tensor(&tucker, "conv_core", 0).dims(), [6, 2, 3, 3]);
    assert_eq!(tensor(&tucker, "conv_expand", 0).dims(), [8, 3, 1, 1]);
    // Full rank is 6 and 8: half of the one is half of the other.
    let alike = of(Method::Tucker, 4.into());
    assert_eq!(tensor(&alike, "conv_core", 0).dims(), [4, 2, 3, 3]);
    let cp = of(Method::Cp, 10.into());
    assert_eq!(names(&cp), ["data", "conv_reduce", "conv_v", "conv_h", "conv_expand"]);
    assert_eq!(tensor(&cp, "conv_v", 0).dims(), [10, 1, 3, 1]);
    assert_eq!(tensor(&cp, "conv_h", 0).dims(), [10, 1, 1, 3]);
    for small in [&spatial, &channel, &tucker, &alike, &cp] {
        assert_eq!(small.graph().output_shape(), dense.graph().output_shape());
        let last = small.graph().outputs()[0];
        assert_eq!(small.tensors(last)[1], *tensor(&dense, "conv", 1));
    }
}

#[test]
fn products_are_what_the_new_layers_compute() {
    for method in Method::ALL {
        for (i, (name, input, conv, bias)) in cases().into_iter().enumerate() {
            let mut numbers = Numbers::new(90 + i as u64);
            let [h, w] = conv.kernel;
            let weight = numbers.array(&[conv.out_channels, input.channels() / conv.groups, h, w]);
            let bias = bias.then(|| numbers.array(&[conv.out_channels]));
            let dense = one_conv(input, &conv, weight, bias);
            let rule = RankRule::Ratio(0.4);
            let settings = Settings { method, rule, pointwise: true, grow: true, ..Settings::default() };
            let (small, report) = decompose(&dense, &settings).unwrap();
            let product = recompose(&small).unwrap();
            assert_eq!(product.graph(), dense.graph(), "{name}, {method:?}");
            let image: Vec<f64> = (0..input.elements()).map(|_| numbers.next()).collect();
            let error = relative(evaluate(&small, &image), evaluate(&product, &image));
            assert!(error < 1e-6, "{name}, {method:?}: {error}");
            let layer = &report.layers[0];
            assert!((layer.relative_error.powi(2) - lost(&dense, &small)).abs() < 1e-6, "{name}, {method:?}");
            let cost = small.cost();
            assert_eq!(
                (layer.params_after, layer.macs_after),
                (cost.params(), cost.macs()),
                "{name}, {method:?}"
            );
            assert_eq!(
                (layer.params_before, layer.macs_before),
                (dense.cost().params(), dense.cost().macs()),
                "{name}"
            );
        }
    }
}

#[test]
fn what_one_matrix_loses_is_the_tail_of_its_spectrum() {
    let weight = Numbers::new(4).decaying(&[10, 4, 3, 3], 0.8);
    let dense = conv_of(weight.clone());
    let spatial = unfold(&weight, [1, 2, 0, 3]);
    let channel = unfold(&weight, [1, 0, 2, 3]);
    for (method, matrix, rows, ranks) in
        [(Method::Spatial, &spatial, 12, 1..=12), (Method::Channel, &channel, 4, 1..=4)]
    {
        for rank in ranks {
            let (small, report) = decompose(&dense, &at(method, rank)).unwrap();
            let expected = tail(matrix, rows, rank);
            let layer = &report.layers[0];
            for found in [lost(&dense, &small), 1.0 - layer.energy] {
                assert!((found - expected).abs() < 1e-6, "{method:?} at {rank}: {found}, {expected}");
            }
        }
    }
}

#[test]
fn tucker_loses_no_more_than_both_tails_and_no_less_than_either() {
    let weight = Numbers::new(5).decaying(&[9, 6, 3, 3], 0.85);
    let dense = conv_of(weight.clone());
    let (output, input) = (unfold(&weight, [0, 1, 2, 3]), unfold(&weight, [1, 0, 2, 3]));
    let mut below = 0;
    for input_rank in [1, 3, 5, 6] {
        for output_rank in [1, 4, 7, 9] {
            let (small, report) =
                decompose(&dense, &at(Method::Tucker, Rank::Two([input_rank, output_rank]))).unwrap();
            let tails = [tail(&output, 9, output_rank), tail(&input, 6, input_rank)];
            let lost = lost(&dense, &small);
            assert!(lost <= tails[0] + tails[1] + 1e-6, "{input_rank}/{output_rank}: {lost}, {tails:?}");
            assert!(lost >= tails[0].max(tails[1]) - 1e-6, "{input_rank}/{output_rank}: {lost}, {tails:?}");
            assert!((1.0 - report.layers[0].energy - lost).abs() < 1e-6);
            below += usize::from(lost < tails[0] + tails[1] - 1e-6);
        }
    }
    assert!(below > 3, "the two sides overlap in most cases");
    // A tensor of these ranks is exact, and what the rule asks for is kept.
    for energy in [0.8, 0.95] {
        let rule = RankRule::Energy(energy);
        let settings = Settings { method: Method::Tucker, rule, grow: true, ..Settings::default() };
        let (small, report) = decompose(&dense, &settings).unwrap();
        assert!(1.0 - lost(&dense, &small) >= energy, "{:?}", report.layers[0].rank);
    }
}

/// `sum_r a_r (x) b_r (x) v_r (x) h_r`.
fn terms(numbers: &mut Numbers, [n, c, h, w]: [usize; 4], rank: usize) -> Array {
    let mut data = vec![0.0; n * c * h * w];
    for _ in 0..rank {
        let mut draw = |len: usize| (0..len).map(|_| numbers.next()).collect::<Vec<_>>();
        let (a, b, v, x) = (draw(n), draw(c), draw(h), draw(w));
        for (i, to) in data.iter_mut().enumerate() {
            *to += a[i / (c * h * w)] * b[i / (h * w) % c] * v[i / w % h] * x[i % w];
        }
    }
    Array::new(vec![n, c, h, w], data.into_iter().map(|v| v as f32).collect::<Vec<_>>())
}

#[test]
fn cp_finds_the_terms_of_a_tensor_that_has_them() {
    for (seed, rank) in [(1, 1), (2, 2), (3, 3)] {
        let dense = conv_of(terms(&mut Numbers::new(seed), [7, 5, 3, 3], rank));
        let (small, report) = decompose(&dense, &at(Method::Cp, rank)).unwrap();
        assert!(lost(&dense, &small) < 1e-4, "rank {rank}: {}", lost(&dense, &small));
        assert_eq!(report.layers[0].warning, None);
        assert!(report.layers[0].spectrum.is_none());
    }
    // More terms lose less.
    let dense = conv_of(Numbers::new(8).decaying(&[8, 6, 3, 3], 0.8));
    let losses: Vec<f64> =
        [1, 4, 12].map(|rank| lost(&dense, &decompose(&dense, &at(Method::Cp, rank)).unwrap().0)).into();
    assert!(losses[0] > losses[1] && losses[1] > losses[2] && losses[2] < 0.2, "{losses:?}");
}

#[test]
fn cp_tells_when_it_is_unstable() {
    // a a b + a b a + b a a has rank 3 and is the limit of tensors of rank 2 whose terms grow without bound
    // (de Silva and Lim 2008).
    let (a, b) = ([1.0f32, 0.0], [0.0f32, 1.0]);
    let mut data = Vec::new();
    for i in 0..2 {
        for j in 0..2 {
            for k in 0..2 {
                data.push(a[i] * a[j] * b[k] + a[i] * b[j] * a[k] + b[i] * a[j] * a[k]);
            }
        }
    }
    let dense = conv_of(Array::new(vec![2, 2, 2, 1], data));
    let (_, report) = decompose(&dense, &at(Method::Cp, 2)).unwrap();
    let warning = report.layers[0].warning.as_deref().unwrap();
    assert!(warning.contains("unstable"), "{warning}");
}

#[test]
fn clusters_of_filters() {
    // Three patterns in seven filters.
    let mut numbers = Numbers::new(6);
    let patterns: Vec<Vec<f32>> = (0..3).map(|_| (0..18).map(|_| numbers.next() as f32).collect()).collect();
    let order = [0, 1, 2, 1, 0, 0, 2];
    let weight = Array::new(vec![7, 2, 3, 3], order.map(|p| patterns[p].clone()).concat());
    let dense = conv_of(weight);
    let (small, report) = decompose(&dense, &at(Method::Kmeans, 3)).unwrap();
    assert!(lost(&dense, &small) < 1e-12);
    assert!((report.layers[0].energy - 1.0).abs() < 1e-12);
    let copies = tensor(&small, "conv_linear", 0);
    for row in copies.data().chunks_exact(3) {
        assert_eq!((row.iter().sum::<f32>(), row.iter().filter(|v| **v == 1.0).count()), (1.0, 1));
    }
    // More clusters than different filters: some are empty, nothing is lost.
    let (same, _) = decompose(&dense, &at(Method::Kmeans, 5)).unwrap();
    assert!(lost(&dense, &same) < 1e-12 && same.check_finite().is_ok());
}

#[test]
fn few_ways_of_clustering_a_few_filters_are_better() {
    let mut best_found = 0;
    for seed in 0..8 {
        let weight = Numbers::new(60 + seed).array(&[7, 1, 2, 2]);
        let dense = conv_of(weight.clone());
        let rows: Vec<&[f32]> = weight.data().chunks_exact(4).collect();
        let whole: f64 = doubles(&weight).map(|w| w * w).sum();
        let mut best = f64::INFINITY;
        for code in 0..3usize.pow(7) {
            let cluster: Vec<usize> = (0..7).map(|i| code / 3usize.pow(i) % 3).collect();
            let mut lost = 0.0;
            for m in 0..3 {
                let own: Vec<&&[f32]> =
                    rows.iter().zip(&cluster).filter(|(_, of)| **of == m).map(|(row, _)| row).collect();
                for position in 0..4 {
                    let values: Vec<f64> = own.iter().map(|row| f64::from(row[position])).collect();
                    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
                    lost += values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
                }
            }
            best = best.min(lost / whole);
        }
        let (small, _) = decompose(&dense, &at(Method::Kmeans, 3)).unwrap();
        let lost = lost(&dense, &small);
        // Clusters that no single filter wants to leave, which need not be the best ones.
        assert!(lost >= best - 1e-6 && lost <= 1.1 * best, "seed {seed}: {lost}, {best}");
        best_found += usize::from(lost <= best + 1e-6);
    }
    assert!(best_found >= 5, "{best_found} of 8");
}

fn network() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(4, 12, 12)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(16, 3) }).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { padding: [1, 1], ..Conv2d::new(16, 3) }).unwrap();
    let x = b.conv2d("point", x, Conv2d::new(12, 1)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 10).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 4).unwrap()
}

#[test]
fn each_layer_may_have_its_own_method() {
    let settings = Settings {
        methods: [("conv1".to_owned(), Method::Spatial)].into(),
        rule: RankRule::Ratio(0.25),
        linear: true,
        pointwise: true,
        ..Settings::default()
    };
    let (small, report) = decompose(&network(), &settings).unwrap();
    let methods: Vec<_> = report.layers.iter().map(|l| (l.name.as_str(), l.method)).collect();
    let pca = Method::Pca;
    assert_eq!(methods, [("conv1", Method::Spatial), ("conv2", pca), ("point", pca), ("fc", pca)]);
    assert_eq!(recompose(&small).unwrap().graph(), network().graph());
    // A method for all does what has a meaning for each.
    let all = Settings { method: Method::Tucker, methods: BTreeMap::new(), ..settings.clone() };
    let (_, report) = decompose(&network(), &all).unwrap();
    let methods: Vec<_> = report.layers.iter().map(|l| l.method).collect();
    assert_eq!(methods, [Method::Tucker, Method::Tucker, pca, pca]);
    let again = Settings { rule: RankRule::Ranks(report.ranks()), ..all };
    assert_eq!(decompose(&network(), &again).unwrap().1.ranks(), report.ranks());
    for name in ["point", "fc"] {
        let wrong = Settings { methods: [(name.to_owned(), Method::Spatial)].into(), ..settings.clone() };
        let error = decompose(&network(), &wrong).unwrap_err();
        assert!(matches!(&error, Error::Method { layer, .. } if layer == name), "{error}");
    }
    let left = Settings {
        methods: [("point".to_owned(), Method::Svd)].into(),
        pointwise: false,
        ..settings.clone()
    };
    assert!(matches!(decompose(&network(), &left), Err(Error::NotSelected { .. })));
    let unknown = Settings { methods: [("conv7".to_owned(), Method::Svd)].into(), ..settings };
    assert!(matches!(decompose(&network(), &unknown), Err(Error::UnknownLayer { .. })));
}

#[test]
fn rules_that_look_at_singular_values_need_some() {
    for method in [Method::Kmeans, Method::Cp] {
        for rule in [RankRule::Energy(0.9), RankRule::Norm(0.9), RankRule::StableRank(1.0), RankRule::Evbmf] {
            let error = decompose(&network(), &Settings { method, rule, ..Settings::default() }).unwrap_err();
            assert!(matches!(error, Error::Rule { .. }), "{method:?}: {error}");
        }
        assert!(
            decompose(&network(), &Settings { method, rule: RankRule::Ratio(0.2), ..Settings::default() })
                .is_ok()
        );
    }
    let error =
        decompose(&network(), &Settings { method: Method::Cp, rule: RankRule::Full, ..Settings::default() });
    assert!(matches!(error, Err(Error::Rule { .. })));
    let rule = RankRule::by_name([("conv1", Rank::Two([2, 3]))]);
    let error = decompose(&network(), &Settings { rule, ..Settings::default() }).unwrap_err();
    assert!(matches!(error, Error::TwoRanks { .. }), "{error}");
    let error =
        decompose(&network(), &Settings { rule: RankRule::StableRank(f64::NAN), ..Settings::default() });
    assert!(matches!(error, Err(Error::Factor { .. })));
}

#[test]
fn layers_that_would_grow_stay() {
    let settings =
        Settings { rule: RankRule::Ratio(0.9), linear: true, pointwise: true, ..Settings::default() };
    let (small, report) = decompose(&network(), &settings).unwrap();
    assert!(small.cost().macs() <= network().cost().macs());
    assert!(!report.kept.is_empty());
    for layer in &report.kept {
        assert!(layer.macs_after > layer.macs_before && layer.params_after > layer.params_before);
        assert!(small.graph().find(&layer.name).is_ok(), "{}", layer.name);
    }
    let grown = decompose(&network(), &Settings { grow: true, ..settings }).unwrap().1;
    assert_eq!((grown.layers.len(), grown.kept.len()), (4, 0));
    // By name or at full rank it is what was asked for.
    let full = Settings { rule: RankRule::Full, ..Settings::default() };
    assert_eq!(decompose(&network(), &full).unwrap().1.layers.len(), 2);
    let wide = one_linear(Numbers::new(3).array(&[8, 8]), None);
    let rule = RankRule::by_name([("fc", 8)]);
    let by_name = Settings { rule, linear: true, ..Settings::default() };
    assert_eq!(decompose(&wide, &by_name).unwrap().1.layers.len(), 1);
}
