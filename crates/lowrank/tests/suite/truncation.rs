//! Below full rank: the loss is what the spectrum says, and no approximation of that rank loses less.

use crate::oracle::{Numbers, doubles, one_conv, relative, singular_values, tensor};
use cofilter_graph::{Array, Conv2d, Model, Shape};
use cofilter_lowrank::{Method, RankRule, Settings, analyse, decompose, recompose};

fn at(rank: usize, method: Method) -> Settings {
    let rule = RankRule::by_name([("conv", rank)]);
    Settings { method, rule, pointwise: true, ..Settings::default() }
}

fn conv_of(weight: Array) -> Model {
    let d = weight.dims().to_vec();
    one_conv(Shape::map(d[1], 6, 6), &Conv2d { kernel: [d[2], d[3]], ..Conv2d::new(d[0], 1) }, weight, None)
}

#[test]
fn squared_error_is_the_tail_of_the_spectrum() {
    for (seed, dims) in [(1, [12, 3, 3, 3]), (2, [20, 1, 3, 3]), (3, [9, 2, 1, 1]), (4, [8, 4, 2, 2])] {
        let dense = conv_of(Numbers::new(seed).decaying(&dims, 0.7));
        let weight = tensor(&dense, "conv", 0);
        let (rows, cols) = weight.matrix_dims();
        let sigma = singular_values(&doubles(weight).collect::<Vec<_>>(), rows, cols);
        let whole: f64 = sigma.iter().map(|s| s * s).sum();
        for rank in 1..=rows.min(cols) {
            let tail = sigma[rank..].iter().map(|s| s * s).sum::<f64>() / whole;
            for method in [Method::Pca, Method::Svd] {
                let (pair, report) = decompose(&dense, &at(rank, method)).unwrap();
                let layer = &report.layers[0];
                let product = recompose(&pair).unwrap();
                let measured = relative(doubles(weight), doubles(tensor(&product, "conv", 0)));
                for squared in [measured.powi(2), layer.relative_error.powi(2), 1.0 - layer.energy] {
                    assert!(
                        (squared - tail).abs() < 1e-6,
                        "{dims:?} at {rank}, {method:?}: {squared}, {tail}"
                    );
                }
            }
        }
    }
}

#[test]
fn singular_values_agree_with_jacobi_rotations() {
    for (seed, dims) in [(5, [10, 2, 3, 3]), (6, [25, 1, 3, 3]), (7, [1, 2, 2, 2])] {
        let dense = conv_of(Numbers::new(seed).decaying(&dims, 0.6));
        let weight = tensor(&dense, "conv", 0);
        let (rows, cols) = weight.matrix_dims();
        let expected = singular_values(&doubles(weight).collect::<Vec<_>>(), rows, cols);
        let analysis = &analyse(&dense, 0.95).unwrap()[0];
        let found = analysis.whole.normalised.iter().map(|s| (s * analysis.whole.total).sqrt());
        assert!(relative(expected.iter().copied(), found) < 1e-12, "{dims:?}");
        assert!(
            (analysis.stable_rank - expected.iter().map(|s| s * s).sum::<f64>() / expected[0].powi(2)).abs()
                < 1e-9
        );
    }
}

#[test]
fn no_other_basis_of_that_rank_is_better() {
    let (rows, rank) = (10, 3);
    let weight = Numbers::new(8).decaying(&[rows, 2, 3, 3], 0.8);
    let cols = 18;
    let dense = conv_of(weight.clone());
    let (_, report) = decompose(&dense, &at(rank, Method::Pca)).unwrap();
    let best = report.layers[0].relative_error;
    // Projections onto random bases, and onto bases near the filters themselves.
    for seed in 0..200 {
        let mut numbers = Numbers::new(1000 + seed);
        let mut basis: Vec<Vec<f64>> = Vec::new();
        for m in 0..rank {
            let row = &weight.data()[((seed as usize + m) % rows) * cols..][..cols];
            let mut v: Vec<f64> =
                row.iter().map(|w| f64::from(*w) + (seed % 7) as f64 * 0.3 * numbers.next()).collect();
            for b in &basis {
                let along: f64 = v.iter().zip(b).map(|(x, y)| x * y).sum();
                v.iter_mut().zip(b).for_each(|(x, y)| *x -= along * y);
            }
            let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            basis.push(v.into_iter().map(|x| x / length).collect());
        }
        let projected = weight.data().chunks_exact(cols).flat_map(|row| {
            let mut sum = vec![0.0; cols];
            for b in &basis {
                let along: f64 = row.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum();
                sum.iter_mut().zip(b).for_each(|(s, y)| *s += along * y);
            }
            sum
        });
        assert!(relative(doubles(&weight), projected) > best);
    }
}

