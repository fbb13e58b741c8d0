//! Filling the cache for its own sake: nobody waits for the bytes.
//!
//! A fill is judged and fetched as a client's request is, through the same flights, but at a
//! batch's urgency, and it is over when its flight has landed. Where a client's request would be
//! passed through because there is no room to stage, a fill waits for what takes it up to end.

use std::ops::ControlFlow;
use std::sync::{MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use super::fetch::Task;
use super::flight::{End, FlightReader, Joined};
use super::pool::Urgency;
use super::{Cache, CacheError, FetchError, ROUNDS_MAX, Reach, Target};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, Entry};
use crate::policy::Decision;
use crate::staging::StagingError;

/// How often whoever asked for a fill hears of its progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How often a fill is fetched that found no room to stage. Others are quicker now and then, and
/// a length that was not announced can be too much for any wait.
const ROOM_TRIES_MAX: usize = 4;

/// What a fill is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it is stored and fresh.
    Fresh,
    /// That upstream has confirmed it now, fresh or not.
    Confirmed,
}

/// What a fill has brought about.
#[derive(Debug)]
pub enum Filled {
    /// It was stored already; upstream was not asked, or confirmed it.
    Already(Entry),
    /// It was fetched and stored.
    Fetched(Entry),
    /// It was fetched but can't be stored: too large, without framing, or the store failed.
    Unstored,
    /// Whoever asked does not want it any more. A fetch that has begun goes on;
    /// one that waits for a thread is withdrawn.
    Cancelled,
}

/// Hears now and then how many bytes have come; a `Break` ends the wait.
pub type Reporter<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

impl Cache {
    /// Sees to it that an artifact, which the remote's patterns allow, is stored. What is
    /// fetched is stored under `blob` where that is given, and under its usual key otherwise.
    /// Blocks until it is over.
    ///
    /// # Errors
    /// [`CacheError`]; a stale copy is no success here.
    pub fn fill(
        &self,
        target: &Target,
        path: &ArtifactPath,
        blob: Option<&BlobKey>,
        wish: Wish,
        report: Reporter<'_>,
    ) -> Result<Filled, CacheError> {
        let (mut turn, mut tries, mut waits) = (None, 0, 0);
        loop {
            let tried = self.try_fill(target, path, blob, wish, report);
            drop(turn.take());
            let wanted = match tried {
                Ok(Tried::Ended(filled)) => return Ok(filled),
                Ok(Tried::NoRoom(wanted)) => wanted,
                Err(error) => {
                    let Some(left) = pause_after(&error, waits) else { return Err(error) };
                    waits += 1;
                    if pause(left, report).is_break() {
                        return Ok(Filled::Cancelled);
                    }
                    continue;
                }
            };
            tries += 1;
            if tries == ROOM_TRIES_MAX || wanted > self.ports.staging.bytes_max() {
                break;
            }
            turn = match self.room_to_stage(wanted, report) {
                Some(turn) => Some(turn),
                None => return Ok(Filled::Cancelled),
            };
        }
        Ok(Filled::Unstored)
    }

