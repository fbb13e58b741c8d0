//! Why there is nothing to serve, split by what the caller does about it.

use std::sync::Arc;
use std::time::Duration;

use crate::blob::BlobError;
use crate::staging::{SealError, StagingError};
use crate::upstream::UpstreamError;

/// Why there is nothing to serve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    /// There is no such artifact.
    #[error("there is no such artifact")]
    Absent,
    /// It is a folder, which has another path.
    #[error("it is a folder: ask for its path with a '/' at its end")]
    Folder,
    /// It is not stored, and upstream must not be asked.
    #[error("the artifact is not cached and the remote is offline")]
    Offline,
    /// Fetching it failed.
    #[error(transparent)]
    Fetch(Arc<FetchError>),
    /// The store can't answer, and there is no upstream to ask.
    #[error("the store does not answer: {0}")]
    Store(String),
    /// It was uploaded, and its bytes are not there any more.
    #[error(transparent)]
    Lost(Loss),
    /// It kept changing while this request tried to open it.
    #[error("the artifact kept changing while it was opened")]
    Unsettled,
}

/// What became of the bytes of an upload. Asking again does not help: somebody has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Nothing lies under its key.
    #[error(
        "the stored bytes of this file are missing: it has to be uploaded again, or brought back into the store"
    )]
    Missing,
    /// Others do.
    #[error(
        "the stored bytes of this file are not those that were uploaded: it has to be uploaded again"
    )]
    Altered,
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Upstream gave nothing.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The body broke off after so many bytes.
    #[error("upstream's body broke off after {written} bytes: {reason}")]
    Cut {
        /// How many bytes came.
        written: u64,
        /// What ended it.
        reason: String,
        /// Whether it was a silence that ended it.
        is_timeout: bool,
    },
    /// It could not be staged.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// It came, but it is not what it should be.
    #[error("upstream's body is wrong: {0}")]
    Sealing(#[from] SealError),
    /// Too many fetches wait already.
    #[error("too many fetches are waiting")]
    Overloaded,
    /// Upstream's answer did not begin in time.
    #[error("upstream's answer did not begin within {0:?}")]
    Late(Duration),
    /// What is stored can't be read to be proven, and there is no upstream to ask for it.
    #[error("the stored bytes cannot be vouched for: {0}")]
    Unproven(String),
    /// What was uploaded is damaged.
    #[error(transparent)]
    Lost(Loss),
    /// What was fetched is damaged, and upstream must not be asked for it.
    #[error(
        "the stored bytes of this file are damaged, and its remote is offline: it can be fetched again once that is over, or brought back into the store"
    )]
    Damaged,
    /// The fetch ended without saying how.
    #[error("the fetch was abandoned")]
    Abandoned,
}

/// Why a found artifact can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is gone or was replaced meanwhile; it was forgotten: find it again.
    #[error("the artifact is not there any more")]
    Gone,
    /// It was uploaded, and its bytes are not there any more.
    #[error(transparent)]
    Lost(Loss),
    /// The store can't answer: only upstream can help.
    #[error(transparent)]
    Store(BlobError),
    /// The fetch failed before a byte of it came.
    #[error(transparent)]
    Fetch(Arc<FetchError>),
}

impl FetchError {
    /// Whether a stored copy may stand in: upstream failed, rather than meaning its answer.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_failure(),
            Self::Cut { .. } | Self::Sealing(_) | Self::Overloaded | Self::Late(_) => true,
            Self::Staging(_) | Self::Unproven(_) | Self::Abandoned => true,
            Self::Lost(_) | Self::Damaged => true,
        }
    }
}
