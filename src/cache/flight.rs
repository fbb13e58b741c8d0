//! Flights: one fetch of an artifact, and everybody who reads along.
//!
//! A flight lives in the table from [`Flights::join`] until its writer ends. The writer fills a
//! scratch file; readers follow it at any offset and at their own speed, so no reader can slow
//! or abort the fetch. Every end, a dropped writer included, takes the flight out of the table
//! first and wakes the readers then: a newcomer finds the flight, or what it left behind.
//!
//! A reader that has waited long enough is no thread any more: it leaves a call that the writer
//! makes when what it waits for has come ([`Coming`]).
//!
//! Locks: the table's and a flight's own, never one inside the other, none across I/O. Who begins
//! or ends a wait tells so while it holds the flight's ([`waiting::wait`]), and a pool's queue
//! takes its own lock to hear it: first a flight's lock, then a queue's, never the other way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::FetchError;
use crate::artifact::{ArtifactKey, Digest, Entry, Validators};
use crate::body::{BodyError, Piece, Source};
use crate::staging::Scratch;
use crate::waiting::{self, Awaited, Wake};

mod calls;

pub use calls::Coming;
use calls::{Calls, Reached, Until};

/// How much of the end is held back while a body's checksum is not yet known to be right. Small
/// bodies are held back whole, which lets a wrong one be answered with an error.
pub const HOLD_BACK_BYTES: u64 = 64 << 10;
/// How much a reader lets come together, and for how long at most, while upstream is quick: so
/// that the reader and the writer wake each other a quarter as often.
const GATHER_BYTES: u64 = 256 << 10;
const GATHER_WAIT: Duration = Duration::from_millis(1);

/// The flights in the air.
#[derive(Debug, Default)]
pub struct Flights {
    table: Mutex<HashMap<ArtifactKey, Arc<Flight>>>,
}

/// What became of a [`Flights::join`].
#[derive(Debug)]
pub enum Joined {
    /// There was none: the caller leads and must see to the fetch.
    Lead(FlightWriter),
    /// There is one already.
    Follow(FlightReader),
}

impl Flights {
    /// Joins the flight of an artifact, or begins one. `member_of` is the stored head that the
    /// artifact is a member of, if it is one.
    pub fn join(self: &Arc<Self>, key: &ArtifactKey, member_of: Option<Digest>) -> Joined {
        let mut table = lock(&self.table);
        if let Some(flight) = table.get(key) {
            return Joined::Follow(FlightReader { flight: Arc::clone(flight) });
        }
        let flight = Arc::new(Flight::new(member_of));
        table.insert(key.clone(), Arc::clone(&flight));
        Joined::Lead(FlightWriter { flights: Arc::clone(self), key: key.clone(), flight })
    }

    /// A reader of the one of this artifact, if there is one.
    pub fn find(&self, key: &ArtifactKey) -> Option<FlightReader> {
        let flight = lock(&self.table).get(key).map(Arc::clone)?;
        Some(FlightReader { flight })
    }

    /// Whether there is one of this artifact.
    pub fn has(&self, key: &ArtifactKey) -> bool {
        lock(&self.table).contains_key(key)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.table).len()
    }
}

/// Nothing panics while it holds one of these locks; if something did, the state is still one
/// that every reader can live with.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[derive(Debug)]
struct Flight {
    began: Instant,
    member_of: Option<Digest>,
    // Guards the state below; what hears of waits may take its own lock while it is held.
    state: Mutex<State>,
    changed: Condvar,
    // Whether a client reads along; never taken back.
    urgent: AtomicBool,
}

impl Flight {
    fn new(member_of: Option<Digest>) -> Self {
        let (state, changed, urgent) = Default::default();
        Self { began: Instant::now(), member_of, state, changed, urgent }
    }
}

