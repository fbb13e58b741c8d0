//! The guarded listener: our own, for clients that nobody knows.
//!
//! One thread accepts and watches; a connection costs a descriptor and a few hundred bytes
//! until its request head is complete, and a thread of the fixed pools only from then to the
//! end of its reply. Every wait, buffer and count has a bound.
//!
//! - `address`: where to listen. `census`: who is connected. `proxies`: who the client is.
//! - `watcher`: the accept loop, which also watches the `table` of parked `connection`s.
//! - `lookout`: the same watching, done by workers while they have work.
//! - `head`, `chunked`: RFC 9112, strictly, without I/O. `refusal`: answers of our own.
//! - `exchange`: a worker with a connection; `body` in, `reply` and its
//!   `transfer` out, over a `stream`. `call`: what goes on when somebody calls.
//!
//! It knows no routes, no TLS and no HTTP/2.
//!
//! A connection has one owner at a time: the table, who looks after it, or a job. It is watched
//! for one event at a time (`EPOLLONESHOT`), so that nobody can see a connection that another
//! has.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use super::{Bounds, Connections, Listener, Refused, Service, descriptors};
use crate::front::pools::Pools;

mod address;
mod body;
mod call;
mod census;
mod chunked;
mod connection;
mod date;
mod exchange;
mod head;
mod lookout;
mod proxies;
mod refusal;
mod reply;
mod stream;
mod table;
mod transfer;
mod watcher;

pub use address::{BindError, ListenAddr, ListenAddrError};
pub use proxies::{ProxyError, TrustedProxies};

use address::Listeners;
use call::Call;
use census::Census;
use connection::Conn;
use exchange::Due;
use lookout::Duty;
use refusal::Refusal;
use table::{Table, Token, Watch};
use watcher::Watcher;

/// Bytes of an unread request body that are read and dropped to keep the connection.
const DRAIN_BYTES_MAX: u64 = 256 << 10;
/// Bytes of half-read heads of all connections together.
const HALF_READ_BYTES_MAX: usize = 16 << 20;

/// Bounds of this listener beyond [`Bounds`].
#[derive(Debug, Clone)]
pub struct GuardedBounds {
    /// Connections in all, cut to a third of the descriptors that the process may have. At
    /// the bound the oldest idle connection makes room.
    pub connections_max: usize,
    /// Of these, how many are kept for health and metrics when all others are at work.
    pub connections_reserved: usize,
    /// Connections from one address (IPv6: from one /64); one more is answered 503. Trusted
    /// proxies and unix sockets are not counted.
    pub connections_per_address_max: usize,
    /// From a connection's accept, or from the first byte of a later request, to the end of
    /// the request's head; what is incomplete then is answered 408.
    pub head_timeout: Duration,
    /// Longest silence inside a request body.
    pub body_idle_timeout: Duration,
    /// What a client must take of a reply or give of a body, on average over `rate_window` of
    /// waiting for it; 0 asks for nothing.
    pub rate_min_bytes_per_second: u64,
    /// The window for that.
    pub rate_window: Duration,
    /// Requests that one connection carries.
    pub requests_per_connection_max: u32,
    /// Bytes that all replies together keep in memory while they wait, for their clients or for
    /// upstream; from there on a worker waits with its client, and who would have to wait for
    /// upstream is answered 503. Those that wait at one moment count, so it is
    /// exceeded by no more than what the workers have in their hands.
    pub put_down_bytes_max: usize,
}

impl Default for GuardedBounds {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            connections_reserved: 32,
            connections_per_address_max: 2048,
            head_timeout: Duration::from_secs(15),
            body_idle_timeout: Duration::from_secs(30),
            rate_min_bytes_per_second: 1024,
            rate_window: Duration::from_secs(30),
            requests_per_connection_max: 100_000,
            put_down_bytes_max: 32 << 20,
        }
    }
}

/// How to run the listener.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen.
    pub addresses: Vec<ListenAddr>,
    /// Bounds that every listener knows.
    pub bounds: Bounds,
    /// Further bounds.
    pub guarded: GuardedBounds,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: TrustedProxies,
}

