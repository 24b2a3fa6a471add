//! Cosines between filters, and filters in a plane.

use crate::oracle::{Numbers, one_conv, one_linear};
use cofilter_graph::{Array, Conv2d, Model, Shape};
use cofilter_lowrank::{Plane, Projection, Similarity, projection, similarity};

/// A convolution of 1x1 with these filters, group after group.
fn conv(filters: &[Vec<f64>], groups: usize) -> Model {
    let (count, len) = (filters.len(), filters[0].len());
    let weight = filters.concat().into_iter().map(|w| w as f32).collect::<Vec<_>>();
    let weight = Array::new(vec![count, len, 1, 1], weight);
    one_conv(Shape::map(len * groups, 2, 2), &Conv2d { groups, ..Conv2d::new(count, 1) }, weight, None)
}

fn random(count: usize, len: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut numbers = Numbers::new(seed);
    // As they are stored.
    (0..count).map(|_| (0..len).map(|_| f64::from(numbers.next() as f32)).collect()).collect()
}

/// Filters around as many directions as there are clusters, in turns.
fn planted(count: usize, len: usize, clusters: usize, noise: f64) -> Vec<Vec<f64>> {
    let directions = random(clusters, len, 77);
    let mut rows = random(count, len, 78);
    for (i, row) in rows.iter_mut().enumerate() {
        row.iter_mut().zip(&directions[i % clusters]).for_each(|(w, d)| *w = d + noise * *w);
    }
    rows
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn naive(a: &[f64], b: &[f64]) -> f64 {
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

fn of(filters: &[Vec<f64>], groups: usize) -> Similarity {
    similarity(&conv(filters, groups), "conv").unwrap()
}

#[test]
fn cosines_and_their_means_are_those_of_loops() {
    for (count, len, groups) in [(6, 5, 1), (12, 4, 3), (40, 7, 1), (4, 3, 4), (1, 3, 1)] {
        let mut filters = random(count, len, count as u64);
        if count > 4 {
            filters[2] = vec![0.0; len];
            filters[4] = filters[3].iter().map(|w| -0.5 * w).collect();
        }
        let found = of(&filters, groups);
        let size = count / groups;
        assert_eq!((found.filters, found.groups, found.cosines.len()), (count, groups, groups));
        let (mut sum, mut pairs, mut nearest) = (0.0, 0, 0.0);
        for i in 0..count {
            let mut largest: f64 = 0.0;
            for j in 0..count {
                if i / size != j / size {
                    assert_eq!(found.cosine(i, j), None);
                    continue;
                }
                let (cosine, expected) = (found.cosine(i, j).unwrap(), naive(&filters[i], &filters[j]));
                assert!((cosine - expected).abs() < 1e-12, "{i}, {j}: {cosine}, expected {expected}");
                if i != j {
                    (sum, pairs, largest) = (sum + expected.abs(), pairs + 1, largest.max(expected.abs()));
                }
            }
            nearest += largest / count as f64;
        }
        let mean = if pairs > 0 { sum / f64::from(pairs) } else { 0.0 };
        assert!((found.mean - mean).abs() < 1e-12 && (found.mean_nearest - nearest).abs() < 1e-12);
        let mut order = found.order.clone();
        assert!(order.chunks(size).enumerate().all(|(g, of)| of.iter().all(|filter| filter / size == g)));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..count), "every filter once");
    }
}

#[test]
fn lengths_do_not_matter_and_signs_do() {
    let filters = random(8, 6, 3);
    let scaled: Vec<Vec<f64>> = (0..8)
        .map(|i| filters[i].iter().map(|w| w * f64::powi(2.0, 20 * (i as i32 - 4))).collect())
        .collect();
    assert_eq!(of(&scaled, 1), of(&filters, 1));
    let mut turned = filters.clone();
    turned[3].iter_mut().for_each(|w| *w = -*w);
    let (before, after) = (of(&filters, 1), of(&turned, 1));
    assert_eq!(before.cosine(3, 5).unwrap(), -after.cosine(3, 5).unwrap());
    assert_eq!((before.mean, before.mean_nearest), (after.mean, after.mean_nearest));
}

