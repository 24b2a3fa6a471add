//! Steps in order, checked once, run by a team.
#![expect(unsafe_code, reason = "runs steps on shared memory")]

use std::time::Instant;

use super::conv::{Line, PackedMemory};
use super::memory::Memory;
use super::team::Work;
use super::{Place, Team, View};
use crate::par::{LINE, Par, aligned, for_each_job};

/// One kind of computation, cut into jobs.
pub(crate) trait Stage: Send + Sync + std::fmt::Debug {
    /// What it reads.
    fn reads(&self) -> Vec<&View>;
    /// What it writes.
    fn write(&self) -> &View;
    /// Whether it may read what it writes: every job reads a number before it writes it, and no other job does either.
    fn in_place(&self) -> bool {
        false
    }
    /// Numbers of scratch memory that each thread needs.
    fn scratch_len(&self) -> usize {
        0
    }
    /// Bytes of weights that it holds, as they are packed.
    fn weight_bytes(&self) -> usize {
        0
    }
    /// Most images that it may be run for.
    fn most_images(&self) -> usize {
        usize::MAX
    }
    /// The same, cut into jobs for one thread that computes so many images, if it was cut for several ones; it shares the weights.
    fn alone(&self, _images: usize) -> Option<Box<dyn Stage>> {
        None
    }
    /// The memory of its packed filters.
    fn into_lines(self: Box<Self>) -> Vec<Line> {
        Vec::new()
    }
    /// Jobs for this many images.
    fn jobs(&self, images: usize) -> usize;
    /// Runs one job.
    ///
    /// # Safety
    /// The views of the stage are inside the memory, `scratch` is valid for `scratch_len` numbers, begins at a cache line and
    /// is this job's alone, `job < jobs(images)`, every job runs once, and nothing else writes what the stage reads or writes.
    unsafe fn run(&self, job: usize, images: usize, memory: &Memory, scratch: *mut f32);
}

/// A step of a [`Sequence`]: made by `Step::conv` and the like.
#[derive(Debug)]
pub struct Step {
    stage: Box<dyn Stage>,
}

impl Step {
    pub(crate) fn from_stage(stage: impl Stage + 'static) -> Self {
        Self { stage: Box::new(stage) }
    }

    /// Numbers of scratch memory beyond those of the threads: it begins at a cache line.
    pub const SCRATCH_MORE: usize = LINE;

    /// Bytes of weights and biases that it holds, as they are packed.
    pub fn weight_bytes(&self) -> usize {
        self.stage.weight_bytes()
    }

    /// Gives back the memory of its packed filters.
    pub fn into_memory(self, memory: &mut PackedMemory) {
        memory.give(self.stage.into_lines());
    }

    /// Jobs that may run at once for this many images.
    pub fn jobs(&self, images: usize) -> usize {
        self.stage.jobs(images)
    }

    /// Numbers of scratch memory that [`run_in`](Self::run_in) needs for each thread, beside
    /// [`SCRATCH_MORE`](Self::SCRATCH_MORE) in all.
    pub fn scratch_len(&self) -> usize {
        self.stage.scratch_len().next_multiple_of(LINE)
    }

    /// Runs this step alone, one that needs no scratch memory, see [`run_in`](Self::run_in).
    ///
    /// # Panics
    /// If it needs some, and as that.
    pub fn run(&self, images: usize, src: &[f32], dst: &mut [f32], par: Par) {
        self.run_in(images, src, dst, &mut [], par);
    }

    /// Runs this step alone: it reads `src`, in which its views of [`Place::Images`] lie, and writes `dst`, its arena. As many
    /// threads take part as `scratch` is long enough for.
    ///
    /// # Panics
    /// If it reads or writes anything else, or `scratch` is not enough for one thread, or a view does not stay inside.
    pub fn run_in(&self, images: usize, src: &[f32], dst: &mut [f32], scratch: &mut [f32], par: Par) {
        let write = self.stage.write();
        for view in self.stage.reads() {
            let inside = view.place == Place::Images && view.inside(images, src.len());
            assert!(inside, "{images} images of {} numbers: {view:?}", src.len());
        }
        let inside = write.place == Place::Arena && write.inside(images, dst.len());
        assert!(inside, "{images} images of {} numbers: {write:?}", dst.len());
        assert!(
            images <= self.stage.most_images(),
            "{images} images of at most {}",
            self.stage.most_images()
        );
        // Reading and writing a number costs about as much as some multiplications.
        let threads = par.threads(16 * write.extent(images).len() as u64);
        let memory = Memory { images: src.as_ptr(), arena: dst.as_mut_ptr(), ..Memory::default() };
        // SAFETY: the views are inside the slices, which are different ones.
        unsafe { self.run_jobs(images, &memory, scratch, threads) };
    }

