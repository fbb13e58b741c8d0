//! The store of bytes.
//!
//! [`BlobStore`] is the port. Beside it stand its backends; each passes the one suite in
//! `conformance`. A store knows keys, versions and bytes; it knows nothing of remotes, rows
//! or HTTP.

use std::fmt::Debug;
use std::ops::{ControlFlow, Range};
use std::time::SystemTime;

use crate::artifact::{ArtifactKey, BlobKey, BlobVersion, Digest, Entry, Validators};
use crate::body::Body;
use crate::staging::SealedFile;

mod about;
#[cfg(test)]
mod behind;
mod by_use;
#[cfg(test)]
pub mod conformance;
pub mod disk;
pub mod hot;
#[cfg(test)]
pub mod memory;
mod open_files;
pub mod s3;
mod seen;
pub mod small;
mod tier;

pub use tier::{TierCounters, Tiers};

/// A store of blobs under predictable keys, with versions.
pub trait BlobStore: Debug + Send + Sync {
    /// Puts the sealed bytes under `key`, replacing what was there at once: a reader gets the
    /// earlier bytes whole or these whole. May be repeated with the same arguments.
    ///
    /// # Errors
    /// [`BlobError`]; the key then holds what it held before, or these bytes.
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError>;

    /// As [`BlobStore::publish`], for uploads: only over what lies `there`, which is nothing or one
    /// version. A store that other replicas write to refuses where other bytes lie under the key,
    /// whenever they came before these; one that can't tell keeps this default.
    ///
    /// # Errors
    /// [`BlobError`]; [`BlobError::Changed`] where other bytes lie there.
    fn publish_over(
        &self,
        key: &BlobKey,
        _there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.publish(key, sealed, about)
    }

    /// Returns once no loss of power can take back what was published under `key` before the
    /// call. For uploads, which exist nowhere else; a cached artifact may be lost. A store
    /// whose `publish` answers only then keeps this default.
    ///
    /// # Errors
    /// [`BlobError`]; the blob may then be lost with the machine's power.
    fn persist(&self, _key: &BlobKey) -> Result<(), BlobError> {
        Ok(())
    }

    /// Opens a run of bytes of one version. The body yields exactly `range.end - range.start`
    /// bytes of that version or fails; whoever has opened a version keeps it to the end.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Changed`] where the key holds another version, or
    /// what kept the store from answering. A range past the blob's end is `Corrupt`.
    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError>;

    /// As [`BlobStore::open`], and never from a tier before the store: `Changed` where another
    /// replica has replaced the version or removed it. For what can be replaced.
    ///
    /// # Errors
    /// Those of [`BlobStore::open`].
    fn open_current(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        self.open(key, version, range)
    }

    /// What is under `key` now.
    ///
    /// # Errors
    /// [`BlobError`] where the store can't answer.
    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError>;

    /// Whether this version is under `key` now.
    ///
    /// # Errors
    /// Those of [`BlobStore::stat`].
    fn holds(&self, key: &BlobKey, version: &BlobVersion) -> Result<bool, BlobError> {
        Ok(self.stat(key)?.is_some_and(|found| found.version == *version))
    }

    /// Removes what is under `key`; success too where there is nothing.
    ///
    /// # Errors
    /// [`BlobError`] where the store can't answer.
    fn remove(&self, key: &BlobKey) -> Result<(), BlobError>;

    /// As [`BlobStore::remove`], of one version: where others write as well, another one that came
    /// meanwhile stays, if the store can tell them apart.
    ///
    /// # Errors
    /// [`BlobError`] where the store can't answer.
    fn remove_version(&self, key: &BlobKey, _version: &BlobVersion) -> Result<(), BlobError> {
        self.remove(key)
    }

    /// Shows every blob, in no order, until `visit` breaks off. `visit` may call the store.
    /// Blobs that come or go meanwhile may be shown or not.
    ///
    /// # Errors
    /// [`BlobError`] where the store can't answer.
    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError>;
}

/// What a stored object says about itself, so that the index can be rebuilt from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Which artifact the bytes are.
    pub artifact: ArtifactKey,
    /// Their digest.
    pub digest: Digest,
    /// Upstream's `Content-Type`.
    pub content_type: Option<String>,
    /// Upstream's `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// Upstream's validators.
    pub validators: Validators,
    /// When the bytes came from upstream.
    pub stored_at: SystemTime,
}

/// What a store knows of a blob without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobMeta {
    /// Its key.
    pub key: BlobKey,
    /// Its version now.
    pub version: BlobVersion,
    /// Its length in bytes.
    pub size: u64,
    /// When it was published.
    pub published_at: SystemTime,
    /// What it says about itself, where the store keeps that beside the bytes and the call
    /// asked for one blob; a listing may leave it out.
    pub about: Option<About>,
}

impl About {
    /// Whether every backend can keep all of it beside the bytes. Where one of them can't, it
    /// stores the bytes without; what is uploaded must not come to that, because a lost index
    /// would take its name away. The answer is the same whatever the backend is, so that a
    /// repository can move from one to the other.
    pub fn fits_everywhere(&self) -> bool {
        about::fits(self) && s3::about::fits(self)
    }

    /// The row of these bytes once they lie under `blob` as `version`: confirmed when they came,
    /// with no head, and not written yet.
    pub fn entry(self, blob: BlobKey, version: BlobVersion, size: u64) -> Entry {
        Entry {
            blob,
            version,
            size,
            digest: self.digest,
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            validators: self.validators,
            stored_at: self.stored_at,
            validated_at: self.stored_at,
            head: None,
            generation: 0,
            unproven: false,
        }
    }
}

impl BlobMeta {
    /// The entry that the blob says it is, for an index that lost or lacks it: confirmed when
    /// it came and not since. `None` where it does not describe itself, or as another artifact
    /// than `artifact`.
    pub fn entry_of(&self, artifact: &ArtifactKey) -> Option<Entry> {
        let about = self.about.clone().filter(|about| about.artifact == *artifact)?;
        Some(about.entry(self.key.clone(), self.version.clone(), self.size))
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Nothing is stored under the key.
    #[error("no blob {0}")]
    Missing(BlobKey),
    /// The key holds another version than the one asked for.
    #[error("blob {0} was replaced")]
    Changed(BlobKey),
    /// The bytes can't be those that were published.
    #[error("blob {key} is damaged: {reason}")]
    Corrupt {
        /// Which blob.
        key: BlobKey,
        /// What gave it away.
        reason: String,
    },
    /// There is no room for more.
    #[error("no space left to store blob {0}")]
    Full(BlobKey),
    /// What was published may not have reached the disk. The kernel says so once: another sync that
    /// succeeds proves nothing.
    #[error("blob {key} may not have reached the disk")]
    Unsynced {
        /// Which blob.
        key: BlobKey,
        /// What syncing it ended in.
        source: std::io::Error,
    },
    /// The store can't answer now.
    #[error("cannot {operation} blob {key}")]
    Unavailable {
        /// What was tried: "publish", "open", …
        operation: &'static str,
        /// Which blob, or what stands for all of them.
        key: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BlobError {
    /// Whether the entry that led here describes something that is not there any more, so
    /// that forgetting it and fetching again heals.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Changed(_) | Self::Corrupt { .. })
    }
}