#[derive(Default)]
struct State {
    head: Option<Arc<FlightHead>>,
    written: u64,
    // How many readers wait, and the least number of readable bytes that one of them waits for.
    waiting: usize,
    awaited: Option<u64>,
    calls: Calls,
    whole: bool,
    end: Option<End>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("written", &self.written)
            .field("whole", &self.whole)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// What is known once upstream's answer has begun.
#[derive(Debug)]
pub struct FlightHead {
    /// The growing file, and its room.
    pub file: Arc<Scratch>,
    /// The length, where upstream announced it.
    pub len: Option<u64>,
    /// Upstream's validators.
    pub validators: Validators,
    /// Upstream's `Content-Type`.
    pub content_type: Option<String>,
    /// Upstream's `Content-Encoding`, where it insisted on one.
    pub content_encoding: Option<String>,
    /// When upstream answered.
    pub answered_at: SystemTime,
    /// Whether the end is held back until the bytes are known to be right.
    pub is_checked: bool,
    /// Whether it is to be stored, as far as the head tells.
    pub is_storable: bool,
    /// Whether a stored copy was asked about, which this replaces.
    pub is_refresh: bool,
}

/// How a flight ended.
#[derive(Debug, Clone)]
pub enum End {
    /// The bytes are stored.
    Stored(Entry),
    /// The bytes came whole but are not kept.
    Unstored,
    /// What was stored before is right: upstream says so.
    Confirmed(Entry),
    /// What is stored is right, and this flight did not ask upstream: its bytes were hashed, or
    /// another replica has just stored it.
    Already(Entry),
    /// Upstream has no such file.
    Absent,
    /// Upstream has a folder of that name.
    Folder,
    /// It failed.
    Failed(Arc<FetchError>),
}

/// The one who fills a flight.
#[derive(Debug)]
pub struct FlightWriter {
    flights: Arc<Flights>,
    key: ArtifactKey,
    flight: Arc<Flight>,
}

impl FlightWriter {
    /// A reader of this flight.
    pub fn reader(&self) -> FlightReader {
        FlightReader { flight: Arc::clone(&self.flight) }
    }

    /// The head that was stored when the flight began: what upstream says later may already
    /// belong to the next one, but not to an earlier one.
    pub fn member_of(&self) -> Option<Digest> {
        self.flight.member_of
    }

    /// Whether anybody reads along, or is about to. (The table and the writer hold it too.)
    pub fn is_followed(&self) -> bool {
        Arc::strong_count(&self.flight) > 2
    }

    /// Upstream's answer has begun: readers may look at the head and at the file. Those that wait
    /// are woken by the first bytes, which seldom are long in coming.
    pub fn start(&self, head: FlightHead) {
        lock(&self.flight.state).head = Some(Arc::new(head));
    }

    /// The file has `written` bytes now.
    pub fn grew(&self, written: u64) {
        let mut state = lock(&self.flight.state);
        let had_none = state.readable() == 0;
        state.written = written;
        let readable = state.readable();
        let is_awaited = state.awaited.take_if(|awaited| *awaited <= readable).is_some();
        let calls = state.take_calls();
        drop(state);
        if is_awaited {
            self.flight.changed.notify_all();
        }
        make(calls);
        if is_awaited && had_none {
            // Who waits for the first bytes goes first, where processors are few: the
            // scheduler would let this thread run on for milliseconds.
            std::thread::yield_now();
        }
    }

    /// Every byte is there and right: nothing is held back any longer.
    pub fn whole(&self) {
        self.update(|state| state.whole = true);
    }

    /// Ends the flight.
    pub fn end(self, end: End) {
        self.land(end);
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.flight.state);
        change(&mut state);
        let (calls, has_waiting) = (state.take_calls(), state.waiting > 0);
        drop(state);
        if has_waiting {
            self.flight.changed.notify_all();
        }
        make(calls);
    }

    fn land(&self, end: End) {
        // Out of the table first: who is woken by a failure must not join it again.
        let mut table = lock(&self.flights.table);
        if table.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            table.remove(&self.key);
        }
        drop(table);
        self.update(|state| {
            state.end.get_or_insert(end);
        });
    }
}

impl Drop for FlightWriter {
    fn drop(&mut self) {
        self.land(End::Failed(Arc::new(FetchError::Abandoned)));
    }
}

/// One who reads along.
#[derive(Debug, Clone)]
pub struct FlightReader {
    flight: Arc<Flight>,
}

/// What a reader learns when it waits for the beginning.
#[derive(Debug, Clone)]
pub enum Begun {
    /// The bytes come, or came.
    Head(Arc<FlightHead>),
    /// It ended without bytes of its own.
    Ended(End),
    /// Nothing happened in time.
    TimedOut,
}

