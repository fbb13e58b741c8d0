//! How much of the machine batches may use while clients miss.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The share of the processors that all batches together keep to while clients miss.
const BATCH_SHARE: f64 = 0.25;
/// How long after a client's last miss batches still hold back.
const LATELY: Duration = Duration::from_secs(1);
/// The longest rest behind one fetch: a large file has used much, and is behind us.
const REST_MAX: Duration = Duration::from_secs(1);

/// Holds batches back by letting a thread rest behind each of a batch's fetches, in proportion
/// to the processor time that it took. A fetch that waits for a far upstream takes little of
/// that, and is hardly held back.
#[derive(Debug)]
pub(super) struct Pace {
    // Rest for each second that was used.
    ratio: f64,
    clients: AtomicUsize,
    began: Instant,
    // When a client's last fetch ended, in milliseconds since `began` and one more; 0: never.
    last_client: AtomicU64,
}

impl Pace {
    /// A pace for so many threads that run batches' fetches.
    pub(super) fn new(threads: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            ratio: (threads as f64 / (processors as f64 * BATCH_SHARE) - 1.0).max(0.0),
            clients: AtomicUsize::new(0),
            began: Instant::now(),
            last_client: AtomicU64::new(0),
        }
    }

    /// Runs a client's fetch, which must not panic.
    pub(super) fn client(&self, run: impl FnOnce()) {
        self.clients.fetch_add(1, Ordering::Relaxed);
        run();
        self.last_client.store(self.millis(Instant::now()), Ordering::Relaxed);
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// Runs a batch's fetch; gives the time until which the thread should run no other.
    pub(super) fn batch(&self, run: impl FnOnce()) -> Instant {
        let before = processor_time();
        run();
        let used = processor_time().saturating_sub(before);
        let now = Instant::now();
        match self.clients_miss(now) {
            true => now + used.mul_f64(self.ratio).min(REST_MAX),
            false => now,
        }
    }

    fn clients_miss(&self, now: Instant) -> bool {
        let last = self.last_client.load(Ordering::Relaxed);
        // Another thread's miss may have ended behind `now`.
        let is_lately =
            last > 0 && self.millis(now).saturating_sub(last) < LATELY.as_millis() as u64;
        is_lately || self.clients.load(Ordering::Relaxed) > 0
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64 + 1
    }
}

/// What the calling thread has used of the processors.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses the processor until the thread has used so much more.
    fn work(used: Duration) {
        let until = processor_time() + used;
        while processor_time() < until {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_batch_rests_only_while_clients_miss_and_as_long_as_it_used_the_processor() {
        let used = Duration::from_millis(2);
        let processors = std::thread::available_parallelism().unwrap().get();
        // A thread for each processor, which may use a quarter of it.
        let pace = Pace::new(processors);
        let rest = |until: Instant| until.saturating_duration_since(Instant::now());
        assert_eq!(rest(pace.batch(|| work(used))), Duration::ZERO, "no client was there");
        pace.client(|| {
            let began = Instant::now();
            let until = pace.batch(|| work(used));
            assert!(until - began >= 4 * used, "{:?}", until - began);
            assert!(rest(pace.batch(|| ())) < used, "who uses nothing has nothing to rest from");
        });
        let began = Instant::now();
        assert!(pace.batch(|| work(used)) - began >= 4 * used, "a client was there a moment ago");
    }

    #[test]
    fn a_client_that_ended_a_moment_later_was_there_lately() {
        let pace = Pace::new(1);
        let now = Instant::now();
        pace.last_client.store(pace.millis(now) + 5, Ordering::Relaxed);
        assert!(pace.clients_miss(now));
    }

    #[test]
    fn no_rest_is_longer_than_its_bound() {
        let pace = Pace { ratio: 1e9, ..Pace::new(1) };
        pace.client(|| {
            let until = pace.batch(|| work(Duration::from_millis(1)));
            assert!(until <= Instant::now() + REST_MAX);
        });
    }
}
