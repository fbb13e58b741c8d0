//! The fixed pools that answer requests.
//!
//! Three lanes: main for requests, fast for health and metrics, shed for the 503s of what
//! finds no room. A dispatcher (a listener's accept thread) only ever submits: it never
//! writes to a client, so no client can hold it up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
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
        self.main.jobs.len()
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
    jobs: Sender<Job>,
    // Counts a job from before it can be taken until after it ended, so that a drain can't
    // look between the two.
    pending: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    _threads: ThreadPool,
}

impl Pool {
    fn start(name: &str, threads: usize, queue_max: usize) -> Self {
        let (jobs, waiting) = bounded::<Job>(queue_max);
        let pool = threadpool::Builder::new()
            .num_threads(threads)
            .thread_name(name.to_owned())
            .thread_stack_size(STACK_BYTES)
            .build();
        let (pending, running) = (Arc::default(), Arc::default());
        for _ in 0..threads {
            let (waiting, pending, running) =
                (waiting.clone(), Arc::clone(&pending), Arc::clone(&running));
            pool.execute(move || run_jobs(&waiting, &pending, &running));
        }
        Self { jobs, pending, running, _threads: pool }
    }

    fn submit(&self, job: Job) -> Result<(), Job> {
        self.pending.fetch_add(1, Ordering::SeqCst);
        self.jobs.try_send(job).map_err(|refused| {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            match refused {
                TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
            }
        })
    }

    fn is_idle(&self) -> bool {
        self.pending.load(Ordering::SeqCst) == 0
    }
}

fn run_jobs(waiting: &Receiver<Job>, pending: &AtomicUsize, running: &AtomicUsize) {
    while let Ok(job) = waiting.recv() {
        running.fetch_add(1, Ordering::Relaxed);
        // A bug in one request must not cost a worker; the panic hook has logged it.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a request panicked; its connection was closed");
        }
        running.fetch_sub(1, Ordering::Relaxed);
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
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
    fn a_panic_costs_no_worker() {
        let pools = Pools::new(1, 4);
        let (answered, has_answered) = bounded::<()>(1);
        assert!(pools.submit(Lane::Main, Box::new(|| panic!("on purpose"))).is_ok());
        assert!(pools.submit(Lane::Main, Box::new(move || answered.send(()).unwrap())).is_ok());
        has_answered.recv_timeout(PATIENCE).unwrap();
    }
}
