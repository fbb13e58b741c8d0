//! A request, held against the remotes: which artifacts, and what is refused at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use regex::Regex;
use url::Url;

use super::counted;
use super::item::{Done, Item, Status};
use super::places::Places;
use super::request::{Options, Request, What};
use crate::artifact::{ArtifactPath, BlobKey, RemoteName};
use crate::cache::Target;
use crate::config::Kind;
use crate::discovery::links::path_below;
use crate::upstream::Upstream;

/// The format of remotes that are no package repositories.
const GENERIC: &str = "generic";

/// The remotes that a batch may be about.
#[derive(Debug, Clone, Copy)]
pub struct Remotes<'a> {
    /// By name.
    pub targets: &'a BTreeMap<String, Arc<Target>>,
    /// Where the releases of some of them are listed, by name.
    pub releases: &'a BTreeMap<String, Arc<dyn Upstream>>,
}

/// What a job is to do.
#[derive(Debug)]
pub struct Plan {
    /// In words, for listings of jobs.
    pub(super) about: String,
    pub(super) options: Options,
    /// Whether the artifacts were asked for one by one.
    pub(super) is_by_name: bool,
    pub(super) work: Work,
    /// What is refused already.
    pub(super) refused: Vec<Done>,
}

/// What there is to do.
#[derive(Debug)]
pub(super) enum Work {
    /// These artifacts.
    Items(Vec<Item>),
    /// Whatever a survey finds.
    Survey(Source),
}

/// What a survey looks at.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) target: Arc<Target>,
    pub(super) releases: Option<Arc<dyn Upstream>>,
    pub(super) include: Regex,
    pub(super) places: Places,
}

/// Why a request makes no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no such remote.
    #[error("there is no remote {0:?}: GET / lists them")]
    UnknownRemote(String),
    /// It has nothing to fetch from.
    #[error("remote {0:?} has no upstream that may be asked: it is local or offline")]
    NoUpstream(String),
    /// Nothing says whose releases are meant.
    #[error(
        "the releases of which repository? Begin include_pattern, or remote {0:?}'s include_patterns, with owner/repository/"
    )]
    NoRepository(String),
}

impl Plan {
    /// Makes the plan of a request.
    ///
    /// # Errors
    /// [`PlanError`] for a remote that can't be filled; a path or URL that can't is a result of
    /// its own.
    pub fn of(request: Request, remotes: Remotes<'_>) -> Result<Self, PlanError> {
        let options = request.options;
        let mut sorted = Sorted::default();
        let mut add = |judged: Judged| sorted.add(judged);
        let about = match request.what {
            What::Pattern { remote, include } => {
                let target = Arc::clone(fillable(&remote, remotes)?);
                let about = format!("{remote}: {include}");
                let releases = remotes.releases.get(&remote).cloned();
                let places = places(&target, releases.as_ref(), include.as_str())?;
                let work = Work::Survey(Source { target, releases, include, places });
                return Ok(Self { about, options, is_by_name: false, work, refused: Vec::new() });
            }
            What::Paths { remote, paths } => {
                let target = fillable(&remote, remotes)?;
                let about = format!("{remote}: {}", counted(paths.len(), "path"));
                paths.into_iter().for_each(|path| add(of_path(target, path)));
                about
            }
            What::Urls { remote, urls } => {
                if let Some(remote) = &remote {
                    fillable(remote, remotes)?;
                }
                let about = counted(urls.len(), "URL");
                urls.into_iter().for_each(|url| add(of_url(remotes, remote.as_deref(), url)));
                about
            }
        };
        let Sorted { items, refused, .. } = sorted;
        Ok(Self { about, options, is_by_name: true, work: Work::Items(items), refused })
    }
}

/// What was asked for by name, each once.
#[derive(Default)]
struct Sorted {
    items: Vec<Item>,
    refused: Vec<Done>,
    taken: HashSet<(RemoteName, ArtifactPath)>,
    told: HashSet<String>,
}

impl Sorted {
    fn add(&mut self, judged: Judged) {
        match judged {
            Judged::Taken(item) => {
                let key = (item.target.remote.name.clone(), item.path.clone());
                if self.taken.insert(key) {
                    self.items.push(item);
                }
            }
            Judged::Refused(done) => {
                if self.told.insert(done.path.clone()) {
                    self.refused.push(done);
                }
            }
        }
    }
}

/// A path or a URL, judged.
enum Judged {
    Taken(Item),
    Refused(Done),
}

/// A URL that is refused as it stands.
fn refused(url: String, why: &str) -> Judged {
    let done = Done::refused(url.clone(), why.to_owned());
    Judged::Refused(Done { url: Some(url), ..done })
}

fn fillable<'a>(name: &str, remotes: Remotes<'a>) -> Result<&'a Arc<Target>, PlanError> {
    let target = remotes.targets.get(name);
    let target = target.ok_or_else(|| PlanError::UnknownRemote(name.to_owned()))?;
    match &target.remote.kind {
        Kind::Remote(origin) if !origin.offline => Ok(target),
        _ => Err(PlanError::NoUpstream(name.to_owned())),
    }
}

