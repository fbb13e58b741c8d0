//! Bytes on their way out: what a store or a flight gives and the front sends.
//!
//! A body comes in pieces. A piece is a region of a file, which the front can hand to
//! `sendfile`, or bytes in memory. A body of known length yields exactly that many bytes or
//! fails: a short read never looks like an end.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use crate::waiting::Awaited;

/// Where a body's pieces come from.
pub trait Source: Send {
    /// The next piece, never empty; `None` at the end. Blocks until there is one.
    ///
    /// # Errors
    /// [`BodyError`], after which the source is not asked again.
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError>;

    /// Waits for the next piece, or the end, at most for `patience`: gives what is still to come
    /// then, and nothing where [`Source::next_piece`] is the next to be called. A source that
    /// can't tell is asked for its piece, however long that takes.
    fn comes_later(&mut self, patience: Duration) -> Option<Box<dyn Awaited>> {
        let _ = patience;
        None
    }

    /// Bytes of memory that it keeps between pieces; none where they are a file's. A source
    /// that wraps another passes on that one's.
    fn buffered(&self) -> usize {
        0
    }
}

/// A run of bytes of a body.
#[derive(Debug)]
pub enum Piece<'a> {
    /// `len` bytes of `file` from `offset` on, all of them written already.
    Region {
        /// The file, which whoever sends the region later can keep open.
        file: &'a Arc<File>,
        /// Where the run begins.
        offset: u64,
        /// Its length, over 0.
        len: u64,
    },
    /// Bytes in memory, at least one.
    Bytes(&'a [u8]),
}

impl Piece<'_> {
    /// The piece's length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Region { len, .. } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Gives its bytes to `take`, those of a file by way of `buffer` and no more than
    /// [`READ_THROUGH_BYTES`] at a time.
    ///
    /// # Errors
    /// What `take` returns, and what `unread` makes of a file that can't be read.
    pub fn read_through<E>(
        &self,
        buffer: &mut Vec<u8>,
        unread: impl FnOnce(io::Error) -> E,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (file, mut at, end) = match self {
            Self::Bytes(bytes) => return take(bytes),
            Self::Region { file, offset, len } => (file, *offset, offset + len),
        };
        while at < end {
            let step = (end - at).min(READ_THROUGH_BYTES as u64) as usize;
            buffer.resize(step.max(buffer.len()), 0);
            if let Err(error) = file.read_exact_at(&mut buffer[..step], at) {
                return Err(unread(error));
            }
            take(&buffer[..step])?;
            at += step as u64;
        }
        Ok(())
    }

    /// Whether it has no bytes, which a [`Source`] must not yield.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of a file that [`Piece::read_through`] reads at a time.
const READ_THROUGH_BYTES: usize = 128 << 10;

/// Why a body broke off. The client must see it as an error, never as an end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The source ended or failed before all bytes came.
    #[error("the body broke off: {0}")]
    Cut(String),
    /// More bytes came than the length that was announced.
    #[error("the body is longer than the {expected} bytes that were announced")]
    TooLong {
        /// The announced length.
        expected: u64,
    },
    /// Reading failed.
    #[error("cannot read the body")]
    Io(#[from] io::Error),
}

/// A body with its length, where that is known.
pub struct Body {
    len: Option<u64>,
    given: u64,
    source: Box<dyn Source>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("len", &self.len)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

impl Body {
    /// A body from a source; `len` is what it will yield, `None` if only its end tells.
    pub fn new(len: Option<u64>, source: Box<dyn Source>) -> Self {
        Self { len, given: 0, source }
    }

    /// A body of bytes in memory.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::new(Some(bytes.len() as u64), Box::new(InMemory(Some(bytes), Vec::new())))
    }

    /// A body of a run of bytes in memory that others use too.
    pub fn from_shared(bytes: Arc<[u8]>, range: Range<usize>) -> Self {
        let len = range.len() as u64;
        Self::new(Some(len), Box::new(Shared { bytes, left: range }))
    }

    /// A body of which only the length is told: for HEAD and 304.
    pub fn unsent(len: Option<u64>) -> Self {
        Self::new(len, Box::new(InMemory(None, Vec::new())))
    }

    /// A body that is a region of a file, which it keeps open.
    pub fn from_file(file: impl Into<Arc<File>>, offset: u64, len: u64) -> Self {
        Self::new(Some(len), Box::new(InFile { file: file.into(), offset, left: len }))
    }

    /// The same body, which keeps something until it is dropped.
    pub fn keeping(self, kept: impl Send + 'static) -> Self {
        Self::new(self.len, Box::new(Keeping { body: self, _kept: kept }))
    }

    /// The length in bytes, where it is known.
    pub fn len(&self) -> Option<u64> {
        self.len
    }