impl FlightReader {
    /// Waits for upstream's answer and its first readable bytes, at most until `deadline`; an
    /// answer whose bytes are not there by then is given without. `None` where `patience` has
    /// run out before.
    pub fn head(&self, deadline: Instant, patience: Duration) -> Option<Begun> {
        let patience = Patience::new(patience);
        let mut state = lock(&self.flight.state);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let has_bytes = state.whole || state.readable() > 0;
            match (&state.head, &state.end) {
                (_, Some(End::Failed(why))) => {
                    return Some(Begun::Ended(End::Failed(Arc::clone(why))));
                }
                (Some(head), end) if has_bytes || end.is_some() || left.is_zero() => {
                    return Some(Begun::Head(Arc::clone(head)));
                }
                (None, Some(end)) => return Some(Begun::Ended(end.clone())),
                (None, None) if left.is_zero() => return Some(Begun::TimedOut),
                _ => {}
            }
            if patience.left().is_zero() {
                return None;
            }
            state.await_bytes(1);
            state = self.wait(state, left.min(patience.left()));
        }
    }

    /// See [`FlightWriter::member_of`].
    pub fn member_of(&self) -> Option<Digest> {
        self.flight.member_of
    }

    /// When the flight began.
    pub fn began(&self) -> Instant {
        self.flight.began
    }

    /// Waits until the byte at `offset` can be read, or there is none; a fetch that fails
    /// before that can still be answered with an error. The wait ends at the latest when the
    /// fetch runs into its own timeouts, since a writer always ends.
    ///
    /// # Errors
    /// Why the fetch failed.
    pub fn wait_for(&self, offset: u64) -> Result<(), Arc<FetchError>> {
        self.readable_from(offset, Duration::ZERO, Duration::MAX).map(drop)
    }

    /// Waits until the byte at `offset` can be read, or there is none, at most for `patience`:
    /// gives what is still to come then.
    pub fn comes_later(&self, offset: u64, patience: Duration) -> Option<Coming> {
        match self.readable_from(offset, Duration::ZERO, patience) {
            Ok(None) => Some(self.coming(Until::Readable(offset + 1))),
            Ok(Some(_)) | Err(_) => None,
        }
    }

    /// Waits for the end of the flight, at most for `patience`: gives what is still to come then.
    pub fn lands_later(&self, patience: Duration) -> Option<Coming> {
        (!self.has_landed_within(patience)).then(|| self.landing_to_come())
    }

    /// What [`FlightReader::head`] waits for.
    pub fn head_to_come(&self) -> Coming {
        self.coming(Until::Readable(1))
    }

    /// What [`FlightReader::has_landed_within`] waits for.
    pub fn landing_to_come(&self) -> Coming {
        self.coming(Until::Landed)
    }

    fn coming(&self, until: Until) -> Coming {
        Coming { flight: Arc::clone(&self.flight), until }
    }

    /// Waits for the end of the flight, which always comes: see [`FlightReader::wait_for`].
    pub fn landing(&self) -> End {
        self.landing_within(Duration::MAX).expect("this patience has no end")
    }

    fn landing_within(&self, patience: Duration) -> Option<End> {
        let patience = Patience::new(patience);
        let mut state = lock(&self.flight.state);
        loop {
            let left = patience.left();
            match &state.end {
                Some(end) => return Some(end.clone()),
                None if left.is_zero() => return None,
                None => {}
            }
            state = self.wait(state, left);
        }
    }

    /// Whether every byte has come, though the flight may not have landed yet.
    pub fn is_complete(&self) -> bool {
        let state = lock(&self.flight.state);
        let announced = state.head.as_ref().and_then(|head| head.len);
        state.whole || announced.is_some_and(|len| state.written >= len)
    }

    /// Waits until the flight has landed, at most for `patience`; says whether it has.
    pub fn has_landed_within(&self, patience: Duration) -> bool {
        self.landing_within(patience).is_some()
    }

    /// Whether a client reads along, so that the fetch must not wait behind batches.
    pub fn is_urgent(&self) -> bool {
        self.flight.urgent.load(Ordering::SeqCst)
    }

    /// Says that a client reads along.
    pub fn hurry(&self) {
        self.flight.urgent.store(true, Ordering::SeqCst);
    }

    /// How many bytes the file has.
    pub fn written(&self) -> u64 {
        lock(&self.flight.state).written
    }

    /// How the flight ended, if it did.
    pub fn ended(&self) -> Option<End> {
        lock(&self.flight.state).end.clone()
    }

    /// The bytes from `from` on, up to `to` or the end, as they come.
    pub fn follow(&self, head: Arc<FlightHead>, from: u64, to: Option<u64>) -> FlightSource {
        let (reader, readable) = (self.clone(), from);
        FlightSource { reader, head, offset: from, to, readable, is_quick: false }
    }

    /// Waits for bytes behind `offset` and says where they end now; `offset` itself where the
    /// body ends there. Where there are none yet, lets [`GATHER_BYTES`] of them come together
    /// for as long as `gather`. `None` where `patience` has run out before.
    fn readable_from(
        &self,
        offset: u64,
        gather: Duration,
        patience: Duration,
    ) -> Result<Option<u64>, Arc<FetchError>> {
        let mut state = lock(&self.flight.state);
        if state.readable() > offset {
            return Ok(Some(state.readable()));
        }
        let (gathered_at, patience) = (Instant::now() + gather, Patience::new(patience));
        loop {
            let (readable, gather) =
                (state.readable(), gathered_at.saturating_duration_since(Instant::now()));
            let is_over = state.whole || state.end.is_some();
            let wanted = offset + if gather.is_zero() || is_over { 1 } else { GATHER_BYTES };
            if readable >= wanted {
                return Ok(Some(readable));
            }
            if state.whole {
                return Ok(Some(offset));
            }
            match &state.end {
                Some(End::Failed(why)) => return Err(Arc::clone(why)),
                Some(_) => return Ok(Some(offset)),
                None if patience.left().is_zero() => return Ok(None),
                None => {}
            }
            state.await_bytes(wanted);
            let left = if gather.is_zero() { patience.left() } else { gather };
            state = self.wait(state, left);
        }
    }

    /// Waits for a change, at most for `left`.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        left: Duration,
    ) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let wait = || self.flight.changed.wait_timeout(state, left);
        let mut state = waiting::wait(wait).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }
}

