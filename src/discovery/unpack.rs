//! Compressed indexes, unpacked on the way and bounded.

use std::io::{self, BufRead, BufReader, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use xz4rust::{XzDecoder, XzReader};

use super::ListingError;

/// Bytes of one listing after unpacking. The largest indexes that are known have a tenth of it;
/// what has more is a bomb, or nothing that a cache should read every day.
pub const UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// The largest dictionary of an xz file, which is memory: what `xz -9` uses.
const XZ_DICTIONARY_BYTES_MAX: usize = 64 << 20;
/// What an xz dictionary begins with; it grows as the file asks for.
const XZ_DICTIONARY_BYTES_FIRST: usize = 64 << 10;
/// The largest window of a zstd file, which is memory: what `zstd --ultra` uses without
/// `--long`.
const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;
/// Bytes that are read at a time.
const BUFFER_BYTES: std::num::NonZeroUsize = std::num::NonZeroUsize::new(64 << 10).unwrap();

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip (RFC 1952), any number of members.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Packing {
    /// Judges a file by its name; `None` for a packing that is not known here, such as bzip2.
    ///
    /// ```
    /// use artifactapi::discovery::unpack::Packing;
    /// assert_eq!(Packing::of("repodata/primary.xml.zst"), Some(Packing::Zstd));
    /// assert_eq!(Packing::of("binary-amd64/Packages"), Some(Packing::Plain));
    /// assert_eq!(Packing::of("binary-amd64/Packages.bz2"), None);
    /// ```
    pub fn of(path: &str) -> Option<Self> {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        match name.rsplit_once('.').map(|(_, end)| end) {
            Some("gz") => Some(Self::Gzip),
            Some("xz") => Some(Self::Xz),
            Some("zst") => Some(Self::Zstd),
            Some("bz2" | "zck" | "lzma" | "lz4") => None,
            _ => Some(Self::Plain),
        }
    }
}

/// Unpacks while reading. More than [`UNPACKED_BYTES_MAX`] is an error.
///
/// # Errors
/// A zstd header that can't be used; everything else is found while reading.
pub fn unpack(packed: Box<dyn Read>, packing: Packing) -> Result<Box<dyn BufRead>, ListingError> {
    let plain: Box<dyn Read> = match packing {
        Packing::Plain => packed,
        Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Packing::Xz => {
            let decoder = XzDecoder::in_heap_with_alloc_dict_size(
                XZ_DICTIONARY_BYTES_FIRST,
                XZ_DICTIONARY_BYTES_MAX,
            );
            Box::new(XzReader::new_with_buffer_size_and_decoder(packed, BUFFER_BYTES, decoder))
        }
        Packing::Zstd => Box::new(
            StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW_BYTES_MAX)
                .map_err(|error| ListingError::malformed(format!("it is not zstd: {error}")))?,
        ),
    };
    let bounded = Bounded::new(plain, UNPACKED_BYTES_MAX);
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES.get(), bounded)))
}

/// A reader that fails, instead of ending, after too many bytes.
#[derive(Debug)]
pub struct Bounded<R> {
    inner: R,
    left: u64,
    max: u64,
}

impl<R: Read> Bounded<R> {
    /// Lets `max` bytes pass.
    pub fn new(inner: R, max: u64) -> Self {
        Self { inner, left: max, max }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        match self.left.checked_sub(len as u64) {
            Some(left) => {
                self.left = left;
                Ok(len)
            }
            None => Err(io::Error::other(format!("it is larger than {} bytes", self.max))),
        }
    }
}
