//! Threads that run the steps of a network together.
#![expect(unsafe_code, reason = "helpers borrow the work of the caller for as long as a run lasts")]

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::denormals::Flushed;

/// How long a thread looks for what it waits for before it sleeps. A run of a small network is shorter, and so are the serial
/// parts of a large one; waking a sleeping thread costs some 50 us.
const PATIENCE: Duration = Duration::from_micros(100);

/// Work in steps that follow each other; the jobs of one step may run at once.
pub(crate) trait Work: Sync {
    /// Number of steps.
    fn steps(&self) -> usize;
    /// Jobs of a step.
    fn jobs(&self, step: usize) -> usize;
    /// Runs one job; `worker` is different for jobs that run at once.
    fn run(&self, step: usize, job: usize, worker: usize);
    /// Called by the leader between two steps.
    fn finished(&self, step: usize);
}

/// Threads that help the one that calls. They sleep between runs.
///
/// The caller's thread does everything that nobody else takes, so a run never waits for a thread to appear, and several runs
/// may use one team: all but one of them then do without helpers. Results do not depend on who ran what.
pub struct Team {
    helpers: Helpers,
    threads: usize,
}

enum Helpers {
    None,
    Own { desk: Arc<Desk>, handles: Vec<std::thread::JoinHandle<()>> },
    Rayon(Arc<rayon::ThreadPool>),
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Team {
    /// The caller and `threads - 1` helpers of its own.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        if threads <= 1 {
            return Ok(Self { helpers: Helpers::None, threads: 1 });
        }
        let desk = Arc::new(Desk::default());
        let mut team =
            Self { helpers: Helpers::Own { desk: Arc::clone(&desk), handles: Vec::new() }, threads };
        for worker in 1..threads {
            let desk = Arc::clone(&desk);
            let builder = std::thread::Builder::new().name(format!("cofilter-{worker}"));
            let handle = builder.spawn(move || desk.help(worker))?;
            if let Helpers::Own { handles, .. } = &mut team.helpers {
                handles.push(handle);
            }
        }
        Ok(team)
    }

    /// The caller and up to `threads - 1` threads of a pool that others use too. A run ends when the pool has taken up the
    /// helpers' part of it, which may be done by then: while the pool is busy with other things, runs wait for it.
    pub fn rayon(pool: Arc<rayon::ThreadPool>, threads: usize) -> Self {
        match threads {
            0 | 1 => Self { helpers: Helpers::None, threads: 1 },
            _ => Self { helpers: Helpers::Rayon(pool), threads },
        }
    }

    /// Threads that may take part, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs all steps.
    pub(crate) fn run(&self, work: &dyn Work) {
        let _flushed = Flushed::new();
        match &self.helpers {
            Helpers::None => lead_alone(work),
            Helpers::Own { desk, .. } => desk.lead(work),
            Helpers::Rayon(pool) => {
                let shift = Shift::default();
                pool.in_place_scope(|scope| {
                    for worker in 1..self.threads {
                        let shift = &shift;
                        scope.spawn(move |_| {
                            let _flushed = Flushed::new();
                            shift.help(work, worker);
                        });
                    }
                    shift.lead(work);
                });
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if let Helpers::Own { desk, handles } = &mut self.helpers {
            desk.closed.store(true, Ordering::SeqCst);
            desk.called.ring();
            for handle in handles.drain(..) {
                // A helper that panicked has reported it already.
                let _ = handle.join();
            }
        }
    }
}

fn lead_alone(work: &dyn Work) {
    for step in 0..work.steps() {
        (0..work.jobs(step)).for_each(|job| work.run(step, job, 0));
        work.finished(step);
    }
}

/// The state of one run: which job of which step is the next one.
struct Shift {
    /// Which step, and how many of its turns were taken from both ends, see [`Word`].
    next: AtomicU64,
    /// Turns of this step that helpers have ended.
    done: AtomicUsize,
    /// Whether a job panicked.
    failed: AtomicBool,
    /// Rung where there are new jobs, or none any more.
    begun: Bell,
    /// Rung where a helper's job has ended.
    ended: Bell,
}

/// A step in the upper half; below, how many of its turns were taken from the front and from the back. A turn is a job, or several
/// where there are more than can be counted.
///
/// Neighbouring jobs write neighbouring parts of a map. One thread takes them from the front and the other one from the back, so in
/// the next step each finds in its own cache what it wrote in this one.
struct Word;

impl Word {
    const COUNT_BITS: u32 = 16;
    const COUNT: u64 = (1 << Self::COUNT_BITS) - 1;
    /// There is no step any more.
    const OVER: u64 = u64::MAX;
    /// The first step has not begun.
    const NOT_YET: u64 = Self::OVER << (2 * Self::COUNT_BITS);

    fn step(word: u64) -> u64 {
        word >> (2 * Self::COUNT_BITS)
    }

    fn begun(step: usize) -> u64 {
        (step as u64) << (2 * Self::COUNT_BITS)
    }

    /// Turns that were taken from the front and from the back.
    fn taken(word: u64) -> [usize; 2] {
        [word >> Self::COUNT_BITS, word].map(|count| (count & Self::COUNT) as usize)
    }
}

/// The jobs of a step, in as many turns as can be counted.
#[derive(Clone, Copy)]
struct Turns {
    jobs: usize,
    each: usize,
}

impl Turns {
    fn of(jobs: usize) -> Self {
        Self { jobs, each: jobs.div_ceil(Word::COUNT as usize).max(1) }
    }

    fn count(self) -> usize {
        self.jobs.div_ceil(self.each)
    }

    fn jobs(self, turn: usize) -> std::ops::Range<usize> {
        turn * self.each..self.jobs.min((turn + 1) * self.each)
    }
}

impl Default for Shift {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(Word::NOT_YET),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            begun: Bell::default(),
            ended: Bell::default(),
        }
    }
}

