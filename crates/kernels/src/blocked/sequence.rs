//! Steps in order, checked once, run by a team.
#![expect(unsafe_code, reason = "runs steps on shared memory")]

use std::time::Instant;

use super::memory::Memory;
use super::team::Work;
use super::{Place, Team, View};
use crate::par::{LINE, Par, for_each_job};

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

    /// Bytes of weights and biases that it holds, as they are packed.
    pub fn weight_bytes(&self) -> usize {
        self.stage.weight_bytes()
    }

    /// Jobs that may run at once for this many images.
    pub fn jobs(&self, images: usize) -> usize {
        self.stage.jobs(images)
    }

    /// Runs this step alone: it reads `src`, in which its views of [`Place::Images`] lie, and writes `dst`, its arena.
    ///
    /// # Panics
    /// If it reads or writes anything else, or needs scratch memory, or a view does not stay inside.
    pub fn run(&self, images: usize, src: &[f32], dst: &mut [f32], par: Par) {
        let write = self.stage.write();
        for view in self.stage.reads() {
            let inside = view.place == Place::Images && view.inside(images, src.len());
            assert!(inside, "{images} images of {} numbers: {view:?}", src.len());
        }
        let inside = write.place == Place::Arena && write.inside(images, dst.len());
        assert!(inside, "{images} images of {} numbers: {write:?}", dst.len());
        assert!(self.stage.scratch_len() == 0, "a step that needs scratch memory runs in a sequence");
        let memory =
            Memory { images: src.as_ptr(), arena: dst.as_mut_ptr(), logits: std::ptr::null_mut(), first: 0 };
        // Reading and writing a number costs about as much as some multiplications.
        let threads = par.threads(16 * write.extent(images).len() as u64);
        for_each_job(threads, self.stage.jobs(images), &mut [], 0, |job, _| {
            // SAFETY: the views are inside the slices, which are different ones, and every job runs once.
            unsafe { self.stage.run(job, images, &memory, std::ptr::null_mut()) };
        });
    }
}

/// Steps that run one after the other for some images of a batch, then for the next ones.
///
/// What lies between two of them can then be smaller than a cache, where the maps of the whole batch are not.
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
    /// Images that the memory has room for.
    images: usize,
    arena_len: usize,
    images_len: usize,
    logits_len: usize,
    scratch_len: usize,
}

impl Sequence {
    /// Checks that every step stays inside memory of these lengths for up to `images` images, and writes nothing that it reads.
    ///
    /// `images_len` and `logits_len` are those of one image.
    ///
    /// # Panics
    /// If a view does not stay inside, or a step writes what it reads, or a part takes no images, or steps and repetitions
    /// of a run do not fit 32 bits.
    pub fn new(
        parts: Vec<Part>,
        images: usize,
        arena_len: usize,
        images_len: usize,
        logits_len: usize,
    ) -> Self {
        assert!(parts.iter().all(|part| part.images > 0), "a part takes no images");
        let turns = parts.iter().map(|part| part.steps.len() as u64 * images.div_ceil(part.images) as u64);
        assert!(turns.sum::<u64>() < u64::from(u32::MAX), "more turns than a team counts");
        let steps =
            parts.iter().flat_map(|part| part.steps.iter().map(|step| (part.images.min(images), step)));
        for (index, (at_once, step)) in steps.clone().enumerate() {
            let write = step.stage.write();
            assert!(write.place != Place::Images, "step {index} writes the images");
            for view in step.stage.reads().into_iter().chain([write]) {
                let len = match view.place {
                    Place::Images => images_len * images,
                    Place::Arena => arena_len,
                    Place::Logits => logits_len * images,
                };
                let inside = view.inside(view.held(images, at_once), len);
                assert!(inside, "step {index}: not inside a memory of {len}: {view:?}");
                assert!(
                    view.advance == view.image_stride || view.advance == 0 && view.place == Place::Arena,
                    "step {index}: parts of a batch are {} apart: {view:?}",
                    view.advance
                );
                if view.place != Place::Arena {
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
        let scratch_len =
            steps.map(|(_, step)| step.stage.scratch_len()).max().unwrap_or(0).next_multiple_of(LINE);
        Self { parts, images, arena_len, images_len, logits_len, scratch_len }
    }

    /// Numbers of scratch memory that a team of `threads` needs.
    pub fn scratch_len(&self, threads: usize) -> usize {
        (self.scratch_len + LINE) * threads
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
            first: 0,
        };
        let scratch = Scratch(scratch[skip..].as_mut_ptr());
        team.run(&Run { sequence: self, n, memory, scratch, times });
    }
}

/// Memory of which each worker has its own part.
struct Scratch(*mut f32);
// SAFETY: each worker uses its own part.
unsafe impl Sync for Scratch {}

struct Run<'a> {
    sequence: &'a Sequence,
    n: usize,
    memory: Memory,
    scratch: Scratch,
    times: Option<std::sync::Mutex<(Instant, &'a mut [f64])>>,
}

/// What a turn of a run computes.
struct Turn<'a> {
    stage: &'a dyn Stage,
    /// Which of all steps it is.
    index: usize,
    /// First image, and how many.
    first: usize,
    images: usize,
}

impl Run<'_> {
    /// Each part's steps for its first images, then for the next ones.
    fn turn(&self, mut turn: usize) -> Turn<'_> {
        let mut before = 0;
        for part in &self.sequence.parts {
            let turns = part.steps.len() * self.n.div_ceil(part.images);
            if turn < turns {
                let (index, first) = (turn % part.steps.len(), turn / part.steps.len() * part.images);
                let images = part.images.min(self.n - first);
                return Turn { stage: &*part.steps[index].stage, index: before + index, first, images };
            }
            turn -= turns;
            before += part.steps.len();
        }
        unreachable!("a turn beyond the last one")
    }
}

impl Work for Run<'_> {
    fn steps(&self) -> usize {
        self.sequence.parts.iter().map(|part| part.steps.len() * self.n.div_ceil(part.images)).sum()
    }

    fn jobs(&self, turn: usize) -> usize {
        let Turn { stage, images, .. } = self.turn(turn);
        stage.jobs(images)
    }

    fn run(&self, turn: usize, job: usize, worker: usize) {
        let Turn { stage, first, images, .. } = self.turn(turn);
        let memory = Memory { first, ..self.memory };
        let scratch = self.scratch.0.wrapping_add(worker * self.sequence.scratch_len);
        // SAFETY: the sequence was checked, the slices have the lengths it was checked for, the team runs every job once and a
        // step after all jobs of the one before, and `worker` tells apart who runs at once.
        unsafe { stage.run(job, images, &memory, scratch) }
    }

    fn finished(&self, turn: usize) {
        if let Some(times) = &self.times {
            let mut times = times.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let now = Instant::now();
            times.1[self.turn(turn).index] += (now - times.0).as_secs_f64() * 1e6;
            times.0 = now;
        }
    }
}
