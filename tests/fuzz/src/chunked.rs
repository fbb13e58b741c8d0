//! Chunked bodies: the decoder of the guarded listener against one that is written for
//! clearness, sees the whole body at once and knows no state.

use super::chunked::{ChunkError, Decoder, Found, is_token_byte};

/// The pieces that an input comes in, beside one byte at a time and all at once.
const STEPS: [usize; 4] = [2, 3, 7, 64];

/// The data of a body, and where it ends; `None` where it has not ended.
type Decoded = Option<(Vec<u8>, usize)>;

/// Decodes a body, however it comes in; what is found must be what anyone would find.
pub fn chunked(input: &[u8]) {
    let (choice, wire) = crate::choice(input);
    let at_once = decode(wire, wire.len().max(1));
    for step in [1, STEPS[choice % STEPS.len()]] {
        assert_eq!(decode(wire, step), at_once, "by {step} bytes");
    }
    if let Ok(Some((data, end))) = &at_once {
        assert_eq!(simply(&wire[..*end]).as_ref(), Some(data));
    }
    // Any input as data, in chunks of a size that it chooses.
    let mut encoded = Vec::new();
    for chunk in wire.chunks(choice + 1) {
        encoded.extend_from_slice(format!("{:X};x\r\n", chunk.len()).as_bytes());
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    // More chunks than that have more extensions than a body may.
    if wire.len() / (choice + 1) < 4000 {
        assert_eq!(decode(&encoded, encoded.len()), Ok(Some((wire.to_vec(), encoded.len()))));
    }
}

fn decode(wire: &[u8], step: usize) -> Result<Decoded, ChunkError> {
    let (mut decoder, mut data, mut at, mut shown) = (Decoder::new(), Vec::new(), 0, 0);
    loop {
        let (framing, found) = decoder.advance(&wire[at..shown])?;
        assert!(framing <= shown - at);
        at += framing;
        match found {
            Found::End => {
                assert!(decoder.is_at_end());
                return Ok(Some((data, at)));
            }
            Found::Data(left) if at < shown => {
                assert!(left > 0, "a chunk of data has data");
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(shown - at);
                data.extend_from_slice(&wire[at..at + take]);
                decoder.took(take as u64);
                at += take;
            }
            Found::Data(_) | Found::NeedsMore => {
                assert_eq!(at, shown, "it asks for more when all is used");
                if shown == wire.len() {
                    return Ok(None);
                }
                shown = (shown + step).min(wire.len());
            }
        }
    }
}

/// Reads a body that is whole, line by line (RFC 9112, section 7.1); `None` where it is not
/// exactly one.
fn simply(wire: &[u8]) -> Option<Vec<u8>> {
    let (mut rest, mut data) = (wire, Vec::new());
    loop {
        let line = line(&mut rest)?;
        let size = line.split(|byte| *byte == b';').next()?;
        if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        data.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        let line = line(&mut rest)?;
        if line.is_empty() {
            return rest.is_empty().then_some(data);
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        if colon == 0 || !line[..colon].iter().all(|byte| is_token_byte(*byte)) {
            return None;
        }
    }
}

/// Takes a line off, without its CRLF; it has no other CR, LF or NUL.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, after) = rest.split_at(end);
    *rest = &after[2..];
    (!line.iter().any(|byte| b"\r\n\0".contains(byte))).then_some(line)
}
