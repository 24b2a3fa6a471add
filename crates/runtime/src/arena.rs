/// Elements that every offset is a multiple of: one cache line of `f32`.
pub(crate) const LINE: usize = 16;

/// A buffer that is needed from step `born` to step `dies`, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    pub(crate) born: usize,
    pub(crate) dies: usize,
    /// Elements.
    pub(crate) len: usize,
}

impl Lifetime {
    fn overlaps(&self, other: &Self) -> bool {
        self.born <= other.dies && other.born <= self.dies
    }
}

/// Offsets such that no two buffers alive at the same step share an element, and the length of the whole.
///
/// Largest first, each at the lowest offset where it fits between those placed before: what is large and long-lived
/// settles at the bottom and the small ones fill the gaps.
pub(crate) fn place(buffers: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].len), i));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
    let mut total = 0;
    for i in order {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&p| buffers[p].overlaps(&buffers[i]))
            .map(|&p| (offsets[p], offsets[p] + buffers[p].len))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset + buffers[i].len {
                break;
            }
            offset = offset.max(end.next_multiple_of(LINE));
        }
        offsets[i] = offset;
        total = total.max(offset + buffers[i].len);
        placed.push(i);
    }
    (offsets, total.next_multiple_of(LINE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lifetime(born: usize, dies: usize, len: usize) -> Lifetime {
        Lifetime { born, dies, len }
    }

    #[test]
    fn a_chain_needs_two_neighbours_only() {
        let chain: Vec<Lifetime> = (0..6).map(|i| lifetime(i, i + 1, 32)).collect();
        let (_, total) = place(&chain);
        assert_eq!(total, 64);
    }

    #[test]
    fn small_buffers_fill_the_gap_under_a_long_lived_one() {
        let (offsets, total) = place(&[lifetime(0, 3, 64), lifetime(1, 2, 16), lifetime(2, 3, 16)]);
        assert_eq!((offsets, total), (vec![0, 64, 80], 96));
    }

    proptest! {
        #[test]
        fn neighbours_in_time_never_overlap(
            buffers in prop::collection::vec((0usize..20, 0usize..6, 1usize..200), 1..40),
        ) {
            let buffers: Vec<Lifetime> = buffers.into_iter().map(|(b, d, len)| lifetime(b, b + d, len)).collect();
            let (offsets, total) = place(&buffers);
            for i in 0..buffers.len() {
                prop_assert!(offsets[i] % LINE == 0 && offsets[i] + buffers[i].len <= total);
                for j in 0..i {
                    let apart = offsets[i] + buffers[i].len <= offsets[j] || offsets[j] + buffers[j].len <= offsets[i];
                    prop_assert!(apart || !buffers[i].overlaps(&buffers[j]), "{i} and {j}: {buffers:?} {offsets:?}");
                }
            }
            let sum: usize = buffers.iter().map(|b| b.len.next_multiple_of(LINE)).sum();
            prop_assert!(total <= sum);
        }
    }
}
