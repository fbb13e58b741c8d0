//! The jobs of one pool that wait for a thread, and which thread is woken for them.
//!
//! A channel would wake one thread for each job, and its receivers spin before they sleep:
//! with many workers and short jobs that costs more than the jobs. Here one thread at a time
//! is on its way out of its sleep; when it takes a job and leaves others, it wakes the next.
//!
//! With a [`Lookout`] it goes further. One thread at a time looks out for work instead of
//! sleeping, and a thread is woken only while fewer are *active* than the machine can run:
//! awake, and not blocked. A thread that waits for a fetch says so ([`crate::waiting`]), and
//! another is woken in its place at once. Any other counts as blocked once it has had its job
//! for [`BLOCKED_AFTER`]; [`Queue::tick`] finds those. So hits are served by as many threads as
//! there are processors, however many clients ask, and a job that waits behind blocked threads
//! waits for no more than that and a tick.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Job, Lookout};
use crate::waiting::Waits;

/// How long a job runs before its thread counts as blocked: many times what a hit takes, and
/// longer than a busy machine leaves a thread without a processor.
const BLOCKED_AFTER: Duration = Duration::from_millis(4);

/// The jobs that wait for a thread.
#[derive(Debug)]
pub(super) struct Queue {
    max: usize,
    threads: usize,
    // Threads that the machine runs at once.
    parallelism: usize,
    // Guards the jobs and who sleeps or looks out. Nothing else is locked while it is held.
    waiting: Mutex<Waiting>,
    wake: Condvar,
    // The number of jobs, to be read without the lock.
    len: AtomicUsize,
    // When each thread began its job, or went on with it behind a wait, in milliseconds since
    // `began` and one more; 0: it has none, or waits.
    since: Vec<AtomicU64>,
    began: Instant,
    // Threads that the last tick found blocked, and those that have said that they wait.
    blocked: AtomicUsize,
    told: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    // Jobs that come anew, of which there are so many at most, and those that go on with what is
    // begun. They take turns, so that neither a herd that goes on nor one that comes holds up the
    // other.
    new: VecDeque<Job>,
    begun: VecDeque<Job>,
    is_turn_of_begun: bool,
    sleepers: usize,
    // Sleepers that were woken and do not run yet.
    waking: usize,
    is_looking: bool,
    is_closed: bool,
    lookout: Option<Weak<dyn Lookout>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("jobs", &self.jobs())
            .field("sleepers", &self.sleepers)
            .finish_non_exhaustive()
    }
}

impl Waiting {
    fn jobs(&self) -> usize {
        self.new.len() + self.begun.len()
    }

