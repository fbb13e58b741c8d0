//! What is done about a failure: another try after a while, a mirror, a pause for all.
//!
//! [`Patient`] is an [`Upstream`] over others, in the order in which they are preferred.
//! It knows neither HTTP nor bodies: a body that breaks later is its reader's to resume, by
//! asking again for the rest.
//!
//! - An answer that was meant ends it: found, not modified, absent, a 4xx, a refused
//!   redirect. Mirrors are for failures, not for second opinions.
//! - A quick failure (a refused or broken connection, nonsense, 408, 429, 5xx) is tried again
//!   on the same upstream, as long as there are retries; a timeout is not, since it has cost
//!   its time already. Then comes the next upstream.
//! - A mirror's "absent" or 4xx after a failure of one before it proves nothing, for mirrors
//!   lag: the first failure is what is reported, and a stored copy stays.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use super::breaker::UpstreamBreaker;
use super::{Upstream, UpstreamError, UpstreamReply, UpstreamRequest};
use crate::clock::Clock;

/// The first wait before another try; doubled for each one after it. From half of it to all
/// of it is waited, so that many who failed together don't come back together.
pub const WAIT_FIRST: Duration = Duration::from_millis(200);
/// The longest of these waits.
pub const WAIT_MAX: Duration = Duration::from_secs(2);
/// The longest `Retry-After` that is waited for; a longer one means the next upstream.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// All waits of one request together.
pub const WAITS_MAX: Duration = Duration::from_secs(10);

/// How to let time pass: really, or not in tests.
#[derive(Clone)]
pub struct Pause(Arc<dyn Fn(Duration) + Send + Sync>);

impl Pause {
    /// Sleeps.
    pub fn real() -> Self {
        Self(Arc::new(std::thread::sleep))
    }

    /// Calls a function instead.
    pub fn with(pause: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self(Arc::new(pause))
    }
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pause")
    }
}

/// An upstream that does not give up at the first failure.
#[derive(Debug)]
pub struct Patient {
    lanes: Vec<Lane>,
    retries_max: u32,
    clock: Clock,
    pause: Pause,
}

#[derive(Debug)]
struct Lane {
    host: String,
    upstream: Arc<dyn Upstream>,
    breaker: UpstreamBreaker,
}

/// What is left to spend on one request.
struct Budget {
    retries: u32,
    waits: Duration,
}

/// How one upstream's tries ended.
enum Tried {
    Answered(UpstreamReply),
    Meant(UpstreamError),
    Failed(UpstreamError),
    Blocked(Duration),
}

impl Patient {
    /// Wraps upstreams, each with the host that errors name; the first is the base, the
    /// others are its mirrors.
    ///
    /// One request is tried again at most `retries_max` times, on all of them together.
    pub fn new(
        upstreams: Vec<(String, Arc<dyn Upstream>)>,
        retries_max: u32,
        clock: Clock,
        pause: Pause,
    ) -> Self {
        let lane = |(host, upstream)| Lane { host, upstream, breaker: UpstreamBreaker::default() };
        Self { lanes: upstreams.into_iter().map(lane).collect(), retries_max, clock, pause }
    }

    fn try_lane(&self, lane: &Lane, request: &UpstreamRequest<'_>, budget: &mut Budget) -> Tried {
        let mut wait = WAIT_FIRST;
        let mut failed = None;
        loop {
            let pass = match (lane.breaker.enter(request.path, self.clock.now()), failed) {
                (Ok(pass), _) => pass,
                // It opened between our own tries.
                (Err(_), Some(error)) => return Tried::Failed(error),
                (Err(retry_after), None) => return Tried::Blocked(retry_after),
            };
            let error = match lane.upstream.get(request) {
                Ok(reply) => {
                    pass.succeeded();
                    return Tried::Answered(reply);
                }
                Err(error) if !error.is_failure() => {
                    pass.succeeded();
                    return Tried::Meant(error);
                }
                // The host is well, and would send it again.
                Err(error @ UpstreamError::Page { .. }) => {
                    pass.succeeded();
                    return Tried::Failed(error);
                }
                Err(error) => error,
            };
            pass.failed(self.clock.now(), error.is_answer());
            tracing::debug!(host = %lane.host, %error, "upstream failed");
            let asked = error.retry_after();
            let next = asked.unwrap_or_else(|| with_jitter(wait));
            let in_vain = error.is_timeout() || asked.is_some_and(|asked| asked > RETRY_AFTER_MAX);
            if in_vain || budget.retries == 0 || next > budget.waits {
                return Tried::Failed(error);
            }
            budget.retries -= 1;
            budget.waits -= next;
            (self.pause.0)(next);
            wait = (wait * 2).min(WAIT_MAX);
            failed = Some(error);
        }
    }
}

