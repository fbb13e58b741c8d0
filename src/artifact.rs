//! What is cached: names, paths, keys, digests, validators and the index entry.
//!
//! Floor 0: pure data. An [`ArtifactPath`] is parsed once, at the edge; whoever holds one
//! need not check it again.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

/// Longest remote name, in bytes.
pub const REMOTE_NAME_MAX: usize = 64;
/// Longest artifact path with its query, in bytes after decoding.
pub const ARTIFACT_PATH_MAX: usize = 4096;
/// Longest file name inside a [`BlobKey`], in bytes: file systems end at 255, and a
/// temporary suffix must fit as well.
const KEY_FILE_NAME_MAX: usize = 200;
/// Stands in for the file name of a path that ends in `/`.
const FOLDER_FILE_NAME: &str = "_folder";

/// What goes upstream as it is: RFC 3986 unreserved characters, and the sub-delimiters that
/// servers agree on. `+` is escaped, because object stores read a bare one as a space.
const PATH_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// The name of a configured remote: `/api/<name>/…`, and the first part of its blob keys.
///
/// 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or a digit, so that it is safe as
/// a folder name and needs no escaping in a URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteName(String);

impl RemoteName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a [`RemoteName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a remote name: use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit"
)]
pub struct BadRemoteName(String);

impl FromStr for RemoteName {
    type Err = BadRemoteName;

    fn from_str(text: &str) -> Result<Self, BadRemoteName> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && text.len() <= REMOTE_NAME_MAX && text.as_bytes().iter().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadRemoteName(text.to_owned()))
        }
    }
}

impl fmt::Display for RemoteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The canonical path of an artifact inside its remote: decoded once, without a leading `/`.
///
/// There is one spelling per artifact, so two requests for one file always meet:
///
/// ```
/// use artifactapi::artifact::ArtifactPath;
/// let path = ArtifactPath::from_request("pool/g%2b%2b_1%253a2_amd64.deb", None).unwrap();
/// assert_eq!(path.as_str(), "pool/g++_1%3a2_amd64.deb");
/// assert_eq!(path.upstream_form(), "pool/g%2B%2B_1%253a2_amd64.deb");
/// ```
///
/// What could lead out of the remote is refused, however it is encoded:
///
/// ```
/// use artifactapi::artifact::ArtifactPath;
/// for trick in ["../x", "a/%2e%2e/x", "a/%252e%252e/x", "a/./x", "a//x", "a%00b", "a\\b", "a%5cb",
///               "http://h/x", "http:%2f%2fh/x", "a%0d%0ab", "/", "/x", "a%zz", "a%", "%ff"] {
///     assert!(ArtifactPath::from_request(trick, None).is_err(), "{trick}");
/// }
/// ```
///
/// A query takes part in the identity, behind the first `?`, as it was sent. The empty path is the
/// remote's own folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactPath(String);

/// Why a path was refused; the text is for the client and names the fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not even a slash follows the remote's name.
    #[error("the path is missing: ask for /api/<remote>/<path>, or /api/<remote>/ for its folder")]
    Missing,
    /// Longer than [`ARTIFACT_PATH_MAX`].
    #[error("the path, with its query, is longer than 4096 bytes")]
    TooLong,
    /// A `%` that two hexadecimal digits do not follow.
    #[error(
        "the path has a '%' that is not followed by two hexadecimal digits: write a literal percent sign as %25"
    )]
    BadEscape,
    /// The decoded bytes are not text.
    #[error("the path is not UTF-8 after percent-decoding")]
    NotUtf8,
    /// `.` or `..`, raw or encoded any number of times.
    #[error(
        "the path has a '.' or '..' segment, raw or encoded: ask for the file by its plain path"
    )]
    DotSegment,
    /// `//`, or a leading `/`.
    #[error("the path has an empty segment: write single slashes")]
    EmptySegment,
    /// A control character, NUL, DEL or a backslash.
    #[error("the path has a control character or a backslash, raw or encoded")]
    Forbidden,
    /// An encoded `?`, which could not be told from a query.
    #[error("the path has an encoded '?': such file names are not supported")]
    QuestionMark,
    /// `scheme:` as the first segment.
    #[error("the path looks like an absolute URL: ask for a path below the remote's base_url")]
    AbsoluteUrl,
}

