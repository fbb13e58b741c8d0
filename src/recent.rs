//! What was used last, kept in memory: a few values by their keys.
//!
//! For copies of what is kept elsewhere. Whoever changes the original says so with
//! [`Recent::forget`], after the change; whoever reads the original draws a [`Ticket`] before,
//! and can keep what was read only if nothing was forgotten meanwhile. So a copy is never older
//! than the last change.
//!
//! What is read once in a long while is not worth a place, nor the work of giving it one
//! ([`Recent::keep_if_again`]): a walk through many keys drives out nothing that is in use.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks among which keys are spread, so that threads seldom meet.
const SHARDS: usize = 8;
/// Keys for each value's place whose last reading is remembered.
const SEEN_PER_PLACE: usize = 2;

/// Values by their keys; the least recently used make room for others.
#[derive(Debug)]
pub struct Recent<K, V> {
    hasher: RandomState,
    shards: [Mutex<Shard<K, V>>; SHARDS],
    shard_max: usize,
}

#[derive(Debug)]
struct Shard<K, V> {
    // The most recently used first. So few that looking at each is quicker than a map; in
    // boxes, so that they are moved quickly.
    kept: Vec<Box<Kept<K, V>>>,
    // Hashes of keys that were read and not kept, in a ring.
    seen: Vec<u64>,
    seen_next: usize,
    // How often something was forgotten.
    forgotten: u64,
}

impl<K: Eq, V> Shard<K, V> {
    fn remove(&mut self, hash: u64, key: &K) -> Option<Box<Kept<K, V>>> {
        let at = self.kept.iter().position(|kept| kept.hash == hash && kept.key == *key)?;
        Some(self.kept.remove(at))
    }
}

#[derive(Debug)]
struct Kept<K, V> {
    hash: u64,
    key: K,
    value: V,
}

