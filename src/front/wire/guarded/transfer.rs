//! Moves a reply's bytes into the socket, and can be put down where the client is slow.
//!
//! What is gathered goes out before or with the next piece of the body; asking the body for a
//! piece can block, so nothing but a head is held back meanwhile. A transfer that is put down
//! remembers what was not sent of its piece and goes on from there; where it is the body that is
//! slow, the transfer is put off in the same way.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::stream::{More, Pace, Stream};
use crate::body::{Body, Piece};
use crate::waiting::Awaited;

/// A region of at most so many bytes is read and sent with the head in one write; a longer
/// one goes by `sendfile`.
const READ_REGION_MAX: u64 = 32 << 10;
/// Bytes that one `sendfile` may move, so that the pace of a reader is looked at now and then.
const SENDFILE_BYTES_MAX: u64 = 8 << 20;
/// Bytes in memory that are copied to put a transfer down, a buffer of 256 KiB among them; for
/// more the thread waits.
const KEPT_BYTES_MAX: usize = 320 << 10;

/// Why a reply can't become whole.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client went away or was too slow.
    Client(io::Error),
    /// The body broke off.
    Body,
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything is in the socket.
    Done,
    /// The client takes nothing for now; call again when the socket takes bytes.
    PutDown,
    /// The body gives nothing for now; call again when [`Transfer::awaited`] has come.
    PutOff,
}

/// How long a thread waits before it turns to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    /// For the client, within what its pace allows; then the transfer is put down.
    pub(super) for_client: Duration,
    /// For the body, or for the service; then the transfer, or the request, is put off.
    pub(super) for_others: Duration,
}

impl Wait {
    /// As long as it takes.
    pub(super) const TO_THE_END: Self = Self::at_most(Duration::MAX);

    /// So long for everybody.
    pub(super) const fn at_most(most: Duration) -> Self {
        Self { for_client: most, for_others: most }
    }
}

/// How the body's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// By its length or by the connection's close.
    Plainly,
    /// By a last chunk.
    InChunks,
}

/// A reply on its way.
pub(super) struct Transfer {
    body: Option<Body>,
    ends: Ends,
    link: Link,
    // The rest of a piece that was put down, behind what is gathered.
    region: Option<Region>,
    // What it was put off for.
    awaited: Option<Box<dyn Awaited>>,
    sent: u64,
}

#[derive(Debug)]
struct Region {
    // The body's own, so that a reply that is put down has one descriptor beside its socket.
    file: Arc<File>,
    offset: u64,
    left: u64,
}

/// The way into the socket, apart from the body because a piece borrows that.
#[derive(Debug)]
struct Link {
    pace: Pace,
    // Something has reached the socket.
    is_begun: bool,
    put_down: Option<Instant>,
    // What is not sent of the gathered bytes while the transfer is put down.
    kept: Vec<u8>,
}

impl Transfer {
    /// A transfer of a head that is gathered, and of `body` behind it, if one is to be sent.
    pub(super) fn new(body: Option<Body>, ends: Ends, pace: Pace) -> Self {
        let link = Link { pace, is_begun: false, put_down: None, kept: Vec::new() };
        Self { body, ends, link, region: None, awaited: None, sent: 0 }
    }

    /// What it was put off for, once.
    pub(super) fn awaited(&mut self) -> Option<Box<dyn Awaited>> {
        self.awaited.take()
    }

    /// Bytes of the body that were handed to the socket.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes of memory that are kept while it is put down.
    pub(super) fn kept(&self) -> usize {
        self.link.kept.capacity() + self.body.as_ref().map_or(0, Body::buffered)
    }

    /// Whether anything of the reply has reached the socket.
    pub(super) fn is_begun(&self) -> bool {
        self.link.is_begun
    }