impl Upstream for Patient {
    fn get(&self, request: &UpstreamRequest<'_>) -> Result<UpstreamReply, UpstreamError> {
        let mut budget = Budget { retries: self.retries_max, waits: WAITS_MAX };
        let mut first_failure: Option<UpstreamError> = None;
        let mut blocked: Option<(&str, Duration)> = None;
        for (number, lane) in self.lanes.iter().enumerate() {
            let is_mirror = number > 0;
            match self.try_lane(lane, request, &mut budget) {
                // A mirror is asked only after a failure or a block, which is the answer then.
                Tried::Answered(UpstreamReply::Absent) | Tried::Meant(_) if is_mirror => {}
                Tried::Answered(reply) => return Ok(reply),
                Tried::Meant(error) => return Err(error),
                Tried::Failed(error) => {
                    first_failure.get_or_insert(error);
                }
                Tried::Blocked(left) => {
                    if blocked.is_none_or(|(_, least)| left < least) {
                        blocked = Some((&lane.host, left));
                    }
                }
            }
        }
        Err(match (first_failure, blocked) {
            (Some(error), _) => error,
            (None, Some((host, retry_after))) => {
                UpstreamError::Blocked { host: host.to_owned(), retry_after }
            }
            (None, None) => UpstreamError::Connect {
                host: "no host".to_owned(),
                reason: "there is no upstream".to_owned(),
            },
        })
    }

    fn failing(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.breaker.is_open()).count()
    }
}

