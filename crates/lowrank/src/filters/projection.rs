use super::normalised;
use crate::algebra::{TASKS, columns_of, eigen, solve};
use crate::factor::sign_of_largest;
use crate::layer::Layer;
use crate::method::kmeans;
use crate::{Error, Result};
use cofilter_graph::Model;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use serde::{Deserialize, Serialize};

/// Share of the scatter within clusters that is taken as even in all directions. A layer often has fewer filters than a filter has
/// weights; without it clusters would be drawn as points, however wide they are.
const EVEN: f64 = 0.5;
/// Shares of a variance that are rounding.
const NEGLIGIBLE: f64 = 1e-12;
/// As is a variance below this of all that filters of length 1 can have.
const NONE: f64 = 1e-20;

/// Which plane filters are drawn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// That of linear discriminant analysis: it shows the clusters as far apart as a plane can, measured by their width.
    Discriminant,
    /// That of the first two principal components, where there is no discriminant plane.
    Principal,
}

/// The filters of one layer in a plane, as the paper's poster draws them: filters of length 1, in clusters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Projection {
    /// The layer.
    pub name: String,
    /// Which plane it is.
    pub plane: Plane,
    /// Number of clusters that have filters, at most what was asked for.
    pub clusters: usize,
    /// Cluster of each filter, from 0; a lower cluster has a lower first filter.
    pub cluster: Vec<usize>,
    /// `[x, y]` of each filter: the distance of two is at most that of their directions.
    pub points: Vec<[f64; 2]>,
    /// Share of the variance of the normalised filters along each axis, at most 1 together; 0 where all are the same.
    pub share: [f64; 2],
    /// Share of that variance, in all directions, that lies between the clusters rather than in them.
    pub separation: f64,
}

/// The filters of this layer in the plane that tells their clusters apart; the network stays as it is.
///
/// `W` `[N, L]` has a filter in each row, those of all groups, divided by its L2 norm (a filter of zeros stays at zero). k-means gives
/// each a cluster. With `m` the mean of all filters, `m_k` and `n_k` mean and number of those of cluster `k`,
///
/// ```text
/// S_B = sum_k n_k (m_k - m)(m_k - m)^T        S_W = sum_k sum_{i in k} (w_i - m_k)(w_i - m_k)^T        both [L, L]
/// S = S_W / 2 + tr(S_W) / (2 P) I
/// ```
///
/// and the plane is spanned by the two directions with the largest `a^T S_B a / a^T S a` (Fisher 1936; more than two classes: Rao
/// 1948; the even part of `S`: Friedman 1989, with one half). Everything is computed in the `P` principal components that the
/// filters have. The first axis is the first of the directions, the second the part of the other that is at right angles to it;
/// filters are projected at right angles, after taking away `m`. The filter that is farthest out along an axis has a positive
/// coordinate.
///
/// Where fewer than three clusters have filters, their means lie on one line, or no cluster holds different filters, the plane is
/// [`Plane::Principal`].
///
/// # Errors
/// [`Error::UnknownLayer`], [`Error::NotALayer`], [`Error::Graph`] for a weight that is not finite, [`Error::Clusters`] for 0
/// clusters, [`Error::NoConvergence`].
pub fn projection(model: &Model, layer: &str, clusters: usize) -> Result<Projection> {
    let layer = Layer::find(model, "projection", layer)?;
    layer.check_finite()?;
    if clusters == 0 {
        return Err(Error::Clusters { layer: layer.name.into() });
    }
    let fail = || Error::NoConvergence { layer: layer.name.into() };
    let rows = components(layer.weight.data(), layer.len).ok_or_else(fail)?;
    let cluster = in_order(kmeans::cluster(&rows, clusters).cluster);
    let scatter = Scatter::new(&rows, &cluster);
    let (plane, axes) = match scatter.discriminants() {
        Some(axes) => (Plane::Discriminant, axes),
        None => (Plane::Principal, [0, 1].map(|axis| unit(scatter.size, axis))),
    };
    let mut points: Vec<[f64; 2]> =
        rows.iter().map(|row| axes.each_ref().map(|axis| dot(row, axis))).collect();
    for axis in 0..2 {
        let sign = sign_of_largest(points.iter().map(|point| point[axis]));
        points.iter_mut().for_each(|point| point[axis] *= sign);
    }
    let of_total =
        |variance: f64| if scatter.total > 0.0 { (variance / scatter.total).min(1.0) } else { 0.0 };
    let along = |axis: usize| of_total(points.iter().map(|point| point[axis].powi(2)).sum());
    Ok(Projection {
        name: layer.name.into(),
        plane,
        clusters: scatter.means.len(),
        share: [along(0), along(1)],
        separation: of_total(scatter.total - trace(&scatter.within)),
        cluster,
        points,
    })
}