#[test]
fn similar_filters_are_side_by_side() {
    let found = of(&planted(24, 30, 4, 0.2), 1);
    let runs = found.order.windows(2).filter(|pair| pair[0] % 4 != pair[1] % 4).count();
    assert_eq!(runs, 3, "{:?}", found.order);
    assert_eq!(found.order[0], 0);
}

/// Rows of length 1 around their mean, and the squares of all.
fn centred(filters: &[Vec<f64>]) -> (Vec<Vec<f64>>, f64) {
    let mut rows: Vec<Vec<f64>> = filters
        .iter()
        .map(|row| {
            let norm = dot(row, row).sqrt();
            row.iter().map(|w| if norm > 0.0 { w / norm } else { 0.0 }).collect()
        })
        .collect();
    for position in 0..rows[0].len() {
        let mean = rows.iter().map(|row| row[position]).sum::<f64>() / rows.len() as f64;
        rows.iter_mut().for_each(|row| row[position] -= mean);
    }
    let total = rows.iter().map(|row| dot(row, row)).sum();
    (rows, total)
}

/// What holds for every plane: it is a projection at right angles, and the shares are those of its coordinates.
fn check(found: &Projection, filters: &[Vec<f64>]) {
    let (rows, total) = centred(filters);
    assert_eq!((found.points.len(), found.cluster.len()), (rows.len(), rows.len()));
    for axis in 0..2 {
        let along: Vec<f64> = found.points.iter().map(|point| point[axis]).collect();
        assert!(along.iter().sum::<f64>().abs() < 1e-9, "centred");
        let share = if total > 0.0 { dot(&along, &along) / total } else { 0.0 };
        assert!((found.share[axis] - share).abs() < 1e-9, "{:?}, {share}", found.share);
        let (least, most) = along.iter().fold((0.0f64, 0.0f64), |(l, m), v| (l.min(*v), m.max(*v)));
        assert!(most >= -least, "the farthest is positive");
    }
    assert!(found.share[0] + found.share[1] <= 1.0 + 1e-9);
    for i in 0..rows.len() {
        for j in 0..i {
            let whole: f64 = rows[i].iter().zip(&rows[j]).map(|(a, b)| (a - b).powi(2)).sum();
            let flat: f64 = found.points[i].iter().zip(&found.points[j]).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(flat <= whole + 1e-9, "{i}, {j}: {flat} in the plane, {whole}");
        }
    }
    // Clusters are named in the order of their first filters, and their share is that of loops.
    let mut known = 0;
    for cluster in &found.cluster {
        assert!(*cluster <= known);
        known = known.max(cluster + 1);
    }
    assert_eq!(known, found.clusters);
    let mut between = 0.0;
    for cluster in 0..known {
        let own: Vec<&Vec<f64>> =
            rows.iter().zip(&found.cluster).filter(|(_, of)| **of == cluster).map(|(row, _)| row).collect();
        for position in 0..rows[0].len() {
            between += own.iter().map(|row| row[position]).sum::<f64>().powi(2) / own.len() as f64;
        }
    }
    let separation = if total > 0.0 { between / total } else { 0.0 };
    assert!((found.separation - separation).abs() < 1e-9, "{}, {separation}", found.separation);
}

