//! The boundary to sockets: a bounded request head in; a body reader and a reply writer out.
//!
//! A listener accepts, parses and frames; everything above it is shared. It asks the
//! [`Service`] which [`Lane`] a request belongs to, submits a job to that lane's pool, and in
//! the job calls [`Service::serve`] with the request and a writer for the one reply.

use std::borrow::Cow;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::body::Body;
use crate::waiting::Awaited;

mod bounds;
mod descriptors;
pub mod guarded;
mod request_head;
pub mod tiny;

#[cfg(test)]
mod suite;

pub use bounds::Bounds;
pub use descriptors::raise_descriptor_limit;
pub use request_head::RequestHead;

/// What counts as one client: an IPv6 host owns at least a /64.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Header fields that there is room for from the start: a hit has about so many.
const HEADERS_USUAL: usize = 12;

/// A reply before its framing: the listener adds `Date`, `Connection` and either
/// `Content-Length` or `Transfer-Encoding`.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header fields, without those that frame the message. Names and values are checked by
    /// [`Reply::header`], so that none can be split.
    headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body. For HEAD and 304 its length is announced and nothing of it sent.
    pub body: Body,
}

impl Reply {
    /// A reply without headers.
    pub fn new(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::with_capacity(HEADERS_USUAL), body }
    }

    /// Adds a header. A value that could split the head (CR, LF, NUL or another control
    /// character) is left out: it can only have come from an upstream that means ill.
    pub fn header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        let value = value.into();
        if !value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            self.headers.push((name, value));
        }
        self
    }

    /// Adds a member to a header that is a list (RFC 9110, section 5.6.1).
    pub fn member(mut self, name: &'static str, value: &'static str) -> Self {
        match self.headers.iter_mut().find(|(found, _)| *found == name) {
            Some((_, members)) => {
                members.to_mut().push_str(", ");
                members.to_mut().push_str(value);
                self
            }
            None => self.header(name, value),
        }
    }

    /// The same reply, whose body keeps something until it is sent or given up.
    pub fn keeping(self, kept: impl Send + 'static) -> Self {
        Self { body: self.body.keeping(kept), ..self }
    }

    /// The headers so far.
    pub fn headers(&self) -> &[(&'static str, Cow<'static, str>)] {
        &self.headers
    }
}

/// What became of a reply.
#[derive(Debug)]
pub struct Sent {
    /// Bytes of the body that were handed to the socket.
    pub body_bytes: u64,
    /// Why it is not whole, if it is not: the client went away, or the body broke off. The
    /// connection is then closed in a way that the client sees as an error.
    pub broken: Option<Broken>,
}

/// Why a reply is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The client went away or was too slow.
    ByClient,
    /// Our body broke off.
    ByBody,
}

/// Called with what became of a reply, on whichever thread ended it.
pub type Told = Box<dyn FnOnce(Sent) + Send>;

/// What a request does once it need not wait any more: it answers, or puts its answer off once
/// more. Without a writer its client has gone, and nobody is left to answer.
pub type Then = Box<dyn FnOnce(Option<&mut dyn ReplyWriter>) + Send>;

/// Writes the one reply of an exchange.
pub trait ReplyWriter {
    /// Sends head and body. To HEAD, and with 204 and 304, the body is not sent.
    ///
    /// May return before the reply is out, so that a client that takes it slowly holds no
    /// thread; `told` is called once, whenever it has ended.
    fn send(&mut self, reply: Reply, told: Told);

    /// How long the service is to wait for anything before it puts its answer off.
    fn patience(&self) -> Duration {
        Duration::MAX
    }

    /// Whether an answer may be put off, because there is room for what is kept of it. Otherwise
    /// the request is to be answered that there is none.
    fn has_room(&self) -> bool {
        true
    }

    /// Puts the answer off until `awaited` has come, so that whoever waits for a slow upstream
    /// holds no thread. `then` is called once, on any thread, and maybe early; it keeps so many
    /// bytes of memory.
    fn put_off(&mut self, awaited: Box<dyn Awaited>, then: Then, kept: usize);
}

/// A request with its body.
pub struct Request<'a> {
    /// The head.
    pub head: RequestHead,
    /// The body, unframed. Reading it sends `100 Continue` where the client waits for that.
    pub body: &'a mut dyn Read,
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("head", &self.head).finish_non_exhaustive()
    }
}

/// Which pool a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The worker pool.
    Main,
    /// Health and metrics, which answer when every worker is busy.
    Fast,
}

/// An answer that a listener gave by itself, to what never became a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The status code.
    pub status: u16,
    /// Why, in the words that the client was told.
    pub detail: &'static str,
    /// Who was at the other end of the connection.
    pub peer: Option<IpAddr>,
}

/// What stands above the wire.
pub trait Service: Send + Sync {
    /// The lane of a request, told from its head without any waiting.
    fn lane(&self, head: &RequestHead) -> Lane;
    /// Answers a request with exactly one call of a method of `writer` that sends or puts off.
    fn serve(&self, request: Request<'_>, writer: &mut dyn ReplyWriter);
    /// Answers a request for which there is no room (503 with `Retry-After`).
    fn shed(&self, head: &RequestHead, writer: &mut dyn ReplyWriter);
    /// Notes what the listener answered by itself. This may be the thread that accepts, and a
    /// flood: it must be quick, and write no more than so much.
    fn refused(&self, refused: &Refused);
}

/// How many connections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Now.
    pub open: usize,
    /// At most.
    pub max: usize,
}

/// A listener that runs until it is stopped.
pub trait Listener: std::fmt::Debug + Send + Sync {
    /// Accepts and serves until [`Listener::stop`]; returns when accepting has ended.
    ///
    /// # Errors
    /// What made accepting impossible for good.
    fn run(&self) -> io::Result<()>;
    /// Makes `run` return soon; requests in flight go on.
    fn stop(&self);
    /// The connections of clients; `None` where nobody counts them.
    fn connections(&self) -> Option<Connections>;
}
