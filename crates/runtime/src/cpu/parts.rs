//! Which steps run for a few images of a batch at a time.
//!
//! Step by step for the whole batch, every map goes to memory and comes back as soon as the batch is larger than the caches. A few
//! steps after each other for some images, then for the next ones, keep what lies between them near; but weights are read again
//! each time. What moves less is taken.

use crate::Options;
use std::collections::BTreeMap;
use std::ops::Range;

/// Some steps, and for how many images at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) steps: Range<usize>,
    pub(super) images: usize,
}

/// What a step moves.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    /// Bytes of weights.
    pub(super) weights: usize,
    /// Pixels of the result for which those are read; none if it has no weights.
    pub(super) pixels: Option<usize>,
    /// The maps that it reads or writes, each once.
    pub(super) maps: Vec<usize>,
}

/// A map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// For one image.
    pub(super) bytes: usize,
    /// Whether it is in the arena, and not the caller's.
    pub(super) ours: bool,
}

/// A rule that cuts steps into parts: what each moves, and how large each map is.
pub(super) type Cut<'a> = &'a dyn Fn(&[Load], &BTreeMap<usize, Size>, &Options) -> Vec<Part>;

/// Bytes that each thread keeps near, most of a second-level cache, if all together keep that much.
const NEAR: f64 = 0.75e6;
/// Cycles for a byte that is far, and for one that is in memory.
const FROM_FAR: f64 = 1.0 / 24.0;
const FROM_MEMORY: f64 = 1.0 / 8.0;
/// Cycles to begin a step, and for threads to wait for each other at its end.
const STEP: f64 = 300.0;
const WAIT: f64 = 10_000.0;
/// Fewest pixels for each thread that are worth reading weights for, if there are as many.
const PIXELS: usize = 512;
/// Most repetitions of a part.
const MOST: usize = 1 << 16;
/// Most steps of a part.
const LONGEST: usize = 64;

/// Threads that compute the same images: all of them if there are no images for each.
fn together(batch: usize, images: usize, threads: usize) -> usize {
    let times = batch.div_ceil(images);
    if times > 1 && times >= threads { 1 } else { threads }
}

/// Cuts a sequence of steps into parts.
pub(super) fn parts(loads: &[Load], sizes: &BTreeMap<usize, Size>, options: &Options) -> Vec<Part> {
    let Options { batch, threads, .. } = *options;
    let whole = |steps: Range<usize>| Part { steps, images: batch };
    if batch == 1 || options.cache == 0 {
        return vec![whole(0..loads.len())];
    }
    let counts = (0..).map(|power| 1 << power).take_while(|images| *images < batch);
    let counts: Vec<usize> = counts.filter(|images| batch.div_ceil(*images) <= MOST).collect();
    let uses = uses(loads, sizes);
    // The cheapest way to the end from each step on, and its first part.
    let mut best: Vec<(f64, Part)> = vec![(0.0, whole(loads.len()..loads.len()))];
    for start in (0..loads.len()).rev() {
        let rest = |end: usize| best[loads.len() - end].0;
        let alone = cost(loads, &uses, &whole(start..start + 1), options);
        let mut found = (alone + rest(start + 1), whole(start..start + 1));
        for &images in &counts {
            for end in start + 1..=loads.len().min(start + LONGEST) {
                let few = |pixels: usize| images * pixels < PIXELS * together(batch, images, threads);
                if loads[end - 1].pixels.is_some_and(few) {
                    break;
                }
                let part = Part { steps: start..end, images };
                let cycles = cost(loads, &uses, &part, options) + rest(end);
                // Within a single step lies nothing to keep.
                if end > start + 1 && cycles < found.0 {
                    found = (cycles, part);
                }
            }
        }
        best.push(found);
    }
    let mut parts: Vec<Part> = Vec::new();
    let mut start = 0;
    while start < loads.len() {
        let part = best[loads.len() - start].1.clone();
        start = part.steps.end;
        match parts.last_mut() {
            Some(last) if last.images == batch && part.images == batch => last.steps.end = start,
            _ => parts.push(part),
        }
    }
    parts
}

/// Whether all that reads or writes a map is in one part: then it need only hold the images of that.
pub(super) fn inside(part: &Part, used: &Range<usize>) -> bool {
    part.steps.start <= used.start && used.end <= part.steps.end
}

/// From the first to the last step that reads or writes each map.
pub(super) fn used(loads: &[Load]) -> BTreeMap<usize, Range<usize>> {
    let mut ranges: BTreeMap<usize, Range<usize>> = BTreeMap::new();
    for (index, load) in loads.iter().enumerate() {
        for map in &load.maps {
            ranges.entry(*map).or_insert(index..index).end = index + 1;
        }
    }
    ranges
}

