//! The spread of a layer against its definition in plain loops, and against what rank 1 loses.

use crate::oracle::{Filters, Generator, dot, norm};
use cofilter_force::{Error, remaining, spread};

fn single(filters: &Filters) -> Vec<f32> {
    filters.data.iter().map(|&w| w as f32).collect()
}

/// `1 - sum (W_i m^T)^2 / sum ||W_i||^2` with the mean direction of a group; the largest of all groups.
fn by_hand(weight: &Filters, groups: usize) -> f64 {
    let (size, mut largest) = (weight.count / groups, 0.0_f64);
    for group in (0..groups).map(|g| weight.block(g * size, (g + 1) * size)) {
        let mut mean = vec![0.0; group.columns];
        for i in 0..group.count {
            let length = norm(group.row(i));
            mean.iter_mut().zip(group.row(i)).for_each(|(m, w)| *m += w / length);
        }
        let length = norm(&mean);
        let inside: f64 = (0..group.count).map(|i| (dot(group.row(i), &mean) / length).powi(2)).sum();
        largest = largest.max(1.0 - inside / dot(&group.data, &group.data));
    }
    largest
}

/// Share of the energy that the best approximation of rank 1 loses, by iteration.
fn lost_by_rank_one(weight: &Filters) -> f64 {
    let mut direction = weight.row(0).to_vec();
    for _ in 0..200 {
        let mut next = vec![0.0; weight.columns];
        for i in 0..weight.count {
            let along = dot(weight.row(i), &direction);
            next.iter_mut().zip(weight.row(i)).for_each(|(n, w)| *n += along * w);
        }
        let length = norm(&next);
        direction = next.iter().map(|n| n / length).collect();
    }
    let kept: f64 = (0..weight.count).map(|i| dot(weight.row(i), &direction).powi(2)).sum();
    1.0 - kept / dot(&weight.data, &weight.data)
}

#[test]
fn equals_the_loop_and_bounds_what_rank_one_loses() {
    let mut generator = Generator(11);
    for (count, columns, groups) in [(1, 1, 1), (2, 3, 1), (12, 18, 3), (64, 576, 1), (300, 700, 2)] {
        for angle in [0.01, 0.3, 1.0, f64::INFINITY] {
            let weight = if angle.is_finite() {
                generator.cluster(count, columns, angle)
            } else {
                generator.filters(count, columns)
            }
            .rounded_to_f32();
            let found = spread(&single(&weight), count, groups).unwrap();
            let expected = by_hand(&weight, groups);
            assert!((found - expected).abs() < 1e-13, "{count}x{columns}/{groups}: {found}, {expected}");
            if groups == 1 {
                let lost = lost_by_rank_one(&weight);
                assert!(lost <= found + 1e-12, "{count}x{columns}: {lost} lost, spread {found}");
            }
        }
    }
}

#[test]
fn is_known_where_filters_are_parallel_orthogonal_opposite_or_nothing() {
    let of = |numbers: &[f32], filters| spread(numbers, filters, 1).unwrap();
    assert!(of(&[1.0, 2.0, 3.0, 6.0, 0.5, 1.0], 3) < 1e-15);
    assert!((of(&[2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0], 3) - 2.0 / 3.0).abs() < 1e-15);
    assert_eq!(of(&[1.0, 0.0, -4.0, 0.0], 2), 1.0);
    assert_eq!(of(&[0.0, 1e-5, 0.0, 0.0], 2), 0.0);
    // Eight filters that vanish add up to more than two that do not, and take no part.
    let faint = [7e-5; 16].into_iter();
    let faint: Vec<f32> = [2e-4, 0.0, 0.0, 2e-4].into_iter().chain(faint).collect();
    assert!((of(&faint, 10) - 0.5).abs() < 1e-7, "{}", of(&faint, 10));
    assert!(of(&[1.0, 0.0, f32::NAN, 1.0], 2).is_nan());
    // A group is not hidden by another.
    let groups = [1.0, 0.0, f32::NAN, 1.0, 3.0, 0.0, 6.0, 0.0, 1.0, 0.0, 0.0, 1.0];
    assert!(spread(&groups, 6, 3).unwrap().is_nan());
    assert!((spread(&groups[4..], 4, 2).unwrap() - 0.5).abs() < 1e-15);
    assert!(remaining(f64::NAN, 0.1).is_nan());
}

#[test]
fn a_force_ends_at_its_target() {
    let found = [0.0, 0.05, 0.1, 0.125, 0.15, 0.2, 0.9].map(|spread| remaining(spread, 0.1));
    let expected = [0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 1.0];
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}");
}

#[test]
fn equal_bits_for_any_number_of_threads() {
    let weight = single(&Generator(12).filters(300, 700));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| spread(&weight, 300, 3).unwrap()).to_bits()
    };
    assert!([2, 3, 7].into_iter().all(|threads| with(threads) == with(1)));
}

#[test]
fn what_is_no_matrix_of_filters_is_refused() {
    assert!(matches!(spread(&[], 2, 1), Err(Error::Shape { .. })));
    assert!(matches!(spread(&[1.0; 7], 2, 1), Err(Error::Shape { .. })));
    assert!(matches!(spread(&[1.0; 8], 0, 1), Err(Error::Shape { .. })));
    assert!(matches!(spread(&[1.0; 8], 4, 3), Err(Error::Groups { filters: 4, groups: 3 })));
    assert!(matches!(spread(&[1.0; 8], 4, 0), Err(Error::Groups { filters: 4, groups: 0 })));
}
