//! Sweeps: blobs without a row go, once they are old enough not to be on their way to one, and
//! so do rows whose blob is gone, which would only be found out by the next client.
//!
//! Replicas that share a store take turns; a sweep that two of them do at once removes nothing
//! that one alone would not. What a sweep never touches: local repositories, whose blobs
//! nobody could fetch again; what belongs to no remote that is configured, because a name that
//! is missing from remotes.yaml for a while may be a local repository's; and a store whose
//! index has no row at all, because then the index is what is missing. Scratch files need no
//! sweep: whoever drops one removes it, and the next start removes what a crash left.
//!
//! Folders of hosts, into which batches by URL write, are told from those of remotes by the
//! `base_url` and `mirrors` that are configured. A host's folder may also be that of a local
//! repository which went by that name once, so only what says of itself that it is a
//! configured remote's goes from there.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use super::Cache;
use super::turn::Turn;
use crate::artifact::BlobKey;
use crate::chain::chain;
use crate::config::{Kind, Remotes};
use crate::index::{IndexError, Row, Scan};

/// Orphans that one sweep removes; the next one takes the rest.
const ORPHANS_PER_SWEEP_MAX: usize = 10_000;
/// Rows without a blob that one sweep forgets; each is looked at on its own.
const ROWS_PER_SWEEP_MAX: usize = 1000;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs without a row.
    pub blobs: usize,
    /// Rows without a blob.
    pub rows: usize,
    /// Blobs without a row that stay: of a local repository, or of no remote that is configured.
    pub left: usize,
}

/// What becomes of an old blob without a row.
enum Fate {
    /// A configured upstream has it as well.
    Goes,
    /// It is of a local repository, or nobody knows whose it is.
    Left,
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
        // An index that takes no rows does not know what was published since.
        self.ports().index.probe().map_err(|error| chain(&error))?;
        let now = self.ports().clock.now();
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|old| old >= age);
        let mut meant = self.meant_blobs(&mut turn).map_err(|error| chain(&error))?;
        let remotes = self.space().plan().remotes;
        let hosts = hosts_of(&remotes);
        let (mut orphans, mut left) = (Vec::new(), 0);
        let (mut is_whole, mut is_empty) = (true, true);
        let listing = self.ports().blobs.each(&mut |meta| {
            is_empty = false;
            // What was published since the rows were read is young, and so not looked at.
            if let Some(met) = meant.get_mut(&fingerprint(&meta.key)) {
                *met = true;
            } else if is_old(meta.published_at) {
                match self.fate_of(&meta.key, &remotes, &hosts) {
                    Fate::Goes => orphans.push(meta.key),
                    Fate::Left => left += 1,
                }
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
        let mut removed = 0;
        for key in &orphans {
            if !turn.goes_on() {
                break;
            }
            // The listing took its time: what a fetch published under the key since is young.
            let there = self.ports().blobs.stat(key).map_err(|error| chain(&error))?;
            if there.is_some_and(|meta| is_old(meta.published_at)) {
                self.ports().blobs.remove(key).map_err(|error| chain(&error))?;
                self.counters().orphans_removed.inc();
                removed += 1;
            }
        }
        // A listing that broke off tells nothing of what it did not come to, and a store that
        // holds nothing at all is what is missing itself.
        let rows = match is_whole && !is_empty {
            true => self.forget_rows_without_blob(&meant, &is_old).map_err(|e| chain(&*e))?,
            false => 0,
        };
        Ok(Swept { blobs: removed, rows, left })
    }

    fn fate_of(&self, key: &BlobKey, remotes: &Remotes, hosts: &HashSet<String>) -> Fate {
        let folder = key.parts().0;
        let named = folder.parse().ok().and_then(|name| remotes.by_name.get(&name));
        match named {
            // Nobody could fetch it again: it may have been copied here, and want its row.
            Some(remote) if remote.is_local() || remote.is_offline() => Fate::Left,
            Some(_) => Fate::Goes,
            None if hosts.contains(folder) && self.is_fetched(key) => Fate::Goes,
            None => Fate::Left,
        }
    }

    /// Whether a blob says of itself that it was fetched for a remote that is configured.
    fn is_fetched(&self, key: &BlobKey) -> bool {
        let about = match self.ports().blobs.stat(key) {
            Ok(meta) => meta.and_then(|meta| meta.about),
            Err(error) => {
                tracing::debug!(blob = %key, error = chain(&error), "a sweep leaves a blob that it cannot look at");
                None
            }
        };
        about.is_some_and(|about| self.space().plan().has_cached(&about.artifact.remote))
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
        let plan = self.space().plan();
        let mut rows = Vec::new();
        self.ports().index.scan(&Scan::default(), &mut |row| {
            let is_unmet = meant.get(&fingerprint(&row.entry.blob)) == Some(&false);
            let is_fetched = plan.has_cached(&row.key.remote);
            if is_unmet && is_fetched && is_old(row.entry.stored_at) {
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

/// The folders of the hosts that batches by URL may fetch from.
fn hosts_of(remotes: &Remotes) -> HashSet<String> {
    let mut hosts = HashSet::new();
    for remote in remotes.by_name.values() {
        let Kind::Remote(origin) = &remote.kind else { continue };
        let keys = origin.bases.iter().filter_map(|base| BlobKey::of_url(base.as_str()));
        hosts.extend(keys.map(|key| key.parts().0.to_owned()));
    }
    hosts
}

/// Two keys with one fingerprint only make an orphan stay.
fn fingerprint(key: &BlobKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
