//! When artifacts were used: gathered in memory, written in batches, off the path of a hit.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;

use crate::artifact::ArtifactKey;
use crate::chain::chain;
use crate::index::{ArtifactIndex, Use};

/// Artifacts that are remembered between two batches; the uses of more are dropped, which makes
/// their last use look older than it is.
const ARTIFACTS_MAX: usize = 20_000;

/// Uses since the last batch.
#[derive(Debug, Default)]
pub(super) struct Uses {
    // Guards the map; nothing else is taken while it is held.
    since: Mutex<HashMap<ArtifactKey, (u64, SystemTime)>>,
}

impl Uses {
    /// Remembers one use.
    pub(super) fn record(&self, key: &ArtifactKey, now: SystemTime, dropped: &Counter) {
        let mut since = self.since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        let since = self.since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        since.contains_key(key)
    }

    /// Writes what was gathered; what the index does not take is lost, with a line in the log.
    pub(super) fn flush(&self, index: &dyn ArtifactIndex) {
        let since = std::mem::take(
            &mut *self.since.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        if since.is_empty() {
            return;
        }
        let uses: Vec<Use> =
            since.into_iter().map(|(key, (hits, last))| Use { key, hits, last }).collect();
        if let Err(error) = index.touch(&uses) {
            tracing::warn!(error = chain(&error), uses = uses.len(), "uses were not recorded");
        }
    }
}
