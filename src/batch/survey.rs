//! Asking upstream what it has.
//!
//! How depends on what the remote is: a package repository has indexes (`packages`, `debian`), a
//! host of releases an API (`releases`) or an `index.json`, and everything else may list its folders in
//! HTML (`folders`). Where a survey begins is the plan's to say ([`Places`]).
//!
//! A listing that can't be had costs what it would have named and nothing else: the survey goes
//! on with the others and tells what it has left out. It fails only where nothing was to be
//! found anywhere.
//!
//! Everything is bounded: requests, bytes, entries, depth, time. A bound that ends a survey
//! early is told with what was found.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use url::Url;

use super::ARTIFACTS_MAX;
use super::places::Places;
use super::plan::Source;
use crate::artifact::{ArtifactPath, BadPath};
use crate::chain::chain;
use crate::config::{Kind, Origin};
use crate::discovery::{Listed, ListingError};
use crate::upstream::{Upstream, UpstreamError};

mod ask;
mod debian;
mod folders;
mod left_out;
mod packages;
mod releases;

use left_out::LeftOut;

/// Questions of one survey.
const REQUESTS_MAX: usize = 5_000;
/// Entries of all listings together.
const ENTRIES_MAX: u64 = 5_000_000;
/// Folders below each other.
const DEPTH_MAX: usize = 16;
/// Time of one survey.
const TIME_MAX: Duration = Duration::from_secs(900);

/// What a survey has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) listed: Vec<Listed>,
    /// How many matched the pattern, but none of the remote's.
    pub(super) refused: usize,
    /// What was left out, and why.
    pub(super) incomplete: Option<String>,
}

/// Why there is nothing to survey.
#[derive(Debug, thiserror::Error)]
pub(super) enum SurveyError {
    /// Upstream did not answer.
    #[error("cannot look at {what}")]
    Upstream { what: String, source: UpstreamError },
    /// A listing can't be read.
    #[error("the listing {what} is of no use")]
    Listing { what: String, source: ListingError },
    /// Upstream offers nothing to look at.
    #[error("{0}")]
    NotOffered(String),
    /// A bound was reached, or the batch was cancelled: what was found until then counts.
    #[error("it ended early")]
    Ended,
}

/// A survey under way.
pub(super) struct Survey<'a> {
    source: &'a Source,
    upstream: Option<&'a dyn Upstream>,
    limit: usize,
    /// Whether an artifact counts against the limit.
    counts: &'a dyn Fn(&ArtifactPath) -> bool,
    counted: usize,
    is_cancelled: &'a Arc<AtomicBool>,
    deadline: Instant,
    requests: usize,
    entries: u64,
    known: HashSet<ArtifactPath>,
    /// Folders whose listing was looked at, or will be: each is looked at once.
    seen: HashSet<String>,
    /// Folders whose index was read: nothing below one needs a look.
    repositories: HashSet<String>,
    /// The folders above `dists/` of which a suite was read.
    deb_roots: HashSet<String>,
    left_out: LeftOut,
    /// The first index in whose place a web page came: there is none, or a portal stands before it.
    page: Option<String>,
    has_ended: bool,
    found: Found,
}

impl<'a> Survey<'a> {
    /// A survey that ends with the artifact which is the `limit`th of those that count.
    pub(super) fn new(
        source: &'a Source,
        limit: usize,
        counts: &'a dyn Fn(&ArtifactPath) -> bool,
        is_cancelled: &'a Arc<AtomicBool>,
    ) -> Self {
        Self {
            source,
            upstream: source.target.upstream.as_deref(),
            limit: limit.min(ARTIFACTS_MAX),
            counts,
            counted: 0,
            is_cancelled,
            deadline: Instant::now() + TIME_MAX,
            requests: 0,
            entries: 0,
            known: HashSet::new(),
            seen: HashSet::new(),
            repositories: HashSet::new(),
            deb_roots: HashSet::new(),
            left_out: LeftOut::default(),
            page: None,
            has_ended: false,
            found: Found::default(),
        }
    }

    /// Asks and gives what matches both the pattern and the remote's own.
    ///
    /// # Errors
    /// [`SurveyError`] where no place could be looked at and nothing was found.
    pub(super) fn run(mut self) -> Result<Found, SurveyError> {
        let source = self.source;
        let looked = match &source.places {
            Places::Folders { guesses, folders } => self.look_in_folders(guesses, folders),
            Places::Repositories { repositories, are_all } => {
                if !are_all {
                    let why = "not every alternative of the patterns begins with owner/repository/";
                    self.leave_out(why.to_owned());
                }
                let look = |survey: &mut Self, at: &(String, String)| survey.releases(&at.0, &at.1);
                self.look_at_all(repositories, look)
            }
        };
        let has_nothing = self.found.listed.is_empty() && self.found.refused == 0;
        match looked {
            Err(error) if has_nothing => return Err(error),
            Err(error) => self.leave_out(chain(&error)),
            Ok(()) => {}
        }
        if has_nothing && self.entries == 0 && self.requests > 0 {
            let nothing = "nothing that was looked at lists a file: is this the right folder, and no portal in between?";
            let why = self.page.take().unwrap_or_else(|| nothing.to_owned());
            self.leave_out(why);
        }
        self.found.incomplete = self.left_out.tell();
        Ok(self.found)
    }

