//! Channels that go from maps to another one: concatenation, zero channels, and the way back from both.

use super::{Fill, Maps};
use crate::Par;
use crate::blocked::{BLOCK, View};
use std::ops::Range;

/// Some channels of a map of which there are as many images as of the result.
#[derive(Clone, Debug)]
pub struct Channels<'a> {
    /// How the map lies in memory.
    pub view: &'a View,
    /// Its numbers.
    pub src: &'a [f32],
    /// Which channels.
    pub range: Range<usize>,
}

/// Lanes of a block that lie side by side in a source, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    source: usize,
    block: usize,
    from: usize,
    to: usize,
    lanes: usize,
}

/// Fills `images` images with `before` channels of zeros, then those of the sources, one after the other, then zeros.
///
/// # Panics
/// If a view is not blocked or does not own its memory, pixels differ, a range is not inside its map, there are more channels than the
/// result has, or a length does not fit.
pub fn gather_channels(
    sources: &[Channels<'_>],
    before: usize,
    to: &View,
    images: usize,
    dst: &mut [f32],
    par: Par,
) {
    let to = Maps::new("channels", to, images);
    to.check("channels", dst.len());
    let count: usize = sources.iter().map(|source| source.range.len()).sum();
    assert!(before + count <= to.view.channels(), "channels: {before} and {count} in {:?}", to.view);
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); to.view.blocks()];
    let mut targets = places(&to).into_iter().skip(before);
    let mut maps = Vec::new();
    for (source, Channels { view, src, range }) in sources.iter().enumerate() {
        let from = Maps::new("channels", view, images);
        from.check("channels", src.len());
        assert!(view.size == to.view.size, "channels: {view:?} to {:?}", to.view);
        // With the range first, so that no place is taken for nothing.
        for ((block, from), (at, to)) in places(&from)[range.clone()].iter().copied().zip(&mut targets) {
            match runs[at].last_mut() {
                Some(run)
                    if (run.source, run.block, run.from + run.lanes, run.to + run.lanes)
                        == (source, block, from, to) =>
                {
                    run.lanes += 1;
                }
                _ => runs[at].push(Run { source, block, from, to, lanes: 1 }),
            }
        }
        maps.push((from, *src));
    }
    to.fill(par, dst, 1, &Gather { to, maps, runs });
}

/// Block and lane of every channel.
fn places(maps: &Maps<'_>) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    maps.channels(|_, block, lane| places.push((block, lane)));
    places
}

struct Gather<'a> {
    to: Maps<'a>,
    maps: Vec<(Maps<'a>, &'a [f32])>,
    /// Of each block of the result.
    runs: Vec<Vec<Run>>,
}

impl Fill for Gather<'_> {
    #[inline(always)]
    fn fill(&self, k: usize, block: &mut [f32]) {
        let Self { to, maps, runs } = self;
        let (image, index) = (k / runs.len(), k % runs.len());
        let lanes = usize::from(to.view.lanes[index]);
        for y in 0..to.view.size[0] {
            let row = to.row_mut(block, y);
            if runs[index].iter().map(|run| run.lanes).sum::<usize>() < BLOCK {
                row.fill([0.0; BLOCK]);
            }
            for run in &runs[index] {
                let (from, src) = &maps[run.source];
                let src = from.row(from.block(src, image * from.view.blocks() + run.block), y);
                // Lanes that hold no channel are zero on both sides.
                match run.lanes == lanes && usize::from(from.view.lanes[run.block]) == lanes {
                    true => row.copy_from_slice(src),
                    false => copy(row, src, run),
                }
            }
        }
    }
}

#[inline(always)]
fn copy(row: &mut [[f32; BLOCK]], src: &[[f32; BLOCK]], run: &Run) {
    let Run { from, to, lanes, .. } = *run;
    for (dst, src) in row.iter_mut().zip(src) {
        dst[to..to + lanes].copy_from_slice(&src[from..from + lanes]);
    }
}
