//! The one thread that accepts, and sees to it that ready connections are looked after.
//!
//! It never waits for a client: every read and write here is without waiting, and whatever
//! takes time is handed to the pools. An accept error never ends it.
//!
//! Connections are watched by an epoll of their own, which this thread watches in turn while
//! the workers do not (`lookout`).

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::Shared;
use super::census::{Full, Kind};
use super::connection::{Conn, Next};
use super::exchange::{self, Due};
use super::lookout::{Outlook, TICK, look_around};
use super::refusal::{Content, Refusal};
use super::stream::{More, Stream};
use super::table::{WATCHES, Watch};
use crate::front::pools::Lookout;

/// Connections that are accepted from one listener before others are looked after.
const ACCEPTS_IN_A_ROW: usize = 64;
/// Events that are taken at once.
const EVENTS_MAX: usize = 256;
/// Longest sleep: a connection that is parked meanwhile lapses at most so much late.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Shortest sleep before something lapses.
const SLEEP_MIN: Duration = Duration::from_millis(1);
/// First and longest pause of accepting where descriptors or memory have run out.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A half-read head that is younger is not closed to make room.
const HEAD_GRACE: Duration = Duration::from_millis(500);
/// How long a connection lingers before its close.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection waits to be called for before its request looks by itself, since it may
/// have a bound of its own on how long it waits.
const CALL_AWAITED_MAX: Duration = Duration::from_secs(5);
/// Connections that a stop still takes from each listener's backlog.
const LAST_ACCEPTS: usize = 1024;
/// Looks that the watcher takes in a row before it accepts, where no worker takes any.
const LOOKS_IN_A_ROW: usize = 32;
/// Looks at ready connections that a stop still takes: each finds a few, and together they find
/// more than there can be.
const LAST_LOOKS: usize = 16_384;
/// How long they wait all in all for the workers to keep up.
const LAST_LOOKS_PATIENCE: Duration = Duration::from_secs(2);
/// How often trouble with accepting is told at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What an event is about; a listener is named by its number.
const WAKE: u64 = u64::MAX;
const CONNECTIONS: u64 = u64::MAX - 1;

/// The watcher's own state.
pub(super) struct Watcher<'a> {
    shared: &'a Arc<Shared>,
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    events: Vec<epoll::Event>,
    // Looks that workers had taken when that last changed, and when it did.
    looks: u64,
    looked: Instant,
    paused_until: Option<Instant>,
    pause: Duration,
    told: Option<Instant>,
}