    /// Runs all jobs on up to so many threads.
    ///
    /// # Safety
    /// The views are inside the memory, and nothing else touches what is read or written.
    pub(crate) unsafe fn run_jobs(
        &self,
        images: usize,
        memory: &Memory,
        scratch: &mut [f32],
        threads: usize,
    ) {
        let len = self.scratch_len();
        let scratch = if len == 0 { &mut [] } else { aligned(scratch) };
        assert!(
            scratch.len() >= len,
            "a step needs {len} numbers of scratch memory, found {}",
            scratch.len()
        );
        for_each_job(threads, self.stage.jobs(images), scratch, len, |job, scratch| {
            // SAFETY: promised by the caller; every job runs once, and the scratch memory is its own.
            unsafe { self.stage.run(job, images, memory, scratch.as_mut_ptr()) };
        });
    }
}

/// Steps that run one after the other for some images of a batch, then for the next ones.
///
/// What lies between two of them can then be smaller than a cache, where the maps of the whole batch are not. Each worker computes
/// some images of its own and meets the others at the end of the part only; where images are left for some of the workers, all
/// compute those together, step by step.
#[derive(Debug)]
pub struct Part {
    /// The steps, made for so many images.
    pub steps: Vec<Step>,
    /// Images at once, above 0.
    pub images: usize,
}

/// Parts that were checked against the memory they will run in.
#[derive(Debug)]
pub struct Sequence {
    parts: Vec<Part>,
    /// For each part its steps as one thread runs them, where that is another way.
    alone: Vec<Vec<Option<Box<dyn Stage>>>>,
    /// Images that the memory has room for.
    images: usize,
    arena_len: usize,
    images_len: usize,
    logits_len: usize,
    worker_len: usize,
    scratch_len: usize,
}

/// Numbers that the memory of a run has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Of an image of [`Place::Images`].
    pub images: usize,
    /// Of [`Place::Arena`].
    pub arena: usize,
    /// Of [`Place::Worker`], for each of them.
    pub worker: usize,
    /// Of the result of one image, [`Place::Logits`].
    pub logits: usize,
}

impl Sequence {
    /// Checks that every step stays inside memory of these lengths for up to `images` images, writes nothing that it reads, and
    /// nothing that steps of its part write or read for other images.
    ///
    /// # Panics
    /// If a view does not stay inside, or a step writes what it must not, or a part takes no images, or steps and repetitions
    /// of a run do not fit 32 bits.
    pub fn new(parts: Vec<Part>, images: usize, lengths: Lengths) -> Self {
        let Lengths { images: images_len, arena: arena_len, worker: worker_len, logits: logits_len } =
            lengths;
        assert!(parts.iter().all(|part| part.images > 0), "a part takes no images");
        let turns = parts.iter().map(|part| part.steps.len() as u64 * images.div_ceil(part.images) as u64);
        assert!(turns.sum::<u64>() < u64::from(u32::MAX), "more turns than a team counts");
        let steps =
            parts.iter().flat_map(|part| part.steps.iter().map(|step| (part.images.min(images), step)));
        for (index, (at_once, step)) in steps.clone().enumerate() {
            let write = step.stage.write();
            let most = step.stage.most_images();
            assert!(at_once <= most, "step {index} takes {most} images at most, not {at_once}");
            assert!(write.place != Place::Images, "step {index} writes the images");
            assert!(
                write.images_apart(write, images),
                "step {index} writes a number for two images: {write:?}"
            );
            for view in step.stage.reads().into_iter().chain([write]) {
                let len = match view.place {
                    Place::Images => images_len * images,
                    Place::Arena => arena_len,
                    Place::Worker => worker_len,
                    Place::Logits => logits_len * images,
                };
                let inside = view.inside(view.held(images, at_once), len);
                assert!(inside, "step {index}: not inside a memory of {len}: {view:?}");
                if matches!(view.place, Place::Images | Place::Logits) {
                    let one = if view.place == Place::Images { images_len } else { logits_len };
                    assert!(view.image_stride == one, "step {index}: images are {one} apart: {view:?}");
                }
            }
            if !step.stage.in_place() {
                for read in step.stage.reads() {
                    let held = [read, write].map(|view| view.held(images, at_once));
                    assert!(
                        !read.overlaps(held[0], write, held[1]),
                        "step {index} writes what it reads: {read:?} {write:?}"
                    );
                }
            }
        }
        parts.iter().filter(|part| part.images < images).for_each(|part| check_part(part, images));
        let alone = parts.iter().map(|part| {
            let several = part.images < images;
            let stages = part.steps.iter().map(|step| step.stage.alone(part.images).filter(|_| several));
            stages.collect::<Vec<_>>()
        });
        let alone: Vec<Vec<Option<Box<dyn Stage>>>> = alone.collect();
        let together = steps.map(|(_, step)| step.stage.scratch_len());
        let others = alone.iter().flatten().flatten().map(|stage| stage.scratch_len());
        let scratch_len = together.chain(others).max().unwrap_or(0).next_multiple_of(LINE);
        assert!(worker_len <= isize::MAX as usize / 64, "maps of a worker: {worker_len} numbers");
        let worker_len = worker_len.next_multiple_of(LINE);
        Self { parts, alone, images, arena_len, images_len, logits_len, worker_len, scratch_len }
    }