/// How long a wait may go on.
struct Patience(Option<Instant>);

impl Patience {
    /// From now on; [`Duration::MAX`] has no end.
    fn new(patience: Duration) -> Self {
        Self(Instant::now().checked_add(patience))
    }

    fn left(&self) -> Duration {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        self.0.map_or(Duration::MAX, left)
    }
}

/// Makes calls, without any lock.
fn make(calls: Vec<Wake>) {
    calls.into_iter().for_each(|wake| wake());
}

impl State {
    fn reached(&self) -> Reached {
        let (is_whole, has_ended) = (self.whole, self.end.is_some());
        Reached { readable: self.readable(), is_whole, has_ended }
    }

    /// The calls that are due.
    fn take_calls(&mut self) -> Vec<Wake> {
        let reached = self.reached();
        self.calls.take_due(reached)
    }

    /// A reader is about to wait for so many readable bytes.
    fn await_bytes(&mut self, wanted: u64) {
        self.awaited = Some(self.awaited.map_or(wanted, |awaited| awaited.min(wanted)));
    }

    fn readable(&self) -> u64 {
        match &self.head {
            Some(head) if head.is_checked && !self.whole => {
                self.written.saturating_sub(HOLD_BACK_BYTES)
            }
            _ => self.written,
        }
    }
}

/// A body that follows a flight.
#[derive(Debug)]
pub struct FlightSource {
    reader: FlightReader,
    head: Arc<FlightHead>,
    offset: u64,
    to: Option<u64>,
    // Where the bytes that are known of end.
    readable: u64,
    // Whether the last bytes came fast enough to gather the next.
    is_quick: bool,
}

impl FlightSource {
    /// Waits for bytes or the end, at most for `patience`; says whether they have come.
    fn wait(&mut self, patience: Duration) -> Result<bool, Arc<FetchError>> {
        if self.readable > self.offset || self.to.is_some_and(|to| self.offset >= to) {
            return Ok(true);
        }
        let began = Instant::now();
        let gather = if self.is_quick { GATHER_WAIT } else { Duration::ZERO };
        let Some(readable) = self.reader.readable_from(self.offset, gather, patience)? else {
            return Ok(false);
        };
        let has_much = readable - self.offset >= GATHER_BYTES / 4;
        self.is_quick = has_much && began.elapsed() < GATHER_WAIT;
        self.readable = readable;
        Ok(true)
    }
}

impl Source for FlightSource {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        self.wait(Duration::MAX)
            .map_err(|why| BodyError::Cut(format!("the fetch failed: {why}")))?;
        let end = self.to.map_or(self.readable, |to| self.readable.min(to));
        let (offset, len) = (self.offset, end - self.offset);
        self.offset = end;
        Ok((len > 0).then_some(Piece::Region { file: self.head.file.file(), offset, len }))
    }

    fn comes_later(&mut self, patience: Duration) -> Option<Box<dyn Awaited>> {
        // What has failed is told by the next piece.
        match self.wait(patience) {
            Ok(true) | Err(_) => None,
            Ok(false) => Some(Box::new(self.reader.coming(Until::Readable(self.offset + 1)))),
        }
    }
}

#[cfg(test)]
mod tests;
