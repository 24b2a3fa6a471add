//! Weights in the order in which they are multiplied.

use super::super::{BLOCK, View};
use super::{FILTERS, PATTERNS};
use std::ops::Range;

/// Weights of the filters that are computed at once, for some channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    /// Where the places of each pattern begin; and the end.
    pub(super) places: [u32; PATTERNS + 1],
    /// Where their weights begin.
    pub(super) weights: [u32; PATTERNS],
}

/// All weights of a convolution.
#[derive(Debug, Default)]
pub(super) struct Weighted {
    /// For each block of the result, each part of the channels, and each [`FILTERS`] filters.
    pub(super) filters: Vec<Packed>,
    /// Parts of the channels.
    pub(super) parts: usize,
    /// Channels of each, but for the last one, where all filters are of one group.
    pub(super) part: usize,
    /// Distances of places from the first one of the window.
    pub(super) places: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

/// Weights, `[filters of all groups, columns of a group]`.
pub(super) struct Matrix<'a> {
    pub(super) weights: &'a [f32],
    /// Filters of a group.
    pub(super) filters: usize,
    /// Columns of a group.
    pub(super) columns: usize,
}

impl Matrix<'_> {
    /// The columns of all groups that some filters are in.
    fn columns(&self, filters: &Range<usize>) -> Range<usize> {
        filters.start / self.filters * self.columns..filters.end.div_ceil(self.filters) * self.columns
    }

    /// Of a filter at a column, counted over all groups; none where the column is another group's.
    fn weight(&self, filter: usize, column: usize) -> f32 {
        let first = filter / self.filters * self.columns;
        match column.checked_sub(first).filter(|column| *column < self.columns) {
            Some(column) => self.weights[filter * self.columns + column],
            None => 0.0,
        }
    }

    /// Which of some filters have a weight at a column, a bit each.
    fn pattern(&self, filters: &Range<usize>, column: usize) -> usize {
        let bit = |(i, filter)| usize::from(self.weight(filter, column) != 0.0) << i;
        filters.clone().enumerate().map(bit).sum()
    }
}

/// The filters of each block of a result.
pub(super) fn filters_of(dst: &View) -> impl Iterator<Item = Range<usize>> {
    dst.lanes.iter().scan(0, |first, &lanes| {
        let filters = *first..*first + usize::from(lanes);
        *first = filters.end;
        Some(filters)
    })
}

/// The filters of a block that are computed at once.
fn fours(filters: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let of = move |first: usize| first.min(filters.end)..filters.end.min(first + FILTERS);
    (filters.start..filters.start + BLOCK).step_by(FILTERS).map(of)
}

/// What a tile is like for which weights are packed.
pub(super) struct Shape {
    /// Vectors of pixels.
    pub(super) vectors: usize,
    /// Elements of the window.
    pub(super) taps: usize,
    /// Numbers of a channel that the tile reads.
    pub(super) len: usize,
    /// Most channels of a part.
    pub(super) most: usize,
}

/// Numbers that a tile reads of some channels, for all filters of a block before those of the next channels: 24 KiB.
const RESIDENT: usize = 6 * 1024;

// In cycles, about; they decide on the order of sums alone.
/// Of beginning and ending a loop over the places of a pattern, whose length no processor foresees.
const LOOP: f64 = 20.0;
/// Of passing by an empty one.
const EMPTY: f64 = 1.0;
/// Of reading a line from the second-level cache.
const FAR: f64 = 2.0;

/// Of a place with so many filters: one or two multiplications at a time, two reads.
fn place_cost(filters: u32, vectors: usize) -> f64 {
    let vectors = vectors as f64;
    (0.75 * f64::from(filters) * vectors).max((vectors + f64::from(filters) + 1.0) / 2.0)
}

/// The pattern whose loop computes the places of each pattern: one that has all of its filters. Where there are few places, a
/// multiplication by zero costs less than another loop. `places` are counts by pattern, over `lots` of weights with loops of their own.
fn loops(places: &[usize; PATTERNS], lots: usize, vectors: usize) -> [usize; PATTERNS] {
    let mut active: Vec<usize> = (1..PATTERNS).collect();
    // Of all filters, or another one with the fewest.
    let of = |pattern: usize, active: &[usize]| {
        let holds = active.iter().copied().filter(|of| of & pattern == pattern);
        holds.min_by_key(|of| of.count_ones()).unwrap_or(PATTERNS - 1)
    };
    let cost = |active: &[usize]| {
        let mut held = [0; PATTERNS];
        let mut cost = 0.0;
        for (pattern, places) in places.iter().enumerate().skip(1) {
            let by = of(pattern, active);
            held[by] += places;
            cost += *places as f64 * place_cost(by.count_ones(), vectors);
        }
        let each = |of: &usize| LOOP * held[*of].min(lots) as f64 + EMPTY * lots as f64;
        cost + active.iter().map(each).sum::<f64>()
    };
    let mut least = cost(&active);
    loop {
        let without = |of: usize| active.iter().copied().filter(|p| *p != of).collect::<Vec<_>>();
        let fewer = active.iter().filter(|of| **of != PATTERNS - 1).map(|of| without(*of));
        let best = fewer.map(|active| (cost(&active), active)).min_by(|a, b| a.0.total_cmp(&b.0));
        match best {
            Some((cost, fewer)) if cost < least => (least, active) = (cost, fewer),
            _ => break,
        }
    }
    std::array::from_fn(|pattern| if pattern == 0 { 0 } else { of(pattern, &active) })
}

