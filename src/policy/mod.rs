//! Judgement: which paths are allowed, and what a request is answered with.
//!
//! Pure: no I/O, and the time is an argument.

use std::time::{Duration, SystemTime};

use crate::artifact::{Digest, Entry};
use crate::formats::Class;

pub mod lifetime;
pub mod media_type;
pub mod pattern;

use lifetime::Lifetimes;

/// What is known when a request is judged.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The artifact's class.
    pub class: Class,
    /// What is stored.
    pub stored: Option<&'a Entry>,
    /// How long the stored copy's freshness mark still holds.
    pub fresh: Option<Duration>,
    /// Whether upstream lately said that there is no such file.
    pub absent: bool,
    /// Of a member: the digest of its head as it is stored now.
    pub head: Option<Digest>,
    /// Whether upstream may be asked.
    pub reach: Reach,
}

/// Whether upstream may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Yes.
    Online,
    /// The operator said never.
    Offline,
    /// There is no upstream: a local repository.
    Local,
}

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The stored copy, which is fresh for so long (`None`: for ever).
    Hit(Option<Duration>),
    /// The stored copy although it lapsed, because upstream must not be asked.
    Stale,
    /// The stored copy, once its bytes are hashed: a crash of the machine may have hurt them.
    Prove,
    /// The stored copy, if upstream confirms it; otherwise what upstream has now.
    Revalidate,
    /// What upstream has.
    Fetch,
    /// There is no such file.
    Absent,
}

/// Judges a request that the remote's patterns allow.
pub fn decide(now: SystemTime, lifetimes: &Lifetimes, facts: &Facts<'_>) -> Decision {
    let online = facts.reach == Reach::Online;
    let Some(stored) = facts.stored else {
        return if online && !facts.absent { Decision::Fetch } else { Decision::Absent };
    };
    let judged = match facts.reach {
        Reach::Local => Decision::Hit(None),
        Reach::Online | Reach::Offline => judge_stored(now, lifetimes, facts, stored),
    };
    match judged {
        Decision::Revalidate if !online => proven(stored, Decision::Stale),
        Decision::Revalidate if facts.absent => Decision::Absent,
        Decision::Revalidate => Decision::Revalidate,
        hit => proven(stored, hit),
    }
}

fn proven(stored: &Entry, decision: Decision) -> Decision {
    if stored.unproven { Decision::Prove } else { decision }
}

fn judge_stored(
    now: SystemTime,
    lifetimes: &Lifetimes,
    facts: &Facts<'_>,
    stored: &Entry,
) -> Decision {
    match facts.class {
        Class::Immutable => match lifetimes.file_ttl {
            None => Decision::Hit(None),
            Some(ttl) => match ttl.checked_sub(age(now, stored)).filter(|left| !left.is_zero()) {
                Some(left) => Decision::Hit(Some(left)),
                None => Decision::Revalidate,
            },
        },
        Class::Member if facts.head.is_some() && facts.head != stored.head => Decision::Revalidate,
        _ => match facts.fresh.filter(|_| !lifetimes.index_ttl.is_zero()) {
            Some(left) => Decision::Hit(Some(left)),
            None => Decision::Revalidate,
        },
    }
}

/// How long ago upstream confirmed the copy; zero where the clock went back.
pub fn age(now: SystemTime, stored: &Entry) -> Duration {
    now.duration_since(stored.validated_at).unwrap_or_default()
}

/// How long the copy has been stale.
pub fn staleness(now: SystemTime, lifetimes: &Lifetimes, class: Class, stored: &Entry) -> Duration {
    let lifetime = match class {
        Class::Immutable => lifetimes.file_ttl.unwrap_or_default(),
        _ => lifetimes.index_ttl,
    };
    age(now, stored).saturating_sub(lifetime)
}

