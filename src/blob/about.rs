//! What a blob says about itself, as text that fits beside its bytes: one compact line of JSON.
//!
//! ```json
//! {"v":1,"blob":"5-1767225600.123456000","remote":"r","path":"a/b.zip","sha256":"2cf2…","stored_at":1767225600123456}
//! ```
//!
//! It names the version that it describes. A file that was written to, cut, or restored
//! without its times is another version, and then its description is not believed.
//!
//! Deliberately not here: where the text is kept, which is the store's affair.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::About;
use crate::artifact::{ArtifactKey, ArtifactPath, BlobVersion, Validators};

/// The longest text, in bytes. The common file systems keep what they know of a file besides
/// its bytes in one block of 4 KiB, and others want room in it too.
pub(super) const ABOUT_BYTES_MAX: usize = 3 << 10;
/// The longest version of a blob, in bytes: two numbers of 64 bits, nanoseconds, and what
/// stands between them.
const VERSION_BYTES_MAX: usize = 51;
/// The form of the text. Another number is another form, which is not understood.
const FORM: u32 = 1;

/// The text's fields; those that are absent upstream are absent here.
#[derive(Debug, Serialize, Deserialize)]
struct Written<'a> {
    v: u32,
    #[serde(borrow)]
    blob: Cow<'a, str>,
    #[serde(borrow)]
    remote: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    sha256: String,
    /// Microseconds since 1970.
    stored_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_modified: Option<Cow<'a, str>>,
}

/// The text for a blob of this version; `None` where it would be longer than
/// [`ABOUT_BYTES_MAX`].
pub(super) fn encode(about: &About, version: &BlobVersion) -> Option<Vec<u8>> {
    let since = about.stored_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let optional = |text: &'_ Option<String>| text.clone().map(Cow::Owned);
    let written = Written {
        v: FORM,
        blob: Cow::Borrowed(&version.0),
        remote: Cow::Borrowed(about.artifact.remote.as_str()),
        path: Cow::Borrowed(about.artifact.path.as_str()),
        sha256: about.digest.to_string(),
        stored_at: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
        content_type: optional(&about.content_type),
        content_encoding: optional(&about.content_encoding),
        etag: optional(&about.validators.etag),
        last_modified: optional(&about.validators.last_modified),
    };
    let text = serde_json::to_vec(&written).expect("texts and numbers can be written as JSON");
    (text.len() <= ABOUT_BYTES_MAX).then_some(text)
}

/// Whether there is a text for a blob of any version.
pub(super) fn fits(about: &About) -> bool {
    encode(about, &BlobVersion("0".repeat(VERSION_BYTES_MAX))).is_some()
}

/// What the text says of a blob of this version; `None` where it is not ours, not whole, or
/// about another version.
pub(super) fn decode(text: &[u8], version: &BlobVersion) -> Option<About> {
    let written: Written<'_> = serde_json::from_slice(text).ok()?;
    if written.v != FORM || written.blob != version.0 {
        return None;
    }
    let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
    Some(About {
        artifact: ArtifactKey {
            remote: written.remote.parse().ok()?,
            path: ArtifactPath::from_canonical(written.path).ok()?,
        },
        digest: written.sha256.parse().ok()?,
        content_type: owned(written.content_type),
        content_encoding: owned(written.content_encoding),
        validators: Validators {
            etag: owned(written.etag),
            last_modified: owned(written.last_modified),
        },
        stored_at: time_of(written.stored_at)?,
    })
}

fn time_of(micros: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Digest;

    fn version() -> BlobVersion {
        BlobVersion("5-1767225600.123456000".to_owned())
    }

    fn about(path: &str) -> About {
        About {
            artifact: ArtifactKey {
                remote: "r".parse().unwrap(),
                path: ArtifactPath::from_canonical(path).unwrap(),
            },
            digest: Digest::of(b"x"),
            content_type: Some("text/plain; charset=\"utf-8\"".to_owned()),
            content_encoding: None,
            validators: Validators {
                etag: Some("W/\"a,b é\"".to_owned()),
                last_modified: Some("Mon, 23 Nov 2026 08:00:00 GMT".to_owned()),
            },
            stored_at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
        }
    }

    #[test]
    fn every_path_comes_back() {
        for path in ["a", "dir/", "é/ü+ %41\"=?utf-8?q?x?=", "x?a=b&c=%20", "日本/語.rpm"] {
            let about = about(path);
            let text = encode(&about, &version()).unwrap();
            assert_eq!(decode(&text, &version()), Some(about));
        }
    }

    #[test]
    fn what_upstream_did_not_say_takes_no_room() {
        let bare =
            About { content_type: None, validators: Validators::default(), ..about("a/b.zip") };
        let text = encode(&bare, &version()).unwrap();
        let expected = format!(
            r#"{{"v":1,"blob":"{}","remote":"r","path":"a/b.zip","sha256":"{}","stored_at":1700000000123456}}"#,
            version().0,
            Digest::of(b"x"),
        );
        assert_eq!(String::from_utf8(text.clone()).unwrap(), expected);
        assert_eq!(decode(&text, &version()), Some(bare));
    }

    #[test]
    fn what_would_be_too_long_is_left_out_as_a_whole() {
        let check = |len: usize, fits: bool| {
            let path = "p".repeat(len);
            assert_eq!(encode(&about(&path), &version()).is_some(), fits, "{len}");
            assert_eq!(super::fits(&about(&path)), fits, "{len}");
        };
        check(ABOUT_BYTES_MAX - 400, true);
        check(ABOUT_BYTES_MAX, false);
        check(4096, false);
    }

    #[test]
    fn a_text_that_is_not_ours_or_about_another_version_is_not_believed() {
        let right = String::from_utf8(encode(&about("a"), &version()).unwrap()).unwrap();
        let check = |from: &str, to: &str| {
            let text = right.replace(from, to);
            assert_ne!(text, right, "{from:?} is not in it");
            assert_eq!(decode(text.as_bytes(), &version()), None, "{text}");
        };
        check("\"v\":1", "\"v\":2");
        check("5-1767225600", "6-1767225600");
        check("\"path\":\"a\"", "\"path\":\"a/../b\"");
        check("\"path\":\"a\"", "\"path\":7");
        check("\"remote\":\"r\"", "\"remote\":\"../r\"");
        check("\"sha256\":\"", "\"sha256\":\"00");
        check("1700000000123456", "-1");
        check("1700000000123456", "1e99");
        check("}", "");
        assert_eq!(decode(b"", &version()), None);
        assert_eq!(decode(&right.as_bytes()[..40], &version()), None);
    }
}
