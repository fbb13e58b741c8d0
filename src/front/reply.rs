//! Replies: what a client is told, and the one place where a failure becomes a status.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::wire::Reply;
use crate::artifact::{ArtifactPath, BadPath, Digest};
use crate::body::Body;
use crate::cache::{CacheError, FetchError, Met, Outcome, Target};
use crate::staging::StagingError;
use crate::upstream::UpstreamError;

/// `Cache-Control` of what is true for this moment only: errors, states, lists.
pub(super) const NO_STORE: &str = "no-store";
/// What `Retry-After` says where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A refusal or a failure on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The status code.
    pub(super) status: u16,
    /// What happened and what helps, for a person.
    pub(super) detail: String,
    /// When to try again.
    pub(super) retry_after: Option<Duration>,
    /// The methods that are possible there, where the one that was used is not.
    pub(super) allowed: Option<&'static [&'static str]>,
}

impl Problem {
    /// A problem without a time to try again.
    pub(super) fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None, allowed: None }
    }

    /// The method is not possible there.
    pub(super) fn method(detail: String, allowed: &'static [&'static str]) -> Self {
        Self { allowed: Some(allowed), ..Self::new(405, detail) }
    }

    /// It is not possible now: try again soon.
    pub(super) fn busy(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(RETRY_AFTER), ..Self::new(503, detail) }
    }

    /// There is no room.
    pub(super) fn overload() -> Self {
        Self::busy("the server is overloaded: try again")
    }

    /// Too many long answers are being made or sent.
    pub(super) fn too_many_reports() -> Self {
        Self::busy("too many listings and reports are under way: try again")
    }

    /// As a reply.
    pub(super) fn reply(&self) -> Reply {
        let mut reply = json(self.status, &serde_json::json!({ "detail": self.detail }));
        if let Some(allowed) = self.allowed {
            reply = reply.header("Allow", allowed.join(", "));
        }
        match self.retry_after {
            // Rounded up: a client that comes a moment early is refused again.
            Some(after) => reply.header("Retry-After", after.as_secs_f64().ceil().to_string()),
            None => reply,
        }
    }
}

impl From<BadPath> for Problem {
    fn from(why: BadPath) -> Self {
        let status = if why == BadPath::TooLong { 414 } else { 400 };
        Self::new(status, why.to_string())
    }
}

impl From<&CacheError> for Problem {
    fn from(error: &CacheError) -> Self {
        let detail = error.to_string();
        match error {
            CacheError::Absent | CacheError::Offline => Self::new(404, detail),
            CacheError::Folder => Self::new(301, detail),
            // Trying again does not bring them back.
            CacheError::Lost(_) => Self::new(500, detail),
            CacheError::Store(_) | CacheError::Unsettled => Self::busy(detail),
            CacheError::Fetch(why) => {
                let (status, retry_after) = status_of(why);
                Self { retry_after, ..Self::new(status, detail) }
            }
        }
    }
}

/// The status that tells a client how a fetch failed.
fn status_of(why: &FetchError) -> (u16, Option<Duration>) {
    match why {
        FetchError::Upstream(UpstreamError::Blocked { retry_after, .. }) => {
            (503, Some(*retry_after))
        }
        FetchError::Upstream(UpstreamError::Timeout { .. }) | FetchError::Late(_) => (504, None),
        // It leads back to this server.
        FetchError::Upstream(UpstreamError::Status { status: 508, .. }) => (508, None),
        FetchError::Upstream(error) => (502, error.retry_after()),
        FetchError::Cut { is_timeout: true, .. } => (504, None),
        FetchError::Staging(StagingError::Full { .. }) => (507, None),
        FetchError::Staging(StagingError::Io { .. })
        | FetchError::Lost(_)
        | FetchError::Damaged => (500, None),
        FetchError::Staging(StagingError::TooLong(_)) => (502, None),
        FetchError::Cut { .. } | FetchError::Sealing(_) | FetchError::Abandoned => (502, None),
        FetchError::Overloaded | FetchError::Unproven(_) => (503, Some(RETRY_AFTER)),
    }
}

/// A JSON reply: of the moment, so that no cache on the way may keep it.
pub(super) fn json(status: u16, value: &serde_json::Value) -> Reply {
    json_text(status, value.to_string())
}

/// The same, of what is written already.
pub(super) fn json_text(status: u16, mut text: String) -> Reply {
    text.push('\n');
    Reply::new(status, Body::from_bytes(text))
        .header("Content-Type", "application/json")
        .header("Cache-Control", NO_STORE)
}

/// Adds what every reply says that comes of a found artifact, be it an error.
pub(super) fn tell_source(reply: Reply, met: &Met) -> Reply {
    let source = match met.outcome {
        Outcome::Hit | Outcome::Stale | Outcome::Revalidated => "cache",
        Outcome::Miss | Outcome::Collapsed | Outcome::Pass => "remote",
    };
    let reply = reply
        .header("X-Artifact-Source", source)
        .header("Cache-Status", cache_status(met))
        .header("Accept-Ranges", "bytes");
    match source {
        "cache" => reply.header("Age", met.about.age.as_secs().to_string()),
        _ => reply,
    }
}

