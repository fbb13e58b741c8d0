//! Asking upstream what it has.
//!
//! How depends on what the remote is: a package repository has indexes, a host of releases an
//! API or an `index.json`, and everything else may list its folders in HTML. Where a survey
//! begins is told by the literal beginning of the pattern, or else by those of the remote's own
//! include patterns.
//!
//! Everything is bounded: requests, bytes, entries, depth, time. A bound that ends a survey
//! early is told with what was found.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use url::Url;

use super::ARTIFACTS_MAX;
use super::plan::Source;
use crate::artifact::{ArtifactPath, BadPath};
use crate::config::{Kind, Origin};
use crate::discovery::links::{Link, of_listing};
use crate::discovery::unpack::{Bounded, Packing, unpack};
use crate::discovery::{Listed, ListingError, apk, deb, github, hashicorp, html, prefix, rpm};
use crate::upstream::{
    Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest,
};

/// Questions of one survey.
const REQUESTS_MAX: usize = 5_000;
/// Entries of all listings together.
const ENTRIES_MAX: u64 = 5_000_000;
/// Folders below each other.
const DEPTH_MAX: usize = 16;
/// Time of one survey.
const TIME_MAX: Duration = Duration::from_secs(900);
/// Bytes of one listing as it comes.
const LISTING_BYTES_MAX: u64 = 1 << 30;
/// Entries of one HTML listing, which are in memory at once.
const PAGE_ENTRIES_MAX: usize = 100_000;

/// What a survey has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) listed: Vec<Listed>,
    /// How many matched the pattern, but none of the remote's.
    pub(super) refused: usize,
    /// Why something was left out.
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
    is_cancelled: &'a Arc<AtomicBool>,
    deadline: Instant,
    requests: usize,
    entries: u64,
    known: HashSet<ArtifactPath>,
    outside: u64,
    has_ended: bool,
    found: Found,
}

/// What a folder's HTML listing shows.
#[derive(Debug, Default)]
struct Page {
    files: Vec<ArtifactPath>,
    folders: Vec<ArtifactPath>,
}

impl Page {
    fn has_file(&self, names: &[&str]) -> bool {
        self.files.iter().any(|file| names.contains(&file.file_name()))
    }
}

/// What a crawl looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crawl {
    Files,
    Apk,
    Rpm,
    Deb,
}

type Answer = (UpstreamHead, Box<dyn Read>);

impl<'a> Survey<'a> {
    pub(super) fn new(source: &'a Source, limit: usize, is_cancelled: &'a Arc<AtomicBool>) -> Self {
        Self {
            source,
            upstream: source.target.upstream.as_deref(),
            limit: limit.min(ARTIFACTS_MAX),
            is_cancelled,
            deadline: Instant::now() + TIME_MAX,
            requests: 0,
            entries: 0,
            known: HashSet::new(),
            outside: 0,
            has_ended: false,
            found: Found::default(),
        }
    }

    /// Asks and gives what matches both the pattern and the remote's own.
    pub(super) fn run(mut self) -> Result<Found, SurveyError> {
        let remote = &self.source.target.remote;
        let mut folders = prefix::folders([self.source.include.as_str()]);
        if folders == [""] {
            folders = prefix::folders(remote.patterns.include().iter().map(String::as_str));
        }
        let mut missing = Vec::new();
        for folder in &folders {
            let looked = match remote.format.name() {
                "alpine" => self.apk(folder),
                "rpm" => self.rpm(folder),
                "deb" => self.deb(folder),
                _ if self.source.releases.is_some() => self.releases(folder),
                _ => self.files(folder),
            };
            match looked {
                Ok(()) => {}
                Err(SurveyError::Ended) => break,
                Err(SurveyError::NotOffered(why)) => missing.push(why),
                Err(error) => return Err(error),
            }
            if self.has_ended {
                break;
            }
        }
        // One of several places that is not there is told; if none is, there is nothing to do.
        if let Some(why) = missing.first() {
            if missing.len() == folders.len() {
                return Err(SurveyError::NotOffered(why.clone()));
            }
            self.leave_out(why.clone());
        }
        if self.outside > 0 && self.found.incomplete.is_none() {
            let why = format!("{} links lead out of the remote's base_url", self.outside);
            self.found.incomplete = Some(why);
        }
        Ok(self.found)
    }

