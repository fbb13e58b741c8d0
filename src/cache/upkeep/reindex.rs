//! Rebuilding the rows from what the blobs say about themselves.
//!
//! 1. The rows are read: for each, a fingerprint of the blob and version that it means.
//! 2. The store is listed. A listed version that a row means is right and costs no further
//!    look. Of the others, each is asked what it is, and recorded.
//! 3. Rows whose version was not in the listing are looked at one by one, and go if it is gone.
//!
//! A rebuilt row says less than the lost one: when it was last confirmed, which head a member
//! belongs to and how often it was used are not known to the blob. So it counts as confirmed
//! when it was stored, and an index file is revalidated before it is served.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

use super::{Finding, UNREADABLE_MAX, UpkeepError, Watch, What, Work};
use crate::artifact::{ArtifactKey, BlobKey, BlobVersion, Entry};
use crate::blob::BlobMeta;
use crate::cache::Ports;
use crate::chain::chain;
use crate::index::{Put, Scan};

/// How to rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reindex {
    /// Whether to write at all.
    pub writes: Writes,
    /// What the store promises.
    pub trust: Trust,
}

/// Whether to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Rows are written and removed.
    Rows,
    /// Everything stays as it is: what would be written is found and counted.
    Nothing,
}

/// What the store promises of a blob that it shows. Bytes are not hashed by a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// What was published is kept, whatever happens to a machine.
    Durable,
    /// A crash of the machine may have taken bytes, and what knew of it was the index: rebuilt
    /// rows are unproven, so that bytes are hashed before they are first served.
    UntilCrash,
}

/// What a rebuild did, or would have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reindexed {
    /// Blobs in the store, and their bytes.
    pub blobs: Work,
    /// Blobs that had their right row.
    pub right: u64,
    /// Rows that were written.
    pub recorded: u64,
    /// Rows that were removed.
    pub removed: u64,
    /// Blobs that do not say what they are.
    pub unknown: u64,
    /// Blobs of artifacts that have a later one.
    pub spare: u64,
    /// Rows that a server wrote or removed first: they are left as they are.
    pub overtaken: u64,
    /// What could not be judged.
    pub unreadable: u64,
}

impl Reindexed {
    /// Whether everything was judged: nothing was out of reach, and every blob said what it is.
    pub fn is_complete(&self) -> bool {
        self.unreadable == 0 && self.unknown == 0
    }
}

/// Rebuilds the index from the store. May be repeated, and broken off at any point.
///
/// It holds 8 bytes and a little for each row that was there before.
///
/// # Errors
/// [`UpkeepError`]; what was written by then is right.
pub fn reindex(
    ports: &Ports,
    how: Reindex,
    watch: &mut dyn Watch,
) -> Result<Reindexed, UpkeepError> {
    watch.began(listed(ports)?);
    let mut run = Run { ports, how, watch, meant: meant(ports)?, done: Reindexed::default() };
    let listing = ports.blobs.each(&mut |meta| run.look_at(&meta));
    listing.map_err(UpkeepError::Blobs)?;
    run.give_up_if_failing()?;
    if !run.meant.is_empty() {
        let scan =
            ports.index.scan(&Scan::default(), &mut |row| run.look_again(&row.key, &row.entry));
        scan.map_err(UpkeepError::Index)?;
        run.give_up_if_failing()?;
    }
    Ok(run.done)
}

struct Run<'a> {
    ports: &'a Ports,
    how: Reindex,
    watch: &'a mut dyn Watch,
    /// Fingerprints of what rows mean and the listing has not shown yet.
    meant: HashSet<u64>,
    done: Reindexed,
}