impl Shift {
    fn lead(&self, work: &dyn Work) {
        // Helpers must not look for work any more when this function is left, by a panic too.
        struct Close<'a>(&'a Shift);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.next.store(Word::OVER, Ordering::SeqCst);
                self.0.begun.ring();
            }
        }
        let close = Close(self);
        for step in 0..work.steps() {
            let jobs = work.jobs(step);
            // Nobody has to hear of a job that nobody shares: that takes longer than a small one.
            if jobs <= 1 {
                (0..jobs).for_each(|job| work.run(step, job, 0));
                work.finished(step);
                continue;
            }
            self.done.store(0, Ordering::Relaxed);
            self.next.store(Word::begun(step), Ordering::SeqCst);
            self.begun.ring();
            let turns = Turns::of(jobs);
            let mut mine = 0;
            while let Some(turn) = self.take(step, turns.count(), 0) {
                turns.jobs(turn).for_each(|job| work.run(step, job, 0));
                mine += 1;
            }
            self.ended.wait(|| {
                self.done.load(Ordering::SeqCst) + mine == turns.count() || self.failed.load(Ordering::SeqCst)
            });
            assert!(!self.failed.load(Ordering::SeqCst), "a thread of the team panicked in step {step}");
            work.finished(step);
        }
        drop(close);
    }

    /// The next turn of a step for a worker, if that is still the current one.
    fn take(&self, step: usize, turns: usize, worker: usize) -> Option<usize> {
        let mut word = self.next.load(Ordering::Acquire);
        let from_back = worker % 2 == 1;
        loop {
            let [front, back] = Word::taken(word);
            if Word::step(word) != step as u64 || front + back >= turns {
                return None;
            }
            let (next, turn) = if from_back {
                (word + 1, turns - 1 - back)
            } else {
                (word + (1 << Word::COUNT_BITS), front)
            };
            match self.next.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(turn),
                Err(now) => word = now,
            }
        }
    }

    /// Takes jobs until the run is over.
    fn help(&self, work: &dyn Work, worker: usize) {
        struct Fail<'a>(&'a Shift);
        impl Drop for Fail<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.failed.store(true, Ordering::SeqCst);
                    self.0.ended.ring();
                }
            }
        }
        let _fail = Fail(self);
        loop {
            let word = self.next.load(Ordering::SeqCst);
            match word {
                Word::OVER => return,
                Word::NOT_YET => {}
                _ => {
                    let step = Word::step(word) as usize;
                    let turns = Turns::of(work.jobs(step));
                    while let Some(turn) = self.take(step, turns.count(), worker) {
                        turns.jobs(turn).for_each(|job| work.run(step, job, worker));
                        self.done.fetch_add(1, Ordering::SeqCst);
                        self.ended.ring();
                    }
                }
            }
            // Until there is another step; jobs are never added to one.
            self.begun.wait(|| {
                let now = self.next.load(Ordering::SeqCst);
                now == Word::OVER || Word::step(now) != Word::step(word)
            });
        }
    }
}

