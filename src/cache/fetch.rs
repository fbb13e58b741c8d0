//! Fetches: from upstream's first byte to a row in the index.
//!
//! A fetch runs on its own fixed pool, so that clients who wait for it hold none of its threads.
//! It answers to its flight alone: no client's speed or leaving touches it. The order is the
//! cache's promise: stage, seal, publish, record, mark fresh, land.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::counters::{self, Counters};
use super::flight::{End, FlightHead, FlightWriter};
use super::no_room::NoRoom;
use super::prove::Prepared;
use super::space::Space;
use super::unread::Unread;
use super::versions::{condition_of, confirms, part_of};
use super::{FetchError, Ports};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, Entry, Validators};
use crate::blob::{About, BlobError};
use crate::chain::chain;
use crate::config::Remote;
use crate::coord::{Held, Lease, Mark};
use crate::formats::Class;
use crate::index::{IndexError, Put};
use crate::staging::{Expect, SealedFile, StagedFile};
use crate::upstream::{
    Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest,
};

/// Bytes that are read from upstream at a time; more where reads fill the buffer, as those of a
/// large body from a near server do.
pub(super) const READ_BYTES: usize = 64 << 10;
const READ_BYTES_MAX: usize = 256 << 10;
/// How often one body that was cut is continued.
pub(super) const RESUMES_MAX: usize = 3;
/// How often a row that another writer changed meanwhile is written again.
const PUTS_MAX: usize = 4;
/// How often a replica without the lease looks for what the other one stored.
const LEASE_POLL: Duration = Duration::from_millis(100);
/// How many replicas hold a lease on one artifact at most, each a ttl after the one before.
const LEASES_IN_LINE: usize = 2;

/// What a flight is to find out.
#[derive(Debug, Clone)]
pub(super) enum Task {
    /// Nothing is stored: fetch it.
    Fetch,
    /// Ask whether the stored copy is still right, and fetch what is.
    Revalidate(Entry),
    /// Hash the stored copy, and fetch it again if it is damaged.
    Prove(Entry),
}

impl Task {
    fn stored(&self) -> Option<&Entry> {
        match self {
            Self::Fetch => None,
            Self::Revalidate(entry) | Self::Prove(entry) => Some(entry),
        }
    }

    pub(super) fn generation(&self) -> Option<u64> {
        self.stored().map(|entry| entry.generation)
    }
}

/// One flight's work.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) writer: FlightWriter,
    pub(super) key: ArtifactKey,
    /// Where what comes is stored.
    pub(super) blob: BlobKey,
    pub(super) class: Class,
    pub(super) task: Task,
    pub(super) remote: Arc<Remote>,
    pub(super) upstream: Option<Arc<dyn Upstream>>,
}

/// Runs jobs, one at a time on each thread of the pool.
pub(super) struct Fetcher {
    pub(super) ports: Ports,
    pub(super) space: Arc<Space>,
    pub(super) no_room: Arc<NoRoom>,
    pub(super) counters: Arc<Counters>,
    pub(super) lease_ttl: Duration,
}

/// A fetch under way.
pub(super) struct Fetch<'a> {
    pub(super) key: &'a ArtifactKey,
    blob: &'a BlobKey,
    pub(super) class: Class,
    pub(super) remote: &'a Remote,
    upstream: &'a dyn Upstream,
    pub(super) writer: &'a FlightWriter,
    pub(super) stored: Option<Entry>,
    /// When it was begun, by the clock of the rows.
    began_at: SystemTime,
    leases: Vec<Lease>,
    lease_renewed: Instant,
}

impl Fetcher {
    /// Runs a job to its end; `buffer` is the thread's own.
    pub(super) fn run(&self, job: Job, buffer: &mut Vec<u8>) {
        let Job { writer, key, blob, class, task, remote, upstream } = job;
        let end = match self.prepare(&key, task, &remote, upstream.is_some()) {
            Prepared::Proven(entry) => Ok(End::Already(entry)),
            Prepared::Unproven(why) => Err(why),
            Prepared::Ask(stored) => match upstream.as_deref() {
                Some(upstream) => {
                    let lease_renewed = Instant::now();
                    let (key, remote, writer) = (&key, &*remote, &writer);
                    let fetch = Fetch {
                        key,
                        blob: &blob,
                        class,
                        remote,
                        upstream,
                        writer,
                        stored,
                        began_at: self.ports.clock.now(),
                        leases: Vec::new(),
                        lease_renewed,
                    };
                    self.fetch(fetch, buffer)
                }
                None => Ok(End::Absent),
            },
        };
        writer.end(end.unwrap_or_else(|why| {
            counters::of(&self.counters.fetch_failures, &key.remote).inc();
            tracing::warn!(artifact = %key, error = chain(&why), "fetch failed");
            End::Failed(Arc::new(why))
        }));
    }

