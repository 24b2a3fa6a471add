//! Where a kernel may run, and how its work is shared out.
#![expect(unsafe_code, reason = "threads write disjoint parts of one slice")]

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Whether a kernel may use more than the calling thread. The result is the same, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Par {
    /// The calling thread only; nothing is spawned and nothing is allocated for threads.
    Serial,
    /// The ambient rayon pool: the global one, or that of the surrounding `ThreadPool::install`.
    Rayon,
}

/// Multiply-accumulate operations below which waking another thread costs more than it saves (about 10 us).
const MIN_MACS: u64 = 1 << 20;

impl Par {
    /// Threads that a product of `macs` multiply-accumulate operations is worth.
    pub(crate) fn threads(self, macs: u64) -> usize {
        if self == Par::Rayon && macs >= MIN_MACS { rayon::current_num_threads() } else { 1 }
    }
}

/// Runs `job(0) .. job(jobs - 1)`, each once, on up to `threads` threads, each with its own `scratch_len`
/// numbers of `scratch`. Which thread runs a job is left to chance, so a job's result must not depend on it.
pub(crate) fn for_each_job(
    threads: usize,
    jobs: usize,
    scratch: &mut [f32],
    scratch_len: usize,
    job: impl Fn(usize, &mut [f32]) + Sync,
) {
    let threads = threads.min(jobs).min(scratch.len().checked_div(scratch_len).unwrap_or(threads));
    if threads <= 1 {
        let scratch = &mut scratch[..scratch_len];
        for index in 0..jobs {
            job(index, scratch);
        }
        return;
    }
    let next = AtomicUsize::new(0);
    let work = |scratch: &mut [f32]| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= jobs {
                break;
            }
            job(index, scratch);
        }
    };
    if scratch_len == 0 {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| work(&mut []));
    } else {
        scratch.par_chunks_exact_mut(scratch_len).take(threads).with_max_len(1).for_each(work);
    }
}

/// A slice that several jobs write at once, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pointer: *mut f32,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Shared` only hands out a pointer; whoever writes through it promises to keep to its own
// elements.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { pointer: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// Pointer to the elements `from .. from + len`.
    ///
    /// # Panics
    /// If they are not all inside the slice.
    #[inline]
    pub(crate) fn part(&self, from: usize, len: usize) -> *mut f32 {
        assert!(from <= self.len && len <= self.len - from, "part {from} + {len} of a slice of {}", self.len);
        self.pointer.wrapping_add(from)
    }
}

/// The part of `scratch` that starts at a cache line; at most [`LINE`] numbers shorter.
pub(crate) fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(size_of::<f32>() * LINE).min(LINE);
    &mut scratch[skip..]
}

/// Numbers in a cache line.
pub(crate) const LINE: usize = 16;
