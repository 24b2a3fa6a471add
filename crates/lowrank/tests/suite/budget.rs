//! Ranks chosen together.

use crate::oracle::{Numbers, one_linear};
use cofilter_graph::{Conv2d, Graph, Init, Model, Shape};
use cofilter_lowrank::{
    Budget, Choice, Error, Limit, Method, Quantity, RankRule, Settings, choose, decompose, evbmf_rank,
};

fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 10, 10)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(10, 3) }).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { stride: [2, 2], ..Conv2d::new(12, 3) }).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 6).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 8).unwrap()
}

fn within(of: Quantity, at_most: Limit) -> Settings {
    Settings { rule: RankRule::Budget(Budget { of, at_most }), linear: true, ..Settings::default() }
}

#[test]
fn no_other_choice_within_the_budget_loses_less() {
    for seed in 0..60u64 {
        let mut numbers = Numbers::new(400 + seed);
        let layers: Vec<Vec<Choice>> = (0..4)
            .map(|_| {
                (0..1 + numbers.below(5))
                    .map(|_| Choice { cost: 1.0 + numbers.next(), loss: 1.0 + numbers.next() })
                    .collect()
            })
            .collect();
        let budget = 2.0 + 4.0 * (numbers.next() + 1.0);
        let sizes: Vec<usize> = layers.iter().map(Vec::len).collect();
        let sum = |chosen: &[usize]| {
            chosen.iter().zip(&layers).fold((0.0, 0.0), |(cost, loss), (i, choices)| {
                (cost + choices[*i].cost, loss + choices[*i].loss)
            })
        };
        let mut best: Option<f64> = None;
        for code in 0..sizes.iter().product() {
            let mut rest: usize = code;
            let chosen: Vec<usize> = sizes
                .iter()
                .map(|size| {
                    let index = rest % size;
                    rest /= size;
                    index
                })
                .collect();
            let (cost, loss) = sum(&chosen);
            // Costs are rounded up to 4096ths of what is left above the cheapest choices.
            if cost <= budget * (1.0 - 4.0 / 4096.0) && best.is_none_or(|best| loss < best) {
                best = Some(loss);
            }
        }
        match (best, choose(&layers, budget)) {
            (Some(best), Some(chosen)) => {
                let (cost, loss) = sum(&chosen);
                assert!(
                    cost <= budget && loss <= best + 1e-12,
                    "seed {seed}: {cost} of {budget}, {loss}, {best}"
                );
            }
            (None, chosen) => assert!(chosen.is_none_or(|chosen| sum(&chosen).0 <= budget), "seed {seed}"),
            (Some(_), None) => panic!("seed {seed}: something fits"),
        }
    }
    let of = |cost, loss| Choice { cost, loss };
    let broken = vec![of(1.0, f64::NAN), of(f64::NAN, 0.0), of(2.0, f64::INFINITY), of(3.0, 1.0)];
    assert_eq!(choose(&[broken.clone(), vec![of(0.0, 0.0)]], 4.0), Some(vec![3, 0]));
    assert_eq!(choose(&[broken[..3].to_vec()], 4.0), None);
    assert_eq!(choose(&[], 0.0), Some(vec![]));
    assert_eq!(choose(&[vec![]], 1.0), None);
    assert_eq!(choose(&[vec![Choice { cost: 2.0, loss: 0.0 }]], 1.0), None);
    assert_eq!(choose(&[vec![Choice { cost: 2.0, loss: 0.0 }]], f64::NAN), None);
}

