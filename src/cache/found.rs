//! What a request found: what is known of the artifact, and the way to its bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::flight::{Coming, End, FlightHead, FlightReader};
use super::pass::Passing;
use super::readers::Reading;
use super::{Cache, FAR_AHEAD_BYTES};
use crate::artifact::{ArtifactKey, Digest, Entry, Validators};
use crate::policy;
use crate::seats::Seat;

/// How a request was met. One of these becomes the log line, the counter and `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the store, fresh.
    Hit,
    /// From the store although it lapsed: upstream failed, or must not be asked.
    Stale,
    /// From the store, after upstream confirmed it.
    Revalidated,
    /// Fetched for this request.
    Miss,
    /// Fetched for another request, which this one joined.
    Collapsed,
    /// Passed through without being stored.
    Pass,
}

/// What a search has come to.
#[derive(Debug)]
pub enum Sought {
    /// Here it is.
    Found(Found),
    /// It comes, or not: see [`super::Cache::board`].
    Boarding(Boarding),
}

/// A place in a flight whose head is not known yet.
#[derive(Debug)]
pub struct Boarding {
    pub(super) key: ArtifactKey,
    pub(super) reader: FlightReader,
    pub(super) outcome: Outcome,
    /// Where the flight began under an earlier head than the one that is stored now: how long the
    /// request waits at most for its landing, to start again.
    pub(super) outdated_until: Option<Instant>,
    /// How long the request waits before something else is done for it.
    pub(super) until: Instant,
    /// How often the request may still start again.
    pub(super) rounds_left: usize,
}

impl Boarding {
    /// What it waits for.
    pub fn awaited(&self) -> Coming {
        match self.outdated_until {
            Some(_) => self.reader.landing_to_come(),
            None => self.reader.head_to_come(),
        }
    }
}

/// An artifact that can be served.
#[derive(Debug)]
pub struct Found {
    /// How it was met, and what is known of it.
    pub met: Met,
    /// The way to its bytes.
    pub bytes: Bytes,
}

/// How a request was met.
#[derive(Debug)]
pub struct Met {
    /// From where.
    pub outcome: Outcome,
    /// What is known of it.
    pub about: Representation,
    /// How long it is fresh; negative seconds where it is stale; `None` for ever or unknown.
    pub ttl_s: Option<i64>,
    /// Whether it is, or is being, stored.
    pub is_stored: bool,
    /// Whether upstream's answer takes the place of a stored copy.
    pub is_refresh: bool,
}

/// The way to an artifact's bytes: give it to [`super::Cache::open`].
#[derive(Debug)]
pub struct Bytes {
    pub(super) key: ArtifactKey,
    pub(super) from: From,
}

impl Bytes {
    /// The same way once more, for another range; `None` where the bytes can be had only once.
    pub fn again(&self) -> Option<Self> {
        let from = match &self.from {
            From::Store(entry, reading) => From::Store(entry.clone(), reading.clone()),
            From::Flight(reader, head) => From::Flight(reader.clone(), Arc::clone(head)),
            From::Passing(..) => return None,
        };
        Some(Self { key: self.key.clone(), from })
    }

    /// Waits until the byte at `offset` can be opened, or never will be, at most for `patience`:
    /// gives what is still to come then.
    pub fn comes_later(&self, offset: u64, patience: Duration) -> Option<Coming> {
        match &self.from {
            From::Flight(reader, _) => reader.comes_later(offset, patience),
            From::Store(..) | From::Passing(..) => None,
        }
    }

    /// Whether a range that begins there is not worth waiting for, as long as upstream gives it.
    pub fn is_far_ahead(&self, offset: u64) -> bool {
        match &self.from {
            From::Flight(reader, _) => offset > reader.written() + FAR_AHEAD_BYTES,
            From::Store(..) | From::Passing(..) => false,
        }
    }

