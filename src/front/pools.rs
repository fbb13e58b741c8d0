//! The fixed pools that answer requests.
//!
//! Three lanes: main for requests, fast for health and metrics, shed for the 503s of what
//! finds no room. A dispatcher (a listener's accept thread) only ever submits: it never
//! writes to a client, so no client can hold it up.
//!
//! A listener may give the main lane a [`Lookout`]: then a worker that has nothing to do looks
//! for work there before it sleeps, and a busy client costs no change of threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use threadpool::ThreadPool;

use super::wire::Lane;
use crate::waiting;

mod queue;

use queue::{PoolThread, Queue};

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

/// Where a worker of the main lane looks for work before it sleeps.
pub trait Lookout: Send + Sync {
    /// Waits for work for a moment. Calls `found` as soon as some has come, and gives a job of
    /// it; whatever else has come is submitted.
    fn look(&self, found: &mut dyn FnMut()) -> Option<Job>;
}

/// The pools of the front.
#[derive(Debug)]
pub struct Pools {
    main: Pool,
    fast: Pool,
    shed: Pool,
    // Requests that wait without a thread of these.
    outside: Arc<AtomicUsize>,
}

/// A request that waits without a thread until this is dropped.
#[derive(Debug)]
pub struct Outside(Arc<AtomicUsize>);

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pools {
    /// Starts the threads: `workers` for the main lane, before which `queue_max` jobs may wait.
    pub fn new(workers: usize, queue_max: usize) -> Self {
        Self {
            main: Pool::start("worker", workers, queue_max),
            fast: Pool::start("fast", FAST_THREADS, SIDE_QUEUE_MAX),
            shed: Pool::start("shed", SHED_THREADS, SIDE_QUEUE_MAX),
            outside: Arc::default(),
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

    /// Hands a job to the main lane that goes on with what is begun already; it waits there
    /// however many do. The caller has a bound of its own on those.
    pub fn submit_begun(&self, job: Job) {
        self.main.pending.fetch_add(1, Ordering::SeqCst);
        self.main.queue.push_begun(job);
    }

    /// Hands a job to the threads that answer "no room".
    ///
    /// # Errors
    /// The job itself, where even their queue is full: drop it where that cannot block.
    pub fn submit_shed(&self, job: Job) -> Result<(), Job> {
        self.shed.submit(job)
    }

    /// Lets the workers of the main lane look for work of their own. From now on a job wakes a
    /// worker only while fewer are at work than the machine can run, and [`Pools::tick`] must
    /// be called every few milliseconds while there is work, until [`Pools::stop_looking`].
    pub fn look_out(&self, lookout: Weak<dyn Lookout>) {
        self.main.queue.look_out(lookout);
    }

    /// Wakes workers for jobs that wait behind workers who are blocked. Gives whether another
    /// tick is needed, though nothing else happens.
    pub fn tick(&self, now: Instant) -> bool {
        self.main.queue.tick(now)
    }

    /// Ends what [`Pools::look_out`] began.
    pub fn stop_looking(&self) {
        self.main.queue.stop_looking();
    }

    /// Workers, whether they serve or not.
    pub fn workers(&self) -> usize {
        self.main.threads
    }

    /// Workers that are serving now.
    pub fn busy(&self) -> usize {
        self.main.running.load(Ordering::Relaxed)
    }

    /// Notes that a request waits without a thread.
    pub fn wait_outside(&self) -> Outside {
        self.outside.fetch_add(1, Ordering::Relaxed);
        Outside(Arc::clone(&self.outside))
    }

    /// Requests that wait without a thread.
    pub fn outside(&self) -> usize {
        self.outside.load(Ordering::Relaxed)
    }

    /// Jobs that wait for a worker.
    pub fn queued(&self) -> usize {
        self.main.queue.len()
    }

    /// Waits until nothing is queued, running, or waiting outside; `false` if `grace` ran out
    /// first.
    pub fn drain(&self, grace: Duration) -> bool {
        let end = Instant::now() + grace;
        let pools = [&self.main, &self.fast, &self.shed];
        // What waits outside becomes a job before it waits there no more.
        while self.outside() > 0 || pools.iter().any(|pool| !pool.is_idle()) {
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
    threads: usize,
    _pool: ThreadPool,
}

impl Pool {
    fn start(name: &str, threads: usize, queue_max: usize) -> Self {
        let queue = Arc::new(Queue::new(threads, queue_max));
        let pool = threadpool::Builder::new()
            .num_threads(threads)
            .thread_name(name.to_owned())
            .thread_stack_size(STACK_BYTES)
            .build();
        let (pending, running) = (Arc::default(), Arc::default());
        for worker in 0..threads {
            let (queue, pending, running) =
                (Arc::clone(&queue), Arc::clone(&pending), Arc::clone(&running));
            pool.execute(move || run_jobs(worker, &queue, &pending, &running));
        }
        Self { queue, pending, running, threads, _pool: pool }
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

fn run_jobs(worker: usize, queue: &Arc<Queue>, pending: &AtomicUsize, running: &AtomicUsize) {
    let thread = PoolThread { queue: Arc::clone(queue), number: worker };
    let _known = waiting::on_this_thread(Rc::new(thread));
    while let Some(job) = queue.take(worker, pending) {
        running.fetch_add(1, Ordering::Relaxed);
        // A bug in one request must not cost a worker; the panic hook has logged it.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a request panicked; its connection was closed");
        }
        running.fetch_sub(1, Ordering::Relaxed);
        queue.done(worker);
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, Sender, bounded};

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

    /// A place to look for jobs, which a test puts there.
    struct Outlook {
        jobs: Receiver<Job>,
    }

    impl Lookout for Outlook {
        fn look(&self, found: &mut dyn FnMut()) -> Option<Job> {
            let job = self.jobs.recv_timeout(Duration::from_millis(2)).ok()?;
            found();
            Some(job)
        }
    }

    /// Pools whose workers look out, and the end into which a test puts what they find.
    fn with_lookout(workers: usize) -> (Pools, Arc<dyn Lookout>, Sender<Job>) {
        let pools = Pools::new(workers, 64);
        let (put, jobs) = bounded(64);
        let outlook: Arc<dyn Lookout> = Arc::new(Outlook { jobs });
        pools.look_out(Arc::downgrade(&outlook));
        (pools, outlook, put)
    }

    /// Waits for a condition, ticking as a listener does.
    fn ticking(pools: &Pools, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "in time: {what}");
            pools.tick(Instant::now());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Submits jobs each of which waits for one release, in the way that is given.
    fn with_waiting_jobs(pools: &Pools, count: usize, wait: fn(&Receiver<()>)) -> Sender<()> {
        let (release, gate) = bounded(count);
        for _ in 0..count {
            let gate = gate.clone();
            assert!(pools.submit(Lane::Main, Box::new(move || wait(&gate))).is_ok());
        }
        release
    }

    /// Waits, without a tick, until every worker has a job.
    fn all_are_busy(pools: &Pools, workers: usize) {
        let end = Instant::now() + PATIENCE;
        while pools.busy() < workers {
            assert!(Instant::now() < end, "every worker has a job");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_worker_finds_jobs_by_itself_and_a_drain_waits_for_them() {
        let (pools, _outlook, put) = with_lookout(4);
        let (ran, has_run) = bounded(64);
        // The first is submitted: who sleeps does not look.
        let tell = ran.clone();
        assert!(pools.submit(Lane::Main, Box::new(move || tell.send(0).unwrap())).is_ok());
        for number in 1..64 {
            let tell = ran.clone();
            put.send(Box::new(move || tell.send(number).unwrap())).unwrap();
            // Whoever looked in vain sleeps, and is woken by the next job.
            assert!(pools.submit(Lane::Main, Box::new(|| ())).is_ok());
        }
        let mut numbers: Vec<i32> =
            (0..64).map(|_| has_run.recv_timeout(PATIENCE).unwrap()).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..64));
        assert!(pools.drain(PATIENCE));
    }

    #[test]
    fn jobs_behind_blocked_workers_find_others() {
        const WORKERS: usize = 16;
        let (pools, _outlook, _put) = with_lookout(WORKERS);
        let release = with_waiting_jobs(&pools, WORKERS, |gate| gate.recv().unwrap());
        // Far more than the machine can run, but all of them do nothing but wait.
        ticking(&pools, "every worker has a job", || pools.busy() == WORKERS);
        (0..WORKERS).for_each(|_| release.send(()).unwrap());
        assert!(pools.drain(PATIENCE));
    }

    #[test]
    fn whoever_says_that_it_waits_makes_room_at_once() {
        const WORKERS: usize = 16;
        let (pools, _outlook, _put) = with_lookout(WORKERS);
        let release =
            with_waiting_jobs(&pools, WORKERS, |gate| waiting::wait(|| gate.recv().unwrap()));
        all_are_busy(&pools, WORKERS);
        (0..WORKERS).for_each(|_| release.send(()).unwrap());
        assert!(pools.drain(PATIENCE));
    }

    /// Finds something that is no job a number of times, and then a job.
    struct Crowd {
        looks: AtomicUsize,
        panics_at: Option<usize>,
        job: std::sync::Mutex<Option<Job>>,
    }

    impl Lookout for Crowd {
        fn look(&self, found: &mut dyn FnMut()) -> Option<Job> {
            let look = self.looks.fetch_add(1, Ordering::SeqCst);
            assert_ne!(Some(look), self.panics_at, "on purpose");
            if look < 100 {
                found();
                return None;
            }
            self.job.lock().unwrap().take()
        }
    }

    /// A pool of one worker in front of a crowd, and what tells that the job behind it ran.
    fn before_a_crowd(panics_at: Option<usize>) -> (Pools, Arc<dyn Lookout>, Receiver<()>) {
        let pools = Pools::new(1, 64);
        let (tell, told) = bounded(1);
        let job: Job = Box::new(move || tell.send(()).unwrap());
        let (looks, job) = (AtomicUsize::new(0), std::sync::Mutex::new(Some(job)));
        let crowd: Arc<dyn Lookout> = Arc::new(Crowd { looks, panics_at, job });
        pools.look_out(Arc::downgrade(&crowd));
        // Whoever sleeps does not look.
        assert!(pools.submit(Lane::Main, Box::new(|| ())).is_ok());
        (pools, crowd, told)
    }

    #[test]
    fn a_worker_looks_on_while_there_is_something_though_it_is_no_job() {
        let (pools, _crowd, told) = before_a_crowd(None);
        told.recv_timeout(PATIENCE).unwrap();
        assert!(pools.drain(PATIENCE));
    }

    #[test]
    fn a_panic_while_looking_costs_no_worker_and_no_look() {
        let (pools, _crowd, told) = before_a_crowd(Some(7));
        let end = Instant::now() + PATIENCE;
        while told.try_recv().is_err() {
            assert!(Instant::now() < end, "the job behind the crowd runs");
            // The panic has ended that look; the next job has the worker look again.
            let _full = pools.submit(Lane::Main, Box::new(|| ()));
            std::thread::yield_now();
        }
        assert!(pools.drain(PATIENCE));
    }

    #[test]
    fn jobs_run_without_ticks_once_nobody_looks_out_any_more() {
        const WORKERS: usize = 16;
        let (pools, outlook, put) = with_lookout(WORKERS);
        let release = with_waiting_jobs(&pools, WORKERS, |gate| gate.recv().unwrap());
        pools.stop_looking();
        drop((outlook, put));
        all_are_busy(&pools, WORKERS);
        (0..WORKERS).for_each(|_| release.send(()).unwrap());
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