    fn fetch(&self, mut fetch: Fetch<'_>, buffer: &mut Vec<u8>) -> Result<End, FetchError> {
        if let Some(end) = self.take_lease(&mut fetch) {
            return Ok(end);
        }
        let began = Instant::now();
        counters::of(&self.counters.fetches, &fetch.key.remote).inc();
        let is_doubted = fetch.class == Class::Head
            && self.ports.freshness.remaining(fetch.key, Mark::Doubted).is_some();
        let unless = fetch
            .stored
            .as_ref()
            .filter(|stored| !is_doubted && !stored.unproven)
            .and_then(condition_of);
        let request = UpstreamRequest { path: &fetch.key.path, unless, part: None };
        let (mut reply, mut fits) = (fetch.upstream.get(&request)?, None);
        if let (UpstreamReply::NotModified(head), Some(stored)) = (&reply, &fetch.stored) {
            let is_meant = confirms(&head.validators, &stored.validators);
            if is_meant {
                fits = self.fits_head(&fetch, stored.digest);
            } else {
                tracing::warn!(artifact = %fetch.key, "upstream's 304 names another version than the one that is stored; fetching it anew");
            }
            if !is_meant || fits == Some(false) && self.is_first_misfit(fetch.key) {
                reply = fetch.upstream.get(&UpstreamRequest { unless: None, ..request })?;
            }
        }
        let head_ms = began.elapsed().as_millis() as u64;
        self.counters.upstream_head.observe(&fetch.key.remote, began.elapsed());
        match reply {
            UpstreamReply::Absent => {
                self.mark_absent(&fetch);
                log_fetch(&fetch, "absent", 0, head_ms, began);
                Ok(End::Absent)
            }
            UpstreamReply::Folder => {
                log_fetch(&fetch, "folder", 0, head_ms, began);
                Ok(End::Folder)
            }
            UpstreamReply::NotModified(head) => {
                let Some(stored) = fetch.stored.take() else {
                    return Err(FetchError::Upstream(UpstreamError::Protocol {
                        host: fetch.remote.name.to_string(),
                        reason: "a 304 to a request without conditions".to_owned(),
                    }));
                };
                let entry = self.renew(&fetch, stored, &head, fits);
                log_fetch(&fetch, "not modified", 0, head_ms, began);
                Ok(End::Confirmed(entry))
            }
            UpstreamReply::Found(head, body) => {
                let (end, bytes) = self.fill(&mut fetch, head, body, buffer)?;
                if is_doubted {
                    self.ports.freshness.clear(fetch.key, Mark::Doubted);
                }
                let what = match &end {
                    End::Stored(_) => "stored",
                    _ => "not stored",
                };
                if let (End::Unstored, Some(stored)) = (&end, &fetch.stored) {
                    // Clients have seen something newer.
                    self.ports.freshness.clear(fetch.key, Mark::Fresh(stored.digest));
                }
                log_fetch(&fetch, what, bytes, head_ms, began);
                Ok(end)
            }
        }
    }

    /// Takes the lease, or waits for what the replica that has it stores.
    ///
    /// The lease saves a second fetch and guards nothing. A replica that still waits after one
    /// ttl asks for the next of [`LEASES_IN_LINE`], so that of many that wait for a slow or
    /// vanished one, one fetches for the others; after the last of them it fetches without.
    ///
    /// Who is granted a lease after a wait takes the next one too. Otherwise, when the holder
    /// vanished, one of two that wait could be granted its lapsed lease in the moment in which
    /// the other loses patience and is granted the next.
    fn take_lease(&self, fetch: &mut Fetch<'_>) -> Option<End> {
        let before = fetch.stored.as_ref().map(|entry| entry.generation);
        let mut has_waited = false;
        for place in 0..LEASES_IN_LINE {
            let key = lease_key(fetch.key, place)?;
            let deadline = Instant::now() + self.lease_ttl;
            loop {
                match Lease::take(&self.ports.leases, &key, self.lease_ttl) {
                    Ok(Some(lease)) => {
                        fetch.leases.push(lease);
                        fetch.lease_renewed = Instant::now();
                        if has_waited && place + 1 < LEASES_IN_LINE {
                            break;
                        }
                        return self.stored_meanwhile(fetch, before);
                    }
                    Ok(None) => return None,
                    Err(Held) if Instant::now() >= deadline => break,
                    Err(Held) => {
                        has_waited = true;
                        if let Some(end) = self.stored_meanwhile(fetch, before) {
                            return Some(end);
                        }
                        std::thread::sleep(LEASE_POLL);
                    }
                }
            }
        }
        None
    }

