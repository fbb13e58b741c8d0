//! The cache: one request from judgement to bytes.
//!
//! [`Cache::seek`] is the request on one screen. A miss is a flight: the fetch runs on its own
//! pool ([`fetch`]) and every client, the first included, reads along ([`flight`]). This room
//! knows no HTTP towards clients and no backend by name.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, Digest, Entry};
use crate::blob::BlobStore;
use crate::chain::chain;
use crate::clock::Clock;
use crate::config::{Kind, Remote};
use crate::coord::{Freshness, Leases, Mark};
use crate::formats::Class;
use crate::index::{ArtifactIndex, IndexError, Row};
use crate::policy::{self, Decision, Facts, Reach};
use crate::seats::{Seat, Seats};
use crate::staging::Staging;
use crate::upstream::Upstream;

mod claims;
pub mod counters;
mod error;
mod fetch;
mod fill;
pub mod flight;
mod found;
mod heads;
mod no_room;
mod open;
mod pass;
mod pool;
mod prove;
mod purge;
mod readers;
pub mod space;
mod steps;
pub mod sweep;
#[cfg(test)]
mod tests;
mod turn;
mod unread;
pub mod upkeep;
mod upload;
mod uses;
mod versions;

pub use error::{CacheError, FetchError, Loss, OpenError};
pub use fill::{Filled, Reporter, Wish};
pub use flight::Coming;
pub use found::{Boarding, Bytes, Found, Met, Outcome, Representation, Sought};
pub use purge::Purged;
pub use upload::{ChangeError, Precondition, Upload, Uploaded};

use claims::Claims;
use counters::Counters;
use fetch::{Fetcher, Job, Task};
use flight::{Begun, End, FlightReader, FlightWriter, Flights, Joined};
use found::From;
use heads::stored_head;
use no_room::NoRoom;
use pool::{FetchPool, Urgency};
use readers::{Readers, Reading};
use space::{Keeper, Space};
use uses::Uses;

/// How long a request waits for upstream's answer to begin, queueing included.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(300);
/// How long a request waits for a flight to begin to answer before it is served the stored copy
/// that may stand in; the flight goes on, and what it brings is the next ones'.
const STAND_IN_AFTER: Duration = Duration::from_secs(5);
/// How long a request for a member waits for a fetch of it that began under an earlier head.
const OUTDATED_WAIT_MAX: Duration = Duration::from_secs(5);
/// How many of them, in the whole process, are passed through at a time after that; the others go on
/// waiting, since upstream would send each of them the whole file.
const OUTDATED_PASSES_MAX: usize = 4;
/// How long they wait at most before they are told to try again: less than their patience.
const OUTDATED_PATIENCE: Duration = Duration::from_secs(25);
/// How long a request waits for a flight whose bytes are all there to be stored, before it
/// reads along instead.
const LANDING_WAIT_MAX: Duration = Duration::from_millis(250);
/// How often one request starts again because the ground moved under it: a flight that landed
/// while it was joining, a blob that was replaced.
const ROUNDS_MAX: usize = 4;
/// A range that begins further than this behind what a flight has is asked of upstream on its
/// own, while the fill goes on.
const FAR_AHEAD_BYTES: u64 = 1 << 20;

/// The backends of a cache.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Where bytes are.
    pub blobs: Arc<dyn BlobStore>,
    /// What is known of them.
    pub index: Arc<dyn ArtifactIndex>,
    /// What is fresh.
    pub freshness: Arc<dyn Freshness>,
    /// Which replica fetches.
    pub leases: Arc<dyn Leases>,
    /// Bytes on their way in.
    pub staging: Staging,
    /// What time it is.
    pub clock: Clock,
}

/// Bounds of a cache.
#[derive(Debug, Clone)]
pub struct CacheBounds {
    /// Threads that fetch.
    pub fetch_threads: usize,
    /// Fetches that may wait for a thread; one more is refused.
    pub fetch_queue_max: usize,
    /// How long a replica's lease on a fetch holds without being renewed.
    pub lease_ttl: Duration,
}

