//! What the head of an answer means (RFC 9110, RFC 9112).
//!
//! Pure: a head in, a judgement out. Lengths and offsets are believed only where they fit
//! what was asked and each other.

use std::time::{Duration, SystemTime};

use ureq::http::response::Parts;
use ureq::http::{HeaderMap, HeaderName, Version, header};

use super::body::Framing;
use crate::artifact::Validators;
use crate::upstream::redirect::is_redirect;
use crate::upstream::{UpstreamHead, UpstreamRequest};

/// The largest length or offset that is believed, in bytes: no file can be larger.
const LEN_MAX: u64 = i64::MAX as u64;
/// The longest value that is kept of a field, in bytes.
const FIELD_BYTES_MAX: usize = 1024;

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Here it is, or the part of it.
    Found(UpstreamHead, Framing),
    /// It has not changed.
    NotModified(UpstreamHead),
    /// There is none.
    Absent,
    /// It is elsewhere: the value of `Location`.
    Elsewhere(Vec<u8>),
    /// Something else, with its `Retry-After`.
    Status(u16, Option<Duration>),
}

/// Reads the head of an answer to a request.
///
/// # Errors
/// What makes no sense about it, in words.
pub(super) fn read(
    head: &Parts,
    asked: &UpstreamRequest<'_>,
    now: SystemTime,
) -> Result<Answer, String> {
    let status = head.status.as_u16();
    match status {
        200 => {
            let framing = framing(head)?;
            let len = match framing {
                Framing::Length(len) => Some(len),
                Framing::Chunks | Framing::Close => None,
            };
            Ok(Answer::Found(UpstreamHead { len, ..fields(&head.headers) }, framing))
        }
        206 => part(head, asked),
        304 if asked.unless.is_some() => Ok(Answer::NotModified(fields(&head.headers))),
        304 => Err("304, although nothing conditional was asked".to_owned()),
        404 | 410 => Ok(Answer::Absent),
        _ if is_redirect(status) => match head.headers.get_all(header::LOCATION).iter().next_back()
        {
            Some(location) => Ok(Answer::Elsewhere(location.as_bytes().to_vec())),
            None => Err(format!("{status} without a Location")),
        },
        _ if head.status.is_success() || head.status.is_informational() => {
            Err(format!("{status} is no answer to GET"))
        }
        _ => Ok(Answer::Status(status, retry_after(&head.headers, now))),
    }
}

fn part(head: &Parts, asked: &UpstreamRequest<'_>) -> Result<Answer, String> {
    let Some(part) = asked.part else {
        return Err("206, although the whole was asked for".to_owned());
    };
    let Some(given) = text(&head.headers, header::CONTENT_RANGE) else {
        return Err("206 without a Content-Range, or in several parts".to_owned());
    };
    let Some(range) = ContentRange::parse(&given) else {
        return Err(format!("206 with an unusable Content-Range {given:?}"));
    };
    if range.first != part.from || part.to.is_some_and(|to| range.behind > to) {
        return Err(format!("206 with {given:?}, which is not the part that was asked for"));
    }
    let len = range.behind - range.first;
    let framing = framing(head)?;
    if let Framing::Length(announced) = framing
        && announced != len
    {
        return Err(format!("206 with {given:?} and a Content-Length of {announced}"));
    }
    let head = UpstreamHead {
        len: Some(len),
        part_from: Some(range.first),
        full_len: range.full,
        ..fields(&head.headers)
    };
    Ok(Answer::Found(head, framing))
}

/// `bytes first-last/full` (RFC 9110, section 14.4).
struct ContentRange {
    first: u64,
    behind: u64,
    full: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.split_once(' ')?;
        let (span, full) = range.trim().split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let (first, behind) = (number(first)?, number(last)?.checked_add(1)?);
        let full = if full == "*" { None } else { Some(number(full)?) };
        let fits = first < behind && behind <= full.unwrap_or(LEN_MAX);
        (fits && unit.eq_ignore_ascii_case("bytes")).then_some(Self { first, behind, full })
    }
}

/// Digits only: `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number| digits && number <= LEN_MAX)
}

