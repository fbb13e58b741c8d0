//! Passing through: upstream's bytes to one client, without storing them.
//!
//! For what must not be stored, for when there is no room to stage, and for a range far ahead
//! of a growing flight. It runs on the client's own worker. Where the name carries a checksum, the
//! end of a whole file is held back until the bytes have shown to be right, as a flight does.

use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256, Sha512};

use super::fetch::{READ_BYTES, RESUMES_MAX};
use super::flight::FlightHead;
use super::found::client_validators;
use super::versions::part_of;
use super::{CacheError, FetchError, Representation};
use crate::artifact::{ArtifactPath, Checksum, Digest, Validators};
use crate::body::{Body, BodyError, Piece, Source};
use crate::chain::chain;
use crate::upstream::{Upstream, UpstreamBody, UpstreamError, UpstreamReply, UpstreamRequest};

/// An upstream's answer on its way to one client.
pub(super) struct Passing {
    upstream: Arc<dyn Upstream>,
    path: ArtifactPath,
    len: Option<u64>,
    validators: Validators,
    checksum: Option<Checksum>,
    answered_at: SystemTime,
    body: Box<dyn UpstreamBody>,
    read: u64,
    resumes: usize,
}

impl std::fmt::Debug for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passing")
    }
}

/// Asks upstream for the whole file, `now`, which must have this checksum.
pub(super) fn start(
    upstream: &Arc<dyn Upstream>,
    path: &ArtifactPath,
    checksum: Option<Checksum>,
    now: SystemTime,
) -> Result<(Representation, Passing), CacheError> {
    let failed = |error: UpstreamError| CacheError::Fetch(Arc::new(FetchError::Upstream(error)));
    let request = UpstreamRequest { path, unless: None, part: None };
    match upstream.get(&request).map_err(failed)? {
        UpstreamReply::Absent => Err(CacheError::Absent),
        UpstreamReply::Folder => Err(CacheError::Folder),
        UpstreamReply::NotModified(_) => Err(failed(UpstreamError::Protocol {
            host: "upstream".to_owned(),
            reason: "a 304 to a request without conditions".to_owned(),
        })),
        UpstreamReply::Found(head, body) => {
            let about = Representation {
                len: head.len,
                validators: client_validators(&head.validators, None),
                content_type: head.content_type,
                content_encoding: head.content_encoding,
                ..Representation::default()
            };
            let passing = Passing {
                upstream: Arc::clone(upstream),
                path: path.clone(),
                len: head.len,
                validators: head.validators,
                checksum,
                answered_at: now,
                body,
                read: 0,
                resumes: 0,
            };
            Ok((about, passing))
        }
    }
}

impl Passing {
    /// The bytes from `from` to `to`; those before are read and thrown away.
    pub(super) fn open(mut self, from: u64, to: Option<u64>) -> Result<Body, Arc<FetchError>> {
        let skipped = std::io::copy(&mut self.by_ref().take(from), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == from => {}
            Ok(_) => return Err(cut(self.read, "it ended early", false)),
            Err(error) => {
                let is_timeout = error.kind() == std::io::ErrorKind::TimedOut;
                return Err(cut(self.read, &error.to_string(), is_timeout));
            }
        }
        let is_whole = from == 0 && to == self.len;
        match self.checksum.filter(|_| is_whole) {
            Some(expected) => Ok(Body::new(to, Box::new(Checked::new(self, expected)))),
            None => Ok(reading(self, to.map(|to| to - from))),
        }
    }

    /// The rest of a body that was cut, if upstream still has the same version of known length.
    fn rest(&mut self) -> Option<Box<dyn UpstreamBody>> {
        self.len?;
        self.resumes += 1;
        if self.resumes > RESUMES_MAX {
            return None;
        }
        let (path, from) = (&self.path, self.read);
        let version = (&self.validators, self.answered_at);
        part_of_len(&*self.upstream, path, version, self.len, (from, None))
    }
}

impl Read for Passing {
    /// Goes on where the body is cut, as a fetch does.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.body.read(buffer);
            match &read {
                Ok(0) if !buffer.is_empty() && self.len.is_some_and(|len| self.read < len) => {}
                Ok(more) => {
                    self.read += *more as u64;
                    return read;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return read,
                Err(_) => {}
            }
            match self.rest() {
                Some(rest) => self.body = rest,
                None => return read,
            }
        }
    }
}

