//! Looks after connections that are ready; a worker does it where it can, the watcher otherwise.
//!
//! Handing each request from one thread to another costs more than serving it. So while there
//! is work, workers wait for the next event themselves, one at a time, and the watcher only
//! sees to it that somebody does: every [`TICK`] it looks whether a worker has looked since,
//! and takes the duty over where none has. When nothing is left to do, it keeps the duty until
//! the next event.
//!
//! Who calls what:
//! - A worker without a job calls `Outlook::look`, through `Queue::take`: it waits for events
//!   for [`PATIENCE`], keeps the first job that it finds and hands the others over.
//! - The watcher calls `look_around`, which does not wait and hands over everything: when the
//!   duty is its own, where no worker has looked for a tick, and at the stop.
//! - Both call `look_after` for each event, which takes that connection out of the table as
//!   `Out`; `Out::look` reads from it, and puts it back where nothing is due.
//! - `Watcher::look` is another thing: the watcher's own wait, for listeners, wakes and, while
//!   the duty is its own, for connections as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::Shared;
use super::connection::{Conn, Next};
use super::exchange::{self, Due};
use super::table::{Token, Watch};
use crate::front::pools::{Job, Lookout};

/// How often the watcher looks whether anybody watches, while there is work.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// How long a worker that has nothing to do looks out before it sleeps.
const PATIENCE: Duration = Duration::from_millis(2);
/// Events that are taken at once: few, so that other workers get some too.
const EVENTS_MAX: usize = 8;
/// An event that did not happen.
const NO_EVENT: epoll::Event =
    epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
/// Bytes that are read at once of what a lingering connection still sends.
const SCRATCH_BYTES: usize = 8 << 10;

/// Who waits for ready connections.
#[derive(Debug, Default)]
pub(super) struct Duty {
    // Workers may; otherwise the watcher does.
    is_workers: AtomicBool,
    // Workers that are waiting now, and looks that were taken so far.
    looking: AtomicUsize,
    looks: AtomicU64,
    // The watcher sleeps until an event, without ticks.
    sleeps_long: AtomicBool,
}

impl Duty {
    /// Whether workers wait for events, as far as they can.
    pub(super) fn is_workers(&self) -> bool {
        self.is_workers.load(Ordering::SeqCst)
    }

    /// Gives the duty to the workers, or takes it from them.
    pub(super) fn give_to_workers(&self, is_workers: bool) {
        self.is_workers.store(is_workers, Ordering::SeqCst);
    }

    /// Says that the watcher is about to sleep without ticks, or has woken. Whatever would keep
    /// it from such a sleep is to be looked at after this.
    pub(super) fn sleep_long(&self, sleeps_long: bool) {
        self.sleeps_long.store(sleeps_long, Ordering::SeqCst);
    }

    /// Whether the watcher must be woken for a job that was handed over; once for each sleep.
    pub(super) fn must_be_woken(&self) -> bool {
        self.sleeps_long.load(Ordering::SeqCst) && self.sleeps_long.swap(false, Ordering::SeqCst)
    }

    /// How many looks workers have taken, or `None` while one is at it.
    pub(super) fn looks(&self) -> Option<u64> {
        let is_looking = self.looking.load(Ordering::SeqCst) > 0;
        (!is_looking).then(|| self.looks.load(Ordering::SeqCst))
    }
}

/// Where the workers of a listener look for work.
pub(super) struct Outlook(pub(super) Weak<Shared>);