    /// Numbers of scratch memory that a team of `threads` needs, with that of [`Place::Worker`].
    ///
    /// # Panics
    /// If those are more than memory can address.
    pub fn scratch_len(&self, threads: usize) -> usize {
        let len = self.scratch_len.checked_mul(threads).and_then(|len| len.checked_add(LINE));
        let len = len.and_then(|len| len.checked_add(self.worker_maps_len(threads)));
        len.filter(|len| *len <= isize::MAX as usize / 4).expect("scratch memory can be addressed")
    }

    /// Numbers of [`Place::Worker`] for a team of `threads`: one for all where there are never images for each.
    ///
    /// # Panics
    /// If those are more than memory can address.
    pub fn worker_maps_len(&self, threads: usize) -> usize {
        let apart = |part: &Part| times(part, self.images, threads)[0] > 0;
        let copies = if self.parts.iter().any(apart) { threads } else { 1 };
        self.worker_len.checked_mul(copies).expect("maps of workers can be addressed")
    }

    /// Runs all steps for `n` images, `1 <= n <= images`: `images` and `logits` hold those of the `n` images, `arena` and
    /// `scratch` anything. `times_us`, if given, has one element for each step.
    ///
    /// # Panics
    /// If a slice has another length than the sequence was made for, or `scratch` is too short for the team.
    #[expect(clippy::too_many_arguments, reason = "the buffers of one run, each of its own kind")]
    pub fn run(
        &self,
        n: usize,
        images: &[f32],
        arena: &mut [f32],
        logits: &mut [f32],
        scratch: &mut [f32],
        team: &Team,
        times_us: Option<&mut [f64]>,
    ) {
        assert!((1..=self.images).contains(&n), "{n} images of at most {}", self.images);
        assert_eq!(images.len(), n * self.images_len, "length of images");
        assert_eq!(arena.len(), self.arena_len, "length of the arena");
        assert_eq!(logits.len(), n * self.logits_len, "length of logits");
        assert!(scratch.len() >= self.scratch_len(team.threads()), "length of scratch");
        let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let times = times_us.map(|times| {
            let steps: usize = self.parts.iter().map(|part| part.steps.len()).sum();
            assert_eq!(times.len(), steps, "one time for each step");
            times.fill(0.0);
            std::sync::Mutex::new((Instant::now(), times))
        });
        let memory = Memory {
            images: images.as_ptr(),
            arena: arena.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
            worker: scratch[skip..].as_mut_ptr(),
            first: 0,
        };
        team.run(&Run { sequence: self, n, workers: team.threads(), memory, times });
    }
}

/// How often a part takes images that each of some workers computes alone, and that all compute together, of `n` images.
fn times(part: &Part, n: usize, workers: usize) -> [usize; 2] {
    if part.steps.is_empty() {
        return [0, 0];
    }
    let times = n.div_ceil(part.images);
    let alone = if times == 1 { 0 } else { times - times % workers };
    [alone, times - alone]
}

