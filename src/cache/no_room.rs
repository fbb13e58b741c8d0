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
