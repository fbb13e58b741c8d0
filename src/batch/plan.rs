//! A request, held against the remotes: which artifacts, and what is refused at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use url::Url;

use super::item::{Done, Item, Status};
use super::request::{Options, Request, What};
use crate::artifact::{ArtifactPath, BlobKey};
use crate::cache::Target;
use crate::config::Kind;
use crate::discovery::links::path_below;
use crate::upstream::Upstream;

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
}

impl Plan {
    /// Makes the plan of a request.
    ///
    /// # Errors
    /// [`PlanError`] for a remote that can't be filled; a path or URL that can't is a result of
    /// its own.
    pub fn of(request: Request, remotes: Remotes<'_>) -> Result<Self, PlanError> {
        let options = request.options;
        let (mut items, mut refused) = (Vec::new(), Vec::new());
        let mut add = |judged: Judged| match judged {
            // What is beyond the limit is left for another time, refusals are told.
            Judged::Taken(_) if items.len() == options.limit => {}
            Judged::Taken(item) => items.push(item),
            Judged::Refused(done) => refused.push(done),
        };
        let about = match request.what {
            What::Pattern { remote, include } => {
                let target = Arc::clone(fillable(&remote, remotes)?);
                let about = format!("{remote}: {include}");
                let releases = remotes.releases.get(&remote).cloned();
                let work = Work::Survey(Source { target, releases, include });
                return Ok(Self { about, options, is_by_name: false, work, refused });
            }
            What::Paths { remote, paths } => {
                let target = fillable(&remote, remotes)?;
                let about = format!("{remote}: {} paths", paths.len());
                paths.into_iter().for_each(|path| add(of_path(target, path)));
                about
            }
            What::Urls { remote, urls } => {
                if let Some(remote) = &remote {
                    fillable(remote, remotes)?;
                }
                let about = format!("{} URLs", urls.len());
                urls.into_iter().for_each(|url| add(of_url(remotes, remote.as_deref(), url)));
                about
            }
        };
        Ok(Self { about, options, is_by_name: true, work: Work::Items(items), refused })
    }
}

/// A path or a URL, judged.
enum Judged {
    Taken(Item),
    Refused(Done),
}

fn refused(text: String, why: &str) -> Judged {
    Judged::Refused(Done::refused(text, why.to_owned()))
}

fn fillable<'a>(name: &str, remotes: Remotes<'a>) -> Result<&'a Arc<Target>, PlanError> {
    let target = remotes.targets.get(name);
    let target = target.ok_or_else(|| PlanError::UnknownRemote(name.to_owned()))?;
    match &target.remote.kind {
        Kind::Remote(origin) if !origin.offline => Ok(target),
        _ => Err(PlanError::NoUpstream(name.to_owned())),
    }
}

fn of_path(target: &Arc<Target>, text: String) -> Judged {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text.as_str(), None),
    };
    let path = path.trim_start_matches('/');
    match ArtifactPath::from_request(path, query) {
        Ok(path) => allowed(target, path, None),
        Err(why) => Judged::Refused(Done::refused(text, why.to_string())),
    }
}

/// `only`: the one remote that it may belong to.
fn of_url(remotes: Remotes<'_>, only: Option<&str>, text: String) -> Judged {
    let url = match Url::parse(&text) {
        Ok(url) if url.fragment().is_none() => url,
        Ok(_) => return refused(text, "the URL has a fragment"),
        Err(why) => return refused(text, &format!("it is not a URL: {why}")),
    };
    // The remote with the longest base URL: one that is for a part of a host goes first.
    let wanted = |name: &&Arc<Target>| only.is_none_or(|only| name.remote.name.as_str() == only);
    let below =
        remotes.targets.values().filter(wanted).filter_map(|target| match &target.remote.kind {
            Kind::Remote(origin) if !origin.offline => {
                let longest = origin.bases.iter().filter_map(|base| {
                    let path = path_below(&url, std::slice::from_ref(base))?;
                    Some((base.as_str().len(), path))
                });
                longest.max_by_key(|(len, _)| *len).map(|(len, path)| (len, target, path))
            }
            _ => None,
        });
    let Some((_, target, path)) = below.max_by_key(|(len, ..)| *len) else {
        return refused(text, "no remote's base_url is the beginning of this URL");
    };
    let blob = BlobKey::of_url(&text);
    match allowed(target, path, blob) {
        Judged::Refused(done) => Judged::Refused(Done { path: text, ..done }),
        taken => taken,
    }
}

/// The item of a path that the remote's patterns allow.
fn allowed(target: &Arc<Target>, path: ArtifactPath, blob: Option<BlobKey>) -> Judged {
    let remote = &target.remote;
    if remote.patterns.allow(remote.format, &path) {
        return Judged::Taken(Item { target: Arc::clone(target), path, blob, size: None });
    }
    let why = format!("the patterns of remote {} do not allow this path", remote.name);
    Judged::Refused(Done {
        remote: Some(remote.name.clone()),
        status: Status::Refused,
        ..Done::refused(path.to_string(), why)
    })
}