/// Parts of the channels: all in one, or so many that what a tile reads of each stays in the first-level cache for a block of filters.
fn parts(places: usize, fours: usize, columns: usize, shape: &Shape) -> usize {
    let channels = columns / shape.taps.max(1);
    let resident = (channels * shape.len).div_ceil(RESIDENT).clamp(1, channels.max(1));
    // Share of the columns that four filters read, and a block.
    let share = places as f64 / (fours * columns).max(1) as f64;
    let together = (BLOCK / FILTERS) as f64;
    let block = 1.0 - (1.0 - share).powf(together);
    let again = (together * share - block) * columns as f64 * shape.vectors as f64 * FAR;
    let more = (resident - 1) as f64 * together * (LOOP * 8.0 + (2 * FILTERS * shape.vectors) as f64);
    if again > more { resident } else { 1 }
}

impl Weighted {
    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.weights) + size_of_val(&*self.places) + size_of_val(&*self.filters)
    }

    /// Packs the weights of all filters of a result; `distance` is that of a column, counted over all groups.
    pub(super) fn new(
        matrix: &Matrix<'_>,
        dst: &View,
        shape: &Shape,
        distance: impl Fn(usize) -> usize,
    ) -> Self {
        let mut counts = [0; PATTERNS];
        let (mut all, mut most) = (0, 0);
        for filters in filters_of(dst).flat_map(fours) {
            let columns = matrix.columns(&filters);
            (all, most) = (all + 1, columns.len().max(most));
            columns.for_each(|column| counts[matrix.pattern(&filters, column)] += 1);
        }
        let channels = most / shape.taps.max(1);
        let parts = parts(counts[1..].iter().sum(), all, most, shape).max(channels.div_ceil(shape.most));
        let part = channels.div_ceil(parts);
        // None is empty.
        let parts = channels.div_ceil(part.max(1)).max(1);
        let loops = loops(&counts, all * parts, shape.vectors);
        let mut packed = Self { parts, part, ..Self::default() };
        for filters in filters_of(dst) {
            let columns = matrix.columns(&filters);
            // A block of filters of several groups reads more.
            let part = (columns.len() / shape.taps.max(1)).div_ceil(parts) * shape.taps;
            let part = |i: usize| columns.end.min(columns.start + i * part);
            for i in 0..parts {
                fours(filters.clone())
                    .for_each(|of| packed.add(matrix, of, part(i)..part(i + 1), &loops, &distance));
            }
        }
        packed
    }

    /// Packs some columns of some filters.
    fn add(
        &mut self,
        matrix: &Matrix<'_>,
        filters: Range<usize>,
        part: Range<usize>,
        loops: &[usize; PATTERNS],
        distance: &impl Fn(usize) -> usize,
    ) {
        let mut by_loop: [Vec<usize>; PATTERNS] = Default::default();
        // What a filter does not read, or that there is no such filter, counts even where pixels are infinite.
        let whole = filters.len() == FILTERS && matrix.columns(&filters).len() == matrix.columns;
        for column in part {
            let pattern = matrix.pattern(&filters, column);
            by_loop[if whole { loops[pattern] } else { pattern }].push(column);
        }
        let mut packed = Packed { places: [0; PATTERNS + 1], weights: [0; PATTERNS] };
        // Places without any weight are left out.
        by_loop[0].clear();
        for (pattern, columns) in by_loop.iter().enumerate() {
            packed.places[pattern] = small(self.places.len());
            packed.weights[pattern] = small(self.weights.len());
            for &column in columns {
                self.places.push(small(distance(column)));
                let of = filters.clone().enumerate().filter(|(i, _)| pattern >> i & 1 == 1);
                self.weights.extend(of.map(|(_, filter)| matrix.weight(filter, column)));
            }
        }
        packed.places[PATTERNS] = small(self.places.len());
        self.filters.push(packed);
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("a map of less than 2^32 numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_has_all_filters_of_the_patterns_that_it_computes() {
        for vectors in 1..=6 {
            for lots in [0, 1, 30, 1_000, 100_000] {
                let places = std::array::from_fn(|pattern| 37 * pattern);
                let found = loops(&places, lots, vectors);
                for (pattern, of) in found.iter().enumerate() {
                    assert!(of & pattern == pattern && (pattern == 0) == (*of == 0), "{found:?}");
                    assert_eq!(found[*of], *of, "{found:?}");
                }
            }
        }
        let many = loops(&[10_000; PATTERNS], 1, 6);
        assert_eq!(many, std::array::from_fn(|pattern| pattern), "loops cost nothing beside so many places");
        let few = loops(&[3; PATTERNS], 3, 6);
        assert!((1..=3).contains(&(1..PATTERNS).filter(|of| few[*of] == *of).count()), "{few:?}");
    }

    #[test]
    fn channels_are_cut_where_filters_share_what_they_read() {
        let shape = Shape { vectors: 4, taps: 1, len: 64, most: usize::MAX };
        let columns = 512;
        let of = |density: f64| parts((density * 512.0 * 512.0) as usize, 512, columns, &shape);
        assert_eq!((of(0.0), of(0.1), of(1.0)), (1, 1, 6));
        assert_eq!(parts(64 * 4, 4, 64, &shape), 1, "all of it stays there");
    }
}