impl ArtifactPath {
    /// Parses the still encoded path behind `/api/<remote>/`, and the query, if there is one.
    ///
    /// # Errors
    /// [`BadPath`], which a client sees as a 400.
    pub fn from_request(raw_path: &str, query: Option<&str>) -> Result<Self, BadPath> {
        if raw_path.len() > 3 * ARTIFACT_PATH_MAX {
            return Err(BadPath::TooLong);
        }
        if !escapes_are_whole(raw_path.as_bytes()) {
            return Err(BadPath::BadEscape);
        }
        let decoded = percent_decode_str(raw_path).decode_utf8().map_err(|_| BadPath::NotUtf8)?;
        if decoded.contains('?') {
            return Err(BadPath::QuestionMark);
        }
        let mut canonical = decoded.into_owned();
        if let Some(query) = query.filter(|query| !query.is_empty()) {
            canonical.push('?');
            canonical.push_str(query);
        }
        Self::from_canonical(canonical)
    }

    /// Takes a path that is already decoded: from the index, or from a list of paths.
    ///
    /// # Errors
    /// As [`ArtifactPath::from_request`].
    pub fn from_canonical(canonical: impl Into<String>) -> Result<Self, BadPath> {
        let canonical = canonical.into();
        if canonical.len() > ARTIFACT_PATH_MAX {
            return Err(BadPath::TooLong);
        }
        if canonical.chars().any(|c| c.is_control() || c == '\\') {
            return Err(BadPath::Forbidden);
        }
        let path = canonical.split_once('?').map_or(canonical.as_str(), |(path, _)| path);
        if path.is_empty() {
            return Ok(Self(canonical));
        }
        let folder = path.strip_suffix('/').unwrap_or(path);
        for (at, segment) in folder.split('/').enumerate() {
            if segment.is_empty() {
                return Err(BadPath::EmptySegment);
            }
            if at == 0 && segment.ends_with(':') {
                return Err(BadPath::AbsoluteUrl);
            }
            if is_dot_segment(segment) {
                return Err(BadPath::DotSegment);
            }
            // A percent sign that survived the one decoding is part of the name (apt's epochs);
            // one that would become a separator or worse in a second decoding is a trick.
            if segment.contains('%') && hides_structure(segment) {
                return Err(BadPath::Forbidden);
            }
        }
        Ok(Self(canonical))
    }

    /// The remote's own folder.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// The canonical text, with the query behind the first `?`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its query: what formats look at.
    pub fn without_query(&self) -> &str {
        self.0.split_once('?').map_or(self.0.as_str(), |(path, _)| path)
    }

    /// The last segment; empty for a folder.
    pub fn file_name(&self) -> &str {
        let path = self.without_query();
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }

    /// The path as it goes upstream: percent-encoded once, the query as the client wrote it.
    pub fn upstream_form(&self) -> String {
        let mut encoded = utf8_percent_encode(self.without_query(), PATH_ESCAPES).to_string();
        if let Some((_, query)) = self.0.split_once('?') {
            encoded.push('?');
            encoded.push_str(query);
        }
        encoded
    }
}

fn escapes_are_whole(raw: &[u8]) -> bool {
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        match rest.get(at + 1..at + 3) {
            Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => rest = &rest[at + 3..],
            _ => return false,
        }
    }
    true
}

fn is_dot_segment(segment: &str) -> bool {
    fully_decoded(segment).is_some_and(|name| name == "." || name == "..")
}

/// Whether decoding again, any number of times, would show a separator, a dot segment or a
/// control character. A name that decodes to no text at all counts as hiding something.
fn hides_structure(segment: &str) -> bool {
    fully_decoded(segment)
        .is_none_or(|name| name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\')))
}

/// The segment after as many decodings as change it; `None` where that is no text.
///
/// One pass: escapes can't overlap, so it does not matter in which order they are decoded, and
/// a name of nested escapes costs no more than any other.
fn fully_decoded(segment: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut name = Vec::with_capacity(segment.len());
    for byte in segment.bytes() {
        name.push(byte);
        // What was decoded can be the last digit of another escape.
        while let [.., b'%', high, low] = name[..]
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            name.truncate(name.len() - 3);
            name.push(high << 4 | low);
        }
    }
    String::from_utf8(name).ok()
}

