//! The threads that fetch, and the two queues that they take from.
//!
//! Clients' misses go through one queue, batches through another. A thread takes from the
//! second only when the first is empty, and half of the threads never do, so a miss finds a
//! thread however much a batch has begun. A fetch that waits in the second queue and that a
//! client joins is moved into the first.
//!
//! A thread is not yet a processor: where upstream is near, a batch could use all of them. So
//! while clients miss, batches keep to a share of the machine ([`Pace`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select};
use threadpool::ThreadPool;

use super::fetch::{Fetcher, Job};
use super::flight::End;
use super::{CacheBounds, FetchError};
use crate::artifact::ArtifactKey;

mod pace;

use pace::Pace;

/// Who waits for a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// A client.
    Client,
    /// A batch, which can wait.
    Batch,
}

/// The threads that fetch.
#[derive(Debug)]
pub(super) struct FetchPool {
    jobs: Sender<Job>,
    batch: Arc<BatchQueue>,
    batch_threads: usize,
    _threads: ThreadPool,
}

/// What batches want fetched: a token in the channel for every job that waits, which is how a
/// thread can wait for both queues at once.
#[derive(Debug)]
struct BatchQueue {
    tokens: Sender<()>,
    given: Receiver<()>,
    // Guards the jobs that no thread has begun, and that each of them has a token, in the channel
    // or in a thread's hand; nothing else is taken while it is held.
    waiting: Mutex<VecDeque<Job>>,
}

impl BatchQueue {
    fn new(jobs_max: usize) -> Self {
        let (tokens, given) = bounded(jobs_max);
        Self { tokens, given, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Queues a job; gives it back where there is no room.
    fn push(&self, job: Job) -> Option<Job> {
        let mut waiting = self.waiting();
        // Whoever takes this token needs the lock to find the job.
        if self.tokens.try_send(()).is_err() {
            return Some(job);
        }
        waiting.push_back(job);
        None
    }

    /// The next job for who has taken a token; none where it was withdrawn meanwhile.
    fn pop(&self) -> Option<Job> {
        self.waiting().pop_front()
    }

    fn withdraw(&self, key: &ArtifactKey) -> Option<Job> {
        let mut waiting = self.waiting();
        let at = waiting.iter().position(|job| job.key == *key)?;
        // Where threads have taken every token, one of them finds no job.
        let _ = self.given.try_recv();
        waiting.remove(at)
    }
}

/// How many of so many threads may run a batch's fetches at once.
pub(super) fn batch_threads(fetch_threads: usize) -> usize {
    (fetch_threads / 2).max(1)
}

impl FetchPool {
    pub(super) fn start(fetcher: Fetcher, bounds: &CacheBounds) -> Self {
        let (jobs, waiting) = bounded(bounds.fetch_queue_max);
        let shared = batch_threads(bounds.fetch_threads);
        let batch = Arc::new(BatchQueue::new(bounds.fetch_queue_max.max(shared)));
        // One thread alone would have to serve both; a second one keeps the promise.
        let clients_only = (bounds.fetch_threads - shared).max(1);
        let threads = threadpool::Builder::new()
            .num_threads(shared + clients_only)
            .thread_name("fetch".to_owned())
            .build();
        let fetcher = Arc::new(fetcher);
        let pace = Arc::new(Pace::new(shared));
        for _ in 0..clients_only {
            let (fetcher, waiting) = (Arc::clone(&fetcher), waiting.clone());
            let pace = Arc::clone(&pace);
            threads.execute(move || {
                let mut buffer = Vec::new();
                while let Ok(job) = waiting.recv() {
                    pace.client(|| run_job(&fetcher, job, &mut buffer));
                }
            });
        }
        for _ in 0..shared {
            let (fetcher, waiting) = (Arc::clone(&fetcher), waiting.clone());
            let (batch, pace) = (Arc::clone(&batch), Arc::clone(&pace));
            threads.execute(move || run_both(&fetcher, &waiting, &batch, &pace));
        }
        Self { jobs, batch, batch_threads: shared, _threads: threads }
    }

    /// Queues a job; where there is no room, its flight fails as overloaded.
    pub(super) fn submit(&self, job: Job, urgency: Urgency) {
        match urgency {
            Urgency::Client => {
                if let Some(job) = self.queue_for_client(job) {
                    refuse(job);
                }
            }
            Urgency::Batch => {
                let (key, reader) = (job.key.clone(), job.writer.reader());
                if let Some(job) = self.batch.push(job) {
                    return refuse(job);
                }
                // A client that joined before the job was in the table could not move it.
                if reader.is_urgent() {
                    self.promote(&key);
                }
            }
        }
    }

    /// A client waits for this fetch now, and has told its flight to hurry: if a batch queued it
    /// and no thread has begun it, it becomes a client's.
    pub(super) fn promote(&self, key: &ArtifactKey) {
        let Some(job) = self.batch.withdraw(key) else { return };
        // Where clients' queue is full, it waits on as a batch's, rather than failing that too.
        if let Some(job) = self.queue_for_client(job).and_then(|job| self.batch.push(job)) {
            refuse(job);
        }
    }

    /// Queues a client's job; gives it back where there is no room.
    fn queue_for_client(&self, job: Job) -> Option<Job> {
        match self.jobs.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Some(job),
        }
    }

    /// The batch that queued this fetch does not want it any more: if no thread has begun it,
    /// it is abandoned, and whoever else waits for it begins it anew.
    pub(super) fn withdraw(&self, key: &ArtifactKey) {
        drop(self.batch.withdraw(key));
    }

    /// Clients' fetches that wait for a thread.
    pub(super) fn queued(&self) -> usize {
        self.jobs.len()
    }

    /// A batch's fetches that wait for a thread.
    #[cfg(test)]
    pub(super) fn batch_queued(&self) -> usize {
        self.batch.waiting().len()
    }

    /// How many of a batch's fetches can run at once.
    pub(super) fn batch_threads(&self) -> usize {
        self.batch_threads
    }
}

fn refuse(job: Job) {
    job.writer.end(End::Failed(Arc::new(FetchError::Overloaded)));
}

fn run_both(fetcher: &Fetcher, clients: &Receiver<Job>, batch: &BatchQueue, pace: &Pace) {
    let mut buffer = Vec::new();
    let mut rests_until = Instant::now();
    loop {
        // `select` picks any that is ready; clients come first. A thread that rests is still
        // there for them.
        let job = match clients.recv_deadline(rests_until) {
            Ok(job) => Some((job, Urgency::Client)),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => select! {
                recv(clients) -> job => match job {
                    Ok(job) => Some((job, Urgency::Client)),
                    Err(_) => return,
                },
                recv(batch.given) -> token => token
                    .ok()
                    .and_then(|()| batch.pop())
                    .map(|job| (job, Urgency::Batch)),
            },
        };
        match job {
            Some((job, Urgency::Client)) => pace.client(|| run_job(fetcher, job, &mut buffer)),
            Some((job, Urgency::Batch)) => {
                rests_until = pace.batch(|| run_job(fetcher, job, &mut buffer));
            }
            None => {}
        }
    }
}

fn run_job(fetcher: &Fetcher, job: Job, buffer: &mut Vec<u8>) {
    // A bug in one fetch must not cost a thread. The writer is dropped on the way, so the
    // flight's readers learn of it.
    let run = || fetcher.run(job, buffer);
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
        tracing::error!("a fetch panicked; its flight failed");
    }
}
