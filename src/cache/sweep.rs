//! Sweeps: blobs without a row go, once they are old enough not to be on their way to one.
//!
//! Replicas that share a store take turns; a sweep that two of them do at once removes nothing
//! that one alone would not. What a sweep never touches: local repositories, whose blobs
//! nobody could fetch again, and a store whose index has no row at all, because then the
//! index is what is missing. Scratch files need no sweep: whoever drops one removes it, and the
//! next start removes what a crash left.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use super::Cache;
use super::turn::Turn;
use crate::artifact::BlobKey;
use crate::blob::BlobMeta;
use crate::chain::chain;
use crate::config::Kind;
use crate::index::{IndexError, Scan};

/// A blob without a row is left alone until it is this old: a publish and the row that follows
/// it lie closer together than that.
pub const ORPHAN_AGE: Duration = Duration::from_secs(3600);
/// Orphans that one sweep removes; the next one takes the rest.
const ORPHANS_PER_SWEEP_MAX: usize = 10_000;

impl Cache {
    /// Removes blobs that no row means, and says how many; none while another replica does. It
    /// holds 8 bytes and a little for each row meanwhile.
    ///
    /// # Errors
    /// What kept the store or the index from answering, as text; the sweep ends there.
    pub fn sweep_orphans(&self) -> Result<usize, String> {
        let Some(mut turn) = Turn::take(&self.ports().leases, "sweep") else { return Ok(0) };
        let now = self.ports().clock.now();
        let meant = self.meant_blobs(&mut turn).map_err(|error| chain(&error))?;
        let remotes = self.space().plan().remotes;
        let is_local = |key: &BlobKey| {
            let remote = key.parts().0.parse().ok().and_then(|name| remotes.by_name.get(&name));
            remote.is_some_and(|remote| matches!(remote.kind, Kind::Local))
        };
        let mut orphans = Vec::new();
        let listing = self.ports().blobs.each(&mut |meta| {
            // What was published since the rows were read is young, and so not looked at.
            let is_meant = meant.contains(&fingerprint(&meta.key));
            if !is_meant && is_old(&meta, now) && !is_local(&meta.key) {
                orphans.push(meta.key);
            }
            match orphans.len() < ORPHANS_PER_SWEEP_MAX && turn.goes_on() {
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
        Ok(orphans.len())
    }

    fn meant_blobs(&self, turn: &mut Turn) -> Result<HashSet<u64>, IndexError> {
        let mut meant = HashSet::new();
        self.ports().index.scan(&Scan::default(), &mut |row| {
            meant.insert(fingerprint(&row.entry.blob));
            // A turn that is lost here shows at the listing, before anything is removed.
            turn.goes_on();
            ControlFlow::Continue(())
        })?;
        Ok(meant)
    }
}

/// Two keys with one fingerprint only make an orphan stay.
fn fingerprint(key: &BlobKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn is_old(meta: &BlobMeta, now: SystemTime) -> bool {
    now.duration_since(meta.published_at).is_ok_and(|age| age >= ORPHAN_AGE)
}
