use super::*;

/// Waits for something that comes soon, or never.
fn soon(what: &str, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

/// Steps of which each knows who must be asleep, and who must be there.
struct Patient<'a> {
    shift: &'a Shift,
    present: [AtomicUsize; 2],
}

impl Work for Patient<'_> {
    fn steps(&self) -> usize {
        5
    }

    fn jobs(&self, step: usize) -> usize {
        if step.is_multiple_of(2) { 1 } else { 2 }
    }

    fn run(&self, step: usize, _: usize, worker: usize) {
        if self.jobs(step) == 1 {
            assert_eq!(worker, 0);
            soon("who has no job sleeps", || self.shift.begun.asleep.load(Ordering::SeqCst) == 1);
            return;
        }
        let present = &self.present[step / 2];
        present.fetch_add(1, Ordering::SeqCst);
        soon("who slept is woken", || present.load(Ordering::SeqCst) == 2);
        if worker == 1 {
            soon("who waits for a job sleeps", || self.shift.ended.asleep.load(Ordering::SeqCst) == 1);
        }
    }

    fn finished(&self, _: usize) {}
}

#[test]
fn who_has_nothing_to_do_within_a_run_sleeps_and_is_woken() {
    let (ended, end) = std::sync::mpsc::channel();
    // In a thread of its own: who is not woken would wait for ever.
    std::thread::spawn(move || {
        let shift = Shift::default();
        let work = Patient { shift: &shift, present: Default::default() };
        std::thread::scope(|scope| {
            scope.spawn(|| shift.help(&work, 1));
            shift.lead(&work);
        });
        ended.send(work.present.map(AtomicUsize::into_inner))
    });
    assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok([2, 2]));
}

/// Who ran which job of which step.
struct Recorded {
    jobs: Vec<usize>,
    ran: Mutex<Vec<[usize; 3]>>,
}

impl Work for Recorded {
    fn steps(&self) -> usize {
        self.jobs.len()
    }

    fn jobs(&self, step: usize) -> usize {
        self.jobs[step]
    }

    fn run(&self, step: usize, job: usize, worker: usize) {
        self.ran.lock().unwrap().push([step, job, worker]);
        std::thread::yield_now();
    }

    fn finished(&self, step: usize) {
        let ran = self.ran.lock().unwrap();
        assert_eq!(ran.iter().filter(|[of, ..]| *of == step).count(), self.jobs[step]);
    }
}

#[test]
fn every_job_runs_once_and_two_threads_meet_in_the_middle() {
    for threads in [1, 2, 3, 4] {
        let team = Team::new(threads).unwrap();
        for round in 0..50 {
            let jobs: Vec<usize> = (0..40).map(|step| (step * 7 + round) % 11).collect();
            let work = Recorded { jobs: jobs.clone(), ran: Mutex::default() };
            team.run(&work);
            let ran = work.ran.into_inner().unwrap();
            for (step, jobs) in jobs.into_iter().enumerate() {
                let of = |worker: usize| {
                    let own = ran.iter().filter(move |[s, _, w]| *s == step && *w == worker);
                    own.map(|[_, job, _]| *job).collect::<Vec<_>>()
                };
                let mut all: Vec<usize> = (0..threads).flat_map(of).collect();
                all.sort_unstable();
                assert_eq!(all, (0..jobs).collect::<Vec<_>>(), "step {step}");
                if jobs == 1 {
                    assert_eq!(of(0), [0], "step {step}");
                } else if threads == 2 {
                    let [front, back] = [of(0), of(1)];
                    assert_eq!(front, (0..front.len()).collect::<Vec<_>>());
                    assert_eq!(back, (front.len()..jobs).rev().collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn more_jobs_than_are_counted_are_all_run() {
    for jobs in [65_535, 65_536, 200_001] {
        struct Many(Vec<AtomicUsize>);
        impl Work for Many {
            fn steps(&self) -> usize {
                2
            }
            fn jobs(&self, _: usize) -> usize {
                self.0.len()
            }
            fn run(&self, _: usize, job: usize, _: usize) {
                self.0[job].fetch_add(1, Ordering::Relaxed);
            }
            fn finished(&self, _: usize) {}
        }
        let many = Many((0..jobs).map(|_| AtomicUsize::new(0)).collect());
        Team::new(2).unwrap().run(&many);
        assert!(many.0.iter().all(|count| count.load(Ordering::Relaxed) == 2), "{jobs}");
    }
}

/// A step of two jobs that are there at once, of which one may panic.
#[derive(Default)]
struct Fragile {
    victim: Option<usize>,
    present: AtomicUsize,
    done: AtomicUsize,
}

impl Work for Fragile {
    fn steps(&self) -> usize {
        1
    }

    fn jobs(&self, _: usize) -> usize {
        2
    }

    fn run(&self, _: usize, _: usize, worker: usize) {
        if self.victim.is_some() {
            self.present.fetch_add(1, Ordering::SeqCst);
            soon("both jobs run at once", || self.present.load(Ordering::SeqCst) == 2);
        }
        assert!(self.victim != Some(worker), "as the test wants it");
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    fn finished(&self, _: usize) {}
}

#[test]
fn a_job_that_panics_ends_the_run_and_not_the_team() {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pool = || Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        for victim in [0, 1] {
            for team in [Team::new(2).unwrap(), Team::rayon(pool(), 2)] {
                let fragile = Fragile { victim: Some(victim), ..Fragile::default() };
                let run = std::panic::AssertUnwindSafe(|| team.run(&fragile));
                assert!(std::panic::catch_unwind(run).is_err(), "worker {victim}");
                assert_eq!(fragile.done.into_inner(), 1, "worker {victim}");
                let sound = Fragile::default();
                team.run(&sound);
                assert_eq!(sound.done.into_inner(), 2, "after worker {victim}");
            }
        }
        ended.send(())
    });
    assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok(()));
}