/// A remote with the way to its upstream.
#[derive(Debug)]
pub struct Target {
    /// The remote.
    pub remote: Arc<Remote>,
    /// Its upstream; `None` where nobody may be asked: of a local repository, and offline.
    pub upstream: Option<Arc<dyn Upstream>>,
}

impl Target {
    /// One of its artifacts.
    fn key(&self, path: ArtifactPath) -> ArtifactKey {
        self.remote.key(path)
    }

    fn reach(&self) -> Reach {
        match &self.remote.kind {
            Kind::Local => Reach::Local,
            Kind::Remote(origin) if origin.offline => Reach::Offline,
            Kind::Remote(_) => Reach::Online,
        }
    }

    /// Whether nothing else will ever stand under this path. (Of a local repository, an upload may
    /// follow a removal.)
    pub fn is_lasting(&self, path: &ArtifactPath) -> bool {
        self.reach() != Reach::Local && self.class(path) == Class::Immutable
    }

    fn class(&self, path: &ArtifactPath) -> Class {
        if self.remote.patterns.is_mutable(path) {
            return Class::Head;
        }
        self.remote.format.classify(path)
    }
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    ports: Ports,
    flights: Arc<Flights>,
    fetches: FetchPool,
    uses: Arc<Uses>,
    readers: Arc<Readers>,
    space: Arc<Space>,
    counters: Arc<Counters>,
    claims: Claims,
    no_room: Arc<NoRoom>,
    // Whose turn it is among fills that found no room to stage: held while that one is fetched,
    // and only ever tried.
    room_turn: Mutex<()>,
    outdated_passes: Seats,
    lease_ttl: Duration,
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.space.close();
    }
}

impl Cache {
    /// A cache over these backends; starts the fetch threads and the keeper of space. Nothing
    /// bounds its space until [`Space::govern`] is called.
    pub fn new(ports: Ports, bounds: &CacheBounds) -> Self {
        let counters = Arc::new(Counters::default());
        let (space, flights): (Arc<Space>, Arc<Flights>) = Default::default();
        let (uses, readers): (Arc<Uses>, _) = (Arc::default(), Readers::new());
        let no_room = Arc::new(NoRoom::new());
        let fetcher = Fetcher {
            ports: ports.clone(),
            space: Arc::clone(&space),
            no_room: Arc::clone(&no_room),
            counters: Arc::clone(&counters),
            lease_ttl: bounds.lease_ttl,
        };
        let fetches = FetchPool::start(fetcher, bounds);
        let keeper = Keeper {
            ports: ports.clone(),
            space: Arc::clone(&space),
            flights: Arc::clone(&flights),
            readers: Arc::clone(&readers),
            uses: Arc::clone(&uses),
            counters: Arc::clone(&counters),
        };
        keeper.start();
        Self {
            ports,
            flights,
            fetches,
            uses,
            readers,
            space,
            counters,
            claims: Claims::default(),
            no_room,
            room_turn: Mutex::default(),
            outdated_passes: Seats::up_to(OUTDATED_PASSES_MAX),
            lease_ttl: bounds.lease_ttl,
        }
    }

