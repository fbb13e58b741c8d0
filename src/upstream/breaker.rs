//! Leaves an upstream alone for a while when it keeps failing.
//!
//! Closed, it lets everything through and counts failures in a row. At
//! [`FAILURES_MAX`] it opens: nothing passes for a pause, then one request alone, the probe,
//! which closes it or opens it for twice as long. It judges whole requests, not bodies.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

/// Failures in a row that open a breaker.
pub const FAILURES_MAX: u32 = 5;
/// The first pause.
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The breaker of one upstream.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Held for moments, and nothing else is locked meanwhile.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until when nothing passes, and how long that is in all.
    open: Option<(SystemTime, Duration)>,
    probing: bool,
}

/// The right to ask once. Dropped without a verdict, it says nothing about the upstream.
#[derive(Debug)]
#[must_use = "a pass that is dropped at once lets nobody ask"]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl Breaker {
    /// Asks to pass.
    ///
    /// # Errors
    /// When asking again makes sense.
    pub fn enter(&self, now: SystemTime) -> Result<Pass<'_>, Duration> {
        let mut state = self.lock();
        let is_probe = match state.open {
            None => false,
            Some((until, pause)) => {
                let left = until.duration_since(now).unwrap_or_default();
                // More than the whole pause left: the clock was set back.
                if !left.is_zero() && left <= pause {
                    return Err(left);
                }
                if state.probing {
                    return Err(PAUSE_FIRST);
                }
                state.probing = true;
                true
            }
        };
        Ok(Pass { breaker: self, is_probe })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing can panic while it holds a breaker")
    }
}

impl Pass<'_> {
    /// The upstream answered, whatever it said.
    pub fn succeeded(self) {
        let mut state = self.breaker.lock();
        // An answer to a request from before it opened is as good as a probe's.
        state.failures = 0;
        state.open = None;
    }

    /// The upstream failed.
    pub fn failed(self, now: SystemTime) {
        let mut state = self.breaker.lock();
        state.failures = state.failures.saturating_add(1);
        let pause = match state.open {
            Some((_, pause)) if self.is_probe => (pause * 2).min(PAUSE_MAX),
            // Many that were under way when it opened fail together: that is one failure.
            Some(_) => return,
            None if state.failures >= FAILURES_MAX => PAUSE_FIRST,
            None => return,
        };
        state.open = Some((now + pause, pause));
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    /// What happens, at which second.
    enum Step {
        /// A request passes and succeeds.
        Succeeds,
        /// A request passes and fails.
        Fails,
        /// A request is turned away for so many seconds.
        Blocked(u64),
    }
    use Step::{Blocked, Fails, Succeeds};

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000 + second)
    }

    fn check(steps: &[(u64, Step)]) {
        let breaker = Breaker::default();
        for (number, (second, step)) in steps.iter().enumerate() {
            match (breaker.enter(at(*second)), step) {
                (Ok(pass), Succeeds) => pass.succeeded(),
                (Ok(pass), Fails) => pass.failed(at(*second)),
                (Err(left), Blocked(expected)) => {
                    assert_eq!(left, Duration::from_secs(*expected), "step {number}");
                }
                (Ok(_), Blocked(_)) => panic!("step {number} passed"),
                (Err(left), _) => panic!("step {number} was blocked for {left:?}"),
            }
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_pauses_longer_each_time() {
        check(&[
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Blocked(1)),
            (1, Fails),
            (1, Blocked(2)),
            (3, Fails),
            (3, Blocked(4)),
            (7, Fails),
            (15, Fails),
            (31, Fails),
            (63, Fails),
            (64, Blocked(59)),
            (123, Fails),
            (123, Blocked(60)),
            (183, Succeeds),
            (183, Succeeds),
        ]);
    }

    #[test]
    fn a_success_between_failures_keeps_it_closed() {
        check(&[
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Succeeds),
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Fails),
            (0, Succeeds),
        ]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_block_for_longer_than_the_pause() {
        check(&[
            (500, Fails),
            (500, Fails),
            (500, Fails),
            (500, Fails),
            (500, Fails),
            (0, Succeeds),
        ]);
    }

    fn opened() -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..FAILURES_MAX {
            breaker.enter(at(0)).unwrap().failed(at(0));
        }
        breaker
    }

    #[test]
    fn one_probe_passes_at_a_time_even_if_it_is_abandoned() {
        let breaker = opened();
        let probe = breaker.enter(at(2)).unwrap();
        assert_eq!(breaker.enter(at(2)).unwrap_err(), PAUSE_FIRST);
        drop(probe);
        breaker.enter(at(2)).unwrap().succeeded();
        assert!(breaker.enter(at(2)).is_ok());
    }

    #[test]
    fn failures_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() {
        let breaker = Breaker::default();
        let passes: Vec<_> = (0..20).map(|_| breaker.enter(at(0)).unwrap()).collect();
        for pass in passes {
            pass.failed(at(0));
        }
        assert_eq!(breaker.enter(at(0)).unwrap_err(), PAUSE_FIRST);
    }
}
