//! Marks and leases of a single process, in memory.
//!
//! Both forget when the process ends, which costs revalidations and nothing else. What is kept
//! of an artifact is a hash of its name, so that a bound on the entries is a bound on the
//! memory: who asks for absent files chooses their names, up to kilobytes each.
//!
//! A clock that is set back must not prolong anything: what seems to have been set in the
//! future has ended. So the clock is read under the table's lock: read before it, a moment
//! older than the last one that was written would end what has only just begun.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Acquired, Freshness, LeaseToken, Leases, Mark};
use crate::artifact::{ArtifactKey, Digest};
use crate::clock::Clock;

/// Marks that are remembered, of both kinds: about 13 MB.
const MARKS_MAX: usize = 200_000;
/// Leases that are held at one time: many times the fetches that one process runs.
const LEASES_MAX: usize = 20_000;
/// When a table is full, at least this part of it is cleared, so that the walk over all of it
/// is paid for by the many entries that fit in afterwards.
const CLEARED_PART: usize = 8;

/// The first half of a SHA-256: nobody finds two names that share it.
type Hashed = [u8; 16];

/// The marks of one process.
#[derive(Debug)]
pub struct LocalFreshness {
    clock: Clock,
    marks_max: usize,
    // Guards single steps; nothing else is taken under it.
    marks: Mutex<HashMap<Hashed, Term>>,
}

/// The leases of one process.
#[derive(Debug)]
pub struct LocalLeases {
    clock: Clock,
    leases_max: usize,
    // Guards single steps; nothing else is taken under it.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    last_token: u64,
    leases: HashMap<Hashed, (u64, Term)>,
}

/// A time from which something holds, and for how long.
#[derive(Debug, Clone, Copy)]
struct Term {
    since: SystemTime,
    lifetime: Duration,
}

impl Term {
    /// What is left of it; `None` once it is over, or if it has not begun.
    fn remaining(&self, now: SystemTime) -> Option<Duration> {
        let age = now.duration_since(self.since).ok()?;
        self.lifetime.checked_sub(age).filter(|left| !left.is_zero())
    }
}

impl LocalFreshness {
    /// No marks, and the clock that ends them.
    pub fn new(clock: Clock) -> Self {
        Self::with_bound(clock, MARKS_MAX)
    }