/// From half of a wait to all of it.
fn with_jitter(wait: Duration) -> Duration {
    // Each RandomState has keys of its own, which is all the chance that is needed.
    let chance = RandomState::new().hash_one(0_u8) as u32;
    wait / 2 + (wait / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use super::*;
    use crate::artifact::ArtifactPath;
    use crate::upstream::breaker::FAILURES_MAX;
    use crate::upstream::scripted::{HOST, Scripted, found, refused, status, timed_out};

    /// A patient upstream over scripted ones, whose waits only move the clock.
    struct Bench {
        patient: Patient,
        clock: Clock,
        waits: Arc<Mutex<Vec<Duration>>>,
    }

    impl Bench {
        fn over(upstreams: &[&Scripted]) -> Self {
            let clock = Clock::set_by_hand(SystemTime::UNIX_EPOCH);
            let waits = Arc::new(Mutex::new(Vec::new()));
            let pause = Pause::with({
                let (clock, waits) = (clock.clone(), Arc::clone(&waits));
                move |wait| {
                    waits.lock().unwrap().push(wait);
                    clock.advance(wait);
                }
            });
            let lane = |(number, upstream): (usize, &&Scripted)| {
                let upstream: Arc<dyn Upstream> = Arc::new((*upstream).clone());
                (format!("{number}.example.org"), upstream)
            };
            let lanes = upstreams.iter().enumerate().map(lane).collect();
            let patient = Patient::new(lanes, 3, clock.clone(), pause);
            Self { patient, clock, waits }
        }

        fn get(&self) -> Result<UpstreamReply, UpstreamError> {
            let path = ArtifactPath::from_canonical("a").unwrap();
            self.patient.get(&UpstreamRequest { path: &path, unless: None, part: None })
        }

        fn waits(&self) -> Vec<Duration> {
            self.waits.lock().unwrap().clone()
        }
    }

    /// An upstream that answers with `errors` one after the other, and then with a file.
    fn after(errors: Vec<fn() -> UpstreamError>) -> Scripted {
        Scripted::new().on("a", move |_, nth| match errors.get(nth - 1) {
            Some(error) => Err(error()),
            None => found("file"),
        })
    }

    fn broken() -> UpstreamError {
        UpstreamError::Protocol { host: HOST.to_owned(), reason: "nonsense".to_owned() }
    }

    fn misled() -> UpstreamError {
        UpstreamError::Redirect { host: HOST.to_owned(), reason: "it leads astray".to_owned() }
    }

    fn busy(seconds: u64) -> UpstreamError {
        let retry_after = Some(Duration::from_secs(seconds));
        UpstreamError::Status { host: HOST.to_owned(), status: 429, retry_after, said: None }
    }

    #[test]
    fn quick_failures_are_tried_again_and_meant_answers_are_not() {
        let check = |errors: Vec<fn() -> UpstreamError>, asked: usize, is_found: bool| {
            let upstream = after(errors);
            let bench = Bench::over(&[&upstream]);
            let got = bench.get();
            assert_eq!(got.is_ok(), is_found, "{got:?}");
            assert_eq!((upstream.count("a"), bench.waits().len()), (asked, asked - 1), "{got:?}");
        };
        check(vec![], 1, true);
        check(vec![refused], 2, true);
        check(vec![broken], 2, true);
        check(vec![|| status(503), || status(429), || status(408)], 4, true);
        check(vec![|| status(500); 4], 4, false);
        check(vec![|| status(403)], 1, false);
        check(vec![|| status(416)], 1, false);
        check(vec![misled], 1, false);
        check(vec![timed_out], 1, false);
        check(vec![refused, timed_out], 2, false);
        check(vec![|| busy(5)], 2, true);
        check(vec![|| busy(6)], 1, false);
        // The second wait would be more than all waits may be together.
        check(vec![|| busy(5), || busy(5), || busy(1)], 3, false);
    }

    #[test]
    fn waits_grow_with_jitter_and_a_retry_after_is_taken_at_its_word() {
        let errors: Vec<fn() -> UpstreamError> = vec![refused, || busy(3), refused];
        let bench = Bench::over(&[&after(errors)]);
        assert!(bench.get().is_ok());
        let waits = bench.waits();
        assert!(waits[0] >= WAIT_FIRST / 2 && waits[0] <= WAIT_FIRST, "{waits:?}");
        assert_eq!(waits[1], Duration::from_secs(3));
        assert!(waits[2] >= 2 * WAIT_FIRST && waits[2] <= 4 * WAIT_FIRST, "{waits:?}");
    }

    #[test]
    fn jitter_stays_between_half_and_all_of_a_wait() {
        for _ in 0..1000 {
            let wait = with_jitter(WAIT_MAX);
            assert!(wait >= WAIT_MAX / 2 && wait <= WAIT_MAX, "{wait:?}");
        }
    }

    #[test]
    fn mirrors_stand_in_for_failures_only() {
        let check = |base: Scripted, mirror: Scripted, expected: &str, mirror_asked: usize| {
            let bench = Bench::over(&[&base, &mirror]);
            let got = match bench.get() {
                Ok(reply) => format!("{reply:?}"),
                Err(error) => error.to_string(),
            };
            assert!(got.contains(expected), "{got}, not {expected}");
            assert_eq!(mirror.count("a"), mirror_asked, "{got}");
        };
        let down = || after(vec![refused; 9]);
        let file = || after(vec![]);
        let forbids = || after(vec![|| status(403)]);
        check(file(), file(), "Found", 0);
        check(Scripted::new(), file(), "Absent", 0);
        check(forbids(), file(), "answered 403", 0);
        check(after(vec![misled]), file(), "astray", 0);
        check(after(vec![timed_out]), file(), "Found", 1);
        check(down(), file(), "Found", 1);
        check(down(), Scripted::new(), "refused", 1);
        check(down(), forbids(), "refused", 1);
        check(after(vec![|| status(502); 9]), down(), "answered 502", 1);
    }

    #[test]
    fn retries_are_counted_over_all_upstreams_together() {
        let (base, mirror) = (after(vec![refused, timed_out]), after(vec![refused; 9]));
        let bench = Bench::over(&[&base, &mirror]);
        assert!(bench.get().is_err());
        assert_eq!((base.count("a"), mirror.count("a")), (2, 3));
    }

    #[test]
    fn an_upstream_that_keeps_failing_is_not_asked_until_its_pause_is_over() {
        let upstream = after(vec![timed_out; FAILURES_MAX as usize + 1]);
        let bench = Bench::over(&[&upstream]);
        for _ in 0..FAILURES_MAX {
            assert!(bench.get().unwrap_err().is_timeout());
        }
        let asked = upstream.count("a");
        let blocked = |expected: u64| match bench.get() {
            Err(UpstreamError::Blocked { host, retry_after }) => {
                let expected = Duration::from_secs(expected);
                assert_eq!((host.as_str(), retry_after), ("0.example.org", expected));
            }
            other => panic!("{other:?}"),
        };
        blocked(1);
        assert_eq!(upstream.count("a"), asked);
        bench.clock.advance(Duration::from_secs(1));
        assert!(bench.get().unwrap_err().is_timeout());
        blocked(2);
        bench.clock.advance(Duration::from_secs(2));
        assert!(bench.get().is_ok());
        assert!(bench.get().is_ok());
    }

    #[test]
    fn a_blocked_base_leaves_the_work_to_its_mirror() {
        let (base, mirror) = (after(vec![timed_out; 99]), after(vec![]));
        let bench = Bench::over(&[&base, &mirror]);
        for _ in 0..FAILURES_MAX + 3 {
            assert!(bench.get().is_ok());
        }
        assert_eq!(base.count("a"), FAILURES_MAX as usize);
        assert_eq!(mirror.count("a"), FAILURES_MAX as usize + 3);
    }

    #[test]
    fn a_web_page_is_asked_for_once_and_blocks_nothing() {
        let page = || UpstreamError::Page { host: HOST.to_owned() };
        let (base, mirror) = (after(vec![page; 99]), after(vec![]));
        let bench = Bench::over(&[&base, &mirror]);
        for asked in 1..=FAILURES_MAX as usize + 3 {
            assert!(bench.get().is_ok(), "the mirror has it");
            assert_eq!((base.count("a"), mirror.count("a")), (asked, asked));
        }
        assert_eq!(bench.patient.failing(), 0);
        let alone = Bench::over(&[&base]);
        assert!(matches!(alone.get(), Err(UpstreamError::Page { .. })));
    }

    #[test]
    fn when_all_are_blocked_the_shortest_pause_is_told() {
        let (base, mirror) = (after(vec![timed_out; 99]), after(vec![timed_out; 99]));
        let bench = Bench::over(&[&base, &mirror]);
        for _ in 0..FAILURES_MAX {
            assert!(bench.get().is_err());
        }
        bench.clock.advance(Duration::from_secs(1));
        // The base and the mirror fail their probes; the mirror's pause then begins later.
        assert!(bench.get().is_err());
        let error = bench.get().unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
        assert!(matches!(error, UpstreamError::Blocked { host, .. } if host == "0.example.org"));
    }

    #[test]
    fn the_breaker_ends_the_tries_of_one_request_as_well() {
        let upstream = after(vec![refused; 99]);
        let bench = Bench::over(&[&upstream]);
        let (first, second) = (bench.get().unwrap_err(), bench.get().unwrap_err());
        assert!(matches!(first, UpstreamError::Connect { .. }), "{first:?}");
        // One more failure opened it; what failed is told, not that it is blocked now.
        assert!(matches!(second, UpstreamError::Connect { .. }), "{second:?}");
        assert_eq!(upstream.count("a"), FAILURES_MAX as usize);
    }
}
