//! `PUT` and `DELETE /api/{remote}/{path}`: from a request that was let in to its reply.
//!
//! Whatever can be refused from the head alone is refused before the body is read, so that a
//! client that waits for `100 Continue` need not send it.

use std::io::{ErrorKind, Read};
use std::time::SystemTime;

use super::conditional::{Conditions, Verdict};
use super::digests::Announced;
use super::reply::{Problem, json, repr_digest};
use super::wire::{Reply, RequestHead};
use crate::artifact::{ArtifactPath, Entry, Validators};
use crate::body::Body;
use crate::cache::{Cache, ChangeError, Purged, Target, Upload, Uploaded};
use crate::chain::chain;
use crate::staging::{Expect, SealError, SealedFile, StagingError};

/// Stores an upload under an allowed path of a local repository.
pub(super) fn put(
    cache: &Cache,
    target: &Target,
    path: &ArtifactPath,
    head: &RequestHead,
    body: &mut dyn Read,
    body_bytes_max: u64,
) -> Result<Reply, Problem> {
    if !target.remote.is_local() {
        return Err(not_local(target));
    }
    let announced = Announced::of(head)?;
    let expect = Expect { len: length(head)?, checksum: announced.checksum() };
    refuse_by_head(path, head)?;
    let conditions = Conditions::of(head);
    let precondition = |current: Option<&Validators>| holds(&conditions, current);
    if !precondition(cache.current(target, path)?.as_ref()) {
        return Err(ChangeError::Precondition.into());
    }
    let upload = Upload {
        content_type: head.header("content-type"),
        content_encoding: head.header("content-encoding").filter(|coding| coding != "identity"),
        last_modified: httpdate::fmt_http_date(SystemTime::now()),
        precondition: &precondition,
    };
    cache.can_describe(target, path, &upload)?;
    let bytes_max = target.remote.max_bytes.map_or(body_bytes_max, |max| max.min(body_bytes_max));
    let sealed = cache.stage(body, expect, bytes_max)?;
    hold_against(&announced, &sealed)?;
    let uploaded = cache.upload(target, path, &sealed, upload)?;
    Ok(stored(target, path, &uploaded))
}

/// Removes a file of a local repository, or purges a cached one.
pub(super) fn delete(
    cache: &Cache,
    target: &Target,
    path: &ArtifactPath,
    head: &RequestHead,
) -> Result<Reply, Problem> {
    let conditions = Conditions::of(head);
    let precondition = |current: Option<&Validators>| holds(&conditions, current);
    match cache.purge(target, path, &precondition)? {
        Purged::Removed(_) | Purged::Forgotten => Ok(Reply::new(204, Body::unsent(None))),
        Purged::Absent => Err(Problem::new(404, "nothing is stored under this path")),
    }
}

fn not_local(target: &Target) -> Problem {
    let detail = format!(
        "{:?} is cached from an upstream and takes no uploads: only remotes with `type: local` do",
        target.remote.name.as_str()
    );
    Problem::method(detail, &["GET", "HEAD", "DELETE"])
}

/// The announced length; `None` where chunks come. A request with neither is refused: it would
/// store an empty file where somebody forgot to send one.
fn length(head: &RequestHead) -> Result<Option<u64>, Problem> {
    match head.header("content-length") {
        Some(length) => length
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| Problem::new(400, "Content-Length is not a number")),
        None if head.header("transfer-encoding").is_some() => Ok(None),
        None => Err(Problem::new(
            411,
            "an upload needs a Content-Length (0 for an empty file) or Transfer-Encoding: chunked",
        )),
    }
}

fn refuse_by_head(path: &ArtifactPath, head: &RequestHead) -> Result<(), Problem> {
    if path.file_name().is_empty() {
        return Err(Problem::new(400, "a file needs a name: the path ends in a slash"));
    }
    // It would become part of the name, under which nobody would look for the file.
    if path.as_str() != path.without_query() {
        return Err(Problem::new(400, "an upload takes no query: send the path without `?`"));
    }
    // RFC 9110, section 14.5: a part must never be stored as the whole.
    if head.header("content-range").is_some() {
        return Err(Problem::new(
            400,
            "a part of a file can't be uploaded: Content-Range is refused",
        ));
    }
    Ok(())
}

/// RFC 9110, section 13.2.2, for a method that changes: what is not modified must not be.
fn holds(conditions: &Conditions, current: Option<&Validators>) -> bool {
    match current {
        Some(current) => conditions.evaluate(current) == Verdict::Proceed,
        // Nothing stands there: `If-Match: *` fails, and `If-None-Match: *` holds.
        None => conditions.if_match.is_none(),
    }
}

/// Staging checks one checksum; every other one that the client sent is checked here.
fn hold_against(announced: &Announced, sealed: &SealedFile) -> Result<(), Problem> {
    match announced.sha256.iter().find(|digest| **digest != sealed.digest()) {
        None => Ok(()),
        Some(expected) => {
            let (found, expected) =
                (format!("sha256:{}", sealed.digest()), format!("sha256:{expected}"));
            Err(ChangeError::Sealing(SealError::Checksum { found, expected }).into())
        }
    }
}

fn stored(target: &Target, path: &ArtifactPath, uploaded: &Uploaded) -> Reply {
    let (status, entry): (u16, &Entry) = match uploaded {
        Uploaded::Created(entry) | Uploaded::Replaced(entry) => (201, entry),
        Uploaded::Same(entry) => (200, entry),
    };
    let body = serde_json::json!({
        "remote": target.remote.name.as_str(),
        "path": path.as_str(),
        "size": entry.size,
        "sha256": entry.digest.to_string(),
    });
    json(status, &body)
        .header("Location", format!("/api/{}/{}", target.remote.name, path.upstream_form()))
        .header("ETag", format!("\"sha256:{}\"", entry.digest))
        .header("Repr-Digest", repr_digest(entry.digest))
        .header("X-Checksum-Sha256", entry.digest.to_string())
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let detail = chain(&error);
        let status = match &error {
            ChangeError::TooLarge { .. } => 413,
            ChangeError::Indescribable => 414,
            ChangeError::Body { kind: ErrorKind::TimedOut, .. } => 408,
            ChangeError::Body { .. } | ChangeError::Sealing(SealError::Short { .. }) => 400,
            ChangeError::Sealing(SealError::Checksum { .. }) => 422,
            ChangeError::Conflict(_) => {
                let fix =
                    "delete it first, or allow it with `allow_overwrite: true` in remotes.yaml";
                return Self::new(409, format!("{detail}: {fix}"));
            }
            ChangeError::Precondition => 412,
            ChangeError::Staging(StagingError::Full { .. }) => 507,
            ChangeError::Staging(StagingError::TooLong(_)) => 400,
            ChangeError::Store(crate::blob::BlobError::Full(_)) => 507,
            ChangeError::Staging(StagingError::Io { .. }) => 500,
            ChangeError::Busy | ChangeError::Store(_) | ChangeError::Index(_) => {
                tracing::warn!(error = detail, "an artifact was not changed");
                return Self::busy(detail);
            }
        };
        Self::new(status, detail)
    }
}