/// How the body ends (RFC 9112, section 6.3). ureq decides alike; what it would misread is
/// an error here.
fn framing(head: &Parts) -> Result<Framing, String> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if head.version < Version::HTTP_11 {
            return Err("a Transfer-Encoding in HTTP/1.0".to_owned());
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err("a Transfer-Encoding other than chunked".to_owned());
        }
        return Ok(Framing::Chunks);
    }
    // A list of equal lengths is one length (section 8.6 of RFC 9110); ureq has refused
    // lists of different ones.
    let Some(value) = head.headers.get(header::CONTENT_LENGTH) else {
        return Ok(Framing::Close);
    };
    let first = value.to_str().ok().and_then(|list| list.split(',').next()).map(str::trim);
    match first.and_then(number) {
        Some(len) => Ok(Framing::Length(len)),
        None => Err("an unusable Content-Length".to_owned()),
    }
}

fn fields(headers: &HeaderMap) -> UpstreamHead {
    UpstreamHead {
        validators: Validators {
            etag: text(headers, header::ETAG).filter(|etag| is_etag(etag)),
            last_modified: text(headers, header::LAST_MODIFIED),
        },
        content_type: text(headers, header::CONTENT_TYPE),
        content_encoding: text(headers, header::CONTENT_ENCODING)
            .filter(|coding| !coding.eq_ignore_ascii_case("identity")),
        link: text(headers, header::LINK),
        ..UpstreamHead::default()
    }
}

/// A field that stands once, is printable ASCII, and of sane length; anything else is left
/// out, since it will be stored, sent to clients and sent back upstream.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let text = value.to_str().ok()?.trim();
    (!text.is_empty() && text.len() <= FIELD_BYTES_MAX).then(|| text.to_owned())
}