impl fmt::Display for ArtifactPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One artifact: a remote and a path inside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactKey {
    /// The remote it belongs to.
    pub remote: RemoteName,
    /// Where it is inside the remote.
    pub path: ArtifactPath,
}

impl fmt::Display for ArtifactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.remote, self.path)
    }
}

/// Where a blob lies in a store: `{remote}/{path_hash}/{filename}`, predictable, so that an
/// operator can find a file with `ls`, `sha256sum` or an object store's own tools.
///
/// ```
/// use artifactapi::artifact::{ArtifactKey, ArtifactPath, BlobKey};
/// let path = ArtifactPath::from_canonical("v3.20/main/x86_64/curl-8.9.0-r0.apk").unwrap();
/// let key = ArtifactKey { remote: "alpine".parse().unwrap(), path };
/// assert_eq!(BlobKey::of(&key).as_str(), "alpine/b369c62526bbfedc/curl-8.9.0-r0.apk");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobKey(String);

impl BlobKey {
    /// The key of an artifact; `path_hash` is the first 16 hexadecimal digits of the SHA-256
    /// of the canonical path.
    pub fn of(artifact: &ArtifactKey) -> Self {
        let hash = Digest::of(artifact.path.as_str().as_bytes()).to_string();
        let name = key_file_name(artifact.path.file_name());
        Self(format!("{}/{}/{name}", artifact.remote, &hash[..16]))
    }

    /// The key of what is fetched by an absolute URL: `{hostname}/{url_hash}/{filename}`, where
    /// `url_hash` is the first 16 hexadecimal digits of the SHA-256 of the URL as it was given.
    /// `None` where it has no host.
    ///
    /// Of a host that is no folder name (an IPv6 address, a very long name) what does not fit is
    /// left out; the hash tells URLs apart.
    ///
    /// ```
    /// use artifactapi::artifact::BlobKey;
    /// let key = BlobKey::of_url("https://files.example.org:8443/a/tool%20b.zip?x=1").unwrap();
    /// assert_eq!(key.as_str(), "files.example.org/c18282f31db5ae24/tool b.zip");
    /// ```
    pub fn of_url(url: &str) -> Option<Self> {
        let parsed = url::Url::parse(url).ok()?;
        let host: String = parsed
            .host_str()?
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
            .collect();
        let host = host.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let folder: RemoteName = host[..host.len().min(REMOTE_NAME_MAX)].parse().ok()?;
        let name = parsed.path().rsplit('/').next().unwrap_or_default();
        let name = percent_decode_str(name).decode_utf8_lossy();
        let is_plain = !name.contains(['/', '\\']) && !name.chars().any(char::is_control);
        let name = if is_plain && name != "." && name != ".." {
            key_file_name(&name)
        } else {
            FOLDER_FILE_NAME
        };
        let hash = Digest::of(url.as_bytes()).to_string();
        Some(Self(format!("{folder}/{}/{name}", &hash[..16])))
    }

    /// Takes a key that a store listed.
    ///
    /// Returns `None` where it is not of the form `folder/16 hexadecimal digits/name`.
    pub fn from_listing(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (folder, hash, name) = (parts.next()?, parts.next()?, parts.next()?);
        let hash_fits = hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        let name_fits = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
        let folder_fits = folder.parse::<RemoteName>().is_ok();
        (hash_fits && name_fits && folder_fits).then(|| Self(text.to_owned()))
    }

