//! Writes the one reply of an exchange: head, framing, body.
//!
//! Head and a small body go out in one write; a file's large region goes by `sendfile`. A body
//! that breaks off ends the connection with a reset, so that no client takes it for whole;
//! where nothing was sent yet, the client gets a 502 instead.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::buffer::spare_capacity;

use super::body::Unread;
use super::refusal::{Refusal, append_number, append_status};
use super::stream::{More, Pace, Stream};
use super::{DRAIN_BYTES_MAX, date};
use crate::body::{Body, Piece};
use crate::front::wire::{Broken, Reply, ReplyWriter, Sent};

/// A region of at most so many bytes is read and sent with the head in one write; a longer
/// one goes by `sendfile`.
const READ_REGION_MAX: u64 = 32 << 10;

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
    /// An unread body may be waited for, so that it can be drained.
    pub(super) may_drain: bool,
}

/// The writer of one reply.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    stream: &'a Stream,
    out: &'a mut Vec<u8>,
    unread: &'a Cell<Unread>,
    asked: Asked,
    pace: Pace,
    stopping: &'a AtomicBool,
    ending: Ending,
    // Something of the reply has reached the socket.
    is_begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Bodiless,
    Length(u64),
    Chunked,
    UntilClose,
}

enum Failure {
    Client(io::Error),
    Body,
}

impl<'a> Writer<'a> {
    /// A writer that gathers in `out`, an empty buffer, and keeps no connection once
    /// `stopping` is set.
    pub(super) fn new(
        stream: &'a Stream,
        out: &'a mut Vec<u8>,
        unread: &'a Cell<Unread>,
        asked: Asked,
        pace: Pace,
        stopping: &'a AtomicBool,
    ) -> Self {
        let ending = Ending::Unanswered;
        Self { stream, out, unread, asked, pace, stopping, ending, is_begun: false }
    }

    /// What the reply leaves of the connection.
    pub(super) fn ending(&self) -> Ending {
        self.ending
    }

    /// Answers for a service that did not.
    pub(super) fn answer_for_service(&mut self) {
        self.refuse(&Refusal::NO_ANSWER);
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.out.clear();
        refusal.append_to(self.out);
        self.ending = match self.flush(More::Nothing) {
            Ok(()) => Ending::Close,
            Err(_) => Ending::Lost,
        };
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

    /// Sends the body behind what is gathered; counts its bytes into `sent`.
    fn send_body(
        &mut self,
        body: &mut Body,
        framing: Framing,
        sent: &mut u64,
    ) -> Result<(), Failure> {
        loop {
            // Asking for the next piece can block, so nothing may be held back here, but for a
            // head that is not out yet: it leaves with the first piece.
            match body.next_piece() {
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a reply broke off");
                    return Err(Failure::Body);
                }
                Ok(None) => {
                    if framing == Framing::Chunked {
                        self.out.extend_from_slice(b"0\r\n\r\n");
                    }
                    return self.flush(More::Nothing).map_err(Failure::Client);
                }
                Ok(Some(piece)) => {
                    if framing == Framing::Chunked {
                        append_chunk_size(self.out, piece.len());
                    }
                    let tail: &[u8] = if framing == Framing::Chunked { b"\r\n" } else { b"" };
                    match piece {
                        Piece::Bytes(bytes) => {
                            self.send_bytes(bytes, tail, sent).map_err(Failure::Client)?;
                        }
                        Piece::Region { file, offset, len } => {
                            self.send_region(file, offset, len, sent)?;
                            self.out.extend_from_slice(tail);
                            self.flush(More::Nothing).map_err(Failure::Client)?;
                        }
                    }
                }
            }
        }
    }

    fn send_region(
        &mut self,
        file: &File,
        mut offset: u64,
        len: u64,
        sent: &mut u64,
    ) -> Result<(), Failure> {
        if len <= READ_REGION_MAX {
            let end = offset + len;
            while offset < end {
                self.out.reserve((end - offset) as usize);
                let start = self.out.len();
                let read = rustix::io::pread(file, spare_capacity(self.out), offset);
                // The buffer may have room for more than was asked for.
                self.out.truncate(start + (end - offset) as usize);
                match read {
                    Ok(0) => return Err(Failure::Body),
                    Ok(_) => offset += (self.out.len() - start) as u64,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return Err(Failure::Body),
                }
            }
            self.flush(More::Nothing).map_err(Failure::Client)?;
            *sent += len;
            return Ok(());
        }
        self.flush(More::Follows).map_err(Failure::Client)?;
        let mut left = len;
        while left > 0 {
            match self.stream.send_file(file, &mut offset, left) {
                // The file is shorter than its piece.
                Ok(0) => return Err(Failure::Body),
                Ok(got) => {
                    left -= got as u64;
                    *sent += got as u64;
                    self.pace.moved(got);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.wait_writable(&mut self.pace).map_err(Failure::Client)?;
                }
                Err(error) if is_of_file(&error) => return Err(Failure::Body),
                Err(error) => return Err(Failure::Client(error)),
            }
        }
        Ok(())
    }

