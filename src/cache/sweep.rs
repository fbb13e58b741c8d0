//! Sweeps: blobs without a row go, once they are old enough not to be on their way to one, and
//! so do rows whose blob is gone, which would only be found out by the next client.
//!
//! Replicas that share a store take turns; a sweep that two of them do at once removes nothing
//! that one alone would not. What a sweep never touches: local repositories, whose blobs
//! nobody could fetch again, and a store whose index has no row at all, because then the
//! index is what is missing. Scratch files need no sweep: whoever drops one removes it, and the
//! next start removes what a crash left.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use super::Cache;
use super::turn::Turn;
use crate::artifact::BlobKey;
use crate::chain::chain;
use crate::config::Kind;
use crate::index::{IndexError, Row, Scan};

/// Orphans that one sweep removes; the next one takes the rest.
const ORPHANS_PER_SWEEP_MAX: usize = 10_000;
/// Rows without a blob that one sweep forgets; each is looked at on its own.
const ROWS_PER_SWEEP_MAX: usize = 1000;

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs without a row.
    pub blobs: usize,
    /// Rows without a blob.
    pub rows: usize,
}

/// The blobs that rows mean, by fingerprint, and whether each was met in the store.
type Meant = HashMap<u64, bool>;

impl Cache {
    /// Removes blobs that no row means and rows that mean no blob, both if they are older than
    /// `age`, and says how many; none while another replica does. It holds 16 bytes and a
    /// little for each row meanwhile.
    ///
    /// A publish and the row that follows it must lie closer together than `age`.
    ///
    /// # Errors
    /// What kept the store or the index from answering, as text; the sweep ends there.
    pub fn sweep_orphans(&self, age: Duration) -> Result<Swept, String> {
        let Some(mut turn) = Turn::take(&self.ports().leases, "sweep") else {
            return Ok(Swept::default());
        };
        let now = self.ports().clock.now();
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|old| old >= age);
        let mut meant = self.meant_blobs(&mut turn).map_err(|error| chain(&error))?;
        let mut orphans = Vec::new();
        let (mut is_whole, mut is_empty) = (true, true);
        let listing = self.ports().blobs.each(&mut |meta| {
            is_empty = false;
            // What was published since the rows were read is young, and so not looked at.
            if let Some(met) = meant.get_mut(&fingerprint(&meta.key)) {
                *met = true;
            } else if is_old(meta.published_at) && !self.is_local(&meta.key) {
                orphans.push(meta.key);
            }
            is_whole = orphans.len() < ORPHANS_PER_SWEEP_MAX && turn.goes_on();
            match is_whole {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        listing.map_err(|error| chain(&error))?;
        if meant.is_empty() && !orphans.is_empty() {
            return Err("the index has no row, but the store has blobs: none is removed; `artifactapi reindex` makes rows of them".to_owned());
        }
        for key in &orphans {
            self.ports().blobs.remove(key).map_err(|error| chain(&error))?;
            self.counters().orphans_removed.inc();
        }
        // A listing that broke off tells nothing of what it did not come to, and a store that
        // holds nothing at all is what is missing itself.
        let rows = match is_whole && !is_empty {
            true => self.forget_rows_without_blob(&meant, &is_old).map_err(|e| chain(&*e))?,
            false => 0,
        };
        Ok(Swept { blobs: orphans.len(), rows })
    }

    fn is_local(&self, key: &BlobKey) -> bool {
        let remotes = self.space().plan().remotes;
        let remote = key.parts().0.parse().ok().and_then(|name| remotes.by_name.get(&name));
        remote.is_some_and(|remote| matches!(remote.kind, Kind::Local))
    }

    fn meant_blobs(&self, turn: &mut Turn) -> Result<Meant, IndexError> {
        let mut meant = Meant::new();
        self.ports().index.scan(&Scan::default(), &mut |row| {
            meant.insert(fingerprint(&row.entry.blob), false);
            // A turn that is lost here shows at the listing, before anything is removed.
            turn.goes_on();
            ControlFlow::Continue(())
        })?;
        Ok(meant)
    }

    fn forget_rows_without_blob(
        &self,
        meant: &Meant,
        is_old: &dyn Fn(SystemTime) -> bool,
    ) -> Result<usize, Box<dyn std::error::Error>> {
        if meant.values().all(|met| *met) {
            return Ok(0);
        }
        let mut rows = Vec::new();
        self.ports().index.scan(&Scan::default(), &mut |row| {
            let is_unmet = meant.get(&fingerprint(&row.entry.blob)) == Some(&false);
            if is_unmet && is_old(row.entry.stored_at) && !self.is_local(&row.entry.blob) {
                rows.push(row);
            }
            match rows.len() < ROWS_PER_SWEEP_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        let mut forgotten = 0;
        for Row { key, entry, .. } in rows {
            // It may have been published once more since the listing; then its row is another.
            if self.ports().blobs.stat(&entry.blob)?.is_none()
                && self.ports().index.remove(&key, entry.generation)?
            {
                self.counters().healed.inc();
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}

/// Two keys with one fingerprint only make an orphan stay.
fn fingerprint(key: &BlobKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
