//! Threads that run the steps of a network together.
#![expect(unsafe_code, reason = "helpers borrow the work of the caller for as long as a run lasts")]

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::denormals::Flushed;

/// How long a thread looks for work before it sleeps. A run of a small network is shorter, and so are the serial parts of a
/// large one; waking a sleeping thread costs some 50 us.
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
            desk.wake();
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
    /// Step in the upper half, next job in the lower one; [`OVER`] when there is no step left.
    next: AtomicU64,
    /// Jobs of this step that have ended.
    done: AtomicUsize,
    /// Whether a job panicked.
    failed: AtomicBool,
}

const OVER: u64 = u64::MAX;

impl Default for Shift {
    fn default() -> Self {
        Self { next: AtomicU64::new(OVER - 1), done: AtomicUsize::new(0), failed: AtomicBool::new(false) }
    }
}

impl Shift {
    fn lead(&self, work: &dyn Work) {
        // Helpers must not look for work any more when this function is left, by a panic too.
        struct Close<'a>(&'a Shift);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.next.store(OVER, Ordering::SeqCst);
            }
        }
        let close = Close(self);
        for step in 0..work.steps() {
            let jobs = work.jobs(step);
            self.done.store(0, Ordering::Relaxed);
            self.next.store((step as u64) << 32, Ordering::Release);
            let mut mine = 0;
            while let Some(job) = self.take(step, jobs) {
                work.run(step, job, 0);
                mine += 1;
            }
            wait_until(|| {
                self.done.load(Ordering::Acquire) + mine == jobs || self.failed.load(Ordering::Acquire)
            });
            assert!(!self.failed.load(Ordering::Acquire), "a thread of the team panicked in step {step}");
            work.finished(step);
        }
        drop(close);
    }

    /// The next job of a step, if that is still the current one.
    fn take(&self, step: usize, jobs: usize) -> Option<usize> {
        let mut word = self.next.load(Ordering::Acquire);
        while (word >> 32) as usize == step && ((word & 0xffff_ffff) as usize) < jobs {
            match self.next.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((word & 0xffff_ffff) as usize),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Takes jobs until the run is over.
    fn help(&self, work: &dyn Work, worker: usize) {
        struct Fail<'a>(&'a Shift);
        impl Drop for Fail<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.failed.store(true, Ordering::SeqCst);
                }
            }
        }
        let _fail = Fail(self);
        let mut idle = 0_u32;
        loop {
            let word = self.next.load(Ordering::Acquire);
            if word == OVER {
                return;
            }
            let step = (word >> 32) as usize;
            match if word == OVER - 1 { None } else { self.take(step, work.jobs(step)) } {
                Some(job) => {
                    idle = 0;
                    work.run(step, job, worker);
                    self.done.fetch_add(1, Ordering::Release);
                }
                None => {
                    idle += 1;
                    // Where there are fewer cores than threads, the one that has work needs this core.
                    if idle.is_multiple_of(1 << 12) {
                        std::thread::yield_now()
                    } else {
                        std::hint::spin_loop()
                    }
                }
            }
        }
    }
}

/// Waits a short time with the core, then gives it away.
fn wait_until(ready: impl Fn() -> bool) {
    let mut idle = 0_u32;
    while !ready() {
        idle += 1;
        if idle.is_multiple_of(1 << 10) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// Where the own helpers of a team find the run to help with.
struct Desk {
    /// Held by the run that has the helpers.
    leader: Mutex<()>,
    /// The run, while there is one: a pointer to a [`Call`].
    call: AtomicPtr<Call<'static>>,
    /// Counts runs, so that a helper that slept notices a new one.
    calls: AtomicUsize,
    /// Helpers that may look at the call.
    inside: AtomicUsize,
    asleep: AtomicUsize,
    bell: Mutex<()>,
    rung: Condvar,
    closed: AtomicBool,
}

struct Call<'a> {
    work: &'a dyn Work,
    shift: Shift,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            leader: Mutex::new(()),
            call: AtomicPtr::new(std::ptr::null_mut()),
            calls: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            bell: Mutex::new(()),
            rung: Condvar::new(),
            closed: AtomicBool::new(false),
        }
    }
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
                wait_until(|| self.0.inside.load(Ordering::SeqCst) == 0);
            }
        }
        let call = Call { work, shift: Shift::default() };
        let leave = Leave(self);
        self.call.store((&raw const call).cast_mut().cast(), Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
        call.shift.lead(work);
        // The call must outlive every helper's look at it: also when a job panicked here.
        drop(leave);
    }

    fn wake(&self) {
        drop(self.lock_bell());
        self.rung.notify_all();
    }

    fn lock_bell(&self) -> MutexGuard<'_, ()> {
        // Nothing is changed under this lock.
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Life of a helper.
    fn help(&self, worker: usize) {
        let _flushed = Flushed::new();
        let mut seen = 0;
        loop {
            self.await_call(seen);
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            seen = self.calls.load(Ordering::SeqCst);
            struct Inside<'a>(&'a AtomicUsize);
            impl Drop for Inside<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            self.inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(&self.inside);
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

    /// Waits for a run after the `seen`-th one, first awake, then asleep.
    fn await_call(&self, seen: usize) {
        let news = || self.calls.load(Ordering::SeqCst) != seen || self.closed.load(Ordering::SeqCst);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            for _ in 0..64 {
                if news() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let mut bell = self.lock_bell();
        while !news() {
            bell = self.rung.wait(bell).unwrap_or_else(PoisonError::into_inner);
        }
        drop(bell);
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}