#[test]
fn methods_share_the_product_and_differ_in_scale() {
    let dense = conv_of(Numbers::new(9).decaying(&[14, 3, 3, 3], 0.75));
    let rank = 5;
    let (pca, _) = decompose(&dense, &at(rank, Method::Pca)).unwrap();
    let (svd, _) = decompose(&dense, &at(rank, Method::Svd)).unwrap();
    let product = |m: &Model| doubles(tensor(&recompose(m).unwrap(), "conv", 0)).collect::<Vec<_>>();
    assert!(relative(product(&pca), product(&svd)) < 1e-6);
    let length = |values: Vec<f64>| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let column =
        |m: &Model, i: usize| doubles(tensor(m, "conv_linear", 0)).skip(i).step_by(rank).collect::<Vec<_>>();
    let vector = |m: &Model, i: usize| doubles(tensor(m, "conv_lowrank", 0)).skip(i * 27).take(27).collect();
    let mut falling = f64::INFINITY;
    for i in 0..rank {
        // PCA: orthonormal combination, the basis carries the singular value. SVD: both its root.
        assert!((length(column(&pca, i)) - 1.0).abs() < 1e-6);
        let sigma = length(vector(&pca, i));
        assert!(sigma < falling);
        falling = sigma;
        assert!((length(column(&svd, i)) - sigma.sqrt()).abs() < 1e-5);
        assert!((length(vector(&svd, i)) - sigma.sqrt()).abs() < 1e-5);
        for other in 0..i {
            let dot: f64 = column(&pca, i).iter().zip(column(&pca, other)).map(|(x, y)| x * y).sum();
            assert!(dot.abs() < 1e-6, "columns {i} and {other} are not orthogonal: {dot}");
        }
        let largest = column(&pca, i).into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
        assert!(largest > 0.0, "sign of column {i}");
    }
}

#[test]
fn a_layer_of_zeros_keeps_one_basis_vector_of_zeros() {
    let dense = conv_of(Array::full(vec![6, 2, 3, 3], 0.0));
    for rule in [RankRule::Energy(0.95), RankRule::Norm(1.0), RankRule::Full] {
        for method in [Method::Pca, Method::Svd] {
            let settings = Settings { method, rule: rule.clone(), ..Settings::default() };
            let (pair, report) = decompose(&dense, &settings).unwrap();
            let layer = &report.layers[0];
            assert_eq!(layer.rank, if rule == RankRule::Full { 6 } else { 1 });
            assert_eq!((layer.energy, layer.relative_error), (1.0, 0.0));
            assert!(pair.check_finite().is_ok());
            assert!(tensor(&recompose(&pair).unwrap(), "conv", 0).data().iter().all(|w| *w == 0.0));
        }
    }
    let analysis = &analyse(&dense, 0.95).unwrap()[0];
    assert_eq!((analysis.rank, analysis.stable_rank, analysis.effective_rank), (1, 0.0, 0.0));
}

#[test]
fn deficient_weights_need_their_true_rank() {
    // Filters are sums of three patterns.
    let mut numbers = Numbers::new(11);
    let patterns: Vec<Vec<f64>> = (0..3).map(|_| (0..18).map(|_| numbers.next()).collect()).collect();
    let mut weight = Vec::new();
    for _ in 0..10 {
        let factors = [numbers.next(), numbers.next(), numbers.next()];
        weight.extend((0..18).map(|i| (0..3).map(|p| factors[p] * patterns[p][i]).sum::<f64>() as f32));
    }
    let dense = conv_of(Array::new(vec![10, 2, 3, 3], weight));
    let settings = Settings { rule: RankRule::Energy(1.0 - 1e-9), ..Settings::default() };
    let (pair, report) = decompose(&dense, &settings).unwrap();
    assert_eq!(report.layers[0].rank, 3);
    let error =
        relative(doubles(tensor(&dense, "conv", 0)), doubles(tensor(&recompose(&pair).unwrap(), "conv", 0)));
    assert!(error < 1e-6, "{error}");
    let full = decompose(&dense, &Settings { rule: RankRule::Full, ..Settings::default() }).unwrap().0;
    assert!(full.check_finite().is_ok());
}