impl Lookout for Outlook {
    fn look(&self, found: &mut dyn FnMut()) -> Option<Job> {
        let shared = self.0.upgrade()?;
        if !shared.duty.is_workers() {
            return None;
        }
        let mut events = [NO_EVENT; EVENTS_MAX];
        shared.duty.looking.fetch_add(1, Ordering::SeqCst);
        let count = wait(&shared, &mut events, PATIENCE);
        shared.duty.looks.fetch_add(1, Ordering::SeqCst);
        shared.duty.looking.fetch_sub(1, Ordering::SeqCst);
        if count == 0 {
            return None;
        }
        found();
        let mut mine = None;
        for event in &events[..count] {
            let Some(due) = look_after(&shared, event) else { continue };
            match mine.is_none() && due.is_for_workers() {
                true => mine = Some(exchange::job(&shared, due)),
                false => exchange::hand_over(&shared, due),
            }
        }
        mine
    }
}

/// Looks after what is ready without waiting, at most `EVENTS_MAX` connections, and hands what
/// is due to the pools; gives how many there were.
pub(super) fn look_around(shared: &Arc<Shared>) -> usize {
    let mut events = [NO_EVENT; EVENTS_MAX];
    let count = wait(shared, &mut events, Duration::ZERO);
    for event in &events[..count] {
        if let Some(due) = look_after(shared, event) {
            exchange::hand_over(shared, due);
        }
    }
    count
}

/// Waits for events; an error is none.
fn wait(shared: &Shared, events: &mut [epoll::Event], patience: Duration) -> usize {
    let timeout =
        Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    match epoll::wait(&shared.epoll, events, Some(&timeout)) {
        Ok(count) => count,
        Err(Errno::INTR) => 0,
        Err(error) => {
            tracing::error!(%error, "cannot wait for connections");
            0
        }
    }
}

/// What is due on a connection that is ready.
fn look_after(shared: &Arc<Shared>, event: &epoll::Event) -> Option<Due> {
    // A bug in the handling of one connection must not end the looking after all.
    let look = AssertUnwindSafe(|| {
        let token = Token::from_bits(event.data.u64());
        let flags = event.flags;
        let is_lost = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if flags.contains(epoll::EventFlags::RDHUP) && !is_lost {
            // Without taking it out: it could be called meanwhile.
            shared.note_silence(token);
            return None;
        }
        let mut out = Out::take(shared, token)?;
        out.look()
    });
    catch_unwind(look).unwrap_or_else(|_| {
        tracing::error!("looking after a connection panicked; it was closed");
        None
    })
}

/// A connection that is out of the table for a look. Dropped with it, its place is given up and
/// it is closed.
struct Out<'a> {
    shared: &'a Arc<Shared>,
    token: Token,
    watch: Watch,
    conn: Option<Box<Conn>>,
    is_back: bool,
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        if !self.is_back {
            self.shared.table().vacate(self.token);
        }
    }
}

impl<'a> Out<'a> {
    fn take(shared: &'a Arc<Shared>, token: Token) -> Option<Self> {
        let (conn, watch) = shared.table().check_out(token)?;
        Some(Self { shared, token, watch, conn: Some(conn), is_back: false })
    }

    fn look(&mut self) -> Option<Due> {
        let conn = self.conn.as_mut()?;
        match self.watch {
            Watch::Reply => return Some(Due::unfinished(self.conn.take()?)),
            // Its client has gone.
            Watch::Call | Watch::SilentCall => return None,
            Watch::Linger => {
                if conn.linger(&mut [0; SCRATCH_BYTES]) {
                    self.put_back(Watch::Linger);
                }
                return None;
            }
            Watch::Idle | Watch::Head => {}
        }
        match conn.receive(self.shared) {
            Next::Ready(ready) => return Some(Due::request(self.conn.take()?, *ready)),
            Next::Partial => {
                let watch = conn.rest();
                self.put_back(watch);
            }
            Next::Refused(refusal) => {
                if conn.refuse(self.shared, &refusal) {
                    self.put_back(Watch::Linger);
                }
            }
            Next::Gone => {}
        }
        None
    }

    fn put_back(&mut self, watch: Watch) {
        if let Some(conn) = self.conn.take() {
            self.is_back = true;
            self.shared.put_back(self.token, conn, watch);
        }
    }
}
