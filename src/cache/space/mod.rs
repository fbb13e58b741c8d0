//! Space: how much is stored, how much may be, and who waits for room.
//!
//! A fetch asks for [`Room`] before it publishes, so that what is stored never exceeds a
//! bound: what waits for room is still staged. Who finds none wakes the keeper ([`evict`]),
//! a thread of its own, waits for it on the fetch pool, and leaves its file unstored if
//! nothing can go. Hits take no part in any of this.
//!
//! The index knows what is stored; the keeper asks it from time to time and before it evicts,
//! and the account adds what this process has published since. Where replicas share an index,
//! each learns of the others' files at its next question, at most [`ASK_INTERVAL`] later: by
//! what they store in that time the bound may be exceeded.
//!
//! Local repositories count for no bound and lose nothing. Neither do remotes that are not
//! configured (any more): they may have been local.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::artifact::RemoteName;
use crate::config::{Remote, Remotes};
use crate::index::Usage;

mod account;
mod evict;
#[cfg(test)]
mod tests;

use account::Account;
pub(super) use evict::Keeper;

/// How often the keeper looks by itself, and asks the index what is stored.
pub(super) const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// How long a fetch waits for room, its file still staged, before it goes unstored.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);
/// How many rounds of the keeper a fetch waits for: after the second that began after its
/// wish and made no room, there is nothing that could go.
const ROUNDS_WAITED_MAX: u64 = 2;

/// Which bounds hold.
#[derive(Debug, Clone, Default)]
pub struct SpacePlan {
    /// The most that all remotes' stored artifacts take up together, in bytes.
    pub bytes_max: Option<u64>,
    /// What the file system of the blobs keeps free, in bytes, whoever fills it.
    pub free_bytes_min: Option<u64>,
    /// The remotes, with bounds of their own.
    pub remotes: Arc<Remotes>,
}

impl SpacePlan {
    /// The remotes whose artifacts may go: not the local repositories.
    fn cached(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.by_name.values().filter(|remote| !remote.is_local())
    }

    /// Whether a remote of this name is configured and no local repository.
    pub fn has_cached(&self, name: &RemoteName) -> bool {
        self.remotes.by_name.get(name).is_some_and(|remote| !remote.is_local())
    }

    /// The smallest bound that a file of this remote must fit in.
    fn tightest(&self, remote: &Remote) -> Option<u64> {
        let own = remote.keeping.max_bytes;
        own.into_iter().chain(self.bytes_max).min()
    }
}

/// The space of one cache.
#[derive(Debug, Default)]
pub struct Space {
    // Guards plan and account for single steps; nothing else is taken under it.
    state: Mutex<State>,
    /// There may be room now, or a round has ended.
    changed: Condvar,
    /// The keeper has something to do.
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    plan: SpacePlan,
    /// Counts the plans, so that the keeper notices another one.
    plan_number: u64,
    account: Account,
    /// Bytes that fetches wait for, by remote.
    wanted: BTreeMap<RemoteName, u64>,
    rounds_begun: u64,
    rounds_ended: u64,
    is_called: bool,
    is_closing: bool,
}

impl Space {
    /// Puts bounds in force. What exceeds them goes soon.
    pub fn govern(&self, plan: SpacePlan) {
        let mut state = self.state();
        state.plan = plan;
        state.plan_number += 1;
        self.call(&mut state);
    }

    /// The bounds in force.
    pub fn plan(&self) -> SpacePlan {
        self.state().plan.clone()
    }

    /// What the remotes take up, as the keeper last learned it; empty before it did.
    pub fn usage(&self) -> BTreeMap<RemoteName, Usage> {
        self.state().account.known().cloned().unwrap_or_default()
    }

    /// Whether a file of this length could be stored at all, if everything else went.
    pub(super) fn could_hold(&self, remote: &Remote, bytes: u64) -> bool {
        self.state().plan.tightest(remote).is_none_or(|max| bytes <= max)
    }

