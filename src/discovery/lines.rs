//! Lines of a text, one at a time and bounded.

use std::io::{BufRead, Read};

use super::ListingError;

/// Bytes of a line. Packages with thousands of provides have lines of some hundred KiB.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// The lines of a text, without their ends.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, ListingError> {
        self.line.clear();
        let read = self.reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        if self.line.last() != Some(&b'\n') && read as u64 == LINE_BYTES_MAX {
            let why = format!("a line is longer than {LINE_BYTES_MAX} bytes");
            return Err(ListingError::malformed(why));
        }
        Ok(Some(self.line.trim_ascii_end()))
    }
}

/// The value behind `name` and its colon, as text.
pub(super) fn field<'a>(line: &'a [u8], name: &str) -> Option<&'a str> {
    let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
    std::str::from_utf8(value).ok().map(str::trim)
}
