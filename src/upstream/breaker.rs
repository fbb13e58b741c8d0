//! Leaves an upstream alone for a while when it keeps failing.
//!
//! Closed, it lets everything through and counts failures in a row. At
//! [`FAILURES_MAX`] it opens: nothing passes for a pause, then one request alone, the probe,
//! which closes it or opens it for twice as long. It judges whole requests, not bodies.
//!
//! An upstream that answers may be well but for one of its files. So a failure that is an answer
//! is first of all its path's, which is left alone in the same way, and counts once for the
//! upstream: who asks for a broken file again and again blocks nobody else.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::artifact::ArtifactPath;

/// Failures in a row that open a breaker: of an upstream, answers to so many paths.
pub const FAILURES_MAX: u32 = 5;
/// The first pause.
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Paths that are remembered as broken; the first of more are forgotten.
const BROKEN_MAX: usize = 64;

/// The breaker of one upstream.
#[derive(Debug, Default)]
pub struct UpstreamBreaker {
    /// Held for moments, and nothing else is locked meanwhile.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    upstream: Circuit,
    broken: VecDeque<Broken>,
}

/// A path to which the last answer was a failure.
#[derive(Debug)]
struct Broken {
    path: ArtifactPath,
    circuit: Circuit,
    /// Whether it counts for the upstream since that answered well to any path.
    is_counted: bool,
}

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    /// Until when nothing passes, and how long that is in all.
    open: Option<(SystemTime, Duration)>,
    probing: bool,
}

impl Circuit {
    /// Whether who passes is a probe, or when asking again makes sense.
    fn enter(&mut self, now: SystemTime) -> Result<bool, Duration> {
        let Some((until, pause)) = self.open else { return Ok(false) };
        let left = until.duration_since(now).unwrap_or_default();
        // More than the whole pause left: the clock was set back.
        if !left.is_zero() && left <= pause {
            return Err(left);
        }
        if mem::replace(&mut self.probing, true) { Err(PAUSE_FIRST) } else { Ok(true) }
    }

    fn fail(&mut self, now: SystemTime, is_probe: bool) {
        self.failures = self.failures.saturating_add(1);
        let pause = match self.open {
            Some((_, pause)) if is_probe => (pause * 2).min(PAUSE_MAX),
            // Many that were under way when it opened fail together: that is one failure.
            Some(_) => return,
            None if self.failures >= FAILURES_MAX => PAUSE_FIRST,
            None => return,
        };
        self.open = Some((now + pause, pause));
    }
}

impl State {
    fn broken(&mut self, path: &ArtifactPath) -> Option<&mut Broken> {
        self.broken.iter_mut().find(|broken| broken.path == *path)
    }

    /// Remembers a path as broken; whether that is news since the upstream answered well.
    fn break_path(&mut self, path: &ArtifactPath, now: SystemTime, is_probe: bool) -> bool {
        let known = self.broken.iter().position(|broken| broken.path == *path);
        let at = known.unwrap_or_else(|| {
            if self.broken.len() == BROKEN_MAX {
                self.broken.pop_front();
            }
            let (path, circuit) = (path.clone(), Circuit::default());
            self.broken.push_back(Broken { path, circuit, is_counted: false });
            self.broken.len() - 1
        });
        let broken = &mut self.broken[at];
        broken.circuit.fail(now, is_probe);
        !mem::replace(&mut broken.is_counted, true)
    }
}

/// The right to ask once. Dropped without a verdict, it says nothing about the upstream.
#[derive(Debug)]
#[must_use = "a pass that is dropped at once lets nobody ask"]
pub struct Pass<'a> {
    breaker: &'a UpstreamBreaker,
    path: &'a ArtifactPath,
    /// Of the upstream, and of the path.
    is_probe: bool,
    is_path_probe: bool,
}