/// The listener.
pub struct Guarded {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    // Taken by `run`.
    listeners: Mutex<Option<Listeners>>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Guarded {
    /// Listens; nothing is accepted before [`Listener::run`].
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        settings: Settings,
        pools: Arc<Pools>,
        service: Arc<dyn Service>,
    ) -> Result<Self, BindError> {
        let Settings { addresses, bounds, guarded, trusted_proxies: trusted } = settings;
        let listeners = Listeners::bind(&addresses, bounds.write_timeout)?;
        let watch = |error: Errno| BindError::Watch(error.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(watch)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(watch)?;
        let census = Census::new(
            descriptors::connections_max(guarded.connections_max),
            guarded.connections_reserved,
            guarded.connections_per_address_max,
        );
        let shared = Arc::new(Shared {
            bounds,
            guarded,
            trusted,
            pools,
            service,
            census,
            epoll,
            wake,
            duty: Duty::default(),
            table: Mutex::new(Table::new()),
            stopping: AtomicBool::new(false),
        });
        let addresses = listeners.addresses.clone();
        Ok(Self { shared, addresses, listeners: Mutex::new(Some(listeners)) })
    }

    /// The TCP addresses it listens on, with the ports that were chosen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Listener for Guarded {
    fn run(&self) -> io::Result<()> {
        let taken = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut listeners) = taken else {
            return Err(io::Error::other("the listener has run already"));
        };
        let sockets = std::mem::take(&mut listeners.sockets);
        Watcher::new(&self.shared, sockets)?.run()
    }

    fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake_watcher();
    }

    fn connections(&self) -> Option<Connections> {
        let census = &self.shared.census;
        Some(Connections { open: census.len(), max: census.max() })
    }
}

/// What the watcher and the jobs share.
pub(crate) struct Shared {
    bounds: Bounds,
    guarded: GuardedBounds,
    trusted: TrustedProxies,
    pools: Arc<Pools>,
    service: Arc<dyn Service>,
    census: Arc<Census>,
    // Which parked connections are ready.
    epoll: OwnedFd,
    wake: OwnedFd,
    // Who waits for that.
    duty: Duty,
    // Guards the parked connections and that each is armed for one event. Held for a
    // readiness call at most, which does not block; the census may be locked inside.
    table: Mutex<Table>,
    stopping: AtomicBool,
}

