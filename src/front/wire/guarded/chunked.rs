//! Chunked transfer coding of request bodies (RFC 9112, section 7.1), read strictly.
//!
//! What a lenient reader would forgive here is what request smuggling lives on: bare LF, signs,
//! `0x`, spaces around the size. Extensions and trailers are read, bounded and dropped.

/// Hexadecimal digits of a chunk size; 15 can't overflow 64 bits.
const SIZE_DIGITS_MAX: u8 = 15;
/// Bytes of all chunk extensions of one body.
const EXTENSION_BYTES_MAX: u32 = 4 << 10;
/// Bytes of the whole trailer section.
const TRAILER_BYTES_MAX: u32 = 8 << 10;

/// Why a chunked body can't be understood; the connection can't be used any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChunkError {
    /// The size line is no chunk size.
    #[error("a chunk size is malformed")]
    Size,
    /// An extension has a control character, or there is too much of them.
    #[error("a chunk extension is malformed or too long")]
    Extension,
    /// A line or a chunk does not end in CRLF.
    #[error("a chunk does not end in CRLF")]
    LineEnd,
    /// A trailer field is malformed, or there is too much of them.
    #[error("a trailer field is malformed or too long")]
    Trailer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8, value: u64 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    // At the start of a trailer line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

/// What the decoder has found in the bytes that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The next `n` bytes, at least one, are data; tell [`Decoder::took`] how many were taken.
    Data(u64),
    /// The bytes are used up.
    NeedsMore,
    /// The body has ended.
    End,
}

/// The state of a chunked body between reads.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    state: State,
    extension_bytes: u32,
    trailer_bytes: u32,
}

impl Decoder {
    /// A decoder at the start of a body.
    pub(super) fn new() -> Self {
        Self { state: FIRST, extension_bytes: 0, trailer_bytes: 0 }
    }

    /// Whether the body has ended.
    pub(super) fn is_at_end(&self) -> bool {
        self.state == State::End
    }

    /// Reads framing up to data, the end of the body or the end of `bytes`; gives what was
    /// found and how many bytes of framing precede it.
    ///
    /// # Errors
    /// [`ChunkError`], after which the decoder must not be used.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, Found), ChunkError> {
        for (at, byte) in bytes.iter().enumerate() {
            match self.state {
                State::Data { left } => return Ok((at, Found::Data(left))),
                State::End => return Ok((at, Found::End)),
                _ => self.state = self.step(*byte)?,
            }
        }
        let found = match self.state {
            State::End => Found::End,
            State::Data { left } => Found::Data(left),
            _ => Found::NeedsMore,
        };
        Ok((bytes.len(), found))
    }

    /// Notes that `bytes` of the data were taken.
    pub(super) fn took(&mut self, bytes: u64) {
        if let State::Data { left } = &mut self.state {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                self.state = State::DataCr;
            }
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size { digits, value }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(ChunkError::Size);
                }
                let digit = char::from(byte).to_digit(16).ok_or(ChunkError::Size)?;
                State::Size { digits: digits + 1, value: value << 4 | u64::from(digit) }
            }
            (State::Size { digits: 1.., value }, b'\r') => State::SizeLf { value },
            (State::Size { digits: 1.., value }, b';') => State::Extension { value },
            (State::Size { .. }, _) => return Err(ChunkError::Size),
            (State::Extension { value }, b'\r') => State::SizeLf { value },
            (State::Extension { .. }, _) => {
                self.extension_bytes += 1;
                if !is_field_byte(byte) || self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err(ChunkError::Extension);
                }
                self.state
            }
            (State::SizeLf { value: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { value }, b'\n') => State::Data { left: value },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => FIRST,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::EndLf, b'\n') => State::End,
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => {
                return self.trailer_byte(byte);
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            _ => return Err(ChunkError::LineEnd),
        })
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(ChunkError::Trailer);
        }
        match (self.state, byte) {
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => {
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if is_field_byte(byte) => Ok(State::TrailerValue),
            _ => Err(ChunkError::Trailer),
        }
    }
}

const FIRST: State = State::Size { digits: 0, value: 0 };

