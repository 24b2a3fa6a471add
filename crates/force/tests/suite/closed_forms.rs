//! Closed forms against the pair loop.

use crate::oracle::{self, Filters, Generator};
use candle_core::{DType, Device, Tensor};
use cofilter_force::{Error, Force, gradient, gradient_grouped};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn tensor(filters: &Filters, dtype: DType) -> Tensor {
    let tensor = Tensor::from_slice(&filters.data, (filters.count, filters.columns), &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn closed(filters: &Filters, force: Force, dtype: DType) -> Vec<f64> {
    let result = gradient(&tensor(filters, dtype), force).unwrap();
    assert_eq!(result.dtype(), dtype);
    values(&result)
}

/// Random filters, with every special row the pair loop has a rule for.
fn special(generator: &mut Generator) -> Filters {
    let mut filters = generator.filters(20, 27);
    filters.row_mut(3).fill(0.0);
    let first = filters.row(0).to_vec();
    let set = |filters: &mut Filters, i: usize, scale: f64| {
        filters.row_mut(i).iter_mut().zip(&first).for_each(|(to, from)| *to = scale * from);
    };
    set(&mut filters, 4, 1.0);
    set(&mut filters, 5, 2.5);
    set(&mut filters, 6, 1.0 / 3.0);
    set(&mut filters, 7, -1.0);
    set(&mut filters, 8, -0.7);
    set(&mut filters, 9, 5e-5 / oracle::norm(&first));
    set(&mut filters, 10, 2e-4 / oracle::norm(&first));
    filters
}

#[test]
fn f64_equals_pair_loop() {
    for (seed, (count, columns)) in
        [(1, 5), (2, 3), (7, 2), (20, 27), (33, 200), (64, 576), (70, 2304), (2, 70000)]
            .into_iter()
            .enumerate()
    {
        let filters = Generator(seed as u64).filters(count, columns);
        for force in Force::ALL {
            let (found, expected) = (closed(&filters, force, DType::F64), oracle::gradient(&filters, force));
            if count == 1 {
                assert!(oracle::norm(&found) < 1e-14 && oracle::norm(&expected) == 0.0);
            } else {
                assert!(oracle::error(&found, &expected) < 1e-12, "{force:?} {count}x{columns}");
            }
        }
    }
}

#[test]
fn zero_coincident_parallel_and_antipodal_filters() {
    let filters = special(&mut Generator(40));
    for force in Force::ALL {
        let (found, expected) = (closed(&filters, force, DType::F64), oracle::gradient(&filters, force));
        let error = oracle::error(&found, &expected);
        println!("{force:?} {error:e}");
        assert!(error < 1e-12, "{force:?}: {error:e}");
        for vanishing in [3, 9] {
            let row = &found[vanishing * 27..][..27];
            assert!(row.iter().all(|&value| value == 0.0), "{force:?}: row {vanishing} moves: {row:?}");
        }
        assert!(
            oracle::norm(&found[10 * 27..][..27]) > 0.0,
            "{force:?}: a norm of 2e-4 does not count as zero"
        );
        let f32 = filters.rounded_to_f32();
        let error = oracle::error(&closed(&f32, force, DType::F32), &oracle::gradient(&f32, force));
        println!("{force:?} f32 {error:e}");
        assert!(error < 1e-6, "{force:?} in f32: {error:e}");
    }
}

/// Pairs at angles down to where the rule skips them, and whole clusters of nearly parallel filters.
fn nearly_parallel() -> Vec<(f64, String, Filters)> {
    let mut generator = Generator(50);
    let mut cases = Vec::new();
    for angle in [1e-1, 1e-2, 1e-3, 3e-4, 1.1e-4] {
        let mut filters = generator.filters(12, 144);
        let first = filters.row(0).to_vec();
        let other = filters.row(1).to_vec();
        let along = oracle::dot(&first, &other) / oracle::dot(&first, &first);
        let across: Vec<f64> = first.iter().zip(&other).map(|(a, b)| b - along * a).collect();
        let ratio = angle * oracle::norm(&first) / oracle::norm(&across);
        for (k, to) in filters.row_mut(1).iter_mut().enumerate() {
            *to = 1.7 * (first[k] + ratio * across[k]);
        }
        cases.push((angle, format!("a pair at {angle:e}"), filters.block(0, 2)));
        cases.push((angle, format!("a pair at {angle:e} among others"), filters));
    }
    for angle in [1e-2, 1e-3] {
        for columns in [27, 576] {
            cases.push((
                angle,
                format!("16x{columns} within {angle:e}"),
                generator.cluster(16, columns, angle),
            ));
        }
    }
    let mut two = generator.cluster(8, 288, 1e-3);
    two.data.extend(generator.cluster(8, 288, 1e-3).data);
    two.count = 16;
    cases.push((1e-3, "two clusters within 1e-3".into(), two));
    cases
}

#[test]
fn nearly_parallel_filters() {
    for (angle, name, filters) in nearly_parallel() {
        let filters = filters.rounded_to_f32();
        for force in Force::ALL {
            let expected = oracle::gradient(&filters, force);
            let single = oracle::error(&closed(&filters, force, DType::F32), &expected);
            let double = oracle::error(&closed(&filters, force, DType::F64), &expected);
            println!("{name} {force:?}: f32 {single:.1e} f64 {double:.1e}");
            assert!(single < 1e-6, "{name}, {force:?} in f32: {single:e}");
            // The directions themselves are rounded, which weighs 1 / angle in their differences.
            assert!(double < 2e-14 / angle, "{name}, {force:?} in f64: {double:e}");
        }
    }
}

/// The matrix form of the authors' GPU code, in `f32`: what the cases above would catch.
fn gram_form_in_f32(filters: &Filters) -> Vec<f64> {
    let weight = tensor(filters, DType::F32);
    let norm = weight.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    let unit = weight.broadcast_div(&norm).unwrap();
    let gram = unit.matmul(&unit.t().unwrap()).unwrap();
    let distance = gram.affine(-2.0, 2.0).unwrap().relu().unwrap().sqrt().unwrap();
    let zero = distance.zeros_like().unwrap();
    let inverse = distance.gt(1e-4).unwrap().where_cond(&distance.recip().unwrap(), &zero).unwrap();
    let pull = inverse.matmul(&unit).unwrap().neg().unwrap();
    let along = (&pull * &unit).unwrap().sum_keepdim(1).unwrap();
    values(&(pull - unit.broadcast_mul(&along).unwrap()).unwrap().broadcast_mul(&norm).unwrap())
}

#[test]
fn gram_form_in_f32_fails_where_ours_holds() {
    let random = Generator(60).filters(16, 144).rounded_to_f32();
    let error = oracle::error(&gram_form_in_f32(&random), &oracle::gradient(&random, Force::L1));
    assert!(error < 1e-4, "the comparison is written down wrongly: {error:e}");
    let cluster = Generator(61).cluster(16, 144, 1e-3).rounded_to_f32();
    let error = oracle::error(&gram_form_in_f32(&cluster), &oracle::gradient(&cluster, Force::L1));
    assert!(error > 1e-2, "nearly parallel filters should be out of its reach: {error:e}");
}

#[test]
fn gradient_is_tangential() {
    for filters in
        [Generator(70).filters(24, 100), special(&mut Generator(71)), Generator(72).cluster(16, 60, 1e-3)]
    {
        for force in Force::ALL {
            let found = closed(&filters, force, DType::F64);
            for i in 0..filters.count {
                let row = &found[i * filters.columns..][..filters.columns];
                let radial = oracle::dot(row, filters.row(i)).abs();
                let bound = 1e-11 * oracle::norm(row) * oracle::norm(filters.row(i));
                assert!(radial <= bound + f64::MIN_POSITIVE, "{force:?} row {i}: {radial:e} > {bound:e}");
            }
        }
    }
}

/// `R(W)` of paper notes 1.3: both sums over all pairs, as printed.
fn regulariser(weight: &Filters, force: Force) -> f64 {
    let mut total = 0.0;
    for i in 0..weight.count {
        for j in 0..weight.count {
            let (a, b) = (weight.row(i), weight.row(j));
            let (norm_a, norm_b) = (oracle::norm(a), oracle::norm(b));
            let squared: f64 = a.iter().zip(b).map(|(x, y)| (x / norm_a - y / norm_b).powi(2)).sum();
            total += if force == Force::L2 { 0.5 * squared } else { squared.sqrt() };
        }
    }
    total
}

#[test]
fn gradient_is_that_of_the_regulariser_up_to_the_paper_s_factor() {
    let weight = Generator(80).filters(8, 20);
    for force in [Force::L2, Force::L1] {
        let found = closed(&weight, force, DType::F64);
        let mut expected = vec![0.0; found.len()];
        for (k, value) in expected.iter_mut().enumerate() {
            let step = 1e-5;
            let [ahead, behind] = [step, -step].map(|step| {
                let mut moved = weight.clone();
                moved.data[k] += step;
                regulariser(&moved, force)
            });
            let norm = oracle::norm(weight.row(k / weight.columns));
            *value = norm * norm / 2.0 * (ahead - behind) / (2.0 * step);
        }
        let error = oracle::error(&found, &expected);
        assert!(error < 1e-7, "{force:?}: {error:e}");
    }
}

#[test]
fn groups_do_not_see_each_other() {
    // The second is handled in several blocks of filters.
    for filters in [Generator(90).filters(24, 45), Generator(91).filters(24, 5000)] {
        check_groups(&filters);
    }
}

fn check_groups(filters: &Filters) {
    for groups in [1, 2, 3, 8, 24] {
        for force in Force::ALL {
            let found = values(&gradient_grouped(&tensor(filters, DType::F64), groups, force).unwrap());
            let expected = oracle::gradient_grouped(filters, groups, force);
            if groups == 24 {
                assert!(
                    oracle::norm(&found) < 1e-14 * oracle::norm(&filters.data)
                        && oracle::norm(&expected) == 0.0,
                    "{force:?}: alone in a group"
                );
                continue;
            }
            let error = oracle::error(&found, &expected);
            assert!(error < 1e-12, "{force:?} in {groups} groups: {error:e}");
            let mixed = oracle::error(&oracle::gradient(filters, force), &expected);
            assert!(groups == 1 || mixed > 1e-2, "grouping makes no difference: {mixed:e}");
        }
    }
}

#[test]
fn shape_and_layout_of_the_weight_are_kept() {
    let filters = Generator(100).filters(6, 24);
    let flat = tensor(&filters, DType::F64);
    let kernels = flat.reshape((6, 2, 3, 4)).unwrap();
    let strided = flat.t().unwrap().contiguous().unwrap().t().unwrap();
    for force in Force::ALL {
        let expected = gradient(&flat, force).unwrap();
        let found = gradient(&kernels, force).unwrap();
        assert_eq!(found.dims(), [6, 2, 3, 4]);
        assert_eq!(values(&found), values(&expected));
        assert_eq!(values(&gradient(&strided, force).unwrap()), values(&expected));
    }
}

#[test]
fn what_cannot_be_a_weight_is_refused() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for shape in [&[] as &[usize], &[4], &[0, 3], &[3, 0]] {
        assert!(
            matches!(gradient(&zeros(shape, DType::F32), Force::L2), Err(Error::Shape { .. })),
            "{shape:?}"
        );
    }
    assert!(matches!(gradient(&zeros(&[4, 3], DType::U32), Force::L2), Err(Error::DType { .. })));
    for groups in [0, 3] {
        let result = gradient_grouped(&zeros(&[4, 3], DType::F32), groups, Force::L1);
        assert!(matches!(result, Err(Error::Groups { filters: 4, groups: found }) if found == groups));
    }
}

#[test]
fn nan_is_not_hidden() {
    for force in Force::ALL {
        for dtype in [DType::F32, DType::F64] {
            let mut filters = Generator(110).filters(4, 9);
            filters.data[13] = f64::NAN;
            assert!(closed(&filters, force, dtype).iter().any(|value| value.is_nan()), "{force:?} {dtype:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, rng_seed: RngSeed::Fixed(20170309), failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_shape_equals_pair_loop(
        groups in 1usize..4, size in 2usize..12, columns in 2usize..80, seed: u64, force in 0usize..4,
    ) {
        let filters = Generator(seed).filters(groups * size, columns).rounded_to_f32();
        let force = Force::ALL[force];
        let expected = oracle::gradient_grouped(&filters, groups, force);
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6)] {
            let found = gradient_grouped(&tensor(&filters, dtype), groups, force).unwrap();
            let error = oracle::error(&values(&found), &expected);
            prop_assert!(error < tolerance, "{:?} {:?}: {:e}", force, dtype, error);
        }
    }
}
