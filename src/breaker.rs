//! A circuit breaker: stops asking a server that does not answer.
//!
//! Floor 0: no I/O; the time is an argument. Whoever calls a server asks [`Breaker::admit`]
//! first and reports how it went. After a failure nobody is admitted for a while, so that
//! callers fail at once instead of each waiting for its own timeout; then one caller tries
//! while the others still fail at once. It logs once when the server goes and once when it
//! is back, however many callers notice.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a first failure keeps callers away.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long further failures do: each doubles the pause, up to this.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The state of one server, shared by all who call it.
#[derive(Debug)]
pub struct Breaker {
    server: &'static str,
    // Whether the state is not Closed: read without the lock by every call while all is well.
    open: AtomicBool,
    // Nothing else is taken while it is held.
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Everybody is admitted.
    Closed,
    /// Nobody is, until then.
    Paused { until: Instant, length: Duration },
    /// One caller was; if it has not reported by then, the next one is.
    Trying { overdue: Instant, length: Duration },
}

/// The server did not answer a moment ago; it was not asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{server} did not answer a moment ago and is not asked again yet")]
pub struct Open {
    server: &'static str,
}

impl Breaker {
    /// A closed breaker; `server` is how the log names what it guards.
    pub fn new(server: &'static str) -> Self {
        Self { server, open: AtomicBool::new(false), state: Mutex::new(State::Closed) }
    }

    /// Whether the server may be called now.
    ///
    /// # Errors
    /// [`Open`] while callers are kept away.
    pub fn admit(&self, now: Instant) -> Result<(), Open> {
        if !self.open.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.lock();
        match *state {
            State::Closed => Ok(()),
            State::Paused { until: since, length } | State::Trying { overdue: since, length }
                if now >= since =>
            {
                *state = State::Trying { overdue: now + length, length };
                Ok(())
            }
            State::Paused { .. } | State::Trying { .. } => Err(Open { server: self.server }),
        }
    }

    /// Reports that the server answered, be it with an error of its own.
    pub fn succeeded(&self) {
        if !self.open.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        if !matches!(*state, State::Closed) {
            *state = State::Closed;
            self.open.store(false, Ordering::Release);
            tracing::info!(server = self.server, "the server answers again");
        }
    }

    /// Reports that the server did not answer, and why.
    pub fn failed(&self, now: Instant, why: &dyn Display) {
        let mut state = self.lock();
        match *state {
            State::Closed => {
                *state = State::Paused { until: now + PAUSE_MIN, length: PAUSE_MIN };
                self.open.store(true, Ordering::Release);
                tracing::warn!(server = self.server, %why, "the server does not answer; going on without it");
            }
            // Callers that were under way when it went: they tell nothing new.
            State::Paused { .. } => {}
            State::Trying { length, .. } => {
                let length = (length * 2).min(PAUSE_MAX);
                *state = State::Paused { until: now + length, length };
            }
        }
    }

    /// Whether callers are kept away.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing can panic while it holds the state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens after so many milliseconds, and whether a caller is admitted then.
    enum Step {
        Admit(bool),
        Fail,
        Succeed,
    }
    use Step::{Admit, Fail, Succeed};

    fn check(steps: &[(u64, Step)]) {
        let (breaker, start) = (Breaker::new("a server"), Instant::now());
        for (at, (milliseconds, step)) in steps.iter().enumerate() {
            let now = start + Duration::from_millis(*milliseconds);
            match step {
                Admit(expected) => {
                    assert_eq!(breaker.admit(now).is_ok(), *expected, "step {at}");
                }
                Fail => {
                    breaker.failed(now, &"refused");
                    assert!(breaker.is_open(), "step {at}");
                }
                Succeed => {
                    breaker.succeeded();
                    assert!(!breaker.is_open(), "step {at}");
                }
            }
        }
    }

    #[test]
    fn after_a_failure_callers_are_kept_away_then_one_tries() {
        check(&[
            (0, Admit(true)),
            (0, Fail),
            (1, Admit(false)),
            (999, Admit(false)),
            (1000, Admit(true)),
            (1001, Admit(false)),
            (1002, Succeed),
            (1003, Admit(true)),
            (1003, Admit(true)),
        ]);
    }

    #[test]
    fn failing_trials_lengthen_the_pause_up_to_its_bound_and_stragglers_do_not() {
        check(&[
            (0, Fail),
            (1, Fail),
            (2, Fail),
            (1000, Admit(true)),
            (1000, Fail),
            (2999, Admit(false)),
            (3000, Admit(true)),
            (3000, Fail),
            (6999, Admit(false)),
            (7000, Admit(true)),
            (7000, Fail),
            (11_999, Admit(false)),
            (12_000, Admit(true)),
            (12_000, Fail),
            (16_999, Admit(false)),
            (17_000, Admit(true)),
        ]);
    }

    #[test]
    fn a_trial_that_never_reports_does_not_keep_the_others_away_for_ever() {
        check(&[
            (0, Fail),
            (1000, Admit(true)),
            (1999, Admit(false)),
            (2000, Admit(true)),
            (2001, Succeed),
            (2002, Admit(true)),
        ]);
    }
}
