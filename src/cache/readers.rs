//! Who reads what: so that nothing is taken out of the store under a reader's eyes.
//!
//! On a disk an open file keeps its bytes, but an answer of several ranges opens the blob anew
//! for each, and an object store may cut a reader off. A [`Reading`] lives from the moment an
//! artifact is found until its body is done; a [`Removal`] is had only while there is none.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::artifact::ArtifactKey;

/// Locks among which readers are spread, so that hits seldom meet.
const SHARDS: usize = 16;
/// How long a reader waits for a removal to end: two calls to the backends. Whoever has waited
/// in vain reads all the same; what it finds gone, it fetches again.
const CLAIM_WAIT_MAX: Duration = Duration::from_secs(5);

/// The readers of one process.
#[derive(Debug)]
pub(super) struct Readers {
    hasher: RandomState,
    shards: [Shard; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    // Guards single steps; nothing else is taken under it. Artifacts are known by a hash:
    // two that share one are read and claimed as if they were one.
    held: Mutex<HashMap<u64, Held>>,
    unclaimed: Condvar,
}

#[derive(Debug, PartialEq, Eq)]
enum Held {
    Read { by: usize },
    Claimed,
}

impl Readers {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { hasher: RandomState::new(), shards: Default::default() })
    }

    /// Begins to read an artifact; waits while it is claimed.
    pub(super) fn read(self: &Arc<Self>, key: &ArtifactKey) -> Option<Reading> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash);
        let is_claimed = |held: &mut HashMap<u64, Held>| held.get(&hash) == Some(&Held::Claimed);
        let (mut held, waited) = shard
            .unclaimed
            .wait_timeout_while(shard.held(), CLAIM_WAIT_MAX, is_claimed)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        match held.entry(hash).or_insert(Held::Read { by: 0 }) {
            Held::Read { by } => *by += 1,
            Held::Claimed => unreachable!("it was waited for, and the lock is still held"),
        }
        Some(Reading { readers: Arc::clone(self), hash })
    }

    /// Whether somebody reads it, or removes it.
    pub(super) fn is_held(&self, key: &ArtifactKey) -> bool {
        let hash = self.hasher.hash_one(key);
        self.shard(hash).held().contains_key(&hash)
    }

    /// Keeps readers out, if there are none.
    pub(super) fn claim(self: &Arc<Self>, key: &ArtifactKey) -> Option<Removal> {
        let hash = self.hasher.hash_one(key);
        match self.shard(hash).held().entry(hash) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                place.insert(Held::Claimed);
                Some(Removal { readers: Arc::clone(self), hash })
            }
        }
    }

    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[hash as usize % SHARDS]
    }
}

impl Shard {
    fn held(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody reads an artifact.
#[derive(Debug)]
pub(super) struct Reading {
    readers: Arc<Readers>,
    hash: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut held = self.readers.shard(self.hash).held();
        match held.get_mut(&self.hash) {
            Some(Held::Read { by }) if *by > 1 => *by -= 1,
            _ => drop(held.remove(&self.hash)),
        }
    }
}

/// Nobody may begin to read an artifact.
#[derive(Debug)]
pub(super) struct Removal {
    readers: Arc<Readers>,
    hash: u64,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let shard = self.readers.shard(self.hash);
        shard.held().remove(&self.hash);
        shard.unclaimed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::ArtifactPath;
    use crate::body::Body;

    fn key(path: &str) -> ArtifactKey {
        let path = ArtifactPath::from_canonical(path).unwrap();
        ArtifactKey { remote: "r".parse().unwrap(), path }
    }

    #[test]
    fn a_claim_is_had_only_while_nobody_reads() {
        let readers = Readers::new();
        let (one, two) = (readers.read(&key("a")).unwrap(), readers.read(&key("a")).unwrap());
        assert!(readers.is_held(&key("a")) && readers.claim(&key("a")).is_none());
        drop(one);
        assert!(readers.claim(&key("a")).is_none());
        assert!(readers.claim(&key("b")).is_some());
        drop(two);
        let claim = readers.claim(&key("a")).unwrap();
        assert!(readers.claim(&key("a")).is_none());
        drop(claim);
        assert!(!readers.is_held(&key("a")));
    }

    #[test]
    fn a_reader_waits_until_the_claim_is_given_back() {
        let readers = Readers::new();
        let claim = readers.claim(&key("a")).unwrap();
        let (tell, told) = crossbeam_channel::bounded(1);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let reading = readers.read(&key("a"));
                tell.send(()).unwrap();
                assert!(reading.is_some());
            });
            assert!(told.try_recv().is_err());
            drop(claim);
            told.recv_timeout(CLAIM_WAIT_MAX).unwrap();
        });
        assert!(!readers.is_held(&key("a")));
    }

    #[test]
    fn a_body_is_read_until_it_is_dropped() {
        let readers = Readers::new();
        let guard = Arc::new(readers.read(&key("a")).unwrap());
        let mut body = Body::from_bytes("bytes").keeping(guard);
        assert_eq!(body.len(), Some(5));
        assert_eq!(crate::body::read_to_vec(&mut body, 5).unwrap(), b"bytes");
        assert!(readers.is_held(&key("a")));
        drop(body);
        assert!(!readers.is_held(&key("a")));
    }
}
