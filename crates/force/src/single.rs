//! The force on `f32` filters in memory: single precision wherever that is exact, and no tensors in between.

use cofilter_kernels::{MatRef, Par, Vectorised, gemm, vectorised};
use rayon::prelude::*;

use crate::gradient::{BLOCK, VANISHING};
use crate::{Error, Force, Result};

/// A pair is near if `d^2` is at most this share of the two filters' squared distances from the mean direction. A
/// product in single precision leaves an error of some 1e-7 of those, so of 1e-6 in the `d^2` of any other pair.
const NEAR: f32 = 0.1;

/// Near pairs are looked at one by one, unless more than one in so many pairs is near.
const FEW: usize = 50;

/// Rows of the Gram matrix computed at a time: what lies right of the diagonal block is known by symmetry.
const ROWS: usize = 64;

/// Memory that [`gradient_into`] uses again from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Directions less their mean, `[N, columns]`.
    unit: Vec<f32>,
    /// `1 / d_ij^p`, `[N, N]`; 0 where a pair is skipped or near.
    pull: Vec<f32>,
    /// Rows of the Gram matrix.
    gram: Vec<f32>,
    /// Both orders of every near pair, sorted.
    near: Vec<(u32, u32)>,
}

/// [`gradient_grouped`](crate::gradient_grouped) on slices: `weight` holds `filters` rows, and so does `result`, which is
/// overwritten. Shared out over the ambient rayon pool; the result has the same bits for any number of threads.
///
/// # Errors
/// [`Error::Groups`]; [`Error::Shape`] where the weight has no elements or is no whole number of filters.
///
/// # Panics
/// If `result` has another length than `weight`.
pub fn gradient_into(
    weight: &[f32],
    filters: usize,
    groups: usize,
    force: Force,
    mut result: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    assert_eq!(weight.len(), result.len(), "gradient_into: length of the result");
    let len = weight.len() / groups.max(1);
    for filters in Filters::of_groups(weight, filters, groups)? {
        let (now, later) = result.split_at_mut(len);
        result = later;
        match force {
            Force::L2 => filters.towards_mean(now),
            _ if filters.towards_each_other(force, now, scratch) => {}
            _ => crate::gradient::in_double(filters.weight, filters.count, force, now)?,
        }
    }
    Ok(())
}

/// One group of filters.
pub(crate) struct Filters<'a> {
    weight: &'a [f32],
    count: usize,
    columns: usize,
    /// Norms; 0 for those up to [`VANISHING`].
    norm: Vec<f64>,
    /// Their inverses; 0 for those too.
    inverse: Vec<f64>,
    /// Sum of the directions.
    sum: Vec<f64>,
}

impl<'a> Filters<'a> {
    /// One after the other, each read when it is asked for.
    pub(crate) fn of_groups(
        weight: &'a [f32],
        filters: usize,
        groups: usize,
    ) -> Result<impl Iterator<Item = Self>> {
        if filters == 0 || weight.is_empty() || !weight.len().is_multiple_of(filters) {
            return Err(Error::Shape { found: [filters, weight.len() / filters.max(1)].as_slice().into() });
        }
        if groups == 0 || !filters.is_multiple_of(groups) {
            return Err(Error::Groups { filters, groups });
        }
        Ok(weight.chunks_exact(weight.len() / groups).map(move |group| Self::new(group, filters / groups)))
    }

