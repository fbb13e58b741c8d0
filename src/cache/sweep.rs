//! Sweeps: blobs without a row go, once they are old enough not to be on their way to one.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use super::Cache;
use crate::artifact::BlobKey;
use crate::blob::BlobMeta;
use crate::chain::chain;
use crate::index::{IndexError, Scan};

/// A blob without a row is left alone until it is this old: a publish and the row that follows
/// it lie closer together than that.
pub const ORPHAN_AGE: Duration = Duration::from_secs(3600);
/// Orphans that one sweep removes; the next one takes the rest.
const ORPHANS_PER_SWEEP_MAX: usize = 10_000;

impl Cache {
    /// Removes blobs that no row means, and says how many. It holds 8 bytes and a little for
    /// each row meanwhile.
    ///
    /// # Errors
    /// What kept the store or the index from answering, as text; the sweep ends there.
    pub fn sweep_orphans(&self) -> Result<usize, String> {
        let now = self.ports().clock.now();
        let meant = self.meant_blobs().map_err(|error| chain(&error))?;
        let mut orphans = Vec::new();
        let listing = self.ports().blobs.each(&mut |meta| {
            // What was published since the rows were read is young, and so not looked at.
            if is_old(&meta, now) && !meant.contains(&fingerprint(&meta.key)) {
                orphans.push(meta.key);
            }
            match orphans.len() < ORPHANS_PER_SWEEP_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        listing.map_err(|error| chain(&error))?;
        for key in &orphans {
            self.ports().blobs.remove(key).map_err(|error| chain(&error))?;
            self.counters().orphans_removed.inc();
        }
        Ok(orphans.len())
    }

    fn meant_blobs(&self) -> Result<HashSet<u64>, IndexError> {
        let mut meant = HashSet::new();
        self.ports().index.scan(&Scan::default(), &mut |row| {
            meant.insert(fingerprint(&row.entry.blob));
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