/// Adds what a reply says of an artifact that it gives, in part (RFC 9110, section 15.3.7), or
/// that the client has already (15.4.5). Of an error it would say that the error is it.
pub(super) fn describe(reply: Reply, target: &Target, path: &ArtifactPath, met: &Met) -> Reply {
    let about = &met.about;
    let mut reply = tell_source(reply, met);
    if !target.is_lasting(path) {
        // Caches between here and the client would guess a lifetime from Last-Modified (RFC 9111,
        // section 4.2.2), and give index files together that do not fit.
        reply = reply.header("Cache-Control", "no-cache");
    }
    if let Some(digest) = about.digest {
        reply = reply
            .header("Repr-Digest", repr_digest(digest))
            .header("X-Checksum-Sha256", digest.to_string());
    }
    if let Some(etag) = &about.validators.etag {
        reply = reply.header("ETag", etag.clone());
    }
    if let Some(last_modified) = &about.validators.last_modified {
        reply = reply.header("Last-Modified", last_modified.clone());
    }
    if let Some(encoding) = &about.content_encoding {
        reply = reply.header("Content-Encoding", encoding.clone());
    }
    match path.file_name() {
        "" => reply,
        name => reply.header("Content-Disposition", content_disposition(name)),
    }
}

/// RFC 9211. A stale copy has a negative ttl.
fn cache_status(met: &Met) -> Cow<'static, str> {
    if met.outcome == Outcome::Hit && met.ttl_s.is_none() {
        return "artifactapi; hit".into();
    }
    let ttl = met.ttl_s.map(|ttl| format!("; ttl={ttl}")).unwrap_or_default();
    let stored = if met.is_stored { "; stored" } else { "" };
    let why = if met.is_refresh { "stale; fwd-status=200" } else { "uri-miss" };
    let text = match met.outcome {
        Outcome::Hit | Outcome::Stale => format!("artifactapi; hit{ttl}"),
        Outcome::Revalidated => format!("artifactapi; fwd=stale; fwd-status=304{ttl}"),
        Outcome::Miss => format!("artifactapi; fwd={why}{stored}"),
        Outcome::Collapsed => format!("artifactapi; fwd={why}{stored}; collapsed"),
        Outcome::Pass => "artifactapi; fwd=bypass".to_owned(),
    };
    text.into()
}

/// RFC 9530, section 3.
pub(super) fn repr_digest(digest: Digest) -> String {
    format!("sha-256=:{}:", BASE64.encode(digest.0))
}

/// RFC 6266: a quoted name for every client, and the exact one (RFC 8187) where they differ.
fn content_disposition(name: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii() && !c.is_ascii_control() && c != '"' && c != '\\' && c != '%';
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    if plain == name {
        return format!("attachment; filename=\"{plain}\"");
    }
    let exact = percent_encoding::utf8_percent_encode(name, EXTENDED_VALUE);
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

/// All but the `attr-char` of RFC 8187.
const EXTENDED_VALUE: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Representation;
    use std::sync::Arc;

    #[test]
    fn failures_become_their_statuses() {
        let host = || "upstream.example.org".to_owned();
        let check = |why: FetchError, status: u16, retry_after: Option<u64>| {
            let problem = Problem::from(&CacheError::Fetch(Arc::new(why)));
            let after = retry_after.map(Duration::from_secs);
            assert_eq!((problem.status, problem.retry_after), (status, after), "{problem:?}");
        };
        let after = |seconds| Duration::from_secs(seconds);
        check(UpstreamError::Connect { host: host(), reason: "refused".into() }.into(), 502, None);
        check(
            UpstreamError::Timeout { host: host(), during: "connecting", after: after(1) }.into(),
            504,
            None,
        );
        check(
            UpstreamError::Status {
                host: host(),
                status: 429,
                retry_after: Some(after(7)),
                said: None,
            }
            .into(),
            502,
            Some(7),
        );
        check(UpstreamError::Blocked { host: host(), retry_after: after(9) }.into(), 503, Some(9));
        check(FetchError::Overloaded, 503, Some(1));
        check(FetchError::Late(after(1)), 504, None);
        check(StagingError::Full { wanted: 1, reserved: 1, bytes_max: 1 }.into(), 507, None);
        let cut = |is_timeout| FetchError::Cut { written: 1, reason: String::new(), is_timeout };
        check(cut(true), 504, None);
        check(cut(false), 502, None);
        assert_eq!(Problem::from(&CacheError::Absent).status, 404);
        assert_eq!(Problem::from(&CacheError::Offline).status, 404);
    }

    #[test]
    fn a_cache_status_says_why_upstream_was_asked() {
        let check = |outcome, is_refresh, is_stored, ttl_s, expected: &str| {
            let about = Representation::default();
            let met = Met { outcome, about, ttl_s, is_stored, is_refresh };
            assert_eq!(cache_status(&met), format!("artifactapi; {expected}"));
        };
        check(Outcome::Hit, false, true, None, "hit");
        check(Outcome::Stale, false, true, Some(-1), "hit; ttl=-1");
        check(Outcome::Revalidated, false, true, Some(9), "fwd=stale; fwd-status=304; ttl=9");
        check(Outcome::Miss, false, true, None, "fwd=uri-miss; stored");
        check(Outcome::Miss, true, true, None, "fwd=stale; fwd-status=200; stored");
        check(Outcome::Miss, true, false, None, "fwd=stale; fwd-status=200");
        check(Outcome::Collapsed, false, true, None, "fwd=uri-miss; stored; collapsed");
        check(Outcome::Collapsed, true, true, None, "fwd=stale; fwd-status=200; stored; collapsed");
        check(Outcome::Pass, false, false, None, "fwd=bypass");
    }

    #[test]
    fn a_retry_after_is_rounded_up() {
        let problem =
            Problem { retry_after: Some(Duration::from_millis(1200)), ..Problem::overload() };
        assert!(problem.reply().headers().contains(&("Retry-After", "2".into())));
    }

    #[test]
    fn names_survive_the_content_disposition() {
        let check = |name, value| assert_eq!(content_disposition(name), value);
        check("a-1.2.deb", "attachment; filename=\"a-1.2.deb\"");
        check("a\"b", "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b");
        check("é%41", "attachment; filename=\"__41\"; filename*=UTF-8''%C3%A9%2541");
    }
}
