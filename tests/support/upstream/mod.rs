//! A scripted upstream: a server of HTTP/1.1 over plain sockets that misbehaves exactly as a
//! test says, and remembers what it was asked.
//!
//! Each path has a [`Script`]. An [`Answer`] is a file with its validators, or a fault: cut,
//! reset, stalled, lying about its length, badly framed. A [`Gate`] holds an answer at a byte
//! until the test opens it. A thread per connection; all end when the upstream is dropped.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

mod answer;

pub(crate) use answer::{Answer, Gate, Script};

/// Largest request head that is read.
const HEAD_MAX: usize = 64 << 10;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How often a stalled answer looks whether its client is still there.
const STALL_LOOK: Duration = Duration::from_millis(20);

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The method.
    pub(crate) method: String,
    /// Path and query; of `CONNECT`, host and port.
    pub(crate) target: String,
    /// Header fields in their order, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// When it was complete.
    pub(crate) at: Instant,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    // Bound but not listening: keeps the port ours while the upstream is down.
    _reservation: Socket,
    listening: Mutex<Option<Socket>>,
}

#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    stopping: AtomicBool,
    connections: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scripts: HashMap<String, Script>,
    seen: Vec<Seen>,
    open: HashMap<u64, TcpStream>,
    answering: HashMap<String, usize>,
    answering_peak: HashMap<String, usize>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the upstream's state")
    }
}

impl Upstream {
    /// Starts one on 127.0.0.1. What has no script is answered 404.
    pub(crate) fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST)
    }

    /// Starts one on another address of the loopback network: another host to its clients.
    pub(crate) fn start_on(ip: Ipv4Addr) -> Self {
        let reservation = bound_socket(SocketAddr::new(IpAddr::V4(ip), 0));
        let addr = reservation.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            addr: addr.as_socket().expect("the socket is of IPv4"),
            stopping: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            state: Mutex::default(),
        });
        let upstream = Self { shared, _reservation: reservation, listening: Mutex::new(None) };
        upstream.go_up();
        upstream
    }

    /// `http://127.0.0.1:PORT`, without a slash at its end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.shared.addr)
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Sets what a path (with its query) is answered with, from the next request on.
    pub(crate) fn serve(&self, path: &str, script: impl Into<Script>) {
        self.shared.state().scripts.insert(path.to_owned(), script.into());
    }

    /// Lets nobody connect any more and breaks every open connection.
    pub(crate) fn go_down(&self) {
        let listening = self.listening.lock().expect("nobody panics while holding it").take();
        if let Some(socket) = listening {
            // Ends the accept loop, which holds a duplicate.
            socket.shutdown(Shutdown::Both).expect("a listening socket can be shut down");
        }
        self.close_connections();
    }

    /// Listens again, at the same address.
    pub(crate) fn go_up(&self) {
        let mut listening = self.listening.lock().expect("nobody panics while holding it");
        if listening.is_some() {
            return;
        }
        let socket = bound_socket(self.shared.addr);
        socket.listen(BACKLOG).expect("the port is reserved");
        let duplicate = socket.try_clone().expect("a descriptor is left");
        *listening = Some(socket);
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || accept(&duplicate.into(), &shared));
    }

    /// Breaks every open connection; new ones are accepted.
    pub(crate) fn close_connections(&self) {
        for (_, stream) in self.shared.state().open.drain() {
            // One that is closed already is as wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Every request so far, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// The requests for one path, in order.
    pub(crate) fn seen_for(&self, path: &str) -> Vec<Seen> {
        let state = self.shared.state();
        state.seen.iter().filter(|seen| seen.target == path).cloned().collect()
    }

    /// How many requests came for one path.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.seen_for(path).len()
    }

    /// How many requests came at all.
    pub(crate) fn total(&self) -> usize {
        self.shared.state().seen.len()
    }

    /// How many connections were ever accepted, those without a request included.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many answers for a path are being sent now.
    pub(crate) fn answering(&self, path: &str) -> usize {
        self.shared.state().answering.get(path).copied().unwrap_or(0)
    }

    /// How many answers for a path were ever being sent at once.
    pub(crate) fn answering_peak(&self, path: &str) -> usize {
        self.shared.state().answering_peak.get(path).copied().unwrap_or(0)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.go_down();
    }
}

