//! The bytes of a found artifact: from the store, from its flight, or from upstream.

use std::ops::Range;

use super::found::From;
use super::{Bytes, Cache, OpenError, Reach, Target, counters, pass};
use crate::artifact::{ArtifactKey, Entry};
use crate::blob::BlobError;
use crate::body::{Body, Source};
use crate::chain::chain;

impl Cache {
    /// Opens bytes of a found artifact of length `len`; `range` lies inside it, `None` is all.
    /// Blocks until the first byte can be read, so that a failure before it can be answered.
    ///
    /// # Errors
    /// [`OpenError`]; after `Gone`, find it again.
    pub fn open(
        &self,
        target: &Target,
        bytes: Bytes,
        len: Option<u64>,
        range: Option<Range<u64>>,
    ) -> Result<Body, OpenError> {
        let (from, to) = match (&range, len) {
            (Some(range), _) => (range.start, Some(range.end)),
            (None, len) => (0, len),
        };
        match bytes.from {
            From::Store(entry, reading) => {
                let range = from..to.unwrap_or(entry.size);
                let body = self.open_blob(target, &bytes.key, &entry, range)?;
                Ok(match reading {
                    Some(reading) => body.keeping(reading),
                    None => body,
                })
            }
            From::Flight(reader, head) => {
                reader.wait_for(from).map_err(OpenError::Fetch)?;
                let source: Box<dyn Source> = Box::new(reader.follow(head, from, to));
                Ok(Body::new(to.map(|to| to - from), source))
            }
            From::Passing(passing, seat) => {
                let body = passing.open(from, to).map_err(OpenError::Fetch)?;
                Ok(match seat {
                    Some(seat) => body.keeping(seat),
                    None => body,
                })
            }
        }
    }

    /// Opens a range that the artifact's flight will not reach soon ([`Bytes::is_far_ahead`]) at
    /// upstream, while the flight goes on; `None` where upstream does not give it, and where only
    /// the flight can tell whether the bytes are right.
    pub fn open_ahead(&self, target: &Target, bytes: &Bytes, range: &Range<u64>) -> Option<Body> {
        let (From::Flight(_, head), Some(upstream)) = (&bytes.from, target.upstream.as_deref())
        else {
            return None;
        };
        if target.remote.format.digest_in(&bytes.key.path).is_some() {
            return None;
        }
        counters::of(&self.counters.fetches, &bytes.key.remote).inc();
        pass::part(upstream, &bytes.key.path, head, range.start, Some(range.end))
    }

    fn open_blob(
        &self,
        target: &Target,
        key: &ArtifactKey,
        entry: &Entry,
        range: Range<u64>,
    ) -> Result<Body, OpenError> {
        let (blobs, blob, version) = (&self.ports.blobs, &entry.blob, &entry.version);
        // What another replica can replace is read from the store, which tells whether it did.
        let opened = match target.is_lasting(&key.path) {
            true => blobs.open(blob, version, range),
            false => blobs.open_current(blob, version, range),
        };
        opened.map_err(|error| {
            if !error.is_gone() {
                self.counters.blob_errors.inc();
                return OpenError::Store(error);
            }
            if target.reach() == Reach::Local {
                return self.mend(target, key, entry, error);
            }
            if target.reach() == Reach::Offline && !matches!(error, BlobError::Missing(_)) {
                // The bytes may be right: `verify --repair` looks.
                return OpenError::Store(error);
            }
            self.counters.healed.inc();
            tracing::warn!(artifact = %key, error = chain(&error), "forgetting an entry whose blob is gone");
            // The row goes only if it still means that version; then there is nothing to heal.
            if let Err(error) = self.ports.index.remove(key, entry.generation) {
                self.counters.index_errors.inc();
                tracing::warn!(artifact = %key, error = chain(&error), "cannot forget the entry");
                return OpenError::Store(BlobError::Missing(entry.blob.clone()));
            }
            OpenError::Gone
        })
    }
}