/// RFC 9110, section 8.8.3. An unquoted one, as some servers send, would not survive the
/// way through a client and back.
fn is_etag(text: &str) -> bool {
    let opaque = text.strip_prefix("W/").unwrap_or(text);
    let inner = opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.is_some_and(|inner| inner.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'))
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = text(headers, header::RETRY_AFTER)?;
    match number(&text) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => {
            let date = httpdate::parse_http_date(&text).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use ureq::http::{Response, StatusCode};

    use super::*;
    use crate::artifact::ArtifactPath;
    use crate::upstream::Part;

    fn answer(
        status: u16,
        version: Version,
        fields: &[(&str, &str)],
        part: Option<(u64, Option<u64>)>,
    ) -> Result<Answer, String> {
        let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (head, ()) = response.version(version).body(()).unwrap().into_parts();
        let path = ArtifactPath::from_canonical("a").unwrap();
        let part = part.map(|(from, to)| Part { from, to, of: None });
        let asked = UpstreamRequest { path: &path, unless: None, part };
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        read(&head, &asked, now)
    }

    #[test]
    fn the_framing_is_believed_only_where_it_is_sound() {
        let check =
            |version: Version, fields: &[(&str, &str)], expected: Result<Framing, &str>| match (
                answer(200, version, fields, None),
                expected,
            ) {
                (Ok(Answer::Found(head, framing)), Ok(expected)) => {
                    assert_eq!(framing, expected, "{fields:?}");
                    let len = if let Framing::Length(len) = framing { Some(len) } else { None };
                    assert_eq!(head.len, len);
                }
                (Err(reason), Err(why)) => assert!(reason.contains(why), "{fields:?}: {reason}"),
                (got, expected) => panic!("{fields:?}: {got:?}, not {expected:?}"),
            };
        let (v10, v11) = (Version::HTTP_10, Version::HTTP_11);
        check(v11, &[], Ok(Framing::Close));
        check(v11, &[("content-length", "5")], Ok(Framing::Length(5)));
        check(v10, &[("content-length", "0")], Ok(Framing::Length(0)));
        check(v11, &[("content-length", "5, 5")], Ok(Framing::Length(5)));
        check(v11, &[("transfer-encoding", "Chunked")], Ok(Framing::Chunks));
        let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
        check(v11, &both, Ok(Framing::Chunks));
        check(v10, &[("transfer-encoding", "chunked")], Err("HTTP/1.0"));
        check(v11, &[("transfer-encoding", "gzip, chunked")], Err("other than chunked"));
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        check(v11, &twice, Err("other than chunked"));
        for absurd in ["-1", "+5", "5x", "", "9223372036854775808", "99999999999999999999999"] {
            check(v11, &[("content-length", absurd)], Err("Content-Length"));
        }
    }

    #[test]
    fn a_part_is_believed_only_where_it_is_the_one_that_was_asked_for() {
        let check = |asked: (u64, Option<u64>), fields: &[(&str, &str)], expected: Option<_>| {
            let got = answer(206, Version::HTTP_11, fields, Some(asked));
            let got = match got {
                Ok(Answer::Found(head, _)) => Some((head.part_from, head.len, head.full_len)),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            };
            assert_eq!(got, expected, "{asked:?} {fields:?}");
        };
        let range = |text| [("content-range", text)];
        check((5, None), &range("bytes 5-9/10"), Some((Some(5), Some(5), Some(10))));
        check((5, None), &range("bytes 5-6/*"), Some((Some(5), Some(2), None)));
        check((5, Some(8)), &range("bytes 5-7/10"), Some((Some(5), Some(3), Some(10))));
        let with_len = [("content-range", "Bytes 5-9/10"), ("content-length", "5")];
        check((5, None), &with_len, Some((Some(5), Some(5), Some(10))));
        let chunked = [("content-range", "bytes 5-9/10"), ("transfer-encoding", "chunked")];
        check((5, None), &chunked, Some((Some(5), Some(5), Some(10))));
        check((5, None), &[("content-range", "bytes 5-9/10"), ("content-length", "4")], None);
        check((5, None), &[], None);
        check((5, None), &[("content-type", "multipart/byteranges; boundary=x")], None);
        check((5, None), &range("bytes 4-9/10"), None);
        check((5, None), &range("bytes 0-9/10"), None);
        check((5, Some(8)), &range("bytes 5-8/10"), None);
        check((5, None), &range("bytes 5-10/10"), None);
        check((5, None), &range("bytes 5-4/10"), None);
        check((5, None), &range("bytes */10"), None);
        check((5, None), &range("items 5-9/10"), None);
        check((5, None), &range("bytes 5-18446744073709551615/*"), None);
        check((5, None), &range("bytes +5-9/10"), None);
    }

    #[test]
    fn each_status_has_its_meaning() {
        let check = |status: u16, expected: Result<Answer, &str>| match (
            answer(status, Version::HTTP_11, &[], None),
            expected,
        ) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{status}"),
            (Err(reason), Err(why)) => assert!(reason.contains(why), "{status}: {reason}"),
            (got, expected) => panic!("{status}: {got:?}, not {expected:?}"),
        };
        check(101, Err("101"));
        check(202, Err("202"));
        check(204, Err("204"));
        check(206, Err("the whole"));
        check(300, Ok(Answer::Status(300, None)));
        check(302, Err("Location"));
        check(304, Err("conditional"));
        check(404, Ok(Answer::Absent));
        check(410, Ok(Answer::Absent));
        check(401, Ok(Answer::Status(401, None)));
        check(416, Ok(Answer::Status(416, None)));
        check(500, Ok(Answer::Status(500, None)));
    }

    #[test]
    fn a_redirect_is_known_by_status_and_location() {
        for status in [301, 302, 303, 307, 308] {
            let got = answer(status, Version::HTTP_11, &[("location", "/x")], None);
            assert_eq!(got, Ok(Answer::Elsewhere(b"/x".to_vec())));
        }
    }

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        let check = |value: &str, expected: Option<u64>| {
            let got = answer(503, Version::HTTP_11, &[("retry-after", value)], None);
            assert_eq!(got, Ok(Answer::Status(503, expected.map(Duration::from_secs))), "{value}");
        };
        check("7", Some(7));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:49:27 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }

    #[test]
    fn only_sound_fields_are_kept() {
        let check = |fields: &[(&str, &str)], etag: Option<&str>, encoding: Option<&str>| {
            let Ok(Answer::Found(head, _)) = answer(200, Version::HTTP_11, fields, None) else {
                panic!("{fields:?}");
            };
            assert_eq!(head.validators.etag.as_deref(), etag, "{fields:?}");
            assert_eq!(head.content_encoding.as_deref(), encoding, "{fields:?}");
        };
        check(&[("etag", "\"a-1\""), ("content-encoding", "gzip")], Some("\"a-1\""), Some("gzip"));
        check(&[("etag", "W/\"a\""), ("content-encoding", "Identity")], Some("W/\"a\""), None);
        check(&[("etag", "abc")], None, None);
        check(&[("etag", "\"")], None, None);
        check(&[("etag", "\"a\"b\"")], None, None);
        check(&[("etag", "\"a\""), ("etag", "\"b\"")], None, None);
        check(&[("etag", &format!("\"{}\"", "a".repeat(2000)))], None, None);
    }
}