fn bound_socket(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is left");
    // Lets the listening socket stand beside the reservation.
    socket.set_reuse_address(true).expect("a socket takes SO_REUSEADDR");
    socket.bind(&addr.into()).unwrap_or_else(|error| panic!("cannot bind {addr}: {error}"));
    socket
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    // An error is the shutdown of the listener.
    while let Ok((stream, _)) = listener.accept() {
        let id = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let Ok(duplicate) = stream.try_clone() else { continue };
        shared.state().open.insert(id, duplicate);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away in the middle is part of many tests.
            let ended = converse(&shared, &stream).unwrap_or(Next::Close);
            shared.state().open.remove(&id);
            end(&stream, ended);
        });
    }
}

fn end(mut stream: &TcpStream, how: Next) {
    if how == Next::Reset {
        // Has no effect where the peer was first.
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        return;
    }
    // A plain close would become a reset if bytes of the peer were still unread, and a reset
    // takes back what was sent.
    let polite = stream.shutdown(Shutdown::Write).is_ok()
        && stream.set_read_timeout(Some(STALL_LOOK)).is_ok();
    let mut rest = [0; 4096];
    while polite && matches!(stream.read(&mut rest), Ok(taken) if taken > 0) {}
}

/// What comes after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Request,
    Close,
    Reset,
}

fn converse(shared: &Shared, mut stream: &TcpStream) -> io::Result<Next> {
    stream.set_nodelay(true)?;
    let mut unread = Vec::new();
    while let Some(request) = read_request(stream, &mut unread)? {
        let answer = note(shared, &request);
        if request.method == "CONNECT" {
            // A proxy, whose other end is this upstream again.
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            continue;
        }
        let answering = Answering::begin(shared, &request.target);
        let next = answer.send(&request, stream, &|| is_wanted(shared, stream));
        drop(answering);
        match next? {
            Next::Request if request.header("connection") != Some("close") => (),
            Next::Request => return Ok(Next::Close),
            next => return Ok(next),
        }
    }
    Ok(Next::Close)
}

/// Waits a moment and says whether a stalled answer has to go on stalling.
fn is_wanted(shared: &Shared, stream: &TcpStream) -> bool {
    let mut byte = [0; 1];
    let looked = stream.set_read_timeout(Some(STALL_LOOK)).and_then(|()| stream.peek(&mut byte));
    let is_gone = match looked {
        Ok(waiting) => waiting == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    };
    let is_restored = stream.set_read_timeout(None).is_ok();
    is_restored && !is_gone && !shared.stopping.load(Ordering::SeqCst)
}

/// Remembers a request and picks its answer.
fn note(shared: &Shared, request: &Seen) -> Answer {
    let mut state = shared.state();
    state.seen.push(request.clone());
    state.scripts.get_mut(&request.target).map_or_else(|| Answer::status(404), Script::next)
}

/// Counts an answer while it is being sent.
struct Answering<'a> {
    shared: &'a Shared,
    path: String,
}

impl<'a> Answering<'a> {
    fn begin(shared: &'a Shared, path: &str) -> Self {
        let mut state = shared.state();
        let now = state.answering.entry(path.to_owned()).or_default();
        *now += 1;
        let now = *now;
        let peak = state.answering_peak.entry(path.to_owned()).or_default();
        *peak = now.max(*peak);
        drop(state);
        Self { shared, path: path.to_owned() }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        if let Some(now) = self.shared.state().answering.get_mut(&self.path) {
            *now -= 1;
        }
    }
}

/// Reads one request head; `None` at a clean end. No test sends an upstream a body.
fn read_request(mut stream: &TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let end = loop {
        if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if unread.len() > HEAD_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Ok(None),
            taken => unread.extend_from_slice(&piece[..taken]),
        }
    };
    let head: Vec<u8> = unread.drain(..end + 4).collect();
    let text = String::from_utf8_lossy(&head[..end]);
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    // A proxy may be asked in absolute form.
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Some(Seen { method, target: target.to_owned(), headers, at: Instant::now() }))
}
