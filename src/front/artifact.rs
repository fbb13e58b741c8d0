//! `GET /api/{remote}/{path}`: from a found artifact to its reply.

use std::ops::Range;
use std::sync::Arc;

use super::conditional::{Conditions, Verdict};
use super::multipart::{Boundary, multipart};
use super::range::{self, Resolved};
use super::reply::{Problem, describe};
use super::wire::{Reply, RequestHead};
use crate::artifact::ArtifactPath;
use crate::body::{Body, BodyError};
use crate::cache::{Bytes, Cache, CacheError, Found, OpenError, Representation, Target};
use crate::ops::Answered;
use crate::policy::media_type;

/// How often one request opens an artifact that changes under its hands.
const OPENS_MAX: usize = 4;

/// Answers a GET or HEAD of an allowed path.
pub(super) fn answer(
    cache: &Arc<Cache>,
    target: &Arc<Target>,
    path: &ArtifactPath,
    head: &RequestHead,
) -> (Reply, Answered) {
    let mut found = cache.find(target, path);
    for _ in 0..OPENS_MAX {
        let ready = match found.and_then(|found| settle_if_asked(cache, target, head, found)) {
            Ok(ready) => ready,
            Err(error) => return failure(&error),
        };
        let answered = Answered::Cache(ready.met.outcome);
        match Asked::of(head, &ready.met.about).reply(cache, target, path, ready) {
            Ok(reply) => return (reply, answered),
            Err(why) => found = cache.recover(target, path, why),
        }
    }
    failure(&CacheError::Unsettled)
}

/// A client that asks for the digest, or for a range of something whose length nobody knows
/// yet, gets its answer once the fetch has ended.
fn settle_if_asked(
    cache: &Cache,
    target: &Target,
    head: &RequestHead,
    found: Found,
) -> Result<Found, CacheError> {
    let needs_length = found.met.about.len.is_none() && head.header("range").is_some();
    if wants_digest(head) || needs_length { cache.settle(target, found) } else { Ok(found) }
}

/// Whether `Want-Repr-Digest` (RFC 9530, section 4) asks for SHA-256 with any preference but 0.
fn wants_digest(head: &RequestHead) -> bool {
    let wanted = head.header("want-repr-digest").unwrap_or_default();
    wanted.split(',').any(|member| {
        let (algorithm, preference) = member.split_once('=').unwrap_or((member, "1"));
        algorithm.trim().eq_ignore_ascii_case("sha-256") && preference.trim() != "0"
    })
}

fn failure(error: &CacheError) -> (Reply, Answered) {
    let answered = match error {
        CacheError::Absent | CacheError::Offline => Answered::Absent,
        _ => Answered::Failed,
    };
    (Problem::from(error).reply(), answered)
}

/// What a request asks for, held against what was found.
enum Asked {
    NotModified,
    PreconditionFailed,
    Unsatisfiable(u64),
    Head,
    Whole,
    One(Range<u64>, u64),
    Several(Vec<Range<u64>>, u64),
}

impl Asked {
    /// RFC 9110, section 13.2.2: conditions first, then the range.
    fn of(head: &RequestHead, about: &Representation) -> Self {
        let conditions = Conditions::of(head);
        match conditions.evaluate(&about.validators) {
            Verdict::NotModified => return Self::NotModified,
            Verdict::PreconditionFailed => return Self::PreconditionFailed,
            Verdict::Proceed if head.method == "HEAD" => return Self::Head,
            Verdict::Proceed => {}
        }
        let (Some(wanted), Some(len)) = (head.header("range"), about.len) else {
            return Self::Whole;
        };
        if !conditions.if_range_holds(&about.validators) {
            return Self::Whole;
        }
        match range::resolve(&wanted, len) {
            Resolved::Whole => Self::Whole,
            Resolved::Single(range) => Self::One(range, len),
            Resolved::Several(ranges) => Self::Several(ranges, len),
            Resolved::Unsatisfiable => Self::Unsatisfiable(len),
        }
    }

    fn reply(
        self,
        cache: &Arc<Cache>,
        target: &Arc<Target>,
        path: &ArtifactPath,
        found: Found,
    ) -> Result<Reply, OpenError> {
        let Found { met, bytes } = found;
        let len = met.about.len;
        let kind = media_type::of(path, met.about.content_type.as_deref());
        let typed = |reply: Reply| reply.header("Content-Type", kind.clone());
        let open = |bytes: Bytes, range| cache.open(target, bytes, len, range);
        let reply = match self {
            Self::NotModified => Reply::new(304, Body::unsent(None)),
            Self::PreconditionFailed => Problem::new(
                412,
                "the artifact is not the one that If-Match or If-Unmodified-Since names",
            )
            .reply(),
            Self::Unsatisfiable(len) => {
                let problem = Problem::new(416, format!("the artifact has {len} bytes"));
                problem.reply().header("Content-Range", range::unsatisfied(len))
            }
            Self::Head => typed(Reply::new(200, Body::unsent(len))),
            Self::Whole => typed(Reply::new(200, open(bytes, None)?)),
            Self::One(range, len) => {
                let content_range = range::content_range(&range, Some(len));
                let body = open(bytes, Some(range))?;
                typed(Reply::new(206, body)).header("Content-Range", content_range)
            }
            Self::Several(ranges, len) => {
                // What can be had only once is given whole.
                let Some(again) = bytes.again() else {
                    let whole = typed(Reply::new(200, open(bytes, None)?));
                    return Ok(describe(whole, path, &met));
                };
                let first = open(bytes, Some(ranges[0].clone()))?;
                let (cache, target) = (Arc::clone(cache), Arc::clone(target));
                let open_next = move |range: Range<u64>| {
                    let bytes = again.again().ok_or_else(|| BodyError::Cut("read once".into()))?;
                    cache
                        .open(&target, bytes, Some(len), Some(range))
                        .map_err(|why| BodyError::Cut(why.to_string()))
                };
                let boundary = Boundary::random();
                let body = multipart(&ranges, first, Box::new(open_next), &boundary, &kind, len);
                Reply::new(206, body).header("Content-Type", boundary.content_type())
            }
        };
        Ok(describe(reply, path, &met))
    }
}