    /// What another replica has stored, unless it is a member of another head, or may have been there
    /// before: that one is asked about.
    fn stored_meanwhile(&self, fetch: &mut Fetch<'_>, before: Option<u64>) -> Option<End> {
        let entry = self.ports.index.get(fetch.key).ok()??;
        if Some(entry.generation) == before {
            return None;
        }
        // Where the look-up failed that this fetch comes from, it may have been there all along.
        let is_earlier = before.is_none()
            && fetch.class != Class::Immutable
            && entry.validated_at < fetch.began_at;
        let is_anothers = fetch.class == Class::Member && entry.head != fetch.writer.member_of();
        if is_earlier || is_anothers {
            fetch.stored = Some(entry);
            return None;
        }
        Some(End::Already(entry))
    }

    /// Streams a body into the store. Gives the end and how many bytes came.
    fn fill(
        &self,
        fetch: &mut Fetch<'_>,
        head: UpstreamHead,
        mut body: Box<dyn UpstreamBody>,
        buffer: &mut Vec<u8>,
    ) -> Result<(End, u64), FetchError> {
        let answered_at = self.ports.clock.now();
        let checksum = fetch.remote.format.digest_in(&fetch.key.path);
        let mut staged = self.ports.staging.begin(Expect { len: head.len, checksum })?;
        fetch.writer.start(FlightHead {
            file: staged.share(),
            len: head.len,
            validators: head.validators.clone(),
            content_type: head.content_type.clone(),
            content_encoding: head.content_encoding.clone(),
            answered_at,
            // Where a stored copy can stand in, a refresh that breaks off near its end (of an
            // index: anywhere) is answered with that copy.
            is_checked: checksum.is_some() || fetch.stored.is_some(),
            is_storable: body.is_framed()
                && head.len.is_none_or(|len| self.may_store(fetch.remote, len)),
            is_refresh: fetch.stored.is_some(),
        });
        let mut resumes = 0;
        while let Err(cut) = self.pump(fetch, &mut *body, &mut staged, buffer) {
            let FetchError::Cut { .. } = cut else { return Err(cut) };
            match self.resume(fetch, &head, answered_at, staged.written()) {
                Some(rest) if resumes < RESUMES_MAX => body = rest,
                _ => return Err(cut),
            }
            resumes += 1;
            self.counters.resumed.inc();
        }
        let is_framed = body.is_framed();
        let written = staged.written();
        let sealed = staged.seal()?;
        fetch.writer.whole();
        if !is_framed || !self.may_store(fetch.remote, written) {
            self.counters.unstored.inc();
            return Ok((End::Unstored, written));
        }
        Ok((self.store(fetch, head, &sealed, answered_at), written))
    }

    /// Whether the bounds leave room for a file of this length, if everything else went.
    fn may_store(&self, remote: &Remote, bytes: u64) -> bool {
        remote.max_bytes.is_none_or(|max| bytes <= max) && self.space.could_hold(remote, bytes)
    }