impl UpstreamBreaker {
    /// Asks to pass.
    ///
    /// # Errors
    /// When asking again makes sense.
    pub fn enter<'a>(
        &'a self,
        path: &'a ArtifactPath,
        now: SystemTime,
    ) -> Result<Pass<'a>, Duration> {
        let mut state = self.lock();
        let is_path_probe = match state.broken(path) {
            Some(broken) => broken.circuit.enter(now)?,
            None => false,
        };
        // Dropped on the way out, it gives the path's probe back.
        let mut pass = Pass { breaker: self, path, is_probe: false, is_path_probe };
        let entered = state.upstream.enter(now);
        drop(state);
        pass.is_probe = entered?;
        Ok(pass)
    }

    /// Whether the upstream kept failing, and has not answered since.
    pub fn is_open(&self) -> bool {
        self.lock().upstream.open.is_some()
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
        state.upstream = Circuit { probing: state.upstream.probing, ..Circuit::default() };
        state.broken.retain(|broken| broken.path != *self.path);
        state.broken.iter_mut().for_each(|broken| broken.is_counted = false);
    }

    /// The upstream failed: it did not answer, or its answer was a failure.
    pub fn failed(self, now: SystemTime, is_answer: bool) {
        let mut state = self.breaker.lock();
        let is_news = !is_answer || state.break_path(self.path, now, self.is_path_probe);
        if is_news || self.is_probe {
            state.upstream.fail(now, self.is_probe);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.is_probe && !self.is_path_probe {
            return;
        }
        let mut state = self.breaker.lock();
        if self.is_probe {
            state.upstream.probing = false;
        }
        if self.is_path_probe
            && let Some(broken) = state.broken(self.path)
        {
            broken.circuit.probing = false;
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

    fn path(text: &str) -> ArtifactPath {
        ArtifactPath::from_canonical(text).unwrap()
    }

    fn check(steps: &[(u64, Step)]) {
        for is_answer in [false, true] {
            check_of_one_path(steps, is_answer);
        }
    }

    fn check_of_one_path(steps: &[(u64, Step)], is_answer: bool) {
        let (breaker, path) = (UpstreamBreaker::default(), path("a"));
        for (number, (second, step)) in steps.iter().enumerate() {
            match (breaker.enter(&path, at(*second)), step) {
                (Ok(pass), Succeeds) => pass.succeeded(),
                (Ok(pass), Fails) => pass.failed(at(*second), is_answer),
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
    fn answers_to_one_path_block_that_path_and_those_to_many_the_upstream() {
        let (breaker, good) = (UpstreamBreaker::default(), path("good"));
        let answer = |text: &str, second: u64| {
            let path = path(text);
            let pass = breaker.enter(&path, at(second));
            pass.map(|pass| pass.failed(at(second), true))
        };
        for _ in 0..FAILURES_MAX {
            answer("broken", 0).unwrap();
        }
        assert_eq!(answer("broken", 0), Err(PAUSE_FIRST));
        breaker.enter(&good, at(0)).unwrap().succeeded();
        answer("broken", 1).unwrap();
        assert_eq!(answer("broken", 2), Err(Duration::from_secs(1)), "its pause has doubled");
        for other in ["a", "b", "b", "c"] {
            answer(other, 2).unwrap();
        }
        drop(breaker.enter(&good, at(2)).unwrap());
        answer("d", 2).unwrap();
        assert_eq!(breaker.enter(&good, at(2)).unwrap_err(), PAUSE_FIRST);
        breaker.enter(&good, at(3)).unwrap().succeeded();
        assert!(breaker.enter(&good, at(3)).is_ok());
    }

    #[test]
    fn a_probe_of_a_path_that_the_upstreams_pause_turns_away_is_given_back() {
        let (breaker, broken) = (UpstreamBreaker::default(), path("broken"));
        for _ in 0..FAILURES_MAX {
            breaker.enter(&broken, at(0)).unwrap().failed(at(0), true);
        }
        // The broken path counts for one.
        for _ in 1..FAILURES_MAX {
            breaker.enter(&path("a"), at(1)).unwrap().failed(at(1), false);
        }
        assert_eq!(breaker.enter(&broken, at(1)).unwrap_err(), PAUSE_FIRST);
        breaker.enter(&broken, at(2)).unwrap().succeeded();
        assert!(breaker.lock().broken.is_empty());
    }

    #[test]
    fn as_many_paths_as_one_likes_take_little_memory() {
        let breaker = UpstreamBreaker::default();
        for number in 0..3 * BROKEN_MAX {
            let (path, second) = (path(&number.to_string()), 100 * number as u64);
            breaker.enter(&path, at(second)).unwrap().failed(at(second), true);
        }
        assert_eq!(breaker.lock().broken.len(), BROKEN_MAX);
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

    fn opened() -> UpstreamBreaker {
        let breaker = UpstreamBreaker::default();
        for _ in 0..FAILURES_MAX {
            breaker.enter(&path("a"), at(0)).unwrap().failed(at(0), false);
        }
        breaker
    }

    #[test]
    fn one_probe_passes_at_a_time_even_if_it_is_abandoned() {
        let (breaker, path) = (opened(), path("b"));
        let probe = breaker.enter(&path, at(2)).unwrap();
        assert_eq!(breaker.enter(&path, at(2)).unwrap_err(), PAUSE_FIRST);
        drop(probe);
        breaker.enter(&path, at(2)).unwrap().succeeded();
        assert!(breaker.enter(&path, at(2)).is_ok());
    }

    #[test]
    fn failures_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() {
        for is_answer in [false, true] {
            let (breaker, path) = (UpstreamBreaker::default(), path("a"));
            let passes: Vec<_> = (0..20).map(|_| breaker.enter(&path, at(0)).unwrap()).collect();
            for pass in passes {
                pass.failed(at(0), is_answer);
            }
            assert_eq!(breaker.enter(&path, at(0)).unwrap_err(), PAUSE_FIRST);
        }
    }
}
