//! The formulas as printed, in plain loops over `f64`; and seeded numbers to try them on.

use cofilter_force::Force;

/// The authors' `ZERO_THRESHOLD`, on purpose not the crate's constant.
const ZERO: f64 = 1e-4;

/// A dense matrix of filters, row-major.
#[derive(Clone, Debug)]
pub(crate) struct Filters {
    pub(crate) count: usize,
    pub(crate) columns: usize,
    pub(crate) data: Vec<f64>,
}

impl Filters {
    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.columns..][..self.columns]
    }

    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.data[i * self.columns..][..self.columns]
    }

    /// `f32` weights are exact in `f64`, so both precisions can be given the same filters.
    pub(crate) fn rounded_to_f32(&self) -> Filters {
        Filters { data: self.data.iter().map(|&value| f64::from(value as f32)).collect(), ..*self }
    }

    /// Filters `from..to`.
    pub(crate) fn block(&self, from: usize, to: usize) -> Filters {
        let data = self.data[from * self.columns..to * self.columns].to_vec();
        Filters { count: to - from, columns: self.columns, data }
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// Largest distance of two matrices' entries, relative to the norm of the second.
pub(crate) fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<f64> = found.iter().zip(expected).map(|(x, y)| x - y).collect();
    norm(&difference) / norm(expected)
}

/// `G` as the pair loop of the authors' CPU code: paper notes 1.4 (formula), 2.2 (exponents), 2.3 (skipped
/// pairs).
pub(crate) fn gradient(weight: &Filters, force: Force) -> Vec<f64> {
    let p = match force {
        Force::L2 => 0,
        Force::L1 => 1,
        Force::Linear => 2,
        Force::Gravity => 3,
    };
    let mut result = vec![0.0; weight.data.len()];
    for i in 0..weight.count {
        let norm_i = norm(weight.row(i));
        let mut sum = vec![0.0; weight.columns];
        for j in 0..weight.count {
            let norm_j = norm(weight.row(j));
            if i == j || norm_i <= ZERO || norm_j <= ZERO {
                continue;
            }
            let difference: Vec<f64> =
                weight.row(i).iter().zip(weight.row(j)).map(|(a, b)| a / norm_i - b / norm_j).collect();
            let distance = norm(&difference);
            if p >= 1 && distance <= ZERO {
                continue;
            }
            for (total, u) in sum.iter_mut().zip(difference) {
                *total += u / distance.powi(p);
            }
        }
        if norm_i <= ZERO {
            continue;
        }
        let unit: Vec<f64> = weight.row(i).iter().map(|w| w / norm_i).collect();
        let along = dot(&sum, &unit);
        for (k, value) in result[i * weight.columns..][..weight.columns].iter_mut().enumerate() {
            *value = norm_i * (sum[k] - along * unit[k]);
        }
    }
    result
}

/// [`gradient`] of every group on its own.
pub(crate) fn gradient_grouped(weight: &Filters, groups: usize, force: Force) -> Vec<f64> {
    let size = weight.count / groups;
    (0..groups).flat_map(|g| gradient(&weight.block(g * size, (g + 1) * size), force)).collect()
}

/// Mean cosine over the pairs of different filters.
pub(crate) fn mean_cosine(weight: &Filters) -> f64 {
    let mut total = 0.0;
    for i in 0..weight.count {
        for j in 0..i {
            let (a, b) = (weight.row(i), weight.row(j));
            total += dot(a, b) / (norm(a) * norm(b));
        }
    }
    total / (weight.count * (weight.count - 1) / 2) as f64
}

/// Splitmix64: small, seeded, the same everywhere.
pub(crate) struct Generator(pub(crate) u64);

impl Generator {
    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Filters in random directions with norms between `0.1` and `3` times the root of their length.
    pub(crate) fn filters(&mut self, count: usize, columns: usize) -> Filters {
        let mut data = Vec::with_capacity(count * columns);
        for _ in 0..count {
            let scale = 0.1 + 2.9 * self.uniform();
            data.extend((0..columns).map(|_| scale * self.normal()));
        }
        Filters { count, columns, data }
    }

    /// Filters of about norm 1 whose directions all lie within about `angle` radians of a common one.
    pub(crate) fn cluster(&mut self, count: usize, columns: usize, angle: f64) -> Filters {
        let centre: Vec<f64> = (0..columns).map(|_| self.normal()).collect();
        let length = norm(&centre);
        let mut filters = self.filters(count, columns);
        for i in 0..count {
            let scale = 0.5 + self.uniform();
            let tilt = angle * self.uniform() / norm(filters.row(i));
            for (value, c) in filters.row_mut(i).iter_mut().zip(&centre) {
                *value = scale * (c / length + tilt * *value);
            }
        }
        filters
    }
}