/// Whether a lapsed copy may stand in for an upstream that fails (RFC 5861, section 4, with the
/// operator's bound in place of upstream's).
pub fn may_stand_in(now: SystemTime, lifetimes: &Lifetimes, class: Class, stored: &Entry) -> bool {
    let stale_for = staleness(now, lifetimes, class, stored);
    !stored.unproven && lifetimes.stale_if_error.is_none_or(|bound| stale_for <= bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Validators};

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * HOUR
    }

    fn entry(age: Duration) -> Entry {
        let path = ArtifactPath::from_canonical("a").unwrap();
        Entry {
            blob: BlobKey::of(&ArtifactKey { remote: "r".parse().unwrap(), path }),
            version: BlobVersion("v".into()),
            size: 1,
            digest: Digest::of(b"a"),
            content_type: None,
            content_encoding: None,
            validators: Validators::default(),
            stored_at: now() - age,
            validated_at: now() - age,
            head: None,
            generation: 1,
            unproven: false,
        }
    }

    fn lifetimes() -> Lifetimes {
        Lifetimes {
            file_ttl: None,
            index_ttl: HOUR,
            stale_if_error: None,
            negative_ttl: Duration::from_secs(10),
        }
    }

    fn facts(class: Class, stored: Option<&Entry>) -> Facts<'_> {
        Facts { class, stored, fresh: None, absent: false, head: None, reach: Reach::Online }
    }

    #[track_caller]
    fn check(lifetimes: &Lifetimes, facts: Facts<'_>, expected: Decision) {
        assert_eq!(decide(now(), lifetimes, &facts), expected, "{facts:?}");
    }

    #[test]
    fn what_is_not_stored_is_fetched_unless_it_is_known_to_be_absent() {
        let nothing = facts(Class::Head, None);
        check(&lifetimes(), nothing, Decision::Fetch);
        check(&lifetimes(), Facts { absent: true, ..nothing }, Decision::Absent);
        check(&lifetimes(), Facts { reach: Reach::Offline, ..nothing }, Decision::Absent);
        check(&lifetimes(), Facts { reach: Reach::Local, ..nothing }, Decision::Absent);
    }

    #[test]
    fn an_immutable_file_lives_for_ever_or_for_its_ttl() {
        let old = entry(10 * HOUR);
        let file = facts(Class::Immutable, Some(&old));
        check(&lifetimes(), file, Decision::Hit(None));
        let ttl = |ttl| Lifetimes { file_ttl: Some(ttl), ..lifetimes() };
        check(&ttl(11 * HOUR), file, Decision::Hit(Some(HOUR)));
        check(&ttl(10 * HOUR), file, Decision::Revalidate);
        check(&ttl(HOUR), Facts { reach: Reach::Offline, ..file }, Decision::Stale);
        check(&ttl(HOUR), Facts { absent: true, ..file }, Decision::Absent);
        let ahead = Entry { validated_at: now() + HOUR, ..entry(HOUR) };
        check(&ttl(HOUR), facts(Class::Immutable, Some(&ahead)), Decision::Hit(Some(HOUR)));
    }

    #[test]
    fn a_head_is_fresh_by_its_mark_alone() {
        let old = entry(HOUR / 2);
        let head = facts(Class::Head, Some(&old));
        check(&lifetimes(), head, Decision::Revalidate);
        check(&lifetimes(), Facts { fresh: Some(HOUR), ..head }, Decision::Hit(Some(HOUR)));
        let always = Lifetimes { index_ttl: Duration::ZERO, ..lifetimes() };
        check(&always, Facts { fresh: Some(HOUR), ..head }, Decision::Revalidate);
        check(&lifetimes(), Facts { reach: Reach::Offline, ..head }, Decision::Stale);
        check(&lifetimes(), Facts { reach: Reach::Local, ..head }, Decision::Hit(None));
    }

    #[test]
    fn a_member_is_doubted_when_another_head_stands_there() {
        let (first, second) = (Some(Digest::of(b"1")), Some(Digest::of(b"2")));
        let stored = Entry { head: first, ..entry(HOUR / 2) };
        let fresh = Facts { fresh: Some(HOUR), ..facts(Class::Member, Some(&stored)) };
        check(&lifetimes(), Facts { head: first, ..fresh }, Decision::Hit(Some(HOUR)));
        check(&lifetimes(), Facts { head: second, ..fresh }, Decision::Revalidate);
        check(&lifetimes(), Facts { head: None, ..fresh }, Decision::Hit(Some(HOUR)));
        let alone = entry(HOUR / 2);
        let fresh = Facts { fresh: Some(HOUR), ..facts(Class::Member, Some(&alone)) };
        check(&lifetimes(), Facts { head: first, ..fresh }, Decision::Revalidate);
    }

    #[test]
    fn unproven_bytes_are_hashed_before_they_are_served() {
        let doubtful = Entry { unproven: true, ..entry(HOUR) };
        let file = facts(Class::Immutable, Some(&doubtful));
        check(&lifetimes(), file, Decision::Prove);
        check(&lifetimes(), facts(Class::Head, Some(&doubtful)), Decision::Revalidate);
        check(&lifetimes(), Facts { reach: Reach::Offline, ..file }, Decision::Prove);
        assert!(!may_stand_in(now(), &lifetimes(), Class::Head, &doubtful));
    }

    #[test]
    fn a_stale_copy_stands_in_within_the_operators_bound() {
        let old = entry(3 * HOUR);
        let bound = |bound| Lifetimes { stale_if_error: bound, ..lifetimes() };
        assert_eq!(staleness(now(), &lifetimes(), Class::Head, &old), 2 * HOUR);
        assert!(may_stand_in(now(), &bound(None), Class::Head, &old));
        assert!(may_stand_in(now(), &bound(Some(2 * HOUR)), Class::Head, &old));
        assert!(!may_stand_in(now(), &bound(Some(HOUR)), Class::Head, &old));
    }
}