/// Checks that workers may compute different images of a batch with the steps of a part at once.
fn check_part(part: &Part, images: usize) {
    let shared = |view: &&View| matches!(view.place, Place::Arena | Place::Logits);
    let writes: Vec<&View> = part.steps.iter().map(|step| step.stage.write()).filter(shared).collect();
    let reads = part.steps.iter().flat_map(|step| step.stage.reads()).filter(shared);
    let touched: Vec<&View> = reads.chain(writes.iter().copied()).collect();
    for write in writes {
        for view in &touched {
            assert!(
                write.images_apart(view, images),
                "a part writes what it reads or writes for other images: {write:?} {view:?}"
            );
        }
    }
}

struct Run<'a> {
    sequence: &'a Sequence,
    n: usize,
    workers: usize,
    memory: Memory,
    times: Option<std::sync::Mutex<(Instant, &'a mut [f64])>>,
}

/// What a turn of a run computes.
enum Turn<'a> {
    /// All steps of a part, each job for the next images.
    Alone { part: &'a Part, index: usize },
    /// One step for some images.
    Together { stage: &'a dyn Stage, first: usize, images: usize },
}

impl Run<'_> {
    /// See [`times`].
    fn times(&self, part: &Part) -> [usize; 2] {
        times(part, self.n, self.workers)
    }

    fn turns(&self, part: &Part) -> usize {
        let [alone, together] = self.times(part);
        usize::from(alone > 0) + together * part.steps.len()
    }

    /// A turn, and which of all steps its first one is. Each part's steps for its first images, then for the next ones.
    fn turn(&self, mut turn: usize) -> (Turn<'_>, usize) {
        let mut before = 0;
        for (index, part) in self.sequence.parts.iter().enumerate() {
            let [alone, _] = self.times(part);
            match turn.checked_sub(usize::from(alone > 0)) {
                None => return (Turn::Alone { part, index }, before),
                Some(together) if turn < self.turns(part) => {
                    let (step, time) = (together % part.steps.len(), alone + together / part.steps.len());
                    let (first, images) = self.images(part, time);
                    let stage = &*part.steps[step].stage;
                    return (Turn::Together { stage, first, images }, before + step);
                }
                Some(_) => turn -= self.turns(part),
            }
            before += part.steps.len();
        }
        unreachable!("a turn beyond the last one")
    }

    /// The first of the images that a part takes, and how many.
    fn images(&self, part: &Part, time: usize) -> (usize, usize) {
        let first = time * part.images;
        (first, part.images.min(self.n - first))
    }

    /// Adds a time to that of a step.
    fn add_time(&self, step: usize, us: impl FnOnce(&mut Instant) -> f64) {
        if let Some(times) = &self.times {
            let mut times = times.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let us = us(&mut times.0);
            times.1[step] += us;
        }
    }
}

/// Microseconds since then.
fn lap(since: &mut Instant) -> f64 {
    let now = Instant::now();
    (now - std::mem::replace(since, now)).as_secs_f64() * 1e6
}

