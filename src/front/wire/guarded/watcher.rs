//! The one thread that accepts, and watches the connections that nobody works on.
//!
//! It never waits for a client: every read and write here is without waiting, and whatever
//! takes time is handed to the pools. An accept error never ends it.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::census::{Full, Kind};
use super::connection::{Conn, Next};
use super::refusal::{Content, Refusal};
use super::stream::{More, Stream};
use super::table::{Token, WATCHES, Watch};
use super::{Shared, exchange};

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
/// Connections that a stop still takes from each listener's backlog.
const LAST_ACCEPTS: usize = 1024;
/// Rounds of events that a stop still handles.
const LAST_LOOKS: usize = 64;
/// How often trouble with accepting is told at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Listeners are named by the upper half of the tokens, which the table never uses.
const LISTENERS: u64 = 1 << 63;
const WAKE: u64 = u64::MAX;

/// The watcher's own state.
pub(super) struct Watcher<'a> {
    shared: &'a Arc<Shared>,
    listeners: Vec<OwnedFd>,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
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
        for (index, listener) in listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(LISTENERS | index as u64);
            epoll::add(&shared.epoll, listener, data, epoll::EventFlags::IN)?;
        }
        let wake = epoll::EventData::new_u64(WAKE);
        epoll::add(&shared.epoll, &shared.wake, wake, epoll::EventFlags::IN)?;
        Ok(Self {
            shared,
            listeners,
            events: Vec::with_capacity(EVENTS_MAX),
            scratch: vec![0; 16 << 10],
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
        while !self.shared.is_stopping() {
            let sleep = self.lapse(Instant::now());
            self.look(sleep)?;
        }
        // Who is in the backlog was promised an answer by the kernel; who has sent a whole
        // request by now gets one.
        for index in 0..self.listeners.len() {
            self.accept(index, LAST_ACCEPTS);
        }
        let mut looks = 0;
        while self.look(Duration::ZERO)? > 0 && looks < LAST_LOOKS {
            looks += 1;
        }
        while let Some(conn) = self.shared.unpark() {
            if conn.pending.is_some() {
                exchange::dispatch_pending(self.shared, conn);
            }
        }
        Ok(())
    }

    /// Handles what is ready, or becomes so within `patience`; gives how many events it took.
    fn look(&mut self, patience: Duration) -> io::Result<usize> {
        let timeout = Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        self.events.clear();
        match epoll::wait(&self.shared.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events = std::mem::take(&mut self.events);
        for event in &events {
            // A bug in the handling of one connection must not end the accepting of all.
            let handle = AssertUnwindSafe(|| self.handle(event.data.u64()));
            if catch_unwind(handle).is_err() {
                tracing::error!("the watcher panicked over a connection, and goes on");
            }
        }
        let count = events.len();
        self.events = events;
        Ok(count)
    }

    fn handle(&mut self, bits: u64) {
        if bits == WAKE {
            // Read, or it would be ready for ever while a stop looks for the last time.
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        } else if bits & LISTENERS != 0 {
            self.accept((bits & !LISTENERS) as usize, ACCEPTS_IN_A_ROW);
        } else {
            self.connection_is_ready(Token::from_bits(bits));
        }
    }

    fn connection_is_ready(&mut self, token: Token) {
        let Some((mut conn, watch)) = self.shared.table().check_out(token) else { return };
        if watch == Watch::Reply {
            self.shared.table().vacate(token);
            return exchange::dispatch_pending(self.shared, conn);
        }
        if watch == Watch::Linger {
            match conn.linger(&mut self.scratch) {
                true => self.shared.put_back(token, conn, Watch::Linger),
                false => self.shared.table().vacate(token),
            }
            return;
        }
        match conn.receive(self.shared) {
            Next::Ready(ready) => {
                self.shared.table().vacate(token);
                exchange::dispatch(self.shared, conn, *ready);
            }
            Next::Partial => {
                let watch = conn.rest();
                self.shared.put_back(token, conn, watch);
            }
            Next::Refused(refusal) => match conn.refuse(self.shared, &refusal) {
                true => self.shared.put_back(token, conn, Watch::Linger),
                false => self.shared.table().vacate(token),
            },
            Next::Gone => self.shared.table().vacate(token),
        }
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
        if matches!(seat, Err(Full::InAll)) && self.make_room(Instant::now()) {
            seat = census.seat(Kind::Ordinary, counted_as);
        }
        // What made room may have had a reserved seat itself, which is no ordinary one now.
        if matches!(seat, Err(Full::InAll)) {
            seat = census.seat(Kind::Reserved, counted_as);
        }
        let Ok(seat) = seat else {
            self.shared.tell_refused(&Refusal::NO_ROOM, peer);
            return turn_away(&stream);
        };
        let mut conn = Conn::new(stream, peer, seat);
        match conn.receive(self.shared) {
            Next::Ready(ready) => exchange::dispatch(self.shared, conn, *ready),
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
        // Who has least to lose goes first; a reply that is begun is never cut for room.
        for watch in [Watch::Linger, Watch::Idle, Watch::Head] {
            if let Some((token, since)) = table.oldest(watch)
                && (watch != Watch::Head || now.duration_since(since) >= HEAD_GRACE)
            {
                return table.remove(token).is_some();
            }
        }
        false
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
            let data = epoll::EventData::new_u64(LISTENERS | index as u64);
            if let Err(error) = epoll::modify(&self.shared.epoll, listener, data, events) {
                tracing::error!(%error, "cannot change what a listener is watched for");
            }
        }
    }

    /// Closes what has been parked for too long, and gives how long nothing else will lapse.
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