/// Asks upstream for a part of the very file that a flight is fetching; `None` where it gives
/// something else, so that the flight is to be followed.
pub(super) fn part(
    upstream: &dyn Upstream,
    path: &ArtifactPath,
    flight: &FlightHead,
    from: u64,
    to: Option<u64>,
) -> Option<Body> {
    let version = (&flight.validators, flight.answered_at);
    let body = part_of_len(upstream, path, version, flight.len, (from, to))?;
    Some(reading(body, to.map(|to| to - from)))
}

/// A part of a version of exactly `len` bytes; `None` where it can't be had.
fn part_of_len(
    upstream: &dyn Upstream,
    path: &ArtifactPath,
    version: (&Validators, SystemTime),
    len: Option<u64>,
    bytes: (u64, Option<u64>),
) -> Option<Box<dyn UpstreamBody>> {
    part_of(upstream, path, version, bytes, |full| full == len).unwrap_or_else(|error| {
        tracing::warn!(%path, error = chain(&error), "a part could not be had");
        None
    })
}

fn cut(written: u64, reason: &str, is_timeout: bool) -> Arc<FetchError> {
    Arc::new(FetchError::Cut { written, reason: reason.to_owned(), is_timeout })
}

fn reading(body: impl Read + Send + 'static, len: Option<u64>) -> Body {
    let reader: Box<dyn Read + Send> = match len {
        Some(len) => Box::new(body.take(len)),
        None => Box::new(body),
    };
    Body::new(len, Box::new(FromUpstream { reader, buffer: vec![0; READ_BYTES] }))
}

struct FromUpstream {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
}

impl Source for FromUpstream {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        let read = read_some(&mut self.reader, &mut self.buffer)?;
        Ok((read > 0).then(|| Piece::Bytes(&self.buffer[..read])))
    }

    fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

fn read_some(reader: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, BodyError> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.map_err(|error| BodyError::Cut(error.to_string())),
        }
    }
}

/// A whole body whose last piece is given only where all of it has the checksum.
struct Checked {
    passing: Passing,
    expected: Checksum,
    hashing: Hashing,
    /// What is given next, and how much of it.
    held: (Vec<u8>, usize),
    /// What is read.
    buffer: Vec<u8>,
}

impl Checked {
    fn new(passing: Passing, expected: Checksum) -> Self {
        let hashing = match expected {
            Checksum::Sha256(_) => Hashing::Sha256(Sha256::new()),
            Checksum::Sha512(_) => Hashing::Sha512(Box::default()),
        };
        let [held, buffer] = [(); 2].map(|()| vec![0; READ_BYTES]);
        Self { passing, expected, hashing, held: (held, 0), buffer }
    }
}

impl Source for Checked {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        loop {
            let read = read_some(&mut self.passing, &mut self.buffer)?;
            if read == 0 {
                let found = self.hashing.so_far();
                if found != self.expected {
                    let why = format!("it has the checksum {found}, not {}", self.expected);
                    return Err(BodyError::Cut(why));
                }
            }
            self.hashing.add(&self.buffer[..read]);
            std::mem::swap(&mut self.held.0, &mut self.buffer);
            let given = std::mem::replace(&mut self.held.1, read);
            match (given, read) {
                (0, 0) => return Ok(None),
                (0, _) => {}
                (given, _) => return Ok(Some(Piece::Bytes(&self.buffer[..given]))),
            }
        }
    }

    fn buffered(&self) -> usize {
        self.held.0.len() + self.buffer.len()
    }
}

enum Hashing {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hashing {
    fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sha256) => sha256.update(bytes),
            Self::Sha512(sha512) => sha512.update(bytes),
        }
    }

    fn so_far(&self) -> Checksum {
        match self {
            Self::Sha256(sha256) => Checksum::Sha256(Digest(sha256.clone().finalize().into())),
            Self::Sha512(sha512) => Checksum::Sha512(Sha512::clone(sha512).finalize().into()),
        }
    }
}
