//! `GET /api/{remote}/{path}`: from a found artifact to its reply.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::conditional::{Conditions, Verdict};
use super::multipart::{Boundary, multipart};
use super::range::{self, Resolved};
use super::reply::{Problem, describe, tell_source};
use super::wire::{Reply, RequestHead};
use crate::artifact::ArtifactPath;
use crate::body::{Body, BodyError};
use crate::cache::{
    Boarding, Bytes, Cache, CacheError, Coming, FetchError, Found, OpenError, Representation,
    Sought, Target,
};
use crate::ops::Answered;
use crate::policy::media_type;
use crate::seats::Seats;
use crate::waiting::Awaited;

/// How often one request opens an artifact that changes under its hands.
const OPENS_MAX: usize = 4;

/// The search for an allowed path, by GET or HEAD, and how far it has come.
pub(super) struct Search {
    cache: Arc<Cache>,
    target: Arc<Target>,
    path: ArtifactPath,
    at: At,
    opens_left: usize,
    // Whether upstream has refused to give a range of a file that is being fetched.
    has_no_parts: bool,
    far_ranges: Seats,
}

enum At {
    /// Nothing is known yet.
    Start,
    /// Its flight has no head yet.
    Boarding(Boarding),
    /// It is found.
    Found(Found),
    /// It was found, and could not be opened.
    Unopened(OpenError),
}

/// What a search has come to.
pub(super) enum Progress {
    /// It can be answered.
    Answered(Reply, Answered),
    /// It goes on when that has come.
    Waits(Search, Box<dyn Awaited>),
}

impl Search {
    /// A search that has not begun.
    pub(super) fn new(
        cache: Arc<Cache>,
        target: Arc<Target>,
        path: ArtifactPath,
        far_ranges: Seats,
    ) -> Self {
        let (at, has_no_parts) = (At::Start, false);
        Self { cache, target, path, at, opens_left: OPENS_MAX, has_no_parts, far_ranges }
    }

    /// Goes on until it is answered, or waits for a flight that takes longer than `patience`.
    pub(super) fn advance(mut self, head: &RequestHead, patience: Duration) -> Progress {
        while self.opens_left > 0 {
            let found = match self.find(patience) {
                Ok(Sought::Found(found)) => found,
                Ok(Sought::Boarding(boarding)) => {
                    let awaited = boarding.awaited();
                    return self.waits(At::Boarding(boarding), awaited);
                }
                Err(error) => return self.failure(&error),
            };
            let found = match needs_landing(head, &found) {
                false => found,
                true => match found.bytes.lands_later(patience) {
                    Some(awaited) => return self.waits(At::Found(found), awaited),
                    None => match self.cache.settle(&self.target, found) {
                        Ok(settled) => settled,
                        Err(error) => return self.failure(&error),
                    },
                },
            };
            let asked = Asked::of(head, &found.met.about);
            let ahead = self.open_ahead(&asked, &found.bytes);
            if ahead.is_none()
                && let Some(offset) = asked.awaits()
                && let Some(awaited) = found.bytes.comes_later(offset, patience)
            {
                return self.waits(At::Found(found), awaited);
            }
            let answered = Answered::Cache(found.met.outcome);
            match asked.reply(&self.cache, &self.target, &self.path, found, ahead) {
                Ok(reply) => return Progress::Answered(reply, answered),
                Err(why) => {
                    self.at = At::Unopened(why);
                    self.opens_left -= 1;
                }
            }
        }
        self.failure(&CacheError::Unsettled)
    }

    fn failure(&self, error: &CacheError) -> Progress {
        let reply = Problem::from(error).reply();
        let (reply, answered) = match error {
            CacheError::Folder => {
                (reply.header("Location", folder_beside(&self.path)), Answered::Absent)
            }
            CacheError::Absent | CacheError::Offline => (reply, Answered::Absent),
            CacheError::Fetch(why) if matches!(**why, FetchError::Overloaded) => {
                (reply, Answered::Shed)
            }
            _ => (reply, Answered::Failed),
        };
        Progress::Answered(reply, answered)
    }

    fn find(&mut self, patience: Duration) -> Result<Sought, CacheError> {
        let Self { cache, target, path, .. } = self;
        match std::mem::replace(&mut self.at, At::Start) {
            At::Start => cache.seek(target, path, patience),
            At::Boarding(boarding) => cache.board(target, boarding, patience),
            At::Found(found) => Ok(Sought::Found(found)),
            At::Unopened(why) => cache.recover(target, path, why, patience),
        }
    }

