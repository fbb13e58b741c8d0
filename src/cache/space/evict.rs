//! The keeper: takes out what is least recently used, or was not used for too long.
//!
//! One thread, so that no hit and no fetch does this work. It goes in rounds: learn what is
//! stored, write down the uses, then take out what exceeds a bound, a batch at a time.
//!
//! What goes: of remotes that are no local repositories, what no pin holds, least recent
//! first. What is being read, fetched or was used since the uses were written down is passed
//! over. One artifact goes like this: its flight is led, so that no fetch of it begins; readers
//! are kept out; then the row is removed, and the blob after it. A reader that found the row
//! before finds no blob, and fetches it again.

use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{ASK_INTERVAL, Space, SpacePlan};
use crate::artifact::{ArtifactKey, BlobKey, RemoteName};
use crate::cache::Ports;
use crate::cache::counters::{self, Counters};
use crate::cache::flight::{Flights, Joined};
use crate::cache::readers::Readers;
use crate::cache::uses::Uses;
use crate::chain::chain;
use crate::config::Remote;
use crate::coord::Lease;
use crate::index::{IndexError, LeastUsed, Position, Row};

/// Artifacts that are chosen at a time. Each batch is chosen anew, so that what was used
/// meanwhile stays.
const BATCH_MAX: usize = 256;
/// Rows of one remote that are looked at for one batch, not counting the pinned ones at the
/// beginning: those are looked at once and then remembered.
const ROWS_EXAMINED_MAX: usize = 20_000;
/// How long pinned rows are remembered. Without an end, a clock that was set back could hide
/// rows behind them.
const PINNED_FOR: Duration = Duration::from_secs(3600);
/// Once something must go, this part of the bound goes with it, so that the next fetches find
/// room at once.
const SLACK_PART: u64 = 16;
/// Removing a row and a blob takes less; a replica that vanished meanwhile holds up no fetch
/// for longer.
const LEASE_TTL: Duration = Duration::from_secs(10);

/// Takes out what goes.
#[derive(Debug)]
pub(in crate::cache) struct Keeper {
    pub(in crate::cache) ports: Ports,
    pub(in crate::cache) space: Arc<Space>,
    pub(in crate::cache) flights: Arc<Flights>,
    pub(in crate::cache) readers: Arc<Readers>,
    pub(in crate::cache) uses: Arc<Uses>,
    pub(in crate::cache) counters: Arc<Counters>,
}

/// What the keeper remembers from round to round.
#[derive(Debug)]
struct Memory {
    plan_number: u64,
    /// Up to here, everything of the remote is pinned. A row only moves away from the
    /// beginning, so this stays true until the pins change.
    pinned_up_to: BTreeMap<RemoteName, Position>,
    pinned_since: Instant,
    /// When the file system was asked what it has free.
    free_asked: Option<Instant>,
    /// What could not be taken out in this round, because another replica is at it, say.
    passed_over: HashSet<ArtifactKey>,
    has_failed: bool,
    /// Whether the file system lacked room with nothing left to evict, and the log said so.
    has_lacked: bool,
}

/// A stored artifact that may go.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    recency: SystemTime,
    key: ArtifactKey,
    blob: BlobKey,
    generation: u64,
    bytes: u64,
}