    /// Seeks an artifact that the remote's patterns allow: in the store, in a flight, or at
    /// upstream. Blocks until its head is known, but waits for that of a flight for no longer
    /// than `patience`.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn seek(
        &self,
        target: &Target,
        path: &ArtifactPath,
        patience: Duration,
    ) -> Result<Sought, CacheError> {
        let key = target.key(path.clone());
        self.seek_in(ROUNDS_MAX, target, &key, patience)
    }

    fn seek_in(
        &self,
        rounds: usize,
        target: &Target,
        key: &ArtifactKey,
        patience: Duration,
    ) -> Result<Sought, CacheError> {
        let class = target.class(&key.path);
        for rounds_left in (0..rounds).rev() {
            // Before the row is looked up: between the two it could be evicted, blob and all.
            let reading = self.readers.read(key);
            let stored = match self.ports.index.get(key) {
                // Nobody can be asked instead, and what may be there is not absent.
                Err(error) if target.reach() != Reach::Online => {
                    self.counters.index_errors.inc();
                    return Err(CacheError::Store(chain(&error)));
                }
                stored => self.found_row(key, stored),
            };
            let decision = self.judge(target, key, class, stored.as_ref());
            let found = |found: Found| Ok(Sought::Found(found));
            let task = match (decision, stored) {
                (Decision::Hit(left), Some(entry)) => {
                    let left = left.map(seconds);
                    let key = key.clone();
                    return found(self.found_stored(key, entry, Outcome::Hit, left, reading));
                }
                (Decision::Stale, Some(entry)) => {
                    return found(self.stand_in(target, key.clone(), class, entry, reading));
                }
                (Decision::Fetch | Decision::Revalidate, _)
                    if self.no_room.was_met_by(key, self.ports.clock.now()) =>
                {
                    return found(self.pass_or_stand_in(target, key)?);
                }
                (Decision::Prove, Some(entry)) if target.reach() == Reach::Local => {
                    Task::Prove(self.provable(target, key, entry)?)
                }
                (Decision::Prove, Some(entry)) => Task::Prove(entry),
                (Decision::Revalidate, Some(entry)) => Task::Revalidate(entry),
                (Decision::Fetch, _) => Task::Fetch,
                _ if target.reach() == Reach::Offline => return Err(CacheError::Offline),
                _ => return Err(CacheError::Absent),
            };
            drop(reading);
            let may_stand_in = match &task {
                Task::Revalidate(entry) => self.may_stand_in(target, class, entry),
                Task::Fetch | Task::Prove(_) => false,
            };
            let member_of = self.head_of(target, class, &key.path);
            // What is only hashed is what is stored, of whichever head.
            let asks = !matches!(task, Task::Prove(_));
            if let Some((reader, outcome)) = self.join(target, key, member_of, task) {
                let is_outdated = asks && reader.member_of() != member_of;
                let outdated_until = is_outdated.then(|| Instant::now() + OUTDATED_PATIENCE);
                let until = match may_stand_in {
                    _ if is_outdated => Instant::now() + OUTDATED_WAIT_MAX,
                    true => reader.began() + STAND_IN_AFTER,
                    false => Instant::now() + HEAD_WAIT_MAX,
                };
                let key = key.clone();
                let boarding =
                    Boarding { key, reader, outcome, outdated_until, until, rounds_left };
                return self.board(target, boarding, patience);
            }
        }
        Err(CacheError::Unsettled)
    }

    /// Goes on with what [`Cache::seek`] has begun: waits for the flight's head, for no longer
    /// than `patience`.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn board(
        &self,
        target: &Target,
        boarding: Boarding,
        patience: Duration,
    ) -> Result<Sought, CacheError> {
        if let Some(deadline) = boarding.outdated_until {
            return self.outlast(target, boarding, deadline, patience);
        }
        let Some(begun) = boarding.reader.head(boarding.until, patience) else {
            return Ok(Sought::Boarding(boarding));
        };
        let Boarding { key, reader, outcome, rounds_left, .. } = boarding;
        let found = match begun {
            Begun::Head(head) => self.found_flying(&key, outcome, reader, head),
            Begun::TimedOut => {
                let late = Arc::new(FetchError::Late(Duration::from_secs(
                    reader.began().elapsed().as_secs(),
                )));
                self.after_failure(target, &key, late)?
            }
            Begun::Ended(End::Confirmed(entry)) => {
                // Whoever asked: its bytes come from the store.
                let left = self.freshness_left(target, &key, &entry);
                self.found_landed(key, entry, Outcome::Revalidated, left)
            }
            Begun::Ended(End::Already(entry)) => {
                let left = self.freshness_left(target, &key, &entry);
                self.found_landed(key, entry, Outcome::Hit, left)
            }
            Begun::Ended(End::Absent) => return Err(CacheError::Absent),
            Begun::Ended(End::Folder) => return Err(CacheError::Folder),
            Begun::Ended(End::Failed(why)) if !matches!(*why, FetchError::Abandoned) => {
                self.after_failure(target, &key, why)?
            }
            // The ground moved: nobody fetches it any more. (A flight that stored bytes had a
            // head.)
            Begun::Ended(End::Failed(_) | End::Stored(_) | End::Unstored) => {
                return self.seek_in(rounds_left, target, &key, patience);
            }
        };
        Ok(Sought::Found(found))
    }

    /// Waits for the landing of a flight that began under an earlier head, and seeks the member
    /// again; passes it through where that takes too long and not many are passed through already.
    fn outlast(
        &self,
        target: &Target,
        mut boarding: Boarding,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Sought, CacheError> {
        let patience_ends = Instant::now().checked_add(patience);
        loop {
            let now = Instant::now();
            let patience =
                patience_ends.map_or(patience, |ends| ends.saturating_duration_since(now));
            let left = boarding.until.saturating_duration_since(now);
            if boarding.reader.has_landed_within(left.min(patience)) {
                return self.seek_in(boarding.rounds_left, target, &boarding.key, patience);
            }
            if Instant::now() < boarding.until {
                return Ok(Sought::Boarding(boarding));
            }
            if let Some(seat) = self.outdated_passes.take() {
                return self.pass(target, boarding.key, Some(seat)).map(Sought::Found);
            }
            if Instant::now() >= deadline {
                return Err(CacheError::Fetch(Arc::new(FetchError::Overloaded)));
            }
            boarding.until = deadline.min(Instant::now() + OUTDATED_WAIT_MAX);
        }
    }

    /// Seeks an artifact again whose opening failed: anew where it was forgotten, at upstream
    /// where the store does not answer, and a stale copy where the fetch failed.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn recover(
        &self,
        target: &Target,
        path: &ArtifactPath,
        why: OpenError,
        patience: Duration,
    ) -> Result<Sought, CacheError> {
        let key = target.key(path.clone());
        let found = match why {
            OpenError::Gone => return self.seek(target, path, patience),
            OpenError::Lost(loss) => Err(CacheError::Lost(loss)),
            OpenError::Store(error) if target.reach() != Reach::Online => {
                Err(CacheError::Store(chain(&error)))
            }
            OpenError::Store(error) => {
                tracing::warn!(artifact = %key, error = chain(&error), "passing through: the store does not answer");
                self.pass(target, key, None)
            }
            OpenError::Fetch(why) => self.after_failure(target, &key, why),
        };
        found.map(Sought::Found)
    }

    /// Fetches without storing: when there is no room to stage, the store does not answer, or what is
    /// being fetched belongs to an earlier head. The seat is held until the client has its bytes.
    fn pass(
        &self,
        target: &Target,
        key: ArtifactKey,
        seat: Option<Seat>,
    ) -> Result<Found, CacheError> {
        let upstream = target.upstream.as_ref().ok_or(CacheError::Absent)?;
        counters::of(&self.counters.fetches, &key.remote).inc();
        let checksum = target.remote.format.digest_in(&key.path);
        let (about, passing) = pass::start(upstream, &key.path, checksum, self.ports.clock.now())?;
        if !target.is_lasting(&key.path)
            && let Ok(Some(stored)) = self.ports.index.get(&key)
        {
            // Its client sees what may be newer.
            self.ports.freshness.clear(&key, Mark::Fresh(stored.digest));
        }
        let met =
            Met { outcome: Outcome::Pass, about, ttl_s: None, is_stored: false, is_refresh: false };
        Ok(Found { met, bytes: Bytes { key, from: From::Passing(passing, seat) } })
    }

    /// Waits until a flight has landed, so that the digest is known; for a client that asks
    /// for it. A found artifact that is no flight, or whose bytes are not kept, is given back
    /// as it is; nothing of it was sent yet, so a failure ends like one before the head.
    ///
    /// # Errors
    /// Why the fetch failed.
    pub fn settle(&self, target: &Target, mut found: Found) -> Result<Found, CacheError> {
        let From::Flight(reader, _) = &found.bytes.from else { return Ok(found) };
        match reader.landing() {
            End::Stored(entry) => {
                let Met { outcome, is_refresh, .. } = found.met;
                let stored = self.found_landed(found.bytes.key, entry, outcome, None);
                Ok(Found { met: Met { is_refresh, ..stored.met }, ..stored })
            }
            End::Failed(why) => self.after_failure(target, &found.bytes.key, why),
            End::Unstored => {
                found.met.is_stored = false;
                Ok(found)
            }
            End::Confirmed(_) | End::Already(_) | End::Absent | End::Folder => Ok(found),
        }
    }

    /// What the cache counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The space that what is stored takes up, and its bounds.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Fetches in the air.
    pub fn flight_count(&self) -> usize {
        self.flights.count()
    }

    /// Fetches that wait for a thread.
    pub fn fetches_queued(&self) -> usize {
        self.fetches.queued()
    }

    /// Fetches of batches that can run at once: half of the threads.
    pub fn batch_fetches_max(&self) -> usize {
        self.fetches.batch_threads()
    }

    /// The backends, for what reports on them.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// What a request for a stored artifact would meet now.
    pub fn judge_row(&self, target: &Target, row: &Row) -> Decision {
        self.judge(target, &row.key, target.class(&row.key.path), Some(&row.entry))
    }

    /// Writes down which artifacts were used since the last call.
    pub fn record_uses(&self) {
        self.uses.flush(&*self.ports.index);
    }

    fn judge(
        &self,
        target: &Target,
        key: &ArtifactKey,
        class: Class,
        stored: Option<&Entry>,
    ) -> Decision {
        let (reach, lifetimes) = (target.reach(), &target.remote.lifetimes);
        // Only what can change, or is not there, is worth asking marks for.
        let may_change = class != Class::Immutable && reach != Reach::Local;
        let fresh = stored.filter(|_| may_change).and_then(|stored| {
            self.mark_left(key, Mark::Fresh(stored.digest), lifetimes.index_ttl)
        });
        let may_be_absent = reach == Reach::Online
            && fresh.is_none()
            && (stored.is_none() || class != Class::Immutable);
        let facts = Facts {
            class,
            stored,
            fresh,
            absent: may_be_absent
                && self.mark_left(key, Mark::Absent, lifetimes.negative_ttl).is_some(),
            head: stored.and_then(|_| self.head_of(target, class, &key.path)),
            reach,
        };
        policy::decide(self.ports.clock.now(), lifetimes, &facts)
    }

    /// How long a mark still holds. One that would hold for longer than the `lifetime` that such
    /// marks have is from before that was shortened, and holds no more.
    fn mark_left(&self, key: &ArtifactKey, mark: Mark, lifetime: Duration) -> Option<Duration> {
        if lifetime.is_zero() {
            return None;
        }
        self.ports.freshness.remaining(key, mark).filter(|left| *left <= lifetime)
    }

    /// The row; none where the index can't answer, which costs a fetch.
    fn lookup(&self, key: &ArtifactKey) -> Option<Entry> {
        self.found_row(key, self.ports.index.get(key))
    }

    fn found_row(
        &self,
        key: &ArtifactKey,
        row: Result<Option<Entry>, IndexError>,
    ) -> Option<Entry> {
        row.unwrap_or_else(|error| {
            self.counters.index_errors.inc();
            tracing::warn!(error = chain(&error), artifact = %key, "the index does not answer");
            None
        })
    }

    /// The digest of the head that a member is valid with, as it is stored now.
    fn head_of(&self, target: &Target, class: Class, path: &ArtifactPath) -> Option<Digest> {
        if class != Class::Member {
            return None;
        }
        let heads = target.remote.format.heads_of(path);
        let keys = heads.into_iter().map(|path| target.key(path)).inspect(|key| {
            // Who has the last byte of a new one may be here before its row.
            if let Some(landing) = self.flights.find(key).filter(FlightReader::is_complete) {
                landing.has_landed_within(LANDING_WAIT_MAX);
            }
        });
        stored_head(&*self.ports.index, keys).map(|(_, head)| head.digest)
    }

    /// Leads or follows a flight; `None` where the ground moved and the request starts again.
    fn join(
        &self,
        target: &Target,
        key: &ArtifactKey,
        member_of: Option<Digest>,
        task: Task,
    ) -> Option<(FlightReader, Outcome)> {
        match self.flights.join(key, member_of) {
            // Whoever asks again right after the last byte came finds it stored.
            Joined::Follow(reader)
                if reader.is_complete() && reader.has_landed_within(LANDING_WAIT_MAX) =>
            {
                None
            }
            Joined::Follow(reader) => {
                reader.hurry();
                self.fetches.promote(key);
                Some((reader, Outcome::Collapsed))
            }
            Joined::Lead(writer) => {
                let blob = BlobKey::of(key);
                let reader = self.depart(target, key, blob, task, writer, Urgency::Client)?;
                Some((reader, Outcome::Miss))
            }
        }
    }

    /// Sends a flight on its way; `None` where another one landed between the caller's look at
    /// the index and its lead.
    fn depart(
        &self,
        target: &Target,
        key: &ArtifactKey,
        blob: BlobKey,
        task: Task,
        writer: FlightWriter,
        urgency: Urgency,
    ) -> Option<FlightReader> {
        if self.lookup(key).map(|entry| entry.generation) != task.generation() {
            writer.end(End::Failed(Arc::new(FetchError::Abandoned)));
            return None;
        }
        let reader = writer.reader();
        let job = Job {
            writer,
            key: key.clone(),
            blob,
            class: target.class(&key.path),
            task,
            remote: Arc::clone(&target.remote),
            upstream: target.upstream.clone(),
        };
        // Where the queue is full, the flight ends as overloaded, and its readers learn that.
        self.fetches.submit(job, urgency);
        Some(reader)
    }

    /// The stored copy, if it may stand in for a fetch that failed; upstream's bytes unstored
    /// where they only could not be staged.
    fn after_failure(
        &self,
        target: &Target,
        key: &ArtifactKey,
        why: Arc<FetchError>,
    ) -> Result<Found, CacheError> {
        if matches!(&*why, FetchError::Staging(why) if why.is_of_scratch_space()) {
            return self.pass_or_stand_in(target, key);
        }
        let class = target.class(&key.path);
        let reading = self.readers.read(key);
        let stored = self
            .lookup(key)
            .filter(|entry| why.is_failure() && self.may_stand_in(target, class, entry));
        match stored {
            Some(entry) => {
                tracing::warn!(artifact = %key, error = chain(&*why), "serving a stale copy");
                Ok(self.stand_in(target, key.clone(), class, entry, reading))
            }
            None => Err(CacheError::Fetch(why)),
        }
    }

    fn pass_or_stand_in(&self, target: &Target, key: &ArtifactKey) -> Result<Found, CacheError> {
        match self.pass(target, key.clone(), None) {
            Err(CacheError::Fetch(why)) => self.after_failure(target, key, why),
            passed_or_absent => passed_or_absent,
        }
    }

    fn may_stand_in(&self, target: &Target, class: Class, entry: &Entry) -> bool {
        policy::may_stand_in(self.ports.clock.now(), &target.remote.lifetimes, class, entry)
    }

    fn stand_in(
        &self,
        target: &Target,
        key: ArtifactKey,
        class: Class,
        entry: Entry,
        reading: Option<Reading>,
    ) -> Found {
        let now = self.ports.clock.now();
        let stale_for = policy::staleness(now, &target.remote.lifetimes, class, &entry);
        // In its first second it is no hit either.
        let ttl_s = -seconds(stale_for).max(1);
        self.found_stored(key, entry, Outcome::Stale, Some(ttl_s), reading)
    }

    fn freshness_left(&self, target: &Target, key: &ArtifactKey, entry: &Entry) -> Option<i64> {
        match target.class(&key.path) {
            Class::Immutable => target.remote.lifetimes.file_ttl.map(seconds),
            _ => {
                let index_ttl = target.remote.lifetimes.index_ttl;
                self.mark_left(key, Mark::Fresh(entry.digest), index_ttl).map(seconds)
            }
        }
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