    /// Room for a file of `bytes` that replaces one of `replaced`; `None` if there is none and
    /// none can be made. Blocks while the keeper makes room, a bounded time.
    pub(super) fn make_room(
        self: &Arc<Self>,
        remote: &Remote,
        bytes: u64,
        replaced: u64,
    ) -> Option<Room> {
        // Publishing replaces at once what was there, so only the growth needs room.
        let grows = bytes.saturating_sub(replaced);
        let mut state = self.state();
        if !state.plan.has_cached(&remote.name) || state.plan.tightest(remote).is_none() {
            return Some(Room { space: None, remote: remote.name.clone(), bytes: 0 });
        }
        if !state.has_room(remote, grows) {
            state = self.wait_for_room(state, remote, grows)?;
        }
        state.account.begin(&remote.name, grows);
        Some(Room { space: Some(Arc::clone(self)), remote: remote.name.clone(), bytes: grows })
    }

    fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        remote: &Remote,
        bytes: u64,
    ) -> Option<MutexGuard<'a, State>> {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        let give_up_after = state.rounds_begun + ROUNDS_WAITED_MAX;
        *state.wanted.entry(remote.name.clone()).or_default() += bytes;
        let has_room = loop {
            if state.has_room(remote, bytes) {
                break true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.rounds_ended >= give_up_after || left.is_zero() || state.is_closing {
                break false;
            }
            self.call(&mut state);
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        match state.wanted.get_mut(&remote.name) {
            Some(wanted) if *wanted > bytes => *wanted -= bytes,
            _ => drop(state.wanted.remove(&remote.name)),
        }
        has_room.then_some(state)
    }

    /// Ends the keeper. Who waits for room is told that there is none.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closing = true;
        self.call(&mut state);
        self.changed.notify_all();
    }

    fn call(&self, state: &mut State) {
        state.is_called = true;
        self.wake.notify_all();
    }

    /// Waits until the keeper is called or its time has come; `false` once it shall end.
    fn await_round(&self) -> bool {
        let idle = |state: &mut State| !state.is_called && !state.is_closing;
        let woken = self.wake.wait_timeout_while(self.state(), ASK_INTERVAL, idle);
        let (mut state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        state.is_called = false;
        state.rounds_begun += 1;
        !state.is_closing
    }

    fn end_round(&self) {
        self.state().rounds_ended += 1;
        self.changed.notify_all();
    }

    /// Takes note of what went.
    fn freed(&self, remote: &RemoteName, bytes: u64) {
        self.state().account.freed(remote, bytes);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn used_by_all(&self) -> u64 {
        let used = self.plan.cached().map(|remote| self.account.used(&remote.name));
        used.fold(0, u64::saturating_add)
    }

    fn has_room(&self, remote: &Remote, bytes: u64) -> bool {
        let fits = |used: u64, max: Option<u64>| {
            max.is_none_or(|max| used.checked_add(bytes).is_some_and(|sum| sum <= max))
        };
        // As long as nobody knows what is stored, nothing may be added to it.
        self.account.known().is_some()
            && fits(self.account.used(&remote.name), remote.keeping.max_bytes)
            && fits(self.used_by_all(), self.plan.bytes_max)
    }
}

/// Room for one file: taken until it is dropped, and for good once the file is recorded.
#[derive(Debug)]
#[must_use]
pub(super) struct Room {
    /// `None` where no bound holds.
    space: Option<Arc<Space>>,
    remote: RemoteName,
    bytes: u64,
}

impl Room {
    /// The file is stored and recorded.
    pub(super) fn fill(mut self) {
        if let Some(space) = self.space.take() {
            space.state().account.recorded(&self.remote, self.bytes);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(space) = &self.space {
            space.state().account.dropped(&self.remote, self.bytes);
            space.changed.notify_all();
        }
    }
}