impl<'a> Watcher<'a> {
    /// A watcher of these listeners, which must not block.
    ///
    /// # Errors
    /// The readiness call can't take them.
    pub(super) fn new(shared: &'a Arc<Shared>, listeners: Vec<OwnedFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = |fd: &OwnedFd, about, flags| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(about), flags)
        };
        for (listener, about) in listeners.iter().zip(0..) {
            watch(listener, about, epoll::EventFlags::IN)?;
        }
        watch(&shared.wake, WAKE, epoll::EventFlags::IN)?;
        watch(&shared.epoll, CONNECTIONS, epoll::EventFlags::IN | epoll::EventFlags::ONESHOT)?;
        Ok(Self {
            shared,
            epoll,
            listeners,
            events: Vec::with_capacity(EVENTS_MAX),
            looks: 0,
            looked: Instant::now(),
            paused_until: None,
            pause: PAUSE_MIN,
            told: None,
        })
    }

    /// Watches until the stop, then closes what is parked.
    ///
    /// # Errors
    /// The readiness call has failed for good.
    pub(super) fn run(mut self) -> io::Result<()> {
        let outlook: Arc<dyn Lookout> = Arc::new(Outlook(Arc::downgrade(self.shared)));
        self.shared.pools.look_out(Arc::downgrade(&outlook));
        let watched = self.watch();
        self.shared.pools.stop_looking();
        // If it has failed, nobody accepts any more; who is here is served all the same.
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Who is in the backlog was promised an answer by the kernel; who has sent a whole
        // request by now gets one.
        for index in 0..self.listeners.len() {
            self.accept(index, LAST_ACCEPTS);
        }
        let until = Instant::now() + LAST_LOOKS_PATIENCE;
        for _ in 0..LAST_LOOKS {
            // What is shed now finds no other server of ours, so the workers are given a moment.
            while self.shared.pools.queued() > self.shared.bounds.queue_max / 2
                && Instant::now() < until
            {
                std::thread::sleep(TICK);
            }
            if look_around(self.shared) == 0 {
                break;
            }
        }
        while let Some(conn) = self.shared.unpark() {
            if !conn.unfinished.is_nothing() {
                exchange::hand_over(self.shared, Due::unfinished(conn));
            }
        }
        watched
    }

    fn watch(&mut self) -> io::Result<()> {
        let mut is_behind = false;
        while !self.shared.is_stopping() {
            let lapses_in = self.lapse(Instant::now());
            let sleep = match is_behind {
                true => Duration::ZERO,
                false if self.prepare_long_sleep() => lapses_in,
                false => lapses_in.min(TICK),
            };
            self.look(sleep)?;
            is_behind = self.shared.duty.is_workers() && self.watch_the_watch(Instant::now())?;
        }
        Ok(())
    }

    /// Says that this thread is about to sleep without ticks, unless something is to be done
    /// before the next event: the workers watch, or a job waits behind them or may come to.
    ///
    /// No job is left without a tick, whichever comes first:
    /// 1. this thread says that it sleeps, and only then looks for jobs;
    /// 2. whoever hands a job over adds it, and only then looks whether this thread sleeps.
    ///
    /// So either the look of 1 finds the job, or that of 2 finds the sleep and wakes us. A wake
    /// that comes before the sleep stays in the eventfd and ends it at once.
    fn prepare_long_sleep(&self) -> bool {
        self.shared.duty.sleep_long(true);
        let may = !self.shared.duty.is_workers() && !self.shared.pools.tick(Instant::now());
        // What is said stays only where it is true; an untrue one would cost a wake for nothing.
        self.shared.duty.sleep_long(may);
        may
    }

    /// Handles what is ready, or becomes so within `patience`.
    fn look(&mut self, patience: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.shared.duty.sleep_long(false);
        // Before the events, so that their jobs find out which workers are blocked.
        self.shared.pools.tick(Instant::now());
        let events = std::mem::take(&mut self.events);
        for event in &events {
            // A bug in the handling of one connection must not end the accepting of all.
            let handle = AssertUnwindSafe(|| self.handle(event.data.u64()));
            if catch_unwind(handle).is_err() {
                tracing::error!("the watcher panicked over a connection, and goes on");
            }
        }
        self.events = events;
        Ok(())
    }

    fn handle(&mut self, about: u64) {
        match about {
            // Nothing to do but to look whether we are stopping, and to sleep again.
            WAKE => drop(rustix::io::read(&self.shared.wake, &mut [0; 8])),
            // The next events are the workers'; these are here.
            CONNECTIONS => {
                self.shared.duty.give_to_workers(true);
                self.looked = Instant::now();
                look_around(self.shared);
            }
            listener => self.accept(listener as usize, ACCEPTS_IN_A_ROW),
        }
    }

    /// Sees to it that somebody looks after the connections: where no worker has looked for a
    /// while, this thread does, and watches them again once nothing is ready. Gives whether more
    /// may be.
    fn watch_the_watch(&mut self, now: Instant) -> io::Result<bool> {
        let looks = self.shared.duty.looks();
        if looks != Some(self.looks) {
            (self.looks, self.looked) = (looks.unwrap_or(self.looks), now);
        }
        if now.duration_since(self.looked) < TICK {
            return Ok(false);
        }
        if (0..LOOKS_IN_A_ROW).all(|_| look_around(self.shared) > 0) {
            return Ok(true);
        }
        self.shared.duty.give_to_workers(false);
        let data = epoll::EventData::new_u64(CONNECTIONS);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::modify(&self.epoll, &self.shared.epoll, data, flags)?;
        Ok(false)
    }

    /// Accepts at most `most` connections.
    fn accept(&mut self, index: usize, most: usize) {
        if self.paused_until.is_some() {
            return;
        }
        for _ in 0..most {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match acceptfrom_with(&self.listeners[index], flags) {
                Ok((fd, address)) => {
                    self.pause = PAUSE_MIN;
                    let address = address.and_then(|a| SocketAddr::try_from(a).ok());
                    self.admit(Stream::new(fd), address.map(|a| a.ip().to_canonical()));
                }
                Err(Errno::AGAIN) => return,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if !self.make_room(Instant::now()) {
                        return self.pause_accepting(error);
                    }
                }
                // The connection has failed before we took it (accept(2) lists the errors).
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::PERM
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::OPNOTSUPP
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::TIMEDOUT,
                ) => {}
                Err(error) => return self.pause_accepting(error),
            }
        }
    }

    /// Takes a new connection in, where there is room or room can be made.
    fn admit(&mut self, stream: Stream, peer: Option<IpAddr>) {
        let census = &self.shared.census;
        let counted_as = peer.filter(|peer| !self.shared.trusted.contains(*peer));
        let mut seat = census.seat(Kind::Ordinary, counted_as);
        if matches!(seat, Err(Full::ForAddress)) && self.make_room_for(counted_as) {
            seat = census.seat(Kind::Ordinary, counted_as);
        }
        // What makes room may have a reserved seat, which is no ordinary one.
        while matches!(seat, Err(Full::InAll)) && self.make_room(Instant::now()) {
            seat = census.seat(Kind::Ordinary, counted_as);
        }
        if matches!(seat, Err(Full::InAll)) {
            seat = census.seat(Kind::Reserved, counted_as);
        }
        let Ok(seat) = seat else {
            self.shared.tell_refused(&Refusal::NO_ROOM, peer);
            return turn_away(&stream);
        };
        let mut conn = Conn::new(stream, peer, seat);
        match conn.receive(self.shared) {
            Next::Ready(ready) => exchange::hand_over(self.shared, Due::request(conn, *ready)),
            Next::Partial => {
                let watch = conn.rest();
                let _stopping = self.shared.park(conn, watch);
            }
            Next::Refused(refusal) => {
                if conn.refuse(self.shared, &refusal) {
                    let _stopping = self.shared.park(conn, Watch::Linger);
                }
            }
            Next::Gone => {}
        }
    }

    /// Closes the parked connection that has least to lose.
    fn make_room(&self, now: Instant) -> bool {
        let mut table = self.shared.table();
        // Who has least to lose goes first; a reply that is begun is never cut for room, unless
        // its client seems to have gone.
        let order = [Watch::Linger, Watch::SilentCall, Watch::Idle, Watch::Head];
        let mut oldest = order.into_iter().filter_map(|watch| {
            let (token, since) = table.oldest(watch)?;
            let may_go = watch != Watch::Head || now.duration_since(since) >= HEAD_GRACE;
            may_go.then_some(token)
        });
        let closed = oldest.next().and_then(|token| table.remove(token));
        drop(table);
        // Dropped without the lock: what it was not finished with is told.
        closed.is_some()
    }

    /// Closes a connection from an address that has too many, where its client seems to have gone.
    fn make_room_for(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address else { return false };
        let mut table = self.shared.table();
        let silent = table.find(Watch::SilentCall, |conn| conn.is_counted_for(address));
        let closed = silent.and_then(|token| table.remove(token));
        drop(table);
        closed.is_some()
    }

    fn pause_accepting(&mut self, error: Errno) {
        let now = Instant::now();
        if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
            self.told = Some(now);
            tracing::warn!(%error, "cannot accept connections; pausing until there is room");
        }
        self.listen_for(epoll::EventFlags::empty());
        self.paused_until = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn listen_for(&self, events: epoll::EventFlags) {
        for (index, listener) in self.listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(index as u64);
            if let Err(error) = epoll::modify(&self.epoll, listener, data, events) {
                tracing::error!(%error, "cannot change what a listener is watched for");
            }
        }
    }

    /// Ends what has been parked for too long, and gives how long nothing else will lapse.
    fn lapse(&mut self, now: Instant) -> Duration {
        let mut sleep = SLEEP_MAX;
        if let Some(until) = self.paused_until {
            if until <= now {
                self.paused_until = None;
                self.listen_for(epoll::EventFlags::IN);
            } else {
                sleep = sleep.min(until - now);
            }
        }
        for watch in WATCHES {
            let bound = match watch {
                Watch::Linger => LINGER,
                Watch::Idle => self.shared.bounds.idle_timeout,
                Watch::Head => self.shared.guarded.head_timeout,
                Watch::Reply => self.shared.bounds.write_timeout,
                Watch::Call | Watch::SilentCall => CALL_AWAITED_MAX,
            };
            // What is parked during the sleep must not lapse much later than its bound.
            sleep = sleep.min(bound / 4);
            loop {
                let mut table = self.shared.table();
                let Some((token, since)) = table.oldest(watch) else { break };
                let age = now.saturating_duration_since(since);
                if age < bound {
                    sleep = sleep.min(bound - age);
                    break;
                }
                let Some(mut conn) = table.remove(token) else { continue };
                drop(table);
                if matches!(watch, Watch::Call | Watch::SilentCall) {
                    exchange::hand_over(self.shared, Due::unfinished(conn));
                    continue;
                }
                let is_half_read = watch == Watch::Head && !conn.is_before_request();
                if is_half_read && conn.refuse(self.shared, &Refusal::HEAD_TIMEOUT) {
                    let _stopping = self.shared.park(conn, Watch::Linger);
                }
            }
        }
        sleep.max(SLEEP_MIN)
    }
}

/// Answers 503 to who can't be let in, as far as that goes without waiting.
fn turn_away(stream: &Stream) {
    let mut answer = Vec::with_capacity(256);
    Refusal::NO_ROOM.append_to(&mut answer, Content::Sent);
    // The connection is dropped in any case; the answer is a courtesy. What has arrived is
    // read, because closing over it would reset the connection and take the answer along.
    let _ = stream.send(&[IoSlice::new(&answer)], More::Nothing);
    let _ = stream.finish_sending();
    let _ = stream.receive_into(&mut [0; 4 << 10]);
}