    // Kinds of remotes.

    fn apk(&mut self, folder: &str) -> Result<(), SurveyError> {
        if self.apk_index(folder)? { Ok(()) } else { self.crawl(folder, Crawl::Apk) }
    }

    fn apk_index(&mut self, folder: &str) -> Result<bool, SurveyError> {
        let path = within(folder, apk::INDEX)?;
        let Some((_, body)) = self.ask(&path)? else { return Ok(false) };
        self.keep_path(&path);
        let read = apk::packages(body, folder, &mut |listed| self.keep(listed));
        self.read(&path, read).map(|()| true)
    }

    fn rpm(&mut self, folder: &str) -> Result<(), SurveyError> {
        // The pattern may lead deep into a repository, whose root is somewhere above.
        for root in ancestors(folder) {
            if self.rpm_repository(root)? {
                return Ok(());
            }
        }
        self.crawl(folder, Crawl::Rpm)
    }

    fn rpm_repository(&mut self, root: &str) -> Result<bool, SurveyError> {
        let path = within(root, "repodata/repomd.xml")?;
        let Some((_, body)) = self.ask(&path)? else { return Ok(false) };
        self.keep_path(&path);
        let metadata = self.read(&path, rpm::metadata(BufReader::new(body), root))?;
        metadata.iter().for_each(|data| self.keep_path(&data.path));
        for data in metadata.iter().filter(|data| data.kind == "primary") {
            let what = data.path.as_str();
            let packing = self.read(&data.path, packing_of(what))?;
            let Some((_, body)) = self.ask(&data.path)? else { continue };
            let read = rpm::packages(body, packing, root, &mut |listed| self.keep(listed));
            self.read(&data.path, read)?;
        }
        Ok(true)
    }

    fn deb(&mut self, folder: &str) -> Result<(), SurveyError> {
        if let Some(suite) = suite_in(folder) {
            if self.deb_suite(suite)? {
                return Ok(());
            }
            return self.crawl(folder, Crawl::Deb);
        }
        let root = folder.find("pool/").filter(|at| *at == 0 || folder[..*at].ends_with('/'));
        let roots = match root {
            Some(at) => vec![&folder[..at]],
            None => ancestors(folder).collect(),
        };
        for root in roots {
            let dists = format!("{root}dists/");
            if self.page(&dists)?.is_some() {
                return self.crawl(&dists, Crawl::Deb);
            }
        }
        self.crawl(folder, Crawl::Deb)
    }