    /// Sends what is gathered, then `bytes`, then `tail`, in as few writes as the socket lets.
    fn send_bytes(&mut self, bytes: &[u8], tail: &[u8], sent: &mut u64) -> io::Result<()> {
        let head_len = self.out.len();
        let mut parts = [IoSlice::new(self.out), IoSlice::new(bytes), IoSlice::new(tail)];
        let done = send_all(self.stream, &mut self.pace, &mut parts, More::Nothing);
        let moved = match &done {
            Ok(moved) => *moved,
            Err((moved, _)) => *moved,
        };
        self.is_begun |= moved > 0;
        *sent += moved.saturating_sub(head_len).min(bytes.len()) as u64;
        self.out.clear();
        done.map(|_| ()).map_err(|(_, error)| error)
    }

    /// Sends what is gathered.
    fn flush(&mut self, more: More) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.is_begun = true;
        let mut parts = [IoSlice::new(self.out)];
        let done = send_all(self.stream, &mut self.pace, &mut parts, more);
        self.out.clear();
        done.map(|_| ()).map_err(|(_, error)| error)
    }

    /// Ends a reply that can't become whole.
    fn break_off(&mut self, framing: Framing) {
        if framing == Framing::Chunked {
            // No chunk size: who misses the reset stumbles over this. It need not fit.
            let _ = self.stream.send(&[IoSlice::new(b"broken off\r\n")], More::Nothing);
        }
        self.stream.reset_on_close();
        self.ending = Ending::Lost;
    }
}

impl ReplyWriter for Writer<'_> {
    fn send(&mut self, mut reply: Reply) -> Sent {
        if self.ending != Ending::Unanswered {
            debug_assert!(false, "a service answers once");
            return Sent { body_bytes: 0, broken: Some(Broken::ByBody) };
        }
        let framing = self.framing(&reply);
        let keeps = self.keeps(framing);
        if !keeps && self.unread.get() == Unread::AwaitsContinue {
            // The final reply takes the place of 100 Continue, which must not follow it.
            self.unread.set(Unread::Unknown);
        }
        self.append_head(&reply, framing, keeps);
        let mut body_bytes = 0;
        let done = match framing {
            Framing::Bodiless | Framing::Length(0) => {
                self.flush(More::Nothing).map_err(Failure::Client)
            }
            _ => self.send_body(&mut reply.body, framing, &mut body_bytes),
        };
        let broken = match done {
            Ok(()) => {
                self.ending = if keeps { Ending::Keep } else { Ending::Close };
                None
            }
            Err(Failure::Client(error)) => {
                tracing::debug!(%error, "a client did not take its reply");
                self.stream.reset_on_close();
                self.ending = Ending::Lost;
                Some(Broken::ByClient)
            }
            Err(Failure::Body) if self.is_begun => {
                self.break_off(framing);
                Some(Broken::ByBody)
            }
            Err(Failure::Body) => {
                self.refuse(&Refusal::BAD_BODY);
                Some(Broken::ByBody)
            }
        };
        Sent { body_bytes, broken }
    }
}

/// Whether a field frames the message or the connection, which only this module may do.
fn is_ours(name: &str) -> bool {
    ["date", "connection", "content-length", "transfer-encoding", "keep-alive"]
        .iter()
        .any(|ours| name.eq_ignore_ascii_case(ours))
}

/// Errors of `sendfile` that blame the file.
fn is_of_file(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.raw_os_error().is_some_and(|raw| {
        [Errno::IO, Errno::INVAL, Errno::OVERFLOW].iter().any(|e| e.raw_os_error() == raw)
    })
}

fn append_chunk_size(out: &mut Vec<u8>, size: u64) {
    let digits = (64 - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (digit * 4) & 0xf) as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Sends all parts, waiting within the pace; gives how much went out, failed or not.
fn send_all(
    stream: &Stream,
    pace: &mut Pace,
    mut parts: &mut [IoSlice<'_>],
    more: More,
) -> Result<usize, (usize, io::Error)> {
    let mut moved = 0;
    // Parts that are empty from the start would look like an end.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.send(parts, more) {
            Ok(sent) => {
                moved += sent;
                pace.moved(sent);
                IoSlice::advance_slices(&mut parts, sent);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.wait_writable(pace).map_err(|error| (moved, error))?;
            }
            Err(error) => return Err((moved, error)),
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_written_in_hexadecimal() {
        for size in [1, 9, 10, 15, 16, 255, 256, 4096, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            append_chunk_size(&mut out, size);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{size:x}\r\n"));
        }
    }

    #[test]
    fn a_service_cannot_frame_the_message() {
        for name in ["Content-Length", "transfer-encoding", "CONNECTION", "Date", "keep-alive"] {
            assert!(is_ours(name), "{name}");
        }
        assert!(!is_ours("content-type"));
    }
}
