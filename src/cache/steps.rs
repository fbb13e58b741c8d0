//! Keeping rows and blobs of local repositories in step.
//!
//! A miss heals a row whose blob is not there by forgetting it. A local repository has no
//! upstream to ask again, so its rows are never forgotten for that. Where a blob is another
//! version than its row means, there are two stories:
//!
//! - An upload published it and crashed before it wrote its row. Then the blob says of itself,
//!   by version and digest, that it is this artifact: the row is made to fit, if the content is
//!   the same or may be replaced.
//! - Anything else: a disk that lies, a script that wrote into the folder, an operator's hand.
//!   Nobody uploaded these bytes under this name, so they are served to nobody. It is an error
//!   until somebody uploads the file again or deletes it, and so is a blob that is missing.

use super::prove::hash_blob;
use super::upload::ChangeError;
use super::{Cache, CacheError, Loss, OpenError, Target};
use crate::artifact::{ArtifactKey, Entry};
use crate::blob::{BlobError, BlobMeta, BlobStore};
use crate::chain::chain;
use crate::index::Put;

/// What lies under the key of a row of a local repository.
#[derive(Debug)]
pub(super) enum Standing {
    /// What this entry, which is in the index, means.
    Fits(Entry),
    /// Nothing, or bytes that nobody uploaded.
    Lost(Loss),
}

impl Cache {
    /// Holds a row against what lies under its key, and writes the row that fits to the index
    /// if it is another one: where content may be replaced, an upload may have ended before it
    /// wrote its row. The name must be held.
    pub(super) fn in_step(
        &self,
        target: &Target,
        key: &ArtifactKey,
        entry: Entry,
    ) -> Result<Standing, ChangeError> {
        let found = self.ports.blobs.stat(&entry.blob).map_err(ChangeError::Store)?;
        let Some(meta) = found else {
            return Ok(lost(key, &entry, Loss::Missing));
        };
        if meta.version == entry.version {
            return Ok(Standing::Fits(entry));
        }
        let says = meta.about.as_ref().map(|about| about.digest);
        if !target.remote.allow_overwrite && says != Some(entry.digest) {
            return Ok(lost(key, &entry, Loss::Altered));
        }
        let published = as_published(&*self.ports.blobs, key, &meta).map_err(ChangeError::Store)?;
        let Some(published) = published else {
            return Ok(lost(key, &entry, Loss::Altered));
        };
        tracing::warn!(artifact = %key, "an upload ended before it wrote its row: writing it");
        let now = self.ports.clock.now();
        let adopted = Entry { stored_at: now, validated_at: now, ..published };
        match self.ports.index.put(key, &adopted, Some(entry.generation)) {
            Ok(Put::Stored(generation)) => Ok(Standing::Fits(Entry { generation, ..adopted })),
            Ok(Put::Superseded(Some(newer))) => Ok(Standing::Fits(newer)),
            // Another replica has removed the name.
            Ok(Put::Superseded(None)) => Ok(Standing::Lost(Loss::Missing)),
            Err(error) => Err(ChangeError::Index(error)),
        }
    }

    /// After an entry of a local repository could not be opened: [`OpenError::Gone`] if
    /// finding it again may help. Waits for a change of the name that is under way.
    pub(super) fn mend(
        &self,
        target: &Target,
        key: &ArtifactKey,
        entry: &Entry,
        why: BlobError,
    ) -> OpenError {
        let Some(_hold) = self.hold(key) else { return OpenError::Store(why) };
        let current = match self.ports.index.get(key) {
            Ok(Some(current)) if current.generation == entry.generation => current,
            Ok(_) => return OpenError::Gone,
            Err(error) => {
                self.counters.index_errors.inc();
                tracing::warn!(artifact = %key, error = chain(&error), "cannot look at a row again");
                return OpenError::Store(why);
            }
        };
        match self.in_step(target, key, current) {
            Ok(Standing::Fits(fitting)) if fitting.generation != entry.generation => {
                self.counters.healed.inc();
                OpenError::Gone
            }
            Ok(Standing::Fits(_)) => OpenError::Store(why),
            Ok(Standing::Lost(loss)) => OpenError::Lost(loss),
            Err(error) => {
                tracing::warn!(artifact = %key, error = chain(&error), "cannot mend a row");
                OpenError::Store(why)
            }
        }
    }

    /// An entry of a local repository that is about to be hashed: the one that fits its blob.
    pub(super) fn provable(
        &self,
        target: &Target,
        key: &ArtifactKey,
        entry: Entry,
    ) -> Result<Entry, CacheError> {
        let failed = |error: &dyn std::error::Error| CacheError::Store(chain(error));
        let blobs = &self.ports.blobs;
        if blobs.holds(&entry.blob, &entry.version).map_err(|error| failed(&error))? {
            return Ok(entry);
        }
        let _hold = self.hold(key).ok_or_else(|| failed(&ChangeError::Busy))?;
        let current = self.ports.index.get(key).map_err(|error| failed(&error))?;
        let current = current.ok_or(CacheError::Absent)?;
        match self.in_step(target, key, current).map_err(|error| failed(&error))? {
            Standing::Fits(fitting) => Ok(fitting),
            Standing::Lost(loss) => Err(CacheError::Lost(loss)),
        }
    }
}

/// The entry of a blob that says it is this artifact, if its bytes are what it says. A file can be
/// written to without another time, so they are hashed.
///
/// # Errors
/// The store's.
pub(super) fn as_published(
    blobs: &dyn BlobStore,
    key: &ArtifactKey,
    meta: &BlobMeta,
) -> Result<Option<Entry>, BlobError> {
    let Some(described) = meta.entry_of(key) else { return Ok(None) };
    let digest = hash_blob(blobs, &described)?;
    Ok((digest == described.digest).then_some(described))
}

fn lost(key: &ArtifactKey, entry: &Entry, loss: Loss) -> Standing {
    let what = match loss {
        Loss::Missing => {
            "the stored bytes of a local repository are missing: bring them back, upload the file again, or DELETE it; `artifactapi verify` finds all such files"
        }
        Loss::Altered => {
            "the stored bytes of a local repository are not those that were uploaded, and are not served: upload the file again (other content with allow_overwrite), or DELETE it; `artifactapi verify` finds all such files"
        }
    };
    tracing::error!(artifact = %key, blob = %entry.blob, sha256 = %entry.digest, "{what}");
    Standing::Lost(loss)
}
