//! The fixed pools that answer requests.
//!
//! Three lanes: main for requests, fast for health and metrics, shed for the 503s of what
//! finds no room. A dispatcher (a listener's accept thread) only ever submits: it never
//! writes to a client, so no client can hold it up.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use threadpool::ThreadPool;

use super::wire::Lane;

/// Threads of the fast lane.
const FAST_THREADS: usize = 2;
/// Threads that answer 503.
const SHED_THREADS: usize = 2;
/// Jobs that may wait in the fast and in the shed lane; a connection that finds even the shed
/// lane full is closed without an answer.
const SIDE_QUEUE_MAX: usize = 256;
/// How often a stop looks whether the pools are idle.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// Stack of a pool's thread: what `std` gives is more than these need, and they are many.
const STACK_BYTES: usize = 512 << 10;

/// One exchange, or the exchanges of one connection, to be served.
pub type Job = Box<dyn FnOnce() + Send>;

/// The pools of the front.
#[derive(Debug)]
pub struct Pools {
    main: Pool,
    fast: Pool,
    shed: Pool,
}

impl Pools {
    /// Starts the threads: `workers` for the main lane, before which `queue_max` jobs may wait.
    pub fn new(workers: usize, queue_max: usize) -> Self {
        Self {
            main: Pool::start("worker", workers, queue_max),
            fast: Pool::start("fast", FAST_THREADS, SIDE_QUEUE_MAX),
            shed: Pool::start("shed", SHED_THREADS, SIDE_QUEUE_MAX),
        }
    }

    /// Hands a job to a lane.
    ///
    /// # Errors
    /// The job itself, where the lane's queue is full.
    pub fn submit(&self, lane: Lane, job: Job) -> Result<(), Job> {
        match lane {
            Lane::Main => self.main.submit(job),
            Lane::Fast => self.fast.submit(job),
        }
    }

    /// Hands a job to the threads that answer "no room".
    ///
    /// # Errors
    /// The job itself, where even their queue is full: drop it where that cannot block.
    pub fn submit_shed(&self, job: Job) -> Result<(), Job> {
        self.shed.submit(job)
    }

    /// Workers that are serving now.
    pub fn busy(&self) -> usize {
        self.main.running.load(Ordering::Relaxed)
    }

    /// Jobs that wait for a worker.
    pub fn queued(&self) -> usize {
        self.main.queue.len()
    }

    /// Waits until nothing is queued or running; `false` if `grace` ran out first.
    pub fn drain(&self, grace: Duration) -> bool {
        let end = Instant::now() + grace;
        let pools = [&self.main, &self.fast, &self.shed];
        while pools.iter().any(|pool| !pool.is_idle()) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(DRAIN_POLL);
        }
        true
    }
}

#[derive(Debug)]
struct Pool {
    queue: Arc<Queue>,
    // Counts a job from before it can be taken until after it ended, so that a drain can't
    // look between the two.
    pending: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    _threads: ThreadPool,
}

impl Pool {
    fn start(name: &str, threads: usize, queue_max: usize) -> Self {
        let queue = Arc::new(Queue::new(queue_max));
        let pool = threadpool::Builder::new()
            .num_threads(threads)
            .thread_name(name.to_owned())
            .thread_stack_size(STACK_BYTES)
            .build();
        let (pending, running) = (Arc::default(), Arc::default());
        for _ in 0..threads {
            let (queue, pending, running) =
                (Arc::clone(&queue), Arc::clone(&pending), Arc::clone(&running));
            pool.execute(move || run_jobs(&queue, &pending, &running));
        }
        Self { queue, pending, running, _threads: pool }
    }

    fn submit(&self, job: Job) -> Result<(), Job> {
        self.pending.fetch_add(1, Ordering::SeqCst);
        self.queue.push(job).inspect_err(|_| {
            self.pending.fetch_sub(1, Ordering::SeqCst);
        })
    }