    fn deb_suite(&mut self, suite: &str) -> Result<bool, SurveyError> {
        let root = suite.find("dists/").map_or(suite, |at| &suite[..at]);
        for name in ["InRelease", "Release"] {
            let path = within(suite, name)?;
            let Some((_, body)) = self.ask(&path)? else { continue };
            self.keep_path(&path);
            let indexes = self.read(&path, deb::indexes(BufReader::new(body), suite))?;
            for Listed { path, size } in indexes {
                let packing = self.read(&path, packing_of(path.as_str()))?;
                // A Release may name indexes that are not there.
                let Some((_, body)) = self.ask(&path)? else { continue };
                let _ = self.keep(Listed { path: path.clone(), size });
                let read = deb::packages(body, packing, root, &mut |listed| self.keep(listed));
                self.read(&path, read)?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn releases(&mut self, folder: &str) -> Result<(), SurveyError> {
        let bases = self.bases();
        let (Some(api), Some(upstream), Some(base)) =
            (self.origin().and_then(Origin::releases_api), &self.source.releases, bases.first())
        else {
            return self.files(folder);
        };
        let whole = format!("{}{folder}", base.path());
        let mut names = whole.split('/').filter(|name| !name.is_empty());
        // The last folder of a pattern such as "owner/repo" is not known to be whole.
        let first = names.next().zip(names.next());
        let first = first.and_then(|(owner, repository)| github::first_page(owner, repository));
        let Some(first) = first else {
            let why = "the releases of which repository? Begin the pattern with owner/repository/";
            return Err(SurveyError::NotOffered(why.to_owned()));
        };
        let mut next = Some(first);
        let mut is_first = true;
        while let Some(page) = next.take() {
            let Some((head, body)) = self.ask_of(upstream.as_ref(), &page)? else {
                if is_first {
                    let why = format!("the releases API knows no {}", page.without_query());
                    return Err(SurveyError::NotOffered(why));
                }
                break;
            };
            let read = github::assets(body, bases, &mut |listed| self.keep(listed));
            self.outside += self.read(&page, read)?.outside;
            is_first = false;
            next = head.link.and_then(|link| github::next_page(&link, &api));
        }
        Ok(())
    }

    fn files(&mut self, folder: &str) -> Result<(), SurveyError> {
        let path = within(folder, hashicorp::INDEX)?;
        if let Some((head, body)) = self.ask(&path)?
            && !is_html(&head)
        {
            let bases = self.bases();
            match hashicorp::builds(body, bases, &mut |listed| self.keep(listed)) {
                Ok(seen) if seen.lists > 0 => {
                    self.outside += seen.outside;
                    return self.check_bounds();
                }
                // Some other JSON, or none: the folder may be listed all the same.
                Ok(_) | Err(ListingError::Malformed(_)) => {}
                Err(ListingError::Read(error)) => {
                    return self.read(&path, Err(ListingError::Read(error)));
                }
            }
        }
        self.crawl(folder, Crawl::Files)
    }

    // Folders in HTML.

    fn crawl(&mut self, start: &str, crawl: Crawl) -> Result<(), SurveyError> {
        let mut todo = vec![(start.to_owned(), 0)];
        let mut seen = HashSet::from([start.to_owned()]);
        while let Some((folder, depth)) = todo.pop() {
            let Some(page) = self.page(&folder)? else {
                if folder == start {
                    let shown = if start.is_empty() { "/" } else { start };
                    return Err(SurveyError::NotOffered(format!(
                        "upstream offers no index and no listing at {shown}: begin the pattern with a folder that it lists, or name paths"
                    )));
                }
                continue;
            };
            let is_repository = match crawl {
                Crawl::Files => {
                    page.files.iter().for_each(|file| self.keep_path(file));
                    false
                }
                Crawl::Apk => page.has_file(&[apk::INDEX]) && self.apk_index(&folder)?,
                Crawl::Rpm => {
                    let has_metadata = page
                        .folders
                        .iter()
                        .any(|f| f.as_str().ends_with("/repodata/") || f.as_str() == "repodata/");
                    has_metadata && self.rpm_repository(&folder)?
                }
                Crawl::Deb => {
                    page.has_file(&["InRelease", "Release"]) && self.deb_suite(&folder)?
                }
            };
            self.check_bounds()?;
            if is_repository {
                continue;
            }
            if depth == DEPTH_MAX && !page.folders.is_empty() {
                self.leave_out(format!("folders more than {DEPTH_MAX} deep"));
                continue;
            }
            // Popped from the end: turned round, so that folders are taken in their order.
            for folder in page.folders.into_iter().rev() {
                let folder = folder.to_string();
                if seen.len() < REQUESTS_MAX && seen.insert(folder.clone()) {
                    todo.push((folder, depth + 1));
                }
            }
        }
        Ok(())
    }

    /// The HTML listing of a folder, if there is one.
    fn page(&mut self, folder: &str) -> Result<Option<Page>, SurveyError> {
        let path = match folder {
            "" => ArtifactPath::root(),
            folder => within(folder, "")?,
        };
        let Some((head, body)) = self.ask(&path)? else { return Ok(None) };
        if !is_html(&head) {
            return Ok(None);
        }
        let (bases, mut page, mut is_full) = (self.bases(), Page::default(), false);
        let read = html::links(BufReader::new(body), &mut |href| {
            match of_listing(href, folder, bases) {
                Link::File(file) => page.files.push(file),
                Link::Folder(folder) => page.folders.push(folder),
                Link::Other => {}
            }
            is_full = page.files.len() + page.folders.len() >= PAGE_ENTRIES_MAX;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.read(&path, read)?;
        if is_full {
            self.leave_out(format!("{folder} lists more than {PAGE_ENTRIES_MAX} entries"));
        }
        Ok(Some(page))
    }

    // Questions.

    /// Asks for a listing; `None` where there is none, or where upstream means not to give it:
    /// there may be others.
    fn ask(&mut self, path: &ArtifactPath) -> Result<Option<Answer>, SurveyError> {
        let Some(upstream) = self.upstream else { return Ok(None) };
        match self.ask_of(upstream, path) {
            Err(SurveyError::Upstream { what, source }) if !source.is_failure() => {
                tracing::debug!(listing = what, error = %source, "a listing is not given");
                Ok(None)
            }
            answered => answered,
        }
    }

    /// Asks; `None` where there is no such thing.
    fn ask_of(
        &mut self,
        upstream: &dyn Upstream,
        path: &ArtifactPath,
    ) -> Result<Option<Answer>, SurveyError> {
        self.requests += 1;
        if self.requests > REQUESTS_MAX {
            self.leave_out(format!("more than {REQUESTS_MAX} listings"));
            self.has_ended = true;
        }
        self.check_bounds()?;
        match upstream.get(&UpstreamRequest { path, unless: None, part: None }) {
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
                Ok(Some((head, body)))
            }
            Ok(UpstreamReply::Absent | UpstreamReply::NotModified(_)) => Ok(None),
            Err(source) => {
                let what = match path.as_str() {
                    "" => "/".to_owned(),
                    path => path.to_owned(),
                };
                Err(SurveyError::Upstream { what, source })
            }
        }
    }

    /// Adds the listing's name to an error; one that a bound caused is an early end.
    fn read<T>(
        &mut self,
        path: &ArtifactPath,
        read: Result<T, ListingError>,
    ) -> Result<T, SurveyError> {
        self.check_bounds()?;
        read.map_err(|source| SurveyError::Listing { what: path.to_string(), source })
    }

    fn check_bounds(&mut self) -> Result<(), SurveyError> {
        if Instant::now() >= self.deadline {
            self.leave_out(format!("it took more than {} s", TIME_MAX.as_secs()));
            self.has_ended = true;
        }
        self.has_ended |= self.is_cancelled.load(Ordering::SeqCst);
        if self.has_ended { Err(SurveyError::Ended) } else { Ok(()) }
    }

    // Answers.

    fn keep_path(&mut self, path: &ArtifactPath) {
        let _ = self.keep(Listed { path: path.clone(), size: None });
    }

    fn keep(&mut self, listed: Listed) -> ControlFlow<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            self.leave_out(format!("more than {ENTRIES_MAX} entries"));
            self.has_ended = true;
        }
        if self.has_ended {
            return ControlFlow::Break(());
        }
        let remote = &self.source.target.remote;
        let matches = self.source.include.is_match(listed.path.as_str());
        if matches && !remote.patterns.allow(remote.format, &listed.path) {
            self.found.refused += 1;
        } else if matches && self.known.insert(listed.path.clone()) {
            self.found.listed.push(listed);
            if self.found.listed.len() >= self.limit {
                if self.limit == ARTIFACTS_MAX {
                    self.leave_out(format!("more than {ARTIFACTS_MAX} artifacts"));
                }
                self.has_ended = true;
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn leave_out(&mut self, why: String) {
        self.found.incomplete.get_or_insert(why);
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

fn is_html(head: &UpstreamHead) -> bool {
    let kind = head.content_type.as_deref().unwrap_or_default();
    ["text/html", "application/xhtml"].iter().any(|html| kind.starts_with(html))
}

fn packing_of(name: &str) -> Result<Packing, ListingError> {
    Packing::of(name).ok_or_else(|| {
        ListingError::Malformed("it is compressed in a way that is not supported".to_owned())
    })
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

/// The folder of the suite that a folder lies in: up to what follows `dists/`.
fn suite_in(folder: &str) -> Option<&str> {
    let at = folder.find("dists/").filter(|at| *at == 0 || folder[..*at].ends_with('/'))?;
    let name = at + "dists/".len();
    let end = name + folder[name..].find('/')? + 1;
    Some(&folder[..end])
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

    #[test]
    fn suites_are_found_in_paths() {
        let check = |folder: &str, suite: Option<&str>| {
            assert_eq!(suite_in(folder), suite, "{folder}");
        };
        check("dists/bookworm/main/binary-amd64/", Some("dists/bookworm/"));
        check("debian/dists/bookworm/", Some("debian/dists/bookworm/"));
        check("dists/", None);
        check("pool/main/", None);
        check("mydists/x/", None);
    }
}