/// A map while it is needed.
struct Use {
    /// For one image.
    bytes: f64,
    /// From the first to the last step that reads or writes it; the caller's maps come from before and stay.
    used: Range<usize>,
    /// Whether this step does.
    touched: bool,
}

/// For each step the maps that are needed then.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn uses(loads: &[Load], sizes: &BTreeMap<usize, Size>) -> Vec<Vec<Use>> {
    let mut uses: Vec<Vec<Use>> = loads.iter().map(|_| Vec::new()).collect();
    for (map, used) in used(loads) {
        let Size { bytes, ours } = sizes[&map];
        for index in used.clone() {
            let touched = loads[index].maps.contains(&map);
            let used = if ours { used.clone() } else { 0..usize::MAX };
            uses[index].push(Use { bytes: bytes as f64, used, touched });
        }
    }
    uses
}

/// Cycles in which the threads wait for what moves, about.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn cost(loads: &[Load], uses: &[Vec<Use>], part: &Part, options: &Options) -> f64 {
    let (all, some) = (options.batch as f64, part.images as f64);
    let times = options.batch.div_ceil(part.images);
    let far = options.cache as f64;
    let near = (NEAR * options.threads as f64).min(far / 4.0);
    // Each thread has images of its own; all share those that are left at the end.
    let apart = together(options.batch, part.images, options.threads) == 1;
    let at_once = some * if apart { options.threads as f64 } else { 1.0 };
    let waits = if apart { times % options.threads } else { times };
    let (times, waits) = (times as f64, waits as f64);
    let rate = |held: f64| match held {
        held if held <= near => 0.0,
        held if held <= far => FROM_FAR,
        _ => FROM_MEMORY,
    };
    let (mut cost, mut weights, mut largest) = (0.0, 0.0, 0.0_f64);
    for index in part.steps.clone() {
        weights += loads[index].weights as f64;
        // What must stay until it is read again, and what passes by.
        let held = uses[index].iter().filter(|map| map.touched || inside(part, &map.used));
        let held: f64 = held.map(|map| map.bytes * at_once).sum();
        largest = largest.max(held);
        for Use { bytes, used, .. } in uses[index].iter().filter(|map| map.touched) {
            // Between two parts lies the whole batch.
            let kept = if inside(part, used) { held } else { held.max(bytes * all) };
            cost += bytes * all * rate(kept);
        }
        cost += times * STEP + waits * WAIT;
    }
    cost + weights * (times - 1.0) * rate(weights + largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain in which step `i` reads map `i` and writes map `i + 1`.
    fn chain(maps: &[usize], weights: usize, pixels: usize) -> (Vec<Load>, BTreeMap<usize, Size>) {
        let load = |i| Load { weights, pixels: Some(pixels), maps: vec![i, i + 1] };
        let size = |(map, bytes): (usize, &usize)| {
            (map, Size { bytes: *bytes, ours: map > 0 && map + 1 < maps.len() })
        };
        ((0..maps.len() - 1).map(load).collect(), maps.iter().enumerate().map(size).collect())
    }

    fn cut(maps: &[usize], weights: usize, pixels: usize, options: &Options) -> Vec<Part> {
        let (loads, sizes) = chain(maps, weights, pixels);
        parts(&loads, &sizes, options)
    }

    #[test]
    fn large_maps_are_computed_a_few_images_at_a_time() {
        let options = Options { batch: 32, ..Options::default() };
        let found = cut(&[800_000; 9], 10_000, 10_000, &options);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].images < 8, "{found:?}");
        // Small maps, a batch of one, no cache: every step for the whole batch.
        let whole = |batch| vec![Part { steps: 0..8, images: batch }];
        assert_eq!(cut(&[1000; 9], 10_000, 10_000, &options), whole(32));
        assert_eq!(cut(&[800_000; 9], 10_000, 10_000, &Options::default()), whole(1));
        assert_eq!(cut(&[800_000; 9], 10_000, 10_000, &Options { cache: 0, ..options.clone() }), whole(32));
        // Weights that would be read from memory 32 times.
        assert_eq!(cut(&[800_000; 9], 20_000_000, 10_000, &options), whole(32));
        // Few pixels for what is read.
        let found = cut(&[800_000; 9], 10_000, 200, &options);
        assert!(found.iter().all(|part| part.images >= 4), "{found:?}");
    }

    #[test]
    fn parts_follow_each_other() {
        let options = Options { batch: 8, threads: 2, ..Options::default() };
        let maps: Vec<usize> = (0..80).map(|i| if i % 20 < 10 { 3_000_000 } else { 2000 }).collect();
        let found = cut(&maps, 30_000, 4000, &options);
        assert!(found.len() > 3, "{found:?}");
        assert_eq!((found[0].steps.start, found[found.len() - 1].steps.end), (0, 79));
        assert!(found.windows(2).all(|two| two[0].steps.end == two[1].steps.start), "{found:?}");
    }
}
