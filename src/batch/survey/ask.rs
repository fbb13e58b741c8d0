//! One question of a survey, and its answer within bounds.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{REQUESTS_MAX, Survey, SurveyError, shown};
use crate::artifact::ArtifactPath;
use crate::chain::chain;
use crate::discovery::ListingError;
use crate::discovery::unpack::{Bounded, Packing, unpack};
use crate::policy::media_type;
use crate::upstream::{
    Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest,
};

/// Bytes of one listing as it comes.
const LISTING_BYTES_MAX: u64 = 1 << 30;
/// How often a wait looks whether the batch was cancelled.
const WAIT_STEP: Duration = Duration::from_millis(100);

/// What came of a question.
pub(super) enum Asked {
    /// The listing.
    Given(UpstreamHead, Box<dyn Read>),
    /// There is none, or upstream means not to give it; the words for it.
    Withheld(String),
}

impl Survey<'_> {
    /// Asks for a listing. One that upstream means not to give is no failure: there may be
    /// others.
    pub(super) fn ask(&mut self, path: &ArtifactPath) -> Result<Asked, SurveyError> {
        let Some(upstream) = self.upstream else {
            return Ok(Asked::Withheld("there is no upstream".to_owned()));
        };
        match self.ask_of(upstream, path) {
            Err(error @ SurveyError::Upstream { source: UpstreamError::Page { .. }, .. }) => {
                self.page.get_or_insert_with(|| chain(&error));
                Ok(Asked::Withheld(chain(&error)))
            }
            Err(SurveyError::Upstream { source, .. }) if !source.is_failure() => {
                Ok(Asked::Withheld(source.to_string()))
            }
            answered => answered,
        }
    }

    /// Asks; everything but "there is none" is an error.
    pub(super) fn ask_of(
        &mut self,
        upstream: &dyn Upstream,
        path: &ArtifactPath,
    ) -> Result<Asked, SurveyError> {
        self.requests += 1;
        if self.requests > REQUESTS_MAX {
            self.end_early(format!("more than {REQUESTS_MAX} listings"));
        }
        self.check_bounds()?;
        match self.get(upstream, path)? {
            Ok(UpstreamReply::Found(head, body)) => {
                let watched = Watched {
                    body,
                    is_cancelled: Arc::clone(self.is_cancelled),
                    deadline: self.deadline,
                };
                let mut body: Box<dyn Read> = Box::new(Bounded::new(watched, LISTING_BYTES_MAX));
                // Some servers compress although they were asked not to.
                if head.content_encoding.as_deref() == Some("gzip") {
                    let plain = self.read(path, unpack(body, Packing::Gzip))?;
                    body = Box::new(AsRead(plain));
                }
                Ok(Asked::Given(head, body))
            }
            Ok(UpstreamReply::Absent | UpstreamReply::NotModified(_)) => {
                Ok(Asked::Withheld("upstream has none (404)".to_owned()))
            }
            Ok(UpstreamReply::Folder) => {
                Ok(Asked::Withheld("upstream has a folder of that name".to_owned()))
            }
            Err(source) => {
                Err(SurveyError::Upstream { what: shown(path.as_str()).to_owned(), source })
            }
        }
    }

    fn get(
        &mut self,
        upstream: &dyn Upstream,
        path: &ArtifactPath,
    ) -> Result<Result<UpstreamReply, UpstreamError>, SurveyError> {
        let mut waits = 0;
        loop {
            let answered = upstream.get(&UpstreamRequest { path, unless: None, part: None });
            let pause = answered.as_ref().err().and_then(|error| error.pause(waits));
            let Some(pause) = pause else { return Ok(answered) };
            let end = Instant::now() + pause;
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                self.check_bounds()?;
                std::thread::sleep(WAIT_STEP.min(left));
            }
            waits += 1;
        }
    }

    /// Adds the listing's name to an error; one that a bound caused is an early end.
    pub(super) fn read<T>(
        &mut self,
        path: &ArtifactPath,
        read: Result<T, ListingError>,
    ) -> Result<T, SurveyError> {
        self.check_bounds()?;
        let what = shown(path.as_str()).to_owned();
        read.map_err(|source| SurveyError::Listing { what, source })
    }
}

/// A body that ends with its survey.
struct Watched {
    body: Box<dyn UpstreamBody>,
    is_cancelled: Arc<AtomicBool>,
    deadline: Instant,
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_cancelled.load(Ordering::SeqCst) || Instant::now() >= self.deadline {
            return Err(io::Error::other("the survey has ended"));
        }
        self.body.read(buf)
    }
}

struct AsRead(Box<dyn BufRead>);

impl Read for AsRead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

/// Whether an answer says that it is HTML.
pub(super) fn is_html(head: &UpstreamHead) -> bool {
    head.content_type.as_deref().is_some_and(media_type::is_html)
}
