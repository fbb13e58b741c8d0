//! One member of a tar archive, streamed: all that an APKINDEX needs of the format.
//!
//! Names beyond 100 bytes and the extensions that carry them are not understood, since the
//! member that is looked for has a short name.

use std::io::{self, Read};

use super::ListingError;

const BLOCK_BYTES: usize = 512;
/// Members that are looked at.
const MEMBERS_MAX: usize = 1000;

/// The bytes of the first member called `name`; an end of the archive before it is an error.
///
/// Blocks of zeros end an archive, but the archive of an APKINDEX is several of them one behind
/// the other, so they are stepped over.
pub(super) fn member<R: Read>(mut archive: R, name: &str) -> Result<io::Take<R>, ListingError> {
    let mut block = [0; BLOCK_BYTES];
    let mut members = 0;
    while members < MEMBERS_MAX {
        archive.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                ListingError::malformed(format!("the archive has no member {name}"))
            }
            _ => error.into(),
        })?;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        members += 1;
        let len = octal(&block[124..136])
            .ok_or_else(|| ListingError::malformed("a member's length is not octal"))?;
        let is_file = matches!(block[156], b'0' | 0);
        let its_name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        if is_file && its_name == name.as_bytes() {
            return Ok(archive.take(len));
        }
        let padded = len.next_multiple_of(BLOCK_BYTES as u64);
        let skipped = io::copy(&mut archive.by_ref().take(padded), &mut io::sink())?;
        if skipped < padded {
            return Err(ListingError::malformed("the archive is cut"));
        }
    }
    Err(ListingError::malformed(format!("the archive has too many members before {name}")))
}

/// Eleven octal digits at most, so that padding can't overflow.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    let fits = (1..=11).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    u64::from_str_radix(digits, 8).ok().filter(|_| fits)
}
