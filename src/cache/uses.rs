//! When artifacts were used: gathered in memory, written in batches, off the path of a hit.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;

use crate::artifact::ArtifactKey;
use crate::chain::chain;
use crate::index::{ArtifactIndex, Use};

/// Artifacts that are remembered between two batches; the uses of more are dropped, which makes
/// their last use look older than it is.
const ARTIFACTS_MAX: usize = 20_000;

type Since = HashMap<ArtifactKey, (u64, SystemTime)>;

/// Uses since the last batch.
#[derive(Debug)]
pub(super) struct Uses {
    // Guards the map; nothing else is taken while it is held.
    since: Mutex<Since>,
    // The other map, empty between two batches. Taken before `since`, and held until the index has
    // the batch, so that batches follow each other. Both keep their memory, 2.4 MB each when full:
    // growing anew from batch to batch, in the heap of whichever thread comes by, a map leaves
    // holes in all of them.
    spare: Mutex<Since>,
}

impl Default for Uses {
    fn default() -> Self {
        let map = || Mutex::new(HashMap::with_capacity(ARTIFACTS_MAX));
        Self { since: map(), spare: map() }
    }
}

impl Uses {
    fn since(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers one use.
    pub(super) fn record(&self, key: &ArtifactKey, now: SystemTime, dropped: &Counter) {
        let mut since = self.since();
        if let Some((hits, last)) = since.get_mut(key) {
            (*hits, *last) = (*hits + 1, now);
        } else if since.len() < ARTIFACTS_MAX {
            since.insert(key.clone(), (1, now));
        } else {
            dropped.inc();
        }
    }

    /// Whether an artifact was used since the last batch.
    pub(super) fn has(&self, key: &ArtifactKey) -> bool {
        self.since().contains_key(key)
    }

    /// Writes what was gathered; what the index does not take is lost, with a line in the log.
    pub(super) fn flush(&self, index: &dyn ArtifactIndex) {
        let mut gathered = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut *self.since(), &mut *gathered);
        if gathered.is_empty() {
            return;
        }
        let mut uses: Vec<Use> =
            gathered.drain().map(|(key, (hits, last))| Use { key, hits, last }).collect();
        // Neighbours share pages of an index, which are written once then.
        uses.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        if let Err(error) = index.touch(&uses) {
            tracing::warn!(error = chain(&error), uses = uses.len(), "uses were not recorded");
        }
    }
}