    fn pop(&mut self) -> Option<Job> {
        self.is_turn_of_begun = !self.is_turn_of_begun;
        let (first, second) = match self.is_turn_of_begun {
            true => (&mut self.begun, &mut self.new),
            false => (&mut self.new, &mut self.begun),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    fn asleep(&self) -> usize {
        self.sleepers.saturating_sub(self.waking)
    }
}

impl Queue {
    pub(super) fn new(threads: usize, max: usize) -> Self {
        Self {
            max,
            threads,
            parallelism: std::thread::available_parallelism().map_or(1, usize::from),
            waiting: Mutex::default(),
            wake: Condvar::new(),
            len: AtomicUsize::new(0),
            since: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            began: Instant::now(),
            blocked: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
        }
    }

    /// Adds a job.
    ///
    /// # Errors
    /// The job itself, where there is no room.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let mut waiting = self.lock();
        // A job that an idle thread will take does not wait for one.
        let idle = waiting.sleepers + usize::from(waiting.is_looking);
        if waiting.new.len() >= self.max + idle {
            return Err(job);
        }
        waiting.new.push_back(job);
        self.added(waiting);
        Ok(())
    }

    /// Adds a job that goes on with what is begun, whether there is room or not.
    pub(super) fn push_begun(&self, job: Job) {
        let mut waiting = self.lock();
        waiting.begun.push_back(job);
        self.added(waiting);
    }

    fn added(&self, waiting: MutexGuard<'_, Waiting>) {
        self.len.store(waiting.jobs(), Ordering::SeqCst);
        self.wake_one(waiting);
    }

    /// The next job for a thread; `None` once the queue is closed and empty. A job that the
    /// lookout found is added to `pending`; the others have been.
    pub(super) fn take(&self, thread: usize, pending: &AtomicUsize) -> Option<Job> {
        let mut waiting = self.lock();
        let mut may_look = true;
        let job = loop {
            if let Some(job) = waiting.pop() {
                self.len.store(waiting.jobs(), Ordering::SeqCst);
                self.wake_one(waiting);
                break job;
            }
            if waiting.is_closed {
                return None;
            }
            let lookout = match may_look && !waiting.is_looking {
                true => waiting.lookout.as_ref().and_then(Weak::upgrade),
                false => None,
            };
            if let Some(lookout) = lookout {
                waiting.is_looking = true;
                drop(waiting);
                // Counted before it is known to be a job, so that no drain looks in between.
                pending.fetch_add(1, Ordering::SeqCst);
                let mut has_found = false;
                let look = AssertUnwindSafe(|| {
                    lookout.look(&mut || {
                        has_found = true;
                        self.lock().is_looking = false;
                    })
                });
                // A bug in one look must not cost the thread, nor the look of others.
                let job = catch_unwind(look).unwrap_or_else(|_| {
                    tracing::error!("looking out panicked; going on");
                    None
                });
                if let Some(job) = job {
                    break job;
                }
                pending.fetch_sub(1, Ordering::SeqCst);
                waiting = self.lock();
                // Once something was found, another thread may be looking; and there may be
                // more of it, though it was no job.
                waiting.is_looking &= has_found;
                may_look = has_found;
                continue;
            }
            waiting.sleepers += 1;
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.sleepers -= 1;
            waiting.waking = waiting.waking.saturating_sub(1);
            may_look = true;
        };
        self.begins(thread);
        Some(job)
    }

    fn begins(&self, thread: usize) {
        self.since[thread].store(self.millis(Instant::now()), Ordering::Relaxed);
    }

    /// Notes that a thread's job has ended.
    pub(super) fn done(&self, thread: usize) {
        self.since[thread].store(0, Ordering::Relaxed);
    }

    pub(super) fn look_out(&self, lookout: Weak<dyn Lookout>) {
        self.lock().lookout = Some(lookout);
    }

    pub(super) fn stop_looking(&self) {
        let mut waiting = self.lock();
        waiting.lookout = None;
        self.wake_one(waiting);
    }

    /// Looks which threads are blocked, and wakes as many as may run in their place. Gives
    /// whether another tick is needed: jobs wait, or a running one may yet turn out to be
    /// blocked.
    pub(super) fn tick(&self, now: Instant) -> bool {
        let late = self.millis(now).saturating_sub(BLOCKED_AFTER.as_millis() as u64);
        let (mut blocked, mut running) = (0, 0);
        for since in &self.since {
            match since.load(Ordering::Relaxed) {
                0 => {}
                since if since < late => blocked += 1,
                _ => running += 1,
            }
        }
        self.blocked.store(blocked, Ordering::Relaxed);
        if self.len() == 0 {
            return running > 0;
        }
        let mut waiting = self.lock();
        let wanted = match self.active(&waiting) {
            // Whoever ran has been blocked by its job, so the next may well be too.
            0 => usize::MAX,
            active => self.parallelism.saturating_sub(active),
        };
        let woken = wanted.min(waiting.jobs()).min(waiting.asleep());
        waiting.waking += woken;
        drop(waiting);
        (0..woken).for_each(|_| self.wake.notify_one());
        true
    }

    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.wake.notify_all();
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Threads that are, or are about to be, at work and not blocked.
    fn active(&self, waiting: &Waiting) -> usize {
        let idle = waiting.asleep() + usize::from(waiting.is_looking);
        let told = self.told.load(Ordering::SeqCst);
        self.threads.saturating_sub(idle + told + self.blocked.load(Ordering::Relaxed))
    }

    /// Wakes a thread for the jobs that are left, if one is to be woken.
    fn wake_one(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let may_run = waiting.lookout.is_none() || self.active(&waiting) < self.parallelism;
        if may_run && waiting.jobs() > 0 && waiting.asleep() > 0 && waiting.waking == 0 {
            waiting.waking = 1;
            drop(waiting);
            self.wake.notify_one();
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64 + 1
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Jobs run outside the lock, so nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread of a pool, whose waits make room for another.
pub(super) struct PoolThread {
    pub(super) queue: Arc<Queue>,
    pub(super) number: usize,
}

impl Waits for PoolThread {
    fn begins(&self) {
        self.queue.done(self.number);
        self.queue.told.fetch_add(1, Ordering::SeqCst);
        self.queue.wake_one(self.queue.lock());
    }

    fn has_ended(&self) {
        self.queue.told.fetch_sub(1, Ordering::SeqCst);
        self.queue.begins(self.number);
    }
}
