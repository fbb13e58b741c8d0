//! One connection: its socket, what has arrived on it, and its place in the census.
//!
//! It costs no thread and, while it is idle, no buffer. It is owned by exactly one of: the
//! table of parked connections; the watcher or a worker, while it looks whether the
//! connection is ready (`lookout::Out`) or admits it; or the job that serves it.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Shared;
use super::census::{Kind, Seat};
use super::head::{self, Parsed, Scan, Scanner};
use super::refusal::{Content, Refusal};
use super::reply::Unfinished;
use super::stream::{More, Stream};
use super::table::Watch;
use crate::front::wire::Lane;

/// Bytes that one read takes at most; what a client may send ahead of its answers.
const READ_BYTES_MAX: usize = 8 << 10;
/// Bytes that are discarded from a client that we have answered for the last time.
const LINGER_BYTES_MAX: usize = 4 << 20;
/// Reads of such bytes before whoever looks turns to others.
const LINGER_READS_MAX: usize = 8;

/// What has arrived and was not used yet.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Forgets the first `bytes` of them.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Adds what has arrived, without waiting; 0 is the end.
    ///
    /// # Errors
    /// Those of [`Stream::receive`].
    pub(super) fn receive(&mut self, stream: &Stream) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        stream.receive::<READ_BYTES_MAX>(&mut self.bytes)
    }

    /// Keeps no more memory than the bytes need.
    fn trim(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        } else {
            self.bytes.shrink_to_fit();
        }
    }
}

/// A request that can be served.
#[derive(Debug)]
pub(super) struct Ready {
    /// The request.
    pub(super) parsed: Parsed,
    /// Its lane.
    pub(super) lane: Lane,
}

/// What stands first in a connection's input.
#[derive(Debug)]
pub(super) enum Next {
    /// A request.
    Ready(Box<Ready>),
    /// A part of a request, or nothing.
    Partial,
    /// What is no request.
    Refused(Refusal),
    /// The end: the client has gone.
    Gone,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    /// Its socket.
    pub(super) stream: Stream,
    /// What has arrived on it.
    pub(super) input: Input,
    /// What it is not finished with: a connection that is dropped with a reply in it is reset.
    pub(super) unfinished: Unfinished,
    /// The readiness call knows the socket.
    pub(super) is_registered: bool,
    scanner: Scanner,
    peer: Option<IpAddr>,
    requests: u32,
    // What goes with an answer of our own to the request that comes next.
    content: Content,
    lingered: usize,
    seat: Seat,
}

impl Conn {
    /// A connection that was just accepted.
    pub(super) fn new(stream: Stream, peer: Option<IpAddr>, seat: Seat) -> Box<Self> {
        Box::new(Self {
            stream,
            input: Input::default(),
            unfinished: Unfinished::default(),
            is_registered: false,
            scanner: Scanner::default(),
            peer,
            requests: 0,
            content: Content::Sent,
            lingered: 0,
            seat,
        })
    }

    /// Bytes of memory that it takes for its input and for what it is not finished with.
    pub(super) fn buffered(&self) -> usize {
        self.input.bytes.capacity() + self.unfinished.kept()
    }

    /// Requests that were taken from it.
    pub(super) fn requests(&self) -> u32 {
        self.requests
    }

    /// Who is at its other end.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Whether it is counted for this address.
    pub(super) fn is_counted_for(&self, address: IpAddr) -> bool {
        self.seat.is_for(address)
    }

    /// Which kind of seat it has.
    pub(super) fn kind(&self) -> Kind {
        self.seat.kind()
    }

    /// Takes the next request out of what has arrived already.
    pub(super) fn take_buffered(&mut self, shared: &Shared) -> Next {
        let scan = self.scanner.advance(self.input.bytes(), &shared.bounds);
        self.content = Content::for_request(self.scanner.head(self.input.bytes()));
        let (begin, end) = match scan {
            Scan::Partial => return Next::Partial,
            Scan::Refused(refusal) => return Next::Refused(refusal),
            Scan::Complete { begin, end } => (begin, end),
        };
        let parsed = head::parse(&self.input.bytes()[begin..end], &shared.bounds);
        self.input.consume(end);
        self.scanner = Scanner::default();
        self.requests = self.requests.saturating_add(1);
        match parsed {
            Err(refusal) => Next::Refused(refusal),
            Ok(mut parsed) => {
                parsed.head.client = shared.trusted.client(self.peer, &parsed.head);
                // This may be a thread that looks after others too, which a bug of the service
                // must not disturb.
                let lane = AssertUnwindSafe(|| shared.service.lane(&parsed.head));
                match catch_unwind(lane) {
                    Ok(lane) => Next::Ready(Box::new(Ready { parsed, lane })),
                    Err(_) => Next::Refused(Refusal::NO_ANSWER),
                }
            }
        }
    }

    /// Reads once without waiting, and takes the next request if that completes it.
    pub(super) fn receive(&mut self, shared: &Shared) -> Next {
        match self.input.receive(&self.stream) {
            Ok(0) => Next::Gone,
            Ok(_) => self.take_buffered(shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::Partial,
            Err(_) => Next::Gone,
        }
    }

    /// Frees what it does not need while nothing happens on it.
    pub(super) fn trim(&mut self) {
        self.input.trim();
    }

    /// What to watch it for while no whole request has come; frees what it does not need.
    pub(super) fn rest(&mut self) -> Watch {
        self.trim();
        match self.is_before_request() && self.requests > 0 {
            true => Watch::Idle,
            false => Watch::Head,
        }
    }

    /// Whether no byte of a next request has come.
    pub(super) fn is_before_request(&self) -> bool {
        self.scanner.is_before_request(self.input.bytes())
    }

    /// Answers for the last time and begins to close, without waiting; `false` where the
    /// answer does not fit into the socket's buffer, and dropping is all that is left.
    pub(super) fn refuse(&mut self, shared: &Shared, refusal: &Refusal) -> bool {
        shared.tell_refused(refusal, self.peer);
        let mut answer = Vec::with_capacity(256);
        refusal.append_to(&mut answer, self.content);
        let sent = self.stream.send(&[IoSlice::new(&answer)], More::Nothing);
        sent.is_ok_and(|sent| sent == answer.len()) && self.begin_linger()
    }

    /// Says that we are done, so that the connection can linger: a close with unread bytes
    /// would reset it and could cost the client our last answer (RFC 9112, section 9.6).
    pub(super) fn begin_linger(&mut self) -> bool {
        self.input = Input::default();
        self.stream.finish_sending().is_ok()
    }

    /// Discards what has come; whether to go on lingering.
    pub(super) fn linger(&mut self, scratch: &mut [u8]) -> bool {
        for _ in 0..LINGER_READS_MAX {
            match self.stream.receive_into(scratch) {
                Ok(0) => return false,
                Ok(got) => self.lingered += got,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            if self.lingered > LINGER_BYTES_MAX {
                return false;
            }
        }
        true
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // A reply that ends here must not look whole.
        if self.unfinished.reply.is_some() {
            self.stream.reset_on_close();
        }
    }
}