    fn new(weight: &'a [f32], count: usize) -> Self {
        let columns = weight.len() / count;
        // The cut into blocks depends on the extents alone, and blocks are added in order.
        let blocks: Vec<(Vec<f64>, Vec<f64>)> = weight
            .par_chunks(block_rows(columns) * columns)
            .map(|block| vectorised(Norms { block, columns }))
            .collect();
        let norm: Vec<f64> = blocks.iter().flat_map(|(norm, _)| norm).copied().collect();
        let inverse = norm.iter().map(|&norm| if norm == 0.0 { 0.0 } else { norm.recip() }).collect();
        let mut sum = vec![0.0; columns];
        for (_, part) in &blocks {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        Self { weight, count, columns, norm, inverse, sum }
    }

    /// `sum_i (W_i m^T)^2` with the mean direction `m`, and `sum_i ||W_i||^2`, over the filters that do not vanish. Where directions
    /// cancel the former is 0.
    pub(crate) fn energies(&self) -> [f64; 2] {
        let rows = block_rows(self.columns);
        let blocks = self.weight.par_chunks(rows * self.columns).zip(self.norm.par_chunks(rows));
        let along = |(block, norms)| vectorised(Along { block, norms, to: &self.sum, columns: self.columns });
        let along: Vec<f64> = blocks.map(along).collect();
        let along = along.into_iter().sum::<f64>();
        let length = self.sum.iter().map(|s| s * s).sum::<f64>();
        let energy = self.norm.iter().map(|norm| norm * norm).sum();
        [if length == 0.0 { 0.0 } else { along / length }, energy]
    }

    /// Fills the rows of the result, one for each filter.
    fn each_row(&self, result: &mut [f32], op: &impl RowOp) {
        let rows = block_rows(self.columns);
        result.par_chunks_mut(rows * self.columns).enumerate().for_each(|(block, result)| {
            vectorised(Rows { op, first: block * rows, columns: self.columns, result });
        });
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.weight[i * self.columns..][..self.columns]
    }

    /// `G_i = (s . w_i) W_i - ||W_i|| s`.
    fn towards_mean(&self, result: &mut [f32]) {
        self.each_row(result, &TowardsMean(self));
    }

    /// `G_i = ||W_i|| (I - w_i^T w_i) t_i` with `t_i = sum_j (w_i - w_j) / d_ij^p`; `false` and nothing of use where too
    /// many pairs are near.
    ///
    /// Directions are taken from their mean, so differences lose no digits where all filters are nearly parallel.
    fn towards_each_other(&self, force: Force, result: &mut [f32], scratch: &mut Scratch) -> bool {
        let Scratch { unit, pull, gram, near } = scratch;
        let (count, columns) = (self.count, self.columns);
        let present = self.norm.iter().filter(|&&norm| norm != 0.0).count();
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / present.max(1) as f64).collect();
        unit.resize(self.weight.len(), 0.0);
        self.each_row(unit, &FromMean { filters: self, mean: &mean });
        near.clear();
        if !self.pulls(force, unit, pull, gram, near) {
            return false;
        }
        near.sort_unstable();
        let matrix = |data, rows, cols| MatRef { data, rows, cols, row_stride: cols, col_stride: 1 };
        gemm(matrix(pull, count, count), matrix(unit, count, columns), false, result, Par::Rayon);
        self.each_row(result, &TowardsEachOther { filters: self, force, unit, pull, near });
        true
    }

    /// `1 / d_ij^p` of all pairs that are neither skipped nor near, and the near ones; `false` where those are too many.
    fn pulls(
        &self,
        force: Force,
        unit: &[f32],
        pull: &mut Vec<f32>,
        gram: &mut Vec<f32>,
        near: &mut Vec<(u32, u32)>,
    ) -> bool {
        let (count, columns) = (self.count, self.columns);
        let squares: Vec<f32> =
            unit.par_chunks(columns).with_min_len(16).map(|unit| vectorised(Square(unit)) as f32).collect();
        let limit = count * count / FEW;
        let some_vanish = self.norm.contains(&0.0);
        pull.resize(count * count, 0.0);
        gram.resize(ROWS * count, 0.0);
        for from in (0..count).step_by(ROWS) {
            let to = count.min(from + ROWS);
            let gram = &mut gram[..(to - from) * to];
            let rows = MatRef {
                data: &unit[from * columns..],
                rows: to - from,
                cols: columns,
                row_stride: columns,
                col_stride: 1,
            };
            let others = MatRef { data: unit, rows: columns, cols: to, row_stride: 1, col_stride: columns };
            gemm(rows, others, false, gram, Par::Rayon);
            for (i, gram) in (from..to).zip(gram.chunks_exact(to)) {
                let row = &mut pull[i * count..][..=i];
                let any_near = vectorised(Pulls {
                    force,
                    square: squares[i],
                    squares: &squares[..i],
                    gram,
                    row: &mut *row,
                });
                row[i] = 0.0;
                if any_near || some_vanish {
                    for (j, r) in row[..i].iter_mut().enumerate() {
                        let skipped = self.norm[i] == 0.0 || self.norm[j] == 0.0;
                        if *r < 0.0 && !skipped {
                            near.extend([(i as u32, j as u32), (j as u32, i as u32)]);
                        }
                        if *r < 0.0 || skipped {
                            *r = 0.0;
                        }
                    }
                }
            }
            if near.len() > limit {
                return false;
            }
        }
        // The other half, in squares that fit the cache.
        for from in (0..count).step_by(ROWS) {
            for above in (0..=from).step_by(ROWS) {
                for i in from..count.min(from + ROWS) {
                    for j in above..i.min(above + ROWS) {
                        pull[j * count + i] = pull[i * count + j];
                    }
                }
            }
        }
        true
    }

