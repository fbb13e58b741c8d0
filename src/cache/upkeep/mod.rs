//! Upkeep that an operator asks for: [`reindex()`] rebuilds the rows from the store,
//! [`verify()`] proves the store by the rows.
//!
//! Both work over the ports, whatever stands behind them, and hold no more in memory than a
//! little for each row ([`reindex()`]) or for each thread ([`verify()`]). Where replicas share
//! a store and an index they may serve meanwhile: whatever is written names the generation or
//! the version that was judged, so that what a replica stored since is left alone.
//!
//! Deliberately not here: what is shown of it. A [`Watch`] is told as it happens.

use crate::artifact::{ArtifactKey, BlobKey};
use crate::blob::BlobError;
use crate::index::IndexError;

mod reindex;
#[cfg(test)]
pub(super) mod tests;
mod verify;

pub use reindex::{Reindex, Reindexed, Trust, Writes, reindex};
pub use verify::{Repair, Verified, Verify, verify};

/// Files that could not be judged, before a run gives up: the store or the index is away.
pub const UNREADABLE_MAX: u64 = 100;

/// An amount of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Who is told how a run goes.
pub trait Watch {
    /// What there is to do, as far as it can be known; once, at the beginning.
    fn began(&mut self, expected: Work);
    /// So much more was done.
    fn advanced(&mut self, done: Work);
    /// Something was found.
    fn found(&mut self, finding: &Finding);
}

/// What was found, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: What,
    /// Of which artifact, if that is known.
    pub artifact: Option<ArtifactKey>,
    /// Where the bytes are, or should be.
    pub blob: BlobKey,
    /// What gave it away, where there is more to say.
    pub why: Option<String>,
    /// Whether the index, and the store where need be, were put right.
    pub is_mended: bool,
}

/// What can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// A blob that had no right row.
    Unrecorded,
    /// A row whose blob is gone, or that means a version which is.
    Dangling,
    /// A blob without a row that does not say what it is: the sweep of a server removes it.
    Unknown,
    /// A blob of an artifact whose row means another, later one: the sweep removes it.
    Spare,
    /// A row whose blob is not there.
    Missing,
    /// A row whose blob was replaced or written to.
    Changed,
    /// A blob whose bytes are not those that were stored.
    Damaged,
    /// What could not be judged, because the store or the index did not answer.
    Unreadable,
}

impl What {
    /// The word for it, as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unrecorded => "unrecorded",
            Self::Dangling => "dangling",
            Self::Unknown => "unknown",
            Self::Spare => "spare",
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Why a run broke off.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The store can't be listed.
    #[error("cannot list the stored blobs")]
    Blobs(#[source] BlobError),
    /// The index can't be read.
    #[error("cannot read the index")]
    Index(#[source] IndexError),
    /// No thread can be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// Too much could not be judged.
    #[error("gave up after {UNREADABLE_MAX} files that could not be judged")]
    Unreadable,
}
