//! Versions of blobs in the order of their last use, so that the least recently used can make room.
//!
//! Unlike [`crate::recent::Recent`], what is held is bounded by its owner, in bytes.

use std::collections::{BTreeMap, HashMap};

use crate::artifact::{BlobKey, BlobVersion};

/// What a tier holds of blobs: one version of each, with what it needs to serve it.
#[derive(Debug)]
pub(super) struct ByUse<T> {
    held: HashMap<BlobKey, Held<T>>,
    // The keys of `held` by the number of their last use.
    order: BTreeMap<u64, BlobKey>,
    uses: u64,
}

#[derive(Debug)]
struct Held<T> {
    version: BlobVersion,
    value: T,
    used: u64,
}

impl<T> ByUse<T> {
    pub(super) fn new() -> Self {
        Self { held: HashMap::new(), order: BTreeMap::new(), uses: 0 }
    }

    /// What is held of a version, which is used now.
    pub(super) fn used(&mut self, key: &BlobKey, version: &BlobVersion) -> Option<&T> {
        self.uses += 1;
        let held = self.held.get_mut(key).filter(|held| held.version == *version)?;
        let moved = self.order.remove(&held.used).expect("each key that is held has its place");
        held.used = self.uses;
        self.order.insert(held.used, moved);
        Some(&held.value)
    }

    /// What is held under a key, whatever its version.
    pub(super) fn get(&self, key: &BlobKey) -> Option<(&BlobVersion, &T)> {
        self.held.get(key).map(|held| (&held.version, &held.value))
    }

    /// Holds a version, in the place of what is held under its key.
    pub(super) fn insert(&mut self, key: &BlobKey, version: &BlobVersion, value: T) -> Option<T> {
        let replaced = self.take(key);
        self.uses += 1;
        let held = Held { version: version.clone(), value, used: self.uses };
        self.held.insert(key.clone(), held);
        self.order.insert(self.uses, key.clone());
        replaced
    }

    /// Gives up what is held under a key.
    pub(super) fn take(&mut self, key: &BlobKey) -> Option<T> {
        let held = self.held.remove(key)?;
        self.order.remove(&held.used);
        Some(held.value)
    }

    /// Gives up the least recently used.
    pub(super) fn take_least_recent(&mut self) -> Option<T> {
        let least = self.order.first_key_value()?.1.clone();
        self.take(&least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> BlobKey {
        BlobKey::from_listing(&format!("remote/0123456789abcdef/{name}")).unwrap()
    }

    fn version(text: &str) -> BlobVersion {
        BlobVersion(text.to_owned())
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let (mut by_use, one) = (ByUse::new(), version("1"));
        for name in ["a", "b", "c"] {
            assert_eq!(by_use.insert(&key(name), &one, name), None);
        }
        assert_eq!(by_use.used(&key("a"), &one), Some(&"a"));
        assert_eq!(by_use.insert(&key("b"), &one, "again"), Some("b"));
        let order = std::iter::from_fn(|| by_use.take_least_recent());
        assert_eq!(order.collect::<Vec<_>>(), ["c", "a", "again"]);
    }

    #[test]
    fn one_version_of_a_key_is_held() {
        let mut by_use = ByUse::new();
        by_use.insert(&key("a"), &version("1"), 1);
        assert_eq!(by_use.used(&key("a"), &version("2")), None);
        assert_eq!(by_use.insert(&key("a"), &version("2"), 2), Some(1));
        assert_eq!(by_use.used(&key("a"), &version("1")), None);
        assert_eq!(by_use.get(&key("a")), Some((&version("2"), &2)));
        assert_eq!(by_use.take(&key("a")), Some(2));
        assert_eq!(by_use.get(&key("a")), None);
        assert_eq!(by_use.take_least_recent(), None);
    }
}
