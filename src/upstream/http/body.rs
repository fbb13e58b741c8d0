//! A body as it comes off the wire, with an honest end.
//!
//! Bytes are passed on as they are, never decoded; nothing here allocates by a length that
//! upstream announced.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::BodyReader;

use super::idle::BrokenBody;
use crate::upstream::UpstreamBody;

/// What of an unwanted body (an error's, a redirect's) is read so that its connection can be
/// used again, in bytes; a longer one costs the connection.
const DRAIN_BYTES_MAX: usize = 64 * 1024;
/// What of it is told, in bytes.
const TOLD_BYTES_MAX: usize = 4096;
/// No further read of an unwanted body is begun after this time.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);

/// How the end of a body is known on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its length in bytes.
    Length(u64),
    /// By its last chunk.
    Chunks,
    /// Not at all: the connection ends.
    Close,
}

/// The body of an answer.
///
/// An error is one of these kinds: `TimedOut` after a silence, `UnexpectedEof` or
/// `ConnectionReset` for a cut, `InvalidData` for broken framing. It stays: whoever reads on
/// gets it again, never an end.
pub(super) struct HttpBody {
    reader: BodyReader<'static>,
    framing: Framing,
    expected: Option<u64>,
    idle: Duration,
    given: u64,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    NotYet,
    Whole,
    Failed(io::ErrorKind),
}

impl HttpBody {
    /// Takes over a body of `expected` bytes, where the head told that (a part's does
    /// without any framing). `idle` is for the words of an error only; `Watch` enforces it.
    pub(super) fn new(
        reader: BodyReader<'static>,
        framing: Framing,
        expected: Option<u64>,
        idle: Duration,
    ) -> Self {
        Self { reader, framing, expected, idle, given: 0, end: End::NotYet }
    }

    fn read_on(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buf).map_err(|error| self.explain(error))?;
        self.given += len as u64;
        match (self.expected, self.framing) {
            (Some(expected), _) if self.given > expected => {
                let text = format!("more came than the {expected} bytes that were announced");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            (Some(expected), _) if len == 0 && self.given < expected => return Err(self.cut()),
            // The last chunk is still to come; without it the body is cut.
            (Some(expected), Framing::Length(_) | Framing::Close) if self.given == expected => {
                self.end = End::Whole;
            }
            _ if len == 0 => self.end = End::Whole,
            _ => {}
        }
        if matches!((self.end, self.framing), (End::Whole, Framing::Length(_))) {
            self.finish();
        }
        Ok(len)
    }

    /// A connection goes back to the pool only after a read to the end, which nobody who
    /// counts bytes would ask for.
    fn finish(&mut self) {
        // All bytes are here. Whatever the connection does now costs only its reuse.
        let _ = self.reader.read(&mut [0]);
    }

    fn cut(&self) -> io::Error {
        let of = self.expected.map(|expected| format!(" of {expected}")).unwrap_or_default();
        let text = format!("upstream closed the connection after {}{of} bytes", self.given);
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
        match inner {
            Some(ureq::Error::Timeout(_)) => {
                let text = format!("upstream was silent for {:?} inside the body", self.idle);
                io::Error::new(io::ErrorKind::TimedOut, text)
            }
            Some(ureq::Error::Other(other)) if other.is::<BrokenBody>() => {
                io::Error::new(io::ErrorKind::ConnectionReset, other.to_string())
            }
            // An end inside of a chunk's own line.
            Some(ureq::Error::BodyStalled) => self.cut(),
            Some(other) => {
                let text = format!("upstream's framing of the body is broken: {other}");
                io::Error::new(io::ErrorKind::InvalidData, text)
            }
            None if error.kind() == io::ErrorKind::UnexpectedEof => self.cut(),
            None => error,
        }
    }
}

impl Read for HttpBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.end {
            End::Failed(kind) => Err(io::Error::new(kind, "the body broke off before")),
            End::Whole => Ok(0),
            End::NotYet if buf.is_empty() => Ok(0),
            End::NotYet => self.read_on(buf).inspect_err(|error| {
                // ureq would answer the next read with a clean end.
                self.end = End::Failed(error.kind());
            }),
        }
    }
}

impl UpstreamBody for HttpBody {
    fn is_framed(&self) -> bool {
        self.framing != Framing::Close || self.expected.is_some()
    }
}

/// Reads a body that nobody wants, within bounds, so that its connection can be kept.
pub(super) fn drain(reader: BodyReader<'static>) {
    drop(drain_and_tell(reader));
}

/// The same, and its beginning as text, which says why a request was refused.
pub(super) fn drain_and_tell(mut reader: BodyReader<'static>) -> Option<String> {
    let mut told = Vec::new();
    let begun = Instant::now();
    let mut left = DRAIN_BYTES_MAX;
    let mut buf = [0; 4096];
    while begun.elapsed() < DRAIN_TIME_MAX {
        match reader.read(&mut buf) {
            Ok(len) if len > 0 && len <= left => {
                left -= len;
                told.extend_from_slice(&buf[..len.min(TOLD_BYTES_MAX - told.len())]);
            }
            // The end, too much of it, or an error: the connection is kept or lost.
            _ => break,
        }
    }
    String::from_utf8(told).ok().filter(|text| !text.is_empty())
}