/// The rows, normalised, in coordinates of their principal components: `[N, P]`, centred, variances falling. Distances stay.
fn components(weight: &[f32], len: usize) -> Option<Vec<Vec<f64>>> {
    let mut rows = normalised(weight, len);
    let count = rows.len() / len;
    #[expect(clippy::cast_precision_loss, reason = "filters of a layer")]
    let mean: Vec<f64> = (0..len)
        .map(|position| rows.iter().skip(position).step_by(len).sum::<f64>() / count as f64)
        .collect();
    for row in rows.chunks_exact_mut(len) {
        row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
    }
    // X [L, N], a filter in each column. X X^T = U S^2 U^T or X^T X = V S^2 V^T, whichever is smaller; coordinates are X^T U = V S.
    let x = columns_of(&rows, len);
    let par = Par::rayon(TASKS);
    let of_filters = count <= len;
    let size = count.min(len);
    let mut gram = Mat::zeros(size, size);
    let [left, right] = if of_filters { [x.transpose(), x.as_ref()] } else { [x.as_ref(), x.transpose()] };
    matmul(gram.as_mut(), Accum::Replace, left, right, 1.0, par);
    let (squares, vectors) = eigen(&gram, true)?;
    #[expect(clippy::cast_precision_loss, reason = "filters of a layer")]
    let least = squares.first().map_or(0.0, |largest| (NEGLIGIBLE * largest).max(NONE * count as f64));
    let kept = squares.iter().take_while(|square| **square > least).count();
    let mut found = Mat::zeros(count, kept);
    if of_filters {
        for (m, square) in squares[..kept].iter().enumerate() {
            (0..count).for_each(|row| found[(row, m)] = vectors[(row, m)] * square.sqrt());
        }
    } else {
        matmul(found.as_mut(), Accum::Replace, x.transpose(), vectors.subcols(0, kept), 1.0, par);
    }
    Some((0..count).map(|row| (0..kept).map(|m| found[(row, m)]).collect()).collect())
}

/// Clusters renamed by their first filter, without those that are empty.
fn in_order(cluster: Vec<usize>) -> Vec<usize> {
    let mut names: Vec<usize> = Vec::new();
    let name = |of: usize| {
        names.iter().position(|known| *known == of).unwrap_or_else(|| {
            names.push(of);
            names.len() - 1
        })
    };
    cluster.into_iter().map(name).collect()
}

/// What clusters of centred rows look like.
struct Scatter {
    /// `P`.
    size: usize,
    /// Filters and mean of each cluster.
    means: Vec<(f64, Vec<f64>)>,
    /// `S_W` `[P, P]`.
    within: Mat<f64>,
    /// `tr(S_B) + tr(S_W)`.
    total: f64,
}