    /// `t += (w_i - w_j) / d_ij^p` from the exact weights, unless the two coincide.
    #[inline(always)]
    fn add_pair(&self, force: Force, i: usize, j: usize, t: &mut [f64]) {
        let (a, b) = (self.row(i), self.row(j));
        let (scale_a, scale_b) = (self.inverse[i], self.inverse[j]);
        let squared = sum_of(a, b, |a, b| {
            let difference = scale_a * f64::from(a) - scale_b * f64::from(b);
            difference * difference
        });
        if squared <= VANISHING * VANISHING {
            return;
        }
        let pull = squared.sqrt().powi(-force.exponent());
        for ((t, &a), &b) in t.iter_mut().zip(a).zip(b) {
            *t += pull * (scale_a * f64::from(a) - scale_b * f64::from(b));
        }
    }
}

/// Rows of at most [`BLOCK`] elements, at least one.
fn block_rows(columns: usize) -> usize {
    (BLOCK / columns).max(1)
}

/// Norms of the filters of a block, 0 for those that vanish, and the sum of their directions.
struct Norms<'a> {
    block: &'a [f32],
    columns: usize,
}

impl Vectorised for Norms<'_> {
    type Output = (Vec<f64>, Vec<f64>);

    #[inline(always)]
    fn run(self) -> (Vec<f64>, Vec<f64>) {
        let mut sum = vec![0.0; self.columns];
        let mut norms = Vec::with_capacity(self.block.len() / self.columns);
        for row in self.block.chunks_exact(self.columns) {
            let norm = dot(row, row).sqrt();
            // A norm that is not a number takes part.
            if norm <= VANISHING {
                norms.push(0.0);
                continue;
            }
            norms.push(norm);
            let inverse = norm.recip();
            for (sum, &w) in sum.iter_mut().zip(row) {
                *sum += inverse * f64::from(w);
            }
        }
        (norms, sum)
    }
}

/// Sum of the squares of the products of a block's filters, but those that vanish, with a direction.
struct Along<'a> {
    block: &'a [f32],
    norms: &'a [f64],
    to: &'a [f64],
    columns: usize,
}

impl Vectorised for Along<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let rows = self.block.chunks_exact(self.columns).zip(self.norms);
        rows.filter(|(_, norm)| **norm != 0.0).map(|(row, _)| dot(row, self.to).powi(2)).sum()
    }
}

/// What a row of the result is, with room for as many numbers.
trait RowOp: Sync {
    /// Fills row `i`; `#[inline(always)]`.
    fn row(&self, i: usize, result: &mut [f32], room: &mut [f64]);
}

struct Rows<'a, O> {
    op: &'a O,
    first: usize,
    columns: usize,
    result: &'a mut [f32],
}

impl<O: RowOp> Vectorised for Rows<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut room = vec![0.0; self.columns];
        for (i, result) in self.result.chunks_exact_mut(self.columns).enumerate() {
            self.op.row(self.first + i, result, &mut room);
        }
    }
}

struct TowardsMean<'a>(&'a Filters<'a>);

impl RowOp for TowardsMean<'_> {
    #[inline(always)]
    fn row(&self, i: usize, result: &mut [f32], _room: &mut [f64]) {
        let filters = self.0;
        let row = filters.row(i);
        let (along, norm) = (dot(row, &filters.sum) * filters.inverse[i], filters.norm[i]);
        for ((g, &w), s) in result.iter_mut().zip(row).zip(&filters.sum) {
            *g = (along * f64::from(w) - norm * s) as f32;
        }
    }
}

