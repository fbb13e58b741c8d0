//! Keeping rows and blobs of local repositories in step.
//!
//! A miss heals a row whose blob is not there by forgetting it. A local repository has no
//! upstream to ask again, so its rows are never forgotten for that: a blob that was replaced
//! (by an upload that crashed before it wrote its row, or by an operator's hand) is hashed
//! and its row made to fit; a blob that is missing is an error until somebody brings it back,
//! uploads it again or deletes it.

use super::fetch::hash_blob;
use super::upload::ChangeError;
use super::{Cache, CacheError, OpenError};
use crate::artifact::{ArtifactKey, Entry};
use crate::blob::BlobError;
use crate::chain::chain;
use crate::index::Put;

impl Cache {
    /// The entry that fits what lies under its key, written to the index if it is another one;
    /// `None` where nothing lies there. The name must be held.
    pub(super) fn in_step(
        &self,
        key: &ArtifactKey,
        entry: Entry,
    ) -> Result<Option<Entry>, ChangeError> {
        let found = self.ports.blobs.stat(&entry.blob).map_err(ChangeError::Store)?;
        let Some(meta) = found else {
            tracing::error!(artifact = %key, "the stored bytes of a local repository are missing");
            return Ok(None);
        };
        if meta.version == entry.version {
            return Ok(Some(entry));
        }
        tracing::warn!(artifact = %key, "the stored bytes were replaced without their row: hashing them");
        let found = Entry { version: meta.version, size: meta.size, ..entry };
        let digest = hash_blob(&*self.ports.blobs, &found).map_err(ChangeError::Store)?;
        let now = self.ports.clock.now();
        let about = meta.about.filter(|about| about.artifact == *key);
        let adopted = Entry {
            digest,
            content_type: about.as_ref().map_or(found.content_type, |a| a.content_type.clone()),
            content_encoding: about
                .as_ref()
                .map_or(found.content_encoding, |a| a.content_encoding.clone()),
            validators: about.map(|about| about.validators).unwrap_or_default(),
            stored_at: now,
            validated_at: now,
            unproven: false,
            ..found
        };
        match self.ports.index.put(key, &adopted, Some(adopted.generation)) {
            Ok(Put::Stored(generation)) => Ok(Some(Entry { generation, ..adopted })),
            Ok(Put::Superseded(newer)) => Ok(newer),
            Err(error) => Err(ChangeError::Index(error)),
        }
    }

    /// After an entry of a local repository could not be opened: [`OpenError::Gone`] if
    /// finding it again may help. Waits for a change of the name that is under way.
    pub(super) fn mend(&self, key: &ArtifactKey, entry: &Entry, why: BlobError) -> OpenError {
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
        match self.in_step(key, current) {
            Ok(Some(fitting)) if fitting.generation != entry.generation => {
                self.counters.healed.inc();
                OpenError::Gone
            }
            Ok(_) => OpenError::Store(why),
            Err(error) => {
                tracing::warn!(artifact = %key, error = chain(&error), "cannot mend a row");
                OpenError::Store(why)
            }
        }
    }

    /// An entry of a local repository that is about to be hashed: the one that fits its blob.
    pub(super) fn provable(&self, key: &ArtifactKey, entry: Entry) -> Result<Entry, CacheError> {
        let failed = |error: &dyn std::error::Error| CacheError::Store(chain(error));
        let found = self.ports.blobs.stat(&entry.blob).map_err(|error| failed(&error))?;
        if found.is_some_and(|meta| meta.version == entry.version) {
            return Ok(entry);
        }
        let _hold = self.hold(key).ok_or_else(|| failed(&ChangeError::Busy))?;
        let current = self.ports.index.get(key).map_err(|error| failed(&error))?;
        let current = current.ok_or(CacheError::Absent)?;
        let blob = current.blob.clone();
        let fitting = self.in_step(key, current).map_err(|error| failed(&error))?;
        fitting.ok_or_else(|| failed(&BlobError::Missing(blob)))
    }
}
