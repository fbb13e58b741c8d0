//! How often an address presents credentials that are wrong, so that nobody can guess on.
//!
//! An address that failed too often is refused without a look at what it presents. Behind a
//! reverse proxy many clients share one address, and one of them with an outdated token must
//! not shut the others out: a credential that was right from that address lately is still
//! looked at.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::wire::network_of;
use crate::artifact::Digest;

/// Failures of one address within [`WINDOW`]; further credentials are refused until it ends.
const FAILURES_MAX: u32 = 10;
/// How long failures count, from the first of them on.
const WINDOW: Duration = Duration::from_secs(60);
/// How long a credential that was right is remembered after its last use.
const PROVEN_FOR: Duration = Duration::from_secs(3600);
/// Credentials that are remembered for an address.
const PROVEN_MAX: usize = 16;
/// Addresses that are remembered; the one not seen for longest makes room.
const ADDRESSES_MAX: usize = 4096;

/// What addresses presented lately.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    // Guards the table for single steps; nothing else is taken while it is held.
    table: Mutex<HashMap<Option<IpAddr>, Record>>,
}

#[derive(Debug)]
struct Record {
    seen: Instant,
    failures: u32,
    since: Instant,
    proven: Vec<(Digest, Instant)>,
}

/// A failure that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// There may be more.
    Within,
    /// It was the last one that is looked at for now.
    Last,
    /// It was not looked at.
    Beyond,
}

impl Attempts {
    /// Whether a credential is to be looked at; otherwise how long it is not.
    pub(super) fn admit(
        &self,
        client: Option<IpAddr>,
        presented: &Digest,
        now: Instant,
    ) -> Result<(), Duration> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = table.get(&client.map(network_of)) else { return Ok(()) };
        let elapsed = now.saturating_duration_since(record.since);
        let is_proven = record.proven.iter().any(|(proven, at)| {
            proven == presented && now.saturating_duration_since(*at) < PROVEN_FOR
        });
        if record.failures < FAILURES_MAX || elapsed >= WINDOW || is_proven {
            return Ok(());
        }
        Err(WINDOW - elapsed)
    }

    /// Counts a wrong credential.
    pub(super) fn failed(&self, client: Option<IpAddr>, now: Instant) -> Counted {
        self.update(client, now, |record| {
            if now.saturating_duration_since(record.since) >= WINDOW {
                (record.failures, record.since) = (0, now);
            }
            record.failures = record.failures.saturating_add(1);
            match record.failures.cmp(&FAILURES_MAX) {
                Ordering::Less => Counted::Within,
                Ordering::Equal => Counted::Last,
                Ordering::Greater => Counted::Beyond,
            }
        })
    }

    /// Remembers a right credential.
    pub(super) fn succeeded(&self, client: Option<IpAddr>, presented: Digest, now: Instant) {
        self.update(client, now, |record| {
            if let Some((_, at)) = record.proven.iter_mut().find(|(proven, _)| *proven == presented)
            {
                *at = now;
                return;
            }
            if record.proven.len() == PROVEN_MAX {
                record.proven.remove(0);
            }
            record.proven.push((presented, now));
        });
    }

    fn update<T>(
        &self,
        client: Option<IpAddr>,
        now: Instant,
        change: impl FnOnce(&mut Record) -> T,
    ) -> T {
        let client = client.map(network_of);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= ADDRESSES_MAX && !table.contains_key(&client) {
            let oldest =
                table.iter().min_by_key(|(_, record)| record.seen).map(|(client, _)| *client);
            if let Some(oldest) = oldest {
                table.remove(&oldest);
            }
        }
        let fresh = || Record { seen: now, failures: 0, since: now, proven: Vec::new() };
        let record = table.entry(client).or_insert_with(fresh);
        record.seen = now;
        change(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_that_failed_too_often_waits_and_others_do_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let (bad, good) = (address("192.0.2.1"), address("192.0.2.2"));
        let guess = Digest::of(b"guess");
        for number in 1..=FAILURES_MAX {
            assert_eq!(attempts.admit(bad, &guess, now), Ok(()));
            let counted = attempts.failed(bad, now);
            assert_eq!(counted == Counted::Last, number == FAILURES_MAX, "{number}");
        }
        assert_eq!(attempts.admit(bad, &guess, now + WINDOW / 4), Err(WINDOW * 3 / 4));
        assert_eq!(attempts.admit(good, &guess, now), Ok(()));
        assert_eq!(attempts.admit(bad, &guess, now + WINDOW), Ok(()));
        assert_eq!(attempts.failed(bad, now + WINDOW), Counted::Within);
    }

    #[test]
    fn what_was_right_lately_is_still_looked_at() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let shared = address("192.0.2.1");
        let right = Digest::of(b"right");
        attempts.succeeded(shared, right, now);
        for _ in 0..FAILURES_MAX {
            attempts.failed(shared, now);
        }
        assert_eq!(attempts.admit(shared, &right, now), Ok(()));
        assert!(attempts.admit(shared, &Digest::of(b"other"), now).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_makes_room() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for number in 0..=ADDRESSES_MAX as u32 {
            let client = Some(IpAddr::V4(number.into()));
            attempts.failed(client, now + Duration::from_millis(u64::from(number)));
        }
        let table = attempts.table.lock().unwrap();
        assert_eq!(table.len(), ADDRESSES_MAX);
        assert!(!table.contains_key(&address("0.0.0.0")));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_count_as_one() {
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
        ] {
            assert_eq!(
                address(one).map(network_of) == address(other).map(network_of),
                same,
                "{one} {other}"
            );
        }
    }
}