    /// Whether it is known to have no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == Some(0)
    }

    /// Bytes of memory that its source keeps between pieces.
    pub fn buffered(&self) -> usize {
        self.source.buffered()
    }

    /// See [`Source::comes_later`].
    pub fn comes_later(&mut self, patience: Duration) -> Option<Box<dyn Awaited>> {
        match self.len == Some(self.given) {
            true => None,
            false => self.source.comes_later(patience),
        }
    }

    /// The next piece; `None` once every promised byte was given.
    ///
    /// # Errors
    /// [`BodyError`] where the source failed, ended early, or had more than it promised.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        if self.len == Some(self.given) {
            return Ok(None);
        }
        match (self.source.next_piece()?, self.len) {
            (None, None) => Ok(None),
            (None, Some(expected)) => {
                Err(BodyError::Cut(format!("it ended after {} of {expected} bytes", self.given)))
            }
            (Some(piece), len) => {
                self.given += piece.len();
                match len {
                    Some(expected) if self.given > expected => Err(BodyError::TooLong { expected }),
                    _ => Ok(Some(piece)),
                }
            }
        }
    }
}

struct InMemory(Option<Vec<u8>>, Vec<u8>);

impl Source for InMemory {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        match self.0.take() {
            Some(bytes) if !bytes.is_empty() => {
                self.1 = bytes;
                Ok(Some(Piece::Bytes(&self.1)))
            }
            _ => Ok(None),
        }
    }

    fn buffered(&self) -> usize {
        self.0.as_ref().map_or(0, Vec::capacity) + self.1.capacity()
    }
}

struct Shared {
    bytes: Arc<[u8]>,
    left: Range<usize>,
}

impl Source for Shared {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        let run = std::mem::take(&mut self.left);
        Ok((!run.is_empty()).then(|| Piece::Bytes(&self.bytes[run])))
    }

    /// Its share of what all who use the bytes keep.
    fn buffered(&self) -> usize {
        self.bytes.len() / Arc::strong_count(&self.bytes)
    }
}

struct InFile {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Source for InFile {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        let (offset, len) = (self.offset, self.left);
        (self.offset, self.left) = (offset + len, 0);
        Ok((len > 0).then_some(Piece::Region { file: &self.file, offset, len }))
    }
}

struct Keeping<T> {
    body: Body,
    _kept: T,
}

impl<T: Send> Source for Keeping<T> {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        self.body.next_piece()
    }

    fn comes_later(&mut self, patience: Duration) -> Option<Box<dyn Awaited>> {
        self.body.comes_later(patience)
    }

    fn buffered(&self) -> usize {
        self.body.buffered()
    }
}

/// Reads a whole body into memory, where it has at most `bytes_max` bytes; for tests and for
/// small bodies.
///
/// # Errors
/// [`BodyError`] where the body fails or is longer.
pub fn read_to_vec(body: &mut Body, bytes_max: usize) -> Result<Vec<u8>, BodyError> {
    let (mut all, mut buffer) = (Vec::new(), Vec::new());
    while let Some(piece) = body.next_piece()? {
        if all.len() as u64 + piece.len() > bytes_max as u64 {
            return Err(BodyError::TooLong { expected: bytes_max as u64 });
        }
        piece.read_through(&mut buffer, BodyError::Io, |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<Vec<u8>>, Vec<u8>);

    impl Source for Pieces {
        fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
            if self.0.is_empty() {
                return Ok(None);
            }
            self.1 = self.0.remove(0);
            Ok(Some(Piece::Bytes(&self.1)))
        }
    }

    fn body(len: Option<u64>, pieces: &[&str]) -> Body {
        let pieces = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
        Body::new(len, Box::new(Pieces(pieces, Vec::new())))
    }

    #[test]
    fn a_body_gives_exactly_what_it_promised() {
        assert_eq!(read_to_vec(&mut body(Some(4), &["ab", "cd"]), 9).unwrap(), b"abcd");
        assert_eq!(read_to_vec(&mut body(None, &["ab", "cd"]), 9).unwrap(), b"abcd");
        assert_eq!(read_to_vec(&mut Body::from_bytes(""), 9).unwrap(), b"");
    }

    #[test]
    fn bytes_in_memory_are_told_and_a_file_has_none() {
        let mut body = Body::from_bytes("abcd");
        assert_eq!(body.buffered(), 4);
        assert!(body.next_piece().is_ok_and(|piece| piece.is_some()));
        assert_eq!(body.buffered(), 4);
        let bytes: Arc<[u8]> = Arc::from(*b"abcd");
        let mut shared = Body::from_shared(Arc::clone(&bytes), 1..3);
        assert_eq!(shared.buffered(), 2);
        drop(bytes);
        assert_eq!(shared.buffered(), 4);
        assert_eq!(read_to_vec(&mut shared, 9).unwrap(), b"bc");
        assert_eq!(Body::from_file(tempfile::tempfile().unwrap(), 0, 4).buffered(), 0);
    }

    #[test]
    fn a_short_or_a_long_body_is_an_error() {
        assert!(matches!(
            read_to_vec(&mut body(Some(5), &["ab", "cd"]), 9),
            Err(BodyError::Cut(_))
        ));
        assert!(matches!(
            read_to_vec(&mut body(Some(3), &["ab", "cd"]), 9),
            Err(BodyError::TooLong { .. })
        ));
        assert!(matches!(
            read_to_vec(&mut body(None, &["ab", "cd"]), 3),
            Err(BodyError::TooLong { .. })
        ));
    }
}