/// The right to keep what is read from now on.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    /// Keeps about `max` values: a few less where keys are spread unevenly.
    pub fn new(max: usize) -> Self {
        let shard_max = max.div_ceil(SHARDS).max(1);
        let shard = |_| {
            let seen = vec![0; shard_max * SEEN_PER_PLACE];
            Mutex::new(Shard { kept: Vec::new(), seen, seen_next: 0, forgotten: 0 })
        };
        let shards = std::array::from_fn(shard);
        Self { hasher: RandomState::new(), shards, shard_max }
    }

    /// The value that is kept for a key.
    pub fn get(&self, key: &K) -> Option<V> {
        let (hash, mut shard) = self.shard(key);
        let at = shard.kept.iter().position(|kept| kept.hash == hash && kept.key == *key)?;
        shard.kept[..=at].rotate_right(1);
        Some(shard.kept[0].value.clone())
    }

    /// A ticket to keep what is read of a key after this call.
    pub fn ticket(&self, key: &K) -> Ticket {
        Ticket(self.shard(key).1.forgotten)
    }

    /// Keeps what was read, unless something was forgotten since the ticket was drawn.
    pub fn keep(&self, ticket: Ticket, key: &K, value: V) {
        let (hash, shard) = self.shard(key);
        self.keep_in(shard, hash, ticket, key, || value);
    }

    /// Like [`Recent::keep`], if the key was read before, not long ago.
    pub fn keep_if_again(&self, ticket: Ticket, key: &K, value: impl FnOnce() -> V) {
        let (hash, mut shard) = self.shard(key);
        if shard.seen.contains(&hash) {
            return self.keep_in(shard, hash, ticket, key, value);
        }
        let next = shard.seen_next;
        shard.seen[next] = hash;
        shard.seen_next = (next + 1) % shard.seen.len();
    }

    fn keep_in(
        &self,
        mut shard: MutexGuard<'_, Shard<K, V>>,
        hash: u64,
        ticket: Ticket,
        key: &K,
        value: impl FnOnce() -> V,
    ) {
        if shard.forgotten != ticket.0 {
            // Otherwise the value, a later argument, would go first.
            return drop(shard);
        }
        let replaced = shard.remove(hash, key);
        let least = if shard.kept.len() < self.shard_max { None } else { shard.kept.pop() };
        shard.kept.insert(0, Box::new(Kept { hash, key: key.clone(), value: value() }));
        drop(shard);
        drop((replaced, least));
    }

    /// Forgets what is kept of a key, because the original was changed.
    pub fn forget(&self, key: &K) {
        let (hash, mut shard) = self.shard(key);
        shard.forgotten += 1;
        let removed = shard.remove(hash, key);
        drop(shard);
        drop(removed);
    }

    /// Forgets everything.
    pub fn forget_all(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.forgotten += 1;
            let removed = std::mem::take(&mut shard.kept);
            drop(shard);
            drop(removed);
        }
    }

    fn shard(&self, key: &K) -> (u64, MutexGuard<'_, Shard<K, V>>) {
        let hash = self.hasher.hash_one(key);
        (hash, lock(&self.shards[hash as usize % SHARDS]))
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    // Guards single steps; nothing else is taken under it. A value may be an open file, which
    // takes its time to close: what is removed is dropped behind the lock.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn keep(recent: &Recent<u32, &'static str>, key: u32, value: &'static str) {
        recent.keep(recent.ticket(&key), &key, value);
    }

    #[test]
    fn the_last_value_is_kept_until_it_is_forgotten() {
        let recent = Recent::new(64);
        assert_eq!(recent.get(&1), None);
        keep(&recent, 1, "one");
        keep(&recent, 2, "two");
        keep(&recent, 1, "uno");
        assert_eq!((recent.get(&1), recent.get(&2)), (Some("uno"), Some("two")));
        recent.forget(&1);
        assert_eq!((recent.get(&1), recent.get(&2)), (None, Some("two")));
        recent.forget_all();
        assert_eq!(recent.get(&2), None);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let recent = Recent::new(64);
        let before = recent.ticket(&1);
        recent.forget(&1);
        recent.keep(before, &1, "old");
        assert_eq!(recent.get(&1), None);
        let before = recent.ticket(&1);
        recent.forget_all();
        recent.keep(before, &1, "old");
        assert_eq!(recent.get(&1), None);
    }

    #[test]
    fn what_is_read_again_is_kept_and_a_walk_drives_nothing_out() {
        let recent = Recent::new(2 * SHARDS);
        let read = |key: u32| {
            if recent.get(&key).is_none() {
                recent.keep_if_again(recent.ticket(&key), &key, || "value");
            }
        };
        read(0);
        assert_eq!(recent.get(&0), None);
        read(0);
        assert_eq!(recent.get(&0), Some("value"));
        (1..1000).for_each(read);
        assert_eq!(recent.get(&0), Some("value"));
        recent.forget(&0);
        read(0);
        assert_eq!(recent.get(&0), None, "it was not read lately");
    }

    #[test]
    fn what_is_removed_is_dropped_behind_the_lock() {
        /// Notes whether any lock was held when it was dropped.
        #[derive(Clone)]
        struct Noting(Arc<Recent<u32, Noting>>, Arc<AtomicBool>);
        impl Drop for Noting {
            fn drop(&mut self) {
                if self.0.shards.iter().any(|shard| shard.try_lock().is_err()) {
                    self.1.store(true, Ordering::SeqCst);
                }
            }
        }
        let (recent, was_locked) = (Arc::new(Recent::new(1)), Arc::default());
        let value = || Noting(Arc::clone(&recent), Arc::clone(&was_locked));
        let check = |what: &str| assert!(!was_locked.load(Ordering::SeqCst), "{what}");
        // Each shard has one place.
        for key in 0..100 {
            recent.keep(recent.ticket(&key), &key, value());
        }
        check("it made room");
        recent.keep(recent.ticket(&99), &99, value());
        check("it was replaced");
        let before = recent.ticket(&99);
        recent.forget(&99);
        check("it was forgotten");
        recent.keep(before, &99, value());
        check("it came too late");
        recent.forget_all();
        check("all was forgotten");
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let recent = Recent::new(2 * SHARDS);
        (0..1000).for_each(|key| {
            keep(&recent, key, "value");
            // Used again and again, so it stays.
            assert!(key == 0 || recent.get(&0).is_some(), "{key}");
        });
        let kept = (0..1000).filter(|key| recent.get(key).is_some()).count();
        assert!((SHARDS..=2 * SHARDS).contains(&kept), "{kept}");
    }
}