    /// A range that the file's fetch will not reach soon, from upstream. That holds this worker, so
    /// where too many do, the range waits for the fetch.
    fn open_ahead(&mut self, asked: &Asked, bytes: &Bytes) -> Option<Body> {
        let Asked::One(range, _) = asked else { return None };
        if self.has_no_parts || !bytes.is_far_ahead(range.start) {
            return None;
        }
        let seat = self.far_ranges.take()?;
        let body = self.cache.open_ahead(&self.target, bytes, range);
        self.has_no_parts = body.is_none();
        body.map(|body| body.keeping(seat))
    }

    fn waits(self, at: At, awaited: Coming) -> Progress {
        Progress::Waits(Self { at, ..self }, Box::new(awaited))
    }
}

/// A client that asks for the digest, or for a range of something whose length nobody knows
/// yet, gets its answer once the fetch has ended. HEAD has no ranges (RFC 9110, section 14.2).
fn needs_landing(head: &RequestHead, found: &Found) -> bool {
    let wants_range = head.method == "GET" && head.header("range").is_some();
    wants_digest(head) || (found.met.about.len.is_none() && wants_range)
}

/// Whether `Want-Repr-Digest` (RFC 9530, section 4) asks for SHA-256 with any preference but 0.
fn wants_digest(head: &RequestHead) -> bool {
    let wanted = head.header("want-repr-digest").unwrap_or_default();
    wanted.split(',').any(|member| {
        let (algorithm, preference) = member.split_once('=').unwrap_or((member, "1"));
        algorithm.trim().eq_ignore_ascii_case("sha-256") && preference.trim() != "0"
    })
}

/// Where a folder is for who asked for it as for a file: a relative reference (RFC 3986, section
/// 4.2), which is right behind a reverse proxy too that serves us below a path of its own.
fn folder_beside(path: &ArtifactPath) -> String {
    let sent = path.upstream_form();
    let (path, query) = sent.split_once('?').map_or((sent.as_str(), None), |(p, q)| (p, Some(q)));
    let name = path.rsplit('/').next().unwrap_or(path);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    // A name with a colon would be taken for a scheme.
    format!("./{name}/{query}")
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

    /// The byte of the artifact that must be there before the reply begins, so that a failure
    /// before it can be answered: its first; of several ranges, which can't be waited for one by
    /// one, the last.
    fn awaits(&self) -> Option<u64> {
        match self {
            Self::NotModified | Self::PreconditionFailed | Self::Unsatisfiable(_) | Self::Head => {
                None
            }
            Self::Whole => Some(0),
            Self::One(range, _) => Some(range.start),
            Self::Several(ranges, _) => ranges.iter().map(|range| range.end - 1).max(),
        }
    }

    fn reply(
        self,
        cache: &Arc<Cache>,
        target: &Arc<Target>,
        path: &ArtifactPath,
        found: Found,
        ahead: Option<Body>,
    ) -> Result<Reply, OpenError> {
        let Found { met, bytes } = found;
        let len = met.about.len;
        let kind = media_type::of(path, met.about.content_type.as_deref());
        let typed = |reply: Reply| reply.header("Content-Type", kind.clone());
        let open = |bytes: Bytes, range| cache.open(target, bytes, len, range);
        let reply = match self {
            Self::NotModified => Reply::new(304, Body::unsent(None)),
            Self::PreconditionFailed => {
                let detail =
                    "the artifact is not the one that If-Match or If-Unmodified-Since names";
                return Ok(tell_source(Problem::new(412, detail).reply(), &met));
            }
            Self::Unsatisfiable(len) => {
                let problem = Problem::new(416, format!("the artifact has {len} bytes"));
                let reply = problem.reply().header("Content-Range", range::unsatisfied(len));
                return Ok(tell_source(reply, &met));
            }
            Self::Head => typed(Reply::new(200, Body::unsent(len))),
            Self::Whole => typed(Reply::new(200, open(bytes, None)?)),
            Self::One(range, len) => {
                let content_range = range::content_range(&range, len);
                let body = match ahead {
                    Some(body) => body,
                    None => open(bytes, Some(range))?,
                };
                typed(Reply::new(206, body)).header("Content-Range", content_range)
            }
            Self::Several(ranges, len) => {
                // What can be had only once is given whole.
                let Some(again) = bytes.again() else {
                    let whole = typed(Reply::new(200, open(bytes, None)?));
                    return Ok(describe(whole, target, path, &met));
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
        Ok(describe(reply, target, path, &met))
    }
}