impl Shared {
    fn wake_watcher(&self) {
        // It can only fail where it has been written 2^64 times.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock, short of a bug in the table itself.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection to the watcher, or back where we are stopping: then only a reply
    /// that is not out yet is worth more than a close.
    fn park(&self, conn: Box<Conn>, watch: Watch) -> Option<Box<Conn>> {
        self.park_as(conn, watch).err()
    }

    /// Parks a connection until what it was put off for has come; gives it back where it has,
    /// or where we are stopping.
    fn park_until_called(self: &Arc<Self>, mut conn: Box<Conn>) -> Option<Box<Conn>> {
        conn.trim();
        let Some(awaited) = conn.unfinished.awaited() else { return Some(conn) };
        let (call, shared) = (Arc::new(Call::default()), Arc::downgrade(self));
        let wake = {
            let call = Arc::clone(&call);
            move || {
                let parked = call.came().zip(shared.upgrade());
                let unparked = parked.and_then(|(token, shared)| {
                    let conn = shared.table().remove(token)?;
                    Some((shared, conn))
                });
                if let Some((shared, conn)) = unparked {
                    exchange::hand_over(&shared, Due::unfinished(conn));
                }
            }
        };
        let Some(call_registered) = awaited.call(Box::new(wake)) else { return Some(conn) };
        conn.unfinished.wait_for_call(self.pools.wait_outside(), call_registered);
        match self.park_as(conn, Watch::Call) {
            Ok(token) if call.came_before(token) => self.table().remove(token),
            Ok(_) => None,
            Err(conn) => Some(conn),
        }
    }

    fn park_as(&self, mut conn: Box<Conn>, watch: Watch) -> Result<Token, Box<Conn>> {
        let was_registered = std::mem::replace(&mut conn.is_registered, true);
        let mut table = self.table();
        // Looked at under the lock: the stop sets it before it closes what is parked.
        if self.is_stopping() {
            return Err(conn);
        }
        let token = table.insert(conn, watch, Instant::now());
        let armed = self.arm(&mut table, token, watch, was_registered);
        self.bound_half_read(&mut table);
        drop(table);
        close_unwatched(armed);
        Ok(token)
    }

    /// Puts a connection back that was taken out for a look; where we are stopping, it is
    /// closed, because nobody will look again.
    fn put_back(&self, token: Token, conn: Box<Conn>, watch: Watch) {
        let mut table = self.table();
        table.put_back(token, conn, watch, Instant::now());
        if self.is_stopping() {
            table.remove(token);
            return;
        }
        let armed = self.arm(&mut table, token, watch, true);
        self.bound_half_read(&mut table);
        drop(table);
        close_unwatched(armed);
    }

    /// Closes the oldest half-read connections where all together take too much memory.
    fn bound_half_read(&self, table: &mut Table) {
        while table.buffered(Watch::Head) > HALF_READ_BYTES_MAX {
            let Some((token, _)) = table.oldest(Watch::Head) else { return };
            table.remove(token);
        }
    }

    /// Arms the socket for one event. Under the table's lock, or the connection could lapse
    /// and its descriptor be another's before the call.
    ///
    /// # Errors
    /// [`Unwatched`], to be dropped without the lock.
    fn arm(
        &self,
        table: &mut Table,
        token: Token,
        watch: Watch,
        is_registered: bool,
    ) -> Result<(), Unwatched> {
        let Some(conn) = table.get(token) else { return Ok(()) };
        let event = match watch {
            Watch::Reply => epoll::EventFlags::OUT,
            Watch::Linger | Watch::Idle | Watch::Head => epoll::EventFlags::IN,
            // That the connection is lost is told unasked; a client that leaves in order closes
            // its side first.
            Watch::Call => epoll::EventFlags::RDHUP,
            Watch::SilentCall => epoll::EventFlags::empty(),
        };
        let flags = event | epoll::EventFlags::ONESHOT;
        let data = epoll::EventData::new_u64(token.bits());
        let armed = match is_registered {
            true => epoll::modify(&self.epoll, &conn.stream, data, flags),
            false => epoll::add(&self.epoll, &conn.stream, data, flags),
        };
        armed.map_err(|error| Unwatched { error, _conn: table.remove(token) })
    }

    /// Tells the service what we answered by ourselves.
    fn tell_refused(&self, refusal: &Refusal, peer: Option<IpAddr>) {
        tracing::debug!(status = refusal.status, ?peer, "refused a request");
        let refused = Refused { status: refusal.status, detail: refusal.detail, peer };
        // This may be the watcher's thread, which a bug of the service must not end; the panic
        // hook logs what is caught.
        let _ = catch_unwind(AssertUnwindSafe(|| self.service.refused(&refused)));
    }

    /// Whether replies may be put down, and requests put off: what is kept of them has a bound.
    fn room(&self) -> Room {
        let table = self.table();
        let kept =
            [Watch::Reply, Watch::Call, Watch::SilentCall].map(|watch| table.buffered(watch));
        match kept.iter().sum::<usize>() < self.guarded.put_down_bytes_max {
            true => Room::Left,
            false => Room::Full,
        }
    }

    /// Notes that the client of a connection that waits to be called sends nothing any more.
    fn note_silence(&self, token: Token) {
        let mut table = self.table();
        if !table.watch_for(token, Watch::Call, Watch::SilentCall, Instant::now()) {
            return;
        }
        let armed = self.arm(&mut table, token, Watch::SilentCall, true);
        drop(table);
        close_unwatched(armed);
    }

    /// Takes a parked connection out, whichever, unless it waits to be called.
    fn unpark(&self) -> Option<Box<Conn>> {
        let mut table = self.table();
        for watch in [Watch::Linger, Watch::Idle, Watch::Head, Watch::Reply] {
            while let Some((token, _)) = table.oldest(watch) {
                if let Some(conn) = table.remove(token) {
                    return Some(conn);
                }
            }
        }
        None
    }
}

/// Whether there is room for what is kept of replies that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Left,
    Full,
}

/// A connection that can't be watched, out of the table. Its reply tells of its end when it is
/// dropped, which takes what time the service likes.
struct Unwatched {
    error: Errno,
    _conn: Option<Box<Conn>>,
}

fn close_unwatched(armed: Result<(), Unwatched>) {
    if let Err(Unwatched { error, .. }) = &armed {
        tracing::warn!(%error, "cannot watch a connection; closing it");
    }
}

#[cfg(test)]
mod tests;