    fn is_idle(&self) -> bool {
        self.pending.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn run_jobs(queue: &Queue, pending: &AtomicUsize, running: &AtomicUsize) {
    while let Some(job) = queue.take() {
        running.fetch_add(1, Ordering::Relaxed);
        // A bug in one request must not cost a worker; the panic hook has logged it.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a request panicked; its connection was closed");
        }
        running.fetch_sub(1, Ordering::Relaxed);
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The jobs that wait for a thread.
///
/// A channel would wake one thread for each job, and its receivers spin before they sleep:
/// with many workers and short jobs that costs more than the jobs. Here one thread at a time
/// is on its way out of its sleep; when it takes a job and leaves others, it wakes the next.
/// So no job waits while a thread sleeps, and a busy machine wakes no more than it can run.
#[derive(Debug)]
struct Queue {
    max: usize,
    // Guards the jobs and who sleeps. Nothing else is locked while it is held.
    waiting: Mutex<Waiting>,
    wake: Condvar,
    // The number of jobs, to be read without the lock.
    len: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    sleepers: usize,
    // A sleeper was woken and does not run yet.
    is_waking: bool,
    is_closed: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("jobs", &self.jobs.len())
            .field("sleepers", &self.sleepers)
            .finish_non_exhaustive()
    }
}

impl Waiting {
    /// Whether to wake a thread for the jobs that are left.
    fn needs_waking(&mut self) -> bool {
        let needs = !self.jobs.is_empty() && self.sleepers > 0 && !self.is_waking;
        self.is_waking |= needs;
        needs
    }
}

impl Queue {
    fn new(max: usize) -> Self {
        Self { max, waiting: Mutex::default(), wake: Condvar::new(), len: AtomicUsize::new(0) }
    }

    fn push(&self, job: Job) -> Result<(), Job> {
        let mut waiting = self.lock();
        // A job that a sleeping thread will take does not wait for one.
        if waiting.jobs.len() >= self.max + waiting.sleepers {
            return Err(job);
        }
        waiting.jobs.push_back(job);
        self.len.store(waiting.jobs.len(), Ordering::Relaxed);
        if waiting.needs_waking() {
            drop(waiting);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// The next job; `None` once the queue is closed and empty.
    fn take(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                self.len.store(waiting.jobs.len(), Ordering::Relaxed);
                if waiting.needs_waking() {
                    drop(waiting);
                    self.wake.notify_one();
                }
                return Some(job);
            }
            if waiting.is_closed {
                return None;
            }
            waiting.sleepers += 1;
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.sleepers -= 1;
            waiting.is_waking = false;
        }
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.wake.notify_all();
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Jobs run outside the lock, so nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_full_queue_gives_the_job_back_and_the_fast_lane_still_runs() {
        let pools = Pools::new(1, 1);
        let (release, gate) = bounded::<()>(0);
        let (started, has_started) = bounded::<()>(1);
        let blocker = move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
        };
        assert!(pools.submit(Lane::Main, Box::new(blocker)).is_ok());
        has_started.recv_timeout(PATIENCE).unwrap();
        assert!(pools.submit(Lane::Main, Box::new(|| ())).is_ok());
        assert!(pools.submit(Lane::Main, Box::new(|| ())).is_err());
        assert_eq!((pools.busy(), pools.queued()), (1, 1));

        let (answered, has_answered) = bounded::<()>(1);
        assert!(pools.submit(Lane::Fast, Box::new(move || answered.send(()).unwrap())).is_ok());
        has_answered.recv_timeout(PATIENCE).unwrap();

        assert!(!pools.drain(Duration::ZERO));
        release.send(()).unwrap();
        assert!(pools.drain(PATIENCE));
    }

    #[test]
    fn no_job_waits_while_a_thread_sleeps() {
        const THREADS: usize = 8;
        let pools = Pools::new(THREADS, 0);
        let (arrived, arrivals) = bounded::<()>(THREADS);
        for _ in 0..500 {
            // All of them at once, or none: each holds its thread until the last has come.
            let (release, gate) = bounded::<()>(THREADS);
            for _ in 0..THREADS {
                let (arrived, gate) = (arrived.clone(), gate.clone());
                let job = move || {
                    arrived.send(()).unwrap();
                    gate.recv().unwrap();
                };
                let mut job: Job = Box::new(job);
                let end = Instant::now() + PATIENCE;
                while let Err(refused) = pools.submit(Lane::Main, job) {
                    assert!(Instant::now() < end, "a thread is free");
                    job = refused;
                    std::thread::yield_now();
                }
            }
            for _ in 0..THREADS {
                arrivals.recv_timeout(PATIENCE).unwrap();
            }
            (0..THREADS).for_each(|_| release.send(()).unwrap());
        }
        assert!(pools.drain(PATIENCE));
    }

    #[test]
    fn a_panic_costs_no_worker() {
        let pools = Pools::new(1, 4);
        let (answered, has_answered) = bounded::<()>(1);
        assert!(pools.submit(Lane::Main, Box::new(|| panic!("on purpose"))).is_ok());
        assert!(pools.submit(Lane::Main, Box::new(move || answered.send(()).unwrap())).is_ok());
        has_answered.recv_timeout(PATIENCE).unwrap();
    }
}
