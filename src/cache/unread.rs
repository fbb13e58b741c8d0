//! When a fetch that nobody reads along is too slow to go on.
//!
//! While somebody waits for a body it may come as slowly as it likes, if only it comes. A client
//! that goes leaves the fetch to land by itself; an upstream that drips would keep its thread
//! for ever.

use std::time::{Duration, Instant};

/// How often the pace is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What must have come since the last look: about 1 KiB a second.
const BYTES_MIN: u64 = 64 << 10;

/// The pace of one fetch.
#[derive(Debug)]
pub(super) struct Unread {
    looked: Instant,
    written: u64,
}

impl Unread {
    /// Begins at `now`, with `written` bytes.
    pub(super) fn new(now: Instant, written: u64) -> Self {
        Self { looked: now, written }
    }

    /// Whether to give the fetch up, of which there are `written` bytes.
    pub(super) fn is_too_slow(
        &mut self,
        now: Instant,
        written: u64,
        is_followed: impl FnOnce() -> bool,
    ) -> bool {
        if now.duration_since(self.looked) < LOOK_EVERY {
            return false;
        }
        let came = written.saturating_sub(self.written);
        *self = Self::new(now, written);
        came < BYTES_MIN && !is_followed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slow_fetch_that_nobody_follows_is_given_up() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut unread = Unread::new(began, 100);
        assert!(!unread.is_too_slow(after(59), 101, || false), "it is not looked at yet");
        assert!(!unread.is_too_slow(after(60), 101, || true), "somebody follows it");
        assert!(!unread.is_too_slow(after(120), 101 + BYTES_MIN, || false), "it is quick enough");
        assert!(!unread.is_too_slow(after(179), 101 + BYTES_MIN, || false));
        assert!(unread.is_too_slow(after(180), 100 + 2 * BYTES_MIN, || false));
    }
}