    /// Waits until they are all there and stored, if they will be, at most for `patience`: gives
    /// what is still to come then.
    pub fn lands_later(&self, patience: Duration) -> Option<Coming> {
        match &self.from {
            From::Flight(reader, _) => reader.lands_later(patience),
            From::Store(..) | From::Passing(..) => None,
        }
    }
}

/// What a client learns of an artifact before its bytes.
#[derive(Debug, Clone, Default)]
pub struct Representation {
    /// Its length, where that is known yet.
    pub len: Option<u64>,
    /// Its digest, where that is known yet.
    pub digest: Option<Digest>,
    /// Validators for clients: upstream's, or an ETag made of the digest.
    pub validators: Validators,
    /// Upstream's `Content-Type`.
    pub content_type: Option<String>,
    /// Upstream's `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// How long ago upstream sent or confirmed it.
    pub age: Duration,
}

#[derive(Debug)]
pub(super) enum From {
    /// With what keeps it in the store meanwhile.
    Store(Box<Entry>, Option<Arc<Reading>>),
    Flight(FlightReader, Arc<FlightHead>),
    /// With a seat, where those are bounded.
    Passing(Passing, Option<Seat>),
}

impl Cache {
    /// What a flight has left behind. Nobody has read it so far, so it may be evicted already;
    /// then opening it fails, and it is sought anew.
    pub(super) fn found_landed(
        &self,
        key: ArtifactKey,
        entry: Entry,
        outcome: Outcome,
        ttl_s: Option<i64>,
    ) -> Found {
        let reading = self.readers.read(&key);
        self.found_stored(key, entry, outcome, ttl_s, reading)
    }

    pub(super) fn found_stored(
        &self,
        key: ArtifactKey,
        entry: Entry,
        outcome: Outcome,
        ttl_s: Option<i64>,
        reading: Option<Reading>,
    ) -> Found {
        let now = self.ports.clock.now();
        self.uses.record(&key, now, &self.counters.uses_dropped);
        let about = Representation {
            len: Some(entry.size),
            digest: Some(entry.digest),
            validators: client_validators(&entry.validators, Some(entry.digest)),
            content_type: entry.content_type.clone(),
            content_encoding: entry.content_encoding.clone(),
            age: policy::age(now, &entry),
        };
        let bytes = Bytes { key, from: From::Store(Box::new(entry), reading.map(Arc::new)) };
        Found { met: Met { outcome, about, ttl_s, is_stored: true, is_refresh: false }, bytes }
    }

    pub(super) fn found_flying(
        &self,
        key: &ArtifactKey,
        outcome: Outcome,
        reader: FlightReader,
        head: Arc<FlightHead>,
    ) -> Found {
        let digest = match reader.ended() {
            Some(End::Stored(entry)) => Some(entry.digest),
            _ => None,
        };
        let about = Representation {
            len: head.len,
            digest,
            validators: client_validators(&head.validators, digest),
            content_type: head.content_type.clone(),
            content_encoding: head.content_encoding.clone(),
            age: self.ports.clock.now().duration_since(head.answered_at).unwrap_or_default(),
        };
        let (is_stored, is_refresh) = (head.is_storable, head.is_refresh);
        let bytes = Bytes { key: key.clone(), from: From::Flight(reader, head) };
        Found { met: Met { outcome, about, ttl_s: None, is_stored, is_refresh }, bytes }
    }
}

/// What clients are given to recognise a version by, on the miss and on later hits alike:
/// upstream's validators, and an ETag made of the digest where upstream sends none.
pub(super) fn client_validators(upstream: &Validators, digest: Option<Digest>) -> Validators {
    let etag = match (&upstream.etag, digest) {
        (Some(etag), _) => Some(etag.clone()),
        (None, Some(digest)) => Some(format!("\"sha256:{digest}\"")),
        (None, None) => None,
    };
    Validators { etag, last_modified: upstream.last_modified.clone() }
}