#[test]
fn planted_clusters_are_found_and_lie_apart() {
    for (count, len) in [(24, 60), (60, 12)] {
        let filters = planted(count, len, 4, 0.3);
        let found = projection(&conv(&filters, 1), "conv", 4).unwrap();
        check(&found, &filters);
        assert_eq!((found.plane, found.clusters), (Plane::Discriminant, 4));
        assert!(
            found.cluster.iter().enumerate().all(|(i, cluster)| *cluster == i % 4),
            "{:?}",
            found.cluster
        );
        assert!(found.separation > 0.7, "{}", found.separation);
        // Any two filters of a cluster are nearer to each other than to one of another.
        let distance = |i: usize, j: usize| {
            found.points[i].iter().zip(&found.points[j]).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
        };
        let pairs = || (0..count).flat_map(|i| (0..i).map(move |j| (i, j)));
        let widest = pairs().filter(|(i, j)| i % 4 == j % 4).map(|(i, j)| distance(i, j)).fold(0.0, f64::max);
        let closest =
            pairs().filter(|(i, j)| i % 4 != j % 4).map(|(i, j)| distance(i, j)).fold(9.0, f64::min);
        assert!(closest > widest, "{count}x{len}: {closest} between, {widest} within");
    }
}

#[test]
fn every_shape_has_its_plane() {
    for (count, len, groups, clusters) in [(9, 20, 1, 4), (30, 4, 1, 5), (12, 6, 3, 3), (64, 90, 1, 4)] {
        let filters = random(count, len, len as u64);
        let found = projection(&conv(&filters, groups), "conv", clusters).unwrap();
        check(&found, &filters);
        assert_eq!((found.plane, found.clusters), (Plane::Discriminant, clusters));
    }
    // Too few filters or clusters, or no width: principal components.
    for (count, len, clusters) in
        [(1, 4, 4), (2, 5, 4), (3, 6, 4), (4, 6, 4), (20, 6, 2), (20, 6, 1), (5, 1, 3)]
    {
        let filters = random(count, len, 5);
        let found = projection(&conv(&filters, 1), "conv", clusters).unwrap();
        check(&found, &filters);
        assert_eq!(found.plane, Plane::Principal, "{count}x{len} in {clusters}");
        if count <= 3 {
            let share = found.share[0] + found.share[1];
            assert!(count == 1 || (share - 1.0).abs() < 1e-9, "three points lie in a plane: {share}");
        }
    }
}

#[test]
fn principal_components_hold_the_most_variance() {
    let filters = random(20, 6, 9);
    let principal = projection(&conv(&filters, 1), "conv", 1).unwrap();
    let discriminant = projection(&conv(&filters, 1), "conv", 4).unwrap();
    let share = |of: &Projection| of.share[0] + of.share[1];
    assert!(share(&principal) >= share(&discriminant));
    assert_eq!((principal.separation, principal.clusters), (0.0, 1));
}

#[test]
fn zeros_and_equal_filters() {
    let zeros = vec![vec![0.0; 5]; 6];
    let found = projection(&conv(&zeros, 1), "conv", 4).unwrap();
    assert!(found.points.iter().all(|point| *point == [0.0, 0.0]) && found.share == [0.0, 0.0]);
    assert_eq!((of(&zeros, 1).mean, of(&zeros, 1).mean_nearest), (0.0, 0.0));
    let equal = vec![vec![1.0, 2.0, -1.0]; 6];
    let found = projection(&conv(&equal, 1), "conv", 4).unwrap();
    assert!(found.points.iter().flatten().all(|v| v.abs() < 1e-7));
    assert!((of(&equal, 1).mean - 1.0).abs() < 1e-12);
    let mut some = random(12, 5, 4);
    some[7] = vec![0.0; 5];
    check(&projection(&conv(&some, 1), "conv", 4).unwrap(), &some);
}

#[test]
fn fully_connected_layers_and_plain_data() {
    let model = one_linear(Numbers::new(2).array(&[10, 7]), None);
    let (alike, flat) = (similarity(&model, "fc").unwrap(), projection(&model, "fc", 3).unwrap());
    let text = serde_json::to_string(&(&alike, &flat)).unwrap();
    assert_eq!(serde_json::from_str::<(Similarity, Projection)>(&text).unwrap(), (alike, flat));
    assert!(text.contains(r#""plane":"discriminant""#), "{text}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let model = one_linear(Numbers::new(8).array(&[90, 300]), None);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (similarity(&model, "fc").unwrap(), projection(&model, "fc", 4).unwrap()))
    };
    let first = run(1);
    assert!(first == run(2) && first == run(5));
}
