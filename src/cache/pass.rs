//! Passing through: upstream's bytes to one client, without storing them.
//!
//! For what must not be stored, for when there is no room to stage, and for a range far ahead
//! of a growing flight. It runs on the client's own worker.

use std::io::Read;
use std::sync::Arc;

use super::flight::FlightHead;
use super::versions::{is_same_version, version_of};
use super::{CacheError, FetchError, Representation, client_validators};
use crate::artifact::ArtifactPath;
use crate::body::{Body, BodyError, Piece, Source};
use crate::upstream::{
    Part, Upstream, UpstreamBody, UpstreamError, UpstreamReply, UpstreamRequest,
};

/// Bytes that are read from upstream at a time.
const READ_BYTES: usize = 64 << 10;

/// An upstream's answer on its way to one client.
pub(super) struct Passing(Box<dyn UpstreamBody>);

impl std::fmt::Debug for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passing")
    }
}

/// Asks upstream for the whole file.
pub(super) fn start(
    upstream: &dyn Upstream,
    path: &ArtifactPath,
) -> Result<(Representation, Passing), CacheError> {
    let failed = |error: UpstreamError| CacheError::Fetch(Arc::new(FetchError::Upstream(error)));
    let request = UpstreamRequest { path, unless: None, part: None };
    match upstream.get(&request).map_err(failed)? {
        UpstreamReply::Absent => Err(CacheError::Absent),
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
            Ok((about, Passing(body)))
        }
    }
}

impl Passing {
    /// The bytes from `from` to `to`; those before are read and thrown away.
    pub(super) fn open(mut self, from: u64, to: Option<u64>) -> Result<Body, Arc<FetchError>> {
        let skipped = std::io::copy(&mut (&mut self.0).take(from), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == from => {}
            Ok(written) => return Err(cut(written, "it ended early", false)),
            Err(error) => {
                let is_timeout = error.kind() == std::io::ErrorKind::TimedOut;
                return Err(cut(0, &error.to_string(), is_timeout));
            }
        }
        Ok(reading(self.0, to.map(|to| to - from)))
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
    let part = Part { from, to, of: Some(version_of(&flight.validators, flight.answered_at)?) };
    match upstream.get(&UpstreamRequest { path, unless: None, part: Some(part) }) {
        Ok(UpstreamReply::Found(head, body)) => {
            let fits = head.part_from == Some(from)
                && head.full_len == flight.len
                && is_same_version(&head.validators, &flight.validators);
            fits.then(|| reading(body, to.map(|to| to - from)))
        }
        Ok(UpstreamReply::NotModified(_) | UpstreamReply::Absent) | Err(_) => None,
    }
}

fn cut(written: u64, reason: &str, is_timeout: bool) -> Arc<FetchError> {
    Arc::new(FetchError::Cut { written, reason: reason.to_owned(), is_timeout })
}

fn reading(body: Box<dyn UpstreamBody>, len: Option<u64>) -> Body {
    let reader: Box<dyn Read + Send> = match len {
        Some(len) => Box::new(body.take(len)),
        None => Box::new(body),
    };
    Body::new(len, Box::new(Reading { reader, buffer: vec![0; READ_BYTES] }))
}

struct Reading {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
}

impl Source for Reading {
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