impl Run<'_> {
    fn look_at(&mut self, meta: &BlobMeta) -> ControlFlow<()> {
        if self.meant.remove(&fingerprint(&meta.key, &meta.version)) {
            self.done.right += 1;
        } else {
            self.try_to(None, &meta.key, |run| run.record(&meta.key));
        }
        let work = Work { files: 1, bytes: meta.size };
        self.done.blobs.files += work.files;
        self.done.blobs.bytes += work.bytes;
        self.watch.advanced(work);
        self.go_on()
    }

    fn look_again(&mut self, key: &ArtifactKey, row: &Entry) -> ControlFlow<()> {
        if self.meant.remove(&fingerprint(&row.blob, &row.version)) {
            self.try_to(Some(key), &row.blob, |run| run.forget_if_gone(key, row));
        }
        self.go_on()
    }

    /// Writes the row of a blob, from what it says about itself.
    fn record(&mut self, blob: &BlobKey) -> Result<(), String> {
        let stat = self.ports.blobs.stat(blob).map_err(|error| chain(&error))?;
        // It went meanwhile.
        let Some(meta) = stat else { return Ok(()) };
        let Some(artifact) = meta.about.as_ref().map(|about| about.artifact.clone()) else {
            self.done.unknown += 1;
            self.found(What::Unknown, None, blob, false);
            return Ok(());
        };
        let described = meta.entry_of(&artifact).expect("it is asked as the artifact that it is");
        let entry = Entry { unproven: self.how.trust == Trust::UntilCrash, ..described };
        let stored = self.ports.index.get(&artifact).map_err(|error| chain(&error))?;
        if let Some(row) = &stored {
            let is_same_blob = row.blob == *blob;
            if is_same_blob && row.version == meta.version {
                // Written since the rows were read.
                self.done.right += 1;
                return Ok(());
            }
            if !is_same_blob && row.stored_at >= entry.stored_at && self.is_there(row)? {
                self.done.spare += 1;
                self.found(What::Spare, Some(&artifact), blob, false);
                return Ok(());
            }
            self.meant.remove(&fingerprint(&row.blob, &row.version));
        }
        if self.how.writes == Writes::Rows {
            let replaces = stored.map(|row| row.generation);
            match self
                .ports
                .index
                .put(&artifact, &entry, replaces)
                .map_err(|error| chain(&error))?
            {
                Put::Stored(_) => {}
                Put::Superseded(_) => {
                    self.done.overtaken += 1;
                    return Ok(());
                }
            }
        }
        self.done.recorded += 1;
        self.found(What::Unrecorded, Some(&artifact), blob, self.how.writes == Writes::Rows);
        Ok(())
    }

    fn forget_if_gone(&mut self, key: &ArtifactKey, row: &Entry) -> Result<(), String> {
        let stat = self.ports.blobs.stat(&row.blob).map_err(|error| chain(&error))?;
        match stat {
            // It came after the listing had passed its place.
            Some(meta) if meta.version == row.version => return Ok(()),
            Some(meta) if meta.about.as_ref().is_some_and(|about| about.artifact == *key) => {
                return self.record(&row.blob);
            }
            _ => {}
        }
        if self.how.writes == Writes::Rows {
            let removed = self.ports.index.remove(key, row.generation);
            if !removed.map_err(|error| chain(&error))? {
                self.done.overtaken += 1;
                return Ok(());
            }
        }
        self.done.removed += 1;
        self.found(What::Dangling, Some(key), &row.blob, self.how.writes == Writes::Rows);
        Ok(())
    }

    /// Whether the version that a row means is there.
    fn is_there(&self, row: &Entry) -> Result<bool, String> {
        let stat = self.ports.blobs.stat(&row.blob).map_err(|error| chain(&error))?;
        Ok(stat.is_some_and(|meta| meta.version == row.version))
    }

    fn try_to(
        &mut self,
        artifact: Option<&ArtifactKey>,
        blob: &BlobKey,
        step: impl FnOnce(&mut Self) -> Result<(), String>,
    ) {
        if let Err(why) = step(self) {
            self.done.unreadable += 1;
            self.watch.found(&Finding {
                what: What::Unreadable,
                artifact: artifact.cloned(),
                blob: blob.clone(),
                why: Some(why),
                is_mended: false,
            });
        }
    }

    fn found(
        &mut self,
        what: What,
        artifact: Option<&ArtifactKey>,
        blob: &BlobKey,
        is_mended: bool,
    ) {
        let (artifact, blob) = (artifact.cloned(), blob.clone());
        self.watch.found(&Finding { what, artifact, blob, why: None, is_mended });
    }

    fn go_on(&self) -> ControlFlow<()> {
        match self.done.unreadable < UNREADABLE_MAX {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    fn give_up_if_failing(&self) -> Result<(), UpkeepError> {
        match self.go_on() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(UpkeepError::Unreadable),
        }
    }
}

/// Everything in the store. The listing that follows may show a little more or less.
fn listed(ports: &Ports) -> Result<Work, UpkeepError> {
    let mut work = Work::default();
    let listing = ports.blobs.each(&mut |meta| {
        work.files += 1;
        work.bytes += meta.size;
        ControlFlow::Continue(())
    });
    listing.map_err(UpkeepError::Blobs)?;
    Ok(work)
}

fn meant(ports: &Ports) -> Result<HashSet<u64>, UpkeepError> {
    let mut meant = HashSet::new();
    let scan = ports.index.scan(&Scan::default(), &mut |row| {
        meant.insert(fingerprint(&row.entry.blob, &row.entry.version));
        ControlFlow::Continue(())
    });
    scan.map_err(UpkeepError::Index)?;
    Ok(meant)
}

/// Two that have one fingerprint cost no more than a blob that stays without a row, or a row
/// that heals at its next request.
fn fingerprint(key: &BlobKey, version: &BlobVersion) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, version).hash(&mut hasher);
    hasher.finish()
}