    /// The key as text, relative to the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its three parts: the remote's or the host's folder, the hash, the file name.
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.0.splitn(3, '/');
        let mut next = || parts.next().expect("a key has three parts since it was made");
        (next(), next(), next())
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn key_file_name(name: &str) -> &str {
    if name.is_empty() {
        return FOLDER_FILE_NAME;
    }
    // The end of a name says more than its beginning: it has the version and the suffix.
    let mut start = name.len().saturating_sub(KEY_FILE_NAME_MAX);
    while !name.is_char_boundary(start) {
        start += 1;
    }
    &name[start..]
}

/// A version of the blob under a key, opaque outside the store that gave it.
///
/// A key can be overwritten; an entry means exactly one version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlobVersion(pub String);

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest: 64 hexadecimal digits are needed")]
pub struct BadDigest(String);

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        decode_hex(text).map(Self).ok_or_else(|| BadDigest(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// A checksum that a body must have, of an algorithm that can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256.
    Sha256(Digest),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl Checksum {
    /// Reads hexadecimal digits: 64 mean SHA-256, 128 mean SHA-512. Anything else is `None`;
    /// so are MD5 and SHA-1, which prove nothing.
    pub fn from_hex(text: &str) -> Option<Self> {
        match text.len() {
            64 => decode_hex(text).map(|bytes| Self::Sha256(Digest(bytes))),
            128 => decode_hex(text).map(Self::Sha512),
            _ => None,
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "sha256:{digest}"),
            Self::Sha512(bytes) => {
                f.write_str("sha512:")?;
                write_hex(bytes, f)
            }
        }
    }
}

/// Writes all digits at once: every hit writes digests.
fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let mut text = [0; 2 * LONGEST_DIGEST];
    for (place, digit) in text.iter_mut().zip(digits) {
        *place = DIGITS[usize::from(digit)];
    }
    f.write_str(std::str::from_utf8(&text[..2 * bytes.len()]).expect("digits are ASCII"))
}

/// Bytes of the longest digest, SHA-512.
const LONGEST_DIGEST: usize = 64;

fn decode_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// What upstream said to recognise a version of a file by, verbatim (RFC 9110, section 8.8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`, with its quotes, and `W/` if it is weak.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
}

impl Validators {
    /// The ETag if it is strong: equal strong ETags mean equal bytes.
    pub fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/"))
    }
}

/// Whether two ETags are the same but for weakness (RFC 9110, section 8.8.3.2).
pub fn weakly_equal(one: &str, other: &str) -> bool {
    fn opaque(tag: &str) -> &str {
        tag.strip_prefix("W/").unwrap_or(tag)
    }
    opaque(one) == opaque(other)
}

