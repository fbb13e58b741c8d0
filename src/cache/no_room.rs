//! Artifacts that found no room when their body had begun already.
//!
//! Who read along was cut. Nobody knows how long such a body is, so the next fetch would most
//! likely break off as well: who asks again soon is passed through from the beginning.

use std::time::{Duration, SystemTime};

use crate::artifact::ArtifactKey;
use crate::recent::Recent;

/// How long it is remembered: room may come back.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// How many are remembered; of others, a client is cut once more.
const REMEMBERED_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct NoRoom {
    since: Recent<ArtifactKey, SystemTime>,
}

impl NoRoom {
    pub(super) fn new() -> Self {
        Self { since: Recent::new(REMEMBERED_MAX) }
    }

    pub(super) fn remember(&self, key: &ArtifactKey, now: SystemTime) {
        self.since.keep(self.since.ticket(key), key, now);
    }

    /// Whether it found none lately. A clock that was set back forgets it.
    pub(super) fn was_met_by(&self, key: &ArtifactKey, now: SystemTime) -> bool {
        let since = self.since.get(key);
        since.is_some_and(|since| now.duration_since(since).is_ok_and(|ago| ago < REMEMBERED_FOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::ArtifactPath;

    #[test]
    fn it_is_remembered_for_a_minute_and_not_before_it_happened() {
        let key = |path| {
            let path = ArtifactPath::from_canonical(path).unwrap();
            ArtifactKey { remote: "r".parse().unwrap(), path }
        };
        let (no_room, now) = (NoRoom::new(), SystemTime::now());
        let second = Duration::from_secs(1);
        no_room.remember(&key("a"), now);
        let was_met = |path, at| no_room.was_met_by(&key(path), at);
        assert!(was_met("a", now) && was_met("a", now + 59 * second));
        assert!(!was_met("a", now + 60 * second), "room may have come back");
        assert!(!was_met("a", now - second), "the clock was set back");
        assert!(!was_met("b", now));
        no_room.remember(&key("a"), now + 60 * second);
        assert!(was_met("a", now + 61 * second));
    }
}