impl Keeper {
    /// Starts the thread; it ends when the space is closed.
    pub(in crate::cache) fn start(self) {
        // As with the fetch pool, a process that can't start its threads can't go on.
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || self.run())
            .expect("the system has room for one more thread at the start");
    }

    fn run(&self) {
        let mut memory = Memory {
            plan_number: 0,
            pinned_up_to: BTreeMap::new(),
            pinned_since: Instant::now(),
            free_asked: None,
            passed_over: HashSet::new(),
            has_failed: false,
            has_lacked: false,
        };
        while self.space.await_round() {
            // A bug in one round must not end the keeping of space.
            let round = || self.round(&mut memory);
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(round)) {
                Err(_) => tracing::error!("a round of the keeper of space panicked"),
                Ok(Err(error)) if !memory.has_failed => {
                    self.counters.index_errors.inc();
                    tracing::warn!(error = chain(&error), "nothing can be evicted for now");
                    memory.has_failed = true;
                }
                Ok(Err(_)) => {}
                Ok(Ok(())) => memory.has_failed = false,
            }
            self.space.end_round();
        }
    }

    fn round(&self, memory: &mut Memory) -> Result<(), IndexError> {
        let plan = self.plan(memory);
        memory.passed_over.clear();
        self.ask()?;
        let lacking = self.lacking(&plan, memory);
        let lapses = plan.cached().any(|remote| remote.keeping.unused_for.is_some());
        if !lapses && lacking == 0 && !plan.cached().any(|remote| plan.tightest(remote).is_some()) {
            return Ok(());
        }
        self.uses.flush(&*self.ports.index);
        for remote in plan.cached() {
            self.expire(remote, memory)?;
        }
        for remote in plan.cached().filter(|remote| remote.keeping.max_bytes.is_some()) {
            self.shrink(&[Arc::clone(remote)], memory, &|space| space.surplus_of(remote))?;
        }
        let all: Vec<Arc<Remote>> = plan.cached().cloned().collect();
        if plan.bytes_max.is_some() {
            self.shrink(&all, memory, &Space::surplus_of_all)?;
        }
        if lacking > 0 {
            let lacks = !self.take_out_oldest(&all, memory, lacking)?;
            if lacks && !memory.has_lacked {
                tracing::warn!(
                    lacking,
                    "the file system of DATA_DIR has less room than CACHE_MIN_FREE_BYTES, and nothing more may be evicted"
                );
            }
            memory.has_lacked = lacks;
        }
        Ok(())
    }

    /// How many bytes the file system lacks. What went may count as free only later, so it is asked
    /// no more often than [`ASK_INTERVAL`].
    fn lacking(&self, plan: &SpacePlan, memory: &mut Memory) -> u64 {
        let Some(min) = plan.free_bytes_min else { return 0 };
        if memory.free_asked.is_some_and(|asked| asked.elapsed() < ASK_INTERVAL) {
            return 0;
        }
        memory.free_asked = Some(Instant::now());
        self.ports.staging.disk().map_or(0, |disk| min.saturating_sub(disk.free_bytes))
    }

    fn plan(&self, memory: &mut Memory) -> SpacePlan {
        let state = self.space.state();
        if memory.plan_number != state.plan_number || memory.pinned_since.elapsed() > PINNED_FOR {
            memory.plan_number = state.plan_number;
            memory.pinned_up_to.clear();
            memory.pinned_since = Instant::now();
        }
        state.plan.clone()
    }

    fn ask(&self) -> Result<(), IndexError> {
        self.space.state().account.ask();
        match self.ports.index.usage() {
            Ok(usage) => {
                self.space.state().account.answered(Some(usage));
                self.space.changed.notify_all();
                Ok(())
            }
            Err(error) => {
                self.space.state().account.answered(None);
                Err(error)
            }
        }
    }

    /// Takes out what was not used for longer than the remote keeps it.
    fn expire(&self, remote: &Remote, memory: &mut Memory) -> Result<(), IndexError> {
        let Some(kept) = remote.keeping.unused_for.filter(|_| !remote.is_offline()) else {
            // Nobody could fetch it again.
            return Ok(());
        };
        let Some(limit) = self.ports.clock.now().checked_sub(kept) else { return Ok(()) };
        loop {
            let mut lapsed = Vec::new();
            self.least_used(remote, memory, &mut |candidate| {
                if candidate.recency > limit || lapsed.len() == BATCH_MAX {
                    return ControlFlow::Break(());
                }
                lapsed.push(candidate);
                ControlFlow::Continue(())
            })?;
            let is_last = lapsed.len() < BATCH_MAX;
            if self.take_out_all(lapsed, u64::MAX, memory)?.artifacts == 0 || is_last {
                return Ok(());
            }
        }
    }

    /// Takes out the least recent of these remotes until `surplus` is gone.
    fn shrink(
        &self,
        remotes: &[Arc<Remote>],
        memory: &mut Memory,
        surplus: &dyn Fn(&Space) -> u64,
    ) -> Result<(), IndexError> {
        // Asked again when it is gone: meanwhile more may be waiting for room.
        loop {
            let bytes = surplus(&self.space);
            if bytes == 0 || !self.take_out_oldest(remotes, memory, bytes)? {
                return Ok(());
            }
        }
    }

    /// Takes out the least recent of these remotes until `bytes` are gone; `false` where nothing more
    /// may go before that.
    fn take_out_oldest(
        &self,
        remotes: &[Arc<Remote>],
        memory: &mut Memory,
        bytes: u64,
    ) -> Result<bool, IndexError> {
        let mut left = bytes;
        while left > 0 {
            let oldest = self.oldest(remotes, memory, left)?;
            if oldest.is_empty() {
                return Ok(false);
            }
            let taken = self.take_out_all(oldest, left, memory)?;
            left = left.saturating_sub(taken.bytes);
        }
        Ok(true)
    }

    /// The least recent artifacts of all these remotes: as many as free `bytes`, or a batch.
    fn oldest(
        &self,
        remotes: &[Arc<Remote>],
        memory: &mut Memory,
        bytes: u64,
    ) -> Result<Vec<Candidate>, IndexError> {
        // The youngest of the chosen is on top: it goes where an older one is found.
        let mut chosen = BinaryHeap::<Candidate>::new();
        let mut sum = 0_u64;
        for remote in remotes {
            self.least_used(remote, memory, &mut |candidate| {
                let is_enough = chosen.len() == BATCH_MAX || sum >= bytes;
                if is_enough && chosen.peek().is_some_and(|youngest| candidate >= *youngest) {
                    return ControlFlow::Break(());
                }
                sum = sum.saturating_add(candidate.bytes);
                chosen.push(candidate);
                while let Some(youngest) = chosen.peek()
                    && (chosen.len() > BATCH_MAX || sum.saturating_sub(youngest.bytes) >= bytes)
                {
                    sum = sum.saturating_sub(youngest.bytes);
                    chosen.pop();
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(chosen.into_sorted_vec())
    }

    /// Shows what of a remote may go, the least recent first.
    fn least_used(
        &self,
        remote: &Remote,
        memory: &mut Memory,
        visit: &mut dyn FnMut(Candidate) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let behind = memory.pinned_up_to.get(&remote.name).cloned();
        let query = LeastUsed { remote: remote.name.clone(), behind };
        let (mut all_pinned, mut examined) = (true, 0);
        self.ports.index.least_used(&query, &mut |row| {
            let is_pinned = remote.keeping.pins.hold(&row.key.path);
            if is_pinned && all_pinned {
                let path = row.key.path.to_string();
                let position = Position { recency: row.recency(), path };
                memory.pinned_up_to.insert(remote.name.clone(), position);
                return ControlFlow::Continue(());
            }
            all_pinned = false;
            examined += 1;
            let may_go = !is_pinned && !self.is_busy(&row.key);
            if may_go && !memory.passed_over.contains(&row.key) && visit(candidate(row)).is_break()
            {
                return ControlFlow::Break(());
            }
            match examined < ROWS_EXAMINED_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })
    }

    fn is_busy(&self, key: &ArtifactKey) -> bool {
        self.readers.is_held(key) || self.uses.has(key) || self.flights.has(key)
    }

    /// Takes artifacts out, in order, until `bytes` are freed.
    fn take_out_all(
        &self,
        chosen: Vec<Candidate>,
        bytes: u64,
        memory: &mut Memory,
    ) -> Result<Taken, IndexError> {
        let mut taken = Taken::default();
        for candidate in chosen {
            if taken.bytes >= bytes {
                break;
            }
            if self.take_out(&candidate)? {
                taken.artifacts += 1;
                taken.bytes += candidate.bytes;
            } else {
                memory.passed_over.insert(candidate.key);
            }
        }
        Ok(taken)
    }

    /// Takes one artifact out, unless somebody needs it or changed it; says whether it is gone.
    fn take_out(&self, candidate: &Candidate) -> Result<bool, IndexError> {
        let Candidate { key, blob, generation, bytes, .. } = candidate;
        // Dropped at the end without a word: who joined meanwhile begins anew.
        let Joined::Lead(_flight) = self.flights.join(key, None) else { return Ok(false) };
        // Where it is held, another replica fetches it.
        let Ok(_lease) = Lease::take(&self.ports.leases, key, LEASE_TTL) else { return Ok(false) };
        let Some(_claim) = self.readers.claim(key) else { return Ok(false) };
        if self.uses.has(key) {
            return Ok(false);
        }
        if !self.ports.index.remove(key, *generation)? {
            // Another replica may have taken it out.
            return Ok(self.ports.index.get(key)?.is_none());
        }
        if let Err(error) = self.ports.blobs.remove(blob) {
            // It has no row any more: a sweep removes it.
            self.counters.blob_errors.inc();
            tracing::warn!(artifact = %key, error = chain(&error), "an evicted artifact's blob is left to the sweep");
        }
        counters::of(&self.counters.evicted, &key.remote).inc();
        counters::of(&self.counters.evicted_bytes, &key.remote).inc_by(*bytes);
        tracing::debug!(artifact = %key, bytes, "evicted");
        self.space.freed(&key.remote, *bytes);
        Ok(true)
    }
}

/// What went.
#[derive(Debug, Default)]
struct Taken {
    artifacts: u64,
    bytes: u64,
}

fn candidate(row: Row) -> Candidate {
    Candidate {
        recency: row.recency(),
        key: row.key,
        blob: row.entry.blob,
        generation: row.entry.generation,
        bytes: row.entry.size,
    }
}

impl Space {
    /// How many bytes of a remote must go: none as long as everything fits.
    fn surplus_of(&self, remote: &Remote) -> u64 {
        let state = self.state();
        let wanted = state.wanted.get(&remote.name).copied().unwrap_or_default();
        surplus(state.account.used(&remote.name), wanted, remote.keeping.max_bytes)
    }

    fn surplus_of_all(&self) -> u64 {
        let state = self.state();
        let wanted = state.wanted.values().fold(0, |sum, wanted| u64::saturating_add(sum, *wanted));
        surplus(state.used_by_all(), wanted, state.plan.bytes_max)
    }
}

fn surplus(used: u64, wanted: u64, max: Option<u64>) -> u64 {
    let Some(max) = max else { return 0 };
    match used.saturating_add(wanted).saturating_sub(max) {
        0 => 0,
        over => over.saturating_add(max / SLACK_PART),
    }
}
