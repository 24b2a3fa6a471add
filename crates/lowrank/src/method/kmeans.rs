//! Clusters of filters.

/// Starts of which the best is taken.
const STARTS: u64 = 8;
/// Rounds after which a start ends though filters still change clusters.
const ROUNDS: usize = 300;

/// The weights of a group's two new layers at this rank.
pub(super) fn weights(weight: &[f64], len: usize, rank: usize) -> Vec<Vec<f64>> {
    let rows: Vec<Vec<f64>> = weight.chunks_exact(len).map(<[f64]>::to_vec).collect();
    let Clusters { centres, cluster, .. } = self::cluster(&rows, rank);
    let mut copies = vec![0.0; rows.len() * rank];
    cluster.iter().enumerate().for_each(|(row, m)| copies[row * rank + m] = 1.0);
    vec![centres.concat(), copies]
}

pub(crate) struct Clusters {
    centres: Vec<Vec<f64>>,
    /// Of each filter.
    pub(crate) cluster: Vec<usize>,
    /// Sum of squared distances to the centres.
    lost: f64,
}

/// The best of several starts.
pub(crate) fn cluster(rows: &[Vec<f64>], count: usize) -> Clusters {
    if count >= rows.len() {
        return Clusters { centres: rows.to_vec(), cluster: (0..rows.len()).collect(), lost: 0.0 };
    }
    let starts = (0..STARTS).map(|seed| lloyd(rows, spread(rows, count, seed)));
    starts.min_by(|a, b| a.lost.total_cmp(&b.lost)).expect("there is a start")
}

/// k-means++ (Arthur and Vassilvitskii 2007): each centre is a row, drawn by its squared distance to those before.
fn spread(rows: &[Vec<f64>], count: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D;
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place among the rows"
    )]
    let first = ((uniform() * rows.len() as f64) as usize).min(rows.len() - 1);
    let mut centres = vec![rows[first].clone()];
    let mut nearest: Vec<f64> = rows.iter().map(|row| distance(row, &rows[first])).collect();
    while centres.len() < count {
        let target = uniform() * nearest.iter().sum::<f64>();
        let mut passed = 0.0;
        let drawn = nearest.iter().position(|d| {
            passed += d;
            *d > 0.0 && passed >= target
        });
        // Fewer different rows than centres: copies of the first.
        let row = drawn.or_else(|| nearest.iter().rposition(|d| *d > 0.0)).unwrap_or(0);
        centres.push(rows[row].clone());
        nearest.iter_mut().zip(rows).for_each(|(d, other)| *d = d.min(distance(other, &rows[row])));
    }
    centres
}

/// Rows to the nearest centre, centres to the mean of their rows, until no row changes.
fn lloyd(rows: &[Vec<f64>], mut centres: Vec<Vec<f64>>) -> Clusters {
    let mut cluster = vec![usize::MAX; rows.len()];
    for _ in 0..ROUNDS {
        let next: Vec<usize> = rows.iter().map(|row| nearest(row, &centres)).collect();
        let settled = next == cluster;
        cluster = next;
        if settled {
            break;
        }
        for (m, centre) in centres.iter_mut().enumerate() {
            let own = || rows.iter().zip(&cluster).filter(|(_, of)| **of == m).map(|(row, _)| row);
            #[expect(clippy::cast_precision_loss, reason = "filters of a layer")]
            let size = own().count() as f64;
            if size > 0.0 {
                for (position, value) in centre.iter_mut().enumerate() {
                    *value = own().map(|row| row[position]).sum::<f64>() / size;
                }
            }
        }
        // A centre without rows takes the row that is farthest from its own.
        for m in 0..centres.len() {
            if !cluster.contains(&m) {
                let far = |row: usize| distance(&rows[row], &centres[cluster[row]]);
                let farthest = (0..rows.len()).max_by(|a, b| far(*a).total_cmp(&far(*b))).unwrap_or(0);
                centres[m].clone_from(&rows[farthest]);
                cluster[farthest] = m;
            }
        }
    }
    let lost = rows.iter().zip(&cluster).map(|(row, m)| distance(row, &centres[*m])).sum();
    Clusters { centres, cluster, lost }
}

fn nearest(row: &[f64], centres: &[Vec<f64>]) -> usize {
    let distances = centres.iter().map(|centre| distance(row, centre)).enumerate();
    distances.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(m, _)| m)
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum()
}