    /// Moves what it can; `gathered` has the head at first, and is empty later.
    ///
    /// # Errors
    /// [`Failure`], after which it must not be called again.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        gathered: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<Progress, Failure> {
        if self.link.take_up(gathered)
            && (self.link.flush(stream, gathered, More::Nothing, wait)? == Progress::PutDown
                || self.finish_region(stream, gathered, wait)? == Progress::PutDown)
        {
            return Ok(Progress::PutDown);
        }
        let tail: &[u8] = if self.ends == Ends::InChunks { b"\r\n" } else { b"" };
        while let Some(body) = &mut self.body {
            if let Some(awaited) = body.comes_later(wait.for_others) {
                self.awaited = Some(awaited);
                self.link.kept.append(gathered);
                return Ok(Progress::PutOff);
            }
            let piece = match body.next_piece() {
                Ok(piece) => piece,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a body broke off");
                    return Err(Failure::Body);
                }
            };
            if self.ends == Ends::InChunks {
                append_chunk_size(gathered, piece.as_ref().map_or(0, Piece::len));
            }
            let progress = match piece {
                None => {
                    gathered.extend_from_slice(tail);
                    self.body = None;
                    break;
                }
                Some(Piece::Bytes(bytes)) => {
                    self.link.send_bytes(stream, gathered, bytes, tail, wait, &mut self.sent)?
                }
                Some(Piece::Region { file, offset, len }) if len <= READ_REGION_MAX => {
                    read_region(file, offset, len, gathered)?;
                    gathered.extend_from_slice(tail);
                    self.sent += len;
                    self.link.flush(stream, gathered, More::Nothing, wait)?
                }
                Some(Piece::Region { file, mut offset, len: mut left }) => {
                    let (link, sent) = (&mut self.link, &mut self.sent);
                    let (offset, left) = (&mut offset, &mut left);
                    let mut progress = link.flush(stream, gathered, More::Follows, wait)?;
                    if progress == Progress::Done {
                        progress = link.send_file(stream, file, offset, left, wait, sent)?;
                    }
                    if progress == Progress::PutDown {
                        let file = Arc::clone(file);
                        self.region = Some(Region { file, offset: *offset, left: *left });
                        return Ok(progress);
                    }
                    gathered.extend_from_slice(tail);
                    link.flush(stream, gathered, More::Nothing, wait)?
                }
            };
            if progress == Progress::PutDown {
                return Ok(Progress::PutDown);
            }
        }
        self.link.flush(stream, gathered, More::Nothing, wait)
    }

    fn finish_region(
        &mut self,
        stream: &Stream,
        gathered: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<Progress, Failure> {
        let Some(Region { file, offset, left }) = &mut self.region else {
            return Ok(Progress::Done);
        };
        let progress = self.link.send_file(stream, file, offset, left, wait, &mut self.sent)?;
        if progress == Progress::PutDown {
            return Ok(progress);
        }
        self.region = None;
        if self.ends == Ends::InChunks {
            gathered.extend_from_slice(b"\r\n");
        }
        self.link.flush(stream, gathered, More::Nothing, wait)
    }
}

impl Link {
    /// Takes up what was kept; says whether the client is to have it before the body goes on,
    /// because it was what the transfer was put down for.
    fn take_up(&mut self, gathered: &mut Vec<u8>) -> bool {
        gathered.append(&mut self.kept);
        let Some(since) = self.put_down.take() else { return false };
        self.pace.waited(since.elapsed());
        true
    }

    /// Sends what is gathered; keeps what is not sent where it puts down.
    fn flush(
        &mut self,
        stream: &Stream,
        gathered: &mut Vec<u8>,
        more: More,
        wait: Wait,
    ) -> Result<Progress, Failure> {
        let mut at = 0;
        while at < gathered.len() {
            match stream.send(&[IoSlice::new(&gathered[at..])], more) {
                Ok(sent) => {
                    at += sent;
                    self.moved(sent);
                }
                Err(error) => {
                    if self.wait(stream, error, wait)? == Progress::PutDown {
                        self.kept = gathered.split_off(at);
                        gathered.clear();
                        return Ok(Progress::PutDown);
                    }
                }
            }
        }
        gathered.clear();
        Ok(Progress::Done)
    }