/// Directions less their mean; 0 for a filter that vanishes, which takes no part.
struct FromMean<'a> {
    filters: &'a Filters<'a>,
    mean: &'a [f64],
}

impl RowOp for FromMean<'_> {
    #[inline(always)]
    fn row(&self, i: usize, result: &mut [f32], _room: &mut [f64]) {
        let inverse = self.filters.inverse[i];
        let share = if self.filters.norm[i] == 0.0 { 0.0 } else { 1.0 };
        for ((u, &w), m) in result.iter_mut().zip(self.filters.row(i)).zip(self.mean) {
            *u = (f64::from(w) * inverse - share * m) as f32;
        }
    }
}

/// `G_i` from the sum over pairs that are not near, which the result holds.
struct TowardsEachOther<'a> {
    filters: &'a Filters<'a>,
    force: Force,
    unit: &'a [f32],
    pull: &'a [f32],
    near: &'a [(u32, u32)],
}

impl RowOp for TowardsEachOther<'_> {
    #[inline(always)]
    fn row(&self, i: usize, result: &mut [f32], t: &mut [f64]) {
        let Filters { count, columns, norm, inverse, .. } = self.filters;
        let row = self.filters.row(i);
        let total = sum(&self.pull[i * count..][..*count]);
        let unit = &self.unit[i * columns..][..*columns];
        for ((t, &u), &p) in t.iter_mut().zip(unit).zip(&*result) {
            *t = total * f64::from(u) - f64::from(p);
        }
        let from = self.near.partition_point(|&(first, _)| (first as usize) < i);
        for &(_, j) in self.near[from..].iter().take_while(|&&(first, _)| first as usize == i) {
            self.filters.add_pair(self.force, i, j as usize, t);
        }
        let (along, norm) = (dot(row, t) * inverse[i] * inverse[i], norm[i]);
        for ((g, &w), &t) in result.iter_mut().zip(row).zip(&*t) {
            *g = (norm * (t - along * f64::from(w))) as f32;
        }
    }
}

/// Square of the length.
struct Square<'a>(&'a [f32]);

impl Vectorised for Square<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        dot(self.0, self.0)
    }
}

/// `1 / d_ij^p` for each `j` that has a square, -1 for near pairs; whether there are any.
struct Pulls<'a> {
    force: Force,
    square: f32,
    squares: &'a [f32],
    gram: &'a [f32],
    row: &'a mut [f32],
}

impl Vectorised for Pulls<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        match self.force {
            Force::L2 => self.fill(|_| 1.0),
            Force::L1 => self.fill(|squared| squared.sqrt().recip()),
            Force::Linear => self.fill(f32::recip),
            Force::Gravity => self.fill(|squared| (squared * squared.sqrt()).recip()),
        }
    }
}

impl Pulls<'_> {
    #[inline(always)]
    fn fill(self, power: impl Fn(f32) -> f32) -> bool {
        let mut any_near = false;
        for ((r, &other), &product) in self.row.iter_mut().zip(self.squares).zip(self.gram) {
            let spread = self.square + other;
            let squared = spread - 2.0 * product;
            let near = squared <= NEAR * spread;
            any_near |= near;
            let pull = if squared <= (VANISHING * VANISHING) as f32 { 0.0 } else { power(squared) };
            *r = if near { -1.0 } else { pull };
        }
        any_near
    }
}

/// Sum of `a[k] b[k]`.
#[inline(always)]
fn dot<B: Copy + Into<f64>>(a: &[f32], b: &[B]) -> f64 {
    sum_of(a, b, |a, b| f64::from(a) * b.into())
}

#[inline(always)]
fn sum(a: &[f32]) -> f64 {
    sum_of(a, a, |a, _| f64::from(a))
}

