//! Claims: who may change what a name of a local repository means.
//!
//! Blobs lie under predictable keys, so a second upload to a name would overwrite the first
//! one's bytes before the index could tell which came first. Whoever publishes or removes
//! under a name of a local repository therefore holds it, between looking at its row and
//! writing it:
//!
//! 1. In this process by a claim, which ends with its holder and never by time.
//! 2. Among replicas by a lease on the same name, renewed while the store is at work.
//!
//! Where leases can't be had, two replicas may publish under one name in the same moment. Then
//! the row's generation decides whose answer is 201, and [`super::upload`] looks at what lies
//! under the key before it believes so.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Cache;
use crate::artifact::ArtifactKey;
use crate::coord::{Held, Lease};

/// How long a change waits for another one of the same name, in this process and then once
/// more among replicas.
const HOLD_WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a lease that another replica holds is asked for again.
const LEASE_POLL: Duration = Duration::from_millis(50);

/// The names that are held in this process. At most one for each thread that serves.
#[derive(Debug, Default)]
pub(super) struct Claims {
    // Guards the set for single steps; nothing else is taken while it is held.
    held: Mutex<HashSet<ArtifactKey>>,
    freed: Condvar,
}

impl Claims {
    fn claim(&self, key: &ArtifactKey, patience: Duration) -> Option<Claim<'_>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut held, wait) = self
            .freed
            .wait_timeout_while(held, patience, |held| held.contains(key))
            .unwrap_or_else(PoisonError::into_inner);
        if wait.timed_out() && held.contains(key) {
            return None;
        }
        held.insert(key.clone());
        Some(Claim { claims: self, key: key.clone() })
    }
}

#[derive(Debug)]
struct Claim<'a> {
    claims: &'a Claims,
    key: ArtifactKey,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.claims.freed.notify_all();
    }
}

/// A name that nobody else changes, as far as that can be had.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    // Given back before the claim is, so that the next one here finds it free.
    lease: Option<Lease>,
    lease_ttl: Duration,
    _claim: Claim<'a>,
}

impl Cache {
    /// Holds a name; `None` if somebody else does for too long.
    pub(super) fn hold(&self, key: &ArtifactKey) -> Option<Hold<'_>> {
        let claim = self.claims.claim(key, HOLD_WAIT_MAX)?;
        let leases = &self.ports.leases;
        let deadline = Instant::now() + HOLD_WAIT_MAX;
        let lease = loop {
            match Lease::take(leases, key, self.lease_ttl) {
                Ok(lease) => break lease,
                Err(Held) if Instant::now() >= deadline => return None,
                Err(Held) => std::thread::sleep(LEASE_POLL),
            }
        };
        Some(Hold { lease, lease_ttl: self.lease_ttl, _claim: claim })
    }
}

impl Hold<'_> {
    /// Does what may take longer than a lease lasts, and renews it meanwhile.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(lease) = &self.lease else { return work() };
        let (done, is_done) = crossbeam_channel::bounded::<()>(0);
        std::thread::scope(|scope| {
            let renew = move || {
                let rest = self.lease_ttl / 3;
                while is_done.recv_timeout(rest)
                    == Err(crossbeam_channel::RecvTimeoutError::Timeout)
                {
                    // A lost lease is noticed by `is_sole`.
                    lease.renew();
                }
            };
            let renewer = std::thread::Builder::new().name("renew".to_owned());
            // Without the thread the lease may lapse, which `is_sole` tells.
            let _renewing = renewer.spawn_scoped(scope, renew);
            let result = work();
            drop(done);
            result
        })
    }

    /// Whether no replica can have changed the name since it was held. If this is not known,
    /// it is `false`.
    pub(super) fn is_sole(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::renew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::ArtifactPath;

    fn key(path: &str) -> ArtifactKey {
        let path = ArtifactPath::from_canonical(path).unwrap();
        ArtifactKey { remote: "r".parse().unwrap(), path }
    }

    #[test]
    fn one_holds_a_name_at_a_time_and_others_are_free() {
        let claims = Claims::default();
        let first = claims.claim(&key("a"), Duration::ZERO).unwrap();
        assert!(claims.claim(&key("a"), Duration::from_millis(5)).is_none());
        assert!(claims.claim(&key("b"), Duration::ZERO).is_some());
        drop(first);
        assert!(claims.claim(&key("a"), Duration::ZERO).is_some());
        assert!(claims.held.lock().unwrap().is_empty());
    }

    #[test]
    fn who_waits_gets_the_name_when_it_is_freed() {
        let claims = Claims::default();
        let first = claims.claim(&key("a"), Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| claims.claim(&key("a"), Duration::from_secs(20)).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
    }
}
