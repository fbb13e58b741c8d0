//! Several ranges in one body: multipart/byteranges (RFC 9110, section 14.6).
//!
//! Only the framing: which ranges there are is [`super::range`]'s answer, and where their
//! bytes come from is the caller's. The length is known before the first byte, because
//! clients that speak HTTP/1.0 write wrong files from chunked bodies.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;

use super::range::content_range;
use crate::body::{Body, BodyError, Piece, Source};

/// Stands in for a content type that could not be written into a part's head.
const FALLBACK_TYPE: &str = "application/octet-stream";

/// The line that separates parts.
///
/// It is drawn anew for each reply: somebody who knew it could put it into a file and forge
/// parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary(String);

impl Boundary {
    /// Draws a boundary that no file can have foreseen.
    pub fn random() -> Self {
        // Each state is a SipHash under keys that began as random bytes of the system.
        let word = || RandomState::new().hash_one(());
        Self(format!("artifactapi-{:016x}{:016x}", word(), word()))
    }

    /// `Content-Type` of the reply.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.0)
    }
}

/// Opens the bytes of one range: a body of known length, exactly that of the range.
pub type OpenPart = Box<dyn FnMut(Range<u64>) -> Result<Body, BodyError> + Send>;

/// A body of several ranges, each under a head with its own `Content-Range`.
///
/// `ranges` are not empty, and inside a body of `len` bytes whose type is `content_type`.
/// `first` has the bytes of the first range: the caller opens it, so that a blob that is gone
/// is known before the head of the reply is sent. `open` gives the others, each when its turn
/// comes. A part that can't be opened, or that is not as long as its range, breaks the body
/// off.
pub fn multipart(
    ranges: &[Range<u64>],
    first: Body,
    open: OpenPart,
    boundary: &Boundary,
    content_type: &str,
    len: u64,
) -> Body {
    // Upstream chose it, and a line break in it would forge a part's head.
    let is_clean = !content_type.bytes().any(|byte| byte.is_ascii_control());
    let content_type = if is_clean { content_type } else { FALLBACK_TYPE };
    let head = |(at, range): (usize, &Range<u64>)| {
        let start = if at == 0 { "" } else { "\r\n" };
        let range = content_range(range, len);
        format!(
            "{start}--{}\r\nContent-Type: {content_type}\r\nContent-Range: {range}\r\n\r\n",
            boundary.0
        )
        .into_bytes()
    };
    let heads: Vec<_> = ranges.iter().enumerate().map(head).collect();
    let tail = format!("\r\n--{}--\r\n", boundary.0).into_bytes();
    let framing = heads.iter().map(Vec::len).sum::<usize>() + tail.len();
    let total = ranges
        .iter()
        .map(|range| range.end - range.start)
        .fold(framing as u64, |total, part| total.saturating_add(part));
    let parts: Vec<_> = heads.into_iter().zip(ranges.iter().cloned()).collect();
    let source = Multipart {
        first: Some(first),
        open,
        parts: parts.into_iter(),
        tail: Some(tail),
        part: None,
        left: 0,
        given: Vec::new(),
    };
    Body::new(Some(total), Box::new(source))
}

/// Yields part by part: its head, then its bytes; in the end the tail.
struct Multipart {
    /// The first part, until its turn.
    first: Option<Body>,
    open: OpenPart,
    /// Parts to come: head and range.
    parts: std::vec::IntoIter<(Vec<u8>, Range<u64>)>,
    /// The closing line, until it is given.
    tail: Option<Vec<u8>>,
    /// The part that is being given; there is one while `left` is over 0.
    part: Option<Body>,
    /// Bytes of the part that are still to come.
    left: u64,
    /// The head or tail that was given last: the piece borrows it.
    given: Vec<u8>,
}