/// What the index knows of a stored artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the bytes are.
    pub blob: BlobKey,
    /// Which version of the blob the entry means.
    pub version: BlobVersion,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// Upstream's `Content-Type`, if it sent one.
    pub content_type: Option<String>,
    /// Upstream's `Content-Encoding`, where it sent one though asked not to: the stored bytes
    /// are encoded so.
    pub content_encoding: Option<String>,
    /// Upstream's validators.
    pub validators: Validators,
    /// When these bytes came from upstream.
    pub stored_at: SystemTime,
    /// When upstream last confirmed them (at the fetch, or by a 304).
    pub validated_at: SystemTime,
    /// Of a member: the digest of the head that was stored when upstream last confirmed it. It
    /// is doubted once another head stands there; no clock takes part in that.
    pub head: Option<Digest>,
    /// Counts the changes of this row; a writer names the one that it read.
    pub generation: u64,
    /// The index can't vouch that the blob's bytes survived a crash of the machine: they are
    /// hashed before they are served.
    pub unproven: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tricks_are_refused_with_their_reason() {
        let check = |raw: &str, why: BadPath| {
            assert_eq!(ArtifactPath::from_request(raw, None), Err(why), "{raw:?}");
        };
        check("a/../b", BadPath::DotSegment);
        check("a/%2E%2e/b", BadPath::DotSegment);
        check("a/.%2e/b", BadPath::DotSegment);
        check("a/%252e%252E/b", BadPath::DotSegment);
        check("a/%25252e%25252e/b", BadPath::DotSegment);
        check("..", BadPath::DotSegment);
        check("../", BadPath::DotSegment);
        check("a/.", BadPath::DotSegment);
        check("..%2fb", BadPath::DotSegment);
        check("%252e%252e%252fb", BadPath::Forbidden);
        check("a%252fb", BadPath::Forbidden);
        check("a%255cb", BadPath::Forbidden);
        check("a%2500b", BadPath::Forbidden);
        check("a%00", BadPath::Forbidden);
        check("a%0d%0aX:%20y", BadPath::Forbidden);
        check("a\\b", BadPath::Forbidden);
        check("a%5Cb", BadPath::Forbidden);
        check("a%7fb", BadPath::Forbidden);
        check("/a", BadPath::EmptySegment);
        check("//host.example.org/a", BadPath::EmptySegment);
        check("a//b", BadPath::EmptySegment);
        check("/", BadPath::EmptySegment);
        check("https://host.example.org/a", BadPath::AbsoluteUrl);
        check("https:/host.example.org/a", BadPath::AbsoluteUrl);
        check("https%3a%2f%2fhost.example.org/a", BadPath::AbsoluteUrl);
        check("a%3fb", BadPath::QuestionMark);
        check("a%", BadPath::BadEscape);
        check("a%4", BadPath::BadEscape);
        check("a%g0", BadPath::BadEscape);
        check("%ff", BadPath::NotUtf8);
        check(&"a".repeat(ARTIFACT_PATH_MAX + 1), BadPath::TooLong);
    }

    proptest! {
        #[test]
        fn one_pass_decodes_as_often_as_it_changes_anything(segment in "([%/.a]|25|2|5|f|é){0,30}") {
            let mut name = segment.clone().into_bytes();
            loop {
                let next: Vec<u8> = percent_encoding::percent_decode(&name).collect();
                if next == name {
                    break;
                }
                name = next;
            }
            prop_assert_eq!(fully_decoded(&segment), String::from_utf8(name).ok());
        }
    }

    #[test]
    fn a_name_of_nested_escapes_is_judged_like_any_other() {
        // 2,000 decodings, each of which takes off two bytes.
        let nested =
            |end: &str| ArtifactPath::from_canonical(format!("a/%{}{end}", "25".repeat(2000)));
        assert_eq!(nested("2e"), Err(BadPath::DotSegment));
        assert_eq!(nested("2f"), Err(BadPath::Forbidden));
        assert!(nested("7e").is_ok());
    }

    #[test]
    fn names_of_real_repositories_are_kept() {
        let check = |raw: &str, canonical: &str, upstream: &str| {
            let path = ArtifactPath::from_request(raw, None).expect(raw);
            assert_eq!((path.as_str(), path.upstream_form().as_str()), (canonical, upstream));
        };
        check("pool/g%2b%2b_1%7e2.deb", "pool/g++_1~2.deb", "pool/g%2B%2B_1~2.deb");
        check("pool/x_1%253a2.deb", "pool/x_1%3a2.deb", "pool/x_1%253a2.deb");
        check("a/..b/c..", "a/..b/c..", "a/..b/c..");
        check("a/b%20c/", "a/b c/", "a/b%20c/");
        check("caf%C3%A9", "café", "caf%C3%A9");
        check("x/:y:/z", "x/:y:/z", "x/:y:/z");
    }

    #[test]
    fn a_query_is_part_of_the_identity() {
        let path = ArtifactPath::from_request("mirrorlist", Some("repo=a&arch=b%2Fc")).unwrap();
        assert_eq!(path.as_str(), "mirrorlist?repo=a&arch=b%2Fc");
        assert_eq!(path.upstream_form(), "mirrorlist?repo=a&arch=b%2Fc");
        assert_eq!((path.without_query(), path.file_name()), ("mirrorlist", "mirrorlist"));
        assert_eq!(
            ArtifactPath::from_request("a", Some("")),
            ArtifactPath::from_request("a", None)
        );
        assert_eq!(ArtifactPath::from_request("a", Some("b\r\nc")), Err(BadPath::Forbidden));
    }

    #[test]
    fn keys_stay_inside_their_folder_and_below_the_file_system_limit() {
        let key = |path: String| {
            let path = ArtifactPath::from_canonical(path).unwrap();
            BlobKey::of(&ArtifactKey { remote: "r".parse().unwrap(), path })
        };
        let long = key(format!("dir/{}é.tar.gz", "x".repeat(400)));
        assert!(long.parts().2.len() <= KEY_FILE_NAME_MAX && long.as_str().ends_with("é.tar.gz"));
        let folder = key("dir/".to_owned());
        assert_eq!(folder.parts().2, FOLDER_FILE_NAME);
        assert_eq!(BlobKey::from_listing(long.as_str()), Some(long));
        assert_eq!(BlobKey::from_listing("r/0123456789abcdef/.."), None);
        assert_eq!(BlobKey::from_listing("r/0123/x"), None);
    }

    #[test]
    fn digests_round_trip_and_refuse_other_text() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert!(empty[1..].parse::<Digest>().is_err());
        assert_eq!(Checksum::from_hex(empty), Some(Checksum::Sha256(Digest::of(b""))));
        assert!(Checksum::from_hex(&"é".repeat(32)).is_none());
        assert!(Checksum::from_hex(&"a".repeat(32)).is_none());
    }
}
