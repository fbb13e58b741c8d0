//! Which answers of an upstream are about the same version of a file.

use std::time::{Duration, SystemTime};

use crate::artifact::Validators;

/// How long before an answer a file must have changed last for its date to name a version:
/// dates count seconds, and clocks differ.
const DATE_IS_STRONG_AFTER: Duration = Duration::from_secs(60);

/// What names a version in `If-Range`: a strong ETag, else a date that is old enough to be one
/// (RFC 9110, sections 13.1.5 and 8.8.2.2). `answered_at` is when upstream sent it.
pub(super) fn version_of(validators: &Validators, answered_at: SystemTime) -> Option<&str> {
    let is_strong = |date: &&str| {
        let changed_at = httpdate::parse_http_date(date).ok();
        changed_at
            .and_then(|at| answered_at.duration_since(at).ok())
            .is_some_and(|age| age >= DATE_IS_STRONG_AFTER)
    };
    let date = || validators.last_modified.as_deref().filter(is_strong);
    validators.strong_etag().or_else(date)
}

/// Whether a part that answers `If-Range` belongs to the version whose head was seen. It must
/// repeat an ETag, and may leave a date out (RFC 9110, section 15.3.7).
pub(super) fn is_same_version(part: &Validators, whole: &Validators) -> bool {
    match whole.strong_etag() {
        Some(etag) => part.strong_etag() == Some(etag),
        None => {
            (part.etag.is_none() || part.etag == whole.etag)
                && (part.last_modified.is_none() || part.last_modified == whole.last_modified)
        }
    }
}

/// Whether a 304 is about the stored version: one that names another confirms nothing
/// (RFC 9111, section 4.3.4). An ETag decides, and where one side has none, the date.
pub(super) fn confirms(told: &Validators, stored: &Validators) -> bool {
    match (&told.etag, &stored.etag) {
        (Some(told), Some(stored)) => opaque(told) == opaque(stored),
        (Some(_), None) => {
            told.last_modified.is_some() && told.last_modified == stored.last_modified
        }
        (None, _) => told.last_modified.is_none() || told.last_modified == stored.last_modified,
    }
}

/// An ETag without its mark of weakness: a 304 compares so (RFC 9110, section 13.1.2).
fn opaque(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag)
}
