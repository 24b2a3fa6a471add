//! The rule of a recipe against loops over the options of the authors' solver (paper notes 2.1), and its
//! effect over many steps.

use crate::oracle::{self, Filters, Generator};
use candle_core::{DType, Device, Tensor};
use cofilter_force::{Direction, Error, Force, Rule, Scaling, Scratch, gradient_into, stopped};

fn tensor(filters: &Filters) -> Tensor {
    Tensor::from_slice(&filters.data, (filters.count, filters.columns), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The update of the gradient as the authors' solver does it, element by element.
fn by_hand(rule: &Rule, weight: &Filters, gradient: &[f64], groups: usize, multiplier: f64) -> Vec<f64> {
    let mut force = oracle::gradient_grouped(weight, groups, rule.force);
    if rule.direction == Direction::Same {
        for (f, g) in force.iter_mut().zip(gradient) {
            if *f * *g < 0.0 {
                *f = 0.0;
            }
        }
    }
    let mut coefficient = rule.strength * multiplier;
    if rule.scaling == Scaling::Adaptive {
        let length = oracle::norm(&force);
        coefficient *= if length < 1e-8 { 0.0 } else { oracle::norm(gradient) / length };
    }
    gradient.iter().zip(force).map(|(g, f)| g + coefficient * f).collect()
}

#[test]
fn every_option_equals_the_loop() {
    let mut generator = Generator(1);
    let weight = generator.filters(12, 18);
    let gradient = generator.filters(12, 18);
    let plain = gradient.data.clone();
    for force in Force::ALL {
        for direction in [Direction::All, Direction::Same] {
            for scaling in [Scaling::Fixed, Scaling::Adaptive] {
                for (strength, multiplier, groups) in
                    [(0.3, 1.0, 1), (-0.7, 2.0, 1), (0.1, 0.5, 3), (-2.0, 1.0, 4)]
                {
                    let rule = Rule { force, strength, direction, scaling };
                    let found =
                        rule.apply_grouped(&tensor(&weight), &tensor(&gradient), groups, multiplier).unwrap();
                    let expected = by_hand(&rule, &weight, &plain, groups, multiplier);
                    // Relative to what the force changes, not to the gradient it is added to.
                    let change =
                        |new: &[f64]| new.iter().zip(&plain).map(|(n, g)| n - g).collect::<Vec<f64>>();
                    let error = oracle::error(&change(&values(&found)), &change(&expected));
                    assert!(error < 1e-12, "{rule:?} in {groups} groups: {error:e}");
                    if groups == 1 {
                        let ungrouped = rule.apply(&tensor(&weight), &tensor(&gradient), multiplier).unwrap();
                        assert_eq!(values(&ungrouped), values(&found));
                    }
                }
            }
        }
    }
}

#[test]
fn adaptive_force_is_a_share_of_the_gradient() {
    let mut generator = Generator(2);
    let (weight, gradient) =
        (generator.filters(10, 30).rounded_to_f32(), generator.filters(10, 30).rounded_to_f32());
    let rule =
        Rule { force: Force::L1, strength: -0.25, direction: Direction::Same, scaling: Scaling::Adaptive };
    let single = |filters: &Filters| tensor(filters).to_dtype(DType::F32).unwrap();
    let found = rule.apply(&single(&weight), &single(&gradient), 1.0).unwrap();
    assert_eq!(found.dtype(), DType::F32);
    let change: Vec<f64> = values(&found).iter().zip(&gradient.data).map(|(n, g)| n - g).collect();
    let ratio = oracle::norm(&change) / oracle::norm(&gradient.data);
    assert!((ratio - 0.25).abs() < 1e-6, "{ratio}");
    assert!(oracle::error(&values(&found), &by_hand(&rule, &weight, &gradient.data, 1, 1.0)) < 1e-6);
}

#[test]
fn no_force_leaves_the_gradient_alone() {
    let mut generator = Generator(3);
    let gradient = generator.filters(5, 7);
    let parallel = {
        let mut filters = generator.filters(5, 7);
        let first = filters.row(0).to_vec();
        (1..5).for_each(|i| filters.row_mut(i).copy_from_slice(&first));
        filters
    };
    let spread = generator.filters(5, 7);
    let adaptive =
        Rule { force: Force::L1, strength: 3.0, direction: Direction::All, scaling: Scaling::Adaptive };
    for (rule, weight, multiplier) in [
        (adaptive, &parallel, 1.0),
        (Rule { force: Force::L2, ..adaptive }, &parallel, 1.0),
        (Rule { strength: 0.0, ..adaptive }, &spread, 1.0),
        (adaptive, &spread, 0.0),
    ] {
        let found = rule.apply(&tensor(weight), &tensor(&gradient), multiplier).unwrap();
        assert_eq!(values(&found), gradient.data, "{rule:?} times {multiplier}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rule = Rule { force: Force::L2, strength: 1.0, direction: Direction::All, scaling: Scaling::Fixed };
    let zeros = |shape, dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let weight = zeros((4, 6), DType::F32);
    assert!(matches!(rule.apply(&weight, &zeros((6, 4), DType::F32), 1.0), Err(Error::GradientShape { .. })));
    assert!(matches!(rule.apply(&weight, &zeros((4, 6), DType::F64), 1.0), Err(Error::DType { .. })));
    assert!(matches!(rule.apply_grouped(&weight, &weight, 3, 1.0), Err(Error::Groups { .. })));
    assert!(matches!(rule.apply(&weight, &weight, f64::NAN), Err(Error::Coefficient { .. })));
    let endless = Rule { strength: f64::INFINITY, ..rule };
    assert!(matches!(endless.apply(&weight, &weight, 1.0), Err(Error::Coefficient { .. })));
}

#[test]
fn force_stops_for_good() {
    assert!(!stopped(0, None) && !stopped(u64::MAX, None));
    assert!(stopped(0, Some(0)));
    assert!(!stopped(99, Some(100)) && stopped(100, Some(100)) && stopped(101, Some(100)));
}

#[test]
fn recipes_are_read_strictly() {
    let rule = Rule {
        force: Force::Gravity,
        strength: -0.02,
        direction: Direction::Same,
        scaling: Scaling::Adaptive,
    };
    let text = r#"{"force":"gravity","strength":-0.02,"direction":"same","scaling":"adaptive"}"#;
    assert_eq!(serde_json::to_string(&rule).unwrap(), text);
    assert_eq!(serde_json::from_str::<Rule>(text).unwrap(), rule);
    let short: Rule = serde_json::from_str(r#"{"force":"l1","strength":1}"#).unwrap();
    assert_eq!((short.force, short.direction, short.scaling), (Force::L1, Direction::All, Scaling::Fixed));
    for lie in [
        r#"{"force":"Degradation","strength":1}"#,
        r#"{"force":"l1","strength":1,"direction":"some"}"#,
        r#"{"force":"l1","strength":1,"scaling":"relative"}"#,
        r#"{"force":"l1","strength":1,"decay":0.1}"#,
        r#"{"force":"l1"}"#,
    ] {
        assert!(serde_json::from_str::<Rule>(lie).is_err(), "{lie}");
    }
}

/// Gradient descent with the force alone.
fn descend(start: &Filters, rule: Rule, rate: f64, steps: usize) -> Filters {
    let mut weight = tensor(start);
    for _ in 0..steps {
        let gradient = rule.apply(&weight, &weight.zeros_like().unwrap(), 1.0).unwrap();
        weight = (weight - (gradient * rate).unwrap()).unwrap();
    }
    Filters { data: values(&weight), ..*start }
}

/// Squared share of the first principal direction in the normalised filters: 1 for rank 1.
fn first_direction_share(weight: &Filters) -> f64 {
    let unit: Vec<Vec<f64>> = (0..weight.count)
        .map(|i| weight.row(i).iter().map(|w| w / oracle::norm(weight.row(i))).collect())
        .collect();
    let mut direction = unit[0].clone();
    for _ in 0..1000 {
        let mut next = vec![0.0; weight.columns];
        for row in &unit {
            let along = oracle::dot(row, &direction);
            next.iter_mut().zip(row).for_each(|(n, w)| *n += along * w);
        }
        let length = oracle::norm(&next);
        direction = next.iter().map(|n| n / length).collect();
    }
    unit.iter().map(|row| oracle::dot(row, &direction).powi(2)).sum::<f64>() / weight.count as f64
}

#[test]
fn pure_force_ends_in_one_cluster() {
    let start = Generator(4).filters(12, 10);
    let attract = |force| Rule { force, strength: 1.0, direction: Direction::All, scaling: Scaling::Fixed };
    assert!(
        oracle::mean_cosine(&start) < 0.3 && first_direction_share(&start) < 0.5,
        "the start is a cluster already"
    );
    let end = descend(&start, attract(Force::L2), 0.02, 400);
    let cosine = oracle::mean_cosine(&end);
    assert!(cosine > 1.0 - 1e-9, "L2 stops at a mean cosine of {cosine}");
    assert!(first_direction_share(&end) > 1.0 - 1e-9);
    // The pull of L1 does not shrink with the distance, so the filters end by jumping about within a step of
    // each other.
    let end = descend(&start, attract(Force::L1), 0.002, 2000);
    let cosine = oracle::mean_cosine(&end);
    assert!(cosine > 0.999, "L1 stops at a mean cosine of {cosine}");
}

#[test]
fn negative_strength_spreads_a_cluster() {
    let start = Generator(5).cluster(8, 16, 0.3);
    let before = oracle::mean_cosine(&start);
    assert!(before > 0.9, "{before}");
    for force in [Force::L2, Force::L1] {
        let repel = Rule { force, strength: -1.0, direction: Direction::All, scaling: Scaling::Fixed };
        let after = oracle::mean_cosine(&descend(&start, repel, 0.02, 300));
        // Eight directions that cancel have a mean cosine of -1/7.
        assert!((after + 1.0 / 7.0).abs() < 0.02, "{force:?}: {before} -> {after}");
    }
}

#[test]
fn on_slices_the_rule_does_the_same() {
    let mut generator = Generator(2);
    let [weight, gradient] = [generator.filters(12, 18), generator.filters(12, 18)];
    let single = |filters: &Filters| tensor(filters).to_dtype(DType::F32).unwrap();
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (weight, gradient) = (single(&weight), single(&gradient));
    let (w, g) = (numbers(&weight), numbers(&gradient));
    for force in Force::ALL {
        for direction in [Direction::All, Direction::Same] {
            for scaling in [Scaling::Fixed, Scaling::Adaptive] {
                let rule = Rule { force, strength: -0.3, direction, scaling };
                let expected = numbers(&rule.apply_grouped(&weight, &gradient, 3, 0.5).unwrap());
                let mut pull = vec![f32::NAN; w.len()];
                gradient_into(&w, 12, 3, force, &mut pull, &mut Scratch::default()).unwrap();
                let norm = |values: &mut dyn Iterator<Item = &f32>| {
                    values.map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
                };
                let push = rule
                    .push(0.5, || {
                        let parts = pull.iter().zip(&g).filter(|(p, g)| direction.takes_part(**p, **g));
                        [norm(&mut g.iter()), norm(&mut parts.map(|(p, _)| p))]
                    })
                    .unwrap();
                let found: Vec<f32> = g.iter().zip(&pull).map(|(g, p)| push.apply(*g, *p)).collect();
                let error: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error <= if scaling == Scaling::Fixed { 0.0 } else { 1e-6 }, "{rule:?}: {error:e}");
                assert_ne!(found, g, "{rule:?}");
            }
        }
    }
    let rule =
        Rule { force: Force::L1, strength: f64::NAN, direction: Direction::All, scaling: Scaling::Fixed };
    assert!(matches!(rule.push(1.0, || [1.0; 2]), Err(Error::Coefficient { .. })));
}
