//! Passing through: upstream's bytes to one client, without storing them.
//!
//! For what must not be stored, for when there is no room to stage, and for a range far ahead
//! of a growing flight. It runs on the client's own worker.

use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use super::fetch::{READ_BYTES, RESUMES_MAX};
use super::flight::FlightHead;
use super::found::client_validators;
use super::versions::part_of;
use super::{CacheError, FetchError, Representation};
use crate::artifact::{ArtifactPath, Validators};
use crate::body::{Body, BodyError, Piece, Source};
use crate::chain::chain;
use crate::upstream::{Upstream, UpstreamBody, UpstreamError, UpstreamReply, UpstreamRequest};

/// An upstream's answer on its way to one client.
pub(super) struct Passing {
    upstream: Arc<dyn Upstream>,
    path: ArtifactPath,
    len: Option<u64>,
    validators: Validators,
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

/// Asks upstream for the whole file, `now`.
pub(super) fn start(
    upstream: &Arc<dyn Upstream>,
    path: &ArtifactPath,
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
        Ok(reading(self, to.map(|to| to - from)))
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
        loop {
            match self.reader.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => return Ok(Some(Piece::Bytes(&self.buffer[..read]))),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BodyError::Cut(error.to_string())),
            }
        }
    }

    fn buffered(&self) -> usize {
        self.buffer.len()
    }
}