/// A byte of a field value or of a chunk extension.
fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// `tchar` of RFC 9110, section 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, and what follows the body; `None` where it has not ended.
    type Decoded = Option<(Vec<u8>, Vec<u8>)>;

    /// Decodes `wire` in pieces of `step` bytes.
    fn decode(wire: &[u8], step: usize) -> Result<Decoded, ChunkError> {
        let (mut decoder, mut data, mut at, mut shown) = (Decoder::new(), Vec::new(), 0, 0);
        loop {
            let (framing, found) = decoder.advance(&wire[at..shown])?;
            at += framing;
            match found {
                Found::End => return Ok(Some((data, wire[at..].to_vec()))),
                Found::Data(left) if at < shown => {
                    let take = (left as usize).min(shown - at);
                    data.extend_from_slice(&wire[at..at + take]);
                    decoder.took(take as u64);
                    at += take;
                }
                Found::Data(_) | Found::NeedsMore if shown == wire.len() => return Ok(None),
                Found::Data(_) | Found::NeedsMore => shown = (shown + step).min(wire.len()),
            }
        }
    }

    #[test]
    fn well_formed_bodies_are_read_whatever_the_reads_cut() {
        let long_trailer = format!("1\r\na\r\n0\r\nX: {}\r\n\r\n", "v".repeat(8000));
        let cases: [(&str, &str, &str); 10] = [
            ("0\r\n\r\n", "", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", ""),
            ("5\r\nhello\r\n0\r\n\r\nGET /", "hello", "GET /"),
            ("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "abc", ""),
            ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789", ""),
            ("A\r\n0123456789\r\n00\r\n\r\n", "0123456789", ""),
            ("000000000000001\r\na\r\n0\r\n\r\n", "a", ""),
            ("1;name=value;other=\"x\"\r\na\r\n0;last\r\n\r\n", "a", ""),
            ("1\r\na\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n", "a", ""),
            (&long_trailer, "a", ""),
        ];
        for (wire, data, rest) in cases {
            for step in [1, 2, 3, 7, usize::MAX / 2] {
                let got = decode(wire.as_bytes(), step).unwrap();
                assert_eq!(got, Some((data.into(), rest.into())), "{wire:?} by {step}");
            }
        }
    }

    #[test]
    fn malformed_bodies_are_refused() {
        let long_extension = format!("1;{}\r\n", "e".repeat(5000));
        let long_trailer = format!("0\r\nX: {}\r\n\r\n", "v".repeat(9000));
        let many_extensions = "1;0123456789012345678901234567890123456789\r\na\r\n".repeat(200);
        let cases: [(&str, ChunkError); 32] = [
            ("\r\n", ChunkError::Size),
            ("-1\r\n", ChunkError::Size),
            ("+1\r\n", ChunkError::Size),
            (" 1\r\n", ChunkError::Size),
            ("1 \r\n", ChunkError::Size),
            ("1\t\r\n", ChunkError::Size),
            ("0x1\r\n", ChunkError::Size),
            ("1_0\r\n", ChunkError::Size),
            ("1,0\r\n", ChunkError::Size),
            ("g\r\n", ChunkError::Size),
            (";a\r\n", ChunkError::Size),
            ("1\n", ChunkError::Size),
            ("1\0\r\n", ChunkError::Size),
            ("ffffffffffffffff\r\n", ChunkError::Size),
            ("10000000000000000\r\n", ChunkError::Size),
            ("0000000000000001\r\n", ChunkError::Size),
            ("\u{ff11}\r\n", ChunkError::Size),
            ("1\r\r\n", ChunkError::LineEnd),
            ("1\ra", ChunkError::LineEnd),
            ("1;a\n\r\n", ChunkError::Extension),
            ("1;a\0\r\n", ChunkError::Extension),
            (&long_extension, ChunkError::Extension),
            (&many_extensions, ChunkError::Extension),
            ("1\r\nab", ChunkError::LineEnd),
            ("1\r\na\n", ChunkError::LineEnd),
            ("1\r\na\rb", ChunkError::LineEnd),
            ("0\r\n\n", ChunkError::Trailer),
            ("0\r\nX\r\n", ChunkError::Trailer),
            ("0\r\n X: 1\r\n", ChunkError::Trailer),
            ("0\r\nX : 1\r\n", ChunkError::Trailer),
            ("0\r\nX: 1\n\r\n", ChunkError::Trailer),
            (&long_trailer, ChunkError::Trailer),
        ];
        for (wire, error) in cases {
            for step in [1, 3, usize::MAX / 2] {
                assert_eq!(decode(wire.as_bytes(), step), Err(error), "{wire:?} by {step}");
            }
        }
    }

    #[test]
    fn a_body_without_its_end_never_ends() {
        for wire in ["", "5", "5\r", "5\r\nhell", "5\r\nhello\r\n", "0\r\n", "0\r\nX: 1\r\n"] {
            assert_eq!(decode(wire.as_bytes(), 1), Ok(None), "{wire:?}");
        }
    }
}
