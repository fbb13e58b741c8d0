//! The index: which artifacts are stored, and what is known of them.
//!
//! [`ArtifactIndex`] is the port. A row is written only once its blob is published, and
//! removed before its blob is. Writers name the generation that they read, so that of two
//! that race one wins whole and the other learns of it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::time::SystemTime;

use crate::artifact::{ArtifactKey, Entry, RemoteName};

pub mod bridge;
#[cfg(test)]
pub mod conformance;
pub mod embedded;
#[cfg(test)]
pub mod memory;
mod micros;
mod paging;
pub mod postgres;

/// Rows by artifact.
pub trait ArtifactIndex: Debug + Send + Sync {
    /// The row of an artifact.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer.
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError>;

    /// The row of an artifact as the index itself has it, never what stands in for it while it is
    /// away: for what must not be decided without it.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer.
    fn recorded(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        self.get(key)
    }

    /// Writes a row, if the one it `replaces` (a generation that was read; `None` for "there
    /// was none") is still the one that stands there. `entry.generation` is ignored: the
    /// stored row's is given back, and no row of the artifact had it before. Times are kept to
    /// the microsecond; the row's uses stay.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer; the row is then the old or the new one.
    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError>;

    /// Removes a row if it still has this generation; says whether it did.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer.
    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError>;

    /// Returns once no loss of power can take back the changes of a row that were answered
    /// before the call. For uploads, which exist nowhere else. An index whose answers mean
    /// that already keeps this default.
    ///
    /// # Errors
    /// [`IndexError`]; the changes may then be lost with the machine's power.
    fn persist(&self, _key: &ArtifactKey) -> Result<(), IndexError> {
        Ok(())
    }

    /// Shows rows in the byte order of their remotes and paths until `visit` breaks off.
    /// `visit` may call the index. Rows that come or go meanwhile may be shown or not.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer.
    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError>;

    /// Adds up uses, recorded in batches and off the path of a hit. Artifacts without a row
    /// are passed over.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer; some may have been added.
    fn touch(&self, uses: &[Use]) -> Result<(), IndexError>;

    /// What the rows of each remote take up, exact at some moment of the call. Remotes without
    /// rows are left out.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer.
    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError>;

    /// Shows the rows of a remote, the least recent first ([`Row::recency`], then the byte
    /// order of paths), until `visit` breaks off. `visit` may call the index. Rows that come,
    /// go or are used meanwhile may be shown or not.
    ///
    /// # Errors
    /// [`IndexError`] where the index can't answer.
    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError>;

    /// Whether it answers at all.
    ///
    /// # Errors
    /// [`IndexError`] where it does not.
    fn probe(&self) -> Result<(), IndexError>;
}

/// The answer to a [`ArtifactIndex::put`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// Written; the row's new generation.
    Stored(u64),
    /// Another writer was first: its row, or `None` if it removed the row.
    Superseded(Option<Entry>),
}

/// Which rows to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Of this remote only.
    pub remote: Option<RemoteName>,
    /// Whose path begins with this.
    pub prefix: String,
    /// Whose path comes behind this one, in byte order; for the next page.
    pub after: Option<String>,
}

/// A row as a scan shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Which artifact.
    pub key: ArtifactKey,
    /// What is known of it.
    pub entry: Entry,
    /// When it was last served, coarsely; when it was stored, if never.
    pub last_used: SystemTime,
    /// How often it was served from the store, about.
    pub hits: u64,
}

impl Row {
    /// When the artifact was last stored or served, whichever was later: a file that is stored
    /// anew for each request counts as used, though it is never served from the store.
    pub fn recency(&self) -> SystemTime {
        self.last_used.max(self.entry.stored_at)
    }
}

/// Which rows to show in the order of their last use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeastUsed {
    /// Of this remote.
    pub remote: RemoteName,
    /// Behind this position; from the least recent row on, if there is none.
    pub behind: Option<Position>,
}

/// A place in the order of the last use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// [`Row::recency`].
    pub recency: SystemTime,
    /// The path, which orders rows of one moment.
    pub path: String,
}

/// What the rows of a remote take up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Rows.
    pub artifacts: u64,
    /// The sum of their artifacts' lengths, in bytes. A sum that no index can hold stops at
    /// the largest that it can.
    pub bytes: u64,
    /// The sum of their uses, likewise.
    pub hits: u64,
}

/// Uses of one artifact since the last batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Which artifact.
    pub key: ArtifactKey,
    /// How many times.
    pub hits: u64,
    /// The last of them.
    pub last: SystemTime,
}

/// Why the index did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It can't answer now.
    #[error("the index cannot {operation}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row can't be understood.
    #[error("the index row of {key} is damaged: {reason}")]
    Corrupt {
        /// Which artifact.
        key: String,
        /// What gave it away.
        reason: String,
    },
}