impl Work for Run<'_> {
    fn steps(&self) -> usize {
        self.sequence.parts.iter().map(|part| self.turns(part)).sum()
    }

    fn jobs(&self, turn: usize) -> usize {
        match self.turn(turn).0 {
            Turn::Alone { part, .. } => self.times(part)[0],
            Turn::Together { stage, images, .. } => stage.jobs(images),
        }
    }

    fn run(&self, turn: usize, job: usize, worker: usize) {
        let Sequence { worker_len, scratch_len, ref alone, .. } = *self.sequence;
        let own = self.memory.worker.wrapping_add(worker * worker_len);
        let maps_len = self.sequence.worker_maps_len(self.workers);
        let scratch = self.memory.worker.wrapping_add(maps_len + worker * scratch_len);
        match self.turn(turn) {
            (Turn::Together { stage, first, images }, _) => {
                let memory = Memory { first, ..self.memory };
                // SAFETY: the sequence was checked, the slices have the lengths it was checked for, the team runs every job once
                // and a turn after all jobs of the one before, and `worker` tells apart who runs at once.
                unsafe { stage.run(job, images, &memory, scratch) }
            }
            (Turn::Alone { part, index }, before) => {
                let (first, images) = self.images(part, job);
                let memory = Memory { first, worker: own, ..self.memory };
                let mut since = Instant::now();
                for (at, (Step { stage }, alone)) in part.steps.iter().zip(&alone[index]).enumerate() {
                    let stage = alone.as_ref().unwrap_or(stage);
                    for job in 0..stage.jobs(images) {
                        // SAFETY: as above; who computes other images meanwhile has a worker's memory of its own, and nothing
                        // that this part writes elsewhere is read or written for other images.
                        unsafe { stage.run(job, images, &memory, scratch) }
                    }
                    self.add_time(before + at, |_| lap(&mut since));
                }
            }
        }
    }

    fn finished(&self, turn: usize) {
        match self.turn(turn) {
            // What all workers took for the steps, as shares of the time that has passed.
            (Turn::Alone { part, .. }, before) => {
                let Some(times) = &self.times else { return };
                let mut times = times.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let passed = lap(&mut times.0);
                let steps = &mut times.1[before..before + part.steps.len()];
                let sum: f64 = steps.iter().sum();
                if sum > 0.0 {
                    steps.iter_mut().for_each(|us| *us *= passed / sum);
                }
            }
            (Turn::Together { .. }, step) => self.add_time(step, lap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a sequence of one part, whose steps copy one view to the other, is refused.
    fn refused(steps: &[(View, View)], images: usize, lengths: Lengths) -> bool {
        let steps = steps.iter().map(|(src, dst)| Step::relayout(src, dst)).collect();
        let make = || Sequence::new(vec![Part { steps, images }], 4, lengths);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(make)).is_err()
    }

    #[test]
    fn images_that_are_computed_at_once_share_nothing() {
        let map = |start| View::blocked(start, &[16], [2, 2], [0, 0]);
        let one = map(0).image_stride;
        let image = View::dense(Place::Images, 16, [2, 2]);
        let logits = View::dense(Place::Logits, 16, [2, 2]);
        let lengths = Lengths { images: one, arena: 8 * one, worker: one, logits: one };
        let own = |view: View| View { place: Place::Worker, ..view };
        // Each in its own memory, or in that of its image.
        assert!(!refused(&[(image.clone(), own(map(0))), (own(map(0)), logits.clone())], 1, lengths));
        assert!(!refused(
            &[(image.clone(), map(0)), (map(0), map(4 * one)), (map(4 * one), logits)],
            1,
            lengths
        ));
        // Two images do not fit a worker's memory.
        assert!(refused(&[(image.clone(), own(map(0)))], 2, lengths));
        // A map in the place of all images, or where the next image of another map is.
        let fixed = View { image_stride: 0, ..map(0) };
        assert!(refused(&[(image.clone(), fixed.clone())], 1, lengths));
        assert!(refused(&[(image.clone(), fixed)], 4, lengths));
        let far = Lengths { arena: 20 * one, ..lengths };
        assert!(refused(&[(image.clone(), map(0)), (image.clone(), map(2 * one))], 1, far));
        // Numbers that two blocks share, or a border around nothing.
        let shared = View { block_stride: 0, ..View::blocked(0, &[32], [2, 2], [0, 0]) };
        let wide = View::dense(Place::Images, 32, [2, 2]);
        assert!(refused(&[(wide, shared)], 4, Lengths { images: 2 * one, ..far }));
        // More planes than there is memory, but for what rows have behind their pixels.
        let planes = View::planar(0, 1, [2, 2], [1, 1], 1);
        let gaps =
            View { row_stride: 100, block_stride: 400, image_stride: 400, offset: 101, ..planes.clone() };
        let mut memory = vec![7.0; 404];
        Step::relayout(&View::dense(Place::Images, 1, [2, 2]), &gaps).run(
            1,
            &[1.0; 4],
            &mut memory[..304],
            Par::Serial,
        );
        assert_eq!((memory[303], memory[304], memory[104]), (0.0, 7.0, 7.0));
        // Maps that memory cannot hold.
        assert!(refused(&[(image.clone(), own(map(0)))], 1, Lengths { worker: usize::MAX, ..lengths }));
        // The whole batch at once meets nobody.
        assert!(!refused(&[(image.clone(), map(0)), (image, map(2 * one))], 4, far));
    }
}
