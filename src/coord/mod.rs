//! What replicas tell each other: freshness and leases.
//!
//! Both save work and neither guards correctness: without them an index is revalidated more
//! often and a file may be fetched twice, and nothing else changes. So no method fails; what
//! can't be asked is "not known" or "not granted".

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::{ArtifactKey, Digest};

#[cfg(test)]
pub mod conformance;
pub mod local;
pub mod redis;

/// What is remembered of an artifact for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The stored copy with these bytes was confirmed by upstream and is fresh. Of other bytes it
    /// says nothing: a replica that cannot write its row may have stored them meanwhile.
    Fresh(Digest),
    /// Upstream said that there is no such file.
    Absent,
    /// The head, or a member of it, changed upstream, and the others may follow.
    Unsettled,
    /// Of a head: it does not fit a member, or names one that is gone, and upstream is to send it
    /// anew. Of a member: it was sent whole for that.
    Doubted,
}

impl Mark {
    /// Its name in a backend.
    fn name(self) -> Cow<'static, str> {
        match self {
            Self::Fresh(digest) => format!("fresh:{}", &digest.to_string()[..16]).into(),
            Self::Absent => "absent".into(),
            Self::Unsettled => "unsettled".into(),
            Self::Doubted => "doubted".into(),
        }
    }
}

/// Marks that expire.
pub trait Freshness: Debug + Send + Sync {
    /// How long the mark still holds; `None` if there is none, or if that can't be told.
    fn remaining(&self, key: &ArtifactKey, mark: Mark) -> Option<Duration>;
    /// Sets the mark for `lifetime`, over 0.
    fn set(&self, key: &ArtifactKey, mark: Mark, lifetime: Duration);
    /// Removes the mark.
    fn clear(&self, key: &ArtifactKey, mark: Mark);
}

/// Leases on artifacts: who holds one fetches, the others wait a while.
pub trait Leases: Debug + Send + Sync {
    /// Asks for the lease for `ttl`.
    fn try_acquire(&self, key: &ArtifactKey, ttl: Duration) -> Acquired;
    /// Prolongs a lease that is still held; `false` if it is not.
    fn renew(&self, key: &ArtifactKey, token: &LeaseToken, ttl: Duration) -> bool;
    /// Gives a lease back, if it is still held.
    fn release(&self, key: &ArtifactKey, token: &LeaseToken);
    /// Whether other processes ask for these leases: then one of them may have been told nothing, or
    /// a lease been forgotten, and somebody works without.
    fn are_shared(&self) -> bool {
        false
    }
}

/// The answer to a [`Leases::try_acquire`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours.
    Granted(LeaseToken),
    /// Somebody else has it.
    Held,
    /// That can't be told: go on without.
    Unknown,
}

/// Proves who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseToken(pub String);

/// A lease that is given back when it is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<dyn Leases>,
    key: ArtifactKey,
    token: LeaseToken,
    ttl: Duration,
}

/// Somebody else holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held;

impl Lease {
    /// Takes the lease for `ttl`; `None` where it can't be had and nobody is known to hold it,
    /// so that who asked goes on without.
    ///
    /// # Errors
    /// [`Held`] where somebody else has it.
    pub fn take(
        leases: &Arc<dyn Leases>,
        key: &ArtifactKey,
        ttl: Duration,
    ) -> Result<Option<Self>, Held> {
        match leases.try_acquire(key, ttl) {
            Acquired::Held => Err(Held),
            Acquired::Unknown => Ok(None),
            Acquired::Granted(token) => {
                Ok(Some(Self { leases: Arc::clone(leases), key: key.clone(), token, ttl }))
            }
        }
    }

    /// Prolongs it by its ttl from now; `false` if it was lost meanwhile.
    pub fn renew(&self) -> bool {
        self.leases.renew(&self.key, &self.token, self.ttl)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.release(&self.key, &self.token);
    }
}