#[test]
fn the_network_is_within_its_budget() {
    let dense = model().cost();
    for of in [Quantity::Params, Quantity::Macs, Quantity::Bytes] {
        let cost = |model: &Model| match of {
            Quantity::Params => model.cost().params(),
            Quantity::Bytes => 4 * model.cost().params(),
            Quantity::Macs => model.cost().macs(),
        };
        let mut before = f64::INFINITY;
        for share in [0.4, 0.6, 0.8, 1.0] {
            let (small, report) = decompose(&model(), &within(of, Limit::Share(share))).unwrap();
            let (found, whole) = (cost(&small) as f64, cost(&model()) as f64);
            assert!(found <= share * whole, "{of:?} at {share}: {found} of {whole}");
            let lost: f64 = report.layers.iter().map(|l| 1.0 - l.energy).sum();
            assert!(lost <= before + 1e-12, "{of:?} at {share}");
            before = lost;
            let count = Limit::Count((share * whole) as usize);
            assert_eq!(decompose(&model(), &within(of, count)).unwrap().0, small);
            assert_eq!(report.layers.len() + report.kept.len(), 3);
        }
        // With all that it has, nothing is lost.
        assert!(before < 1e-12);
    }
    let (same, report) = decompose(&model(), &within(Quantity::Macs, Limit::Count(dense.macs()))).unwrap();
    assert_eq!((same, report.layers.len()), (model(), 0));
}

#[test]
fn budgets_out_of_reach_are_refused() {
    let error = decompose(&model(), &within(Quantity::Params, Limit::Count(10))).unwrap_err();
    let Error::Budget { quantity: "params", allowed: 10, least } = error else { panic!("{error}") };
    assert!(decompose(&model(), &within(Quantity::Params, Limit::Count(least))).is_ok());
    assert!(decompose(&model(), &within(Quantity::Params, Limit::Count(least - 1))).is_err());
    for share in [0.0, -1.0, 1.5, f64::NAN] {
        let error = decompose(&model(), &within(Quantity::Macs, Limit::Share(share))).unwrap_err();
        assert!(matches!(error, Error::Ratio { what: "budget", .. }), "{error}");
    }
    let kmeans = Settings { method: Method::Kmeans, ..within(Quantity::Macs, Limit::Share(0.5)) };
    assert!(matches!(decompose(&model(), &kmeans), Err(Error::Rule { .. })));
}

#[test]
fn a_budget_works_for_every_method_with_a_spectrum() {
    for method in [Method::Svd, Method::Spatial, Method::Channel, Method::Tucker] {
        let settings = Settings { method, ..within(Quantity::Macs, Limit::Share(0.6)) };
        let (small, _) = decompose(&model(), &settings).unwrap();
        assert!(small.cost().macs() * 10 <= model().cost().macs() * 6, "{method:?}");
    }
}

#[test]
fn variational_bayes_tells_signal_from_noise() {
    for (rows, columns, rank) in [(40, 60, 5), (60, 40, 3), (50, 50, 8), (30, 200, 4)] {
        let mut numbers = Numbers::new((rows * columns) as u64);
        let mut matrix: Vec<f64> =
            (0..rows * columns).map(|_| 0.1 * (numbers.next() + numbers.next())).collect();
        let noise = matrix.clone();
        for _ in 0..rank {
            let a: Vec<f64> = (0..rows).map(|_| numbers.next()).collect();
            let b: Vec<f64> = (0..columns).map(|_| numbers.next()).collect();
            matrix.iter_mut().enumerate().for_each(|(i, w)| *w += a[i / columns] * b[i % columns]);
        }
        let sigma = |of: &[f64]| crate::oracle::singular_values(of, rows, columns);
        assert_eq!(evbmf_rank(&sigma(&matrix), rows, columns), rank, "{rows}x{columns}");
        assert_eq!(evbmf_rank(&sigma(&noise), rows, columns), 0, "{rows}x{columns}");
    }
    assert_eq!(evbmf_rank(&[], 3, 4), 0);
    assert_eq!(evbmf_rank(&[0.0, 0.0], 2, 4), 0);
    assert_eq!(evbmf_rank(&[f64::NAN], 2, 4), 0);
    // As a rule it never leaves less than one.
    let noise = one_linear(Numbers::new(3).array(&[20, 30]), None);
    let settings = Settings { rule: RankRule::Evbmf, linear: true, ..Settings::default() };
    assert_eq!(decompose(&noise, &settings).unwrap().1.layers[0].rank, 1);
}