    fn with_bound(clock: Clock, marks_max: usize) -> Self {
        Self { clock, marks_max, marks: Mutex::default() }
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<Hashed, Term>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Freshness for LocalFreshness {
    fn remaining(&self, key: &ArtifactKey, mark: Mark) -> Option<Duration> {
        let hashed = hash_of(&mark.name(), key);
        let marks = self.marks();
        let now = self.clock.now();
        marks.get(&hashed)?.remaining(now)
    }

    fn set(&self, key: &ArtifactKey, mark: Mark, lifetime: Duration) {
        let hashed = hash_of(&mark.name(), key);
        let mut marks = self.marks();
        let now = self.clock.now();
        if marks.len() >= self.marks_max && !marks.contains_key(&hashed) {
            marks.retain(|_, term| term.remaining(now).is_some());
            let kept_max = self.marks_max - self.marks_max.div_ceil(CLEARED_PART);
            let mut surplus = marks.len().saturating_sub(kept_max);
            // A table's order is arbitrary: nobody can choose whose mark goes.
            marks.retain(|_, _| {
                let stays = surplus == 0;
                surplus = surplus.saturating_sub(1);
                stays
            });
        }
        marks.insert(hashed, Term { since: now, lifetime });
    }

    fn clear(&self, key: &ArtifactKey, mark: Mark) {
        self.marks().remove(&hash_of(&mark.name(), key));
    }
}

impl LocalLeases {
    /// No leases, and the clock that ends them.
    pub fn new(clock: Clock) -> Self {
        Self::with_bound(clock, LEASES_MAX)
    }

    fn with_bound(clock: Clock, leases_max: usize) -> Self {
        Self { clock, leases_max, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leases for LocalLeases {
    /// As the port says; [`Acquired::Unknown`] while as many leases as there may be are held.
    fn try_acquire(&self, key: &ArtifactKey, ttl: Duration) -> Acquired {
        let hashed = hash_of("lease", key);
        let mut held = self.held();
        let now = self.clock.now();
        if held.leases.get(&hashed).is_some_and(|(_, term)| term.remaining(now).is_some()) {
            return Acquired::Held;
        }
        if held.leases.len() >= self.leases_max {
            held.leases.retain(|_, (_, term)| term.remaining(now).is_some());
            if held.leases.len() >= self.leases_max {
                return Acquired::Unknown;
            }
        }
        held.last_token += 1;
        let token = held.last_token;
        held.leases.insert(hashed, (token, Term { since: now, lifetime: ttl }));
        Acquired::Granted(LeaseToken(token.to_string()))
    }

    fn renew(&self, key: &ArtifactKey, token: &LeaseToken, ttl: Duration) -> bool {
        let hashed = hash_of("lease", key);
        let mut held = self.held();
        let now = self.clock.now();
        match held.leases.get_mut(&hashed) {
            Some((holder, term)) if holds(*holder, token) && term.remaining(now).is_some() => {
                *term = Term { since: now, lifetime: ttl };
                true
            }
            _ => false,
        }
    }

    fn release(&self, key: &ArtifactKey, token: &LeaseToken) {
        let hashed = hash_of("lease", key);
        let mut held = self.held();
        if held.leases.get(&hashed).is_some_and(|(holder, _)| holds(*holder, token)) {
            held.leases.remove(&hashed);
        }
    }
}

fn holds(holder: u64, token: &LeaseToken) -> bool {
    token.0 == holder.to_string()
}

/// A remote's name has no `/`, so that no two artifacts are written alike.
fn hash_of(kind: &str, key: &ArtifactKey) -> Hashed {
    let Digest(digest) = Digest::of(format!("{kind}/{key}").as_bytes());
    let (half, _) = digest.split_at(size_of::<Hashed>());
    half.try_into().expect("a digest is longer than its half")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::artifact::ArtifactPath;

    const FRESH: Mark = Mark::Fresh(Digest([1; 32]));

    fn clock() -> Clock {
        Clock::set_by_hand(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    }

    crate::coord::conformance::freshness_conformance!(|| {
        let clock = clock();
        (LocalFreshness::new(clock.clone()), move |time| clock.advance(time), ())
    });

    crate::coord::conformance::leases_conformance!(|| {
        let clock = clock();
        (LocalLeases::new(clock.clone()), move |time| clock.advance(time), ())
    });

    fn key(number: usize) -> ArtifactKey {
        let path = ArtifactPath::from_canonical(number.to_string()).unwrap();
        ArtifactKey { remote: "remote".parse().unwrap(), path }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_mark_ends_in_the_moment_that_its_lifetime_does() {
        let clock = clock();
        let freshness = LocalFreshness::new(clock.clone());
        freshness.set(&key(1), FRESH, MINUTE);
        clock.advance(MINUTE - Duration::from_nanos(1));
        let left = freshness.remaining(&key(1), FRESH);
        assert_eq!(left, Some(Duration::from_nanos(1)));
        clock.advance(Duration::from_nanos(1));
        assert_eq!(freshness.remaining(&key(1), FRESH), None);
    }

    #[test]
    fn marks_never_outgrow_their_bound_and_expired_ones_go_first() {
        let clock = clock();
        let freshness = LocalFreshness::with_bound(clock.clone(), 100);
        for number in 0..40 {
            freshness.set(&key(number), Mark::Absent, MINUTE);
        }
        clock.advance(MINUTE);
        for number in 40..100 {
            freshness.set(&key(number), Mark::Absent, MINUTE);
        }
        freshness.set(&key(100), Mark::Absent, MINUTE);
        let known = |numbers: std::ops::RangeInclusive<usize>| {
            numbers
                .filter(|number| freshness.remaining(&key(*number), Mark::Absent).is_some())
                .count()
        };
        assert_eq!((known(40..=100), freshness.marks().len()), (61, 61));

        for number in 101..1_000 {
            freshness.set(&key(number), Mark::Absent, MINUTE);
            assert!(freshness.marks().len() <= 100);
            assert!(freshness.remaining(&key(number), Mark::Absent).is_some(), "{number}");
        }
        assert!(known(0..=999) > 80, "not much more is dropped than has to be");
    }

    #[test]
    fn a_full_table_still_takes_what_it_knows_already() {
        let freshness = LocalFreshness::with_bound(clock(), 3);
        for number in [1, 2, 3, 1, 2, 3] {
            freshness.set(&key(number), FRESH, MINUTE);
        }
        assert_eq!(freshness.marks().len(), 3);
    }

    #[test]
    fn leases_never_outgrow_their_bound_and_lapsed_ones_make_room() {
        let clock = clock();
        let leases = LocalLeases::with_bound(clock.clone(), 2);
        for number in [1, 2] {
            assert!(matches!(leases.try_acquire(&key(number), MINUTE), Acquired::Granted(_)));
        }
        assert_eq!(leases.try_acquire(&key(3), MINUTE), Acquired::Unknown);
        assert_eq!(leases.try_acquire(&key(1), MINUTE), Acquired::Held);
        clock.advance(MINUTE);
        assert!(matches!(leases.try_acquire(&key(3), MINUTE), Acquired::Granted(_)));
        assert_eq!(leases.held().leases.len(), 1);
    }

    #[test]
    fn of_those_that_race_by_the_systems_clock_exactly_one_holds_the_lease() {
        let leases = LocalLeases::new(Clock::system());
        crate::coord::conformance::of_those_that_race_exactly_one_holds_the_lease(&leases, &|_| {});
    }

    #[test]
    fn a_clock_that_is_set_back_ends_what_it_might_prolong() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let term = Term { since: now, lifetime: MINUTE };
        assert_eq!(term.remaining(now), Some(MINUTE));
        assert_eq!(term.remaining(now - Duration::from_nanos(1)), None);
        assert_eq!(term.remaining(now + MINUTE), None);
    }
}
