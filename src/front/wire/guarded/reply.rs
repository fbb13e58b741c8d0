//! Writes the one reply of an exchange: head, framing, body.
//!
//! A body that breaks off ends the connection with a reset, so that no client takes it for
//! whole; where nothing was sent yet, the client gets a 502 instead. A reply whose client is
//! slow can be put down and taken up again by another thread ([`Pending`]), and a request whose
//! service waits for others can be put off ([`PutOff`]).

use std::cell::Cell;
use std::fmt;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::body::Unread;
use super::refusal::{Content, Refusal, append_number, append_status};
use super::stream::{More, Pace, Stream};
use super::transfer::{Ends, Failure, Progress, Transfer, Wait};
use super::{DRAIN_BYTES_MAX, date};
use crate::front::pools::Outside;
use crate::front::wire::{Broken, Reply, ReplyWriter, Sent, Then, Told};
use crate::waiting::{Awaited, Registration};

/// Bytes that a request that was put off takes beside what its service keeps, more or less.
const PUT_OFF_BYTES: usize = 1 << 10;

/// What the reply leaves of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// No reply was sent.
    Unanswered,
    /// It can carry the next request.
    Keep,
    /// It was said that this was the last reply.
    Close,
    /// The reply is not whole.
    Lost,
    /// The reply goes on when the client takes it.
    PutDown,
    /// The reply goes on, or begins, when what it waits for has come.
    PutOff,
}

impl Ending {
    /// Whether it is no end yet.
    pub(super) fn is_to_go_on(self) -> bool {
        matches!(self, Self::PutDown | Self::PutOff)
    }
}

/// What the writer must know of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// It was HEAD.
    pub(super) is_head: bool,
    /// It came as HTTP/1.1.
    pub(super) is_http_11: bool,
    /// The connection may be kept, as far as the request and our bounds go.
    pub(super) may_keep: bool,
    /// An unread body may be waited for, so that it can be drained. Otherwise it costs the
    /// connection.
    pub(super) may_drain: bool,
    /// There is room for what is kept of those that are put off.
    pub(super) has_room: bool,
    /// How long the thread waits for a slow client, where the reply may be put down, and for a
    /// slow service, where it may be put off.
    pub(super) wait: Wait,
}

/// The writer of one reply.
pub(super) struct Writer<'a> {
    stream: &'a Stream,
    out: &'a mut Vec<u8>,
    unread: &'a Cell<Unread>,
    asked: Asked,
    pace: Pace,
    stopping: &'a AtomicBool,
    ending: Ending,
    // The connection's place for what goes on without this thread.
    unfinished: &'a mut Unfinished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Bodiless,
    Length(u64),
    Chunked,
    UntilClose,
}

impl<'a> Writer<'a> {
    /// A writer that gathers in `out`, an empty buffer, and keeps no connection once
    /// `stopping` is set. The reply is in `unfinished` from its beginning to its end.
    pub(super) fn new(
        stream: &'a Stream,
        out: &'a mut Vec<u8>,
        unread: &'a Cell<Unread>,
        asked: Asked,
        pace: Pace,
        stopping: &'a AtomicBool,
        unfinished: &'a mut Unfinished,
    ) -> Self {
        let ending = Ending::Unanswered;
        Self { stream, out, unread, asked, pace, stopping, ending, unfinished }
    }

    /// What the reply leaves of the connection.
    pub(super) fn ending(&self) -> Ending {
        self.ending
    }

    /// Answers for a service that did not.
    pub(super) fn answer_for_service(&mut self) {
        let content = if self.asked.is_head { Content::Announced } else { Content::Sent };
        self.ending = refuse(self.stream, self.out, &Refusal::NO_ANSWER, content);
    }

    fn framing(&self, reply: &Reply) -> Framing {
        match reply.body.len() {
            _ if self.asked.is_head || matches!(reply.status, 100..=199 | 204 | 304) => {
                Framing::Bodiless
            }
            Some(len) => Framing::Length(len),
            None if self.asked.is_http_11 => Framing::Chunked,
            None => Framing::UntilClose,
        }
    }

    /// Whether the connection outlives this reply.
    fn keeps(&self, framing: Framing) -> bool {
        self.asked.may_keep
            && framing != Framing::UntilClose
            && !self.stopping.load(Ordering::Relaxed)
            && match self.unread.get() {
                Unread::Nothing => true,
                Unread::Bytes(left) => self.asked.may_drain && left <= DRAIN_BYTES_MAX,
                Unread::Chunks => self.asked.may_drain,
                Unread::AwaitsContinue | Unread::Unknown => false,
            }
    }