    /// Sends what is gathered, then `bytes`, then `tail`, in as few writes as the socket lets.
    fn send_bytes(
        &mut self,
        stream: &Stream,
        gathered: &mut Vec<u8>,
        bytes: &[u8],
        tail: &[u8],
        wait: Wait,
        sent: &mut u64,
    ) -> Result<Progress, Failure> {
        let (before, mut moved) = (gathered.len(), 0);
        let mut parts = [IoSlice::new(gathered), IoSlice::new(bytes), IoSlice::new(tail)];
        let mut parts = &mut parts[..];
        // Parts that are empty from the start would look like an end.
        IoSlice::advance_slices(&mut parts, 0);
        let mut kept = Vec::new();
        while !parts.is_empty() {
            let total = parts.iter().map(|part| part.len()).sum::<usize>();
            match stream.send(parts, More::Nothing) {
                Ok(got) => {
                    moved += got;
                    self.moved(got);
                    *sent += body_bytes_in(moved - got, moved, before, bytes.len());
                    IoSlice::advance_slices(&mut parts, got);
                }
                Err(error) => {
                    let for_client =
                        if total > KEPT_BYTES_MAX { Duration::MAX } else { wait.for_client };
                    let wait = Wait { for_client, ..wait };
                    if self.wait(stream, error, wait)? == Progress::PutDown {
                        parts.iter().for_each(|part| kept.extend_from_slice(part));
                        *sent += body_bytes_in(moved, usize::MAX, before, bytes.len());
                        break;
                    }
                }
            }
        }
        gathered.clear();
        self.kept = kept;
        Ok(if self.kept.is_empty() { Progress::Done } else { Progress::PutDown })
    }

    fn send_file(
        &mut self,
        stream: &Stream,
        file: &File,
        offset: &mut u64,
        left: &mut u64,
        wait: Wait,
        sent: &mut u64,
    ) -> Result<Progress, Failure> {
        while *left > 0 {
            let asked = (*left).min(SENDFILE_BYTES_MAX);
            let full = match stream.send_file(file, offset, asked as usize) {
                // The file is shorter than its piece.
                Ok(0) => return Err(Failure::Body),
                Ok(got) => {
                    *left -= got as u64;
                    *sent += got as u64;
                    self.moved(got);
                    if got as u64 == asked {
                        continue;
                    }
                    // The socket is full. To try again at once would send little at a time.
                    io::ErrorKind::WouldBlock.into()
                }
                Err(error) if is_of_file(&error) => return Err(Failure::Body),
                Err(error) => error,
            };
            if self.wait(stream, full, wait)? == Progress::PutDown {
                return Ok(Progress::PutDown);
            }
        }
        Ok(Progress::Done)
    }

    fn moved(&mut self, bytes: usize) {
        self.is_begun = true;
        self.pace.moved(bytes);
    }

    /// Waits for the client behind a write that has failed, or took less than it was given.
    fn wait(&mut self, stream: &Stream, error: io::Error, wait: Wait) -> Result<Progress, Failure> {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(Failure::Client(error));
        }
        if stream.wait_writable(&mut self.pace, wait.for_client).map_err(Failure::Client)? {
            return Ok(Progress::Done);
        }
        self.put_down = Some(Instant::now());
        Ok(Progress::PutDown)
    }
}

/// How many of the bytes from `from` to `to` of a message are body, where `before` bytes
/// precede a piece of `len`.
fn body_bytes_in(from: usize, to: usize, before: usize, len: usize) -> u64 {
    let within = |at: usize| at.saturating_sub(before).min(len);
    (within(to) - within(from)) as u64
}

/// Appends a region to what is gathered.
fn read_region(file: &File, offset: u64, len: u64, gathered: &mut Vec<u8>) -> Result<(), Failure> {
    let end = gathered.len() + len as usize;
    while gathered.len() < end {
        let missing = end - gathered.len();
        gathered.reserve(missing);
        let at = offset + (len - missing as u64);
        let read = rustix::io::pread(file, spare_capacity(gathered), at);
        // The buffer may have room for more than was asked for.
        gathered.truncate(end);
        match read {
            Ok(0) => return Err(Failure::Body),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Err(Failure::Body),
        }
    }
    Ok(())
}

/// Errors of `sendfile` that blame the file.
fn is_of_file(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    [Errno::IO, Errno::INVAL, Errno::OVERFLOW].iter().any(|of| Some(of.raw_os_error()) == raw)
}

