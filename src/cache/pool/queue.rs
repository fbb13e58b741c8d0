//! The queue between those who want something fetched and the threads that fetch it: the
//! [`Line`] behind a lock, and threads that sleep until there is something for them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Urgency;
use super::line::{Bounds, Line, Takes};
use crate::artifact::ArtifactKey;
use crate::cache::fetch::Job;
use crate::config::Remote;

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    // Guards what waits and what runs, and who sleeps; nothing else is taken while it is held.
    state: Mutex<State>,
    // Wakes those who sleep until there is a client's fetch, or until they have rested.
    client: Condvar,
    // Wakes those who sleep until there is any fetch.
    any: Condvar,
}

#[derive(Debug)]
struct State {
    line: Line,
    // Who sleeps, or was woken and does not have the lock yet.
    asleep_for_client: usize,
    asleep_for_any: usize,
    is_closed: bool,
}

impl State {
    fn asleep(&mut self, takes: Takes) -> &mut usize {
        match takes {
            Takes::Clients => &mut self.asleep_for_client,
            Takes::Any => &mut self.asleep_for_any,
        }
    }
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        let state = State {
            line: Line::new(bounds),
            asleep_for_client: 0,
            asleep_for_any: 0,
            is_closed: false,
        };
        Self { state: Mutex::new(state), client: Condvar::new(), any: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job; gives it back where there is no room.
    pub(super) fn push(&self, job: Job, urgency: Urgency) -> Option<Job> {
        let mut state = self.state();
        let refused = state.line.push(job, urgency);
        self.wake_one(state);
        refused
    }

    /// Makes a batch's fetch that no thread has begun a client's, if there is room.
    pub(super) fn promote(&self, key: &ArtifactKey) {
        let mut state = self.state();
        state.line.promote(key);
        self.wake_one(state);
    }

    /// Takes back a batch's fetch that no thread has begun.
    pub(super) fn withdraw(&self, key: &ArtifactKey) -> Option<Job> {
        self.state().line.withdraw(key)
    }

    /// Clients' fetches that wait for a thread.
    pub(super) fn waiting(&self) -> usize {
        self.state().line.waiting()
    }

    /// A batch's fetches that wait for a thread.
    #[cfg(test)]
    pub(super) fn batch_waiting(&self) -> usize {
        self.state().line.batch_waiting()
    }

    /// Lets every thread go that finds no more clients' fetches.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.client.notify_all();
        self.any.notify_all();
    }

    /// A thread's way to the queue.
    pub(super) fn taker(&self) -> Taker<'_> {
        Taker { queue: self, runs: None, rests_until: None }
    }

    /// Sleeps until there may be something for who takes it, or until the rest is over.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        takes: Takes,
        rest: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        let bell = match takes {
            Takes::Clients => &self.client,
            Takes::Any => &self.any,
        };
        *state.asleep(takes) += 1;
        let mut state = match rest {
            Some(rest) => bell.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0,
            None => bell.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        *state.asleep(takes) -= 1;
        state
    }

    /// Wakes a thread that sleeps, if there is something for it.
    ///
    /// Whoever may have brought that about calls this, and so does each thread that has looked
    /// for a fetch itself. So it is enough to wake one, which wakes the next. And it does no harm
    /// if all that are counted as asleep are on their way already, so that none hears it: what
    /// those do not take, they wake another for.
    fn wake_one(&self, state: MutexGuard<'_, State>) {
        let bell = self.bell_to_ring(&state);
        // Who is woken needs the lock.
        drop(state);
        if let Some(bell) = bell {
            bell.notify_one();
        }
    }

    fn bell_to_ring(&self, state: &State) -> Option<&Condvar> {
        let is_client_due = state.line.has_next(Urgency::Client);
        if is_client_due && state.asleep_for_client > 0 {
            // Those who rest first: the others could take a batch's.
            return Some(&self.client);
        }
        let is_due = || is_client_due || state.line.has_next(Urgency::Batch);
        (state.asleep_for_any > 0 && is_due()).then_some(&self.any)
    }
}

/// A thread at the queue: it takes and runs one fetch after the other.
#[derive(Debug)]
pub(super) struct Taker<'a> {
    queue: &'a Queue,
    // Whose fetch this thread was given last, until it says that it has ended.
    runs: Option<Arc<Remote>>,
    // After a batch's fetch: until when this thread takes no other one.
    rests_until: Option<Instant>,
}

impl<'a> Taker<'a> {
    /// Says that the fetch before has ended, and waits for the next one; `None` once the queue
    /// is closed and no client's is left.
    pub(super) fn next(&mut self) -> Option<(Job, Urgency)> {
        let queue = self.queue;
        let mut state = queue.state();
        self.end(&mut state.line);
        loop {
            let rest = self.rest(&mut state.line);
            // A thread that rests is still there for clients.
            let takes = match rest {
                None if !state.is_closed => Takes::Any,
                _ => Takes::Clients,
            };
            if let Some((job, urgency)) = state.line.next(takes) {
                queue.wake_one(state);
                self.runs = Some(Arc::clone(&job.remote));
                if urgency == Urgency::Batch {
                    self.rests_until = Some(Instant::now());
                }
                return Some((job, urgency));
            }
            if state.is_closed {
                return None;
            }
            // What has ended may have been in the way of a fetch that this thread does not take.
            if let Some(bell) = queue.bell_to_ring(&state) {
                bell.notify_one();
            }
            state = queue.sleep(state, takes, rest);
        }
    }

    /// After a batch's fetch: takes no other one until then.
    pub(super) fn rest_until(&mut self, until: Instant) {
        self.rests_until = Some(until);
    }

    /// How long this thread still rests. As long as it does, it counts among those that run
    /// batches' fetches: otherwise another one would take its turn.
    fn rest(&mut self, line: &mut Line) -> Option<Duration> {
        let left = self.rests_until?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.rests_until = None;
            line.rested();
            return None;
        }
        Some(left)
    }

    fn end(&mut self, line: &mut Line) {
        if let Some(remote) = self.runs.take() {
            line.ended(&remote);
        }
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        self.end(&mut state.line);
        if self.rests_until.take().is_some() {
            state.line.rested();
        }
        self.queue.wake_one(state);
    }
}