impl Source for Multipart {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        if self.left > 0 {
            let part = self.part.as_mut().expect("bytes are left of a part that is open");
            let piece = part.next_piece()?.ok_or_else(|| {
                BodyError::Cut(format!("a part ended {} bytes before its range", self.left))
            })?;
            // No underflow: the part's length was compared when it was opened, and a body
            // never gives more than its length.
            self.left -= piece.len();
            return Ok(Some(piece));
        }
        self.given = match self.parts.next() {
            Some((head, range)) => {
                self.left = range.end - range.start;
                let part = match self.first.take() {
                    Some(first) => first,
                    None => (self.open)(range)?,
                };
                if part.len() != Some(self.left) {
                    return Err(BodyError::Cut(format!(
                        "a part has {:?} bytes where its range has {}",
                        part.len(),
                        self.left
                    )));
                }
                self.part = Some(part);
                head
            }
            None => match self.tail.take() {
                Some(tail) => tail,
                None => return Ok(None),
            },
        };
        Ok(Some(Piece::Bytes(&self.given)))
    }

    fn buffered(&self) -> usize {
        let part = |body: &Option<Body>| body.as_ref().map_or(0, Body::buffered);
        self.given.capacity() + part(&self.first) + part(&self.part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::body::read_to_vec;
    use crate::front::range::{Resolved, resolve};

    const READ_MAX: usize = 1 << 20;

    fn of_bytes(
        bytes: &'static [u8],
        ranges: &[Range<u64>],
        boundary: &Boundary,
        content_type: &str,
    ) -> Body {
        let part =
            |range: Range<u64>| Body::from_bytes(&bytes[range.start as usize..range.end as usize]);
        let open: OpenPart = Box::new(move |range| Ok(part(range)));
        let first = part(ranges[0].clone());
        multipart(ranges, first, open, boundary, content_type, bytes.len() as u64)
    }

    #[test]
    fn parts_are_framed_as_the_rfc_shows() {
        let boundary = Boundary("B".to_owned());
        let mut body = of_bytes(b"0123456789", &[0..2, 9..10], &boundary, "text/plain");
        let expected = "--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
            \r\n--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 9-9/10\r\n\r\n9\
            \r\n--B--\r\n";
        assert_eq!(body.len(), Some(expected.len() as u64));
        assert_eq!(String::from_utf8(read_to_vec(&mut body, READ_MAX).unwrap()).unwrap(), expected);
        assert_eq!(boundary.content_type(), "multipart/byteranges; boundary=B");
    }

    #[test]
    fn a_content_type_cannot_forge_a_part_head() {
        let boundary = Boundary::random();
        let bad = "text/plain\r\nContent-Range: bytes 0-0/1";
        let mut body = of_bytes(b"0123456789", &[0..2, 4..6], &boundary, bad);
        let text = String::from_utf8(read_to_vec(&mut body, READ_MAX).unwrap()).unwrap();
        assert!(!text.contains("text/plain") && text.contains(FALLBACK_TYPE), "{text}");
    }

    #[test]
    fn boundaries_are_short_enough_and_differ() {
        let (one, other) = (Boundary::random(), Boundary::random());
        assert_ne!(one, other);
        // RFC 2046, section 5.1.1: 1 to 70 characters.
        assert!(one.0.len() <= 70);
        assert!(one.0.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    }

    #[test]
    fn a_part_that_fails_or_has_another_length_breaks_the_body_off() {
        let check = |first: Body, open: OpenPart, why: &str| {
            let boundary = Boundary::random();
            let mut body = multipart(&[0..2, 4..6], first, open, &boundary, "text/plain", 10);
            let error = read_to_vec(&mut body, READ_MAX).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        };
        let two = || Body::from_bytes("ab");
        let never: fn() -> OpenPart = || Box::new(|_| unreachable!("the first part fails"));
        check(Body::from_bytes("a"), never(), "Some(1) bytes");
        check(Body::from_bytes("abc"), never(), "Some(3) bytes");
        check(two(), Box::new(|_| Ok(Body::from_bytes("abc"))), "Some(3) bytes");
        check(two(), Box::new(|_| Err(BodyError::Cut("gone".to_owned()))), "gone");
        check(two(), Box::new(move |_| Ok(unsized_body())), "None bytes");
    }

    fn unsized_body() -> Body {
        struct Empty;
        impl Source for Empty {
            fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
                Ok(None)
            }
        }
        Body::new(None, Box::new(Empty))
    }

    #[test]
    fn parts_come_from_files_as_regions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("body");
        std::fs::write(&path, b"0123456789").unwrap();
        let open_file = move |range: Range<u64>| -> Result<Body, BodyError> {
            let file = std::fs::File::open(&path)?;
            Ok(Body::from_file(file, range.start, range.end - range.start))
        };
        let first = open_file(3..5).unwrap();
        let boundary = Boundary::random();
        let ranges = [3..5, 7..10];
        let mut body = multipart(&ranges, first, Box::new(open_file), &boundary, "text/plain", 10);
        let mut regions = Vec::new();
        while let Some(piece) = body.next_piece().unwrap() {
            if let Piece::Region { offset, len, .. } = piece {
                regions.push(offset..offset + len);
            }
        }
        assert_eq!(regions, ranges);
    }

    proptest! {
        #[test]
        fn the_announced_length_is_what_comes(
            set in prop::collection::vec((0_u64..2_000, 0_u64..300), 2..8),
        ) {
            static BYTES: [u8; 2_000] = [b'x'; 2_000];
            let set: Vec<_> =
                set.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect();
            if let Resolved::Several(ranges) = resolve(&format!("bytes={}", set.join(",")), 2_000) {
                let boundary = Boundary::random();
                let mut body = of_bytes(&BYTES, &ranges, &boundary, "text/plain");
                let len = body.len();
                let all = read_to_vec(&mut body, READ_MAX).unwrap();
                prop_assert_eq!(Some(all.len() as u64), len);
                let text = String::from_utf8(all).unwrap();
                let parts = text.matches(&format!("--{}\r\n", boundary.0)).count();
                prop_assert_eq!(parts, ranges.len());
            }
        }
    }
}
