//! What an object says about itself, as S3 user metadata.
//!
//! Metadata travels in headers, so all of it is visible ASCII: everything else, and what
//! proxies are known to touch, is percent-encoded. S3 takes 2 KB for an object; what does not
//! fit is left out as a whole, and then the object can't be told from its metadata.

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::artifact::{ArtifactKey, ArtifactPath, Validators};
use crate::blob::About;

/// What names and values of one object may have together; S3's own bound is 2,048.
const METADATA_BYTES_MAX: usize = 2000;
const PREFIX: &str = "x-amz-meta-";
const ARTIFACT: &str = "x-amz-meta-artifact";
const SHA256: &str = "x-amz-meta-sha256";
const STORED_AT: &str = "x-amz-meta-stored-at-ns";
const CONTENT: &str = "x-amz-meta-upstream-type";
const ENCODING: &str = "x-amz-meta-upstream-encoding";
const ETAG: &str = "x-amz-meta-upstream-etag";
const LAST_MODIFIED: &str = "x-amz-meta-upstream-last-modified";

/// `=` and `?` because some servers read RFC 2047 words in metadata, `,` because some join
/// and split at it.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'%').add(b'"').add(b'\\').add(b'=').add(b'?').add(b',');

/// The headers that describe an object.
pub(super) fn headers(about: &About) -> HeaderMap {
    let mut values = values(about);
    let size = bytes_of(&values);
    if size > METADATA_BYTES_MAX {
        tracing::debug!(artifact = %about.artifact, size, "an object will not describe itself");
        values.retain(|(name, _)| *name == SHA256);
    }
    let mut headers: HeaderMap = values
        .into_iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_str(&value).expect("what is escaped is ASCII");
            (HeaderName::from_static(name), value)
        })
        .collect();
    // For whoever looks into the bucket with other tools; never read back.
    let content_type = about.content_type.as_deref().and_then(|text| text.parse().ok());
    headers.insert(
        CONTENT_TYPE,
        content_type.unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    headers
}

/// Whether an object can say all of it.
pub(in crate::blob) fn fits(about: &About) -> bool {
    bytes_of(&values(about)) <= METADATA_BYTES_MAX
}

fn bytes_of(values: &[(&'static str, String)]) -> usize {
    values.iter().map(|(name, value)| name.len() - PREFIX.len() + value.len()).sum()
}

fn values(about: &About) -> Vec<(&'static str, String)> {
    let since = about.stored_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut values = vec![
        (ARTIFACT, escaped(&format!("{}/{}", about.artifact.remote, about.artifact.path))),
        (SHA256, about.digest.to_string()),
        (STORED_AT, since.as_nanos().to_string()),
    ];
    let optional = [
        (CONTENT, &about.content_type),
        (ENCODING, &about.content_encoding),
        (ETAG, &about.validators.etag),
        (LAST_MODIFIED, &about.validators.last_modified),
    ];
    for (name, value) in optional {
        values.extend(value.as_ref().map(|value| (name, escaped(value))));
    }
    values
}

/// What the headers of an object say; `None` where they are not ours, or not whole.
pub(super) fn read(headers: &HeaderMap) -> Option<About> {
    let (remote, path) = unescaped(headers, ARTIFACT)?
        .split_once('/')
        .map(|(remote, path)| (remote.to_owned(), path.to_owned()))?;
    let nanoseconds: u64 = unescaped(headers, STORED_AT)?.parse().ok()?;
    Some(About {
        artifact: ArtifactKey {
            remote: remote.parse().ok()?,
            path: ArtifactPath::from_canonical(path).ok()?,
        },
        digest: unescaped(headers, SHA256)?.parse().ok()?,
        content_type: unescaped(headers, CONTENT),
        content_encoding: unescaped(headers, ENCODING),
        validators: Validators {
            etag: unescaped(headers, ETAG),
            last_modified: unescaped(headers, LAST_MODIFIED),
        },
        stored_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds),
    })
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn unescaped(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Digest;

    fn about(path: &str) -> About {
        About {
            artifact: ArtifactKey {
                remote: "r".parse().unwrap(),
                path: ArtifactPath::from_canonical(path).unwrap(),
            },
            digest: Digest::of(b"x"),
            content_type: Some("text/plain; charset=\"utf-8\"".to_owned()),
            content_encoding: Some("gzip".to_owned()),
            validators: Validators {
                etag: Some("W/\"a,b é\"".to_owned()),
                last_modified: Some("Mon, 23 Nov 2026 08:00:00 GMT".to_owned()),
            },
            stored_at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 1),
        }
    }

    #[test]
    fn every_path_comes_back_from_headers_that_are_ascii() {
        for path in ["a", "dir/", "é/ü+ %41\"=?utf-8?q?x?=", "x?a=b&c=%20", "日本/語.rpm"] {
            let about = about(path);
            let headers = headers(&about);
            assert!(headers.values().all(|value| value.to_str().is_ok()), "{headers:?}");
            assert!(fits(&about));
            assert_eq!(read(&headers), Some(about));
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_digest_and_no_wrong_description() {
        let about = about(&"é".repeat(400));
        let headers = headers(&about);
        assert_eq!(headers[SHA256], about.digest.to_string());
        assert_eq!(read(&headers), None);
        assert!(!fits(&about));
    }

    #[test]
    fn metadata_of_others_is_not_ours() {
        let check = |name: &'static str, value: &'static str| {
            let mut headers = headers(&about("a"));
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(read(&headers), None, "{name}: {value}");
        };
        check(ARTIFACT, "no-path");
        check(ARTIFACT, "r/../x");
        check(ARTIFACT, "r/%ff");
        check(SHA256, "abc");
        check(STORED_AT, "yesterday");
        assert_eq!(read(&HeaderMap::new()), None);
    }
}