/// Where to look for what a pattern can match.
fn places(
    target: &Target,
    releases: Option<&Arc<dyn Upstream>>,
    include: &str,
) -> Result<Places, PlanError> {
    let remote = &target.remote;
    let own = remote.patterns.include();
    let origin = match &remote.kind {
        // A package repository says what it has itself, wherever it lies.
        Kind::Remote(origin) if releases.is_some() && remote.format.name() == GENERIC => origin,
        _ => return Ok(Places::folders(include, own)),
    };
    // A base URL at GitHub may hold owner and repository itself; the path of any other says
    // nothing about them.
    let above = origin.bases.first().filter(|_| origin.is_github());
    let above = above.map_or("", |base| base.path().trim_start_matches('/'));
    let places = Places::repositories(include, own, above);
    places.ok_or_else(|| PlanError::NoRepository(remote.name.to_string()))
}

/// A path is taken as results print it: nothing in it is decoded, so that what one batch names
/// another can be given.
fn of_path(target: &Arc<Target>, text: String) -> Judged {
    let path = text.trim_start_matches('/');
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let meant = target.remote.format.meant(path);
    match ArtifactPath::from_canonical(format!("{meant}{query}")) {
        Ok(path) => allowed(target, path, None),
        Err(why) => Judged::Refused(Done::refused(text, why.to_string())),
    }
}

/// `only`: the one remote that it may belong to.
fn of_url(remotes: Remotes<'_>, only: Option<&str>, text: String) -> Judged {
    let url = match Url::parse(&text) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            let why = "the URL has a credential: leave it out, the remote's auth is sent";
            return refused(masked(url), why);
        }
        Ok(url) if !url.has_host() => return refused(redacted(&text), "it is no URL of a host"),
        Ok(url) if url.fragment().is_none() => url,
        Ok(_) => return refused(text, "the URL has a fragment: leave out the # and what follows"),
        Err(why) => return refused(redacted(&text), &format!("it is not a URL: {why}")),
    };
    let owners = owners(remotes, &url);
    let is_wanted = |owner: &&Owner<'_>| only.is_none_or(|only| only == owner.name());
    let Some(owner) = owners.iter().find(is_wanted) else {
        let why = match (only, owners.first()) {
            (None, _) => "no remote's base_url is the beginning of this URL".to_owned(),
            (Some(only), None) => format!("the base_url of remote {only} is not its beginning"),
            (Some(only), Some(other)) => {
                format!("it is a URL of remote {}, not that of {only}", other.name())
            }
        };
        return refused(text, &why);
    };
    // Two remotes may share a base URL. The documented key is the first one's, whoever is asked
    // for: the other's copy lies under its own key, or each would replace what the other has.
    let blob = BlobKey::of_url(&text).filter(|_| owner.name() == owners[0].name());
    match allowed(owner.target, owner.path.clone(), blob) {
        Judged::Refused(done) => {
            Judged::Refused(Done { path: text.clone(), url: Some(text), ..done })
        }
        Judged::Taken(item) => Judged::Taken(Item { url: Some(text), ..item }),
    }
}

/// A remote that a URL may belong to.
struct Owner<'a> {
    target: &'a Arc<Target>,
    path: ArtifactPath,
    /// Whether its patterns allow the path, and how much of the URL its base URL is.
    rank: (bool, usize),
}

impl Owner<'_> {
    fn name(&self) -> &str {
        self.target.remote.name.as_str()
    }
}

/// The remotes below whose base URLs a URL lies, the one that it belongs to first: of those that
/// allow it the one with the longest base URL, which is for a part of a host; of equal ones the
/// first by name.
fn owners<'a>(remotes: Remotes<'a>, url: &Url) -> Vec<Owner<'a>> {
    let mut owners = Vec::new();
    for target in remotes.targets.values() {
        let Kind::Remote(origin) = &target.remote.kind else { continue };
        for base in origin.bases.iter().filter(|_| !origin.offline) {
            if let Some(path) = path_below(url, std::slice::from_ref(base)) {
                let remote = &target.remote;
                let rank = (remote.patterns.allow(remote.format, &path), base.as_str().len());
                owners.push(Owner { target, path, rank });
            }
        }
    }
    // Stable, so that equals stay in the order of their names.
    owners.sort_by_key(|owner| std::cmp::Reverse(owner.rank));
    owners
}

/// A URL without its credential.
fn masked(mut url: Url) -> String {
    // Both fail only for URLs without a host, which can't have a credential.
    let _ = url.set_password(None);
    let _ = url.set_username("***");
    url.to_string()
}

/// A text that is no URL, without what may be meant as a credential.
fn redacted(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, behind)) => format!("***@{behind}"),
        None => text.to_owned(),
    }
}

/// The item of a path that the remote's patterns allow.
fn allowed(target: &Arc<Target>, path: ArtifactPath, blob: Option<BlobKey>) -> Judged {
    let remote = &target.remote;
    if remote.patterns.allow(remote.format, &path) {
        let target = Arc::clone(target);
        return Judged::Taken(Item { target, path, url: None, blob, size: None });
    }
    let why = format!("the patterns of remote {} do not allow this path", remote.name);
    Judged::Refused(Done {
        remote: Some(remote.name.clone()),
        status: Status::Refused,
        ..Done::refused(path.to_string(), why)
    })
}
