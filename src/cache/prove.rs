//! Hashing stored copies: those that a crash may have hurt, before they are served.
//!
//! What upstream has is fetched again if it is damaged. Where nobody may be asked (of a local
//! repository, and offline), a copy that can't be proven keeps its row and is not served.

use super::fetch::{Fetcher, Task};
use super::{FetchError, Loss};
use crate::artifact::{ArtifactKey, Digest, Entry};
use crate::blob::{BlobError, BlobStore};
use crate::body::Piece;
use crate::chain::chain;
use crate::config::{Kind, Remote};
use crate::index::Put;

/// What is left of a task once its stored copy has been looked at.
pub(super) enum Prepared {
    /// Nothing: the copy is right.
    Proven(Entry),
    /// Nothing: the copy is not right, and there is nobody to ask for another.
    Unproven(FetchError),
    /// To ask upstream, with the copy that is there. One that could not be proven is to be fetched
    /// anew.
    Ask(Option<Entry>),
}

impl Fetcher {
    /// Hashes a stored copy that a crash may have hurt, whatever the task is. One that can't be
    /// proven is kept where there is nobody to ask for another.
    pub(super) fn prepare(
        &self,
        key: &ArtifactKey,
        task: Task,
        remote: &Remote,
        has_upstream: bool,
    ) -> Prepared {
        let wants_proof_only = matches!(task, Task::Prove(_));
        match task {
            Task::Fetch => Prepared::Ask(None),
            Task::Revalidate(entry) | Task::Prove(entry) if entry.unproven => {
                match hash_blob(&*self.ports.blobs, &entry) {
                    Ok(digest) if digest == entry.digest => match self.proven(key, entry) {
                        Some(proven) if wants_proof_only => Prepared::Proven(proven),
                        proven => Prepared::Ask(proven),
                    },
                    // It may be readable again.
                    Err(error) if has_upstream && !error.is_gone() => {
                        let why = chain(&error);
                        tracing::warn!(artifact = %key, error = why, "a stored file cannot be read to be proven whole; fetching it");
                        Prepared::Ask(Some(entry))
                    }
                    hashed if has_upstream => {
                        self.forget(key, &entry, hashed.err());
                        Prepared::Ask(None)
                    }
                    hashed => Prepared::Unproven(unproven(key, remote, hashed.err())),
                }
            }
            Task::Revalidate(entry) => Prepared::Ask(Some(entry)),
            Task::Prove(entry) => Prepared::Proven(entry),
        }
    }

    /// Records that the blob of an entry is whole; gives what stands in the index now.
    fn proven(&self, key: &ArtifactKey, entry: Entry) -> Option<Entry> {
        let generation = entry.generation;
        let proven = Entry { unproven: false, ..entry };
        match self.ports.index.put(key, &proven, Some(generation)) {
            Ok(Put::Stored(generation)) => Some(Entry { generation, ..proven }),
            Ok(Put::Superseded(newer)) => newer,
            Err(error) => {
                self.index_failed(key, &error, "cannot record that a blob is whole");
                Some(proven)
            }
        }
    }

    /// `why` is none where the blob could be read and has another digest.
    fn forget(&self, key: &ArtifactKey, entry: &Entry, why: Option<BlobError>) {
        let why = why.map(|error| chain(&error));
        tracing::warn!(artifact = %key, error = why, "a crash damaged a blob; fetching it again");
        self.counters.healed.inc();
        if let Err(error) = self.ports.index.remove(key, entry.generation) {
            self.index_failed(key, &error, "cannot forget a damaged blob");
        }
    }
}

/// Why a copy is not served that has another digest, or could not be read, and that nobody can be
/// asked for.
fn unproven(key: &ArtifactKey, remote: &Remote, why: Option<BlobError>) -> FetchError {
    if let Some(error) = why {
        let why = chain(&error);
        tracing::error!(artifact = %key, error = why, "a stored file cannot be read to be proven whole");
        return FetchError::Unproven(why);
    }
    match remote.kind {
        Kind::Local => {
            tracing::error!(
                artifact = %key,
                "a crash damaged an uploaded file: upload it again, or DELETE it"
            );
            FetchError::Lost(Loss::Altered)
        }
        Kind::Remote(_) => {
            tracing::error!(artifact = %key, "a crash damaged a file of an offline remote");
            FetchError::Damaged
        }
    }
}

/// The digest of the bytes that an entry means.
pub(super) fn hash_blob(blobs: &dyn BlobStore, entry: &Entry) -> Result<Digest, BlobError> {
    let unreadable =
        |source| BlobError::Unavailable { operation: "hash", key: entry.blob.to_string(), source };
    let mut body = blobs.open_current(&entry.blob, &entry.version, 0..entry.size)?;
    let mut hasher = Hashing::default();
    while let Some(piece) = body.next_piece().map_err(|error| unreadable(error.into()))? {
        hasher.add(&piece).map_err(|error| unreadable(error.into()))?;
    }
    Ok(hasher.digest())
}

/// SHA-256 over the pieces of a body.
#[derive(Default)]
pub(super) struct Hashing {
    sha256: sha2::Sha256,
    buffer: Vec<u8>,
}

impl Hashing {
    pub(super) fn add(&mut self, piece: &Piece<'_>) -> std::io::Result<()> {
        use sha2::Digest as _;
        piece.read_through(
            &mut self.buffer,
            |error| error,
            |bytes| {
                self.sha256.update(bytes);
                Ok(())
            },
        )
    }

    pub(super) fn digest(self) -> Digest {
        use sha2::Digest as _;
        Digest(self.sha256.finalize().into())
    }
}
