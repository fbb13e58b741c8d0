//! Uploads to local repositories: stage, seal, publish, record, and durable when answered.
//!
//! The body is staged without holding anything, at the client's speed; a slow client holds up
//! nobody. The name is held only from the look at its row to the new row (`claims` says how).
//! What a local repository has exists nowhere else, so nothing here forgets a row because
//! its blob can't be had at the moment, as misses do.

use std::io::{ErrorKind, Read};
use std::time::SystemTime;

use super::claims::Hold;
use super::found::client_validators;
use super::purge::Left;
use super::steps::Standing;
use super::{Cache, Loss, Target};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Digest, Entry, Validators};
use crate::blob::{About, BlobError};
use crate::chain::chain;
use crate::index::{IndexError, Put};
use crate::staging::{Expect, SealError, SealedFile, StagingError};

/// Bytes that are read from a client at a time.
const READ_BYTES: usize = 128 << 10;
/// How often a row that changed meanwhile is looked at again.
const PUTS_MAX: usize = 4;

/// Why a name was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// More bytes than may be stored.
    #[error("an upload may have {bytes_max} bytes")]
    TooLarge {
        /// The bound.
        bytes_max: u64,
    },
    /// The store could not keep beside the bytes what they are.
    #[error(
        "the path, Content-Type and Content-Encoding are too long together for the store to keep them beside the file: use a shorter path"
    )]
    Indescribable,
    /// The body did not come whole.
    #[error("the body broke off after {written} bytes: {reason}")]
    Body {
        /// How many bytes came.
        written: u64,
        /// What ended it.
        reason: String,
        /// What kind of end it was.
        kind: ErrorKind,
    },
    /// It could not be staged.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// It came, but it is not what the client said.
    #[error("the body is not what was announced")]
    Sealing(#[from] SealError),
    /// The name holds other content, which must not be replaced.
    #[error("the name has other content already, with the SHA-256 {0}")]
    Conflict(Digest),
    /// What the client expected of the name does not hold.
    #[error("the artifact is not as If-Match or If-None-Match demands")]
    Precondition,
    /// Another change of the name takes too long.
    #[error("another change of this name is under way")]
    Busy,
    /// The store did not do it.
    #[error("the artifact is not stored")]
    Store(#[source] BlobError),
    /// The index did not do it.
    #[error("the artifact is not recorded")]
    Index(#[source] IndexError),
}

/// Whether other content under the name is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replacing {
    Allowed,
    Refused,
}

/// What an upload meets under its name.
enum Look {
    /// The same content.
    Same(Entry),
    /// What it is to be stored over.
    Over {
        over: Over,
        /// The digest of what the name had.
        earlier: Option<Digest>,
        /// The row, removed already, of what the store says is missing.
        missing: Option<Entry>,
    },
}

/// What an upload is stored over: nothing, by default.
#[derive(Debug, Default)]
struct Over {
    /// The generation of the row.
    row: Option<u64>,
    /// What lies under the key.
    bytes: Option<BlobVersion>,
    /// Whether bytes that nobody knew of can only be what an upload left that ended before it wrote
    /// its row.
    may_clear: bool,
}

/// Whether a change may go on, given the validators of what stands there now, if anything does.
pub type Precondition<'a> = &'a dyn Fn(Option<&Validators>) -> bool;

/// What an upload says about its bytes.
pub struct Upload<'a> {
    /// Its `Content-Type`.
    pub content_type: Option<String>,
    /// Its `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Last-Modified` for clients, should the upload be stored.
    pub last_modified: String,
    /// The client's conditions.
    pub precondition: Precondition<'a>,
}

impl std::fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("content_type", &self.content_type).finish_non_exhaustive()
    }
}

/// What an upload did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uploaded {
    /// The name is new.
    Created(Entry),
    /// The name had other content.
    Replaced(Entry),
    /// The name had this content already.
    Same(Entry),
}

impl Cache {
    /// What stands under a name now, for conditions that can be judged before a body is read.
    ///
    /// # Errors
    /// [`ChangeError::Index`].
    pub fn current(
        &self,
        target: &Target,
        path: &ArtifactPath,
    ) -> Result<Option<Validators>, ChangeError> {
        let key = target.key(path.clone());
        let entry = self.ports.index.recorded(&key).map_err(ChangeError::Index)?;
        Ok(entry.map(|entry| client_validators(&entry.validators, Some(entry.digest))))
    }

