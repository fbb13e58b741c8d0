//! Which blobs were used lately: a blob that is used once is not worth a place in a tier.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::time::{Duration, SystemTime};

use crate::artifact::BlobKey;

/// Uses are remembered at least for half of this, and at most for all of it.
pub(super) const SEEN_FOR: Duration = Duration::from_secs(3600);
/// Blobs whose first use is remembered at once, about 2 MiB in all.
const SEEN_MAX: usize = 64 << 10;
/// Which blobs were used lately, in bounded memory: two sets, of which the elder is dropped
/// as the younger is full or old enough.
#[derive(Debug)]
pub(super) struct Seen {
    hasher: RandomState,
    young: HashSet<u64>,
    old: HashSet<u64>,
    turned: SystemTime,
}

impl Seen {
    pub(super) fn new(now: SystemTime) -> Self {
        let hasher = RandomState::new();
        Self { hasher, young: HashSet::new(), old: HashSet::new(), turned: now }
    }

    /// Notes a use; whether there was one before it. Two keys may be taken for one, rarely.
    pub(super) fn note(&mut self, key: &BlobKey, now: SystemTime) -> bool {
        let age = now.duration_since(self.turned).unwrap_or_default();
        if age >= SEEN_FOR / 2 || self.young.len() >= SEEN_MAX / 2 {
            self.old = mem::take(&mut self.young);
            self.turned = now;
            if age >= SEEN_FOR {
                self.old.clear();
            }
        }
        let hash = self.hasher.hash_one(key);
        !self.young.insert(hash) || self.old.contains(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_remembered_in_bounded_memory() {
        let mut seen = Seen::new(SystemTime::UNIX_EPOCH);
        for number in 0..2 * SEEN_MAX {
            let key = BlobKey::from_listing(&format!("r/{number:016x}/x")).unwrap();
            assert!(!seen.note(&key, SystemTime::UNIX_EPOCH), "{number}");
            assert!(seen.note(&key, SystemTime::UNIX_EPOCH), "{number}");
            assert!(seen.young.len() + seen.old.len() <= SEEN_MAX);
        }
    }
}
