//! Purges: what an operator wants gone goes, row first and blob second.
//!
//! A fetch or an upload that is under way when a purge comes may store its bytes afterwards;
//! a purge is about what is stored. Whoever has opened a blob keeps it to the end.

use super::flight::Joined;
use super::found::client_validators;
use super::upload::{ChangeError, Precondition};
use super::{Cache, Reach, Target};
use crate::artifact::{ArtifactKey, ArtifactPath, Entry};
use crate::chain::chain;
use crate::coord::Mark;

/// How often a row that changes meanwhile is looked at again.
const ROUNDS_MAX: usize = 4;

/// What a purge found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purged {
    /// It was stored, and is no more.
    Removed(Entry),
    /// It was not stored, but remembered as absent at upstream: that is forgotten.
    Forgotten,
    /// There was nothing.
    Absent,
}

impl Cache {
    /// Removes one artifact with all that is remembered of it. In a local repository the
    /// removal is durable when this returns.
    ///
    /// # Errors
    /// [`ChangeError`]; it may still be there then.
    pub fn purge(
        &self,
        target: &Target,
        path: &ArtifactPath,
        precondition: Precondition<'_>,
    ) -> Result<Purged, ChangeError> {
        let key = target.key(path.clone());
        let is_local = target.reach() == Reach::Local;
        // A blob that is removed here must not be the one that an upload has just published.
        let hold = if is_local { Some(self.hold(&key).ok_or(ChangeError::Busy)?) } else { None };
        // Nor one that a fetch has: held until the end, none begins.
        let flight = match is_local {
            true => None,
            false => Some(self.flights.join(&key, None)),
        };
        let marks = &self.ports.freshness;
        let was_absent = !is_local && marks.remaining(&key, Mark::Absent).is_some();
        if !is_local {
            marks.clear(&key, Mark::Absent);
            marks.clear(&key, Mark::Fresh);
        }
        for _ in 0..ROUNDS_MAX {
            let Some(entry) = self.ports.index.get(&key).map_err(ChangeError::Index)? else {
                return Ok(if was_absent { Purged::Forgotten } else { Purged::Absent });
            };
            let validators = client_validators(&entry.validators, Some(entry.digest));
            if !precondition(Some(&validators)) {
                return Err(ChangeError::Precondition);
            }
            if !self.ports.index.remove(&key, entry.generation).map_err(ChangeError::Index)? {
                continue;
            }
            if let Some(hold) = &hold {
                self.ports.index.persist().map_err(ChangeError::Index)?;
                if !hold.is_sole() && self.has_row(&key)? {
                    return Ok(Purged::Removed(entry));
                }
            }
            if let Some(Joined::Follow(_)) = flight {
                // It is about to be replaced, or else a sweep removes it.
                return Ok(Purged::Removed(entry));
            }
            if let Err(error) = self.ports.blobs.remove(&entry.blob) {
                self.counters.blob_errors.inc();
                tracing::warn!(artifact = %key, error = chain(&error), "a purged artifact's blob is still in the store");
            }
            return Ok(Purged::Removed(entry));
        }
        Err(ChangeError::Busy)
    }

    fn has_row(&self, key: &ArtifactKey) -> Result<bool, ChangeError> {
        Ok(self.ports.index.get(key).map_err(ChangeError::Index)?.is_some())
    }
}
