//! The threads that fetch, and what waits for them.
//!
//! Clients' misses and batches wait in one queue. A thread takes a batch's fetch only when no
//! client's is due, and batches never have more than half of the threads, so a miss finds one
//! however much a batch has begun. A fetch of a batch that waits and that a client joins becomes
//! a client's.
//!
//! Nor does one slow upstream take up every thread, or every place in the queue: each host has
//! a share of them ([`line`]). What a batch runs counts for it too, since it is the same upstream
//! that keeps those threads.
//!
//! A thread is not yet a processor: where upstream is near, a batch could use all of them. So
//! while clients miss, batches keep to a share of the machine ([`Pace`]).

use std::sync::Arc;

use threadpool::ThreadPool;

use super::fetch::{Fetcher, Job};
use super::flight::End;
use super::{CacheBounds, FetchError};
use crate::artifact::ArtifactKey;

mod line;
mod pace;
mod queue;
#[cfg(test)]
mod tests;

use line::Bounds;
use pace::Pace;
use queue::Queue;

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
    queue: Arc<Queue>,
    batch_threads: usize,
    _threads: ThreadPool,
}

impl Drop for FetchPool {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// How many threads there are where so many are configured, and how many of them may run batches'
/// fetches at once. Beside a batch's fetch there must be room for a client's of the same remote
/// and for one of another: fewer than three threads can't keep these promises.
fn shared_out(configured: usize) -> (usize, usize) {
    (configured.max(3), (configured / 2).max(1))
}

impl FetchPool {
    pub(super) fn start(fetcher: Fetcher, bounds: &CacheBounds) -> Self {
        let (fetch_threads, batch_threads) = shared_out(bounds.fetch_threads);
        let queue = Arc::new(Queue::new(Bounds {
            threads: fetch_threads,
            batch_threads,
            waiting: bounds.fetch_queue_max,
            batch_waiting: bounds.fetch_queue_max.max(batch_threads),
        }));
        let threads = threadpool::Builder::new()
            .num_threads(fetch_threads)
            .thread_name("fetch".to_owned())
            .build();
        let fetcher = Arc::new(fetcher);
        let pace = Arc::new(Pace::new(batch_threads));
        for _ in 0..fetch_threads {
            let (fetcher, queue) = (Arc::clone(&fetcher), Arc::clone(&queue));
            let pace = Arc::clone(&pace);
            threads.execute(move || run_jobs(&fetcher, &queue, &pace));
        }
        Self { queue, batch_threads, _threads: threads }
    }

    /// Queues a job; where there is no room, its flight fails as overloaded.
    pub(super) fn submit(&self, job: Job, urgency: Urgency) {
        if let Some(job) = self.queue.push(job, urgency) {
            job.writer.end(End::Failed(Arc::new(FetchError::Overloaded)));
        }
    }

    /// A client waits for this fetch now, and has told its flight to hurry: if a batch queued it
    /// and no thread has begun it, it becomes a client's.
    pub(super) fn promote(&self, key: &ArtifactKey) {
        self.queue.promote(key);
    }

    /// The batch that queued this fetch does not want it any more: if no thread has begun it,
    /// it is abandoned, and whoever else waits for it begins it anew.
    pub(super) fn withdraw(&self, key: &ArtifactKey) {
        drop(self.queue.withdraw(key));
    }

    /// Clients' fetches that wait for a thread.
    pub(super) fn queued(&self) -> usize {
        self.queue.waiting()
    }

    /// A batch's fetches that wait for a thread.
    #[cfg(test)]
    pub(super) fn batch_queued(&self) -> usize {
        self.queue.batch_waiting()
    }

    /// How many of a batch's fetches can run at once.
    pub(super) fn batch_threads(&self) -> usize {
        self.batch_threads
    }
}

/// What each thread does.
fn run_jobs(fetcher: &Fetcher, queue: &Queue, pace: &Pace) {
    let (mut taker, mut buffer) = (queue.taker(), Vec::new());
    while let Some((job, urgency)) = taker.next() {
        let run = || run_job(fetcher, job, &mut buffer);
        match urgency {
            Urgency::Client => pace.client(run),
            Urgency::Batch => taker.rest_until(pace.batch(run)),
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