impl Scatter {
    fn new(rows: &[Vec<f64>], cluster: &[usize]) -> Self {
        let size = rows.first().map_or(0, Vec::len);
        let count = cluster.iter().max().map_or(0, |last| last + 1);
        let mut means = vec![(0.0, vec![0.0; size]); count];
        for (row, of) in rows.iter().zip(cluster) {
            let (filters, sum) = &mut means[*of];
            *filters += 1.0;
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        for (filters, sum) in &mut means {
            sum.iter_mut().for_each(|sum| *sum /= *filters);
        }
        let off = Mat::from_fn(size, rows.len(), |m, row| rows[row][m] - means[cluster[row]].1[m]);
        let mut within = Mat::zeros(size, size);
        matmul(within.as_mut(), Accum::Replace, off.as_ref(), off.transpose(), 1.0, Par::rayon(TASKS));
        let total = rows.iter().map(|row| dot(row, row)).sum();
        Self { size, means, within, total }
    }

    /// `S`.
    fn regularised(&self) -> Mat<f64> {
        #[expect(clippy::cast_precision_loss, reason = "components of a layer")]
        let even = EVEN * trace(&self.within) / self.size as f64;
        Mat::from_fn(self.size, self.size, |i, j| {
            (1.0 - EVEN) * self.within[(i, j)] + if i == j { even } else { 0.0 }
        })
    }

    /// Two axes of length 1 at right angles, if there is a discriminant plane.
    fn discriminants(&self) -> Option<[Vec<f64>; 2]> {
        let count = self.means.len();
        if count < 3 || trace(&self.within) <= NEGLIGIBLE * self.total {
            return None;
        }
        // S_B = M M^T with a column sqrt(n_k) m_k for each cluster: S^-1 S_B a = l a has a = S^-1 M b with M^T S^-1 M b = l b,
        // which is as small as there are clusters.
        let means = Mat::from_fn(self.size, count, |m, k| self.means[k].0.sqrt() * self.means[k].1[m]);
        let solved = solve(self.regularised(), means.clone())?;
        let (ratios, vectors) = eigen(&(means.transpose() * &solved), true)?;
        if ratios[1] <= NEGLIGIBLE.sqrt() * ratios[0] {
            return None;
        }
        let axes = &solved * &vectors;
        let axis = |k: usize| axes.col(k).iter().copied().collect::<Vec<f64>>();
        let (first, second) = (to_unit(axis(0))?, axis(1));
        let shadow = dot(&first, &second);
        let second =
            to_unit(second.iter().zip(&first).map(|(value, first)| value - shadow * first).collect())?;
        Some([first, second])
    }
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The axis of one component; zeros where there are not as many.
fn unit(size: usize, axis: usize) -> Vec<f64> {
    (0..size).map(|m| if m == axis { 1.0 } else { 0.0 }).collect()
}

fn to_unit(vector: Vec<f64>) -> Option<Vec<f64>> {
    let length = dot(&vector, &vector).sqrt();
    (length > 0.0).then(|| vector.into_iter().map(|value| value / length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }
    }

    /// Centred rows `[count, size]` around as many centres as there are clusters.
    fn rows(count: usize, size: usize, clusters: usize) -> (Vec<Vec<f64>>, Vec<usize>) {
        let mut next = numbers(count as u64);
        let centres: Vec<Vec<f64>> = (0..clusters).map(|_| (0..size).map(|_| next()).collect()).collect();
        let mut rows: Vec<Vec<f64>> =
            (0..count).map(|i| centres[i % clusters].iter().map(|c| c + 0.3 * next()).collect()).collect();
        for m in 0..size {
            let mean = rows.iter().map(|row| row[m]).sum::<f64>() / count as f64;
            rows.iter_mut().for_each(|row| row[m] -= mean);
        }
        (rows, (0..count).map(|i| i % clusters).collect())
    }

    /// Both scatters by their definition, with the even part in the second.
    fn naive(rows: &[Vec<f64>], cluster: &[usize], clusters: usize) -> [Vec<Vec<f64>>; 2] {
        let size = rows[0].len();
        let own = |k: usize| rows.iter().zip(cluster).filter(move |(_, of)| **of == k).map(|(row, _)| row);
        let mean = |k: usize, m: usize| own(k).map(|row| row[m]).sum::<f64>() / own(k).count() as f64;
        let (mut between, mut within) = (vec![vec![0.0; size]; size], vec![vec![0.0; size]; size]);
        for k in 0..clusters {
            for i in 0..size {
                for j in 0..size {
                    between[i][j] += own(k).count() as f64 * mean(k, i) * mean(k, j);
                    within[i][j] +=
                        own(k).map(|row| (row[i] - mean(k, i)) * (row[j] - mean(k, j))).sum::<f64>();
                }
            }
        }
        let even = (0..size).map(|i| within[i][i]).sum::<f64>() / (2.0 * size as f64);
        for (i, row) in within.iter_mut().enumerate() {
            row.iter_mut().for_each(|value| *value /= 2.0);
            row[i] += even;
        }
        [between, within]
    }

    fn quadratic(matrix: &[Vec<f64>], a: &[f64]) -> f64 {
        matrix.iter().zip(a).map(|(row, a_i)| a_i * dot(row, a)).sum()
    }

    #[test]
    fn the_first_axis_is_the_best_direction_and_the_plane_holds_the_second() {
        for (count, size, clusters) in [(24, 6, 3), (12, 11, 4), (40, 9, 5)] {
            let (rows, cluster) = rows(count, size, clusters);
            let [between, within] = naive(&rows, &cluster, clusters);
            let [first, second] = Scatter::new(&rows, &cluster).discriminants().unwrap();
            assert!((dot(&first, &first) - 1.0).abs() < 1e-12 && (dot(&second, &second) - 1.0).abs() < 1e-12);
            assert!(dot(&first, &second).abs() < 1e-9);
            let ratio = |a: &[f64]| quadratic(&between, a) / quadratic(&within, a);
            let best = ratio(&first);
            // Stationary: S_B a = l S a.
            let off = |a: &[f64], l: f64| {
                let of = |row: usize| dot(&between[row], a) - l * dot(&within[row], a);
                (0..size).map(|row| of(row).powi(2)).sum::<f64>().sqrt()
            };
            assert!(off(&first, best) < 1e-9 * best, "{count}x{size}");
            // The second direction is in the plane: at right angles to the first in the sense of S.
            let across: f64 = within.iter().zip(&first).map(|(row, a)| a * dot(row, &second)).sum();
            let part = across / quadratic(&within, &first);
            let other: Vec<f64> = second.iter().zip(&first).map(|(s, f)| s - part * f).collect();
            assert!(off(&other, ratio(&other)) < 1e-9 * best, "{count}x{size}");
            let mut next = numbers(5);
            for _ in 0..200 {
                let a: Vec<f64> = (0..size).map(|_| next()).collect();
                assert!(ratio(&a) <= best * (1.0 + 1e-12));
                let across: f64 = within.iter().zip(&first).map(|(row, f)| f * dot(row, &a)).sum();
                let part = across / quadratic(&within, &first);
                let a: Vec<f64> = a.iter().zip(&first).map(|(a, f)| a - part * f).collect();
                assert!(ratio(&a) <= ratio(&other) * (1.0 + 1e-12));
            }
        }
    }

    #[test]
    fn components_keep_distances_whichever_matrix_is_smaller() {
        let mut next = numbers(3);
        for (count, len) in [(5, 20), (20, 5), (1, 4), (7, 7)] {
            let weight: Vec<f32> = (0..count * len).map(|_| next() as f32).collect();
            let unit = normalised(&weight, len);
            let found = components(&weight, len).unwrap();
            assert!(found.iter().all(|row| row.len() <= len.min(count.saturating_sub(1))));
            let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            for i in 0..count {
                for j in 0..i {
                    let expected = distance(&unit[i * len..][..len], &unit[j * len..][..len]);
                    assert!((distance(&found[i], &found[j]) - expected).abs() < 1e-10, "{count}x{len}");
                }
            }
        }
    }
}
