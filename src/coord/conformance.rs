//! What every [`Freshness`] and every [`Leases`] that can be reached must do.
//!
//! Plain functions; the macros turn each into one `#[test]` of a backend. Time passes by a
//! closure: one with a clock set by hand advances it, a real server waits. What must still
//! hold is given [`LONG`], so that a slow machine fails no test.

use std::thread;
use std::time::Duration;

use super::{Acquired, Freshness, LeaseToken, Leases, Mark};
use crate::artifact::{ArtifactKey, ArtifactPath, Digest};

/// One `#[test]` per function of the suite for marks.
///
/// Takes a closure that gives `(backend, pass, guard)`: an empty backend, a closure that lets
/// a [`Duration`] pass, and what lives as long as the test. Attributes before it go to every
/// test.
macro_rules! freshness_conformance {
    (@one [$(#[$attribute:meta])*] $fresh:expr; $name:ident) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            let (backend, pass, _guard) = ($fresh)();
            $crate::coord::conformance::$name(&backend, &pass);
        }
    };
    (@each $attributes:tt $fresh:expr; $($name:ident)+) => {
        $($crate::coord::conformance::freshness_conformance! { @one $attributes $fresh; $name })+
    };
    ($(#[$attribute:meta])* $fresh:expr) => {
        $crate::coord::conformance::freshness_conformance! { @each [$(#[$attribute])*] $fresh;
            what_was_not_marked_is_not_known
            a_mark_holds_for_its_lifetime
            a_mark_ends_with_its_lifetime
            setting_a_mark_again_counts_from_then
            a_cleared_mark_is_gone_and_clearing_twice_is_fine
            marks_and_artifacts_are_kept_apart
        }
    };
}
pub(crate) use freshness_conformance;

/// One `#[test]` per function of the suite for leases; takes what
/// [`freshness_conformance!`] takes.
macro_rules! leases_conformance {
    (@one [$(#[$attribute:meta])*] $fresh:expr; $name:ident) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            let (backend, pass, _guard) = ($fresh)();
            $crate::coord::conformance::$name(&backend, &pass);
        }
    };
    (@each $attributes:tt $fresh:expr; $($name:ident)+) => {
        $($crate::coord::conformance::leases_conformance! { @one $attributes $fresh; $name })+
    };
    ($(#[$attribute:meta])* $fresh:expr) => {
        $crate::coord::conformance::leases_conformance! { @each [$(#[$attribute])*] $fresh;
            a_lease_is_held_by_one
            leases_of_different_artifacts_are_apart
            a_released_lease_can_be_had_again
            a_lease_ends_with_its_ttl
            a_renewed_lease_counts_from_then
            a_renewal_may_shorten_a_lease
            a_lost_lease_is_not_renewed
            a_lost_lease_takes_nothing_from_its_next_holder
            a_token_that_was_never_given_does_nothing
            of_those_that_race_exactly_one_holds_the_lease
        }
    };
}
pub(crate) use leases_conformance;

/// Of some bytes.
const FRESH: Mark = Mark::Fresh(Digest([1; 32]));
/// Long enough to hold through any test.
const LONG: Duration = Duration::from_secs(3_600);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(200);
/// Long enough for a few calls on a busy machine, and still to be waited for once.
const BRIEF: Duration = Duration::from_millis(1_500);
/// What ends a [`SHORT`] time, with a margin for clocks that tick coarsely.
const OVER_SHORT: Duration = Duration::from_millis(300);
const OVER_BRIEF: Duration = Duration::from_millis(1_700);
/// Contenders for one lease, and how often they meet.
const CONTENDERS: usize = 4;
const ROUNDS: usize = 25;

type Pass<'a> = &'a dyn Fn(Duration);

fn key_in(remote: &str, path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).expect("the suite's paths are canonical");
    ArtifactKey { remote: remote.parse().expect("a remote's name"), path }
}

fn key(path: &str) -> ArtifactKey {
    key_in("remote", path)
}

fn granted(leases: &dyn Leases, key: &ArtifactKey, ttl: Duration) -> LeaseToken {
    match leases.try_acquire(key, ttl) {
        Acquired::Granted(token) => token,
        other => panic!("{key}: {other:?}"),
    }
}

pub(crate) fn what_was_not_marked_is_not_known(freshness: &dyn Freshness, _: Pass<'_>) {
    assert_eq!(freshness.remaining(&key("none"), FRESH), None);
    assert_eq!(freshness.remaining(&key("none"), Mark::Absent), None);
}

pub(crate) fn a_mark_holds_for_its_lifetime(freshness: &dyn Freshness, pass: Pass<'_>) {
    freshness.set(&key("a"), FRESH, LONG);
    let at_first = freshness.remaining(&key("a"), FRESH).expect("it holds");
    pass(SHORT);
    let later = freshness.remaining(&key("a"), FRESH).expect("it still holds");
    assert!(at_first <= LONG && later < at_first, "{at_first:?}, then {later:?}");
    assert!(later > LONG / 2, "{later:?}");
}

pub(crate) fn a_mark_ends_with_its_lifetime(freshness: &dyn Freshness, pass: Pass<'_>) {
    freshness.set(&key("short"), FRESH, SHORT);
    freshness.set(&key("least"), Mark::Absent, Duration::from_millis(1));
    freshness.set(&key("long"), FRESH, LONG);
    pass(OVER_SHORT);
    assert_eq!(freshness.remaining(&key("short"), FRESH), None);
    assert_eq!(freshness.remaining(&key("least"), Mark::Absent), None);
    assert!(freshness.remaining(&key("long"), FRESH).is_some());
}

pub(crate) fn setting_a_mark_again_counts_from_then(freshness: &dyn Freshness, pass: Pass<'_>) {
    freshness.set(&key("longer"), FRESH, SHORT);
    freshness.set(&key("longer"), FRESH, LONG);
    freshness.set(&key("shorter"), FRESH, LONG);
    freshness.set(&key("shorter"), FRESH, SHORT);
    pass(OVER_SHORT);
    assert!(freshness.remaining(&key("longer"), FRESH).is_some());
    assert_eq!(freshness.remaining(&key("shorter"), FRESH), None);
}

pub(crate) fn a_cleared_mark_is_gone_and_clearing_twice_is_fine(
    freshness: &dyn Freshness,
    _: Pass<'_>,
) {
    freshness.set(&key("a"), Mark::Absent, LONG);
    freshness.clear(&key("a"), Mark::Absent);
    assert_eq!(freshness.remaining(&key("a"), Mark::Absent), None);
    freshness.clear(&key("a"), Mark::Absent);
    freshness.set(&key("a"), Mark::Absent, LONG);
    assert!(freshness.remaining(&key("a"), Mark::Absent).is_some());
}

pub(crate) fn marks_and_artifacts_are_kept_apart(freshness: &dyn Freshness, _: Pass<'_>) {
    let all = [
        (key("a"), FRESH),
        (key("a"), Mark::Fresh(Digest([2; 32]))),
        (key("a"), Mark::Unsettled),
        (key("a"), Mark::Doubted),
        (key("a"), Mark::Absent),
        (key("a/b"), FRESH),
        (key("a b"), FRESH),
        (key("a%20b"), FRESH),
        (key("a?b"), FRESH),
        (key("caf\u{e9}"), FRESH),
        (key_in("other", "a"), FRESH),
        (key_in("remot", "ea"), FRESH),
        (key_in("r", "x/y"), FRESH),
        (key_in("rx", "y"), FRESH),
    ];
    for (at, (key, mark)) in all.iter().enumerate() {
        freshness.set(key, *mark, LONG);
        for (other, (key, mark)) in all.iter().enumerate() {
            let known = freshness.remaining(key, *mark).is_some();
            assert_eq!(known, other == at, "{key} {mark:?} after setting number {at}");
        }
        freshness.clear(key, *mark);
    }
}

pub(crate) fn a_lease_is_held_by_one(leases: &dyn Leases, _: Pass<'_>) {
    granted(leases, &key("a"), LONG);
    assert_eq!(leases.try_acquire(&key("a"), LONG), Acquired::Held);
    assert_eq!(leases.try_acquire(&key("a"), SHORT), Acquired::Held);
}

pub(crate) fn leases_of_different_artifacts_are_apart(leases: &dyn Leases, _: Pass<'_>) {
    let keys = [key("a"), key("a/b"), key("a b"), key_in("other", "a"), key_in("remot", "ea")];
    let tokens: Vec<_> = keys.iter().map(|key| granted(leases, key, LONG)).collect();
    leases.release(&keys[0], &tokens[0]);
    for key in &keys[1..] {
        assert_eq!(leases.try_acquire(key, LONG), Acquired::Held, "{key}");
    }
    // A token is good for its own artifact only.
    leases.release(&keys[1], &tokens[2]);
    assert_eq!(leases.try_acquire(&keys[1], LONG), Acquired::Held);
}

pub(crate) fn a_released_lease_can_be_had_again(leases: &dyn Leases, _: Pass<'_>) {
    let first = granted(leases, &key("a"), LONG);
    leases.release(&key("a"), &first);
    let second = granted(leases, &key("a"), LONG);
    assert_ne!(first, second);
    assert!(!leases.renew(&key("a"), &first, LONG));
    assert!(leases.renew(&key("a"), &second, LONG));
}

pub(crate) fn a_lease_ends_with_its_ttl(leases: &dyn Leases, pass: Pass<'_>) {
    granted(leases, &key("a"), SHORT);
    pass(OVER_SHORT);
    granted(leases, &key("a"), LONG);
    assert_eq!(leases.try_acquire(&key("a"), LONG), Acquired::Held);
}

pub(crate) fn a_renewed_lease_counts_from_then(leases: &dyn Leases, pass: Pass<'_>) {
    let token = granted(leases, &key("a"), BRIEF);
    assert!(leases.renew(&key("a"), &token, LONG));
    pass(OVER_BRIEF);
    assert_eq!(leases.try_acquire(&key("a"), LONG), Acquired::Held);
    assert!(leases.renew(&key("a"), &token, LONG));
}

pub(crate) fn a_renewal_may_shorten_a_lease(leases: &dyn Leases, pass: Pass<'_>) {
    let token = granted(leases, &key("a"), LONG);
    assert!(leases.renew(&key("a"), &token, SHORT));
    pass(OVER_SHORT);
    granted(leases, &key("a"), LONG);
}

pub(crate) fn a_lost_lease_is_not_renewed(leases: &dyn Leases, pass: Pass<'_>) {
    let token = granted(leases, &key("a"), SHORT);
    pass(OVER_SHORT);
    assert!(!leases.renew(&key("a"), &token, LONG));
    granted(leases, &key("a"), LONG);
}

pub(crate) fn a_lost_lease_takes_nothing_from_its_next_holder(leases: &dyn Leases, pass: Pass<'_>) {
    let lost = granted(leases, &key("a"), SHORT);
    pass(OVER_SHORT);
    let held = granted(leases, &key("a"), LONG);
    assert!(!leases.renew(&key("a"), &lost, SHORT));
    leases.release(&key("a"), &lost);
    pass(OVER_SHORT);
    assert_eq!(leases.try_acquire(&key("a"), LONG), Acquired::Held);
    assert!(leases.renew(&key("a"), &held, LONG));
}

pub(crate) fn a_token_that_was_never_given_does_nothing(leases: &dyn Leases, _: Pass<'_>) {
    for made_up in ["", "0", "*", "made up"].map(|text| LeaseToken(text.to_owned())) {
        assert!(!leases.renew(&key("a"), &made_up, LONG), "{made_up:?}");
        leases.release(&key("a"), &made_up);
    }
    granted(leases, &key("a"), LONG);
    leases.release(&key("a"), &LeaseToken("made up".to_owned()));
    assert_eq!(leases.try_acquire(&key("a"), LONG), Acquired::Held);
}

pub(crate) fn of_those_that_race_exactly_one_holds_the_lease(leases: &dyn Leases, _: Pass<'_>) {
    for round in 0..ROUNDS {
        let key = key(&format!("raced/{round}"));
        let granted = thread::scope(|threads| {
            let racing: Vec<_> =
                (0..CONTENDERS).map(|_| threads.spawn(|| leases.try_acquire(&key, LONG))).collect();
            racing
                .into_iter()
                .map(|one| one.join().expect("a contender is answered"))
                .filter(|answer| matches!(answer, Acquired::Granted(_)))
                .count()
        });
        assert_eq!(granted, 1, "round {round}");
    }
}