    fn append_head(&mut self, reply: &Reply, framing: Framing, keeps: bool) {
        let out = &mut *self.out;
        out.extend_from_slice(b"HTTP/1.1 ");
        append_status(out, reply.status);
        out.extend_from_slice(b"\r\nDate: ");
        date::append_now(out);
        out.extend_from_slice(b"\r\n");
        for (name, value) in reply.headers() {
            if !is_ours(name) {
                for part in [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
        }
        if !keeps {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if !self.asked.is_http_11 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        let announced = match framing {
            Framing::Length(len) => Some(len),
            // A 304 without a body says nothing about the length of what it stands for.
            Framing::Bodiless if reply.status == 304 => reply.body.len().filter(|len| *len > 0),
            Framing::Bodiless if self.asked.is_head && reply.status != 204 => reply.body.len(),
            Framing::Bodiless | Framing::Chunked | Framing::UntilClose => None,
        };
        if let Some(len) = announced {
            out.extend_from_slice(b"Content-Length: ");
            append_number(out, len);
            out.extend_from_slice(b"\r\n");
        } else if framing == Framing::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// How long this thread waits: whoever takes the exchange up again knows nothing of an
    /// unread body, and could not drain it.
    fn wait(&self) -> Wait {
        match self.unread.get() {
            Unread::Nothing => self.asked.wait,
            _ if !self.asked.may_drain => self.asked.wait,
            _ => Wait::TO_THE_END,
        }
    }

    fn begin(&mut self, reply: Reply, told: Told) -> (Box<Pending>, Wait) {
        let framing = self.framing(&reply);
        let keeps = self.keeps(framing);
        if !keeps && self.unread.get() == Unread::AwaitsContinue {
            // The final reply takes the place of 100 Continue, which must not follow it.
            self.unread.set(Unread::Unknown);
        }
        self.append_head(&reply, framing, keeps);
        let body = match framing {
            Framing::Bodiless | Framing::Length(0) => None,
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Some(reply.body),
        };
        let ends = match framing {
            Framing::Chunked => Ends::InChunks,
            Framing::Bodiless | Framing::Length(_) | Framing::UntilClose => Ends::Plainly,
        };
        let transfer = Transfer::new(body, ends, self.pace.clone());
        if framing == Framing::UntilClose {
            // Should the process end before the body does, that is no end of the body.
            self.stream.reset_on_close();
        }
        (Box::new(Pending { transfer, keeps, framing, told: Some(told) }), self.wait())
    }

    /// Sends a reply as far as the client takes it within `wait`; gives why it is not whole.
    fn run(&mut self, reply: Box<Pending>, wait: Wait) -> Option<Broken> {
        // Not a local: a panic inside the body must not drop it before the connection.
        let reply = self.unfinished.reply.insert(reply);
        let (ending, broken) = reply.go_on(self.stream, self.out, wait);
        self.ending = ending;
        broken
    }
}

impl ReplyWriter for Writer<'_> {
    fn send(&mut self, reply: Reply, told: Told) {
        if self.ending != Ending::Unanswered {
            debug_assert!(false, "a service answers once");
            return told(Sent { body_bytes: 0, broken: Some(Broken::ByBody) });
        }
        let (reply, wait) = self.begin(reply, told);
        let broken = self.run(reply, wait);
        if !self.ending.is_to_go_on()
            && let Some(reply) = self.unfinished.reply.take()
        {
            reply.tell(broken);
        }
    }

    fn patience(&self) -> Duration {
        self.wait().for_others
    }

    fn has_room(&self) -> bool {
        self.asked.has_room
    }

    fn put_off(&mut self, awaited: Box<dyn Awaited>, then: Then, kept: usize) {
        if self.ending != Ending::Unanswered {
            debug_assert!(false, "a service answers once");
            return then(None);
        }
        if self.patience() == Duration::MAX {
            // Nobody else could go on with it. This thread waits inside.
            return then(Some(self));
        }
        // Nobody drains what is unread any more.
        let may_keep = self.asked.may_keep && self.unread.get() == Unread::Nothing;
        let request = PutOff {
            asked: Asked { may_keep, ..self.asked },
            pace: self.pace.clone(),
            awaited: Some(awaited),
            then: Some(then),
            kept,
        };
        self.unfinished.request = Some(Box::new(request));
        self.ending = Ending::PutOff;
    }
}

/// What a connection is not finished with.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    // Dropped first: who is told of the rest finds that nobody waits any more.
    waits: Option<Waits>,
    /// A reply that is begun and has not ended, whoever works on it.
    pub(super) reply: Option<Box<Pending>>,
    /// A request that was put off.
    pub(super) request: Option<Box<PutOff>>,
}

/// A wait to be called, until it is dropped.
#[derive(Debug)]
struct Waits {
    _outside: Outside,
    _registration: Registration,
}

impl Unfinished {
    /// Whether there is nothing.
    pub(super) fn is_nothing(&self) -> bool {
        self.reply.is_none() && self.request.is_none()
    }

    /// Notes that it waits to be called.
    pub(super) fn wait_for_call(&mut self, outside: Outside, registration: Registration) {
        self.waits = Some(Waits { _outside: outside, _registration: registration });
    }

    /// Notes that it waits no more.
    pub(super) fn end_wait(&mut self) {
        self.waits = None;
    }

    /// What it was put off for, once.
    pub(super) fn awaited(&mut self) -> Option<Box<dyn Awaited>> {
        match (&mut self.reply, &mut self.request) {
            (Some(reply), _) => reply.transfer.awaited(),
            (None, Some(request)) => request.awaited.take(),
            (None, None) => None,
        }
    }

    /// Bytes of memory that it keeps.
    pub(super) fn kept(&self) -> usize {
        let reply = self.reply.as_ref().map_or(0, |reply| reply.transfer.kept());
        reply + self.request.as_ref().map_or(0, |request| PUT_OFF_BYTES + request.kept)
    }
}

/// A request that was put off. Dropped before it goes on, it tells that its client has gone.
pub(super) struct PutOff {
    asked: Asked,
    pace: Pace,
    awaited: Option<Box<dyn Awaited>>,
    then: Option<Then>,
    // Bytes of memory that `then` keeps.
    kept: usize,
}

impl fmt::Debug for PutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutOff").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl PutOff {
    /// Goes on with it; gives what that leaves of the connection.
    pub(super) fn go_on(
        mut self,
        stream: &Stream,
        out: &mut Vec<u8>,
        wait: Wait,
        stopping: &AtomicBool,
        unfinished: &mut Unfinished,
    ) -> Ending {
        let unread = Cell::new(Unread::Nothing);
        let (asked, pace) = (Asked { wait, ..self.asked }, self.pace.clone());
        let mut writer = Writer::new(stream, out, &unread, asked, pace, stopping, unfinished);
        if let Some(then) = self.then.take() {
            then(Some(&mut writer));
        }
        if writer.ending() == Ending::Unanswered {
            writer.answer_for_service();
        }
        writer.ending()
    }
}

impl Drop for PutOff {
    fn drop(&mut self) {
        if let Some(then) = self.then.take() {
            // This may be the watcher's thread; the panic hook logs what is caught.
            let _ = catch_unwind(AssertUnwindSafe(|| then(None)));
        }
    }
}

/// A reply that is begun. Dropped before its end, it tells that the client did not take it.
pub(super) struct Pending {
    transfer: Transfer,
    keeps: bool,
    framing: Framing,
    told: Option<Told>,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("keeps", &self.keeps).finish_non_exhaustive()
    }
}