    /// Moves a body into the scratch file until it ends.
    fn pump(
        &self,
        fetch: &mut Fetch<'_>,
        body: &mut dyn UpstreamBody,
        staged: &mut StagedFile,
        buffer: &mut Vec<u8>,
    ) -> Result<(), FetchError> {
        if buffer.len() != READ_BYTES {
            // New, or grown by an earlier body.
            *buffer = vec![0; READ_BYTES];
        }
        let fetched = counters::of(&self.counters.fetched_bytes, &fetch.key.remote);
        let mut unread = Unread::new(Instant::now(), staged.written());
        loop {
            let read = match body.read(buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(FetchError::Cut {
                        written: staged.written(),
                        reason: error.to_string(),
                        is_timeout: error.kind() == std::io::ErrorKind::TimedOut,
                    });
                }
            };
            staged.append(buffer, read).inspect_err(|why| {
                if why.is_of_scratch_space() {
                    self.no_room.remember(fetch.key, self.ports.clock.now());
                }
            })?;
            if read == buffer.len() && read < READ_BYTES_MAX {
                *buffer = vec![0; 2 * read];
            }
            fetched.inc_by(read as u64);
            fetch.writer.grew(staged.written());
            if unread.is_too_slow(Instant::now(), staged.written(), || fetch.writer.is_followed()) {
                return Err(FetchError::Abandoned);
            }
            self.keep_lease(fetch);
        }
        match staged.expect().len {
            Some(len) if staged.written() < len => Err(FetchError::Cut {
                written: staged.written(),
                reason: format!("{len} bytes were announced"),
                is_timeout: false,
            }),
            _ => Ok(()),
        }
    }

    fn keep_lease(&self, fetch: &mut Fetch<'_>) {
        if fetch.lease_renewed.elapsed() > self.lease_ttl / 3 {
            for lease in &fetch.leases {
                // A lost lease changes nothing: this fetch is under way, the other one is a waste.
                lease.renew();
            }
            fetch.lease_renewed = Instant::now();
        }
    }

    /// The rest of a body that was cut, if upstream still has the same version of known length.
    fn resume(
        &self,
        fetch: &Fetch<'_>,
        head: &UpstreamHead,
        answered_at: SystemTime,
        written: u64,
    ) -> Option<Box<dyn UpstreamBody>> {
        let len = head.len?;
        let (version, bytes) = ((&head.validators, answered_at), (written, None));
        let fits = |full: Option<u64>| full.is_none_or(|full| full == len);
        let rest = part_of(fetch.upstream, &fetch.key.path, version, bytes, fits);
        rest.unwrap_or_else(|error| {
            tracing::warn!(artifact = %fetch.key, error = chain(&error), "a cut body could not be continued");
            None
        })
    }

    /// Publishes and records. The clients have their bytes; what fails here costs a refetch.
    fn store(
        &self,
        fetch: &Fetch<'_>,
        head: UpstreamHead,
        sealed: &SealedFile,
        stored_at: SystemTime,
    ) -> End {
        let key = fetch.key;
        let replaced = fetch.stored.as_ref().map_or(0, |stored| stored.size);
        let Some(room) = self.space.make_room(fetch.remote, sealed.len(), replaced) else {
            counters::of(&self.counters.without_room, &key.remote).inc();
            self.counters.unstored.inc();
            tracing::warn!(artifact = %key, bytes = sealed.len(), "not stored: nothing that may be evicted makes room");
            return End::Unstored;
        };
        let blob = fetch.blob.clone();
        let about = About {
            artifact: key.clone(),
            digest: sealed.digest(),
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            validators: head.validators,
            stored_at,
        };
        let version = match self.ports.blobs.publish(&blob, sealed, &about) {
            Ok(version) => version,
            Err(error) => {
                self.blob_failed(key, &error);
                return End::Unstored;
            }
        };
        let fits = self.fits_head(fetch, about.digest);
        let head = fetch.writer.member_of().filter(|_| fits != Some(false));
        let entry = Entry { head, ..about.entry(blob, version, sealed.len()) };
        match self.record(key, entry, fetch.stored.as_ref()) {
            Some(entry) => {
                room.fill();
                self.mark_unsettled(fetch, &entry, fits);
                self.mark_fresh(fetch, &entry);
                End::Stored(entry)
            }
            None => {
                self.counters.unstored.inc();
                End::Unstored
            }
        }
    }

    /// Writes the row of a blob that was just published.
    ///
    /// Another replica that fetched without the lease may have been first. Both blobs went
    /// under the same key (or one under its URL's), and nobody can tell which bytes are newer.
    /// With the same bytes its row is as good as ours; otherwise neither row is to be trusted,
    /// and the next request asks upstream: what was served once must not be followed by
    /// something older.
    fn record(&self, key: &ArtifactKey, entry: Entry, stored: Option<&Entry>) -> Option<Entry> {
        let mut replaces = stored.map(|stored| stored.generation);
        for _ in 0..PUTS_MAX {
            match self.ports.index.put(key, &entry, replaces) {
                Ok(Put::Stored(generation)) => return Some(Entry { generation, ..entry }),
                Ok(Put::Superseded(None)) => replaces = None,
                Ok(Put::Superseded(Some(other))) if other.digest == entry.digest => {
                    // The same bytes. Of two versions under one key the one that lies there counts.
                    let is_there = || self.ports.blobs.holds(&other.blob, &other.version);
                    if other.blob != entry.blob || is_there().unwrap_or(false) {
                        return Some(other);
                    }
                    replaces = Some(other.generation);
                }
                Ok(Put::Superseded(Some(other))) => {
                    tracing::warn!(artifact = %key, "two replicas stored different bytes; forgetting both");
                    for digest in [other.digest, entry.digest] {
                        self.ports.freshness.clear(key, Mark::Fresh(digest));
                    }
                    match self.ports.index.remove(key, other.generation) {
                        Ok(true) => return None,
                        // It changed once more: look again.
                        Ok(false) => replaces = Some(other.generation),
                        Err(error) => {
                            self.index_failed(key, &error, "a doubtful row was not forgotten");
                            return None;
                        }
                    }
                }
                Err(error) => {
                    self.index_failed(key, &error, "a stored artifact was not recorded");
                    return None;
                }
            }
        }
        tracing::warn!(artifact = %key, "a stored artifact was not recorded: its row kept changing");
        None
    }

    /// Records that upstream confirmed the stored copy; `fits` says whether that is what its head
    /// states.
    fn renew(
        &self,
        fetch: &Fetch<'_>,
        stored: Entry,
        head: &UpstreamHead,
        fits: Option<bool>,
    ) -> Entry {
        if fits == Some(false)
            && let Some((head, entry)) = self.head_of(fetch)
        {
            self.doubt(&head, entry.digest);
        }
        let confirmed = Entry {
            validated_at: self.ports.clock.now(),
            // RFC 9111, section 3.2: what a 304 says replaces what is stored.
            validators: Validators {
                etag: head.validators.etag.clone().or(stored.validators.etag),
                last_modified: head
                    .validators
                    .last_modified
                    .clone()
                    .or(stored.validators.last_modified),
            },
            head: fetch.writer.member_of().filter(|_| fits != Some(false)),
            ..stored
        };
        match self.ports.index.put(fetch.key, &confirmed, Some(confirmed.generation)) {
            Ok(Put::Stored(generation)) => {
                self.mark_fresh(fetch, &confirmed);
                Entry { generation, ..confirmed }
            }
            // Somebody stored or confirmed something newer: that is what stands there now.
            Ok(Put::Superseded(Some(newer))) => newer,
            Ok(Put::Superseded(None)) => confirmed,
            Err(error) => {
                self.index_failed(fetch.key, &error, "a confirmation was not recorded");
                confirmed
            }
        }
    }

    /// Fresh from upstream's answer on: storing a large index takes its time.
    fn mark_fresh(&self, fetch: &Fetch<'_>, entry: &Entry) {
        let age = self.ports.clock.now().duration_since(entry.validated_at).unwrap_or_default();
        let left = self.lifetime(fetch).saturating_sub(age);
        if fetch.class != Class::Immutable && !left.is_zero() {
            self.ports.freshness.set(fetch.key, Mark::Fresh(entry.digest), left);
        }
        if !fetch.remote.lifetimes.negative_ttl.is_zero() {
            self.ports.freshness.clear(fetch.key, Mark::Absent);
        }
    }

    pub(super) fn index_failed(&self, key: &ArtifactKey, error: &IndexError, what: &'static str) {
        self.counters.index_errors.inc();
        tracing::warn!(artifact = %key, error = chain(error), "{what}");
    }

    fn blob_failed(&self, key: &ArtifactKey, error: &BlobError) {
        self.counters.blob_errors.inc();
        self.counters.unstored.inc();
        tracing::warn!(artifact = %key, error = chain(error), "an artifact was served but not stored");
    }
}

/// The name of a lease on an artifact: its own, and for who waited in vain one that no sensible
/// artifact has. If one had it, its fetch would wait a little.
fn lease_key(key: &ArtifactKey, place: usize) -> Option<ArtifactKey> {
    if place == 0 {
        return Some(key.clone());
    }
    let separator = if key.path.as_str().contains('?') { '&' } else { '?' };
    let path = format!("{}{separator}lease={place}", key.path);
    // A path too long for it goes without.
    let path = ArtifactPath::from_canonical(path).ok()?;
    Some(ArtifactKey { remote: key.remote.clone(), path })
}

fn log_fetch(fetch: &Fetch<'_>, what: &'static str, bytes: u64, head_ms: u64, began: Instant) {
    tracing::info!(
        target: "fetch",
        remote = %fetch.key.remote,
        path = %fetch.key.path,
        outcome = what,
        bytes,
        head_ms,
        ms = began.elapsed().as_millis() as u64,
        "fetch"
    );
}