fn append_chunk_size(out: &mut Vec<u8>, size: u64) {
    let digits = (64 - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (digit * 4) & 0xf) as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::front::wire::suite::support::{PATIENCE, Shelf, content};

    /// Sends the shelf's body of a path to a client that reads `step` bytes at a time, putting
    /// the transfer down whenever the socket is full.
    fn check(path: &str, len: usize, ends: Ends, step: usize) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        let stream = Stream::new(ours.into());
        let body = Shelf::body(&format!("/{path}/{len}"));
        let mut transfer = Transfer::new(Some(body), ends, Pace::new(PATIENCE, PATIENCE, 0));
        let (mut gathered, mut got, mut rests) = (b"head ".to_vec(), Vec::new(), 0);
        while transfer.run(&stream, &mut gathered, Wait::at_most(Duration::from_micros(1))).unwrap()
            == Progress::PutDown
        {
            assert!(gathered.is_empty());
            rests += 1;
            let start = got.len();
            got.resize(start + step, 0);
            let read = theirs.read(&mut got[start..]).unwrap();
            got.truncate(start + read);
        }
        drop(stream);
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(transfer.sent(), len as u64, "{path} {len}");
        assert!(rests > 0 || len < 1 << 20, "{path} {len} is put down");
        let body = got.strip_prefix(b"head ").unwrap();
        let expected = content(0, len);
        match ends {
            Ends::Plainly => assert!(body == expected, "{path} {len} by {step}"),
            Ends::InChunks => assert!(unchunk(body) == expected, "{path} {len} by {step}"),
        }
    }

    #[test]
    fn a_region_that_is_put_down_shares_the_descriptor_of_its_body() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(8 << 20).unwrap();
        let body = Body::from_file(Arc::clone(&file), 0, 8 << 20);
        let pace = Pace::new(PATIENCE, PATIENCE, 0);
        let mut transfer = Transfer::new(Some(body), Ends::Plainly, pace);
        let wait = Wait::at_most(Duration::from_micros(1));
        let progress = transfer.run(&Stream::new(ours.into()), &mut Vec::new(), wait).unwrap();
        assert_eq!(progress, Progress::PutDown);
        // This test's, the body's and that of the rest.
        assert_eq!(Arc::strong_count(&file), 3);
    }

    #[test]
    fn what_a_body_buffers_counts_as_kept() {
        let body = Shelf::body("/bytes/300000");
        let mut transfer =
            Transfer::new(Some(body), Ends::Plainly, Pace::new(PATIENCE, PATIENCE, 0));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let wait = Wait::at_most(Duration::from_micros(1));
        while transfer.link.kept.is_empty() {
            let progress =
                transfer.run(&Stream::new(ours.try_clone().unwrap().into()), &mut Vec::new(), wait);
            assert_eq!(progress.unwrap(), Progress::PutDown);
        }
        assert_eq!(transfer.kept(), transfer.link.kept.capacity() + 100_000);
    }

    fn unchunk(mut wire: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        loop {
            let line = wire.iter().position(|byte| *byte == b'\r').unwrap();
            let size = std::str::from_utf8(&wire[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            data.extend_from_slice(&wire[line + 2..line + 2 + size]);
            wire = wire[line + 2 + size..].strip_prefix(b"\r\n").unwrap();
            if size == 0 {
                assert_eq!(wire, b"");
                return data;
            }
        }
    }

    #[test]
    fn a_transfer_that_is_put_down_again_and_again_loses_nothing() {
        for path in ["file", "bytes", "unknown", "unknown-file"] {
            for ends in [Ends::Plainly, Ends::InChunks] {
                for len in [1, 1000, 40_000, 300_000, 2_000_003] {
                    for step in [1 << 20, 100_000, 30_011] {
                        check(path, len, ends, step);
                    }
                }
            }
        }
    }

    #[test]
    fn chunk_sizes_are_written_in_hexadecimal() {
        for size in [0, 1, 9, 10, 15, 16, 255, 256, 4096, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            append_chunk_size(&mut out, size);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{size:x}\r\n"));
        }
    }

    #[test]
    fn only_bytes_of_the_body_are_counted() {
        for (from, to, expected) in [(0, 5, 0), (0, 10, 0), (0, 11, 1), (10, 30, 20), (25, 99, 5)] {
            assert_eq!(body_bytes_in(from, to, 10, 20), expected, "{from} to {to}");
        }
    }
}
