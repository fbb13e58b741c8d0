//! A run of bytes of one version, read as the client takes it.

use std::io::Read;
use std::sync::Arc;

use ureq::BodyReader;

use super::Inner;
use crate::artifact::{BlobKey, BlobVersion};
use crate::body::{BodyError, Piece, Source};
use crate::chain::chain;

/// What a piece has at most.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// Pieces begin at the page: the kernel copies those twice as fast to a socket.
const PAGE_BYTES: usize = 4096;
/// How often a body that breaks off is asked for again from there.
const RESUMES_MAX: u32 = 2;

/// Reads a version to the end of a range; a connection that breaks is replaced by another,
/// for the rest of the same version.
pub(super) struct Reading {
    store: Arc<Inner>,
    key: BlobKey,
    version: BlobVersion,
    at: u64,
    end: u64,
    reader: BodyReader<'static>,
    resumes_left: u32,
    buffer: Vec<u8>,
    page: usize,
}

impl Reading {
    pub(super) fn new(
        store: Arc<Inner>,
        key: &BlobKey,
        version: &BlobVersion,
        range: std::ops::Range<u64>,
        reader: BodyReader<'static>,
    ) -> Self {
        let piece = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let buffer = vec![0; piece.min(PIECE_BYTES_MAX) + PAGE_BYTES];
        let page = buffer.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Self {
            store,
            key: key.clone(),
            version: version.clone(),
            at: range.start,
            end: range.end,
            reader,
            resumes_left: RESUMES_MAX,
            buffer,
            page,
        }
    }

    /// The next bytes into the buffer; how many.
    fn fill(&mut self) -> Result<usize, BodyError> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let room = left.min(self.buffer.len() - PAGE_BYTES);
        let why = match self.reader.read(&mut self.buffer[self.page..self.page + room]) {
            Ok(0) => "it ended early".to_owned(),
            Ok(read) => return Ok(read),
            Err(error) => error.to_string(),
        };
        if self.resumes_left == 0 {
            return Err(BodyError::Cut(format!("S3 sent {} of blob {}: {why}", self.at, self.key)));
        }
        self.resumes_left -= 1;
        tracing::debug!(key = %self.key, at = self.at, why, "reading on from where S3 broke off");
        self.reader = self
            .store
            .read(&self.key, &self.version, self.at..self.end)
            .map_err(|error| BodyError::Cut(format!("{why}; then {}", chain(&error))))?;
        self.fill()
    }
}

impl Source for Reading {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        if self.at == self.end {
            return Ok(None);
        }
        let read = self.fill()?;
        self.at += read as u64;
        if self.at == self.end {
            // Only the read that finds the end gives the connection back; whether that works
            // is nothing to the bytes, which are all here.
            let _ = self.reader.read(&mut [0]);
        }
        Ok(Some(Piece::Bytes(&self.buffer[self.page..self.page + read])))
    }

    fn buffered(&self) -> usize {
        self.buffer.len()
    }
}
