//! Which answers of an upstream are about the same version of a file.

use std::time::{Duration, SystemTime};

use crate::artifact::{ArtifactPath, Entry, Validators, weakly_equal};
use crate::upstream::{
    Part, Upstream, UpstreamBody, UpstreamError, UpstreamReply, UpstreamRequest,
};

/// How long before an answer a file must have changed last for its date to name a version:
/// dates count seconds, and clocks differ.
const DATE_IS_STRONG_AFTER: Duration = Duration::from_secs(60);
/// The same for a date in `If-Modified-Since`, as far as upstream's clock and ours agree.
const DATE_IS_OVER_AFTER: Duration = Duration::from_secs(1);

/// Asks upstream for the bytes from `from` to `to` of the version that it gave `validators` of at
/// `answered_at`; `fits` judges the whole file's length, where the part tells it. `None` where
/// there is no such part, or nothing names the version.
///
/// # Errors
/// Upstream's.
pub(super) fn part_of(
    upstream: &dyn Upstream,
    path: &ArtifactPath,
    (validators, answered_at): (&Validators, SystemTime),
    (from, to): (u64, Option<u64>),
    fits: impl FnOnce(Option<u64>) -> bool,
) -> Result<Option<Box<dyn UpstreamBody>>, UpstreamError> {
    let Some(of) = version_of(validators, answered_at) else { return Ok(None) };
    let part = Some(Part { from, to, of: Some(of) });
    Ok(match upstream.get(&UpstreamRequest { path, unless: None, part })? {
        UpstreamReply::Found(head, body) => {
            let is_it = head.part_from == Some(from)
                && fits(head.full_len)
                && is_same_version(&head.validators, validators);
            is_it.then_some(body)
        }
        UpstreamReply::NotModified(_) | UpstreamReply::Absent | UpstreamReply::Folder => None,
    })
}

/// What names a version in `If-Range`: a strong ETag, else a date that is old enough to be one
/// (RFC 9110, sections 13.1.5 and 8.8.2.2). `answered_at` is when upstream sent it.
fn version_of(validators: &Validators, answered_at: SystemTime) -> Option<&str> {
    let date = || {
        let date = validators.last_modified.as_deref();
        date.filter(|date| is_older(date, answered_at, DATE_IS_STRONG_AFTER))
    };
    validators.strong_etag().or_else(date)
}

/// What to ask upstream with whether the stored copy is still right; `None` where that could not
/// tell. A file may change twice within the second that its date names, so a date counts only
/// if the second was over when upstream answered, and so does an ETag that is made of it.
pub(super) fn condition_of(stored: &Entry) -> Option<&Validators> {
    let validators = &stored.validators;
    let date = validators.last_modified.as_deref();
    let is_over = date.is_some_and(|date| is_older(date, stored.stored_at, DATE_IS_OVER_AFTER));
    let has_etag = validators.etag.as_deref().is_some_and(|etag| !is_made_of(etag, date));
    (is_over || has_etag).then_some(validators)
}

/// Whether an ETag is nginx's: the second of the last change and the length, in hexadecimal.
fn is_made_of(etag: &str, date: Option<&str>) -> bool {
    let changed_at = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let second = changed_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    second.is_some_and(|second| {
        etag.trim_start_matches("W/").starts_with(&format!("\"{:x}-", second.as_secs()))
    })
}

fn is_older(date: &str, than: SystemTime, by: Duration) -> bool {
    let changed_at = httpdate::parse_http_date(date).ok();
    changed_at.and_then(|at| than.duration_since(at).ok()).is_some_and(|age| age >= by)
}

/// Whether a part that answers `If-Range` belongs to the version whose head was seen. It must
/// repeat an ETag, and may leave a date out (RFC 9110, section 15.3.7).
fn is_same_version(part: &Validators, whole: &Validators) -> bool {
    match whole.strong_etag() {
        Some(etag) => part.strong_etag() == Some(etag),
        None => {
            (part.etag.is_none() || part.etag == whole.etag)
                && (part.last_modified.is_none() || part.last_modified == whole.last_modified)
        }
    }
}

/// Whether a 304 is about the stored version: one that names another confirms nothing
/// (RFC 9111, section 4.3.4). An ETag decides, compared as `If-None-Match` is, and where one side
/// has none, the date.
pub(super) fn confirms(told: &Validators, stored: &Validators) -> bool {
    match (&told.etag, &stored.etag) {
        (Some(told), Some(stored)) => weakly_equal(told, stored),
        (Some(_), None) => {
            told.last_modified.is_some() && told.last_modified == stored.last_modified
        }
        (None, _) => told.last_modified.is_none() || told.last_modified == stored.last_modified,
    }
}
