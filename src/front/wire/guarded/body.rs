//! Reads a request's body: unframed, bounded, and with a bound on the client's patience game.
//!
//! The kinds of error tell the service what to answer: `FileTooLarge` (413), `TimedOut`
//! (408), `InvalidData` (400: the framing is broken), `UnexpectedEof` (the client has gone).
//! After any of them the connection is closed behind the reply.

use std::cell::Cell;
use std::io::{self, IoSlice, Read};
use std::time::Duration;

use super::chunked::{Decoder, Found};
use super::connection::Input;
use super::head::BodyFraming;
use super::stream::{More, Pace, Stream};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What the reader leaves on the connection; the reply writer must know before it promises to
/// keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// Nothing: the body is read to its end, or there is none.
    Nothing,
    /// So many bytes.
    Bytes(u64),
    /// Chunks, nobody knows how many.
    Chunks,
    /// The client may or may not send what it has asked about.
    AwaitsContinue,
    /// Where the body ends can't be told any more.
    Unknown,
}

/// The body of one request.
#[derive(Debug)]
pub(super) struct BodyReader<'a> {
    stream: &'a Stream,
    input: &'a mut Input,
    unread: &'a Cell<Unread>,
    framing: Framing,
    taken: u64,
    bytes_max: u64,
    pace: Pace,
}

#[derive(Debug)]
enum Framing {
    Length { left: u64 },
    Chunked(Decoder),
}

impl<'a> BodyReader<'a> {
    /// A reader of at most `bytes_max` bytes that keeps `unread` up to date.
    pub(super) fn new(
        stream: &'a Stream,
        input: &'a mut Input,
        unread: &'a Cell<Unread>,
        framing: BodyFraming,
        bytes_max: u64,
        pace: Pace,
    ) -> Self {
        let framing = match framing {
            BodyFraming::None => Framing::Length { left: 0 },
            BodyFraming::Length(left) => Framing::Length { left },
            BodyFraming::Chunked => Framing::Chunked(Decoder::new()),
        };
        let reader = Self { stream, input, unread, framing, taken: 0, bytes_max, pace };
        if unread.get() != Unread::AwaitsContinue {
            unread.set(reader.left());
        }
        reader
    }

    /// Reads and drops what is left, at most `bytes_max` bytes within `pace`; whether the end
    /// was reached.
    pub(super) fn drain(&mut self, bytes_max: u64, pace: Pace) -> bool {
        self.pace = pace;
        let (mut scratch, mut left) = ([0; 8 << 10], bytes_max);
        while self.unread.get() != Unread::Nothing {
            match self.read(&mut scratch) {
                Ok(0) => break,
                Ok(got) if got as u64 <= left => left -= got as u64,
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    fn left(&self) -> Unread {
        match &self.framing {
            Framing::Length { left: 0 } => Unread::Nothing,
            Framing::Length { left } => Unread::Bytes(*left),
            Framing::Chunked(decoder) if decoder.is_at_end() => Unread::Nothing,
            Framing::Chunked(_) => Unread::Chunks,
        }
    }

    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = match &mut self.framing {
                Framing::Length { left } => *left,
                Framing::Chunked(decoder) => {
                    let (framing, found) = decoder
                        .advance(self.input.bytes())
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    self.input.consume(framing);
                    match found {
                        Found::Data(left) => left,
                        Found::End => 0,
                        Found::NeedsMore => {
                            self.receive(|stream, input| input.receive(stream))?;
                            continue;
                        }
                    }
                }
            };
            if left == 0 {
                return Ok(0);
            }
            if self.taken >= self.bytes_max {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let most = left.min(into.len() as u64).min(self.bytes_max - self.taken) as usize;
            let got = self.read_data(&mut into[..most])?;
            self.taken += got as u64;
            match &mut self.framing {
                Framing::Length { left } => *left -= got as u64,
                Framing::Chunked(decoder) => decoder.took(got as u64),
            }
            return Ok(got);
        }
    }

    fn read_data(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let buffered = self.input.bytes();
        if buffered.is_empty() {
            return self.receive(|stream, _| stream.receive_into(into));
        }
        let got = buffered.len().min(into.len());
        into[..got].copy_from_slice(&buffered[..got]);
        self.input.consume(got);
        Ok(got)
    }

    /// Receives at least one byte, waiting for it within the pace.
    fn receive(
        &mut self,
        mut take: impl FnMut(&Stream, &mut Input) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match take(self.stream, self.input) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.pace.moved(got);
                    return Ok(got);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.wait_for_bytes(&mut self.pace)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends `100 Continue`, unless the client has not waited for it (RFC 9110, 10.1.1).
    fn welcome(&mut self) -> io::Result<()> {
        if !self.input.bytes().is_empty() {
            return Ok(());
        }
        let mut rest = CONTINUE;
        while !rest.is_empty() {
            match self.stream.send(&[IoSlice::new(rest)], More::Nothing) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.wait_writable(&mut self.pace, Duration::MAX)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let read = match self.unread.get() {
            Unread::Unknown => Err(io::Error::other("the request body has broken off before")),
            Unread::AwaitsContinue => self.welcome().and_then(|()| self.read_some(into)),
            Unread::Nothing | Unread::Bytes(_) | Unread::Chunks => self.read_some(into),
        };
        self.unread.set(if read.is_ok() { self.left() } else { Unread::Unknown });
        read
    }
}
