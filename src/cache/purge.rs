//! Purges: what an operator wants gone goes, row first and blob second.
//!
//! A fetch or an upload that is under way when a purge comes may store its bytes afterwards;
//! a purge is about what is stored. Whoever has opened a blob keeps it to the end.

use std::time::{Duration, Instant};

use super::claims::Hold;
use super::flight::{FlightWriter, Joined};
use super::found::client_validators;
use super::upload::{ChangeError, Precondition};
use super::{Cache, Reach, Target};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, Entry};
use crate::blob::BlobMeta;
use crate::chain::chain;
use crate::coord::{Lease, Mark};
use crate::index::IndexError;

/// How long a purge waits for a fetch of the artifact, or for another purge.
const FLIGHT_WAIT_MAX: Duration = Duration::from_secs(1);
/// How old bytes without a row must be to be what broke off, where other processes may work without
/// a lease: much older than what it takes to write a row.
const LEFT_AFTER: Duration = Duration::from_secs(60);
/// How often a row that changes meanwhile is looked at again.
const ROUNDS_MAX: usize = 4;

/// What a purge found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purged {
    /// It was stored, and is no more.
    Removed(Entry),
    /// It was not stored, but remembered as absent at upstream, or left in the store without a row:
    /// that is gone.
    Forgotten,
    /// There was nothing.
    Absent,
}

/// What lay under a name without a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// What broke off: it is gone now.
    Removed,
    /// What somebody else may be about to record.
    Anothers,
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
        match target.reach() {
            Reach::Local => self.remove_upload(&key, precondition),
            Reach::Online | Reach::Offline => self.purge_cached(&key, precondition),
        }
    }

    fn purge_cached(
        &self,
        key: &ArtifactKey,
        precondition: Precondition<'_>,
    ) -> Result<Purged, ChangeError> {
        // A blob that is removed here must not be the one that a fetch has just published: held
        // until the end, none begins.
        let alone = self.fetch_nothing(key);
        let marks = &self.ports.freshness;
        let was_absent = marks.remaining(key, Mark::Absent).is_some();
        marks.clear(key, Mark::Absent);
        let row = || self.ports.index.get(key);
        let Some(entry) = self.remove_row(key, &row, precondition)? else {
            return Ok(if was_absent { Purged::Forgotten } else { Purged::Absent });
        };
        // Otherwise it is about to be replaced, or else a sweep removes it.
        if alone.is_some()
            && let Err(error) = self.ports.blobs.remove(&entry.blob)
        {
            self.counters.blob_errors.inc();
            tracing::warn!(artifact = %key, error = chain(&error), "a purged artifact's blob is still in the store");
        }
        Ok(Purged::Removed(entry))
    }

    fn remove_upload(
        &self,
        key: &ArtifactKey,
        precondition: Precondition<'_>,
    ) -> Result<Purged, ChangeError> {
        // A blob that is removed here must not be the one that an upload has just published.
        let hold = self.hold(key).ok_or(ChangeError::Busy)?;
        let row = || self.ports.index.recorded(key);
        let Some(entry) = self.remove_row(key, &row, precondition)? else {
            return match self.remove_left(key, &hold, precondition)? {
                Left::Nothing => Ok(Purged::Absent),
                Left::Removed => Ok(Purged::Forgotten),
                Left::Anothers => Err(ChangeError::Busy),
            };
        };
        self.ports.index.persist(key).map_err(ChangeError::Index)?;
        if !hold.is_sole() && self.has_row(key)? {
            return Ok(Purged::Removed(entry));
        }
        // What is still there would come back by `reindex`, or while the index is away.
        let removed = self.ports.blobs.remove_version(&entry.blob, &entry.version);
        removed.map_err(ChangeError::Store)?;
        // Another version may lie there: the bytes were not those that the row meant, or somebody
        // uploads the name again.
        self.remove_left(key, &hold, &|_| true)?;
        Ok(Purged::Removed(entry))
    }

    /// Removes the row of an artifact where the client's conditions hold of it; gives what it was.
    fn remove_row(
        &self,
        key: &ArtifactKey,
        row: &dyn Fn() -> Result<Option<Entry>, IndexError>,
        precondition: Precondition<'_>,
    ) -> Result<Option<Entry>, ChangeError> {
        for _ in 0..ROUNDS_MAX {
            let Some(entry) = row().map_err(ChangeError::Index)? else { return Ok(None) };
            let validators = client_validators(&entry.validators, Some(entry.digest));
            if !precondition(Some(&validators)) {
                return Err(ChangeError::Precondition);
            }
            if self.ports.index.remove(key, entry.generation).map_err(ChangeError::Index)? {
                return Ok(Some(entry));
            }
        }
        Err(ChangeError::Busy)
    }

    /// Keeps everybody from fetching an artifact for as long as what it gives is held; `None` where
    /// somebody is at it.
    fn fetch_nothing(&self, key: &ArtifactKey) -> Option<(Option<Lease>, FlightWriter)> {
        let deadline = Instant::now() + FLIGHT_WAIT_MAX;
        let flight = loop {
            let reader = match self.flights.join(key, None) {
                Joined::Lead(flight) => break flight,
                Joined::Follow(reader) => reader,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !reader.has_landed_within(left) {
                return None;
            }
        };
        // Where it is held, another replica fetches it.
        let lease = Lease::take(&self.ports.leases, key, self.lease_ttl).ok()?;
        Some((lease, flight))
    }

    /// Removes what lies under the name of a local repository without a row: what is left of an
    /// upload, or of a removal, that broke off.
    pub(super) fn remove_left(
        &self,
        key: &ArtifactKey,
        hold: &Hold<'_>,
        precondition: Precondition<'_>,
    ) -> Result<Left, ChangeError> {
        let blobs = &self.ports.blobs;
        let Some(left) = blobs.stat(&BlobKey::of(key)).map_err(ChangeError::Store)? else {
            return Ok(Left::Nothing);
        };
        if !precondition(None) {
            return Err(ChangeError::Precondition);
        }
        // Looked at after the bytes: who publishes without a lease writes its row next.
        if !hold.is_sole() || self.is_young(&left) || self.has_row(key)? {
            return Ok(Left::Anothers);
        }
        blobs.remove_version(&left.key, &left.version).map_err(ChangeError::Store)?;
        Ok(Left::Removed)
    }

    /// Whether the row of these bytes may be on its way: another process may work without a lease.
    fn is_young(&self, left: &BlobMeta) -> bool {
        let age = self.ports.clock.now().duration_since(left.published_at);
        self.ports.leases.are_shared() && !age.is_ok_and(|age| age >= LEFT_AFTER)
    }

    fn has_row(&self, key: &ArtifactKey) -> Result<bool, ChangeError> {
        Ok(self.ports.index.recorded(key).map_err(ChangeError::Index)?.is_some())
    }
}

#[cfg(test)]
mod tests;