/// What one thread waits for and another one rings when it may have come.
#[derive(Default)]
struct Bell {
    asleep: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Waits until something is so: a short time awake, then asleep. It must be read, and changed before ringing, in the one
    /// order of all threads (`SeqCst`): whoever sees it unchanged is then seen to be asleep by who rings.
    fn wait(&self, ready: impl Fn() -> bool) {
        let mut start = None;
        loop {
            for _ in 0..1024 {
                if ready() {
                    return;
                }
                std::hint::spin_loop();
            }
            if start.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                break;
            }
            // Where there are fewer cores than threads, the one that has work needs this core.
            std::thread::yield_now();
        }
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held();
        while !ready() {
            held = self.rung.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        drop(held);
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes those that sleep.
    fn ring(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            // Who is about to sleep does so first.
            drop(self.held());
            self.rung.notify_all();
        }
    }

    fn held(&self) -> MutexGuard<'_, ()> {
        // Nothing is changed under this lock.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the own helpers of a team find the run to help with.
#[derive(Default)]
struct Desk {
    /// Held by the run that has the helpers.
    leader: Mutex<()>,
    /// The run, while there is one: a pointer to a [`Call`].
    call: AtomicPtr<Call<'static>>,
    /// Counts runs, so that a helper that slept notices a new one.
    calls: AtomicUsize,
    /// Helpers that may look at the call.
    inside: AtomicUsize,
    /// Rung for a new run, and where there will be none.
    called: Bell,
    /// Rung when a helper has left.
    left: Bell,
    closed: AtomicBool,
}

struct Call<'a> {
    work: &'a dyn Work,
    shift: Shift,
}

impl Desk {
    fn lead(&self, work: &dyn Work) {
        // Somebody else's run has the helpers: this one does without.
        let _leader = match self.leader.try_lock() {
            Ok(leader) => leader,
            // A job panicked in an earlier run, which left nothing behind.
            Err(TryLockError::Poisoned(leader)) => leader.into_inner(),
            Err(TryLockError::WouldBlock) => return lead_alone(work),
        };
        struct Leave<'a>(&'a Desk);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.call.store(std::ptr::null_mut(), Ordering::SeqCst);
                self.0.left.wait(|| self.0.inside.load(Ordering::SeqCst) == 0);
            }
        }
        let call = Call { work, shift: Shift::default() };
        let leave = Leave(self);
        self.call.store((&raw const call).cast_mut().cast(), Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.called.ring();
        call.shift.lead(work);
        // The call must outlive every helper's look at it: also when a job panicked here.
        drop(leave);
    }

    /// Life of a helper.
    fn help(&self, worker: usize) {
        let _flushed = Flushed::new();
        let mut seen = 0;
        loop {
            self.called
                .wait(|| self.calls.load(Ordering::SeqCst) != seen || self.closed.load(Ordering::SeqCst));
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            seen = self.calls.load(Ordering::SeqCst);
            struct Inside<'a>(&'a Desk);
            impl Drop for Inside<'_> {
                fn drop(&mut self) {
                    self.0.inside.fetch_sub(1, Ordering::SeqCst);
                    self.0.left.ring();
                }
            }
            self.inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(self);
            let call = self.call.load(Ordering::SeqCst);
            if !call.is_null() {
                // SAFETY: the leader clears the pointer and then waits until nobody is inside before the call ends; this
                // helper went inside before it read the pointer.
                let call = unsafe { &*call };
                call.shift.help(call.work, worker);
            }
            drop(inside);
        }
    }
}

#[cfg(test)]
mod tests;