    /// Refuses a name that a lost index would take away for good: one that the stored bytes
    /// could not be described with. To be asked before a body is read.
    ///
    /// # Errors
    /// [`ChangeError::Indescribable`].
    pub fn can_describe(
        &self,
        target: &Target,
        path: &ArtifactPath,
        upload: &Upload<'_>,
    ) -> Result<(), ChangeError> {
        let key = target.key(path.clone());
        // Every digest has the same length.
        let about = about(key, Digest([0; 32]), upload, self.ports.clock.now());
        if about.fits_everywhere() { Ok(()) } else { Err(ChangeError::Indescribable) }
    }

    /// Reads a body to its end into a scratch file.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing is left then.
    pub fn stage(
        &self,
        body: &mut dyn Read,
        expect: Expect,
        bytes_max: u64,
    ) -> Result<SealedFile, ChangeError> {
        if expect.len.is_some_and(|len| len > bytes_max) {
            return Err(ChangeError::TooLarge { bytes_max });
        }
        let mut staged = self.ports.staging.begin(expect)?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => return Ok(staged.seal()?),
                Ok(read) if staged.written() + read as u64 > bytes_max => {
                    return Err(ChangeError::TooLarge { bytes_max });
                }
                Ok(read) => staged.append(&mut buffer, read)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                    return Err(ChangeError::TooLarge { bytes_max: staged.written() });
                }
                Err(error) => {
                    let (written, kind) = (staged.written(), error.kind());
                    return Err(ChangeError::Body { written, reason: error.to_string(), kind });
                }
            }
        }
    }

    /// Stores a staged upload under a name of a local repository. When this returns, no crash
    /// and no loss of power takes it away.
    ///
    /// # Errors
    /// [`ChangeError`]; what stood there before still does, or, where store or index failed
    /// half-way, the new content may, or neither.
    pub fn upload(
        &self,
        target: &Target,
        path: &ArtifactPath,
        sealed: &SealedFile,
        upload: Upload<'_>,
    ) -> Result<Uploaded, ChangeError> {
        let key = target.key(path.clone());
        let replacing =
            if target.remote.allow_overwrite { Replacing::Allowed } else { Replacing::Refused };
        let hold = self.hold(&key).ok_or(ChangeError::Busy)?;
        let stored = self.ports.index.recorded(&key).map_err(ChangeError::Index)?;
        let validators =
            stored.as_ref().map(|entry| client_validators(&entry.validators, Some(entry.digest)));
        if !(upload.precondition)(validators.as_ref()) {
            return Err(ChangeError::Precondition);
        }
        let looked = self.look(target, &key, stored, sealed.digest(), replacing)?;
        let (over, earlier, missing) = match looked {
            Look::Same(entry) => return Ok(Uploaded::Same(entry)),
            Look::Over { over, earlier, missing } => (over, earlier, missing),
        };
        let published = self.publish(&hold, &key, (sealed, &upload), over, replacing);
        let entry = match (published, missing) {
            (Err(why), Some(entry)) if self.may_be_there(&entry) => {
                return Err(self.restored(&key, &entry, why, replacing));
            }
            (published, _) => published?,
        };
        Ok(match earlier {
            Some(earlier) if earlier == entry.digest => Uploaded::Same(entry),
            Some(_) => Uploaded::Replaced(entry),
            None => Uploaded::Created(entry),
        })
    }

    /// Looks what an upload of this digest meets under its name, whose row is given.
    fn look(
        &self,
        target: &Target,
        key: &ArtifactKey,
        stored: Option<Entry>,
        digest: Digest,
        replacing: Replacing,
    ) -> Result<Look, ChangeError> {
        let Some(stored) = stored else {
            let over = Over { may_clear: true, ..Over::default() };
            return Ok(Look::Over { over, earlier: None, missing: None });
        };
        // The name still means what was uploaded, also where the bytes were altered since.
        let (entry, is_altered) = match self.in_step(target, key, stored.clone())? {
            Standing::Fits(entry) => (entry, false),
            Standing::Lost(Loss::Altered) => (stored, true),
            Standing::Lost(Loss::Missing) => return self.over_missing(key, stored, digest),
        };
        if entry.digest != digest && replacing == Replacing::Refused {
            return Err(ChangeError::Conflict(entry.digest));
        }
        if entry.digest == digest && !is_altered && !entry.unproven {
            // It may have been stored by an upload whose answer was never sent.
            self.ports.blobs.persist(&entry.blob).map_err(ChangeError::Store)?;
            self.ports.index.persist(key).map_err(ChangeError::Index)?;
            return Ok(Look::Same(entry));
        }
        // Of altered bytes the row does not tell the version.
        let bytes = match is_altered || entry.unproven {
            true => self.version_of(&entry)?,
            false => Some(entry.version),
        };
        let over = Over { row: Some(entry.generation), bytes, may_clear: false };
        Ok(Look::Over { over, earlier: Some(entry.digest), missing: None })
    }

    /// A row whose blob is missing holds nothing that could be kept or replaced.
    fn over_missing(
        &self,
        key: &ArtifactKey,
        stored: Entry,
        digest: Digest,
    ) -> Result<Look, ChangeError> {
        if stored.digest == digest {
            let over = Over { row: Some(stored.generation), ..Over::default() };
            return Ok(Look::Over { over, earlier: None, missing: None });
        }
        // Row first: beside other bytes it would say that these are not what was uploaded.
        match self.ports.index.remove(key, stored.generation).map_err(ChangeError::Index)? {
            true => Ok(Look::Over { over: Over::default(), earlier: None, missing: Some(stored) }),
            false => Err(ChangeError::Busy),
        }
    }

    fn publish(
        &self,
        hold: &Hold<'_>,
        key: &ArtifactKey,
        (sealed, upload): (&SealedFile, &Upload<'_>),
        over: Over,
        replacing: Replacing,
    ) -> Result<Entry, ChangeError> {
        let about = about(key.clone(), sealed.digest(), upload, self.ports.clock.now());
        let mut replaces = over.row;
        let version = self.publish_bytes(hold, key, sealed, &about, over)?;
        let mut entry = about.clone().entry(BlobKey::of(key), version, sealed.len());
        for _ in 0..PUTS_MAX {
            entry = self.record_upload(key, entry, replaces, replacing)?;
            self.ports.index.persist(key).map_err(ChangeError::Index)?;
            if hold.is_sole() || self.is_under_its_key(&entry)? {
                return Ok(entry);
            }
            // Another replica published over these bytes in the same moment. Whose row stands there
            // has won, and sees to it that its bytes do too.
            let row = self.ports.index.recorded(key).map_err(ChangeError::Index)?;
            if row.is_none_or(|row| row.generation != entry.generation) {
                return Err(self.overtaken(key, entry.digest)?);
            }
            replaces = Some(entry.generation);
            let bytes = self.version_of(&entry)?;
            let over = Over { row: replaces, bytes, ..Over::default() };
            entry.version = self.publish_bytes(hold, key, sealed, &about, over)?;
        }
        Err(ChangeError::Busy)
    }

    /// Publishes the bytes of an upload, and sees to it that no loss of power takes them away.
    fn publish_bytes(
        &self,
        hold: &Hold<'_>,
        key: &ArtifactKey,
        sealed: &SealedFile,
        about: &About,
        over: Over,
    ) -> Result<BlobVersion, ChangeError> {
        let (blobs, blob) = (&self.ports.blobs, BlobKey::of(key));
        let published = hold.during(|| {
            let version = match blobs.publish_over(&blob, over.bytes.as_ref(), sealed, about) {
                Err(BlobError::Changed(_)) if over.may_clear && self.is_left_removed(key, hold) => {
                    blobs.publish_over(&blob, None, sealed, about)?
                }
                published => published?,
            };
            let persisted = blobs.persist(&blob);
            if let Err(BlobError::Unsynced { .. }) = persisted {
                self.give_up(&blob, &version);
            }
            persisted.map(|()| version)
        });
        match published {
            Ok(version) => Ok(version),
            Err(BlobError::Changed(_)) => Err(self.overtaken(key, sealed.digest())?),
            // What a failed publish may have left stays: a removal could be done late, and take away
            // what somebody stores there meanwhile.
            Err(error) => Err(ChangeError::Store(error)),
        }
    }

    /// Removes what could not be brought to the disk. The kernel tells once of what it could not
    /// write: an upload that found these bytes here, and synced them again, would prove nothing.
    fn give_up(&self, blob: &BlobKey, version: &BlobVersion) {
        if let Err(error) = self.ports.blobs.remove_version(blob, version) {
            tracing::warn!(%blob, error = chain(&error), "cannot remove what may not have reached the disk");
        }
    }

    /// Whether the store may have after all what it said was missing.
    fn may_be_there(&self, entry: &Entry) -> bool {
        self.is_under_its_key(entry).unwrap_or(true)
    }

    /// Writes the row again of what was thought to be missing; gives what to answer to whom it was
    /// in the way.
    fn restored(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        why: ChangeError,
        replacing: Replacing,
    ) -> ChangeError {
        let index = &self.ports.index;
        let written = index.put(key, entry, None).and_then(|put| index.persist(key).map(|()| put));
        match written {
            Ok(Put::Stored(_))
                if replacing == Replacing::Refused && matches!(why, ChangeError::Busy) =>
            {
                ChangeError::Conflict(entry.digest)
            }
            Ok(_) => why,
            Err(error) => {
                tracing::error!(artifact = %key, error = chain(&error), "the row of a file that may be there after all is lost: `artifactapi reindex` brings it back");
                why
            }
        }
    }

    /// What to answer where another replica was quicker.
    fn overtaken(&self, key: &ArtifactKey, digest: Digest) -> Result<ChangeError, ChangeError> {
        let winner = self.ports.index.recorded(key).map_err(ChangeError::Index)?;
        Ok(match winner.filter(|winner| winner.digest != digest) {
            Some(winner) => ChangeError::Conflict(winner.digest),
            None => ChangeError::Busy,
        })
    }

    /// Writes the row of an upload that was just published.
    fn record_upload(
        &self,
        key: &ArtifactKey,
        entry: Entry,
        mut replaces: Option<u64>,
        replacing: Replacing,
    ) -> Result<Entry, ChangeError> {
        for _ in 0..PUTS_MAX {
            match self.ports.index.put(key, &entry, replaces).map_err(ChangeError::Index)? {
                Put::Stored(generation) => return Ok(Entry { generation, ..entry }),
                Put::Superseded(newer) => {
                    // Proving a row changes it too, and so does an upload at another replica. That
                    // one has won where content stays, or where its bytes lie under the key.
                    if let Some(newer) = &newer
                        && newer.digest != entry.digest
                        && (replacing == Replacing::Refused || !self.is_under_its_key(&entry)?)
                    {
                        return Err(ChangeError::Conflict(newer.digest));
                    }
                    replaces = newer.map(|newer| newer.generation);
                }
            }
        }
        Err(ChangeError::Busy)
    }

    fn is_under_its_key(&self, entry: &Entry) -> Result<bool, ChangeError> {
        self.ports.blobs.holds(&entry.blob, &entry.version).map_err(ChangeError::Store)
    }

    /// What lies under an entry's key.
    fn version_of(&self, entry: &Entry) -> Result<Option<BlobVersion>, ChangeError> {
        let found = self.ports.blobs.stat(&entry.blob).map_err(ChangeError::Store)?;
        Ok(found.map(|meta| meta.version))
    }

    /// Removes what lies there without a row, if nobody else can have put it there meanwhile; says
    /// whether it did. What stays is no obstacle to the next upload.
    fn is_left_removed(&self, key: &ArtifactKey, hold: &Hold<'_>) -> bool {
        let left = self.remove_left(key, hold, &|_| true).unwrap_or_else(|error| {
            tracing::warn!(artifact = %key, error = chain(&error), "a blob that was not recorded stays in the store");
            Left::Anothers
        });
        left == Left::Removed
    }
}

fn about(
    artifact: ArtifactKey,
    digest: Digest,
    upload: &Upload<'_>,
    stored_at: SystemTime,
) -> About {
    About {
        artifact,
        digest,
        content_type: upload.content_type.clone(),
        content_encoding: upload.content_encoding.clone(),
        validators: Validators { etag: None, last_modified: Some(upload.last_modified.clone()) },
        stored_at,
    }
}

#[cfg(test)]
mod tests;