    /// Waits until so much can be staged, which running fetches and uploads bring about when they
    /// end; `None` where the reporter wants no more. Gives the turn to try: fills that wait do not
    /// take the room from each other.
    fn room_to_stage(&self, bytes: u64, report: Reporter<'_>) -> Option<MutexGuard<'_, ()>> {
        let staging = &self.ports.staging;
        loop {
            // In any case: what is full may be the disk, of which nothing is known.
            if pause(REPORT_INTERVAL, report).is_break() {
                return None;
            }
            if bytes > staging.bytes_max().saturating_sub(staging.reserved_bytes()) {
                continue;
            }
            match self.room_turn.try_lock() {
                Ok(turn) => return Some(turn),
                Err(TryLockError::Poisoned(turn)) => return Some(turn.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    fn try_fill(
        &self,
        target: &Target,
        path: &ArtifactPath,
        blob: Option<&BlobKey>,
        wish: Wish,
        report: Reporter<'_>,
    ) -> Result<Tried, CacheError> {
        let key = target.key(path.clone());
        for _ in 0..ROUNDS_MAX {
            let task = match self.fill_task(target, &key, wish)? {
                Due::Nothing(entry) => return Ok(Tried::Ended(Filled::Already(entry))),
                Due::Task(task) => task,
            };
            let member_of = self.head_of(target, target.class(path), path);
            let (reader, is_lead) = match self.flights.join(&key, member_of) {
                Joined::Follow(reader) => (reader, false),
                Joined::Lead(writer) => {
                    let blob = blob.cloned().unwrap_or_else(|| BlobKey::of(&key));
                    match self.depart(target, &key, blob, task, writer, Urgency::Batch) {
                        Some(reader) => (reader, true),
                        None => continue,
                    }
                }
            };
            let landed = landing(&reader, report);
            if landed.is_some() && reader.member_of() != member_of {
                // It began under an earlier head.
                continue;
            }
            match landed {
                None => {
                    if is_lead {
                        self.fetches.withdraw(&key);
                    }
                    return Ok(Tried::Ended(Filled::Cancelled));
                }
                Some(End::Stored(entry)) => return Ok(Tried::Ended(Filled::Fetched(entry))),
                Some(End::Confirmed(entry) | End::Already(entry)) => {
                    return Ok(Tried::Ended(Filled::Already(entry)));
                }
                Some(End::Unstored) => return Ok(Tried::Ended(Filled::Unstored)),
                Some(End::Absent) => return Err(CacheError::Absent),
                Some(End::Folder) => return Err(CacheError::Folder),
                Some(End::Failed(why)) => match *why {
                    FetchError::Abandoned => {}
                    FetchError::Staging(StagingError::Full { wanted, .. }) => {
                        return Ok(Tried::NoRoom(reader.written() + wanted));
                    }
                    _ => return Err(CacheError::Fetch(why)),
                },
            }
        }
        Err(CacheError::Unsettled)
    }

    /// Whether an artifact is stored and fresh, without asking upstream.
    pub fn is_filled(&self, target: &Target, path: &ArtifactPath) -> Option<Entry> {
        let key = target.key(path.clone());
        match self.fill_task(target, &key, Wish::Fresh) {
            Ok(Due::Nothing(entry)) => Some(entry),
            Ok(Due::Task(_)) | Err(_) => None,
        }
    }

    fn fill_task(&self, target: &Target, key: &ArtifactKey, wish: Wish) -> Result<Due, CacheError> {
        let stored = self.lookup(key);
        let class = target.class(&key.path);
        let decision = self.judge(target, key, class, stored.as_ref());
        let is_forced = wish == Wish::Confirmed && target.reach() == Reach::Online;
        Ok(match (decision, stored) {
            (Decision::Prove, Some(entry)) if !is_forced => Due::Task(Task::Prove(entry)),
            (_, Some(entry)) if is_forced => Due::Task(Task::Revalidate(entry)),
            (Decision::Hit(_) | Decision::Stale, Some(entry)) => Due::Nothing(entry),
            (Decision::Revalidate, Some(entry)) => Due::Task(Task::Revalidate(entry)),
            (Decision::Fetch, _) => Due::Task(Task::Fetch),
            (_, None) if is_forced => Due::Task(Task::Fetch),
            _ if target.reach() == Reach::Offline => return Err(CacheError::Offline),
            _ => return Err(CacheError::Absent),
        })
    }
}

/// What became of one try.
enum Tried {
    Ended(Filled),
    /// There was no room to stage the file, of which so many bytes are known.
    NoRoom(u64),
}

enum Due {
    Nothing(Entry),
    Task(Task),
}

/// How long to wait before the next try of a fill that failed so, after so many waits.
fn pause_after(error: &CacheError, waits: usize) -> Option<Duration> {
    match error {
        CacheError::Fetch(why) => match &**why {
            FetchError::Upstream(error) => error.pause(waits),
            _ => None,
        },
        _ => None,
    }
}

/// Lets time pass; a `Break` where the reporter wants no more.
fn pause(length: Duration, report: Reporter<'_>) -> ControlFlow<()> {
    let until = Instant::now() + length;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(REPORT_INTERVAL));
        report(0)?;
    }
    ControlFlow::Continue(())
}

/// Waits for the end of a flight, which always comes; `None` where the reporter wants no more.
fn landing(reader: &FlightReader, report: Reporter<'_>) -> Option<End> {
    while !reader.has_landed_within(REPORT_INTERVAL) {
        if report(reader.written()).is_break() {
            return None;
        }
    }
    Some(reader.landing())
}
