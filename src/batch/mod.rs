//! Batches: many artifacts cached by one request.
//!
//! A [`Request`] says what: a pattern, paths, or URLs. A [`Plan`] holds it against the remotes.
//! A [`Job`] does it: it asks upstream what there is (`survey`, with the parsers of
//! [`discovery`](crate::discovery)) and fills the cache with what matches, a few artifacts at a
//! time, behind the clients' misses.
//!
//! A batch can do no more than GETs can: what the remote's patterns refuse is refused here.
//! Jobs live in this process and end with it; what they cached stays. This room knows no HTTP.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use threadpool::ThreadPool;

use crate::cache::Cache;

mod fields;
mod item;
mod job;
mod places;
mod plan;
mod request;
mod survey;
pub mod watch;

pub use item::{Done, Status};
pub use job::{Counts, Job, Page, Phase};
pub use plan::{Plan, PlanError, Remotes};
pub use request::{BadRequest, Options, REQUEST_BYTES_MAX, Request, What};

/// Artifacts of one batch; discovery ends there, and says so.
pub const ARTIFACTS_MAX: usize = 100_000;
/// Jobs that may wait or run at once; one more is refused.
pub const JOBS_RUNNING_MAX: usize = 32;
/// Jobs that are kept, ended ones included: the oldest ended ones are forgotten first.
pub const JOBS_KEPT_MAX: usize = 200;
/// Results of ended jobs that are kept, all jobs together; the newest job keeps its own.
const RESULTS_KEPT_MAX: usize = 200_000;

/// `1 path`, `2 paths`.
fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Runs batches.
#[derive(Debug)]
pub struct Batches {
    shared: Arc<Shared>,
    _threads: ThreadPool,
}

#[derive(Debug)]
struct Shared {
    cache: Arc<Cache>,
    // Guards which jobs there are and whose turn it is; a job's own lock may be taken under it.
    state: Mutex<State>,
    due: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they began.
    jobs: VecDeque<Arc<Job>>,
    /// Those that have something to hand out, each once: they take turns, so that a small
    /// batch does not wait for a large one.
    turns: VecDeque<Arc<Job>>,
}

/// There are too many jobs already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{JOBS_RUNNING_MAX} batches are running already: try again, or cancel one (DELETE /jobs/<id>)"
)]
pub struct Busy;

impl Batches {
    /// Starts the threads that run batches: as many as the cache lets fetch for them at once.
    pub fn start(cache: Arc<Cache>) -> Self {
        let count = cache.batch_fetches_max();
        let threads =
            threadpool::Builder::new().num_threads(count).thread_name("batch".to_owned()).build();
        let shared = Arc::new(Shared { cache, state: Mutex::default(), due: Condvar::new() });
        for _ in 0..count {
            let shared = Arc::clone(&shared);
            threads.execute(move || shared.work());
        }
        Self { shared, _threads: threads }
    }

    /// Begins a batch.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn begin(&self, plan: Plan) -> Result<Arc<Job>, Busy> {
        let mut state = self.shared.state();
        let running = state.jobs.iter().filter(|job| !job.has_ended()).count();
        if running >= JOBS_RUNNING_MAX {
            return Err(Busy);
        }
        let job = Arc::new(Job::new(plan));
        state.jobs.push_back(Arc::clone(&job));
        state.turns.push_back(Arc::clone(&job));
        state.forget();
        drop(state);
        self.shared.due.notify_one();
        Ok(job)
    }

    /// A job that is kept.
    pub fn job(&self, id: &str) -> Option<Arc<Job>> {
        self.shared.state().jobs.iter().find(|job| job.id() == id).cloned()
    }

    /// Every job that is kept, the newest first.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.shared.state().jobs.iter().rev().cloned().collect()
    }

    /// Cancels every job, because the program ends.
    pub fn stop(&self) {
        for job in self.jobs() {
            job.cancel();
        }
        self.shared.due.notify_all();
    }
}

impl State {
    fn forget(&mut self) {
        let mut results: usize = self.jobs.iter().map(|job| job.result_count()).sum();
        let mut at = 0;
        while at + 1 < self.jobs.len() {
            let is_too_much = self.jobs.len() > JOBS_KEPT_MAX || results > RESULTS_KEPT_MAX;
            if !is_too_much {
                return;
            }
            if self.jobs[at].has_ended() {
                results -= self.jobs[at].result_count();
                self.jobs.remove(at);
            } else {
                at += 1;
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one piece of work after another, for as long as the program runs.
    fn work(&self) {
        loop {
            let job = self.next();
            let step = job.take_step();
            if job.has_more() {
                self.give_back(&job);
            }
            // A bug in one step must not cost a thread, nor leave its job waiting for ever.
            let run = || job.run(&self.cache, step);
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                Ok(takes_turns_again) => {
                    if takes_turns_again {
                        self.give_back(&job);
                    }
                }
                Err(_) => {
                    tracing::error!(job = job.id(), "a step of a batch panicked");
                    job.fail("the batch failed: a bug, see the log");
                }
            }
        }
    }

    fn next(&self) -> Arc<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.turns.pop_front() {
                return job;
            }
            state = self.due.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, job: &Arc<Job>) {
        self.state().turns.push_back(Arc::clone(job));
        self.due.notify_one();
    }
}