    /// Guesses go first, and one that is wrong is no matter, since what is there is found from
    /// the folders. Where those can't be looked at, the guesses have to do, which is told.
    fn look_in_folders(
        &mut self,
        guesses: &[String],
        folders: &[String],
    ) -> Result<(), SurveyError> {
        let (mut right, mut wrong) = (Vec::new(), None);
        for guess in guesses {
            match self.look(guess) {
                Ok(()) => right.push(guess.as_str()),
                Err(SurveyError::Ended) => return Ok(()),
                Err(error) => drop(wrong.get_or_insert(error)),
            }
        }
        let looked = self.look_at_all(folders, |survey, folder| survey.look(folder));
        match looked {
            Err(error) if !right.is_empty() => {
                let places = right.join(", ");
                self.leave_out(format!(
                    "only {places} was looked at, though a pattern without ^ at its beginning may match elsewhere: begin it with ^ ({})",
                    chain(&error)
                ));
                Ok(())
            }
            Err(error) => Err(wrong.unwrap_or(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Looks at one place after the other; those that fail are told.
    ///
    /// # Errors
    /// The first failure, where every place failed.
    fn look_at_all<T>(
        &mut self,
        places: &[T],
        look: impl Fn(&mut Self, &T) -> Result<(), SurveyError>,
    ) -> Result<(), SurveyError> {
        let mut failed = Vec::new();
        for place in places {
            match look(self, place) {
                Ok(()) => {}
                Err(SurveyError::Ended) => break,
                Err(error) => failed.push(error),
            }
        }
        if failed.len() == places.len() && !failed.is_empty() {
            return Err(failed.swap_remove(0));
        }
        failed.iter().for_each(|error| self.leave_out(chain(error)));
        Ok(())
    }

    fn look(&mut self, folder: &str) -> Result<(), SurveyError> {
        match self.source.target.remote.format.name() {
            "alpine" => self.apk(folder),
            "rpm" => self.rpm(folder),
            "deb" => self.deb(folder),
            _ => self.files(folder),
        }
    }

    fn check_bounds(&mut self) -> Result<(), SurveyError> {
        if Instant::now() >= self.deadline {
            self.end_early(format!("it took more than {} s", TIME_MAX.as_secs()));
        }
        self.has_ended |= self.is_cancelled.load(Ordering::SeqCst);
        if self.has_ended { Err(SurveyError::Ended) } else { Ok(()) }
    }

    fn keep_path(&mut self, path: &ArtifactPath) {
        let _ = self.keep(Listed { path: path.clone(), size: None });
    }

    fn keep(&mut self, listed: Listed) -> ControlFlow<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            self.end_early(format!("more than {ENTRIES_MAX} entries"));
        }
        if self.has_ended {
            return ControlFlow::Break(());
        }
        let remote = &self.source.target.remote;
        let matches = self.source.include.is_match(listed.path.as_str());
        if matches && !remote.patterns.allow(remote.format, &listed.path) {
            self.found.refused += 1;
        } else if matches && self.known.insert(listed.path.clone()) {
            self.counted += usize::from((self.counts)(&listed.path));
            self.found.listed.push(listed);
            self.has_ended = self.counted >= self.limit && self.limit < ARTIFACTS_MAX;
            if self.found.listed.len() >= ARTIFACTS_MAX {
                self.end_early(format!("more than {ARTIFACTS_MAX} artifacts"));
            }
            if self.has_ended {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn end_early(&mut self, bound: String) {
        self.left_out.end(bound);
        self.has_ended = true;
    }

    fn leave_out(&mut self, why: String) {
        self.left_out.add(why);
    }

    /// Goes on without a listing that can't be had, and tells; an end of the survey stays one.
    fn tolerate<T>(&mut self, looked: Result<T, SurveyError>) -> Result<Option<T>, SurveyError> {
        match looked {
            Ok(value) => Ok(Some(value)),
            Err(SurveyError::Ended) => Err(SurveyError::Ended),
            Err(error) => {
                self.leave_out(chain(&error));
                Ok(None)
            }
        }
    }

    fn origin(&self) -> Option<&'a Origin> {
        match &self.source.target.remote.kind {
            Kind::Remote(origin) => Some(origin),
            Kind::Local => None,
        }
    }

    fn bases(&self) -> &'a [Url] {
        self.origin().map_or(&[], |origin| &origin.bases)
    }
}

fn within(folder: &str, name: &str) -> Result<ArtifactPath, SurveyError> {
    let unfit = |why: BadPath| SurveyError::NotOffered(format!("{folder}{name}: {why}"));
    ArtifactPath::from_canonical(format!("{folder}{name}")).map_err(unfit)
}

/// A folder and those above it, up to the root.
fn ancestors(folder: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(folder), |folder| {
        let above = folder.strip_suffix('/')?;
        Some(above.rfind('/').map_or("", |at| &above[..=at]))
    })
}

/// A folder as messages name it.
fn shown(folder: &str) -> &str {
    if folder.is_empty() { "/" } else { folder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_lead_up_to_the_root() {
        let check = |folder: &str, expected: &[&str]| {
            assert_eq!(ancestors(folder).collect::<Vec<_>>(), expected, "{folder}");
        };
        check("", &[""]);
        check("a/", &["a/", ""]);
        check("a/b/", &["a/b/", "a/", ""]);
    }
}