/// Sum of `term(a[k], b[k])`, 16 partial sums wide; the order depends on the length alone.
#[inline(always)]
fn sum_of<B: Copy>(a: &[f32], b: &[B], term: impl Fn(f32, B) -> f64) -> f64 {
    let mut lanes = [0.0; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(a, b);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += term(a, b);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// Numbers between -1 and 1.
    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let number = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(number).collect()
    }

    /// Filters in clusters that are so wide, each around a direction of its own.
    fn clusters(count: usize, columns: usize, clusters: usize, width: f32) -> Vec<f32> {
        let centres = noise(clusters * columns, 1);
        let mut weight = noise(count * columns, 2);
        for (i, row) in weight.chunks_exact_mut(columns).enumerate() {
            let centre = &centres[i % clusters * columns..][..columns];
            let scale = 1.0 + i as f32 / 7.0;
            row.iter_mut().zip(centre).for_each(|(w, c)| *w = scale * (c + width * *w));
        }
        weight
    }

    fn both(weight: &[f32], count: usize, groups: usize, force: Force) -> (f64, bool) {
        let tensor = Tensor::from_slice(weight, (count, weight.len() / count), &Device::Cpu).unwrap();
        let expected = crate::gradient::in_tensors(&tensor, groups, force).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let mut found = vec![f32::NAN; weight.len()];
        let mut scratch = Scratch::default();
        // What an earlier call left behind must not matter.
        let (len, filters) = (weight.len().max(6000), weight.len().max(6000) / 60);
        gradient_into(
            &noise(filters * 60, 3),
            filters,
            1,
            force,
            &mut vec![0.0; len / 60 * 60],
            &mut scratch,
        )
        .unwrap();
        gradient_into(weight, count, groups, force, &mut found, &mut scratch).unwrap();
        let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let norm = sum(&mut expected.iter().map(|v| f64::from(*v)));
        let error = sum(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
        let filters = Filters::new(weight, count);
        (error / norm, filters.towards_each_other(force, &mut found, &mut scratch))
    }

    #[test]
    fn slices_and_tensors_agree_and_pairs_that_are_near_are_exact() {
        // Clusters, width, and whether single precision is used.
        let cases = [
            (200, 1.0, true),
            (1, 1e-2, true),
            (1, 1e-3, true),
            (150, 1e-2, true),
            (190, 1e-3, true),
            (2, 1e-3, false),
            (20, 1e-2, false),
        ];
        for (count, columns) in [(200, 75), (200, 600)] {
            for (clustered, width, single) in cases {
                let weight = clusters(count, columns, clustered, width);
                for force in Force::ALL {
                    let (error, used) = both(&weight, count, 1, force);
                    println!("{count}x{columns} {clustered} x {width:e} {force:?}: {error:.1e}");
                    assert!(error < 1e-6, "{clustered} clusters of {width:e}, {force:?}: {error:e}");
                    assert_eq!(used, single, "{clustered} clusters of {width:e}, {force:?}");
                }
            }
        }
    }

    #[test]
    fn filters_that_vanish_take_no_part() {
        let mut weight = noise(70 * 33, 5);
        for i in [0, 3, 64, 69] {
            weight[i * 33..][..33].iter_mut().for_each(|w| *w *= 1e-6);
        }
        for force in Force::ALL {
            assert!(both(&weight, 70, 1, force).0 < 1e-6, "{force:?}");
            assert!(both(&weight, 70, 2, force).0 < 1e-6, "{force:?}");
            let mut found = vec![f32::NAN; weight.len()];
            gradient_into(&weight, 70, 1, force, &mut found, &mut Scratch::default()).unwrap();
            assert!(found[3 * 33..][..33].iter().all(|g| *g == 0.0), "{force:?}");
        }
    }

    #[test]
    fn no_filters_and_uneven_groups_are_refused() {
        let into = |len: usize, filters, groups| {
            let mut result = vec![0.0; len];
            gradient_into(&noise(len, 1), filters, groups, Force::L1, &mut result, &mut Scratch::default())
        };
        for (len, filters) in [(0, 0), (0, 2), (6, 0), (7, 2)] {
            assert!(matches!(into(len, filters, 1), Err(Error::Shape { .. })), "{len} {filters}");
        }
        assert!(matches!(into(12, 4, 3), Err(Error::Groups { filters: 4, groups: 3 })));
        assert!(matches!(into(12, 4, 0), Err(Error::Groups { filters: 4, groups: 0 })));
    }
}