impl Pending {
    /// Goes on with the reply; gives what it leaves of the connection and why it is not whole.
    pub(super) fn go_on(
        &mut self,
        stream: &Stream,
        out: &mut Vec<u8>,
        wait: Wait,
    ) -> (Ending, Option<Broken>) {
        match self.transfer.run(stream, out, wait) {
            Ok(Progress::PutDown) => (Ending::PutDown, None),
            Ok(Progress::PutOff) => (Ending::PutOff, None),
            Ok(Progress::Done) if self.keeps => (Ending::Keep, None),
            Ok(Progress::Done) => {
                if self.framing == Framing::UntilClose {
                    stream.end_on_close();
                }
                (Ending::Close, None)
            }
            Err(Failure::Client(error)) => {
                tracing::debug!(%error, "a client did not take its reply");
                stream.reset_on_close();
                (Ending::Lost, Some(Broken::ByClient))
            }
            Err(Failure::Body) if self.transfer.is_begun() => {
                if self.framing == Framing::Chunked {
                    // No chunk size: who misses the reset stumbles over this. It need not fit.
                    let _ = stream.send(&[IoSlice::new(b"broken off\r\n")], More::Nothing);
                }
                stream.reset_on_close();
                (Ending::Lost, Some(Broken::ByBody))
            }
            // A reply without a body does not come here.
            Err(Failure::Body) => {
                stream.end_on_close();
                let ending = refuse(stream, out, &Refusal::BAD_BODY, Content::Sent);
                (ending, Some(Broken::ByBody))
            }
        }
    }

    /// Tells what became of the reply.
    pub(super) fn tell(mut self: Box<Self>, broken: Option<Broken>) {
        if let Some(told) = self.told.take() {
            told(Sent { body_bytes: self.transfer.sent(), broken });
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            let sent = Sent { body_bytes: self.transfer.sent(), broken: Some(Broken::ByClient) };
            // This may be the watcher's thread; the panic hook logs what is caught.
            let _ = catch_unwind(AssertUnwindSafe(|| told(sent)));
        }
    }
}

/// Answers in the place of a reply of which nothing was sent; it fits, or is not worth a wait.
fn refuse(stream: &Stream, out: &mut Vec<u8>, refusal: &Refusal, content: Content) -> Ending {
    out.clear();
    refusal.append_to(out, content);
    let sent = stream.send(&[IoSlice::new(out)], More::Nothing);
    match sent.is_ok_and(|sent| sent == out.len()) {
        true => Ending::Close,
        false => Ending::Lost,
    }
}

/// Whether a field frames the message or the connection, which only this module may do.
fn is_ours(name: &str) -> bool {
    ["date", "connection", "content-length", "transfer-encoding", "keep-alive"]
        .iter()
        .any(|ours| name.eq_ignore_ascii_case(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_cannot_frame_the_message() {
        for name in ["Content-Length", "transfer-encoding", "CONNECTION", "Date", "keep-alive"] {
            assert!(is_ours(name), "{name}");
        }
        assert!(!is_ours("content-type"));
    }
}
